"""The gateway's part of the supervisor, and the control commands of a pool with a gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import replace

from poolctl.config import Tables
from poolctl.control.answers import ErrorEntry, ProgressLine, Result, failure
from poolctl.control.gateway_answers import (
    HostsResult,
    MatchingRoutesResult,
    RoutesResult,
    RouteTableResult,
    excluded_routes_for_host,
    routes_to_servers,
)
from poolctl.control.server_answers import ShowResult
from poolctl.errors import PoolMonitorError, PoolParamError, PoolRestartError, PoolStartError
from poolctl.exit_codes import FAILED, INVALID_CONFIGURATION, NOT_AS_DESIRED, NOTHING_MATCHED
from poolctl.json_form import Table, to_json
from poolctl.monitor.metrics import Family
from poolctl.routing.match import host_pattern, normal_host
from poolctl.routing.route import ExcludedRoute, Route
from poolctl.routing.route_health import RouteHealth
from poolctl.routing.route_report import BackendReport
from poolctl.runners.listener_opener import in_daemon_thread
from poolctl.selection.selector import SelectorError
from poolctl.supervisor.feature_parts import OPENING_VERBS, FeaturePart, PartContext
from poolctl.supervisor.verbs.verb import Call, Verb, error_of_kind
from poolctl.worker import tally

from ..table import GatewayConfig, RouteConfig, StreamConfig
from .gateway import GatewayManager, GatewayPart
from .hosts import UnknownHost, find_host
from .metrics import gateway_metrics
from .statistics import RouteReporter, gateway_stats, gateway_status, worker_counts

# If the pool has more routes, only those that match the host are explained.
_MAX_EXPLAINED = 1000
# How many routes are examined before the event loop handles other events.
_AT_ONCE = 100
# How long to wait until HAProxy has applied a command.
_CONFIRMATION_SECONDS = 1.0
_OPERATIONS = ("disable", "enable", "drain")


class GatewayVerbs:
    """The control commands of the gateway, answered from HAProxy's statistics and the workers' counts."""

    def __init__(self, site: PartContext) -> None:
        self.gateway = GatewayManager(
            site.environment, site.core, site.runner.routing, site.runner.output, site.events, site.store
        )
        self._core = site.core
        self._totals = site.totals
        self._over = site.over

    async def routes(self, call: Call) -> Result:
        """All routes with their counts; for the operation "explain", only those that may match a given request."""
        await self.gateway.routes.wait_until_current()
        if call.options.get("op") == "explain":
            return await self._candidates(call.options)
        routes = self.gateway.routes.routes
        figures = await self._figures()
        machines, reports = self.gateway.machines, []
        for number, each in enumerate(routes.served):
            report_of_route = figures.report_of(each)
            if machines is not None:
                report_of_route = replace(report_of_route, machines=machines.machines(each))
            reports.append(report_of_route)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        reports += map(figures.report_of_excluded, routes.excluded)
        refused = {**self.gateway.counts.refused} if self.gateway.gateway is not None else None
        return RoutesResult(items=tuple(reports), generation=self.gateway.routes.generation, refused=refused)

    async def attach_or_follow_table(self, call: Call) -> RouteTableResult:
        """Attach a descriptor of the route table, without secrets, to the answer.

        With the option `follow`, send the generation number of each new table instead, until the supervisor ends.
        """
        routes = self.gateway.routes
        if call.options.get("follow") is True:
            await self._stream_generations(call)
        else:
            await routes.wait_until_current()
            if routes.table is not None:
                call.attach(routes.table.fileno())
        return RouteTableResult(generation=routes.generation)

    async def _stream_generations(self, call: Call) -> None:
        def report(generation: int) -> None:
            with contextlib.suppress(ConnectionError):  # the request will be cancelled
                call.progress(ProgressLine(generation=generation))

        await self.gateway.routes.wait_until_current()
        with self.gateway.routes.subscribed(report):
            report(self.gateway.routes.generation)
            await self._over.wait()

    async def healths(self) -> dict[str, RouteHealth]:
        """The health of each served route, by alias; a stream with the alias of an HTTP route has " (stream)" added."""
        await self.gateway.routes.wait_until_current()
        figures = await self._figures()
        found: dict[str, RouteHealth] = {}
        for number, each in enumerate(self.gateway.routes.routes.served):
            name = each.alias if each.alias not in found else f"{each.alias} (stream)"
            found[name] = figures.health(each)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        return found

    async def with_unhealthy_route_warning(self, result: Result) -> Result:
        """Add to the result of `status` a warning about routes that do not serve."""
        found = {name: health for name, health in (await self.healths()).items() if health.is_faulty}
        if not found:
            return result
        name, health = next(iter(found.items()))
        why = f" ({health.detail})" if health.detail else ""
        more = f", and {len(found) - 1} more" if len(found) > 1 else ""
        warning = f"the route {name} is {health.status}{why}{more}: poolctl health --routes"
        return replace(result, warnings=(*result.warnings, warning))

    async def _candidates(self, options: Table) -> MatchingRoutesResult:
        routes, generation = self.gateway.routes.routes.http, self.gateway.routes.generation
        not_served = self.gateway.routes.routes.excluded
        gateway, headers = self.gateway.tables.get(GatewayConfig), options.get("headers")
        name = "Host" if gateway is None else gateway.header_for_host
        named = headers.get(name.lower()) if isinstance(headers, dict) else None
        host = normal_host(str(named or options.get("host") or ""))

        def covering() -> tuple[tuple[Route, ...], tuple[ExcludedRoute, ...]]:
            found = routes
            if len(routes) > _MAX_EXPLAINED:
                found = tuple(each for each in routes if host_pattern(each.host).covers(host))
            return found, excluded_routes_for_host(host, not_served)

        found, excluded = await in_daemon_thread(covering)
        targets = self.gateway.targets.now(dict.fromkeys(each.key for route in found for each in route.to))
        return MatchingRoutesResult(
            header_for_host=name,
            generation=generation,
            total=len(routes),
            routes=found,
            excluded=excluded,
            unavailable={
                route.alias: reasons
                for route in found
                if (reasons := {key: each.reason for key, each in targets.of(route).items() if each.reason})
            },
        )

    async def with_routes(self, result: Result) -> Result:
        """The result of `show`, with the routes of each server added."""
        if not isinstance(result, ShowResult):
            return result
        await self.gateway.routes.wait_until_current()
        routes = self.gateway.routes.routes
        found = await in_daemon_thread(lambda: routes_to_servers(routes.served))
        return replace(
            result, items=tuple(replace(item, routes=found.get(item.name, ())) for item in result.items)
        )

    async def hosts(self, call: Call) -> HostsResult:
        """Every host with its state."""
        if not await self._read_figures():
            return self._unavailable()
        rows = {row.host: row for row in self.backends()}
        for service in self.gateway.routes.services or ():
            url, status = service.url, service.health.status
            if not service.is_serving and url not in rows:
                rows[url] = BackendReport(
                    host=url, routes=(service.alias,), available=False, health=status, why=service.problem
                )
        return HostsResult(items=tuple(rows.values()))

    def backends(self) -> list[BackendReport]:
        """A report on each target of a route, from the figures that were read last.

        Connections of a server of the pool are those that its workers have.
        """
        rows = self.gateway.figures.backends()
        for number, row in enumerate(rows):
            if (entry := self._core.entries.get(row.host)) is not None:
                opened = sum(counts[tally.OPEN_CONNECTIONS] for counts in worker_counts(self._core, entry))
                rows[number] = replace(row, connections=opened)
        return rows

    async def change_hosts(self, call: Call) -> Result:
        """Disable, enable or drain hosts, and return their new states. Raises SelectorError for invalid options.

        If the gateway does not know one of the hosts, no host is changed, and the result has an error.
        """
        order = parse_host_change(call.options)
        if not self.gateway.is_configured:
            return await no_gateway_to_change(call)
        await self.gateway.routes.wait_until_current()
        states, known, found, problems = self.gateway.hosts, self.gateway.targets.keys, [], []
        for name in order["hosts"]:
            try:
                found.append(find_host(name, known))
            except UnknownHost as unknown:
                problems.append(failure(PoolParamError, unknown.message, unknown.hint))
        if problems:
            return HostsResult(errors=tuple(problems), exit_code=NOTHING_MATCHED)
        for host in found:
            if order["op"] == "disable":
                states.disable(host, order["for"])
            elif order["op"] == "drain":
                states.drain(host)
            else:
                states.enable(host)
        late = await self.gateway.await_applied_or_warning(_CONFIRMATION_SECONDS)
        result = await self.hosts(call)
        warnings = (*result.warnings, late) if late else result.warnings
        items = tuple(item for item in result.items if item.host in found)
        return replace(result, items=items, warnings=warnings)

    async def _read_figures(self) -> bool:
        await self.gateway.wait_briefly_until_serving()
        return await self.gateway.figures.read()

    async def _figures(self) -> RouteReporter:
        answered = await self._read_figures()
        return RouteReporter(self.gateway, self._core, self._totals, answered=answered)

    def _unavailable(self) -> HostsResult:
        if not self.gateway.is_configured:
            return HostsResult()
        message = f"the gateway does not answer: {self.gateway.why_unavailable}"
        problem = failure(PoolMonitorError, message, "poolctl events")
        return HostsResult(errors=(problem,), exit_code=NOT_AS_DESIRED)


def parse_host_change(options: Table) -> Table:
    """The action, hosts and time in seconds from the options of a request. Raises SelectorError if they are invalid."""
    operation, hosts, seconds = options.get("op"), options.get("hosts"), options.get("for")
    if (
        operation not in _OPERATIONS
        or not isinstance(hosts, list)
        or not all(isinstance(host, str) for host in hosts)
    ):
        raise SelectorError(
            "unknown operation on backends", hint=f"op is one of {', '.join(_OPERATIONS)}; hosts is a list"
        )
    if seconds is not None and not (isinstance(seconds, (int, float)) and seconds >= 0):
        raise SelectorError(
            f"backends cannot be disabled for {seconds!r}", hint="seconds; 0 until they are enabled"
        )
    return {"op": operation, "hosts": hosts, "for": seconds}


class PoolGateway(FeaturePart):
    """Runs the gateway if one is configured, or if an earlier configuration had one that may still be running."""

    def __init__(self, site: PartContext) -> None:
        super().__init__(site)
        self._verbs: GatewayVerbs | None = None
        self._parts: list[GatewayPart] = []  # the parts that are connected with the gateway
        # If the supervisor was killed during a reload, the file may no longer have a gateway.
        self._is_left = False

    def take_over_process(self) -> None:
        self._is_left = True

    def apply_tables(self, tables: Tables) -> None:
        if self._verbs is None and (tables.get(GatewayConfig) is not None or self._is_left):
            self._verbs = GatewayVerbs(self.site)
        if (verbs := self._verbs) is not None:
            for part in self.site.parts.of(GatewayPart):
                if part not in self._parts:
                    self._parts.append(part)
                    part.connect(verbs.gateway)
            verbs.gateway.apply_tables(tables)

    @property
    def verbs(self) -> Mapping[str, Verb]:
        if (found := self._verbs) is None:
            without = dict.fromkeys(("routes", "hosts", "registry"), _empty_answer)
            return {**without, "host": no_gateway_to_change}
        return {
            "routes": found.routes,
            "hosts": found.hosts,
            "registry": found.attach_or_follow_table,
            "host": found.change_hosts,
        }

    async def extend(self, verb: str, call: Call, result: Result) -> Result:
        if (verbs := self._verbs) is None or not verbs.gateway.is_configured:
            return result
        if verb == "show":
            return await verbs.with_routes(result)
        if not call.selector.selects_all:
            return result
        if verb == "list":
            return replace(result, gateway=to_json(gateway_status(verbs.gateway)))
        if verb in ("status", "stats"):
            stats = await gateway_stats(verbs.gateway, self.site.core.runner.usages)
            status = replace(gateway_status(verbs.gateway), stats=stats)
            result = replace(result, gateway=to_json(status))
        return await verbs.with_unhealthy_route_warning(result) if verb == "status" else result

    @property
    def serves_without_servers(self) -> bool:
        if self._verbs is None or self.site.core.entries:
            return False
        tables = self._verbs.gateway.tables
        return bool(tables.all(RouteConfig) or tables.all(StreamConfig))

    @property
    def problems(self) -> list[str]:
        if self._verbs is None:
            return []
        problem = self._verbs.gateway.problem or self._verbs.gateway.instability
        own = [f"[gateway]: {problem}"] if problem else []
        return [*own, *self._problems_of_parts]

    @property
    def _problems_of_parts(self) -> list[str]:
        return [each for part in self._parts for each in part.not_served]

    @property
    def pids(self) -> Mapping[str, int]:
        pid = None if self._verbs is None else self._verbs.gateway.pid
        return {} if pid is None else {"gateway": pid}

    async def metrics(self) -> Iterable[Family]:
        if (verbs := self._verbs) is None or not verbs.gateway.is_configured:
            return []
        answered = await verbs.gateway.figures.read()
        healths, hosts = await verbs.healths(), verbs.backends()
        return [*gateway_metrics(verbs.gateway, hosts, healths, self._parts, answered=answered)]

    async def route_healths(self) -> Mapping[str, RouteHealth]:
        if (verbs := self._verbs) is None or not verbs.gateway.is_configured:
            return {}
        return await verbs.healths()

    async def wait_for_opening_attempt(self) -> None:
        if self._verbs is not None:
            await self._verbs.gateway.await_applied_or_warning()

    async def wait_for_effect(self, verb: str, call: Call, result: Result) -> Result:
        verbs = self._verbs
        for part in self._parts:
            await part.wait_for_opening_attempt()
        if verbs is None or call.options.get("dry_run") or result.exit_code == INVALID_CONFIGURATION:
            return result
        manager = verbs.gateway
        manager.first_command.set()
        if not call.options.get("wait", True):
            await manager.wait_for_opening_attempt()
            return self._warned(verb, result)
        if late := await manager.await_applied_or_warning(call.options.get("timeout")):
            result = replace(result, warnings=(*result.warnings, late))
        whole = verb == "reload" or (verb in OPENING_VERBS and call.selector.selects_all)
        if whole and verb == "start" and manager.is_configured:
            result = replace(result, gateway=to_json(gateway_status(manager)))
        if not (whole and manager.failures):
            return self._warned(verb, result)
        kind = PoolStartError if verb == "start" else PoolRestartError
        errors = [replace(error_of_kind(kind, each), name="[gateway]") for each in manager.failures]
        return replace(
            result,
            errors=(*result.errors, *errors),
            warnings=(*result.warnings, *self._problems_of_parts),
            exit_code=result.exit_code or FAILED,
        )

    def _warned(self, verb: str, result: Result) -> Result:
        more = self.problems if verb in OPENING_VERBS else ()
        return replace(result, warnings=(*result.warnings, *more))

    async def finish(self) -> None:
        if self._verbs is not None:
            await self._verbs.gateway.finish()

    async def stop_serving(self) -> None:
        if self._verbs is not None:
            await self._verbs.gateway.aclose()


async def _empty_answer(call: Call) -> Result:
    """An answer without routes and backends, because the pool has no gateway."""
    return Result()


async def no_gateway_to_change(call: Call) -> Result:
    """Return an error: the pool has no gateway whose routes or backends could be changed."""
    hint = "a [gateway] or [[route]] in the file adds one"
    error = ErrorEntry(code=NOTHING_MATCHED, error="ErrorUsage", message="the pool has no gateway", hint=hint)
    return Result(errors=(error,), exit_code=NOTHING_MATCHED)
