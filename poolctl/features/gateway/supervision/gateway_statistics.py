"""Statistics of the gateway and its routes, for the commands list, status, stats and routes."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from poolctl.control.gateway_answers import GatewayStats, GatewayStatus
from poolctl.core.core import Core
from poolctl.json_form import Table, from_json
from poolctl.platform import age_seconds
from poolctl.routing.route import REGISTRATION, ExcludedRoute, Route, StreamRoute
from poolctl.routing.route_health import ERROR, HEALTHY, UNKNOWN, RouteHealth, route_health
from poolctl.routing.route_report import (
    PASS,
    PROXY,
    RequestedBackendState,
    RouteReport,
    route_key,
    static_route_report,
)
from poolctl.routing.route_table import RouteTable
from poolctl.runners.process_link import LinkLost
from poolctl.runners.process_usage import ProcessUsages
from poolctl.supervisor.observers.pool_metrics import health_reported_for_route
from poolctl.supervisor.statistics import Totals, errors, latency_seconds
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ..engines import find_external_engine
from ..process.counts import REFUSED
from ..process.settings import HTTP, ListenerSettings
from ..table import GatewayConfig
from .gateway_manager import GatewayManager
from .gateway_reports import worker_counts
from .outside_targets import RoutedService

# How often samples are taken for rates, even if no command asks for them.
SAMPLE_SECONDS = 10.0
_LEAST_SECONDS, _WINDOW_SECONDS = 1.0, 4.0
_SERVERS_AT_ONCE = 50
_NONE = [0] * tally.COUNTED


class _Sample(NamedTuple):
    at: float
    slots: Counts  # counts of proxied requests, and of requests that were refused on a route
    refused: tuple[int, int]  # refused requests with a route, and without one
    passed: int
    streamed: int
    stream_errors: int
    connections: int

    @property
    def requests(self) -> int:
        return self.slots[tally.STARTED] + self.passed + self.streamed + self.refused[1]

    @property
    def errors(self) -> int:
        return errors(self.slots) + self.stream_errors


class GatewayStatistics:
    """Samples the counts of the gateway's process at an interval and on request."""

    def __init__(self, manager: GatewayManager, core: Core, totals: Totals) -> None:
        self._manager = manager
        self._core = core
        self._totals = totals
        self._usages = ProcessUsages(core.clock)
        self._program_pid: int | None = None  # set if the gateway's process runs another program that serves
        self._replaced_processes = 0  # of that program
        self._samples: deque[_Sample] = deque(maxlen=3)
        self._sampling: asyncio.Task[None] | None = None

    def update_sampling(self) -> None:
        """Start or stop taking samples, if the gateway was added or removed."""
        if self._manager.tables.get(GatewayConfig) is None:
            self.close()
        elif self._sampling is None:
            self._sampling = asyncio.ensure_future(self._sample_often())

    def close(self) -> None:
        """Stop taking samples."""
        if self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None
        self._samples.clear()

    @property
    def serving_pid(self) -> int | None:
        """The pid of the program that serves clients: the gateway's process or another engine. None if none runs."""
        process = self._manager.gateway
        return None if process is None else self._program_pid or int(process.known["pid"])

    def status(self) -> GatewayStatus:
        """The state of the gateway (running, starting or failed), without its request statistics."""
        manager, routes = self._manager, self._manager.routes.routes
        process = manager.gateway
        state = "running" if process is not None else "failed" if manager.problem else "starting"
        return GatewayStatus(
            state=state,
            problem=manager.problem or manager.instability,
            pid=None if process is None else int(process.known["pid"]),
            addresses=tuple(map(_url, manager.listeners)),
            routes=len(routes.http) + len(routes.streams),
            uptime_seconds=0.0 if process is None else round(age_seconds(int(process.known["pid"])), 3),
            restarts=manager.restarts,
        )

    async def stats(self) -> GatewayStats | None:
        """The gateway's request statistics and resource usage; None while its process does not answer."""
        now = await self._sample()
        if now is None:
            return None
        older = [each for each in self._samples if now.at - each.at >= _LEAST_SECONDS]
        recent = [each for each in older if now.at - each.at >= _WINDOW_SECONDS]
        before = recent[-1] if recent else older[0] if older else None
        if not self._samples or now.at - self._samples[-1].at >= SAMPLE_SECONDS / 2:
            self._samples.append(now)
        pid = self.serving_pid
        await self._usages.measure([pid])
        usage = self._usages.of(pid)
        seconds = now.at - before.at if before is not None else 0.0
        slots = before.slots if before is not None else _NONE
        return GatewayStats(
            requests_total=now.requests,
            passed_total=now.passed,
            proxied_total=now.requests - now.passed - sum(now.refused),
            refused_total=sum(now.refused),
            errors_total=now.errors,
            requests_per_second=round((now.requests - before.requests) / seconds, 3) if before else None,
            errors_per_second=round((now.errors - before.errors) / seconds, 3) if before else None,
            latency_p50_seconds=latency_seconds(now.slots, slots, 0.5),
            latency_p99_seconds=latency_seconds(now.slots, slots, 0.99),
            connections=now.connections,
            memory_bytes=usage.memory_bytes,
            cpu_percent=None if usage.cpu_percent is None else round(usage.cpu_percent, 2),
            replaced_processes=self._replaced_processes,
        )

    async def _sample_often(self) -> None:
        while True:
            sample = await self._sample()
            if sample is None:
                self._samples.clear()
            else:
                self._samples.append(sample)
                await self._usages.measure([self.serving_pid], memory=False)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _sample(self) -> _Sample | None:
        process = self._manager.gateway
        if process is None:
            return None
        try:
            found = await process.fetch_request_totals()
        except (LinkLost, TimeoutError):
            return None
        self._program_pid, self._replaced_processes = found.get("program_pid"), found.get("replaced", 0)
        sample = _Sample(
            self._core.clock.monotonic(),
            found["slots"],
            tuple(found["refused"]),
            sum((await self.passed_requests_by_route_mark()).values()),
            found["streamed"],
            found["stream_errors"],
            found["connections"],
        )
        if self._samples and sample.requests < self._samples[-1].requests:
            self._samples.clear()  # a new process starts counting from 0
        return sample

    async def passed_requests_by_route_mark(self) -> dict[int, int]:
        """Return, by `tally.route_mark` of the alias, how many requests of a route came on passed connections."""
        total = Counter[int]()
        for number, server in enumerate(self._manager.routes.routes.servers):
            if number % _SERVERS_AT_ONCE == _SERVERS_AT_ONCE - 1:
                await asyncio.sleep(0)
            if (entry := self._core.entries.get(server)) is not None:
                total.update(self._totals.counts_by_route_of_ended_workers(entry))
                for counts in worker_counts(self._core, entry):
                    total.update(tally.by_route_mark(counts))
        return {mark: count for mark, count in total.items() if tally.is_of_requests(mark)}


