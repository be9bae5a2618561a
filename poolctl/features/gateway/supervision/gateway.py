"""Runs the gateway of a pool: opens its listeners, and keeps HAProxy running with the current routes and targets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
from collections import deque
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from poolctl.config import Tables
from poolctl.control.pool_paths import GATEWAY_ACCESS_LOG
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.daemon_threads import in_daemon_thread
from poolctl.errors import ServerError
from poolctl.keeper import fd_store
from poolctl.monitor.event_queue import EventBus
from poolctl.routing.context import without_keys
from poolctl.routing.route import SERVER, StreamRoute
from poolctl.routing.route_report import RequestedBackendState
from poolctl.runners.helper_process import HelperOwner
from poolctl.runners.local.local_runner import RoutePublisher
from poolctl.runners.local.output_pipes import OutputPipes
from poolctl.runners.local.server_sockets import WorkerRoutes
from poolctl.runners.process_link import LinkLost
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.feature_parts import FeaturePart
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.units import format_duration

from ..haproxy.host_names import HostNames
from ..haproxy.process import GATEWAY, HaproxyProcess, HaproxyProcesses, HaproxyRefusal
from ..haproxy.setup import HaproxySetup, HeldListener, change, host_names, parts_of
from ..program import uid_of
from ..repeated_work import RepeatedWork
from ..settings import ListenerSettings
from ..table import GatewayConfig
from ..target import ServerFacts, TargetState, facts_of, serving_state
from .awaited_targets import AwaitedTargets
from .counts import TrafficCounts
from .figures import GatewayFigures
from .forwarding import NEXT_PROCESS
from .hosts import HostStates
from .listeners import GatewayPlan, GatewayPlanner
from .outside_targets import Activity, MachineSource, TargetProbes
from .route_tables import RouteTableManager
from .targets import Targets

if TYPE_CHECKING:
    from poolctl.monitor.metrics import Family

_SERVING_TIMEOUT = 10.0
# All changes of routes within this time start only one HAProxy.
_REPLACEMENT_INTERVAL = 1.0
# Maximum time that a command waits until its changes are in force.
_APPLY_TIMEOUT = 20.0
# How long a new pool's gateway waits for the first command, which says what is to run.
_FIRST_COMMAND_TIMEOUT = 5.0
# A hung HAProxy must not delay the stop of a server for longer.
_DRAIN_TIMEOUT = 5.0
# A request just sent by HAProxy may still be on its way to the exiting worker's backlog, which only this worker reads.
_SETTLE_DELAY = 0.05
# How often HAProxy is asked for waiting pages: it does not report events.
_WAKE_INTERVAL = 0.2
# After this number of exits within this time, HAProxy is reported as unstable.
_UNSTABLE_EXITS, _UNSTABLE_SECONDS = 3, 600.0

logger = logging.getLogger("poolctl.supervisor")


class GatewayManager(HelperOwner[HaproxyProcess]):
    """Runs the gateway configured by the tables passed to `apply_tables`. Implements the runners' `Gateway`.

    After every change the helper calls `settings`, which opens the listeners and changes the running HAProxy by runtime
    commands. If these do not suffice, the helper starts another HAProxy on the same sockets.
    """

    def __init__(
        self,
        environment: SupervisorContext,
        core: Core,
        routing: RoutePublisher,
        output: OutputPipes,
        events: EventBus,
        store: StateStore,
    ) -> None:
        self.tables = Tables()
        self.machines: MachineSource | None = None
        self._environment = environment
        self._core = core
        self._routing = routing
        self._events = events
        self._store = store
        now = asyncio.get_running_loop().time
        self.hosts, self.counts = HostStates(now, self._on_host_changed), TrafficCounts()
        self.targets = Targets(self.facts_of_server, self.hosts, self.counts, self._record_event, now)
        self.figures = GatewayFigures(self.targets, lambda: self.gateway, self.update, now)
        self.probes = TargetProbes(self.update)
        self.routes = RouteTableManager(
            lambda: ([entry.config for entry in core.entries.values()], self.tables),
            self._on_routes_computed,
            environment.directory,
        )
        self.processes = HaproxyProcesses(
            environment.directory,
            output,
            os.path.join(environment.state_directory, GATEWAY_ACCESS_LOG),
            lambda kind, message: events.record("pool", kind, message=message),
        )
        self._helper = environment.helpers.add(GATEWAY, self, self.processes)
        self._planner = GatewayPlanner(environment, store, events)
        self._awaited = AwaitedTargets(environment, events, core, self.targets, self.update)
        self._names = HostNames(self._on_address_found)
        self._built: HaproxySetup | None = None  # the last setup, without states
        self._revision = -1  # of the servers, at the last computation of routes
        self._adopted = self._stopping = False
        # Whether the plan has to be made again, and whether the targets have changed since the last setup.
        self._is_outdated = self._has_changed = True
        self._exit_times: deque[float] = deque(maxlen=_UNSTABLE_EXITS)
        self._postponed: asyncio.Task[None] | None = None
        self._waking: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._following_hosts: asyncio.Handle | None = None  # soon, or when one becomes active again
        self.first_command = asyncio.Event()  # which says what servers are to run
        core.observers.add(self._on_server_changed)

    @property
    def failures(self) -> tuple[ServerError, ...]:
        """Why part of the configuration is not in force."""
        failures, failure = [*self._planner.failures], self._helper.failure
        if isinstance(failure, HaproxyRefusal) and self.gateway is not None:
            message = f"the configuration before is in use, as HAProxy refuses this one: {failure.message}"
            failures.append(ServerError(message))
        elif failure is not None:
            failures.append(
                failure if isinstance(failure, ServerError) else ServerError(self._helper.problem)
            )
        if self.routes.problem and self.routes.problem != self._helper.problem:
            failures.append(ServerError(self.routes.problem))
        return tuple(failures)

    @property
    def problem(self) -> str:
        """The reasons in `failures`, or ""."""
        return "; ".join(failure.message for failure in self.failures)

    @property
    def why_unavailable(self) -> str:
        """Why the gateway does not answer, for messages: its problem, or that its process is starting."""
        return self.problem or "its process is starting"

    @property
    def restarts(self) -> int:
        """The number of unexpected exits of HAProxy."""
        return self._helper.restarts

    @property
    def instability(self) -> str:
        """A message if HAProxy keeps exiting, else ""."""
        has_exits = len(self._exit_times) == _UNSTABLE_EXITS
        if not has_exits or asyncio.get_running_loop().time() - self._exit_times[0] > _UNSTABLE_SECONDS:
            return ""
        return f"its process has ended {_UNSTABLE_EXITS} times within {format_duration(_UNSTABLE_SECONDS)}"

    @property
    def gateway(self) -> HaproxyProcess | None:
        """The serving HAProxy, if any."""
        return self._helper.process

    @property
    def pid(self) -> int | None:
        """The pid of the serving HAProxy, if any."""
        return None if self.gateway is None else self.gateway.pid

    @property
    def listeners(self) -> Collection[ListenerSettings]:
        """The listeners that are open or should be."""
        return () if self._planner.plan is None else self._planner.plan.listeners.values()

    @property
    def is_configured(self) -> bool:
        """Whether the pool has a gateway."""
        return self.tables.get(GatewayConfig) is not None

    def apply_tables(self, tables: Tables) -> None:
        """Start to apply these tables, and return at once."""
        self.tables = tables
        if (gateway := tables.get(GatewayConfig)) is not None:
            self.hosts.re_enable_seconds = gateway.traffic_re_enable
        self.probes.apply_tables(tables)
        self._schedule_recomputation()
        self._reconcile()

    async def wait_for_opening_attempt(self) -> None:
        """Wait until the listeners are open or could not be opened; see `problem`."""
        await self._helper.wait_for_attempt()

    async def wait_until_serving(self) -> HaproxyProcess | None:
        """Wait until HAProxy serves, at most 10 s; returns the process, or None if it does not serve."""
        with contextlib.suppress(LinkLost, TimeoutError):
            async with asyncio.timeout(_SERVING_TIMEOUT):
                if self.is_configured:
                    process = await self._helper.wait_until_up()
                    if process.setup is None:  # adopted
                        await self._helper.wait_until_settled()
        return self.gateway

    async def wait_until_applied(self, limit_seconds: float | None = None) -> str:
        """Wait until the configuration is applied or has failed; returns "", or a warning if the time limit is reached.

        Failed parts are tried again first; if they fail again, `failures` has the reasons.
        """
        if self.failures:
            self._reconcile()
        seconds = _APPLY_TIMEOUT if limit_seconds is None else min(limit_seconds, _APPLY_TIMEOUT)
        try:
            async with asyncio.timeout(seconds):
                if self._revision != self._core.servers.revision:
                    self._schedule_recomputation()
                await self._settle()
                if self.is_configured:
                    with contextlib.suppress(LinkLost):
                        await self._helper.wait_until_up()
        except TimeoutError:
            why = "is still starting" if self.gateway is None else "does not answer"
            return f"[gateway]: not everything is in force yet: its process {why}"
        return ""

    async def _settle(self) -> None:
        """Wait until HAProxy runs with the current routes and targets, or cannot."""
        await self.routes.wait_until_current()
        self.update()
        await self._helper.wait_until_settled()
        while (postponed := self._postponed) is not None:
            await asyncio.wait({postponed})
            await self._helper.wait_until_settled()

    async def fetch_activity_by_host(self) -> dict[str, Activity] | None:
        """The Activity of each target by name or URL; None if HAProxy does not answer."""
        if not await self.figures.read():
            return None
        return {
            row.host: Activity(row.requests, row.in_flight + row.waiting) for row in self.figures.backends()
        }

    # Machines, hosts, servers and routes.

    def facts_of_server(self, name: str) -> ServerFacts | None:
        """What the supervisor knows about a server; None if the pool has no server of this name."""
        entry = self._core.entries.get(name)
        return None if entry is None else facts_of(self._core, entry)

    def use_machine_source(self, machines: MachineSource) -> None:
        """Use this feature from now on, which knows the machines behind routes' URLs and starts them."""
        self.machines = self._awaited.machines = machines
        machines.set_routes(self.routes.routes.served)

    async def announce_workers_exit(self, server: str) -> None:
        """Stop sending requests to the server, whose workers will exit; returns once that is done, or after 5 s."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_TIMEOUT):
                await self._settle()  # with the new routes of a reload, which may remove the server
        await asyncio.sleep(_SETTLE_DELAY)

    def _on_server_changed(self, entry: Entry) -> None:
        if entry.wanted:
            self.first_command.set()
        if self._revision != self._core.servers.revision:
            self._schedule_recomputation()
        if entry.name in self.routes.routes.servers:
            if (plan := self._planner.plan) is not None and entry.config.is_proxied:
                is_listening = entry.config.address.bind in plan.listeners
                if is_listening == entry.wants_no_worker:
                    self._reconcile()
            self.update()

    def _open_streams(self) -> list[StreamRoute]:
        """The streams to listen for: the address of a proxied server is closed while it should not run."""
        entries = self._core.entries
        return [
            stream
            for stream in self.routes.routes.streams
            if stream.provider != SERVER
            or ((entry := entries.get(stream.alias)) is not None and not entry.wants_no_worker)
        ]

    def _schedule_recomputation(self) -> None:
        self._revision = self._core.servers.revision
        self.routes.schedule_computation()

    def _on_routes_computed(self) -> None:
        routes = self.routes.routes
        self.targets.set_routes(routes.served)
        of_workers = WorkerRoutes(self.routes.worker_tables, self.routes.context_keys, routes.trusted)
        self._routing.publish(routes.servers, of_workers, self)
        self._reconcile()  # a new stream needs a listener
        if self.machines is not None:
            self.machines.set_routes(routes.served)

    def _record_event(self, kind: str, host: str, why: str) -> None:
        self._events.record("pool", kind, message=host, host=host, cause=why)

    def _on_address_found(self) -> None:
        content = json.dumps(self._names.addresses).encode()
        self._store.store_for_successor(fd_store.GATEWAY_ADDRESSES, content)
        self.update()

    def _on_host_changed(self, host: str, state: RequestedBackendState, why: str) -> None:
        self._record_event(f"host {state}", host, why)
        self._follow_hosts_soon()

    def _follow_hosts_soon(self) -> None:
        # Once for all changes of a command, which may change thousands.
        if self._following_hosts is not None:
            self._following_hosts.cancel()
        self._following_hosts = asyncio.get_running_loop().call_soon(self._follow_hosts)

    def _follow_hosts(self) -> None:
        self._store.store_for_successor(fd_store.GATEWAY_HOSTS, json.dumps(self.hosts.to_json()).encode())
        if (expiry := self.hosts.next_expiry) < math.inf:
            loop = asyncio.get_running_loop()
            self._following_hosts = loop.call_at(expiry, self.hosts.enable_expired)
        self.update()

    # Changes of HAProxy.

    def _reconcile(self) -> None:
        """Apply the configuration soon."""
        self._is_outdated = self._has_changed = True
        if not self._stopping:
            self._helper.reconcile()

    def update(self) -> None:
        """Apply changes to the running HAProxy soon; without one, the next is started with them."""
        self._has_changed = True
        if self.gateway is not None and not self._stopping:
            self._helper.reconcile()

    async def settings(self) -> str | None:
        await self.routes.wait_until_current()  # their streams have listeners
        if self.routes.table is None and self.routes.problem:
            # An adopted HAProxy keeps its routes.
            self.routes.schedule_computation()
            raise ServerError(self.routes.problem)
        if self._is_outdated:
            self._is_outdated = False
            try:
                await self._apply_plan()
            except BaseException:
                self._is_outdated = True
                raise
        if (plan := self._planner.plan) is None:
            self._awaited.forget()
            await self._planner.close_outdated()
            return None
        # Without a process, another attempt follows if there is a fallback.
        self._has_changed = self.gateway is None and self.processes.fallback is not None
        if self.gateway is None and not self.first_command.is_set():
            await self._wait_for_first_command()
        setup = self.processes.wanted = await self._build_setup(plan)
        if setup.shows_waiting_page and self._waking is None:
            self._waking = asyncio.ensure_future(self._wake_for_waiting_pages())
        if not plan.listeners:
            await self._planner.close_outdated()
            return None
        if (process := self.gateway) is None:
            if self.processes.fallback is None:
                await self._planner.close_outdated()
        elif await self._change(process, setup):
            await self._planner.close_outdated()
            self._helper.note_settings(setup.digest)
        elif process.setup is not None and self._postpone_replacement(process):
            return process.setup.digest
        return setup.digest

    async def _wait_for_first_command(self) -> None:
        """Wait until servers are to run: clients at the open listeners would get 503 until then."""
        entries = self._core.entries.values()
        if entries and not any(entry.wanted for entry in entries):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FIRST_COMMAND_TIMEOUT):
                    await self.first_command.wait()
        self.first_command.set()

    async def _change(self, process: HaproxyProcess, setup: HaproxySetup) -> bool:
        """Change the running HAProxy to this setup by runtime commands; returns whether they suffice.

        Otherwise at least its servers get the setup's states: once replaced, it takes no commands.
        """
        before, after, suffices = process.setup, setup.without(process.refused), True
        if before is None and process.mark != GATEWAY.mark_of(setup.digest):
            # Until another one can be started, it serves with its own routes. It may lack some of these servers.
            with contextlib.suppress(HaproxyRefusal):
                if self._helper.problem:
                    await process.ask(*after.state_commands())
            return False
        if before is None:
            commands = after.state_commands()
        else:
            if (changes := await in_daemon_thread(lambda: change(before, after))) is None:
                suffices, changes = False, change(before, before.with_states_of(after))
            commands, after = changes or ([], before)
        try:
            if commands:
                await process.perform(commands)
        except HaproxyRefusal as refusal:
            logger.warning("HAProxy is started again: %s", without_keys(str(refusal)))
            process.mark = ""
            return False
        process.setup = after
        return suffices

    def _postpone_replacement(self, process: HaproxyProcess) -> bool:
        """Postpone the replacement of a process that has just been started; returns whether it is postponed."""
        left = process.began + _REPLACEMENT_INTERVAL - asyncio.get_running_loop().time()
        if left <= 0 or not process.mark:
            return False
        if self._postponed is None:
            self._postponed = asyncio.ensure_future(self._update_later(left))
        return True

    async def _update_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._postponed = None
        self.update()

    async def _build_setup(self, plan: GatewayPlan) -> HaproxySetup:
        self.targets.probed = self.probes.targets
        routes = self.routes.routes
        facts = self.targets.facts()
        names = host_names(self.targets.keys, facts)
        await self._names.follow(names)
        self.targets.unresolved = names.keys() - self._names.addresses.keys()
        held = [
            HeldListener(listener, plan.streams.get(key), sockets, plan.certificates.get(key, ()))
            for key, listener in plan.listeners.items()
            if (sockets := self._planner.listeners.of(key))
        ]
        uids = [*dict.fromkeys((0, os.geteuid(), uid_of(plan.settings.user)))]
        waiting = self._awaited.follow(facts, uids)
        successor = self._awaited.listeners.of(NEXT_PROCESS)
        handover = successor.address, successor.sock, self.routes.next_process_key
        keys, addresses = self.routes.context_keys, self._names.addresses
        parts = parts_of(plan.settings, held, routes.http, facts, keys, addresses, waiting, handover)
        if (setup := self._built) is None or setup.parts != parts:
            setup = await in_daemon_thread(parts.build)
        self._built = setup
        now = self.targets.now({target.key for route in parts.served for target in route.to})
        return await in_daemon_thread(lambda: setup.with_states(now))

    async def _wake_for_waiting_pages(self) -> None:
        """Wake a target of each route whose waiting page HAProxy has shown, as long as it may show one."""
        waking = RepeatedWork("the waiting pages of the gateway")
        try:
            while (setup := self.processes.wanted) is not None and setup.shows_waiting_page:
                if (process := self.gateway) is not None:
                    with waking.attempt(), contextlib.suppress(HaproxyRefusal):  # it is being replaced
                        shown = await process.sections_to_wake()
                        backends = setup.configuration.backends
                        self._wake_targets({backend.alias for backend in backends if backend.name in shown})
                await asyncio.sleep(_WAKE_INTERVAL)
        finally:
            self._waking = None

    def _wake_targets(self, aliases: Collection[str]) -> None:
        """For each of these routes, start a target if all available targets sleep."""
        for route in self.routes.routes.http:
            if route.alias in aliases:
                targets = self.targets.now(target.key for target in route.to).of(route)
                if serving_state(targets.values()) is TargetState.SLEEPING:
                    self._awaited.start(next(key for key, target in targets.items() if target.serves))

    def use(self, process: HaproxyProcess, *, is_new: bool) -> None:
        self.figures.begin_process(process, is_new=is_new)
        self.processes.fallback = None
        if is_new:
            self._planner.report_addresses()
        if self._has_changed:
            self.update()

    async def retire(self, process: HaproxyProcess) -> None:
        await self.figures.follow_replaced(process)
        # Close listeners first, so that no connection waits where nobody accepts.
        await self._planner.close_outdated()
        await self.processes.retire(process)

    def on_lost(self, process: HaproxyProcess) -> None:
        self.processes.fallback = process.setup or self.processes.fallback
        self._exit_times.append(asyncio.get_running_loop().time())

    def on_event(self, event: str, message: str, **detail: Any) -> None:
        self._events.record("pool", event, message=message, **detail)

    async def _apply_plan(self) -> None:
        """Open the listeners; those that fail are opened later. Raises ServerError if there is no plan to follow."""
        if not self._adopted:
            await self._adopt()
        await self._planner.apply(self.tables, self._open_streams(), is_serving=self.gateway is not None)
        if self._retry is not None:
            self._retry.cancel()
        if (seconds := self._planner.recheck_seconds) < math.inf:
            self._retry = asyncio.get_running_loop().call_later(seconds, self._reconcile)

    async def _adopt(self) -> None:
        """Take over what an earlier supervisor has left. Raises LinkLost."""
        await self._planner.adopt(is_serving=self.gateway is not None)
        await self._awaited.adopt()
        self._names.addresses = json.loads(await self._store.read(fd_store.GATEWAY_ADDRESSES) or b"{}")
        if (content := await self._store.read(fd_store.GATEWAY_HOSTS)) is not None:
            self.hosts.restore(json.loads(content))
            self._follow_hosts_soon()
        self._adopted = True

    async def finish(self) -> None:
        """Refuse new connections; returns when the open ones have ended, at most after `drain_timeout`."""
        self._stop_changing()
        # The sockets of a process that is being started must not be closed before they are sent.
        self._helper.stop_attempts()
        await self._helper.wait_until_settled()
        process, plan = self._helper.release(), self._planner.plan
        await self._planner.listeners.close_others(())
        if plan is not None:
            await self.processes.finish_requests(
                process,
                plan.settings.table.drain_timeout,
                awaits_first_requests=self._environment.opener.stays_open,
            )
        await self._end_processes()

    async def aclose(self) -> None:
        """End HAProxy; from now on connections are refused."""
        self._stop_changing()
        await self._end_processes()
        await self._planner.listeners.close_others(())
        self.probes.close()
        self.routes.close()

    def _stop_changing(self) -> None:
        self._stopping = True
        self.first_command.set()
        self.figures.close()  # a replaced process does not end before its figures are read
        self._names.close()
        for work in (self._retry, self._following_hosts, self._postponed, self._waking):
            if work is not None:
                work.cancel()
        self._postponed = None

    async def _end_processes(self) -> None:
        await self._helper.aclose()
        await self.processes.end_all(self._helper.log)
        await self._awaited.aclose()


class GatewayPart(FeaturePart):
    """The supervisor's part of a feature that extends the gateway."""

    def connect(self, gateway: GatewayManager) -> None:
        """Use this gateway from now on. Called when the pool gets one, before its first route table is computed."""

    @property
    def not_served(self) -> Iterable[str]:
        """The present problems with the feature's table, such as [proxmox]."""
        return ()

    def gateway_metrics(self) -> Iterable[Family]:
        """Return the part's metrics."""
        return ()
