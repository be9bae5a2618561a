"""The verbs of a pool with a gateway: lists of its routes and hosts, and actions on hosts."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import closing
from dataclasses import replace

from poolctl.control.answers import ProgressLine, Result, failure
from poolctl.control.gateway_answers import (
    CandidatesResult,
    HostsResult,
    RegistryResult,
    RoutesResult,
    excluded_from,
    routes_to_servers,
)
from poolctl.control.server_answers import ShowResult
from poolctl.core.core import Core
from poolctl.errors import PoolMonitorError, PoolParamError
from poolctl.exit_codes import NOT_AS_DESIRED, NOTHING_MATCHED
from poolctl.json_form import Table, from_json
from poolctl.routing.host_report import HostReport
from poolctl.routing.match import host_pattern, normal_host
from poolctl.routing.route import ExcludedRoute, Route
from poolctl.routing.route_health import RouteHealth
from poolctl.runners.listener_opener import in_daemon_thread
from poolctl.runners.process_link import LinkLost
from poolctl.selection.selector import SelectorError
from poolctl.supervisor.statistics import Totals
from poolctl.supervisor.verbs.verb import Call

from ..table import GatewayConfig
from .gateway_manager import GatewayManager
from .route_figures import RouteFigures

# Above this number only routes that match the host are explained.
_MOST_EXPLAINED = 1000
# Number of routes examined before others have their turn.
_AT_ONCE = 100
# A worker may be busy with a request for longer.
_CONFIRMED_SECONDS = 1.0
_OPERATIONS = ("disable", "enable", "drain")


class GatewayVerbs:
    """Answers with the reports of the gateway's process and the counts of the workers."""

    def __init__(self, gateway: GatewayManager, core: Core, totals: Totals, over: asyncio.Event) -> None:
        self._gateway = gateway
        self._core = core
        self._totals = totals
        self._over = over

    async def routes(self, call: Call) -> Result:
        """Every route with its figures; with the operation "explain" the routes that a request may take."""
        await self._gateway.routes.settled()
        if call.options.get("op") == "explain":
            return await self._candidates(call.options)
        routes = self._gateway.routes.routes
        report = await self._report() or {}
        figures = RouteFigures(self._gateway, self._core, self._totals, report)
        machines, reports = self._gateway.machines, []
        with closing(figures):
            for number, each in enumerate(routes.served):
                report_of_route = figures.of(each)
                if machines is not None:
                    report_of_route = replace(report_of_route, machines=machines.machines(each))
                reports.append(report_of_route)
                if number % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
            reports += map(figures.of_excluded, routes.excluded)
        refused = report.get("counts", {}).get("refused")
        return RoutesResult(items=tuple(reports), generation=self._gateway.routes.generation, refused=refused)

    async def registry(self, call: Call) -> RegistryResult:
        """The route table without secrets, as a descriptor; with `follow` a line for each generation instead."""
        routes = self._gateway.routes
        if call.options.get("follow") is True:
            await self._follow(call)
        elif (table := await routes.masked_table()) is not None:
            call.attach(table.fileno())
        return RegistryResult(generation=routes.generation)

    async def _follow(self, call: Call) -> None:
        def report(generation: int) -> None:
            with contextlib.suppress(ConnectionError):  # its request will be cancelled
                call.progress(ProgressLine(generation=generation))

        await self._gateway.routes.settled()
        with self._gateway.routes.followed(report):
            report(self._gateway.routes.generation)
            await self._over.wait()

    async def healths(self) -> dict[str, RouteHealth]:
        """The health of each served route; a stream with the alias of an HTTP route is named with its protocol."""
        await self._gateway.routes.settled()
        report = await self._report() or {}
        figures = RouteFigures(self._gateway, self._core, self._totals, report)
        found: dict[str, RouteHealth] = {}
        with closing(figures):
            for number, each in enumerate(self._gateway.routes.routes.served):
                name = each.alias if each.alias not in found else f"{each.alias} (stream)"
                found[name] = figures.health(each)
                if number % _AT_ONCE == _AT_ONCE - 1:
                    await asyncio.sleep(0)
        return found

    async def warn(self, result: Result) -> Result:
        """The result of `status`, with a warning of the routes that do not serve."""
        found = {name: health for name, health in (await self.healths()).items() if not health.serves}
        if not found:
            return result
        name, health = next(iter(found.items()))
        why = f" ({health.detail})" if health.detail else ""
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        warning = f"the route {name} is {health.status}{why}{more}: poolctl health --routes"
        return replace(result, warnings=(*result.warnings, warning))

    async def _candidates(self, options: Table) -> CandidatesResult:
        routes, generation = self._gateway.routes.routes.http, self._gateway.routes.generation
        not_served = self._gateway.routes.routes.excluded
        gateway, headers = self._gateway.tables.get(GatewayConfig), options.get("headers")
        name = "Host" if gateway is None else gateway.header_for_host
        named = headers.get(name.lower()) if isinstance(headers, dict) else None
        host = normal_host(str(named or options.get("host") or ""))

        def covering() -> tuple[tuple[Route, ...], tuple[ExcludedRoute, ...]]:
            found = routes
            if len(routes) > _MOST_EXPLAINED:
                found = tuple(each for each in routes if host_pattern(each.host).covers(host))
            return found, excluded_from(host, not_served)

        found, excluded = await in_daemon_thread(covering)
        return CandidatesResult(
            header_for_host=name, generation=generation, total=len(routes), routes=found, excluded=excluded
        )

    async def show(self, result: Result) -> Result:
        """The result of `show`: the selected servers, with the routes that lead to them."""
        if not isinstance(result, ShowResult):
            return result
        await self._gateway.routes.settled()
        routes = self._gateway.routes.routes
        found = await in_daemon_thread(lambda: routes_to_servers(routes.served))
        return replace(
            result, items=tuple(replace(each, routes=found.get(each.name, ())) for each in result.items)
        )

    async def reopen(self, result: Result) -> Result:
        """The result of `reopen`, which reopens the gateway's access log too."""
        if (process := self._gateway.gateway) is None:
            return result
        try:
            await process.reopen_log()
        except (LinkLost, TimeoutError):
            late = "[gateway]: its process does not answer: its access log may not be reopened yet"
            return replace(result, warnings=(*result.warnings, late))
        return result

    async def hosts(self, call: Call) -> HostsResult:
        """Every host with its state."""
        report = await self._report()
        if report is None:
            return self._away()
        rows = {row["host"]: self._host_report(row) for row in report["hosts"]}
        for service in self._gateway.routes.services or ():
            url, status = service.url, service.health.status
            # The gateway keeps a removed backend for as long as it answers requests.
            if not service.is_serving and not (url in rows and rows[url].routes):
                row = rows.get(url) or HostReport(host=url)
                rows[url] = replace(
                    row, routes=(service.alias,), available=False, health=status, why=service.problem
                )
        return HostsResult(items=tuple(rows.values()))

    def _host_report(self, row: Table) -> HostReport:
        """The row of a server, with the connections of its workers, to which most of its clients were passed."""
        found = from_json(HostReport, row)
        known = found.host in self._core.entries
        return replace(found, connections=self._gateway.reports.connections(found.host)) if known else found

    async def host(self, call: Call) -> HostsResult:
        """Disable, enable or drain hosts; nothing is changed if one of them is unknown. Raises SelectorError."""
        order = host_order(call.options)
        if self._gateway.tables.get(GatewayConfig) is None:
            hint = "a [gateway] or a [[route]] in the file adds one"
            problem = failure(PoolParamError, "the pool has no gateway", hint)
            return HostsResult(errors=(problem,), exit_code=NOTHING_MATCHED)
        process = await self._gateway.serving()
        if process is None:
            return self._away()
        try:
            answer = await process.order_hosts(order)
        except (LinkLost, TimeoutError):
            return self._away()
        if problems := answer.get("problems"):
            errors = tuple(failure(PoolParamError, each["message"], each["hint"]) for each in problems)
            return HostsResult(errors=errors, exit_code=NOTHING_MATCHED)
        result = await self.hosts(call)
        result = replace(result, items=tuple(each for each in result.items if each.host in answer["hosts"]))
        routing = self._core.runner.capabilities.routing
        late = [] if routing is None else await routing.confirmed(_CONFIRMED_SECONDS)
        if slow := [each for each in late if each in answer["hosts"]]:
            warning = f"workers of {', '.join(slow)} have not confirmed yet that they give connections back"
            result = replace(result, warnings=(*result.warnings, warning))
        return result

    async def _report(self) -> Table | None:
        process = await self._gateway.serving()
        try:
            return None if process is None else await process.report()
        except (LinkLost, TimeoutError):
            return None

    def _away(self) -> HostsResult:
        if self._gateway.tables.get(GatewayConfig) is None:
            return HostsResult()
        message = f"the gateway does not answer: {self._gateway.why_away}"
        problem = failure(PoolMonitorError, message, "poolctl events")
        return HostsResult(errors=(problem,), exit_code=NOT_AS_DESIRED)


def host_order(options: Table) -> Table:
    """The action, the hosts it applies to, and its time in seconds. Raises SelectorError for anything else."""
    operation, hosts, seconds = options.get("op"), options.get("hosts"), options.get("for")
    if (
        operation not in _OPERATIONS
        or not isinstance(hosts, list)
        or not all(isinstance(each, str) for each in hosts)
    ):
        raise SelectorError(
            "no such order for backends", hint=f"op is one of {', '.join(_OPERATIONS)}; hosts is a list"
        )
    if seconds is not None and not (isinstance(seconds, (int, float)) and seconds >= 0):
        raise SelectorError(
            f"backends cannot be disabled for {seconds!r}", hint="seconds; 0 until they are enabled"
        )
    return {"op": operation, "hosts": hosts, "for": seconds}
