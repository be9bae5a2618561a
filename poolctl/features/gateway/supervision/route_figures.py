"""Routes with the counts of their requests: passed to workers, which count them, or proxied by the gateway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from poolctl.core.core import Core
from poolctl.json_form import Table, from_json
from poolctl.routing.host_report import HostState
from poolctl.routing.route import REGISTRATION, ExcludedRoute, Route, StreamRoute
from poolctl.routing.route_health import ERROR, HEALTHY, UNKNOWN, RouteHealth, route_health
from poolctl.routing.route_report import PASS, PROXY, RouteReport, route_key, route_report
from poolctl.routing.route_table import RouteTable
from poolctl.supervisor.observers.metrics_server import health_of
from poolctl.supervisor.statistics import Totals, errors, latency_seconds
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ..engines import other_engine
from ..process.counts import REFUSED
from ..table import GatewayConfig
from .gateway_manager import GatewayManager
from .target_sources import RoutedService

_NONE = [0] * tally.COUNTED


class RouteFigures:
    """The reports of routes, from one `report` of the gateway's process.

    Workers count passed requests and their errors by route, but latencies by server, over all requests of the server
    that were not proxied.
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
        # Of use only if there are routes that may take requests from others.
        crossing = any(each.methods or each.headers for each in routes)
        self._table = RouteTable(table.fileno()) if table is not None and crossing else None

    def close(self) -> None:
        """Unmap the route table."""
        if self._table is not None:
            self._table.close()

    def of(self, route: Route | StreamRoute) -> RouteReport:
        """The report of the route."""
        report = route_report(route, tls=isinstance(route, Route) and self._is_kept_within_tls(route))
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
            of_workers, routes = self._passed(server)
            if count := routes.get(mark, 0):
                passed += count
                failed += min(routes.get(tally.error_mark(route.alias), 0), count)
                total = [one + other for one, other in zip(total, of_workers, strict=True)]
        changes: Table = {"state": health.status, "waiting": self._queues.get(route.alias, 0)}
        if self._services is not None and self._services_of(route):
            changes["registrations"] = self._services.reports(route.alias)
        if report.way == PASS:
            if why := next(self._hindrances(route), ""):
                changes |= {"way": PROXY, "why": why}
            elif proxied:
                changes["why"] = self._why_some(route)
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
        """The health of the route: the health of its best backend, including services that get no requests now."""
        if self._healths is None:
            return RouteHealth(status=ERROR, detail=f"the gateway does not answer: {self._gateway.why_away}")
        if isinstance(route, Route) and route.redirect is not None:
            return RouteHealth(status=HEALTHY)
        verdicts = self._healths.get(route_key(route), {})
        services = self._services_of(route) if isinstance(route, Route) else []
        probed = {each.url: each.health for each in services if each.is_serving and each.is_probed}
        found = []
        for target in route.to:
            health = self._health(target.key, target.server, verdicts.get(target.key))
            is_active = self._hosts.get(target.key, {}).get("state", HostState.ACTIVE) == HostState.ACTIVE
            found.append(probed.get(target.key, health) if health.status == UNKNOWN and is_active else health)
        return route_health([*found, *(each.health for each in services if not each.is_serving)])

    def of_excluded(self, route: ExcludedRoute) -> RouteReport:
        """The report of a route that is not served; with the services, if it is because of these."""
        report = route_report(route)
        if self._services is None or route.provider != REGISTRATION:
            return report
        return replace(report, registrations=self._services.reports(route.alias) or None)

    def _is_kept_within_tls(self, route: Route) -> bool:
        """Whether its connections stay with the gateway if they are no TLS, which all of its servers speak."""
        entries = [self._core.entries.get(target.server) for target in route.to]
        return bool(route.other_user) and all(entry is not None and entry.config.tls for entry in entries)

    def _services_of(self, route: Route) -> Sequence[RoutedService]:
        """The services that are backends of the route."""
        if self._services is None or route.alias in self._refused:
            return ()
        return self._services.of(route.alias)

    def _hindrances(self, route: Route) -> Iterator[str]:
        """Why no connection of the route is passed now, although its rules allow that."""
        gateway = self._gateway.tables.get(GatewayConfig)
        if gateway is not None and (engine := other_engine(gateway.engine)):
            yield f"{engine.label} proxies every connection"
        if gateway is not None and gateway.header_for_host.lower() != "host":
            yield f"the host is taken from the header {gateway.header_for_host}"
        match = (
            self._table.find(route.host.replace("*", "x"), route.path) if self._table is not None else None
        )
        if match is not None and match.route.alias == route.alias and not match.passes:
            yield "another route of this host and path has conditions"
        servers = [target.server for target in route.to]
        reasons = [self._not_passed(server) for server in servers]
        if servers and all(reasons):
            yield f"{servers[0]} {reasons[0]}"

    def _why_some(self, route: Route) -> str:
        """Why requests were proxied on a route that passes connections."""
        entries = [self._core.entries.get(target.server) for target in route.to]
        if any(entry is not None and entry.config.tls for entry in entries):
            return "without TLS its requests are proxied, as its server speaks TLS"
        gateway = self._gateway.tables.get(GatewayConfig)
        if gateway is not None and any(each.tls for each in gateway.bind):
            return "over TLS its requests are proxied, as the gateway terminates that"
        return (
            "connections that were proxied before stay so, and a path that is not in normal form is proxied"
        )

    def _not_passed(self, server: str) -> str:
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

    def _passed(self, server: str) -> tuple[Counts, dict[int, int]]:
        """The counts of its workers without proxied requests; passed requests, and errors, by route."""
        if server not in self._of_servers:
            entry, found, routes = self._core.entries.get(server), list(_NONE), dict[int, int]()
            if entry is not None:
                found = self._totals.of_the_ended(entry)
                routes.update(self._totals.by_route_of_the_ended(entry))
                counters = self._core.runner.capabilities.counters
                for worker in entry.observed.workers.values():
                    if counters is None or worker.placement is None:
                        continue
                    counts = counters.counts(worker.placement) or _NONE
                    tally.add(found, counts)
                    for mark, count in tally.by_route(counts).items():
                        routes[mark] = routes.get(mark, 0) + count
            proxied = self._backends.get(server, {}).get("slots") or _NONE
            direct = [max(0, all_ - part) for all_, part in zip(found, proxied, strict=False)]
            self._of_servers[server] = direct, routes
        return self._of_servers[server]

    def _health(self, key: str, server: str, verdict: Table | None) -> RouteHealth:
        """The health of a target: the gateway's verdict, with the supervisor's facts about the server.

        There is no verdict on a route of a large table before its first request: only the state of its hosts is known.
        """
        entry, row = self._core.entries.get(server), self._hosts.get(key, {})
        if verdict is None and row.get("state", HostState.ACTIVE) != HostState.ACTIVE:
            verdict = {"status": UNKNOWN, "detail": row["why"]}
        found = RouteHealth() if verdict is None else from_json(RouteHealth, verdict)
        if entry is None:
            return replace(found, latency_seconds=self._gateway.probes.latency_seconds(key))
        own = health_of(self._core, entry)
        if verdict is None or own.status == found.status:
            return own
        return replace(own, status=found.status, detail=found.detail or own.detail)
