"""The supervisor's process: its link to the keeper, the pool that it manages, its runtime files, and its shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from enum import IntEnum, auto
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from poolctl import __version__, bootstrap
from poolctl.clock import Clock
from poolctl.config import EventsTable, MetricsTable, ServerConfig, Tables, maximum_pool_stop_seconds
from poolctl.control.answers import PingResult, Result, SupervisorIdentity
from poolctl.control.client import write_exit
from poolctl.control.control_server import ControlServer, DescriptorReserve, Handler, Progress, Request
from poolctl.control.pool_lock import PoolLocks, user_locks
from poolctl.control.pool_paths import SOCKET_NAME, restore_private_directory, state_dir
from poolctl.control.protocol import CHANGING_VERBS, PROTOCOL
from poolctl.core.core import Core, RunnerEventForwarder
from poolctl.core.server_entry import Entry
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.core.workqueue import caused_by
from poolctl.daemon_threads import in_daemon_thread
from poolctl.errors import ControlError
from poolctl.exit_codes import FAILED
from poolctl.feature import features
from poolctl.keeper import fd_store, wire
from poolctl.logs.log_tail import REMOVALS, DirectoryWatch
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import NAME as JOURNAL
from poolctl.monitor.journal import Journal
from poolctl.platform import damaged_files, load_or_create_secret, replace_file
from poolctl.runners.helper_process import Helpers
from poolctl.runners.left_overs import (
    LeftOver,
    ProcessNote,
    ProcessNotes,
    end_left_overs,
    left_over_text,
    living,
)
from poolctl.runners.listener_opener import ManagerStore, Opener
from poolctl.runners.local.forking import RunnerContext
from poolctl.runners.local.local_runner import LocalRunner
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.process_link import Duplicate, KeeperLink, LinkHandler, LinkLost
from poolctl.runners.runner_protocol import Exit
from poolctl.selection.selector import Selector
from poolctl.states import Status
from poolctl.units import format_duration
from poolctl.worker.tally import Counts

from . import configuration_reader, feature_parts
from .active_configuration import ActiveConfiguration, SupervisorContext
from .feature_parts import OPENING_VERBS, FeatureParts
from .health import watch_health
from .launch import listen, remove_control_files
from .observers.event_recorder import EventRecorder, LostOutputReporter
from .observers.pool_metrics import HealthReporter, PoolMetrics, metrics_address
from .statistics import Statistics, Totals
from .systemd import SystemdNotifier, link_to_run
from .takeover.keeper_replacement import KeeperExitWatchdog, KeeperWatch, hand_over_to_new_keeper
from .takeover.state_store import SaveTimer, StateStore
from .verbs.verb import Call, Daemon, VerbContext
from .verbs.verbs import AUDITED, Verbs
from .web_addresses import WebServer

if TYPE_CHECKING:
    from types import FrameType

# In the state directory: the secret with which listeners are named in the service manager's store.
_LISTENER_NAMES, _SECRET_BYTES = "listener-names.key", 32
# Longer than it takes to detect that the keeper does not answer, and to kill it.
_END_SECONDS = 15.0
_IDLE_SECONDS = 60.0
_SPARE_SECONDS = 5.0
_LAST_ANSWER_SECONDS = 0.02
# How long a calm supervisor takes no automatic action, before a normal supervisor replaces it.
_CALM_SECONDS = 300.0
_AFTER_START_SECONDS = 1.0
_BETWEEN_IMPORTS_SECONDS = 0.02
_SIGNALLED = 128
_CHECK_SECONDS = 1.0
# The interval of checks for a change that inotify(7) does not report: a parent directory was renamed.
_SELDOM_SECONDS = 60.0

logger = logging.getLogger("poolctl.supervisor")


def exit_at_once(status: int) -> NoReturn:
    """Close the log, and exit without waiting for threads.

    asyncio.run() would start one more thread to wait for them, which a process limit may refuse.
    """
    logging.shutdown()
    os._exit(status)


class Phase(IntEnum):
    """The phases of a supervisor, in order; those after SERVING may be skipped."""

    CONNECTING = auto()  # to the keeper; there are no parts yet
    STARTING = auto()  # it reads the files, or adopts the workers; commands wait
    SERVING = auto()
    STOPPING = auto()  # all servers stop, then the pool ends
    ENDED = auto()  # the pool has ended: only the last answers are sent
    REPLACED = auto()  # another version takes over when the last answers have been sent
    KEEPER_LOST = auto()  # everything goes to another keeper, and this process exits


class Supervisor(LinkHandler, RunnerEventForwarder, Daemon):
    """Runs one pool: the core that controls its servers, the commands, the health checks and the observers.

    `keeper` is the socket of the link to the keeper. A `calm` supervisor, started after repeated crashes, only adopts
    the running workers and serves commands.
    """

    def __init__(self, directory: str, files: Sequence[str], keeper: socket.socket, *, calm: bool) -> None:
        self._keeper_socket = keeper
        self._clock = Clock()
        self._calm = calm
        self.directory = directory
        self.files = list(files)
        self._runtime_files = RuntimeFiles(directory, files)
        self._phase = Phase.CONNECTING
        self._terminating = (
            False  # the keeper has asked for the end, perhaps before this process can begin it
        )
        # The commands of the keeper and supervisor that take over when this process ends.
        self._replacement: tuple[list[str], list[str]] | None = None
        self._orders: set[asyncio.Task[object]] = set()  # commands of clients that left too early
        self._is_recording = False
        self._notifier: SystemdNotifier | None = None

    async def run(self) -> int:
        """Manage the pool until it ends; return the exit status 0, also if the pool ends because its files are invalid.

        If another version takes over, the process exits without returning.
        """
        self._hello: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()
        self._begun, self._over = asyncio.Event(), asyncio.Event()
        self._early_exits: list[wire.Message] = []
        keeper = self._keeper = KeeperLink(self._keeper_socket, self)
        hello = await self._hello
        self._keeper_pid = self._runtime_files.keeper_pid = int(hello["pid"])
        KeeperExitWatchdog(self._keeper_pid, self._replace_keeper_and_exit)
        self._lock = HeldLock(keeper, self.directory, user_locks())
        await self._lock.share_or_acquire()
        with contextlib.suppress(OSError):
            restore_private_directory(self.directory)
        self._run = await link_to_run(keeper, os.environ)
        self._make_parts(hello)
        if (manager := self._opener.manager) is not None:
            await manager.fetch_returned()
        _, fds = await keeper.call({"op": "get", "name": fd_store.CONTROL})
        await self._begin(socket.socket(fileno=fds[0]))
        for report in self._early_exits:
            self.runner.handle_exit_report(report)
        if self._terminating:
            self._confirm_termination_and_stop()
        # From now on this process knows everything that a replacement of the keeper needs.
        with contextlib.suppress(LinkLost):
            await keeper.fetch_missing_entries()
            keeper.send({"op": "adopted"})
        self._runtime_files.try_publish(self._configuration.name)
        self._restoring = asyncio.ensure_future(self._restore_runtime_files())
        await self._over.wait()
        if self._replacement is not None:
            await self._exit_for_next_version(*self._replacement)
        await self._end()
        # Awaited, because a keeper that has not received the message would start another supervisor.
        with contextlib.suppress(LinkLost, TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await keeper.call({"op": "end"})
        keeper.close()
        return 0

    def _make_parts(self, hello: wire.Message) -> None:
        state_directory = self._ensure_state_directory()
        logs = os.path.join(state_directory, "logs")
        os.makedirs(logs, mode=0o700, exist_ok=True)
        manager = None
        if self._run is not None:
            secret = load_or_create_secret(os.path.join(state_directory, _LISTENER_NAMES), _SECRET_BYTES)
            manager = ManagerStore(self._run, self._keeper, secret)
        self._opener = Opener(manager)
        soft, hard = hello["open_files"]
        self._notes = ProcessNotes(self.directory)
        self._helpers = Helpers(self._keeper, self.directory, self._notes)
        environments: dict[str, Mapping[str, str]] = {}
        context = RunnerContext(
            keeper=self._keeper,
            keeper_pid=self._keeper_pid,
            helpers=self._helpers,
            open_files=(soft, hard),
            directory=self.directory,
            logs_directory=logs,
            environments=environments,
            notes=self._notes,
            opener=self._opener,
        )
        self.runner = LocalRunner(context)
        self.runner.events = self
        self._store = StateStore(self._keeper, self.directory)
        self._save_timer = SaveTimer(self._save_changes)
        self._configuration = ActiveConfiguration(
            self.files,
            state_directory,
            self._store,
            environments,
            manager.holds if manager is not None else lambda key: False,
        )
        self._environment = SupervisorContext(
            self._configuration, self._keeper, self.directory, state_directory, self._helpers, self._opener
        )
        self.events = EventBus(self._clock)
        self._killed = KilledPool(self.events)
        self._damage = [f"{path} was damaged, and is not used" for path in damaged_files(state_directory)]
        self._web = WebServer(self._environment, self.events)
        self._metrics = metrics_address(self._web)
        self._parts = FeatureParts(self._environment, self.events, features())
        self._watch = KeeperWatch(self._keeper, self._keeper_pid, self.events)
        for report in self._early_exits:
            self._helpers.handle_exit_report(report)
        self._phase = Phase.STARTING

    def _ensure_state_directory(self) -> str:
        try:
            return state_dir(os.environ, os.path.basename(self.directory), create=True)
        except ControlError as refused:
            # A pool is not started with such a directory, but one that runs must not lose its supervisor.
            fallback = os.path.join(self.directory, "state")
            logger.error("%s: logs and state are kept in %s; fix: %s", refused, fallback, refused.hint)
            os.makedirs(fallback, mode=0o700, exist_ok=True)
            return fallback

    async def _begin(self, listener: socket.socket) -> None:
        """Load the configuration, adopt running workers, and start to answer requests on `listener`.

        If no earlier supervisor of the pool has stored a configuration, the files are read. Requests are accepted
        meanwhile: a ping is answered with `reading` set, and other commands wait.
        """
        self.control = ControlServer(self._handle, DescriptorReserve())
        servers = await self._configuration.take_over()
        self._is_first = servers is None
        if servers is None:
            self.control.replace_listener(listener)
            servers = await self._configuration.read_first_servers()
        if (manager := self._opener.manager) is not None and not self._configuration.problems:
            # Before an address is opened that a returned listener may occupy.
            manager.close_returned(self._configuration.keys_to_listen_on(servers))
        await self._create_core_with_parts(servers)
        if manager is not None:
            for entry in self.core.entries.values():
                if manager.holds(entry.config.key):
                    self.core.expect_listener(entry)
        await self._adopt_workers_and_start_recording()
        if not self._calm:
            watch_health(self.core, self.runner, self.events)
        self.core.observers.add(self._on_entry_changed)
        for entry in self.core.entries.values():
            # Adopted workers may differ from the record, and the core may already have reported that.
            self._on_entry_changed(entry)
        await self._register_verbs_and_serve_metrics()
        if not self._is_first:
            self.control.replace_listener(listener)
        self._phase = Phase.SERVING
        self._begun.set()
        asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end_if_unused)
        self._importing = asyncio.ensure_future(self._run_deferred_startup())
        if self._calm:
            self._report_calm_and_schedule_restart()
            return
        self.core.observers.add(self._end_if_mandatory_failed)

    async def _create_core_with_parts(self, servers: list[ServerConfig]) -> None:
        self._configuration.subscribe(self._set_journal)
        self.core = Core(servers, self.runner, self._clock, self.events, calm=self._calm)
        self._lost = LostOutputReporter(self.core, self.events)
        self._totals = Totals(self.core, self.runner.tallies, self.events, self._store)
        await self._totals.resume()
        self._statistics = Statistics(self.core, self._totals)
        self._parts.create_initial_parts(
            self.core, self.runner, self._statistics.send_samples_to, self._totals, self._store, self._web
        )

    async def _adopt_workers_and_start_recording(self) -> None:
        # While the files have problems, no worker is started, and what a killed pool has left stays.
        if not self._configuration.problems:
            await self._parts.take_over_processes()
        adopted = await restore_and_adopt_workers(
            self.core, self.runner, self._store, self._configuration.placed, self._end_left_overs
        )
        if adopted:
            logger.info("adopted %d workers", adopted)
        if not self._configuration.problems:
            # Features come first, so that they receive the first events too.
            self._configuration.subscribe(self._parts.apply_tables, every_reload=True)
            self._is_recording = True
            EventRecorder(self.core, self.events, self._totals).record_start_and_observe(
                adopted, self.identity()
            )
        for message in self._damage:
            logger.warning(message)
            self.events.record("pool", "damaged", message=message, severity="warning")

    async def _end_left_overs(self, own_pids: Collection[int | None]) -> None:
        """End what a killed pool has left, except processes with `own_pids`.

        If this supervisor has a predecessor, only processes of servers: both may have been killed before a new keeper
        knew all of them.
        """
        if not self._configuration.problems:
            notes = [note for note in self._notes.earlier if self._is_first or note.server]
            await self._killed.end(notes, own_pids)

    async def _run_deferred_startup(self) -> None:
        """Import modules that a start does not need, before an upgrade can replace the package's files."""
        await asyncio.sleep(_AFTER_START_SECONDS)
        self._web.reconcile()  # until it has looked for its process, it keeps all reported exits
        await self._verbs.build.digest()
        for name in (*configuration_reader.modules(), *feature_parts.modules()):
            # All at once would block the loop for 15 ms.
            await asyncio.sleep(_BETWEEN_IMPORTS_SECONDS)
            try:
                import_module(name)
            except Exception:
                # The package is being replaced. The other modules are imported nevertheless.
                logger.exception("%s cannot be imported", name)

    def _set_journal(self, tables: Tables) -> None:
        environment = self._environment
        path = os.path.join(environment.state_directory, JOURNAL)
        journal = Journal.configured(tables.get(EventsTable), path, environment.directory)
        if (damaged := self.events.write_to(journal)) and not self._is_recording:
            lines = f"{damaged} damaged line{'s' * (damaged > 1)}"
            self._damage.append(f"{journal.path} ends with {lines}, which nobody can read: left out")

    async def _register_verbs_and_serve_metrics(self) -> None:
        context = VerbContext(
            self.core, self.runner, self.events, self, self._configuration, self._parts.over
        )
        self._verbs = Verbs(context)
        self._verbs.add("stats", self._statistics.stats)
        self._verbs.add("monitor", self._statistics.monitor)
        metrics = PoolMetrics(self.core, self._statistics, self.identity, self.own_processes, self._parts)
        health = HealthReporter(self.core, self._parts.route_healths)
        self._verbs.add("metrics", metrics.verb)
        self._verbs.add("health", health.answer_health_verb)
        self._parts.add_to(self._verbs)
        self._configuration.subscribe(lambda tables: self._metrics.serve_table(tables.get(MetricsTable)))
        await self._metrics.wait_for_opening_attempt()
        self._perform: Handler = self._verbs.handle
        if os.environ.get("NOTIFY_SOCKET") and not self._configuration.problems:
            self._notifier = SystemdNotifier(
                os.environ, self.core, self._parts.wait_for_opening_attempts, self._run
            )
            self._perform = self._notifier.wrap(self._verbs.handle)

    def _report_calm_and_schedule_restart(self) -> None:
        logger.error("taking no action for %d s: the supervisor has died too often", _CALM_SECONDS)
        duration = format_duration(_CALM_SECONDS)
        message = f"the supervisor has died too often: for {duration} it serves commands only"
        self.events.record("pool", "calm", message=message, severity="error")
        asyncio.get_running_loop().call_later(_CALM_SECONDS, self._exit_for_successor)

    async def _handle(self, request: Request, progress: Progress) -> object:
        if self._phase < Phase.SERVING:
            if request.verb == "ping":
                return PingResult(**vars(self.identity()), reading=True)
            await self._wait_until_ready_for(request)
        if self._configuration.problems:
            ended = Result(ended=True, keeper_pid=self.shut_down_soon())
            if request.verb == "stop":
                return ended
            problems = tuple(self._configuration.problems)
            return replace(ended, errors=problems, exit_code=self._configuration.exit_code)
        if self._phase > Phase.STOPPING:
            # This process is about to exit: a client that gets no answer asks the next supervisor.
            raise ConnectionAbortedError
        answer = await self._perform(request, progress)
        self._runtime_files.republish_as(self._configuration.name)
        # Saved first, so that a successor knows everything that clients have been told.
        self._save_at_once()
        return answer

    async def _wait_until_ready_for(self, request: Request) -> None:
        """Wait until the configuration files have been read, so that commands can be handled.

        If the request is to stop the whole pool, reading is cancelled.
        """
        selector = request.body.get("selector") or {}
        if request.verb == "stop" and isinstance(selector, dict) and not any(selector.values()):
            self._configuration.cancel_first_read()
        try:
            await self._begun.wait()
        except asyncio.CancelledError:
            # The client has left, but a command that changes servers is completed nevertheless.
            if request.verb in AUDITED:
                order = asyncio.ensure_future(self._handle(request, lambda line: None))
                self._orders.add(order)
                order.add_done_callback(self._orders.discard)
            raise

    async def _restore_runtime_files(self) -> None:
        async for listener in self._runtime_files.restore_when_removed(self._lock):
            if listener is not None:
                self._keeper.send({"op": "put", "name": fd_store.CONTROL}, [listener.fileno()])
                self.control.replace_listener(listener)
            self._store.rewrite_file()
            self._notes.rewrite()
            self._save_timer.save_now()

    def _exit_for_successor(self) -> None:
        """Save the state and exit without stopping anything; the keeper then starts a successor, which takes over."""
        self._save()
        exit_at_once(0)

    def _on_entry_changed(self, entry: Entry) -> None:
        self._configuration.remember_findings(entry)
        if not entry.observed.overlap_found and self._configuration.not_overlapping.has(entry.config):
            self.core.note_overlap_impossible(entry)
        self._store.note_changed()
        self._save_timer.note_change()

    def _save_at_once(self) -> None:
        # The core may not have reported its latest changes yet.
        if self.core.take_changed():
            self._store.note_changed()
        self._save_timer.save_now()

    def _save_changes(self) -> None:
        self._store.save(self.core.entries, self._configuration.take_unsaved(self.core))
        self._totals.save()

    async def _end(self) -> None:
        """Close everything, after answers in progress are finished."""
        self._restoring.cancel()
        self._importing.cancel()
        self._parts.over.set()
        await self.control.close()
        for part in reversed([*self._parts]):
            await part.stop_serving()
        await self._metrics.close()
        await self._web.aclose()
        await self.runner.aclose()
        if self._is_recording:
            self.events.record("pool", "supervisor ended", pid=os.getpid())
        self.events.flush()
        for part in reversed([*self._parts]):
            await part.aclose()
        self.events.close()
        self._notes.close(self._killed.left)

    def _begin_to_stop(self) -> None:
        """Begin to stop every server in order, after which the supervisor ends. Repeated calls have no effect."""
        if self._phase is Phase.SERVING:
            self._phase = Phase.STOPPING
            if self._notifier is not None:
                self._notifier.notify_stopping()
            self._stopping = asyncio.ensure_future(self._stop_servers_and_shut_down())

    def _save(self) -> None:
        """Save the whole state for a successor, including events and features."""
        # The core may not have reported its latest changes yet.
        self._store.note_changed()
        self._save_timer.save_now()
        self.events.flush()
        for part in self._parts:
            part.flush()

    def add_up_counts(self, server: str, worker: str, counts: Counts) -> None:
        self._totals.add_up(server, worker, counts)

    def _end_if_mandatory_failed(self, entry: Entry) -> None:
        """If this server is mandatory and has failed, begin to end the pool; record the status for `poolctl run`.

        A server that keeps failing at its restart limit counts as failed.
        """
        has_failed = entry.failed or entry.keeps_failing
        ends_pool = has_failed and entry.config.mandatory and not entry.removed
        if self.core.reason or not ends_pool:
            return
        why = f": {entry.observed.failure.message}" if entry.observed.failure else ""
        problem = "has failed" if entry.failed else "keeps failing"
        reason = f"{entry.name} {problem}, and it is mandatory{why}"
        logger.error("the pool ends: %s", reason)
        status = failed_status(entry.observed.last_exit)
        write_exit(self.directory, status=status, reason=reason, keeper_pid=self._keeper_pid)
        self.core.reason = f"was stopped: {reason}"
        self._begin_to_stop()

    async def _stop_servers_and_shut_down(self) -> None:
        if not self._configuration.problems:
            cause = self.core.reason.removeprefix("was stopped: ") or "asked to terminate"
            # Without a reason of the core, the end was requested.
            severity = "error" if self.core.reason else "info"
            self.events.record("pool", "stopping", cause=cause, severity=severity)
            with caused_by(cause):
                options = {"unit": self._terminating}
                await self._verbs.perform("stop", Call(Selector(), options, lambda line: None))
        self.shut_down_soon()

    def hand_over(self, keeper: list[str], supervisor: list[str]) -> None:
        self._phase = Phase.REPLACED
        self._replacement = keeper, supervisor
        asyncio.get_running_loop().call_later(_LAST_ANSWER_SECONDS, self._over.set)

    async def wait_for_effects(self, verb: str, call: Call, result: Result) -> Result:
        result = await self._parts.extend(verb, call, result)
        if verb not in CHANGING_VERBS or result.ended:
            return result
        self._save_at_once()
        result = await self._parts.wait_for_effects(verb, call, result)
        if verb == "start":
            if (manager := self._opener.manager) is not None:
                # Listeners of other servers, which may wait for a dependency, may have waiting connections.
                wanted = [entry.config for entry in self.core.entries.values() if entry.wanted]
                manager.close_returned(self._configuration.keys_to_listen_on(wanted))
            notices = (*self._killed.take_notices(), *self._damage)
            self._damage = []
            result = replace(result, warnings=(*result.warnings, *notices))
        if verb not in OPENING_VERBS or call.options.get("dry_run"):
            return result
        await self._metrics.wait_for_opening_attempt()
        return replace(result, warnings=(*result.warnings, *self._metrics.warnings))

    async def finish(self) -> None:
        for part in self._parts:
            await part.finish()
        await self.runner.end_left_groups()

    def leave_listeners_open(self) -> bool:
        if (manager := self._opener.manager) is not None:
            manager.stays_open = True
        return manager is not None

    def shut_down_soon(self) -> int:
        if self._phase < Phase.ENDED:
            self._phase = Phase.ENDED
            if self._notifier is not None:
                self._notifier.notify_stopping()
            # No further supervisor may be started: it would have nothing to do.
            self._keeper.send({"op": "last"})
            if not self._configuration.problems:
                # With problems no worker was started, and the state of an earlier pool is needed once they are fixed.
                self._store.delete_files_for_good()
            self._runtime_files.withdraw()
            # Later, because the answer that reports the end must be sent first.
            asyncio.get_running_loop().call_later(_LAST_ANSWER_SECONDS, self._over.set)
        return self._keeper_pid

    def _end_if_unused(self) -> None:
        if self.core.servers.has_never_run and not (
            self._verbs.used or self._parts.any_serves_without_servers
        ):
            self.shut_down_soon()

    def output_lost(self, name: str, count: int, path: str, reason: str) -> None:
        self._lost.report_lost_bytes(name, count, path, reason)

    def identity(self) -> SupervisorIdentity:
        """Return the identity of this supervisor and its pool. `not_served` is None if empty."""
        lost_events = [f"[events]: {self.events.problem}"] if self.events.problem else []
        problems = [problem for part in self._parts for problem in part.problems]
        not_served = (*problems, *self._metrics.warnings, *lost_events)
        return SupervisorIdentity(
            name=self._configuration.name,
            files=tuple(self.files),
            version=__version__,
            protocol=PROTOCOL,
            python=sys.version.split()[0],
            supervisor_pid=os.getpid(),
            keeper_pid=self._keeper_pid,
            calm=self._calm or None,
            not_served=not_served or None,
        )

    def own_processes(self) -> dict[str, int]:
        """The pids of the pool's own processes, by their names in `status` and metrics."""
        pids = {"keeper": self._keeper_pid, "supervisor": os.getpid(), **self._helpers.pids}
        for part in self._parts:
            pids |= part.pids
        return pids

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """Handle a message from the keeper."""
        event = message.get("event")
        if event == "hello":
            self._hello.set_result(message)
        elif event in ("exit", "gone"):
            if self._phase is Phase.CONNECTING:
                self._early_exits.append(message)
            else:
                self._helpers.handle_exit_report(message)
                self.runner.handle_exit_report(message)
        elif event == "ping":
            self._keeper.send({"op": "pong"})
        elif event == "terminate":
            self._terminating = True
            if self._phase >= Phase.SERVING:
                self._confirm_termination_and_stop()
            else:
                self._keeper.send({"op": "terminating"})
                if self._phase is Phase.STARTING:
                    self._configuration.cancel_first_read()

    def _confirm_termination_and_stop(self) -> None:
        servers = (entry.config for entry in self.core.entries.values())
        limit = maximum_pool_stop_seconds(servers, self._configuration.tables.stop_seconds)
        # The keeper ends the pool by itself if the supervisor needs longer than this.
        self._keeper.send({"op": "terminating", "seconds": limit + _SPARE_SECONDS})
        self._begin_to_stop()

    async def _exit_for_next_version(self, keeper: list[str], supervisor: list[str]) -> NoReturn:
        """Have the keeper start another version's supervisor, and then that version of itself; end this process."""
        logger.info("another version takes over: %s", supervisor)
        self._save()
        order = {
            "op": "upgrade",
            "argv": [*keeper, self.directory],
            "supervisor": [*supervisor, self.directory, *self.files],
        }
        with contextlib.suppress(LinkLost):
            await self._keeper.call(order)
        # From here on the successor does everything.
        exit_at_once(0)

    def on_link_lost(self) -> None:
        """Handle the exit of the keeper."""
        if self._phase is Phase.ENDED:
            self._over.set()
            return
        # This process does no more work from here on; the successor does the rest.
        if self._keeper.whole:
            logger.error("the keeper is gone; another one is started")
            self.events.record("pool", "keeper lost", message="another one is started")
            self._save()
        self._replace_keeper_and_exit()

    def _replace_keeper_and_exit(self, hung_loop_frame: FrameType | None = None) -> None:
        """Pass all sockets and state to a new keeper, then exit. `hung_loop_frame` is where the loop hangs, or None."""
        if self._phase in (Phase.ENDED, Phase.KEEPER_LOST):
            return
        self._phase = Phase.KEEPER_LOST
        if self._keeper.whole:
            self.runner.kill_zygotes()
            command = bootstrap.command(sys.executable, "supervisor", self.directory, *self.files)
            hand_over_to_new_keeper(
                self.directory,
                bootstrap.command(sys.executable, "keeper", isolated=True),
                command,
                self._keeper.recorded_entries(),
                stop_pool=self._terminating,
            )
        # Logging itself may be the cause of the hang.
        if hung_loop_frame is not None:
            stack = "".join(traceback.format_stack(hung_loop_frame))
            logger.error("the keeper ended while this process hung here:\n%s", stack)
        if not self._keeper.whole:
            logger.error("the keeper is gone, and not everything is known here that it held")
        exit_at_once(0 if self._keeper.whole else 1)


