"""Answers of a supervisor about its gateway, and the gateway's parts of other answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from poolctl.control.answers import Result
from poolctl.control.server_answers import RouteToServer
from poolctl.json_form import Table
from poolctl.routing.route import ExcludedRoute, Route, StreamRoute
from poolctl.routing.route_report import BackendReport, RouteReport

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsResult(Result):
    """The answer of `hosts`, and of `host`, which changes hosts."""

    items: tuple[BackendReport, ...] = ()  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutesResult(Result):
    """The answer of `routes`: every route, including excluded ones.

    `generation` is the number of the current table, 0 without a table. `refused` counts requests without a route that
    the gateway has refused, by status ("tls": in the handshake). It is omitted while the gateway does not answer.
    """

    PRINTED: ClassVar[tuple[str, ...]] = ("generation", "refused")

    items: tuple[RouteReport, ...] = ()  # type: ignore[assignment]
    generation: int = 0
    refused: Table | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTableResult(Result):
    """The answer of `registry`: the generation of the route table, or 0 if there is no table.

    The supervisor sends a descriptor of the table before this answer.
    """

    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchingRoutesResult(Result):
    """The answer of `routes` with the operation "explain": the routes, out of `total`, that may match a request.

    `excluded` are routes for the request's host that are not served. The header `header_for_host` has the host.
    `unavailable` says, by alias and target, why a target gets no requests, or only some.
    """

    header_for_host: str = "Host"
    generation: int = 0
    total: int = 0
    routes: tuple[Route, ...] = ()
    excluded: tuple[ExcludedRoute, ...] = ()
    unavailable: Table = field(default_factory=dict)


def excluded_routes_for_host(host: str, routes: Iterable[ExcludedRoute]) -> tuple[ExcludedRoute, ...]:
    """Return at most 100 excluded routes: those with a host pattern that covers `host`, or without a host."""
    from itertools import islice

    from poolctl.routing.match import host_pattern

    return tuple(
        islice((route for route in routes if not route.host or host_pattern(route.host).covers(host)), 100)
    )


def routes_to_servers(routes: Iterable[Route | StreamRoute]) -> dict[str, tuple[RouteToServer, ...]]:
    """The routes that lead to each server, by the names of the servers."""
    by_server: dict[str, list[RouteToServer]] = {}
    for route in routes:
        servers = {target.server: None for target in route.to if target.server}
        if servers:
            if isinstance(route, Route):
                protocol, host, path = "http", route.host, route.path
            else:
                protocol, host, path = route.protocol, route.bind, ""
            entry = RouteToServer(alias=route.alias, protocol=protocol, host=host, path=path)
            for server in servers:
                by_server.setdefault(server, []).append(entry)
    return {server: tuple(entries) for server, entries in by_server.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStats:
    """The figures of the gateway; None means unknown.

    Connections of a stream count as requests. Refused requests are those without a route. Rates are over the last
    seconds.
    """

    requests_total: int
    refused_total: int
    errors_total: int
    requests_per_second: float | None
    errors_per_second: float | None
    connections: int | None
    memory_bytes: int | None
    cpu_percent: float | None
    replaced_processes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayStatus:
    """The gateway of a pool: `state` is running, starting or failed; `problem` describes any part not served.

    `addresses` are URLs, with tcp:// for streams; `routes` does not count excluded ones. `stats` are left
    out where they were not asked for.
    """

    state: str
    problem: str = ""
    pid: int | None
    addresses: tuple[str, ...]
    routes: int
    uptime_seconds: float
    restarts: int
    stats: GatewayStats | None = None
