"""The metrics of a gateway and its routes, streams and hosts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from poolctl.json_form import Table, to_json
from poolctl.monitor.metrics import Family, Row, families_of
from poolctl.routing.route_health import STATUSES, RouteHealth
from poolctl.routing.route_report import (
    EXCLUDED,
    HTTP,
    STREAM,
    BackendReport,
    BreakerState,
    RequestedBackendState,
)

from .counts import CONNECT, REFUSED, RESPONSE, Traffic, TrafficCounts
from .gateway import GatewayManager, GatewayPart

# Maximum number of routes, of streams and of hosts, so that a scrape and the scraper's storage stay small.
MAX_LABELLED = 1000


def gateway_metrics(
    manager: GatewayManager,
    hosts: Sequence[BackendReport],
    healths: Mapping[str, RouteHealth],
    parts: Iterable[GatewayPart],
    *,
    answered: bool,
) -> Iterator[Family]:
    """The gateway's metrics from the last statistics; with `answered` these are current."""
    counts, figures = manager.counts, manager.figures
    routes, streams = [*counts.routes.items()], [*counts.streams.items()]
    yield from families_of(_GATEWAY, [((manager, answered), {})])
    yield from _routes_and_refusals(manager)
    omitted = Family("poolctl_gateway_omitted", "gauge", "Routes, streams and hosts without metrics.")
    for kind, number in (("routes", len(routes)), ("streams", len(streams)), ("hosts", len(hosts))):
        omitted.add(max(0, number - MAX_LABELLED), kind=kind)
    yield omitted
    yield from _routes(routes[:MAX_LABELLED], figures.queued)
    yield _route_health(healths)
    opened = figures.open_streams
    shown = streams[:MAX_LABELLED]
    yield from families_of(_STREAM, [((traffic, opened[name]), {"stream": name}) for name, traffic in shown])
    yield from _hosts([to_json(host) for host in hosts[:MAX_LABELLED]], counts)
    for part in parts:
        yield from part.gateway_metrics()


def _routes_and_refusals(manager: GatewayManager) -> Iterator[Family]:
    refused = Family("poolctl_gateway_refused", "counter", "Requests without a route, by the status.")
    for code, count in {"404": 0, **manager.counts.refused}.items():
        refused.add(count, code=code)
    yield refused
    routes = manager.routes.routes
    family = Family("poolctl_gateway_routes", "gauge", "Routes by what is forwarded.")
    for way, members in ((HTTP, routes.http), (STREAM, routes.streams), (EXCLUDED, routes.excluded)):
        family.add(len(members), way=way)
    yield family


_GATEWAY: Sequence[Row[tuple[GatewayManager, bool]]] = (
    ("poolctl_gateway_up", "gauge", "Whether HAProxy answers.", lambda each: int(each[1])),
    ("poolctl_gateway_restarts", "counter", "How often HAProxy has ended by itself.",
     lambda each: each[0].restarts),
    ("poolctl_gateway_table_generation", "gauge", "The route table that is in force; it rises with each change.",
     lambda each: each[0].routes.generation),
    ("poolctl_gateway_connections", "gauge", "Connections of clients.",
     lambda each: each[0].figures.connections if each[1] else None),
)  # fmt: skip
_STREAM: Sequence[Row[tuple[Traffic, int]]] = (
    ("poolctl_stream_connections", "counter", "Connections that a stream has accepted.",
     lambda each: each[0].requests),
    ("poolctl_stream_open_connections", "gauge", "Connections of a stream that are open.", lambda each: each[1]),
    ("poolctl_stream_errors", "counter", "Connections that failed for want of a backend, or with it.",
     lambda each: sum(each[0].errors[reason] for reason in (CONNECT, RESPONSE, REFUSED))),
    ("poolctl_stream_received_bytes", "counter", "Bytes from clients.", lambda each: each[0].bytes_in),
    ("poolctl_stream_sent_bytes", "counter", "Bytes to clients.", lambda each: each[0].bytes_out),
)  # fmt: skip
_ROUTE: Sequence[Row[Traffic]] = (
    ("poolctl_route_requests", "counter", "Requests of the route.", lambda each: each.requests),
    ("poolctl_route_received_bytes", "counter", "Bytes from clients.", lambda each: each.bytes_in),
    ("poolctl_route_sent_bytes", "counter", "Bytes to clients.", lambda each: each.bytes_out),
)  # fmt: skip
_HOST: Sequence[Row[Table]] = (
    ("poolctl_host_available", "gauge", "Whether the host gets requests.", lambda each: int(each["available"])),
    ("poolctl_host_connections", "gauge", "Connections that a server's workers have, or HAProxy to another host.",
     lambda each: each["connections"]),
    ("poolctl_host_requests_in_flight", "gauge", "Requests that are forwarded to the host now.",
     lambda each: each["in_flight"]),
    ("poolctl_host_requests_waiting", "gauge", "Requests in the queues of the host's routes.",
     lambda each: each["waiting"]),
    ("poolctl_host_requests", "counter", "Requests that were forwarded to the host.", lambda each: each["requests"]),
)  # fmt: skip


def _routes(routes: Sequence[tuple[str, Traffic]], queued: Mapping[str, int]) -> Iterable[Family]:
    text = "Responses of the route, by the class of their status."
    responses = Family("poolctl_route_responses", "counter", text)
    errors = Family("poolctl_route_request_errors", "counter", "Requests without a response, by the reason.")
    waiting = Family("poolctl_route_requests_waiting", "gauge", "Requests that wait for a busy target now.")
    for alias, traffic in routes:
        for digit in range(1, 6):
            responses.add(traffic.statuses[digit], route=alias, code=f"{digit}xx")
        _add_errors(errors, traffic, route=alias)
        waiting.add(queued[alias], route=alias)
    named = [(traffic, {"route": alias}) for alias, traffic in routes]
    return *families_of(_ROUTE, named), responses, errors, waiting


def _route_health(healths: Mapping[str, RouteHealth]) -> Family:
    family = Family("poolctl_route_health", "gauge", "1 for how the route is: see `poolctl health`.")
    for name, health in islice(healths.items(), MAX_LABELLED):
        for status in STATUSES:
            family.add(int(health.status == status), route=name, status=status)
    return family


def _hosts(hosts: Sequence[Table], counts: TrafficCounts) -> Iterable[Family]:
    state = Family("poolctl_host_state", "gauge", "1 for the state in which the host was put.")
    health = Family("poolctl_host_health", "gauge", "1 for how the backend is: see `poolctl backends`.")
    breaker = Family("poolctl_host_breaker", "gauge", "1 for the state of the host's breaker.")
    states: Sequence[tuple[str, str, Iterable[str], Family]] = (
        ("state", "state", RequestedBackendState, state),
        ("health", "status", STATUSES, health),
        ("breaker", "state", BreakerState, breaker),
    )
    text = "Requests forwarded to the host without a complete response, by the reason."
    errors = Family("poolctl_host_request_errors", "counter", text)
    for row in hosts:
        for key, label, values, family in states:
            for value in values:
                family.add(int(row[key] == value), host=row["host"], **{label: value})
        _add_errors(errors, counts.backends[row["host"]], host=row["host"])
    named = [(row, {"host": row["host"]}) for row in hosts]
    return state, health, breaker, *families_of(_HOST, named), errors


def _add_errors(errors: Family, traffic: Traffic, **labels: str) -> None:
    for reason, count in traffic.errors.items():
        errors.add(count, **labels, reason=reason)