def failed_status(exit_: Exit | None) -> int:
    """The exit status as a shell reports it (128 + signal if killed); FAILED if it would be 0 or is unknown."""
    if exit_ is None:
        return FAILED
    if exit_.signal is not None:
        return _SIGNALLED + exit_.signal
    return exit_.status or FAILED


async def restore_and_adopt_workers(
    core: Core,
    runner: LocalRunner,
    store: StateStore,
    placed: Mapping[str, ServerConfig],
    end_others: Callable[[Collection[int | None]], Awaitable[None]],
) -> int:
    """Restore the recorded desired state and adopt the running workers; return the number of adopted workers.

    `placed` has, by worker id, the original configuration of workers whose server's configuration has changed. A
    running server without a recorded state is kept running. `end_others` ends noted processes other than those with
    these pids, before a server is started.
    """
    recorded = await store.restore_entries(core.entries)
    servers = {name: entry.config for name, entry in core.entries.items()}
    adopted = await runner.adopt_workers_and_end_others(servers, placed)
    await end_others(runner.pids)
    running = {worker.placement.server for worker in adopted.workers if not worker.left.done()}
    unknown = running - recorded
    for name in unknown:
        core.mark_found_running(core.entries[name])
    for worker in adopted.workers:
        entry = core.entries[worker.placement.server]
        core.adopt_worker(entry, _adopted_worker(worker), generation_recorded=entry.name not in unknown)
    for name, (hook, placement) in adopted.hooks.items():
        core.adopt_hook(core.entries[name], hook, placement)
    _adopt_listeners_and_resume(core, adopted.endpoints)
    return len(adopted.workers)


