"""A backend of the gateway as `poolctl backends` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HostState(StrEnum):
    """The ordered state of a host. A draining host gets only requests whose sticky cookie names it."""

    ACTIVE = "active"
    DISABLED = "disabled"
    DRAINING = "draining"


class BreakerState(StrEnum):
    """The state of a host's circuit breaker; half-open while a few requests try whether it has recovered."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReport:
    """One host. `since` and `until` are times (ISO 8601, UTC) or "".

    `state` is the ordered HostState; `health`, one of route_health.STATUSES, says how it is; `available` whether it
    gets requests now, `why` the reason if it does not. `breaker` is a BreakerState, "" before the first request.
    `connections` counts the connections of a server's workers, or the gateway's own connections to any other host;
    `in_flight` are requests that it proxies, `waiting` requests in the queues of its routes.
    """

    host: str
    routes: tuple[str, ...] = ()
    state: str = "active"
    since: str = ""
    until: str = ""
    available: bool = True
    health: str = "unknown"
    why: str = ""
    breaker: str = ""
    connections: int = 0
    in_flight: int = 0
    waiting: int = 0
    requests: int = 0
    errors: int = 0

    @property
    def backend(self) -> str:
        """The host, as the table heads its column."""
        return self.host
