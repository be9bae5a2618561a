"""The gateway's part of the supervisor, and the control commands of a pool with a gateway."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
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
from poolctl.daemon_threads import in_daemon_thread
from poolctl.errors import PoolMonitorError, PoolParamError, PoolRestartError, PoolStartError
from poolctl.exit_codes import FAILED, INVALID_CONFIGURATION, NOT_AS_DESIRED, NOTHING_MATCHED
from poolctl.json_form import Table, to_json
from poolctl.monitor.metrics import Family
from poolctl.routing.match import host_pattern, normal_host
from poolctl.routing.route import ExcludedRoute, Route
from poolctl.routing.route_health import RouteHealth
from poolctl.routing.route_report import BackendReport
from poolctl.selection.selector import SelectorError
from poolctl.supervisor.feature_parts import OPENING_VERBS, FeaturePart, PartContext
from poolctl.supervisor.verbs.verb import Call, Verb, error_of_kind
from poolctl.worker import tally

from ..table import GatewayConfig, RouteConfig, StreamConfig
from .gateway import GatewayManager, GatewayPart
from .hosts import UnknownHost, find_host
from .metrics import gateway_metrics
from .statistics import RouteReporter, gateway_stats, gateway_status, worker_counts
from .targets import AnyServedRoute

# If the pool has more routes, only those of the requested host are explained.
_MAX_EXPLAINED = 1000
# How many routes are reported before the event loop handles other events.
_AT_ONCE = 100
# How long a command waits until HAProxy has applied it.
_CONFIRMATION_TIMEOUT = 1.0
_OPERATIONS = ("disable", "enable", "drain")


class GatewayVerbs:
    """The control commands of the gateway, answered from HAProxy's statistics and the workers' counts."""

    def __init__(self, context: PartContext, gateway: GatewayManager) -> None:
        self.gateway = gateway
        self._core = context.core
        self._totals = context.totals
        self._supervisor_ended = context.over

    async def routes(self, call: Call) -> Result:
        """All routes with their counts; for the operation "explain" only those that may match the request."""
        await self.gateway.routes.wait_until_current()
        if call.options.get("op") == "explain":
            return await self._candidates(call.options)
        figures = await self._figures()
        # Only now: those before are not the routes of the figures if some have changed meanwhile.
        routes, generation = self.gateway.routes.routes, self.gateway.routes.generation
        machines, reports = self.gateway.machines, []
        async for route in _in_portions(routes.served):
            report = figures.report_of(route)
            reports.append(report if machines is None else replace(report, machines=machines.machines(route)))
        reports += map(figures.report_of_excluded, routes.excluded)
        refused = {**self.gateway.counts.refused} if self.gateway.gateway is not None else None
        return RoutesResult(items=tuple(reports), generation=generation, refused=refused)

    async def attach_or_follow_table(self, call: Call) -> RouteTableResult:
        """Attach a descriptor of the route table, without secrets, to the answer.

        With the option `follow`, send the generation of each new table instead, until the supervisor ends.
        """

        def report(generation: int) -> None:
            with contextlib.suppress(ConnectionError):  # the request will be cancelled
                call.progress(ProgressLine(generation=generation))

        routes = self.gateway.routes
        await routes.wait_until_current()
        if call.options.get("follow") is True:
            with routes.subscribed(report):
                report(routes.generation)
                await self._supervisor_ended.wait()
        elif routes.table is not None:
            call.attach(routes.table.fileno())
        return RouteTableResult(generation=routes.generation)

    async def healths(self) -> dict[str, RouteHealth]:
        """The health of each served route, by alias; a stream with the alias of an HTTP route has " (stream)" added."""
        await self.gateway.routes.wait_until_current()
        figures = await self._figures()
        healths: dict[str, RouteHealth] = {}
        async for route in _in_portions(self.gateway.routes.routes.served):
            name = route.alias if route.alias not in healths else f"{route.alias} (stream)"
            healths[name] = figures.health(route)
        return healths

    async def with_unhealthy_route_warning(self, result: Result) -> Result:
        """The result of `status`, with a warning about routes that do not serve."""
        faulty = {name: health for name, health in (await self.healths()).items() if health.is_faulty}
        if not faulty:
            return result
        name, health = next(iter(faulty.items()))
        why = f" ({health.detail})" if health.detail else ""
        more = f", and {len(faulty) - 1} more" if len(faulty) > 1 else ""
        warning = f"the route {name} is {health.status}{why}{more}: poolctl health --routes"
        return replace(result, warnings=(*result.warnings, warning))

    async def _candidates(self, options: Table) -> MatchingRoutesResult:
        routes, generation = self.gateway.routes.routes, self.gateway.routes.generation
        gateway, headers = self.gateway.tables.get(GatewayConfig), options.get("headers")
        header = "Host" if gateway is None else gateway.header_for_host
        value = headers.get(header.lower()) if isinstance(headers, dict) else None
        host = normal_host(str(value or options.get("host") or ""))

        def match() -> tuple[tuple[Route, ...], tuple[ExcludedRoute, ...]]:
            candidates = routes.http
            if len(candidates) > _MAX_EXPLAINED:
                candidates = tuple(route for route in candidates if host_pattern(route.host).covers(host))
            return candidates, excluded_routes_for_host(host, routes.excluded)

        candidates, excluded = await in_daemon_thread(match)
        keys = dict.fromkeys(target.key for route in candidates for target in route.to)
        targets, unavailable = self.gateway.targets.now(keys), dict[str, dict[str, str]]()
        for route in candidates:
            if reasons := {key: each.reason for key, each in targets.of(route).items() if each.reason}:
                unavailable[route.alias] = reasons
        return MatchingRoutesResult(
            header_for_host=header,
            generation=generation,
            total=len(routes.http),
            routes=candidates,
            excluded=excluded,
            unavailable=unavailable,
        )

    async def with_routes(self, result: Result) -> Result:
        """The result of `show`, with the routes of each server added."""
        if not isinstance(result, ShowResult):
            return result
        await self.gateway.routes.wait_until_current()
        served = self.gateway.routes.routes.served
        by_server = await in_daemon_thread(lambda: routes_to_servers(served))
        return replace(
            result, items=tuple(replace(item, routes=by_server.get(item.name, ())) for item in result.items)
        )

    async def hosts(self, call: Call) -> HostsResult:
        """Every host with its state."""
        if not await self._read_figures():
            if not self.gateway.is_configured:
                return HostsResult()
            message = f"the gateway does not answer: {self.gateway.why_unavailable}"
            problem = failure(PoolMonitorError, message, "poolctl events")
            return HostsResult(errors=(problem,), exit_code=NOT_AS_DESIRED)
        rows = {row.host: row for row in self.backends()}
        for service in self.gateway.routes.services or ():
            url, status = service.url, service.health.status
            if not service.is_serving and url not in rows:
                rows[url] = BackendReport(
                    host=url, routes=(service.alias,), available=False, health=status, why=service.problem
                )
        return HostsResult(items=tuple(rows.values()))

    def backends(self) -> list[BackendReport]:
        """A report on each target of a route, from the last figures; the pool's servers with their own connections."""
        rows = self.gateway.figures.backends()
        for number, row in enumerate(rows):
            if (entry := self._core.entries.get(row.host)) is not None:
                count = sum(counts[tally.OPEN_CONNECTIONS] for counts in worker_counts(self._core, entry))
                rows[number] = replace(row, connections=count)
        return rows

    async def change_hosts(self, call: Call) -> Result:
        """Disable, enable or drain hosts, and return their new states. Raises SelectorError for invalid options.

        If one of the hosts is unknown, none is changed, and the result has an error.
        """
        operation, names, seconds = parse_host_change(call.options)
        if not self.gateway.is_configured:
            return await no_gateway_to_change(call)
        await self.gateway.routes.wait_until_current()
        states, keys, hosts, problems = self.gateway.hosts, self.gateway.targets.keys, [], []
        for name in names:
            try:
                hosts.append(find_host(name, keys))
            except UnknownHost as unknown:
                problems.append(failure(PoolParamError, unknown.message, unknown.hint))
        if problems:
            return HostsResult(errors=tuple(problems), exit_code=NOTHING_MATCHED)
        for host in hosts:
            if operation == "disable":
                states.disable(host, seconds)
            elif operation == "drain":
                states.drain(host)
            else:
                states.enable(host)
        late = await self.gateway.wait_until_applied(_CONFIRMATION_TIMEOUT)
        result = await self.hosts(call)
        warnings = (*result.warnings, late) if late else result.warnings
        items = tuple(item for item in result.items if item.host in hosts)
        return replace(result, items=items, warnings=warnings)

    async def _read_figures(self) -> bool:
        await self.gateway.wait_until_serving()
        return await self.gateway.figures.read()

    async def _figures(self) -> RouteReporter:
        answered = await self._read_figures()
        return RouteReporter(self.gateway, self._core, self._totals, answered=answered)


