"""The gateway's part of the supervisor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from poolctl.config import Tables
from poolctl.control.answers import ErrorEntry, Result
from poolctl.errors import PoolRestartError, PoolStartError
from poolctl.exit_codes import FAILED, INVALID_CONFIGURATION, NOTHING_MATCHED
from poolctl.json_form import to_json
from poolctl.keeper import pool_files
from poolctl.monitor.exposition import Family
from poolctl.routing.route_health import RouteHealth
from poolctl.supervisor.feature_parts import FeaturePart, PartSite
from poolctl.supervisor.verbs.verb import Call, Verb, as_kind

from ..table import GatewayConfig, RouteConfig, StreamConfig
from .gateway_adoption import GatewaySearch
from .gateway_manager import GatewayManager
from .gateway_metrics import gateway_metrics
from .gateway_part import GatewayPart
from .gateway_statistics import GatewayStatistics
from .gateway_verbs import GatewayVerbs

# Of these commands, without a selection of servers, the gateway is a target too.
_STARTING = ("start", "restart")
# A worker may be busy with a request for longer.
_CONFIRMED_SECONDS = 2.0
_SERVERS_NAMED = 3


class PoolGateway(FeaturePart):
    """Keeps a gateway while the configuration has one, or a process of it is left."""

    def __init__(self, site: PartSite) -> None:
        super().__init__(site)
        self._manager: GatewayManager | None = None
        self._statistics: GatewayStatistics | None = None
        self._verbs: GatewayVerbs | None = None
        self._parts: list[GatewayPart] = []  # the connected ones
        # Its file may no longer have a gateway, if the supervisor was killed in a reload.
        self._is_left = False

    async def take_in(self) -> None:
        """See FeaturePart."""
        self._is_left = True
        environment = self.site.environment
        if pool_files.find(environment.directory, pool_files.GATEWAY):
            search = GatewaySearch(environment.keeper, environment.directory)
            if (found := await search.search()) is not None:
                await search.keep(found)

    def follow(self, tables: Tables) -> None:
        """See FeaturePart."""
        if self._manager is None and (tables.get(GatewayConfig) is not None or self._is_left):
            site = self.site
            self._manager = GatewayManager(site.environment, site.core, site.events)
            self._verbs = GatewayVerbs(self._manager, site.core, site.totals, site.over)
            self._statistics = GatewayStatistics(self._manager, site.core, site.totals)
        if self._manager is not None and self._statistics is not None:
            for part in self.site.parts.of(GatewayPart):
                if part not in self._parts:
                    self._parts.append(part)
                    part.connect(self._manager)
            self._manager.follow(tables)
            self._statistics.follow()

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """See FeaturePart."""
        if self._verbs is None:
            return {"routes": _nothing, "hosts": _nothing, "registry": _nothing, "host": no_gateway_to_change}
        found = self._verbs
        return {
            "routes": found.routes, "hosts": found.hosts, "registry": found.registry, "host": found.host,
        }  # fmt: skip

    async def extend(self, verb: str, call: Call, result: Result) -> Result:
        """See FeaturePart."""
        manager = self._manager
        if manager is None or self._verbs is None or self._statistics is None:
            return result
        if verb == "reopen":
            return await self._verbs.reopen(result)
        if manager.tables.get(GatewayConfig) is None:
            return result
        if verb == "show":
            return await self._verbs.show(result)
        if not call.selector.selects_all:
            return result
        if verb == "list":
            return replace(result, gateway=to_json(self._statistics.status()))
        if verb in ("status", "stats"):
            status = replace(self._statistics.status(), stats=await self._statistics.stats())
            result = replace(result, gateway=to_json(status))
        return await self._verbs.warn(result) if verb == "status" else result

    @property
    def serves_alone(self) -> bool:
        """See FeaturePart."""
        if self._manager is None or self.site.core.entries:
            return False
        tables = self._manager.tables
        return bool(tables.all(RouteConfig) or tables.all(StreamConfig))

    @property
    def problems(self) -> list[str]:
        """See FeaturePart."""
        if self._manager is None:
            return []
        problem = self._manager.problem or self._manager.instability
        own = [f"[gateway]: {problem}"] if problem else []
        return [*own, *(each for part in self._parts for each in part.not_served)]

    @property
    def pids(self) -> Mapping[str, int]:
        """See FeaturePart."""
        pid = None if self._statistics is None else self._statistics.serving_pid
        return {} if pid is None else {"gateway": pid}

    async def metrics(self) -> Iterable[Family]:
        """See FeaturePart."""
        if (
            self._manager is None
            or self._statistics is None
            or self._manager.tables.get(GatewayConfig) is None
        ):
            return []
        passed = await self._statistics.passed()
        healths = await self.route_healths()
        return await gateway_metrics(self._manager, self.site.core, passed, healths, self._parts)

    async def route_healths(self) -> Mapping[str, RouteHealth]:
        """See FeaturePart."""
        if self._manager is None or self._verbs is None or self._manager.tables.get(GatewayConfig) is None:
            return {}
        return await self._verbs.healths()

    async def conclude(self, verb: str, call: Call, result: Result) -> Result:
        """See FeaturePart."""
        manager = self._manager
        for part in self._parts:
            await part.attempted()
        if manager is None or call.options.get("dry_run") or result.exit_code == INVALID_CONFIGURATION:
            return result
        if not call.options.get("wait", True):
            await manager.attempted()
            return self._warned(verb, result)
        late = await manager.in_force(call.options.get("timeout")) or await self._behind()
        if late:
            result = replace(result, warnings=(*result.warnings, late))
        whole = verb == "reload" or (verb in _STARTING and call.selector.selects_all)
        if (
            whole
            and verb == "start"
            and self._statistics is not None
            and manager.tables.get(GatewayConfig) is not None
        ):
            result = replace(result, gateway=to_json(self._statistics.status()))
        if not (whole and manager.failures):
            return self._warned(verb, result)
        kind = PoolStartError if verb == "start" else PoolRestartError
        errors = [replace(as_kind(kind, each), name="[gateway]") for each in manager.failures]
        return replace(result, errors=(*result.errors, *errors), exit_code=result.exit_code or FAILED)

    async def _behind(self) -> str:
        """A warning about workers that have not confirmed the route table, or ""."""
        routing = self.site.core.runner.capabilities.routing
        servers = [] if routing is None else await routing.confirmed(_CONFIRMED_SECONDS)
        listed = ", ".join(servers[:_SERVERS_NAMED]) + (" …" if len(servers) > _SERVERS_NAMED else "")
        return f"[gateway]: workers of {listed} have not confirmed the new routes yet" if servers else ""

    def _warned(self, verb: str, result: Result) -> Result:
        more = self.problems if verb in _STARTING else ()
        return replace(result, warnings=(*result.warnings, *more))

    async def finish(self) -> None:
        """See FeaturePart."""
        if self._manager is not None:
            await self._manager.finish()

    async def stop_serving(self) -> None:
        """See FeaturePart."""
        if self._statistics is not None:
            self._statistics.close()
        if self._manager is not None:
            await self._manager.aclose()


async def _nothing(call: Call) -> Result:
    """No route and no backend: the pool has no gateway."""
    return Result()


async def no_gateway_to_change(call: Call) -> Result:
    """The refusal to change routes or backends."""
    hint = "a [gateway] or [[route]] in the file adds one"
    error = ErrorEntry(code=NOTHING_MATCHED, error="ErrorUsage", message="the pool has no gateway", hint=hint)
    return Result(errors=(error,), exit_code=NOTHING_MATCHED)
