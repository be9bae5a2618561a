"""The gateway of a pool, if it has one; its modules are imported when it is configured."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.core.core import Core
from poolctl.errors import PoolRestartError, PoolStartError, PoolValidateError
from poolctl.exit_codes import FAILED, INVALID_CONFIGURATION
from poolctl.json_form import to_json
from poolctl.keeper import fd_store, rendezvous
from poolctl.monitor.event_queue import Events

from ..active_configuration import PoolEnvironment
from ..machine_source import MachineGateway, MachineSource
from ..observers.totals import Totals
from ..verbs.server_documents import as_kind
from ..verbs.verb import Call
from ..verbs.verbs import Verbs

if TYPE_CHECKING:
    from poolctl.monitor.exposition import Family
    from poolctl.routing.route_health import RouteHealth

    from .gateway_manager import GatewayManager
    from .gateway_statistics import GatewayStatistics
    from .gateway_verbs import GatewayVerbs
    from .registration_address import RegistrationAddress
    from .registration_manager import RegistrationManager
    from .registrations import Registrations

# Modules that a start imports only for a configuration with a gateway.
MODULES = (
    "poolctl.supervisor.gateway.gateway_manager",
    "poolctl.supervisor.gateway.gateway_metrics",
    "poolctl.supervisor.gateway.gateway_statistics",
    "poolctl.supervisor.gateway.gateway_verbs",
    "poolctl.supervisor.gateway.registration_address",
    "poolctl.supervisor.gateway.registration_manager",
)
# Of these commands, without a selection of servers, the gateway is a target too.
_STARTING = ("start", "restart")
# A worker may be busy with a request for longer.
_CONFIRMED_SECONDS = 2.0
_SERVERS_NAMED = 3
_AFTER_START_SECONDS = 1.0


def _prepare_validation() -> None:
    """Import and build the validation of registrations now, because an upgrade may replace the package's files."""
    from poolctl.config import RouteConfig, registration_of

    registration_of({}, [])
    with contextlib.suppress(PoolValidateError):
        RouteConfig()


class PoolGateway:
    """Follows the configuration from `start` on."""

    def __init__(self, environment: PoolEnvironment, events: Events) -> None:
        self._environment = environment
        self._events = events
        self._manager: GatewayManager | None = None
        self._statistics: GatewayStatistics | None = None
        self._routes: GatewayVerbs | None = None
        self._services: Registrations | None = None
        self._registrations: RegistrationManager | None = None
        self._registration_address: RegistrationAddress | None = None
        self._make_machines: Callable[[MachineGateway], MachineSource] | None = None
        self._found = False

    async def take_in(self) -> None:
        """Have the keeper hold a gateway that outlived keeper and supervisor, before workers are adopted."""
        if rendezvous.find(self._environment.directory, rendezvous.GATEWAY):
            from .orphaned_gateway import OrphanSearch

            search = OrphanSearch(self._environment.keeper, self._environment.directory)
            if (orphan := await search.search()) is not None:
                await search.keep(orphan)

    async def start(self, core: Core, verbs: Verbs, totals: Totals) -> None:
        """Serve as configured, now and after each reload."""
        self._core, self._verbs, self._totals = core, verbs, totals
        # A gateway that is no longer configured is still there if the supervisor was killed in a reload.
        _, fds = await self._environment.keeper.call({"op": "get", "name": fd_store.GATEWAY_LINK})
        self._found = bool(fds)
        for fd in fds:
            os.close(fd)
        if self._environment.configuration.tables.gateway is not None or self._found:
            from .registration_manager import saved_registrations

            # Before the first route table, which would take them out.
            self._services = await saved_registrations(
                self._environment.keeper,
                self._environment.directory,
                self._environment.state_directory,
                core.clock,
            )
        self._environment.configuration.follow(self._follow, every_reload=True)

    def _follow(self, tables: Tables) -> None:
        if self._manager is None and (tables.gateway is not None or self._found):
            from .gateway_manager import GatewayManager
            from .gateway_statistics import GatewayStatistics
            from .gateway_verbs import GatewayVerbs
            from .registration_manager import RegistrationManager
            from .registrations import Registrations

            self._manager = GatewayManager(self._environment, self._core, self._events)
            services = self._services or Registrations(self._core.clock)
            keeper, directory = self._environment.keeper, self._environment.directory
            self._registrations = RegistrationManager(
                self._manager,
                self._core.clock,
                self._events,
                keeper,
                directory,
                self._environment.state_directory,
                services,
            )
            self._registrations.add_to(self._verbs)
            self._routes = GatewayVerbs(self._manager, self._core, self._totals, services)
            self._routes.add_to(self._verbs)
            self._statistics = GatewayStatistics(self._manager, self._core, self._totals)
            self._statistics.add_to(self._verbs)
            self._verbs.extend("status", self._routes.warn)
            prepare = threading.Thread(target=_prepare_validation, daemon=True)
            asyncio.get_running_loop().call_later(_AFTER_START_SECONDS, prepare.start)
        if self._manager is not None and self._statistics is not None:
            self._manager.follow(tables)
            self._statistics.follow()
            self._find_machines()
            self._serve_registrations(tables)

    def _serve_registrations(self, tables: Tables) -> None:
        if self._registration_address is None and tables.registration is not None:
            from .registration_address import RegistrationAddress

            assert self._registrations is not None
            self._registration_address = RegistrationAddress(
                self._environment, self._events, self._registrations
            )
        if self._registration_address is not None:
            self._registration_address.follow(tables)

    def connect_machines(self, make: Callable[[MachineGateway], MachineSource]) -> None:
        """See ConnectMachines."""
        self._make_machines = make
        self._find_machines()

    def _find_machines(self) -> None:
        if self._manager is not None and self._make_machines is not None and self._manager.machines is None:
            self._manager.find_machines(self._make_machines(self._manager))

    @property
    def is_alone(self) -> bool:
        """Whether the pool has routes, but no server."""
        if self._manager is None or self._core.entries:
            return False
        tables = self._manager.tables
        return bool(tables.routes or tables.streams)

    @property
    def problems(self) -> list[str]:
        """Why it does not serve, or not reliably, if that is so."""
        if self._manager is None:
            return []
        found = {"[gateway]": self._manager.problem or self._manager.instability}
        if self._registration_address is not None:
            found["[registration]"] = self._registration_address.problem
        machines = self._manager.machines
        return [
            *(f"{table}: {problem}" for table, problem in found.items() if problem),
            *([machines.not_served] if machines is not None and machines.not_served else ()),
        ]

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
        found = await gateway_metrics(self._manager, self._core, await self._statistics.passed(), healths)
        return [*found, *(self._registrations.metrics() if self._registrations is not None else ())]

    async def healths(self) -> dict[str, RouteHealth] | None:
        """See HealthOfRoutes."""
        if self._manager is None or self._routes is None or self._manager.tables.gateway is None:
            return None
        return await self._routes.healths()

    async def conclude(self, verb: str, call: Call, result: Result) -> Result:
        """The result of a command, once its changes are in force here too; see Daemon."""
        result = replace(result, without_servers=self.is_alone or None)
        manager = self._manager
        if self._registration_address is not None:
            await self._registration_address.attempted()
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
        """End it."""
        if self._registration_address is not None:
            await self._registration_address.close()
        if self._manager is not None and self._manager.machines is not None:
            self._manager.machines.close()
        if self._statistics is not None:
            self._statistics.close()
        if self._registrations is not None:
            self._registrations.close()
        if self._manager is not None:
            await self._manager.aclose()