async def _in_portions(routes: Sequence[AnyServedRoute]) -> AsyncIterator[AnyServedRoute]:
    """Yield the routes; other events are handled in between."""
    for number, route in enumerate(routes, 1):
        yield route
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)


def parse_host_change(options: Table) -> tuple[str, list[str], float | None]:
    """The operation, hosts and seconds from the options of a request. Raises SelectorError if they are invalid."""
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
    return operation, hosts, seconds


class PoolGateway(FeaturePart):
    """Runs the gateway if one is configured, or if an earlier configuration's gateway may still run."""

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self._verbs: GatewayVerbs | None = None
        self._parts: list[GatewayPart] = []  # the parts that are connected with the gateway
        # After a supervisor that was killed during a reload, the file may no longer have a gateway.
        self._may_be_running = False

    def create_manager(self) -> GatewayManager:
        """The manager of the gateway of this supervisor's pool."""
        runner = self.context.runner
        return GatewayManager(
            self.context.environment,
            self.context.core,
            runner.routing,
            runner.output,
            self.context.events,
            self.context.store,
        )

    def take_over_process(self) -> None:
        self._may_be_running = True

    def apply_tables(self, tables: Tables) -> None:
        if self._verbs is None and (tables.get(GatewayConfig) is not None or self._may_be_running):
            self._verbs = GatewayVerbs(self.context, self.create_manager())
        if (verbs := self._verbs) is not None:
            for part in self.context.parts.of(GatewayPart):
                if part not in self._parts:
                    self._parts.append(part)
                    part.connect(verbs.gateway)
            verbs.gateway.apply_tables(tables)

    @property
    def _configured(self) -> GatewayVerbs | None:
        """The commands of the gateway; None for a pool without one."""
        return self._verbs if self._verbs is not None and self._verbs.gateway.is_configured else None

    @property
    def verbs(self) -> Mapping[str, Verb]:
        if (verbs := self._verbs) is None:
            return {
                **dict.fromkeys(("routes", "hosts", "registry"), _empty_answer),
                "host": no_gateway_to_change,
            }
        return {
            "routes": verbs.routes,
            "hosts": verbs.hosts,
            "registry": verbs.attach_or_follow_table,
            "host": verbs.change_hosts,
        }

    async def extend(self, verb: str, call: Call, result: Result) -> Result:
        if (verbs := self._configured) is None:
            return result
        if verb == "show":
            return await verbs.with_routes(result)
        if not call.selector.selects_all:
            return result
        if verb == "list":
            return replace(result, gateway=to_json(gateway_status(verbs.gateway)))
        if verb in ("status", "stats"):
            stats = await gateway_stats(verbs.gateway, self.context.core.runner.usages)
            status = replace(gateway_status(verbs.gateway), stats=stats)
            result = replace(result, gateway=to_json(status))
        return await verbs.with_unhealthy_route_warning(result) if verb == "status" else result

    @property
    def serves_without_servers(self) -> bool:
        if self._verbs is None or self.context.core.entries:
            return False
        tables = self._verbs.gateway.tables
        return bool(tables.all(RouteConfig) or tables.all(StreamConfig))

    @property
    def problems(self) -> list[str]:
        if self._verbs is None:
            return []
        problem = self._verbs.gateway.problem or self._verbs.gateway.instability
        return [*([f"[gateway]: {problem}"] if problem else []), *self._problems_of_parts]

    @property
    def _problems_of_parts(self) -> list[str]:
        return [problem for part in self._parts for problem in part.not_served]

    @property
    def pids(self) -> Mapping[str, int]:
        pid = None if self._verbs is None else self._verbs.gateway.pid
        return {} if pid is None else {"gateway": pid}

    async def metrics(self) -> Iterable[Family]:
        if (verbs := self._configured) is None:
            return []
        answered = await verbs.gateway.figures.read()
        healths, hosts = await verbs.healths(), verbs.backends()
        return [*gateway_metrics(verbs.gateway, hosts, healths, self._parts, answered=answered)]

    async def route_healths(self) -> Mapping[str, RouteHealth]:
        if (verbs := self._configured) is None:
            return {}
        return await verbs.healths()

    async def wait_for_opening_attempt(self) -> None:
        if self._verbs is not None:
            await self._verbs.gateway.wait_until_applied()

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
        if late := await manager.wait_until_applied(call.options.get("timeout")):
            result = replace(result, warnings=(*result.warnings, late))
        is_whole_pool = verb == "reload" or (verb in OPENING_VERBS and call.selector.selects_all)
        if is_whole_pool and verb == "start" and manager.is_configured:
            result = replace(result, gateway=to_json(gateway_status(manager)))
        if not (is_whole_pool and manager.failures):
            return self._warned(verb, result)
        kind = PoolStartError if verb == "start" else PoolRestartError
        errors = [replace(error_of_kind(kind, error), name="[gateway]") for error in manager.failures]
        return replace(
            result,
            errors=(*result.errors, *errors),
            warnings=(*result.warnings, *self._problems_of_parts),
            exit_code=result.exit_code or FAILED,
        )

    def _warned(self, verb: str, result: Result) -> Result:
        problems = self.problems if verb in OPENING_VERBS else ()
        return replace(result, warnings=(*result.warnings, *problems))

    async def finish(self) -> None:
        if self._verbs is not None:
            await self._verbs.gateway.finish()

    async def stop_serving(self) -> None:
        if self._verbs is not None:
            await self._verbs.gateway.aclose()


async def _empty_answer(call: Call) -> Result:
    return Result()


async def no_gateway_to_change(call: Call) -> Result:
    """The error of a pool without a gateway."""
    hint = "a [gateway] or [[route]] in the file adds one"
    error = ErrorEntry(code=NOTHING_MATCHED, error="ErrorUsage", message="the pool has no gateway", hint=hint)
    return Result(errors=(error,), exit_code=NOTHING_MATCHED)
