"""Computes route health from server health, and converts it to JSON-compatible documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FULL, SUMMARY, SIMPLE = DEPTHS = ("full", "summary", "simple")
UNKNOWN, HEALTHY, NAPPING, STARTING, UNHEALTHY, ERROR = (
    "unknown", "healthy", "napping", "starting", "unhealthy", "error",
)  # fmt: skip
# From best to worst. A route has the best status of its backends.
STATUSES = HEALTHY, STARTING, NAPPING, UNHEALTHY, ERROR, UNKNOWN

# With these statuses no request is refused for lack of a backend.
_SERVING = (HEALTHY, NAPPING)
_PUBLIC_FIELDS = ("status", "uptime_seconds", "latency_seconds")
_STATUS_OF_STATE = {"sleeping": NAPPING, "starting": STARTING, "failed": ERROR, "draining": UNKNOWN}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteHealth:
    """The health of a route: its status, how long it has been serving, its latency, and the reason for the status.

    The latency is that of the last probe, or None without a measurement. A route is `at_rest` if all its servers start
    on demand and none has been started: refusing requests is then not a fault.
    """

    status: str = UNKNOWN
    uptime_seconds: float = 0.0
    latency_seconds: float | None = None
    detail: str = ""
    at_rest: bool = False

    @property
    def is_faulty(self) -> bool:
        """Whether the route does not serve, although it should."""
        return not (self.serves or self.at_rest)

    @property
    def serves(self) -> bool:
        """Whether the route has a backend that takes requests."""
        return self.status in _SERVING


def server_health(
    state: str,
    health: str,
    *,
    ready: bool,
    uptime_seconds: float = 0.0,
    latency_seconds: float | None = None,
    why: str = "",
) -> RouteHealth:
    """The health of a route to one server, from its `state` and the result of its probes, `health`.

    A sleeping server is napping: the next request wakes it. A failed server has the status error; a draining one,
    or one with the state "", is unknown. Every other server that is not ready is unhealthy.
    """
    if ready:
        status = UNHEALTHY if health == "ko" else HEALTHY
    else:
        status = _STATUS_OF_STATE.get(state, UNHEALTHY if state else UNKNOWN)
    return RouteHealth(
        status=status, uptime_seconds=uptime_seconds, latency_seconds=latency_seconds, detail=why
    )


def route_health(backends: Iterable[RouteHealth]) -> RouteHealth:
    """The health of a route with these backends: the health of the best one, or unknown without backends."""
    rank = STATUSES.index
    return min(backends, key=lambda backend: (rank(backend.status), backend.at_rest), default=RouteHealth())


def health_info(healths: Mapping[str, RouteHealth]) -> dict[str, dict[str, Any]]:
    """Status, uptime, latency and detail of each route, by alias, as a JSON-compatible document."""
    return {alias: _fields(health, *_PUBLIC_FIELDS, "detail") for alias, health in healths.items()}


def health_info_without_detail(healths: Mapping[str, RouteHealth]) -> dict[str, dict[str, Any]]:
    """Status, uptime and latency of each route, for readers who must not see addresses or errors."""
    return {alias: _fields(health, *_PUBLIC_FIELDS) for alias, health in healths.items()}


def health_info_simple(healths: Mapping[str, RouteHealth]) -> dict[str, str]:
    """The status of each route, by its alias."""
    return {alias: health.status for alias, health in healths.items()}


def health_at_depth(healths: Mapping[str, RouteHealth], depth: str) -> dict[str, Any]:
    """The health of each route, by alias: all values ("full"), without detail ("summary"), or the status ("simple")."""
    if depth == SIMPLE:
        return health_info_simple(healths)
    return health_info(healths) if depth == FULL else health_info_without_detail(healths)


def _fields(health: RouteHealth, *names: str) -> dict[str, Any]:
    return {name: getattr(health, name) for name in names}
