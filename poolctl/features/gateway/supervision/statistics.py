"""Statistics of the gateway and its routes, for the commands list, status, stats and routes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from poolctl.address import parse
from poolctl.control.gateway_answers import GatewayStats, GatewayStatus
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.json_form import Table
from poolctl.platform import age_seconds
from poolctl.routing.route import REGISTRATION, ExcludedRoute, Route, StreamRoute
from poolctl.routing.route_health import ERROR, HEALTHY, UNHEALTHY, RouteHealth, route_health
from poolctl.routing.route_report import RouteReport, route_key, static_route_report
from poolctl.runners.process_usage import ProcessUsages
from poolctl.supervisor.observers.pool_metrics import health_reported_for_route
from poolctl.supervisor.statistics import Totals, latency_seconds
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ..settings import HTTP, ListenerSettings
from ..target import Target
from .counts import CONNECT, REFUSED
from .gateway import GatewayManager
from .outside_targets import RoutedService

_NO_COUNTS = [0] * tally.COUNTED


def gateway_status(manager: GatewayManager) -> GatewayStatus:
    """The state of the gateway (running, starting or failed), without its request statistics."""
    routes, pid = manager.routes.routes, manager.pid
    return GatewayStatus(
        state="running" if pid is not None else "failed" if manager.problem else "starting",
        problem=manager.problem or manager.instability,
        pid=pid,
        addresses=tuple(map(_url, manager.listeners)),
        routes=len(routes.http) + len(routes.streams),
        uptime_seconds=0.0 if pid is None else round(age_seconds(pid), 3),
        restarts=manager.restarts,
    )


async def gateway_stats(manager: GatewayManager, usages: ProcessUsages) -> GatewayStats | None:
    """The gateway's request statistics and resource usage; None while HAProxy does not answer."""
    figures, counts = manager.figures, manager.counts
    if not await figures.read():
        return None
    await usages.measure([manager.pid])
    usage, rates = usages.of(manager.pid), figures.rates()
    total, refused = counts.total, sum(counts.refused.values())
    return GatewayStats(
        requests_total=total.requests + refused,
        refused_total=refused,
        errors_total=total.failures,
        requests_per_second=None if rates is None else round(rates.requests, 3),
        errors_per_second=None if rates is None else round(rates.errors, 3),
        connections=figures.connections,
        memory_bytes=usage.memory_bytes,
        cpu_percent=None if usage.cpu_percent is None else round(usage.cpu_percent, 2),
        replaced_processes=len(manager.processes.replaced_pids),
    )


def worker_counts(core: Core, entry: Entry) -> Iterator[Counts]:
    """Yield each worker's counts of requests and connections; skip workers without counts, such as commands."""
    for worker in entry.observed.workers.values():
        if worker.placement is not None and (counts := core.runner.counts(worker.placement)) is not None:
            yield counts


def _url(listener: ListenerSettings) -> str:
    if listener.bind.startswith("unix:"):
        return listener.bind
    scheme = listener.protocol if listener.protocol != HTTP else "https" if listener.tls else "http"
    return f"{scheme}://{parse(listener.bind).key}"


class RouteReporter:
    """The figures of routes, from HAProxy's statistics and the workers' counts.

    HAProxy has no latency histogram. So a route's latencies are those of its servers, including requests of other
    routes.
    """

    def __init__(self, gateway: GatewayManager, core: Core, totals: Totals, *, answered: bool) -> None:
        self._services = gateway.routes.services
        excluded = gateway.routes.routes.excluded
        self._refused = {route.alias for route in excluded if route.provider == REGISTRATION}
        self._gateway = gateway
        self._core = core
        self._totals = totals
        self._answered = answered
        self._queued = gateway.figures.queued
        self._targets = gateway.targets.now(gateway.targets.keys)
        self._counts_by_server: dict[str, Counts] = {}

    def report_of(self, route: Route | StreamRoute) -> RouteReport:
        """The report of a served route: its state and request figures."""
        report, health, counts = static_route_report(route), self.health(route), self._gateway.counts
        is_stream = isinstance(route, StreamRoute)
        traffic = (counts.streams if is_stream else counts.routes).get(route.alias)
        changes: Table = {
            "state": health.status,
            "why": health.detail if health.status in (UNHEALTHY, ERROR) else "",
            "waiting": self._queued[route_key(route)],
        }
        if not is_stream and self._services is not None and self._services_of(route):
            changes["registrations"] = self._services.reports(route.alias)
        if traffic is not None and traffic.requests:
            total = list(_NO_COUNTS)
            for server in dict.fromkeys(target.server for target in route.to if target.server):
                tally.add(total, self._server_counts(server))
            changes |= {
                "requests": traffic.requests,
                "refused": traffic.errors[REFUSED],
                "errors": traffic.errors[CONNECT] if is_stream else traffic.failures,
                "p50_seconds": latency_seconds(total, _NO_COUNTS, 0.5),
                "p99_seconds": latency_seconds(total, _NO_COUNTS, 0.99),
            }
        return replace(report, **changes)

    def health(self, route: Route | StreamRoute) -> RouteHealth:
        """The health of the route's best backend or registered service; ERROR if the gateway does not answer."""
        if not self._answered:
            return RouteHealth(
                status=ERROR, detail=f"the gateway does not answer: {self._gateway.why_unavailable}"
            )
        if isinstance(route, Route) and route.redirect is not None:
            return RouteHealth(status=HEALTHY)
        services = self._services_of(route) if isinstance(route, Route) else []
        probed = {
            service.url: service.health for service in services if service.is_serving and service.is_probed
        }
        healths = []
        for key, target in self._targets.of(route).items():
            health = probed.get(key) if target.is_unproven else None
            healths.append(health or self._health(key, target))
        return route_health([*healths, *(service.health for service in services if not service.is_serving)])

    def report_of_excluded(self, route: ExcludedRoute) -> RouteReport:
        """The report of an excluded route, with the registered services that define it, if any."""
        report = static_route_report(route)
        if self._services is None or route.provider != REGISTRATION:
            return report
        return replace(report, registrations=self._services.reports(route.alias) or None)

    def _services_of(self, route: Route | StreamRoute) -> Sequence[RoutedService]:
        if self._services is None or route.alias in self._refused:
            return ()
        return self._services.of(route.alias)

    def _server_counts(self, server: str) -> Counts:
        if server not in self._counts_by_server:
            total, entry = list(_NO_COUNTS), self._core.entries.get(server)
            if entry is not None:
                total = self._totals.counts_of_ended_workers(entry)
                for counts in worker_counts(self._core, entry):
                    tally.add(total, counts)
            self._counts_by_server[server] = total
        return self._counts_by_server[server]

    def _health(self, key: str, target: Target) -> RouteHealth:
        entry, health = self._core.entries.get(key), target.health
        if entry is None:
            return replace(health, latency_seconds=self._gateway.probes.latency_seconds(key))
        reported = health_reported_for_route(self._core, entry)
        if reported.status == health.status:
            return reported
        return replace(reported, status=health.status, detail=health.detail or reported.detail)
