"""The backends behind the gateway's routes: which of them gets a request, and which cannot have one now.

`route_backends` chooses for one route, by its policy (`balance`), among backends that are ready (`backend`), whose
`breaker` is closed and `limiter` has room, and that an operator has not disabled (`hosts`). A `lease` is the right to
send the request that was chosen for.
"""

from __future__ import annotations

from .backend import (
    ANSWERED,
    CANCELLED,
    DOWN_RETRY_SECONDS,
    FAILED,
    READY,
    SLEEPING,
    STARTING,
    UNUSED,
    Backend,
    BackendVerdict,
    RequestOutcome,
    sticky_value,
)
from .backends import Backends
from .hosts import HostManager, UnknownHost, find_host
from .lease import Lease, NoBackend
from .limiter import Limiter
from .route_backends import RouteBackends

__all__ = [
    "ANSWERED",
    "CANCELLED",
    "DOWN_RETRY_SECONDS",
    "FAILED",
    "READY",
    "SLEEPING",
    "STARTING",
    "UNUSED",
    "Backend",
    "BackendVerdict",
    "Backends",
    "HostManager",
    "Lease",
    "Limiter",
    "NoBackend",
    "RequestOutcome",
    "RouteBackends",
    "UnknownHost",
    "find_host",
    "sticky_value",
]