def _url(listener: ListenerSettings) -> str:
    if listener.bind.startswith("unix:"):
        return listener.bind
    scheme = listener.protocol if listener.protocol != HTTP else "https" if listener.tls else "http"
    return f"{scheme}://{listener.bind}"


class RouteReporter:
    """The figures of routes, from one `report` of the gateway's process and from the counts of workers.

    Workers do not measure latencies by route. So the latencies of a route include every request that the route's
    servers got without the gateway's proxy, even a request of another route.
    """

    def __init__(self, gateway: GatewayManager, core: Core, totals: Totals, report: Table) -> None:
        self._services = gateway.routes.services
        excluded = gateway.routes.routes.excluded
        self._refused = {each.alias for each in excluded if each.provider == REGISTRATION}
        self._gateway = gateway
        self._core = core
        self._totals = totals
        counts = report.get("counts", {})
        self._routes: Table = counts.get("routes", {})
        self._backends: Table = counts.get("backends", {})
        self._streams: Table = report.get("streams", {})
        self._queues: dict[str, int] = report.get("queues", {})
        self._hosts = {row["host"]: row for row in report.get("hosts", ())}
        self._healths: Table | None = report.get("healths")
        self._of_servers: dict[str, tuple[Counts, dict[int, int]]] = {}
        routes, table = gateway.routes.routes.http, gateway.routes.table
        # Needed only if a route has conditions, and may take requests from another route.
        crossing = any(each.methods or each.headers for each in routes)
        self._table = RouteTable(table.fileno()) if table is not None and crossing else None

    def report_of(self, route: Route | StreamRoute) -> RouteReport:
        """Return the report of a route: its state and request figures. For excluded routes see `report_of_excluded`."""
        report = static_route_report(
            route, tls=isinstance(route, Route) and self._is_passed_only_with_tls(route)
        )
        health = self.health(route)
        if isinstance(route, StreamRoute):
            stream = self._streams.get(route.alias, {})
            begun = stream.get("accepted", stream.get("opened", 0))
            return replace(
                report,
                state=health.status,
                requests=begun,
                passed=stream.get("passed", 0),
                proxied=begun - stream.get("passed", 0) - stream.get("refused", 0),
                refused=stream.get("refused", 0),
                errors=stream.get("failed", 0),
            )
        counted = self._routes.get(route.alias, {})
        total, mark = counted.get("slots") or _NONE, tally.route_mark(route.alias)
        refused = counted.get("errors", {}).get(REFUSED, 0)
        proxied, passed, failed = total[tally.STARTED] - refused, 0, errors(total)
        for server in dict.fromkeys(target.server for target in route.to if target.server):
            of_workers, routes = self._unproxied_request_counts(server)
            if count := routes.get(mark, 0):
                passed += count
                failed += min(routes.get(tally.error_mark(route.alias), 0), count)
                total = [one + other for one, other in zip(total, of_workers, strict=True)]
        changes: Table = {"state": health.status, "waiting": self._queues.get(route.alias, 0)}
        if self._services is not None and self._services_of(route):
            changes["registrations"] = self._services.reports(route.alias)
        if report.way == PASS:
            if why := next(self._pass_obstacles(route), ""):
                changes |= {"way": PROXY, "why": why}
            elif proxied:
                changes["why"] = self._why_some_proxied(route)
        if requests := passed + proxied + refused:
            changes |= {
                "requests": requests,
                "passed": passed,
                "proxied": proxied,
                "refused": refused,
                "errors": failed,
                "p50_seconds": latency_seconds(total, _NONE, 0.5),
                "p99_seconds": latency_seconds(total, _NONE, 0.99),
            }
        return replace(report, **changes)

    def health(self, route: Route | StreamRoute) -> RouteHealth:
        """The health of the route's best backend; ERROR if the gateway does not answer.

        Registered services count, too, even if they get no requests now.
        """
        if self._healths is None:
            return RouteHealth(
                status=ERROR, detail=f"the gateway does not answer: {self._gateway.why_unavailable}"
            )
        if isinstance(route, Route) and route.redirect is not None:
            return RouteHealth(status=HEALTHY)
        verdicts = self._healths.get(route_key(route), {})
        services = self._services_of(route) if isinstance(route, Route) else []
        probed = {each.url: each.health for each in services if each.is_serving and each.is_probed}
        found = []
        for target in route.to:
            health = self._health(target.key, target.server, verdicts.get(target.key))
            is_active = (
                self._hosts.get(target.key, {}).get("state", RequestedBackendState.ACTIVE)
                == RequestedBackendState.ACTIVE
            )
            found.append(probed.get(target.key, health) if health.status == UNKNOWN and is_active else health)
        return route_health([*found, *(each.health for each in services if not each.is_serving)])

    def report_of_excluded(self, route: ExcludedRoute) -> RouteReport:
        """The report of an excluded route, with the registered services that defined it, if any."""
        report = static_route_report(route)
        if self._services is None or route.provider != REGISTRATION:
            return report
        return replace(report, registrations=self._services.reports(route.alias) or None)

    def _is_passed_only_with_tls(self, route: Route) -> bool:
        """Return whether all of the route's servers speak TLS, and `other_user` forbids passing other connections."""
        entries = [self._core.entries.get(target.server) for target in route.to]
        return bool(route.other_user) and all(entry is not None and entry.config.tls for entry in entries)

    def _services_of(self, route: Route) -> Sequence[RoutedService]:
        if self._services is None or route.alias in self._refused:
            return ()
        return self._services.of(route.alias)

    def _pass_obstacles(self, route: Route) -> Iterator[str]:
        """The reasons why no connection of the route is passed at present, although its configuration allows it."""
        gateway = self._gateway.tables.get(GatewayConfig)
        if gateway is not None and (engine := find_external_engine(gateway.engine)):
            yield f"{engine.label} proxies every connection"
        if gateway is not None and gateway.header_for_host.lower() != "host":
            yield f"the host is taken from the header {gateway.header_for_host}"
        match = (
            self._table.find(route.host.replace("*", "x"), route.path) if self._table is not None else None
        )
        if match is not None and match.route.alias == route.alias and not match.passes:
            yield "another route of this host and path has conditions"
        servers = [target.server for target in route.to]
        reasons = [self._server_pass_obstacle(server) for server in servers]
        if servers and all(reasons):
            yield f"{servers[0]} {reasons[0]}"

    def _why_some_proxied(self, route: Route) -> str:
        """Return why some of the route's requests were proxied, although its connections are passed to workers."""
        entries = [self._core.entries.get(target.server) for target in route.to]
        if any(entry is not None and entry.config.tls for entry in entries):
            return "without TLS its requests are proxied, as its server speaks TLS"
        gateway = self._gateway.tables.get(GatewayConfig)
        if gateway is not None and any(each.tls for each in gateway.bind):
            return "over TLS its requests are proxied, as the gateway terminates that"
        return (
            "connections that were proxied before stay so, and a path that is not in normal form is proxied"
        )

    def _server_pass_obstacle(self, server: str) -> str:
        """Why connections are not passed to the server now; "" if they are, or if it does not run."""
        entry, gateway = self._core.entries.get(server), self._gateway.tables.get(GatewayConfig)
        if entry is None or gateway is None:
            return ""
        if entry.config.command:
            return "is a program"
        if entry.config.tls and not any(each.tls for each in gateway.bind):
            return "speaks TLS, and no address of the gateway does"
        if entry.ready and not self._gateway.passes_to(server):
            return "has workers that cannot take passed connections"
        return ""

    def _unproxied_request_counts(self, server: str) -> tuple[Counts, dict[int, int]]:
        """Return the counts of requests that the gateway did not proxy to the server: in total, and by route.

        The totals are indexed by slots such as tally.STARTED. The counts by route have the keys of
        `tally.by_route_mark`.
        """
        if server not in self._of_servers:
            entry, found, routes = self._core.entries.get(server), list(_NONE), Counter[int]()
            if entry is not None:
                found = self._totals.counts_of_ended_workers(entry)
                routes.update(self._totals.counts_by_route_of_ended_workers(entry))
                for counts in worker_counts(self._core, entry):
                    tally.add(found, counts)
                    routes.update(tally.by_route_mark(counts))
            proxied = self._backends.get(server, {}).get("slots") or _NONE
            direct = [max(0, all_ - part) for all_, part in zip(found, proxied, strict=False)]
            self._of_servers[server] = direct, routes
        return self._of_servers[server]

    def _health(self, key: str, server: str, verdict: Table | None) -> RouteHealth:
        """Return the health of a target, with the status from the gateway's `verdict` on the target.

        If `verdict` is None, the gateway has not judged the target yet. The status is then UNKNOWN for a URL, and for a
        disabled or draining server. For any other server it is the supervisor's status of the server.
        """
        entry, row = self._core.entries.get(server), self._hosts.get(key, {})
        if verdict is None and row.get("state", RequestedBackendState.ACTIVE) != RequestedBackendState.ACTIVE:
            verdict = {"status": UNKNOWN, "detail": row["why"]}
        found = RouteHealth() if verdict is None else from_json(RouteHealth, verdict)
        if entry is None:
            return replace(found, latency_seconds=self._gateway.probes.latency_seconds(key))
        own = health_reported_for_route(self._core, entry)
        if verdict is None or own.status == found.status:
            return own
        return replace(own, status=found.status, detail=found.detail or own.detail)
