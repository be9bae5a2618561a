"""Runs workers as processes of this machine; the keeper holds their listeners and is their parent."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

from poolctl.config import ServerConfig
from poolctl.daemon_threads import in_daemon_thread
from poolctl.keeper import fd_store
from poolctl.keeper.reap import signal_process
from poolctl.listeners.open_listener import duplicate_inherited_listeners
from poolctl.listeners.sock_diag import accept_queue
from poolctl.worker.tally import Counts

from ..process_link import Message
from ..process_usage import ProcessUsages
from ..runner_protocol import Exit, Placement, Runner, RunnerEventHandler, WorkerFailed
from ..stack_report import WorkerStacks
from ..worker_spec import hook_config, memory_files, tls_contents, tls_settings
from . import readiness
from .activation import Activator
from .app_zygotes import AppZygotes, ImportLimit
from .children import Children
from .forking import Forker, RunnerContext
from .left_groups import LeftGroups
from .local_worker import LocalWorker, RunnerWorkers
from .memory_kills import MemoryKills
from .output_pipes import MAX_TAILS, OutputPipes, last_lines
from .private_ports import free_private_address
from .program_ports import listening_inodes
from .server_sockets import AdoptionPairs, Gateway, Sockets, WorkerRoutes
from .stack_reader import StackReader
from .takeover import (
    Adopter,
    AdoptionResult,
    WorkerAdoption,
    systemd_sockets,
    take_over,
    wait_briefly_for_reports,
)
from .tallies import Tallies, WorkerHeartbeats
from .zygotes import InterpreterZygoteIdentity, Zygotes

logger = logging.getLogger("poolctl.supervisor")

_LAST_OUTPUT_SECONDS = 3.0
_LAST_REQUESTS_SECONDS = 3.0  # longer than a connection has to be quiet before a worker closes it
_SHORT_OUTPUT_SECONDS = 0.2  # short, so that the replacement of a ready worker starts soon


class RoutePublisher:
    """Sends routes to the workers of servers that have one, and tells the gateway before such workers leave."""

    def __init__(self, workers: RunnerWorkers) -> None:
        self._workers = workers
        self._servers: frozenset[str] = frozenset()
        self._routes = WorkerRoutes({}, {})
        self._gateway: Gateway | None = None

    def publish(self, servers: Collection[str], routes: WorkerRoutes, gateway: Gateway) -> None:
        """Send the workers of these servers their routes, also workers that are started or adopted later.

        Does not block.
        """
        self._servers, self._routes, self._gateway = frozenset(servers), routes, gateway
        for worker in self._workers.values():
            self.send_routes(worker)

    def send_routes(self, worker: LocalWorker) -> None:
        """Give the worker its routes, now or when it begins its work, if its server has any or had some before."""
        name, routes = worker.server.name, self._routes
        if name in self._servers and name in routes.tables:
            key, trusted = routes.keys[name], routes.trusted
            worker.give_standing_order("routes", [routes.tables[name]], key=key, trusted=trusted)
        elif name in self._servers or "routes" in worker.standing_orders:
            worker.give_standing_order("routes")

    async def announce_exit(self, worker: LocalWorker) -> None:
        """Tell the gateway that the worker exits without replacement; return when it has confirmed."""
        if self._gateway is not None and "routes" in worker.standing_orders:
            await self._gateway.announce_workers_exit(worker.server.name)


class LocalRunner(Runner):
    """Runs each worker as a process of this machine, forked by a zygote of the keeper.

    Workers outlive their supervisor, as children of the keeper.

    The keeper's exit reports must be passed to `handle_exit_report`. If the keeper and this process have both died,
    workers drain and exit; the next start or stop ends the other processes (see left_overs).
    """

    events = RunnerEventHandler()
    in_this_process = False

    def __init__(self, context: RunnerContext) -> None:
        keeper = self.keeper = context.keeper
        self.children = Children(keeper, context.keeper_pid)
        self._import_limit = ImportLimit()
        self.zygotes = Zygotes(keeper, self.children, context.directory, context.notes)
        self.output = OutputPipes(keeper, context.helpers, context.logs_directory, self._current_events)
        self.app_zygotes = AppZygotes(keeper, self.children, self.zygotes, self.output, self._import_limit)
        self.sockets = Sockets(keeper, context.opener)
        self.adoptions = AdoptionPairs(keeper)
        self.activator = Activator(keeper, self.sockets, self.adoptions, context.helpers)
        self.forker = Forker(
            context,
            self.children,
            self._current_events,
            self.zygotes,
            self.app_zygotes,
            self.output,
            self.adoptions,
            self._handle_never_started,
        )
        self._workers = RunnerWorkers()
        self.tallies = Tallies(keeper, self._workers, self._current_events)
        self.heartbeats = WorkerHeartbeats(self._workers)
        self.usages = ProcessUsages()
        self._left_groups = LeftGroups(keeper, self.children)
        self._stacks = StackReader(self.children, self._workers)
        self._by_pid: dict[int, LocalWorker] = {}
        # The keys of the output of workers that exited last, by their ids.
        self._last_outputs: dict[str, str] = {}
        self._memory_kills = MemoryKills()
        self.routing = RoutePublisher(self._workers)

    def _current_events(self) -> RunnerEventHandler:
        # `events` is set after the parts of this runner are made.
        return self.events

    async def open(self, server: ServerConfig, beside: Sequence[str] = ()) -> tuple[str, ...]:
        """Open the server's listeners; for a command that binds its own address, check that its port is free."""
        await self._wait_for_own_port(server)
        if server.address.kind == "fd":
            self.activator.disarm_and_hand_over(server.key)
        await self.sockets.open(server, beside)
        if server.scale.min:
            # A sleeping server uses one descriptor only: its pair is created for the first connection that needs it.
            self.adoptions.open(server)
        return tuple(self.sockets.endpoints(server.key))

    def change_socket_access(self, server: ServerConfig) -> None:
        self.sockets.change_access(server)

    def close_unneeded(self, server: ServerConfig) -> tuple[str, ...]:
        self.sockets.close_unneeded(server)
        return tuple(self.sockets.endpoints(server.key))

    async def close(self, key: str) -> None:
        """Close the listeners of this address, and the connections that are queued for a worker."""
        self.app_zygotes.release(key)
        self.activator.forget_and_close_held(key)
        await self.adoptions.close(key)
        await self.sockets.close(key)

    def watch_idleness(self, placement: Placement, seconds: float) -> None:
        if placement.id in self._workers:
            self._workers[placement.id].order("idle", seconds=seconds)

    def arm(self, server: ServerConfig, on_request: Callable[[], None]) -> None:
        if server.is_proxied:
            return  # the gateway accepts its connections, and wakes it
        self.activator.arm(server, on_request)
        self.activator.close_unused_socket_pair(server.key, self._workers.of(server.key))

    def disarm(self, key: str) -> None:
        self.activator.disarm_and_hand_over(key)

    def close_arriving(self, server: ServerConfig) -> None:
        listeners = duplicate_inherited_listeners(server.address, self.sockets.inherited)
        self.activator.close_arriving(server, listeners)

    def close_waiting(self, key: str) -> None:
        self.activator.close_waiting(key)

    async def check_startable(self, server: ServerConfig) -> None:
        await self.forker.check_worker_prerequisites(server)

    async def preload_application(self, server: ServerConfig, since: float) -> str:
        with self.children.recording_early_exits():
            return await self.forker.import_in_app_zygote(server, since)

    async def place(
        self, server: ServerConfig, generation: int, index: int, *, resting: bool = False
    ) -> Placement:
        """Fork a worker. Raises ServerError or WorkerFailed."""
        await self._wait_for_own_port(server)
        earlier = await asyncio.to_thread(listening_inodes, server) if server.binds_itself else set()
        private = None
        if server.is_proxied:
            taken = {worker.placement.address for worker in self._workers.values()}
            private = await in_daemon_thread(lambda: free_private_address(taken))
        with self.children.recording_early_exits():
            serving = any(
                peer.ready_at and not (peer.left.done() or peer.exited.done())
                for peer in self._workers.of(server.key)
            )
            woken = not server.scale.min and not serving
            sockets = [] if server.is_proxied else self.sockets.share_with_worker(server)
            worker = await self.forker.fork(
                server, generation, index, sockets, woken=woken, private=private, resting=resting
            )
            worker.earlier_listeners = earlier
            self._register(worker)
        self.routing.send_routes(worker)
        if server.command or worker.preloaded:
            worker.order_to_begin()
        else:
            self._import_limit.queue(worker.order_to_begin, worker.imported)
        return worker.placement

    async def _wait_for_own_port(self, server: ServerConfig) -> None:
        """Wait for the end of processes that an earlier program has left: they may hold the server's port."""
        if server.binds_itself:
            await self._left_groups.wait_until_gone(server.key)

    async def begin_hook(self, server: ServerConfig, hook: str) -> Placement:
        with self.children.recording_early_exits():
            worker = await self.forker.fork(hook_config(server, hook), 0, 0, [], hook=hook)
            self._register(worker)
        worker.order_to_begin()
        return worker.placement

    def _register(self, worker: LocalWorker) -> None:
        """Register a new or adopted worker. If its exit was reported before this call, handle the exit."""
        placement = worker.placement
        assert placement.pid is not None
        self._workers.add(worker)
        self._by_pid[placement.pid] = worker
        worker.answered.add_done_callback(lambda _: self._save_state(worker))
        if (early := self.children.register_unless_exited(placement.pid)) is not None:
            self._handle_worker_exit(worker, early)

    def _handle_never_started(self, worker: LocalWorker, violation: str) -> None:
        """Treat the worker as exited, because its zygote reported a false pid. `violation` says what the zygote did."""
        if not worker.exited.done():
            self._by_pid.pop(worker.process.pid, None)
            self._handle_worker_exit(worker, Exit(message=f"was never started: its zygote {violation}"))

    def _save_state(self, worker: LocalWorker) -> None:
        """Record the worker's state in the keeper's store."""
        if not worker.exited.done():
            self.keeper.send(
                {"op": "note", "name": f"{fd_store.WORKER}{worker.placement.id}", "meta": worker.meta()}
            )

    async def adopt_workers_and_end_others(
        self, servers: Mapping[str, ServerConfig], placed: Mapping[str, ServerConfig] = MappingProxyType({})
    ) -> AdoptionResult:
        """Adopt the workers and listeners of these servers, and end all other workers that the keeper holds.

        `placed` has the configurations, by worker id, that differ from the configuration of the worker's server.
        Called once, before a listener is opened or a worker is started.
        """
        self.sockets.inherited = await systemd_sockets(self.keeper)
        by_key = {server.key: server for server in servers.values()}
        adoption = WorkerAdoption(self.keeper, self.children, self.events, servers, placed)
        adopters: dict[str, Adopter] = {
            fd_store.LISTENER: self.sockets.adopt,
            fd_store.ADOPTION: self.adoptions.adopt,
            fd_store.OUTPUT: self.output.adopt,
            fd_store.HELPER_OUTPUT: self.output.adopt,
            fd_store.TALLY: self.tallies.add_up_unsaved_counts,
            fd_store.HELD_CONNECTION: partial(self.activator.requeue_held_connection, by_key),
            fd_store.APP_ZYGOTE: self.app_zygotes.adopt,
            fd_store.WORKER: partial(adoption.adopt_or_stop, self._register),
            fd_store.LEFT_GROUP: self._left_groups.adopt,
        }
        names = await take_over(self.keeper, adopters)
        await self.sockets.adopt_bound()
        workers = adoption.workers
        zygotes = [name.removeprefix(fd_store.ZYGOTE) for name in names if name.startswith(fd_store.ZYGOTE)]
        for key in zygotes:
            self.zygotes.start(InterpreterZygoteIdentity.from_key(key))
        if workers and not zygotes:
            # The zygotes exited with their keeper.
            self.forker.warm(workers[0].server)
        for server in servers.values():
            if server.preload and self.sockets.endpoints(server.key):
                self.forker.retain_app_zygote(server)
        self.app_zygotes.end_unneeded()
        # Last, because connections that the accept helper has accepted are put into the servers' pairs.
        await self.activator.adopt_acceptor(by_key)
        await wait_briefly_for_reports(workers)
        # Close unused listeners before any server looks for an address that one of them may occupy.
        ours = {server.key for server in servers.values()} | {worker.config.key for worker in workers}
        open_keys = self.sockets.keys()
        for key in open_keys - ours:
            await self.close(key)
        await self.output.start()
        return AdoptionResult(
            workers,
            {hook.server.name: (hook.hook, hook.placement) for hook in adoption.hooks},
            {key: tuple(self.sockets.endpoints(key)) for key in ours & open_keys},
        )

    @property
    def pids(self) -> set[int | None]:
        """The pids of all workers, hooks, and exited leaders of groups that are left."""
        return {*self._by_pid, *(leader.pid for leader in self._left_groups.leaders)}

    async def wait_for_begin_or_exit(self, placement: Placement) -> None:
        if worker := self._workers.get(placement.id):
            await asyncio.shield(worker.begun)

    async def wait_until_ready(self, placement: Placement) -> None:
        """Wait until the worker is ready; a job is ready when it has exited with 0."""
        worker = self._workers.get(placement.id)
        if worker is None:
            raise WorkerFailed("has ended before")
        if worker.server.ready_line is None:
            await readiness.wait_until_ready(worker, self.sockets.of(worker.server), self._workers)
        else:
            await worker.become_ready_by(self.output.wait_for_ready_line(worker.output))

    async def set_in_rotation(self, placement: Placement, in_rotation: bool) -> None:
        """Put the worker into rotation, or take it out. Has no effect on a worker that runs a command."""
        if placement.id in self._workers:
            self._workers[placement.id].order("in" if in_rotation else "out")

    async def set_accepting(self, placement: Placement, accepting: bool) -> None:
        """Allow the worker to accept connections, or forbid it. Has no effect on a worker that runs a command."""
        if placement.id in self._workers:
            self._workers[placement.id].order("work" if accepting else "rest")

    async def connect_for_probe(
        self, placement: Placement, kind: str, plain: bool, *, exact: bool = False
    ) -> socket.socket:
        """Connect to the worker. Raises OSError.

        A worker that runs a command is reached through its server's listener or, if the command binds its address
        itself, at this address.
        """
        worker = self._workers.get(placement.id)
        if worker is None:
            raise ConnectionRefusedError("it has exited")
        listeners = self.sockets.of(worker.server)
        return await readiness.connect_for_probe(worker, kind, plain, listeners, self._workers, exact=exact)

    async def reload_tls(self, placement: Placement, server: ServerConfig) -> None:
        if worker := self._workers.get(placement.id):
            with memory_files(tls_contents(server)) as fds:
                worker.order("tls", fds, tls=tls_settings(server))

    async def begin_drain(self, placement: Placement, *, replaced: bool = True) -> None:
        """Order the worker to stop accepting, and wait until it has. A command may go on accepting until it exits."""
        if worker := self._workers.get(placement.id):
            if not replaced or worker.config.is_proxied:
                await self.routing.announce_exit(worker)
            await worker.stop_accepting(self._receivers(worker, replaced))

    async def drain(self, placement: Placement, *, replaced: bool = True) -> None:
        if worker := self._workers.get(placement.id):
            await worker.drain(self._receivers(worker, replaced))

    async def stop(self, placement: Placement, timeout_seconds: float, *, replaced: bool = False) -> Exit:
        worker = self._workers.get(placement.id)
        if worker is None:
            return Exit(message="has ended before")
        if timeout_seconds and (not replaced or worker.config.is_proxied):
            await self.routing.announce_exit(worker)
        if timeout_seconds and worker.control is not None and self.sockets.stay_open:
            # Its last clients were not refused, and a request may be on its way; further ones wait for the next worker.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_REQUESTS_SECONDS):
                    await worker.drain(None)
        return await worker.stop(timeout_seconds, self._receivers(worker, replaced))

    def _receivers(self, worker: LocalWorker, replaced: bool) -> str | None:
        return self.adoptions.handover_group(worker.config.key) if replaced else None

    async def signal(self, placement: Placement, number: int) -> None:
        """Send a signal to the worker's process alone, unless it has ended."""
        if (worker := self._workers.get(placement.id)) is not None:
            await self.children.try_signal(worker.process, worker.exited, number)

    async def wait_for_exit(self, placement: Placement) -> Exit:
        """Wait for the worker's exit and, if it was never ready, for its output in the log file; returns the exit.

        Also waits for the rest of the process group of a worker that was asked to end.
        """
        worker = self._workers.get(placement.id)
        if worker is None:
            return Exit(message="has ended before")
        exit_ = await asyncio.shield(worker.exited)
        if worker.asked_to_end:
            await asyncio.shield(worker.group_ended)
        if worker.ready_at is None:
            # Processes that are left have the output open too, and may write more.
            limit = _SHORT_OUTPUT_SECONDS if exit_.group_left else _LAST_OUTPUT_SECONDS
            await self.output.wait_until_stored(worker.output, limit)
        self._last_outputs[placement.id] = worker.output
        if len(self._last_outputs) > MAX_TAILS:
            del self._last_outputs[next(iter(self._last_outputs))]
        self._workers.remove(worker)
        return exit_

    def counts(self, placement: Placement) -> Counts | None:
        return self.tallies.counts(placement)

    async def stacks(self, worker: str, seconds: float) -> WorkerStacks:
        return await self._stacks.stacks(worker, seconds)

    def queued_connections(self, server: ServerConfig) -> int:
        """The number of connections in listen backlogs, or handed over but not yet taken by a worker. Never blocks."""
        return sum(map(accept_queue, self.sockets.of(server))) + self.adoptions.queued_connections(server.key)

    async def logs(self, name: str, lines: int, since: float = 0.0, worker: str = "") -> list[str]:
        key = self._last_outputs.get(worker, "")
        await self.output.wait_until_stored(key, _SHORT_OUTPUT_SECONDS)
        if (tail := self.output.last_lines(key, lines)) is not None:
            return tail
        path = self.output.paths.get(name)
        return await asyncio.to_thread(last_lines, path, lines, since) if path else []

    async def aclose(self) -> None:
        workers = list(self._workers.values())
        # A worker that cannot be stopped must not keep the rest open.
        await asyncio.gather(*(self.stop(worker.placement, 0) for worker in workers), return_exceptions=True)
        for worker in workers:
            self._workers.remove(worker)
        self._left_groups.kill_all()
        self.activator.forget_all_and_close_held()
        await self.adoptions.close_all()
        await self.sockets.close_all()
        self.app_zygotes.close()
        self.zygotes.close()
        self.output.shut_down()

    def attach_keeper(self, keeper_pid: int) -> None:
        """Switch to a new keeper: kill the zygotes of the dead keeper, and let the new keeper watch the workers."""
        self.children.keeper_pid = keeper_pid
        self.kill_zygotes()
        workers = (worker.process for worker in self._workers.values())
        for pid, start in (*self.app_zygotes.processes, *workers, *self._left_groups.leaders):
            self.keeper.send({"op": "watch", "pid": pid, "start": start})

    def kill_zygotes(self) -> None:
        """Kill the zygotes of a dead keeper: their forks would not become children of the next one."""
        for pid, start in (*self.zygotes.processes, *self.app_zygotes.processes):
            if start is not None:
                signal_process(pid, start, signal.SIGKILL, group=True)

    def handle_exit_report(self, report: Message) -> None:
        """Handle the keeper's report that a child has exited, or that the rest of its process group has."""
        pid = report["pid"]
        if report.get("event") == "gone":
            self._left_groups.handle_gone(pid)
        elif pid not in self._left_groups:
            self._handle_exit(report)
        elif not report.get("group_left"):
            # A new keeper, which was asked to watch an exited leader, has found no process of its group.
            self._left_groups.handle_gone(pid)
        self.keeper.send({"op": "heard", "sequence": report["sequence"]})

    def _handle_exit(self, report: Message) -> None:
        exit_ = Exit.from_report(report.get("status"), report.get("signal"))
        exit_ = replace(exit_, group_left=bool(report.get("group_left")))
        if self._memory_kills.explains(exit_):
            exit_ = replace(exit_, message=f"{exit_.message} (out of memory: oom_kill of its control group)")
        worker = self._by_pid.pop(report["pid"], None)
        if worker is not None:
            self._handle_worker_exit(worker, exit_)
        elif not self.app_zygotes.handle_exit(report["pid"], exit_):
            self.children.early[report["pid"]] = exit_
        self.children.forget(report["pid"])

    async def end_left_groups(self) -> None:
        """End the processes that programs have left behind in their process groups, each within its stop_timeout."""
        await self._left_groups.end_all()

    def _handle_worker_exit(self, worker: LocalWorker, exit_: Exit) -> None:
        worker.record_exit(exit_)
        if exit_.group_left:
            self._left_groups.add(worker)
        self.forker.room.clear_exhausted()
        if worker.tally is not None:
            placement = worker.placement
            self.tallies.collect_final_counts(
                placement.server, f"{placement.id}:{placement.pid}", worker.tally
            )
            worker.tally = None
        self.activator.close_unused_socket_pair(worker.config.key, self._workers.of(worker.config.key))
        self.keeper.send({"op": "drop", "name": f"{fd_store.WORKER}{worker.placement.id}"})
