"""Routes, backends and registered services as `poolctl routes`, `backends` and `register` show them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from .route import ExcludedRoute, Route, StreamRoute

# The values of RouteReport.way.
HTTP, STREAM, EXCLUDED = "http", "stream", "excluded"

# The columns of `routes` and `backends` with -o wide, which the dashboard shows, too.
ROUTE_COLUMNS = (
    "alias", "host", "path", "to", "way", "policy", "provider", "state", "requests", "refused", "waiting", "errors",
    "p50", "p99", "why",
)  # fmt: skip
BACKEND_COLUMNS = (
    "backend", "routes", "state", "health", "since", "until", "breaker", "conn", "in_flight", "waiting", "requests",
    "errors", "why",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetMachineReport:
    """The Proxmox machine of a route's target `to`: a node (`vmid` 0), or a container (lxc) or VM (qemu)."""

    to: str
    kind: str
    node: str
    vmid: int = 0
    name: str = ""
    state: str = ""

    def __str__(self) -> str:
        return f"{self.node}/{self.vmid} {self.name} ({self.state})" if self.vmid else self.node


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteReport:
    """One route, as reported.

    `to` has server names, URLs or a redirect. `way` is http, stream or excluded. `why` is the reason if it is
    excluded, or unhealthy. `host` of a stream is the address where the gateway listens. `state` is one of
    route_health.STATUSES. `waiting` is the number of queued requests. Latencies are those of the route's servers.
    `machines` is None if there is no inventory of Proxmox machines.
    """

    alias: str
    host: str = ""
    path: str = ""
    to: tuple[str, ...] = ()
    policy: str = ""
    way: str = HTTP
    why: str = ""
    provider: str = ""
    state: str = "unknown"
    requests: int = 0
    refused: int = 0
    waiting: int = 0
    errors: int = 0
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    registrations: tuple[RegisteredServiceReport, ...] | None = None
    machines: tuple[TargetMachineReport, ...] | None = None


def route_columns(reports: Iterable[RouteReport]) -> tuple[str, ...]:
    """ROUTE_COLUMNS, and `machines` after `to` if Proxmox machines are known."""
    at = ROUTE_COLUMNS.index("to") + 1
    machines = ("machines",) if any(report.machines for report in reports) else ()
    return (*ROUTE_COLUMNS[:at], *machines, *ROUTE_COLUMNS[at:])


def destinations(route: Route | StreamRoute) -> tuple[str, ...]:
    """Where the route leads: the names of its servers, and its URLs.

    For a redirect, it is "redirect to" and the URL; "redirect to https" if only the scheme changes.
    """
    if isinstance(route, Route) and route.redirect is not None:
        return (f"redirect to {route.redirect.to}",)
    return tuple(target.key for target in route.to)


def route_key(route: Route | StreamRoute) -> str:
    """A unique name of the route; an HTTP route and a stream may have the same alias."""
    return route.alias if isinstance(route, Route) else stream_key(route.alias)


def stream_key(alias: str) -> str:
    """The `route_key` of a stream with this alias."""
    return f"stream {alias}"


def static_route_report(route: Route | StreamRoute | ExcludedRoute) -> RouteReport:
    """A report from the route alone: its state is unknown, and its figures are 0."""
    if isinstance(route, ExcludedRoute):
        return RouteReport(
            alias=route.alias, host=route.host, way=EXCLUDED, why=route.reason, provider=route.provider
        )
    report = RouteReport(
        alias=route.alias, to=destinations(route), policy=route.policy, provider=route.provider
    )
    if isinstance(route, StreamRoute):
        return replace(report, host=route.bind, way=STREAM)
    return replace(report, host=route.host, path=route.path)


class RequestedBackendState(StrEnum):
    """The state that was requested for a host. A draining host gets only requests with its sticky cookie."""

    ACTIVE = "active"
    DISABLED = "disabled"
    DRAINING = "draining"


class BreakerState(StrEnum):
    """The state of a host's circuit breaker; half-open while a few requests test whether the host has recovered."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendReport:
    """A backend, `host`: a server or a URL. `state` applies from `since` to `until` (times in ISO 8601, UTC, or "").

    `state` is what was requested, `health` one of route_health.STATUSES. `available` is whether the host gets requests
    now; if not, `why` is the reason. `breaker` is a BreakerState, "" before the first request.
    `connections` counts the connections of a server's workers, or the gateway's own connections to a URL;
    `in_flight` counts requests that the gateway proxies to the host, `waiting` requests in the queues of its routes.
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
        """The host, for the column `backend` of the table that `poolctl backends` prints."""
        return self.host


# States of a registered service: no probe succeeded yet, in rotation, probe fails, time-to-live expired.
STARTING, SERVING, FAILING, SILENT = "starting", "serving", "failing", "silent"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredServiceReport:
    """One service, registered as a backend of the route `name`. `state` is starting, serving, failing or silent.

    `why` is the problem of the last probe, or says that the service is silent. `since` is the time of the last change
    of state (ISO 8601, UTC). `left_seconds` is the remaining time-to-live, None without one.
    """

    name: str
    url: str
    state: str = SERVING
    why: str = ""
    since: str = ""
    weight: int = 1
    ttl_seconds: float = 0.0
    left_seconds: float | None = None
    latency_seconds: float | None = None
    probe: str = ""


def with_absolute_socket_path(url: str) -> str:
    """The URL; a relative path of a Unix socket is made absolute from this process's directory."""
    scheme, _, path = url.partition(":")
    return f"unix:{os.path.abspath(path)}" if scheme.lower() == "unix" else url