def _adopted_worker(local: LocalWorker) -> Worker:
    placement = local.placement
    phase = WorkerPhase.READY if local.ready_at is not None else WorkerPhase.STARTING
    if local.resting == "new" and local.config.health.gated:
        phase = WorkerPhase.STARTING
    if local.left.done():
        phase = WorkerPhase.DRAINING
    return Worker(
        placement.id,
        placement.generation,
        placement.index,
        local.config,
        phase,
        placement,
        local.ready_at,
        idle=local.idle,
        expired=local.expired,
        # Unknown until the worker reports. If it accepts already, being told to accept changes nothing.
        resting=bool(local.resting) or (phase is WorkerPhase.STARTING and not local.config.command),
        # The previous supervisor took it out of rotation because its probes failed.
        health=Status.KO if local.resting == "told" else Status.UNKNOWN,
    )


def _adopt_listeners_and_resume(core: Core, endpoints: Mapping[str, tuple[str, ...]]) -> None:
    for entry in core.entries.values():
        for config in (entry.config, *(worker.config for worker in entry.observed.workers.values())):
            # If the pool binds no listener for the server, it counts as open once there is a worker.
            counts_as_open = (not config.listens or config.binds_itself) and entry.observed.workers
            if counts_as_open or endpoints.get(config.key):
                core.adopt_listener(entry, config, endpoints.get(config.key, ()))
        core.resume_adopted_server(entry)


