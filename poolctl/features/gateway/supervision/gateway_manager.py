"""Runs the gateway of a pool: opens its listeners, starts its process, and sends it routes and states of servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING

from poolctl.config import Tables
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry, Worker
from poolctl.errors import ServerError
from poolctl.json_form import Table, from_json
from poolctl.keeper import fd_store, wire
from poolctl.monitor.event_queue import EventBus
from poolctl.routing.route_report import BackendReport
from poolctl.runners.listener_opener import in_daemon_thread
from poolctl.runners.local.local_runner import RoutePublisher
from poolctl.runners.local.server_sockets import WorkerRouteTables as RoutesForWorkers
from poolctl.runners.process_link import LinkLost
from poolctl.runners.worker_spec import memory_files
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.feature_parts import FeaturePart
from poolctl.supervisor.takeover.state_store import StateStore

from ..engines import ExternalEngine, engine_problem, find_external_engine
from ..process.settings import ListenerSettings
from ..table import GatewayConfig
from .computed_routes import RouteTableManager
from .gateway_adoption import GatewaySearch
from .gateway_plan import GatewayListeners, GatewayPlan, plan_of
from .gateway_process import GatewayProcess, GatewayZygote
from .gateway_reports import GatewayMessageHandler, ServerFactsSender, server_of
from .outside_targets import Activity, MachineSource, TargetProbes
from .sidecar import SidecarManager

if TYPE_CHECKING:
    from poolctl.monitor.metrics import Family

_SERVES_SECONDS = 10.0
# Maximum time that a command waits until its changes are in force: longer than a gateway needs to start on a busy
# machine.
_IN_FORCE_SECONDS = 20.0
# How long a server that is to stop waits for new routes. They may wait for the end of its own workers.
_ROUTES_SECONDS = 2.0
# A connection that was on its way to a server has arrived after this time.
_ARRIVES_SECONDS = 0.05
# How long the keeper may take to reap a killed worker.
_KILLED_SECONDS = 5.0
# How often certificates are read again: other programs renew them.
_RENEWAL_SECONDS = 30.0
# The delay before a zygote is started: there is other work after a start or an adoption. After a failure it is longer,
# because the next start would probably fail too.
_ZYGOTE_SECONDS, _FAILED_ZYGOTE_SECONDS = 1.0, 60.0


class GatewayManager(SidecarManager):
    """Runs the gateway configured by the tables passed to `follow`. Implements the runner's protocol `Gateway`."""

    label, entry = "the gateway", fd_store.GATEWAY_LINK
    # Restarted at once: meanwhile connections wait in the backlog.
    first_pause_seconds, calm_seconds = 0.0, 1.0

    def __init__(
        self,
        environment: SupervisorContext,
        core: Core,
        routing: RoutePublisher,
        events: EventBus,
        store: StateStore,
    ) -> None:
        super().__init__(environment.keeper, events)
        self.tables = Tables()
        self.machines: MachineSource | None = None
        # Settings for the parts of features in the gateway's process, by package; None: the process has no such part.
        self.process_parts: dict[str, Callable[[], Table | None]] = {}
        self._environment = environment
        self._core = core
        self.routing = routing
        self.reports = GatewayMessageHandler(store, core, events)
        self.reports.on_hosts = self._update_connection_release
        self.probes = TargetProbes(self._report_probes)
        self._listeners = GatewayListeners(environment.keeper)
        self.routes = RouteTableManager(
            self._on_routes_computed, self._replace_workers_to_end_connections, environment.directory
        )
        self._servers = ServerFactsSender(core, self.routes)
        self._own: tuple[socket.socket, socket.socket] | None = None  # give and take
        self._revision = -1
        self._current: GatewayPlan | None = None
        self._served: tuple[str, ...] = ()  # the addresses in the last event
        self._search = GatewaySearch(environment.keeper, environment.directory)
        self._ending_kept = ""  # the servers whose kept connections are being ended
        self._adopted = False
        self._renewal: asyncio.TimerHandle | None = None
        self._zygote: GatewayZygote | None = None
        self._zygote_timer: asyncio.TimerHandle | None = None
        core.split_obstacle = self.why_unsplittable_if_routed
        core.observers.add(self._on_server_changed)

    @property
    def why_unavailable(self) -> str:
        """Why the gateway does not answer, for messages: its problem, or that its process is starting."""
        return self.problem or "its process is starting"

    @property
    def gateway(self) -> GatewayProcess | None:
        """The gateway's process; None while it does not run."""
        return self._process if isinstance(self._process, GatewayProcess) else None

    @property
    def _external_engine(self) -> ExternalEngine | None:
        """The engine that serves the clients; None for poolctl's own."""
        gateway = self.tables.get(GatewayConfig)
        return None if gateway is None else find_external_engine(gateway.engine)

    @property
    def listeners(self) -> Collection[ListenerSettings]:
        """The listeners that are open, or are to be opened."""
        return () if self._current is None else self._current.listeners.values()

    async def wait_briefly_until_serving(self) -> GatewayProcess | None:
        """The gateway's process, after waiting until it serves; None if it cannot serve, or does not within 10 s.

        `why_unavailable` has the reason. Does not wait if the pool has no gateway.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SERVES_SECONDS):
                while (
                    self.tables.get(GatewayConfig) is not None and self._process is None and not self.problem
                ):
                    await self._changed.wait()
        return self.gateway

    async def await_applied_or_warning(self, limit_seconds: float | None = None) -> str:
        """Wait until the configuration is applied or has failed; returns "", or a warning if the time limit is reached.

        Failed parts are tried again first; if they fail again, `failures` has the reasons. The time limit is
        `limit_seconds`; the default and the maximum are 20 s.
        """
        if self.failures:
            self._on_configured()
        seconds = _IN_FORCE_SECONDS if limit_seconds is None else min(limit_seconds, _IN_FORCE_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                while not await self._await_step_and_check_done():
                    pass
        except TimeoutError:
            why = "its process is still starting" if self._process is None else "its process does not answer"
            if self._ending_kept:
                why = f"connections that workers of {self._ending_kept} have are ended first"
            return f"[gateway]: not everything is in force yet: {why}"
        return ""

    async def _await_step_and_check_done(self) -> bool:
        """Wait for one step of applying the configuration; returns True if none is left, or none can succeed."""
        if self._revision != self._core.servers.revision:
            self._schedule_recomputation()
        await self.routes.wait_until_current()
        process = self.gateway
        is_starting = process is None and self.tables.get(GatewayConfig) is not None and not self.failures
        if self._attempted_times < self._configured_times or is_starting:
            await self._changed.wait()
            return False
        if process is None:
            return True
        self._sync(process)  # the core may not have reported each change yet
        try:
            await process.wait_until_performed()
        except LinkLost:
            await asyncio.wait([process.exited])
            return False
        return self._attempted_times == self._configured_times

    def apply_tables(self, tables: Tables) -> None:
        """Start to apply these tables, and return at once."""
        self.tables = tables
        self._servers.engine_retries = self._external_engine is not None
        self.probes.apply_tables(tables)
        self._schedule_recomputation()
        self._on_configured()

    # Requests of the runner to a gateway.

    def use_passing_socket(self, server: str, give: socket.socket) -> None:
        """From now on, pass the server's connections over the socket pair with this sending end."""
        self._servers.pairs[server] = give
        self._report(server)

    async def withdraw_passing_socket(self, server: str, give: socket.socket) -> None:
        """Have the gateway stop sending connections to the socket `give`; returns when it has, or at a timeout."""
        if self._servers.pairs.get(server) is give:
            del self._servers.pairs[server]
        if (process := self.gateway) is not None:
            await process.withdraw_passing_socket(server, give)
            # Reported only now: an earlier report could be confused with the withdrawal of another pair.
            self._report(server)

    def _report_probes(self) -> None:
        if (process := self.gateway) is not None:
            process.report_probes(self.probes.reports)

    def use_machine_source(self, machines: MachineSource) -> None:
        """Use the feature `machines` from now on, which knows the machines behind routes' URLs and can start them."""
        self.machines = machines
        self.reports.on_machine_needed = machines.start_machine
        machines.set_routes(self.routes.routes.served)

    def report_machines(self) -> None:
        """Send the gateway's process the states of the machines, such as VMs, that answer at routes' target URLs."""
        if (process := self.gateway) is not None and self.machines is not None:
            process.report_machines(self.machines.states)

    async def try_fetch_report(self) -> Table | None:
        """The current counts and states from the gateway's process; None if it does not run, or does not answer."""
        try:
            return None if self.gateway is None else await self.gateway.fetch_report()
        except (LinkLost, TimeoutError):
            return None

    async def fetch_activity_by_host(self) -> dict[str, Activity] | None:
        """Return the Activity of each host by the host's name or URL; None if the gateway's process does not answer."""
        report = await self.try_fetch_report()
        if report is None:
            return None
        rows = (from_json(BackendReport, row) for row in report["hosts"])
        return {row.host: Activity(row.requests, row.in_flight + row.waiting) for row in rows}

    async def announce_workers_exit(self, server: str) -> None:
        """Tell the gateway that workers of `server` will stop; return when it sends them nothing, or at a timeout.

        Return at once, without a notice, if `server` is not the name of a canary and the engine is poolctl's own: then
        the server's other workers accept the connections in the backlog.
        """
        is_canary = server_of(server) != server
        process = await self.wait_briefly_until_serving() if is_canary else self.gateway
        if process is None or not (is_canary or self._external_engine):
            return
        # The new routes of a reload come first: those in force may be to a server that the reload removes.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ROUTES_SECONDS):
                await self.routes.wait_until_current()
        self._report(server)
        await process.wait_briefly_until_unused(server)
        # A request that was dispatched before is on its way to the backlog, from which no other worker accepts.
        await asyncio.sleep(_ARRIVES_SECONDS)

    def why_unsplittable_if_routed(self, server: str) -> str | None:
        """Why the server's requests cannot be split between versions; "" if they can, None if it has no route."""
        is_routed = self.tables.get(GatewayConfig) is not None and server in self.routes.routes.servers
        return "" if is_routed else None

    # Servers and routes.

    def _on_server_changed(self, entry: Entry) -> None:
        if self._revision != self._core.servers.revision:
            self._schedule_recomputation()
        if entry.name in self.routes.routes.servers:
            if self._servers.detect_canary_change(entry):
                self._publish_routes_to_workers()
            self._report(entry.name)

    def _schedule_recomputation(self) -> None:
        self._revision = self._core.servers.revision
        self.routes.schedule_computation(
            lambda: ([each.config for each in self._core.entries.values()], self.tables)
        )

    def _on_routes_computed(self) -> None:
        self._servers.drop_pairs_of_unrouted_servers()
        if self.gateway is not None:
            self._sync(self.gateway)
        self._publish_routes_to_workers()
        self._on_configured()  # a new stream needs a listener
        if self.machines is not None:
            self.machines.set_routes(self.routes.routes.served)

    def _publish_routes_to_workers(self) -> None:
        tables = self.routes.worker_tables
        if not tables or self._own is None:
            return
        keys = self.routes.context_keys
        routes = RoutesForWorkers(self.routes.generation, tables, self._own[0], keys)
        self._update_connection_release()
        self.routing.publish(self._servers.routed_and_canary_configs, routes, self)

    def _update_connection_release(self) -> None:
        """Tell workers whether to give connections without TLS back to the gateway after each request.

        Workers of all routed servers do, if the next request may be for another user's server. Otherwise only workers
        of disabled and drained hosts do.
        """
        routes = self.routes.routes
        servers = self.reports.unavailable_hosts if routes.kept.user else routes.servers
        self.routing.set_releasing_servers(servers)

    async def _replace_workers_to_end_connections(
        self, servers: frozenset[str], *, only_adopted: bool
    ) -> None:
        """End the connections that were passed to workers of these servers; returns when none is left.

        An application may hold on to a connection, so each worker is replaced, and killed if it does not exit in time.
        With `only_adopted`, only the workers that an earlier supervisor has started are replaced.
        """
        while (process := self.gateway) is not None:
            try:
                await process.wait_until_performed()  # from now on it passes nothing to these servers
                break
            except LinkLost:
                await asyncio.wait([process.exited])
        self.routing.return_queued_connections(servers)
        entries = [entry for each in sorted(servers) if (entry := self._core.entries.get(each)) is not None]
        old = [
            (entry, worker)
            for entry in entries
            for worker in entry.observed.workers.values()
            if not only_adopted or (worker.placement is not None and not worker.placed_at)
        ]
        if not old:
            return
        names = ", ".join(dict.fromkeys(entry.name for entry, _ in old))
        message = (
            f"{names}: connections that the gateway has passed are ended, as servers of other users follow"
        )
        self._events.record("pool", "passed connections ended", message=message)
        for entry in {entry.name: entry for entry, _ in old}.values():
            self._core.withdraw_canary(entry)
            self._core.replace_workers_of_generation(entry, entry.desired.generation)
        self._ending_kept = names
        try:
            async with asyncio.TaskGroup() as ending:
                for entry, worker in old:
                    ending.create_task(self._await_exit_or_kill(entry, worker))
        finally:
            self._ending_kept = ""

    async def _await_exit_or_kill(self, entry: Entry, worker: Worker) -> None:
        """Wait until the worker exits; kill it after the drain timeout of connections."""
        task = worker.task
        if task is None:
            return
        await asyncio.wait([task], timeout=worker.config.drain_timeout)
        if not task.done():
            self._core.kill(entry, worker)
            await asyncio.wait([task], timeout=_KILLED_SECONDS)

    def _report(self, server: str) -> None:
        if self._external_engine and not self.routes.are_current:
            return  # sent with the new routes, which may be to another server than the one that leaves
        if (process := self.gateway) is not None:
            self._servers.send(process, server)

    # The process.

    async def _reconcile(self) -> None:
        if not self._adopted:
            self._adopted = True
            await self._adopt()
        if self._process is None or self.failures:
            await self._adopt_orphaned_gateway()
        plan = await self._plan()
        if plan is None:
            await self._shut_down()
            self._succeeded()
            return
        await self._check_engine(plan)
        if self._own is None:
            self._create_and_store_pair()
            self._publish_routes_to_workers()
        failures = await self._listeners.open_missing(plan.listeners, plan.access)
        if failures:
            self._report_problem(*failures)
        self._release_opening_waiters()
        self._current = plan = plan.limited_to(self._listeners.settings)
        await self.routes.wait_until_current()
        process = self.gateway
        if process is None or process.mark != plan.settings.mark:
            await self._start(plan, process)
        else:
            self._sync(process)
        await self._listeners.close_others(plan.listeners)
        self._schedule_zygote()
        self._record_event_if_addresses_changed(plan)
        if failures:
            self._failed(*failures)
        elif self.routes.problem:
            self._report_problem(ServerError(self.routes.problem))
        else:
            self._succeeded()
        if plan.certificates and self._renewal is None:
            self._renewal = asyncio.get_running_loop().call_later(_RENEWAL_SECONDS, self._renew)

    def _renew(self) -> None:
        self._renewal = None
        self._schedule_reconcile()

    async def _plan(self) -> GatewayPlan | None:
        streams, directory = self.routes.routes.streams, self._environment.directory
        state_directory = self._environment.state_directory
        configuration, tables = self._environment.configuration, self.tables
        env = configuration.environment
        made = {package: make() for package, make in self.process_parts.items()}
        parts = {package: settings for package, settings in made.items() if settings is not None}
        return await in_daemon_thread(
            lambda: plan_of(tables, streams, directory, state_directory, env, parts)
        )

    async def _check_engine(self, plan: GatewayPlan) -> None:
        """Raise ServerError if the plan's engine cannot run, for example because its program is not installed.

        Called before listeners are opened, so that clients are refused and do not wait in vain.
        """
        process = self.gateway
        if process is not None and process.mark == plan.settings.mark:
            return
        problem = await in_daemon_thread(lambda: engine_problem(plan.settings.engine, plan.settings.program))
        if problem is None:
            return
        if process is None:
            await self._listeners.close_others(())
        raise ServerError("; ".join(problem))

    async def _start(self, plan: GatewayPlan, before: GatewayProcess | None) -> None:
        """Start a process, and wait until it serves; its predecessor `before` then drains."""
        process = await self._launch_process(plan)
        self.reports.receive_from(process)
        self._sync(process)
        process.begin_serving()
        await process.wait_until_ready(self._environment.directory)
        self._store_and_watch(process)
        # Send what has changed since it was spawned.
        self._sync(process)
        if before is not None:
            before.drain(plan.settings.drain_seconds)
        self._served = ()

    async def _launch_process(self, plan: GatewayPlan) -> GatewayProcess:
        mark, directory = plan.settings.mark, self._environment.directory
        if engine := find_external_engine(plan.settings.engine):
            return await GatewayProcess.spawn(self._keeper, directory, mark, engine.part)
        for _ in range(2):
            zygote = await self._ensure_zygote(mark)
            try:
                return await zygote.fork(mark)
            except LinkLost:  # the zygote was killed, or hangs
                self._end_zygote()
        raise LinkLost(f"its process ended at its start; see {os.path.join(directory, GatewayZygote.output)}")

    async def _ensure_zygote(self, mark: str) -> GatewayZygote:
        """Return a running zygote for gateways whose version and engine are `mark`. Start one if there is none."""
        wanted = GatewayZygote.mark_for(mark)
        if self._zygote is not None and (self._zygote.mark != wanted or self._zygote.exited.done()):
            self._end_zygote()
        if self._zygote is None:
            zygote = await GatewayZygote.spawn(self._keeper, self._environment.directory, wanted)
            zygote.save_to_keeper(self._keeper, fd_store.GATEWAY_ZYGOTE)
            self._use_zygote(zygote)
        assert self._zygote is not None
        return self._zygote

    def _use_zygote(self, zygote: GatewayZygote) -> None:
        def ended(_: object) -> None:
            self._schedule_zygote(_ZYGOTE_SECONDS if zygote.is_up else _FAILED_ZYGOTE_SECONDS)

        zygote.exited.add_done_callback(ended)
        self._zygote = zygote

    def _schedule_zygote(self, seconds: float = _ZYGOTE_SECONDS) -> None:
        """Start a zygote after `seconds`. When the current gateway exits, the zygote forks its successor."""
        if self._zygote_timer is not None:
            self._zygote_timer.cancel()
        self._zygote_timer = asyncio.get_running_loop().call_later(seconds, self._on_zygote_timer)

    def _on_zygote_timer(self) -> None:
        self._zygote_timer = None
        plan = self._current
        if plan is not None and not find_external_engine(plan.settings.engine) and not self._over:
            work = asyncio.ensure_future(self._ensure_zygote_in_turn(plan.settings.mark))
            self._work.add(work)
            work.add_done_callback(self._work.discard)

    async def _ensure_zygote_in_turn(self, mark: str) -> None:
        async with self._turn:
            with contextlib.suppress(LinkLost):  # the keeper is being replaced, and then this process
                await self._ensure_zygote(mark)

    def _end_zygote(self) -> None:
        if self._zygote is not None:
            self._keeper.send({"op": "drop", "name": fd_store.GATEWAY_ZYGOTE})
            self._zygote.end()
            self._zygote = None

    def _record_event_if_addresses_changed(self, plan: GatewayPlan) -> None:
        """Record an event with the served addresses, if the process is new or they have changed."""
        served = tuple(plan.listeners)
        if served and served != self._served:
            kind = "gateway moved" if self._served else "gateway started"
            self._events.record("pool", kind, message=f"the gateway serves {', '.join(served)}")
        self._served = served

    def _sync(self, process: GatewayProcess) -> None:
        plan = self._current
        if plan is None or self._own is None:
            return
        process.configure(plan.settings)
        process.set_return_socket_pair(*self._own)
        process.restore_hosts(self.reports.hosts)
        self._servers.send_all_routed(process)
        process.report_probes(self.probes.reports)
        for each in plan.certificates:
            with memory_files(each.contents) as fds:
                process.use_certificate(each.bind, each.names, each.settings, each.digest, fds)
        process.keep_certificates(plan.certificate_names_by_listener)
        if self.machines is not None:
            process.report_machines(self.machines.states)
        if self.routes.table is not None:
            process.publish(
                self.routes.generation, self.routes.table, workers_may_keep=bool(self.routes.routes.kept.user)
            )
        self._servers.forget_unrouted_servers(process)
        for key, listener in plan.listeners.items():
            if sockets := self._listeners.of(key):
                process.listen(listener, plan.streams.get(key), self._listeners.mark(key), sockets)
        for key in process.listeners - plan.listeners.keys():
            process.close_listener(key)

    async def _adopt(self) -> None:
        await self._listeners.adopt()
        if self._own is None:
            await self._adopt_pair_if_stored()
        await self.reports.load_host_states()
        await self._adopt_zygote()
        process = await GatewayProcess.adopt(self._keeper, self.entry)
        if process is not None:
            self.reports.receive_from(process)
            plan = await self._plan()
            self._current = plan and plan.limited_to(self._listeners.settings)
            self._served = tuple(self._current.listeners) if self._current else ()
            await self.routes.wait_until_current()
            process.begin_resync()
            self._sync(process)
            process.begin_serving()
            self._manage_process(process)

    async def _adopt_zygote(self) -> None:
        zygote = await GatewayZygote.adopt(self._keeper, fd_store.GATEWAY_ZYGOTE)
        if zygote is None:
            return
        zygote.is_up = True
        self._use_zygote(zygote)
        if not zygote.is_of_keeper:  # another keeper has started it
            self._end_zygote()

    async def _adopt_orphaned_gateway(self) -> None:
        """Adopt a gateway that survived keeper and supervisor, because it may still hold the addresses."""
        found = await self._search.find_orphan_and_drain_others()
        if found is None:
            if self._search.silent and self._process is None:
                raise TimeoutError("the gateway that outlived keeper and supervisor does not answer yet")
            return
        # This must happen before the keeper gets the new link, because it then closes the current one.
        if (before := self.gateway) is not None and self._current is not None:
            self._process = None
            before.drain(self._current.settings.drain_seconds)
        await self._search.hand_over_to_keeper(found)
        await self._adopt()

    async def _adopt_pair_if_stored(self) -> None:
        _, fds = await self._keeper.call({"op": "get", "name": fd_store.GATEWAY_PAIR})
        if fds:
            self._own = socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1])
            # The table may have been computed before the pair was adopted.
            self._publish_routes_to_workers()

    def passes_to(self, server: str) -> bool:
        """Whether the server has a socket pair, so that connections can be passed to it."""
        return server in self._servers.pairs

    def _create_and_store_pair(self) -> None:
        give, take = wire.pair()
        give.setblocking(False)
        take.setblocking(False)
        self._own = give, take
        self._keeper.send({"op": "put", "name": fd_store.GATEWAY_PAIR}, [give, take])

    async def aclose(self) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        if self._zygote_timer is not None:
            self._zygote_timer.cancel()
        await super().aclose()
        self.probes.close()
        self.routes.close()

    async def finish(self) -> None:
        """Refuse new connections; returns when the open connections have ended, within `drain_timeout`."""
        self._over = True
        async with self._turn:
            self._end_zygote()
            if (process := self.gateway) is not None and self._current is not None:
                self._process = None
                await self._listeners.close_others(())
                await process.finish(self._current.settings.drain_seconds)
                self._keeper.send({"op": "drop", "name": self.entry})  # which closes the link

    async def _shut_down(self) -> None:
        self._end_zygote()
        self._end_process()
        self._current, self._served = None, ()
        if self._own is not None:
            self.routing.publish((), None, self)
        await self._listeners.close_others(())
        if self._own is not None:
            for end in self._own:
                end.close()
            self._own = None
            self._keeper.send({"op": "drop", "name": fd_store.GATEWAY_PAIR})


class GatewayPart(FeaturePart):
    """The supervisor's part of a feature that extends the gateway; `connect` is called once the pool has a gateway."""

    def connect(self, gateway: GatewayManager) -> None:
        """Use this gateway from now on. Called when the pool gets one, before its first route table is computed."""

    @property
    def not_served(self) -> Iterable[str]:
        """Return messages about present problems with the feature's configuration table, such as [proxmox]."""
        return ()

    def gateway_metrics(self, reports: Table) -> Iterable[Family]:
        """Return the part's metrics. `reports` maps features' packages to their reports from the gateway's process."""
        return ()
