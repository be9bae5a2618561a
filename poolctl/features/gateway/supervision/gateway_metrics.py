"""The metrics of a gateway and its routes, streams and hosts.

Requests and bytes count proxied traffic only. Workers count the requests on passed connections: a route's metrics
include the number of these requests, but no bytes, statuses or durations of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from poolctl.core.core import Core
from poolctl.json_form import Table
from poolctl.monitor.metrics import BOUNDS_SECONDS, Family, Row, families_of
from poolctl.routing.route import proxy_reason
from poolctl.routing.route_health import STATUSES, RouteHealth
from poolctl.routing.route_report import EXCLUDED, PASS, PROXY, STREAM, BreakerState, RequestedBackendState
from poolctl.worker import tally

from ..process.counts import ERRORS
from .computed_routes import RouteSet
from .gateway_manager import GatewayManager, GatewayPart

# Maximum number each of routes, streams and hosts, so that a scrape and the scraper's storage stay small.
MOST_LABELLED = 1000
DISCONNECTED = "disconnected"


class GatewaySnapshot(NamedTuple):
    """The figures of the gateway at one time; `report` is None if its process does not answer."""

    report: Table | None
    restarts: int
    generation: int
    routes: RouteSet
    connections: Mapping[str, int]  # by server: the connections of its workers
    passed: Mapping[int, int]  # requests by route mark (tally.route_mark)
    healths: Mapping[str, RouteHealth]  # of routes and streams


async def gateway_metrics(
    manager: GatewayManager,
    core: Core,
    passed: Mapping[int, int],
    healths: Mapping[str, RouteHealth],
    parts: Iterable[GatewayPart],
) -> list[Family]:
    """Return the gateway's current metrics. Wait for a report of the gateway's process only if the process runs."""
    report = await manager.try_fetch_report()
    hosts = [row["host"] for row in islice((report or {}).get("hosts", ()), MOST_LABELLED)]
    snapshot = GatewaySnapshot(
        report,
        manager.restarts,
        manager.routes.generation,
        manager.routes.routes,
        {host: manager.reports.count_worker_connections(host) for host in hosts if host in core.entries},
        passed,
        healths,
    )
    found = await asyncio.to_thread(families, snapshot)
    of_processes: Table = (report or {}).get("parts", {})
    return [*found, *(family for part in parts for family in part.gateway_metrics(of_processes))]


def families(snapshot: GatewaySnapshot) -> list[Family]:
    """The metrics of the snapshot, with at most MOST_LABELLED routes, streams and hosts."""
    report = snapshot.report or {}
    counts = report.get("counts", {})
    routes = _first(counts.get("routes", {}).items())
    streams = _first(report.get("streams", {}).items())
    backends = counts.get("backends", {})
    hosts = [(row, backends.get(row["host"], {})) for row in _first(report.get("hosts", ()))]
    omitted = Family("poolctl_gateway_omitted", "gauge", "Routes, streams and hosts without metrics.")
    for what, all_, shown in (
        ("routes", counts.get("routes", ()), routes),
        ("streams", report.get("streams", ()), streams),
        ("hosts", report.get("hosts", ()), hosts),
    ):
        omitted.add(len(all_) - len(shown), kind=what)
    return [
        *_gateway(snapshot),
        omitted,
        *_routes(routes, report),
        _passed_requests_family(snapshot),
        _route_health(snapshot),
        *families_of(_STREAM, [(each, {"stream": alias}) for alias, each in streams]),
        *_hosts(hosts, snapshot.connections),
    ]


def _first(found: Iterable[tuple[str, Table]] | Iterable[Table]) -> list:  # type: ignore[type-arg]
    return list(islice(found, MOST_LABELLED))


def _gateway(snapshot: GatewaySnapshot) -> Iterable[Family]:
    text = "Requests without a route that the gateway has refused, by the status; tls: failed handshakes."
    refused = Family("poolctl_gateway_refused", "counter", text)
    if snapshot.report is not None:
        for code, count in {"404": 0, **snapshot.report["counts"].get("refused", {})}.items():
            refused.add(count, code=code)
    routes = Family("poolctl_gateway_routes", "gauge", "Routes by the way that connections take.")
    ways = Counter(PROXY if proxy_reason(each) else PASS for each in snapshot.routes.http)
    ways[STREAM] = len(snapshot.routes.streams)
    ways[EXCLUDED] = len(snapshot.routes.excluded)
    for way in (PASS, PROXY, STREAM, EXCLUDED):
        routes.add(ways[way], way=way)
    return *families_of(_GATEWAY, [(snapshot, {})]), routes, refused


_GATEWAY: Sequence[Row[GatewaySnapshot]] = (
    ("poolctl_gateway_up", "gauge", "Whether the gateway's process answers.",
     lambda each: int(each.report is not None)),
    ("poolctl_gateway_restarts", "counter", "How often the gateway's process has ended by itself.",
     lambda each: each.restarts),
    ("poolctl_gateway_table_generation", "gauge", "The route table that is in force; it rises with each change.",
     lambda each: each.generation),
    ("poolctl_gateway_connections", "gauge", "Connections of clients whose requests are proxied.",
     lambda each: each.report.get("connections") if each.report else None),
    ("poolctl_gateway_connections_waiting", "gauge", "Connections that wait for a whole request head.",
     lambda each: each.report.get("waiting") if each.report else None),
    ("poolctl_gateway_connections_queued", "gauge", "Connections that wait until a worker takes them.",
     lambda each: sum(each.report.get("queued", {}).values()) if each.report else None),
    ("poolctl_gateway_evicted_connections", "counter", "Idle connections that were closed for new ones.",
     lambda each: each.report.get("evicted") if each.report else None),
)  # fmt: skip
_STREAM: Sequence[Row[Table]] = (
    ("poolctl_stream_connections", "counter", "Connections, or sessions of UDP, that a stream has accepted.",
     lambda each: each.get("accepted", each.get("opened"))),
    ("poolctl_stream_open_connections", "gauge", "Those that are open.", lambda each: each["open"]),
    ("poolctl_stream_errors", "counter", "Those that failed for want of a backend, or with it.",
     lambda each: each["failed"] + each.get("refused", 0)),
    ("poolctl_stream_received_bytes", "counter", "Bytes from clients.", lambda each: each["bytes_in"]),
    ("poolctl_stream_sent_bytes", "counter", "Bytes to clients.", lambda each: each["bytes_out"]),
)  # fmt: skip
_ROUTE: Sequence[Row[Table]] = (
    ("poolctl_route_requests", "counter", "Requests of the route that the gateway has proxied, or refused.",
     lambda each: each["slots"][tally.STARTED]),
    ("poolctl_route_received_bytes", "counter", "Bytes of requests' bodies, and from clients after an upgrade.",
     lambda each: each["bytes_in"]),
    ("poolctl_route_sent_bytes", "counter", "Bytes of responses' bodies, and to clients after an upgrade.",
     lambda each: each["bytes_out"]),
)  # fmt: skip
_HOST: Sequence[Row[Table]] = (
    ("poolctl_host_available", "gauge", "Whether the host gets requests.", lambda each: int(each["available"])),
    ("poolctl_host_connections", "gauge", "Connections that a server's workers have, or the gateway to another host.",
     lambda each: each["connections"]),
    ("poolctl_host_requests_in_flight", "gauge", "Requests that are proxied to the host now.",
     lambda each: each["in_flight"]),
    ("poolctl_host_requests_waiting", "gauge", "Requests in the queues of the host's routes.",
     lambda each: each["waiting"]),
    ("poolctl_host_requests", "counter", "Requests that were proxied to the host.", lambda each: each["requests"]),
)  # fmt: skip


def _routes(routes: Sequence[tuple[str, Table]], report: Table) -> Iterable[Family]:
    text = "Responses that the gateway has proxied, by the class of their status."
    responses = Family("poolctl_route_responses", "counter", text)
    text = "Proxied requests without a complete response, by the reason."
    errors = Family("poolctl_route_request_errors", "counter", text)
    text = "From the head of a proxied request to the end of its response."
    duration = Family("poolctl_route_request_duration_seconds", "histogram", text)
    text = "Requests in the queue of the route's limit now."
    waiting = Family("poolctl_route_requests_waiting", "gauge", text)
    for alias, each in routes:
        slots = each["slots"]
        for digit in range(1, 6):
            responses.add(slots[tally.STATUS + digit], route=alias, code=f"{digit}xx")
        _add_errors(errors, each, route=alias)
        buckets = slots[tally.BUCKETS : tally.COUNTED]
        duration.add_histogram(BOUNDS_SECONDS, buckets, slots[tally.LATENCY_NS] / 1e9, route=alias)
        waiting.add(report.get("queues", {}).get(alias, 0), route=alias)
    named = [(each, {"route": alias}) for alias, each in routes]
    return *families_of(_ROUTE, named), responses, errors, duration, waiting


def _passed_requests_family(snapshot: GatewaySnapshot) -> Family:
    text = "Requests of the route that workers have served on connections that the gateway passed."
    family = Family("poolctl_route_passed_requests", "counter", text)
    for route in islice(snapshot.routes.http, MOST_LABELLED):
        family.add(snapshot.passed.get(tally.route_mark(route.alias), 0), route=route.alias)
    return family


def _route_health(snapshot: GatewaySnapshot) -> Family:
    family = Family("poolctl_route_health", "gauge", "1 for how the route is: see `poolctl health`.")
    for name, health in islice(snapshot.healths.items(), MOST_LABELLED):
        for status in STATUSES:
            family.add(int(health.status == status), route=name, status=status)
    return family


def _hosts(hosts: Sequence[tuple[Table, Table]], connections: Mapping[str, int]) -> Iterable[Family]:
    state = Family("poolctl_host_state", "gauge", "1 for the state in which the host was put.")
    health = Family("poolctl_host_health", "gauge", "1 for how the backend is: see `poolctl backends`.")
    text = "1 for the state of the host's breaker, which has none before the first request."
    breaker = Family("poolctl_host_breaker", "gauge", text)
    text = "Requests proxied to the host without a complete response, by the reason."
    errors = Family("poolctl_host_request_errors", "counter", text)
    named = []
    for row, counts in hosts:
        host = row["host"]
        for value in RequestedBackendState:
            state.add(int(row["state"] == value), host=host, state=value)
        for status in STATUSES:
            health.add(int(row["health"] == status), host=host, status=status)
        for known in BreakerState if row["breaker"] else ():
            breaker.add(int(row["breaker"] == known), host=host, state=known)
        if counts:
            _add_errors(errors, counts, host=host)
        named.append(({**row, "connections": connections.get(host, row["connections"])}, {"host": host}))
    return state, health, breaker, *families_of(_HOST, named), errors


def _add_errors(errors: Family, counts: Table, **labels: str) -> None:
    for reason in ERRORS:
        errors.add(counts["errors"].get(reason, 0), **labels, reason=reason)
    errors.add(counts["slots"][tally.DISCONNECTED], **labels, reason=DISCONNECTED)
