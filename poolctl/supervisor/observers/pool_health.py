"""The health of a pool in three depths: of the routes of its gateway, or without one of its servers."""

from __future__ import annotations

from typing import Protocol

from poolctl.control.observer_answers import HealthReport, HealthResult
from poolctl.core.core import Core
from poolctl.core.decision_input import Desired
from poolctl.core.server_entry import Entry
from poolctl.exit_codes import NOT_AS_DESIRED
from poolctl.routing.route_health import (
    DEPTHS,
    FULL,
    SIMPLE,
    UNKNOWN,
    RouteHealth,
    all_fine,
    health_in_depth,
    server_health,
)
from poolctl.selection.selector import SelectorError

from ..verbs.verb import Call


class HealthOfRoutes(Protocol):
    """The gateway of the pool, if it has one."""

    async def healths(self) -> dict[str, RouteHealth] | None:
        """The health of each route, by its alias; None without a gateway."""


class PoolHealth:
    """Answers the verb, and clients over HTTP."""

    def __init__(self, core: Core, gateway: HealthOfRoutes) -> None:
        self._core = core
        self._gateway = gateway

    async def healths(self) -> dict[str, RouteHealth]:
        """The health of each route, or of each server."""
        found = await self._gateway.healths()
        if found is not None:
            return found
        return {entry.name: _own_health(self._core, entry) for entry in self._core.entries.values()}

    async def verb(self, call: Call) -> HealthResult:
        """The health in the depth that is asked for; exit code 3 if something does not serve that should."""
        depth = call.options.get("depth") or FULL
        if depth not in DEPTHS:
            raise SelectorError(f"there is no depth {depth!r}", hint=f"one of: {', '.join(DEPTHS)}")
        healths = await self.healths()
        found = health_in_depth(healths, depth)
        rows = (
            {"name": name, **({"status": each} if depth == SIMPLE else each)} for name, each in found.items()
        )
        return HealthResult(
            items=tuple(map(HealthReport.from_json, rows)),
            exit_code=0 if all_fine(healths) else NOT_AS_DESIRED,
        )


def health_of(core: Core, entry: Entry) -> RouteHealth:
    """The health of a server as that of a route that leads to it."""
    failure = entry.failure.message if entry.failure is not None and not entry.ready else ""
    return server_health(
        entry.state,
        entry.health.value,
        ready=entry.ready,
        uptime_seconds=round(entry.uptime_seconds(core.clock.monotonic()), 3),
        latency_seconds=core.health.latency_seconds(entry) or 0.0,
        why=core.health.complaint(entry) or failure,
    )


def _own_health(core: Core, entry: Entry) -> RouteHealth:
    """Likewise; unknown for one that is not to run."""
    if entry.is_disabled or entry.desired in (Desired.STOPPED, Desired.REMOVED):
        return RouteHealth(status=UNKNOWN, detail=entry.state)
    return health_of(core, entry)