class HeldLock:
    """The pool's lock (see pool_lock), held by this process and, as an entry of its store, by the keeper."""

    def __init__(self, keeper: KeeperLink, directory: str, locks: PoolLocks) -> None:
        self._keeper = keeper
        self._directory = directory
        self._locks = locks
        self._problem = ""

    async def share_or_acquire(self) -> None:
        """Hold the keeper's lock. A keeper that was started without one, because of a problem, gets a new lock."""
        meta, fds = await self._keeper.call({"op": "get", "name": fd_store.LOCK})
        if fds:
            self._keeper.remember_entry(fd_store.LOCK, meta, [Duplicate(fd) for fd in fds])
        else:
            self._try_acquire()

    def acquire_if_lost(self) -> None:
        """Acquire the lock if there is none, or if its file was removed: another process would find the lock free."""
        _, duplicates = self._keeper.entries.get(fd_store.LOCK, (None, []))
        if not any(self._locks.is_in_place(duplicate.fileno()) for duplicate in duplicates):
            self._try_acquire()

    def _try_acquire(self) -> None:
        try:
            lock = self._locks.acquire(self._directory)
        except OSError as error:
            is_taken = isinstance(error, BlockingIOError)
            problem = (
                "another supervisor runs for this pool" if is_taken else f"the pool has no lock: {error}"
            )
            if problem != self._problem:
                self._problem = problem
                logger.error(problem)
            return
        self._problem = ""
        self._keeper.send({"op": "put", "name": fd_store.LOCK}, [lock])
        os.close(lock)


