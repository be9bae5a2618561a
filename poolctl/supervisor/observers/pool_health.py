"""The health of a pool in three depths: of its servers, and of the routes that lead to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from poolctl.control.observer_answers import HealthReport, HealthResult
from poolctl.core.core import Core
from poolctl.core.decide import Desired
from poolctl.core.schedules import failed_run
from poolctl.core.server_entry import Entry
from poolctl.exit_codes import NOT_AS_DESIRED
from poolctl.json_form import Table, from_json
from poolctl.routing.route_health import DEPTHS, FULL, SIMPLE, RouteHealth, health_in_depth, server_health
from poolctl.selection.selector import SelectorError

from ..verbs.verb import Call, complaint_of

ROUTE, SERVER = "route", "server"

# The health of each route, by its name.
RouteHealths = Callable[[], Awaitable[Mapping[str, RouteHealth]]]


class HealthOfPool(NamedTuple):
    """The health of all routes, by alias, and of all servers, by name.

    `serves` says whether each route, and each server that should run, does what it is there for.
    """

    routes: dict[str, RouteHealth]
    servers: dict[str, RouteHealth]
    serves: bool

    @property
    def named(self) -> dict[str, tuple[str, RouteHealth]]:
        """Kind and health of each route and server, by unique names: a route often has the name of its server."""
        found = {alias: (ROUTE, health) for alias, health in self.routes.items()}
        for name, health in self.servers.items():
            found[f"{name} (server)" if name in found else name] = SERVER, health
        return found

    def in_depth(self, depth: str) -> Table:
        """The health in the form of `health_info` or one of its two short forms."""
        return health_in_depth({name: health for name, (_, health) in self.named.items()}, depth)


class PoolHealth:
    """Answers the verb, and clients over HTTP."""

    def __init__(self, core: Core, route_healths: RouteHealths) -> None:
        self._core = core
        self._route_healths = route_healths

    async def health(self, *, routes_only: bool = False) -> HealthOfPool:
        """The health of each route and each server."""
        routes = await self._route_healths()
        entries = [] if routes_only else [*self._core.entries.values()]
        serves = all(each.serves for each in routes.values()) and not any(each.is_missing for each in entries)
        return HealthOfPool(
            dict(routes), {each.name: _own_health(self._core, each) for each in entries}, serves
        )

    async def verb(self, call: Call) -> HealthResult:
        """The health in the depth that is asked for; exit code 3 if something does not serve that should."""
        depth = call.options.get("depth") or FULL
        if depth not in DEPTHS:
            raise SelectorError(f"there is no depth {depth!r}", hint=f"one of: {', '.join(DEPTHS)}")
        found = await self.health(routes_only=bool(call.options.get("routes")))
        rows = (
            {"name": name, "kind": found.named[name][0], **({"status": each} if depth == SIMPLE else each)}
            for name, each in found.in_depth(depth).items()
        )
        return HealthResult(
            items=tuple(from_json(HealthReport, row) for row in rows),
            exit_code=0 if found.serves else NOT_AS_DESIRED,
        )


def health_of(core: Core, entry: Entry) -> RouteHealth:
    """The health of a server, as reported for a route that leads to it."""
    return server_health(
        entry.state,
        entry.health.value,
        ready=entry.ready,
        uptime_seconds=round(entry.uptime_seconds(core.clock.monotonic()), 3),
        latency_seconds=core.health.latency_seconds(entry),
        why=complaint_of(core, entry),
    )


def _own_health(core: Core, entry: Entry) -> RouteHealth:
    """The health of the server itself; unknown for a server that should not run."""
    if entry.is_disabled or entry.desired.state in (Desired.STOPPED, Desired.REMOVED):
        return RouteHealth(detail=entry.state)
    health = health_of(core, entry)
    return replace(health, detail=failed) if (failed := failed_run(entry)) else health
