"""The gateway of a pool, if it has one; its modules are imported when it is configured."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.core.core import Core
from poolctl.errors import PoolRestartError, PoolStartError
from poolctl.exit_codes import FAILED, INVALID_CONFIGURATION
from poolctl.json_form import to_json
from poolctl.keeper import fd_store, pool_files
from poolctl.monitor.event_queue import Events

from ..active_configuration import PoolEnvironment
from ..feature_parts import FeatureParts
from ..observers.totals import Totals
from ..verbs.server_documents import as_kind
from ..verbs.verb import Call
from ..verbs.verbs import Verbs
from .gateway_part import GatewayPart

if TYPE_CHECKING:
    from poolctl.monitor.exposition import Family
    from poolctl.routing.route_health import RouteHealth

    from .gateway_manager import GatewayManager
    from .gateway_statistics import GatewayStatistics
    from .gateway_verbs import GatewayVerbs

# Modules that a start imports only for a configuration with a gateway.
MODULES = (
    "poolctl.supervisor.gateway.gateway_manager",
    "poolctl.supervisor.gateway.gateway_metrics",
    "poolctl.supervisor.gateway.gateway_statistics",
    "poolctl.supervisor.gateway.gateway_verbs",
)
# Of these commands, without a selection of servers, the gateway is a target too.
_STARTING = ("start", "restart")
# A worker may be busy with a request for longer.
_CONFIRMED_SECONDS = 2.0
_SERVERS_NAMED = 3


class PoolGateway:
    """Follows the configuration from `start` on."""

    def __init__(self, environment: PoolEnvironment, events: Events) -> None:
        self._environment = environment
        self._events = events
        self._manager: GatewayManager | None = None
        self._statistics: GatewayStatistics | None = None
        self._routes: GatewayVerbs | None = None
        self._parts: list[GatewayPart] = []  # the connected ones
        self._found = False

    async def take_in(self) -> None:
        """Have the keeper hold a gateway that outlived keeper and supervisor, before workers are adopted."""
        if pool_files.find(self._environment.directory, pool_files.GATEWAY):
            from .gateway_adoption import GatewaySearch

            search = GatewaySearch(self._environment.keeper, self._environment.directory)
            if (found := await search.search()) is not None:
                await search.keep(found)

    async def start(self, core: Core, verbs: Verbs, totals: Totals, features: FeatureParts) -> None:
        """Serve as configured, now and after each reload."""
        self._core, self._verbs, self._totals, self._features = core, verbs, totals, features
        # A gateway that is no longer configured is still there if the supervisor was killed in a reload.
        _, fds = await self._environment.keeper.call({"op": "get", "name": fd_store.GATEWAY_LINK})
        self._found = bool(fds)
        for fd in fds:
            os.close(fd)
        self._environment.configuration.follow(self._follow, every_reload=True)

    def _follow(self, tables: Tables) -> None:
        if self._manager is None and (tables.gateway is not None or self._found):
            from .gateway_manager import GatewayManager
            from .gateway_statistics import GatewayStatistics
            from .gateway_verbs import GatewayVerbs

            self._manager = GatewayManager(self._environment, self._core, self._events)
            self._routes = GatewayVerbs(self._manager, self._core, self._totals)
            self._routes.add_to(self._verbs)
            self._statistics = GatewayStatistics(self._manager, self._core, self._totals)
            self._statistics.add_to(self._verbs)
            self._verbs.extend("status", self._routes.warn)
        if self._manager is not None and self._statistics is not None:
            for part in self._features.of(GatewayPart):
                if part not in self._parts:
                    self._parts.append(part)
                    part.connect(self._manager)
            self._manager.follow(tables)
            self._statistics.follow()

    @property
    def is_alone(self) -> bool:
        """Whether the pool has routes, but no server."""
        if self._manager is None or self._core.entries:
            return False
        tables = self._manager.tables
        return bool(tables.routes or tables.streams)

    @property
    def problems(self) -> list[str]:
        """Why the gateway does not serve, or not reliably; empty if it does."""
        if self._manager is None:
            return []
        problem = self._manager.problem or self._manager.instability
        own = [f"[gateway]: {problem}"] if problem else []
        return [*own, *(each for part in self._parts for each in part.not_served)]

    @property
    def pid(self) -> int | None:
        """See GatewayFigures."""
        return None if self._statistics is None else self._statistics.serving_pid

    async def metrics(self) -> list[Family]:
        """See GatewayFigures."""
        if self._manager is None or self._statistics is None or self._manager.tables.gateway is None:
            return []
        from .gateway_metrics import gateway_metrics

        healths = await self.healths() or {}
        passed = await self._statistics.passed()
        return await gateway_metrics(self._manager, self._core, passed, healths, self._parts)

    async def healths(self) -> dict[str, RouteHealth] | None:
        """See HealthOfRoutes."""
        if self._manager is None or self._routes is None or self._manager.tables.gateway is None:
            return None
        return await self._routes.healths()

    async def conclude(self, verb: str, call: Call, result: Result) -> Result:
        """The result of a command, once its changes are in force here too; see Daemon."""
        result = replace(result, without_servers=self.is_alone or None)
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
        if whole and verb == "start" and self._statistics is not None and manager.tables.gateway is not None:
            result = replace(result, gateway=to_json(self._statistics.status()))
        if not (whole and manager.failures):
            return self._warned(verb, result)
        kind = PoolStartError if verb == "start" else PoolRestartError
        errors = [replace(as_kind(kind, each), name="[gateway]") for each in manager.failures]
        return replace(result, errors=(*result.errors, *errors), exit_code=result.exit_code or FAILED)

    async def _behind(self) -> str:
        """A warning about workers that have not confirmed the route table, or ""."""
        routing = self._core.runner.capabilities.routing
        servers = [] if routing is None else await routing.confirmed(_CONFIRMED_SECONDS)
        listed = ", ".join(servers[:_SERVERS_NAMED]) + (" …" if len(servers) > _SERVERS_NAMED else "")
        return f"[gateway]: workers of {listed} have not confirmed the new routes yet" if servers else ""

    def _warned(self, verb: str, result: Result) -> Result:
        more = self.problems if verb in _STARTING else ()
        return replace(result, warnings=(*result.warnings, *more))

    async def aclose(self) -> None:
        """End the gateway."""
        if self._statistics is not None:
            self._statistics.close()
        if self._manager is not None:
            await self._manager.aclose()