class RuntimeFiles:
    """Maintains the control socket, info.json and the symlink `@name` of a pool until `withdraw` removes them."""

    def __init__(self, directory: str, files: Sequence[str]) -> None:
        self._directory = directory
        self._files = list(files)
        self._started = time.time()
        self.keeper_pid = 0
        self._name = ""
        self._failure = ""
        self._complete = True
        self.withdrawn = False

    def try_publish(self, name: str) -> None:
        """Write info.json and the symlink `@name`, and remove the previous name's symlink. Errors are only logged."""
        if self.withdrawn:
            return
        info = {
            "name": name,
            "files": self._files,
            "keeper_pid": self.keeper_pid,
            "supervisor_pid": os.getpid(),
            "started": self._started,
            "version": __version__,
        }
        was_complete, self._complete = self._complete, False
        try:
            if self._name not in ("", name):
                link = self._link()
                if os.path.islink(link) and os.readlink(link) == os.path.basename(self._directory):
                    os.unlink(link)
            self._name = name
            replace_file(os.path.join(self._directory, "info.json"), json.dumps(info).encode())
            self._link_name()
            self._complete = True
        except OSError as error:
            if was_complete:
                logger.warning("cannot write the pool's runtime files: %s", error)

    def republish_as(self, name: str) -> None:
        """Publish the pool under this name, if it is published under another."""
        if self._name and name != self._name:
            self.try_publish(name)

    async def restore_when_removed(self, lock: HeldLock) -> AsyncIterator[socket.socket | None]:
        """Restore files that were removed after `try_publish`, until `withdraw`; yields after each restoration.

        The yielded value is a new control socket to listen on, or None if the old socket is still there. The file of
        `lock` is restored at once.
        """
        # Files that are missing at the start are restored at once, because clients have been waiting.
        pause_seconds = _CHECK_SECONDS if self._all_files_exist() else 0.0
        while True:
            await self._wait_for_file_removal()
            lock.acquire_if_lost()
            # Wait, because further files may be removed.
            await asyncio.sleep(pause_seconds)
            pause_seconds = _CHECK_SECONDS
            if self.withdrawn:
                return
            if self._all_files_exist():
                if not self._complete:
                    self.try_publish(self._name)
                continue
            try:
                restore_private_directory(self._directory)
                listener = self._listen_if_socket_missing()
                self.try_publish(self._name)
            except OSError as error:
                if str(error) != self._failure:
                    self._failure = str(error)
                    logger.error(
                        "the pool's runtime directory has vanished and cannot be restored: %s", error
                    )
                continue
            yield listener
            self._failure = ""
            if self._complete:
                logger.warning("%s had vanished, at least in part, and was restored", self._directory)

    async def _wait_for_file_removal(self) -> None:
        """Wait until any file is removed from the pool's runtime directory, for at most a minute.

        Return at once if the control socket or info.json is missing, or if the directory cannot be watched.
        """
        loop, removed = asyncio.get_running_loop(), asyncio.Event()
        with contextlib.suppress(OSError, TimeoutError), contextlib.closing(DirectoryWatch()) as watch:
            watch.add_if_new(self._directory, REMOVALS)
            loop.add_reader(watch.fd, removed.set)
            try:
                if self._complete and self._all_files_exist():
                    async with asyncio.timeout(_SELDOM_SECONDS):
                        await removed.wait()
            finally:
                loop.remove_reader(watch.fd)

    def _all_files_exist(self) -> bool:
        return all(os.path.lexists(f"{self._directory}/{name}") for name in (SOCKET_NAME, "info.json"))

    def _listen_if_socket_missing(self) -> socket.socket | None:
        lock = os.open(f"{self._directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # If another process holds the lock, it is starting a pool here, and the next check will find its socket.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = f"{self._directory}/{SOCKET_NAME}"
            return None if os.path.lexists(path) else listen(path)
        finally:
            os.close(lock)

    def withdraw(self) -> None:
        """Remove the control socket, info.json and the symlink with the pool's name.

        A second call has no effect, because the files may then belong to another supervisor.
        """
        if not self.withdrawn:
            self.withdrawn = True
            remove_control_files(self._directory)

    def _link_name(self) -> None:
        key = os.path.basename(self._directory)
        link = self._link()
        try:
            if os.path.islink(link) and not os.path.exists(os.path.join(link, SOCKET_NAME)):
                os.unlink(link)
            os.symlink(key, link)
        except OSError as error:
            if not os.path.islink(link) or os.readlink(link) != key:
                logger.warning("the name %r is not available: %s", self._name, error)

    def _link(self) -> str:
        return os.path.join(os.path.dirname(self._directory), f"@{self._name}")


class KilledPool:
    """The processes `left` by a killed pool, and messages about them for the client that starts the pool."""

    def __init__(self, events: EventBus) -> None:
        self.left: Sequence[ProcessNote] = ()
        self._notices: list[str] = []
        self._events = events
        self._ending: asyncio.Task[None] | None = None

    async def end(self, notes: Sequence[ProcessNote], own_pids: Collection[int | None]) -> None:
        """End these processes, except processes with `own_pids`; return once all have stopped listening.

        Workers that finish their requests, and HAProxy, may end later.
        """
        foreign = [note for note in notes if note.pid not in own_pids]
        self.left = await in_daemon_thread(lambda: living(foreign)) if foreign else ()
        if self.left:
            released = asyncio.Event()
            self._ending = asyncio.ensure_future(self._end(self.left, released))
            await released.wait()

    async def _end(self, left: Sequence[ProcessNote], released: asyncio.Event) -> None:
        loop, reported = asyncio.get_running_loop(), list[str]()

        def begin_new_pool() -> None:
            self._report(reported)
            released.set()

        def on_released(sessions: Sequence[LeftOver]) -> None:
            reported.extend(_messages(sessions))
            loop.call_soon_threadsafe(begin_new_pool)

        try:
            ended = await in_daemon_thread(lambda: end_left_overs(left, on_released=on_released))
            warnings = [warning for session in ended for warning in session.warnings]
            self._report([warning for warning in warnings if warning not in reported])
        except Exception:
            logger.exception("what a killed pool has left could not be ended")
        finally:
            released.set()

    def _report(self, messages: Sequence[str]) -> None:
        self._notices += messages
        for message in messages:
            logger.warning(message)
            self._events.record("pool", "left over", message=message, severity="warning")

    def take_notices(self) -> list[str]:
        """The messages that no client has been told yet."""
        notices, self._notices = self._notices, []
        return notices


def _messages(sessions: Sequence[LeftOver]) -> list[str]:
    finishing = ", ".join(dict.fromkeys(session.note.label for session in sessions if session.pidfds))
    warnings = [warning for session in sessions if not session.pidfds for warning in session.warnings]
    if not (labels := [session.note.label for session in sessions if session.is_ours]):
        return warnings
    outcome = f"still finishing: {finishing}" if finishing else "ended"
    return [f"{left_over_text(labels)}; {outcome}", *warnings]
