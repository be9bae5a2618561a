"""The pool that a supervisor manages: its configuration, its core, and the answers on the control socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from poolctl import __version__
from poolctl.clock import Clock
from poolctl.config import ServerConfig, longest_stop_seconds
from poolctl.control.answers import About, PingResult, ProgressLine, Result
from poolctl.control.control_server import ControlServer, DescriptorReserve, Handler, Progress, Request
from poolctl.control.pool_processes import PoolExit, write_exit
from poolctl.control.protocol import PROTOCOL
from poolctl.core.core import Core
from poolctl.core.decide import Trace
from poolctl.core.server_entry import Entry
from poolctl.core.servers import caused_by
from poolctl.exit_codes import FAILED
from poolctl.keeper import fd_store, wire
from poolctl.runners.process_link import KeeperLink
from poolctl.runners.runner_protocol import Exit, Placement
from poolctl.runners.runner_registry import RunnerSite, make_runner, serves_on
from poolctl.selection.matcher_client import close_matcher
from poolctl.selection.selector import Selector
from poolctl.units import format_duration

from . import feature_parts, health
from .active_configuration import ActiveConfiguration, ConfigurationReader, PoolEnvironment
from .health import watch_health
from .observers import observers
from .observers.event_recorder import LostOutput
from .observers.observers import Observers
from .runtime_files import RuntimeFiles
from .takeover.adopt_workers import adopt, take_in_late
from .takeover.keeper_replacement import KeeperWatch
from .takeover.state_store import SaveTimer, StateStore
from .verbs import verbs
from .verbs.verb import Call
from .verbs.verbs import AUDITED, Verbs

if TYPE_CHECKING:
    from .systemd import Service

# Parts whose modules are imported only when needed.
_PARTS = (health, observers)
_IDLE_SECONDS = 60.0
_SPARE_SECONDS = 5.0
_LAST_ANSWER_SECONDS = 0.02
# A calm supervisor takes no action by itself for this long; after that another supervisor may try.
_CALM_SECONDS = 300.0
_AFTER_START_SECONDS = 1.0
_BETWEEN_IMPORTS_SECONDS = 0.02
_SIGNALLED = 128

logger = logging.getLogger("poolctl.supervisor")


async def import_slowly(names: Iterable[str]) -> None:
    """Import these modules one at a time, with pauses: all at once would block the loop for 15 ms."""
    for name in names:
        await asyncio.sleep(_BETWEEN_IMPORTS_SECONDS)
        try:
            import_module(name)
        except Exception:
            # Its package is being replaced: that must not stop the others.
            logger.exception("%s cannot be imported", name)


class ManagedPool:
    """The daemon: a core over a runner, with verbs, health checks and observers around it.

    `over` is set when its process should end: because nothing is left to do, or so that the processes that the commands
    of `replacement` (a keeper's and a supervisor's) start take over.
    """

    def __init__(
        self,
        directory: str,
        files: Sequence[str],
        state_directory: str,
        keeper: KeeperLink,
        hello: wire.Message,
        runtime_files: RuntimeFiles,
        reader: ConfigurationReader,
        *,
        calm: bool,
    ) -> None:
        self.directory = directory
        self.files = list(files)
        self.over = asyncio.Event()
        self._begun = asyncio.Event()
        self._orders: set[asyncio.Task[object]] = set()  # of clients that left before the pool had begun
        self.replacement: tuple[list[str], list[str]] | None = None
        self._keeper = keeper
        self._keeper_pid = int(hello["pid"])
        self._runtime_files = runtime_files
        self._calm = calm
        self._ending = self._terminated = self._mandatory_failed = False
        logs = os.path.join(state_directory, "logs")
        os.makedirs(logs, mode=0o700, exist_ok=True)
        soft, hard = hello["open_files"]
        environments: dict[str, Mapping[str, str]] = {}
        site = RunnerSite(
            keeper=keeper,
            keeper_pid=self._keeper_pid,
            open_files=(soft, hard),
            directory=directory,
            logs_directory=logs,
            environments=environments,
        )
        self.runner = make_runner(os.environ, site)
        self.runner.events = self
        self._clock = Clock()
        self._store = StateStore(keeper, directory)
        self._save_timer = SaveTimer(self._save)
        self._configuration = ActiveConfiguration(files, state_directory, self._store, environments, reader)
        self._environment = PoolEnvironment(self._configuration, keeper, directory, state_directory)
        self._observers = Observers(self._environment, self._clock, self)
        self.events = self._observers.events
        self._parts = self._observers.parts
        self._watch = KeeperWatch(keeper, self._keeper_pid, self.events)
        self._service: Service | None = None

    @property
    def name(self) -> str:
        """The name of the pool, by which it is found from any directory."""
        return self._configuration.name

    @property
    def stop_seconds(self) -> float:
        """How long a stop of everything may take by the servers' own limits."""
        servers = (each.config for each in self.core.entries.values())
        return longest_stop_seconds(servers, self._configuration.tables.stop_seconds) + _SPARE_SECONDS

    async def begin(self, listener: socket.socket) -> None:
        """Load the configuration and answer requests from now on; an invalid one is the answer to the first.

        The first supervisor of a pool accepts requests while it reads the files: a ping shows that it does.
        """
        self._control = ControlServer(self._handle, DescriptorReserve())
        servers = await self._configuration.taken_over()
        is_first = servers is None
        if servers is None:
            self._control.listen(listener)
            servers = await self._configuration.first_servers()
        await self._make_core(servers)
        await self._adopt(servers)
        recovering = any(entry.observed.recovering for entry in self.core.entries.values())
        if recovering and not self._calm:
            watch_health(self.core, self.events)
        self.core.listeners.add(self._changed)
        for entry in self.core.entries.values():
            # Adopted workers may differ from the record, and the core may already have reported that.
            self._changed(entry)
        await self._prepare_answers()
        if not is_first:
            self._control.listen(listener)
        self._begun.set()
        asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end_if_unused)
        self._restoring = asyncio.ensure_future(self._restore_runtime_files())
        self._importing = asyncio.ensure_future(self._import_rest(is_watching=recovering))
        if self._calm:
            self._serve_commands_only()
            return
        self.core.listeners.add(self._end_if_mandatory_failed)
        if not self._configuration.problems:
            self._adopting_late = asyncio.ensure_future(self._adopt_late())

    async def _make_core(self, servers: list[ServerConfig]) -> None:
        self._observers.keep_journal()
        trace = Trace.configured(os.environ)
        self.core = Core(servers, self.runner, self._clock, self.events, calm=self._calm, trace=trace)
        self._lost = LostOutput(self.core, self.events)
        await self._observers.resume_counting(self.core, self._store)

    async def _adopt(self, servers: list[ServerConfig]) -> None:
        # With problems no worker is started: workers of a killed pool wait until the files are valid again.
        searched = None if self._configuration.problems else {each.name: each for each in servers}
        if searched is not None:
            await self._parts.take_in()
        adopted = await adopt(self.core, self._store, self._configuration.placed, searched)
        if adopted:
            logger.info("adopted %d workers", adopted)
        self._observers.record_events(adopted)
        for name, (before, port) in self._configuration.moved_ports.items():
            message = f"another program uses port {before}: {port} was chosen"
            self.events.record(
                "config", "port changed",
                server=name, before=before, after=port, message=message, severity="warning",
            )  # fmt: skip

    async def _import_rest(self, *, is_watching: bool) -> None:
        """Import modules that no start needs now, because the package's files may be replaced later."""
        await asyncio.sleep(_AFTER_START_SECONDS)
        await self._verbs.build.digest()
        await import_slowly(name for part in _PARTS for name in part.MODULES)
        await import_slowly([*verbs.modules(), *feature_parts.modules()])
        # No health check was due yet.
        if not (self._calm or is_watching):
            watch_health(self.core, self.events)
        self._verbs.complete()
        self.core.withdraw_lost_canaries()

    async def _prepare_answers(self) -> None:
        self._verbs = Verbs(self.core, self.events, self, self._configuration, self._parts.over)
        await self._observers.begin_serving(self._verbs)
        self._perform: Handler = self._verbs.handle
        if os.environ.get("NOTIFY_SOCKET") and not self._configuration.problems:
            from .systemd import Service

            self._service = Service(os.environ, self.core)
            self._perform = self._service.around(self._verbs.handle)

    def _serve_commands_only(self) -> None:
        logger.error("taking no action for %d s: the supervisor has died too often", _CALM_SECONDS)
        how_long = format_duration(_CALM_SECONDS)
        what = f"the supervisor has died too often: for {how_long} it serves commands only"
        self.events.record("pool", "calm", message=what, severity="error")
        asyncio.get_running_loop().call_later(_CALM_SECONDS, self._give_way)

    async def _handle(self, request: Request, progress: Progress) -> object:
        if not self._begun.is_set():
            if request.verb == "ping":
                return PingResult(**vars(self.identity()), reading=True)
            await self._wait_to_begin(request)
        if self._configuration.problems:
            ended = Result(ended=True, keeper_pid=self.shut_down())
            if request.verb == "stop":
                return ended
            problems = tuple(self._configuration.problems)
            return replace(ended, errors=problems, exit_code=self._configuration.exit_code)
        if self._ending:
            # A request between the last answer and the end: without an answer its client asks the next supervisor.
            raise ConnectionAbortedError
        with self._watch.reporting(lambda problem: progress(ProgressLine(notice=problem))):
            answer = await self._perform(request, progress)
        self._runtime_files.rename(self.name)
        # A successor knows everything that a client has received. Nothing is written where nothing has changed.
        self._store.note_changed(*self.core.take_changed())
        self._save_timer.save_now()
        return answer

    async def _wait_to_begin(self, request: Request) -> None:
        """Return when the pool has begun. A stop of everything ends the reading of its files."""
        if _stops_everything(request) and not serves_on(os.environ, self.directory):
            self.stop_reading()
        try:
            await self._begun.wait()
        except asyncio.CancelledError:
            # Its client has left: an order is carried out nevertheless, as it is later.
            if request.verb in AUDITED:
                order = asyncio.ensure_future(self._handle(request, lambda line: None))
                self._orders.add(order)
                order.add_done_callback(self._orders.discard)
            raise

    def stop_reading(self) -> None:
        """Begin without servers, and end at the next request, if the files are still being read."""
        self._configuration.stop_reading()

    async def _restore_runtime_files(self) -> None:
        async for listener in self._runtime_files.restored():
            if listener is not None:
                self._keeper.send({"op": "put", "name": fd_store.CONTROL}, [listener.fileno()])
                self._control.listen(listener)
            self._store.rewrite_file()
            self._save_timer.save_now()

    async def _adopt_late(self) -> None:
        if await take_in_late(self.core):
            self._give_way()

    def _give_way(self) -> None:
        """End as if killed: the keeper starts a successor, which adopts everything."""
        self.save()
        logging.shutdown()
        os._exit(0)

    def _changed(self, entry: Entry) -> None:
        self._configuration.note_socket(entry)
        self._store.note_changed(entry)
        self._save_timer.note_change()

    def _save(self) -> None:
        """Save the state for a successor."""
        self._store.save(self.core.entries, self._configuration.to_save(self.core))
        self._observers.totals.save()

    async def end(self) -> None:
        """Close everything; the answers under way are finished."""
        self._restoring.cancel()
        self._importing.cancel()
        self._verbs.end()
        await self._control.close()
        await self._observers.stop_serving()
        await self.runner.aclose()
        await self._observers.close()
        close_matcher()

    def terminate(self) -> None:
        """Stop every server in order, then end: the keeper was asked to terminate."""
        if not self._terminated:
            self._terminated = True
            if self._service is not None:
                self._service.stop()
            self._stopping = asyncio.ensure_future(self._stop_all())

    def save(self) -> None:
        """Save everything for a successor, events and features included."""
        # The core may not have reported its latest changes yet.
        self._store.note_changed(*self.core.entries.values())
        self._save_timer.save_now()
        self._observers.flush()

    def exit_reported(self, report: wire.Message) -> None:
        """The keeper reaped a child."""
        if (takeover := self.runner.capabilities.takeover) is not None:
            takeover.exit_reported(report)

    def _end_if_mandatory_failed(self, entry: Entry) -> None:
        """Stop every server and end, with the failed server's status for `poolctl run`."""
        ends_pool = entry.failed and entry.config.mandatory and not entry.removed
        if self._mandatory_failed or not ends_pool:
            return
        self._mandatory_failed = True
        why = f": {entry.observed.failure.message}" if entry.observed.failure else ""
        reason = f"{entry.name} has failed, and it is mandatory{why}"
        logger.error("the pool ends: %s", reason)
        status = _failed_status(entry.observed.last_exit)
        write_exit(self.directory, PoolExit(status=status, reason=reason, keeper_pid=self._keeper_pid))
        self.core.reason = f"was stopped: {reason}"
        self.terminate()

    async def _stop_all(self) -> None:
        if not self._configuration.problems:
            cause = self.core.reason.removeprefix("was stopped: ") or "asked to terminate"
            # Without a reason of its own the change was requested.
            severity = "error" if self.core.reason else "info"
            self.events.record("pool", "stopping", cause=cause, severity=severity)
            with caused_by(cause):
                await self._verbs.perform("stop", Call(Selector(), {}, lambda line: None))
        self.shut_down()

    def hand_over(self, keeper: list[str], supervisor: list[str]) -> None:
        """See Daemon."""
        self._ending = True
        self.replacement = keeper, supervisor
        asyncio.get_running_loop().call_later(_LAST_ANSWER_SECONDS, self.over.set)

    async def conclude(self, verb: str, call: Call, result: Result) -> Result:
        """See Daemon."""
        self._store.note_changed(*self.core.take_changed())
        self._save_timer.save_now()
        return await self._observers.conclude(verb, call, result)

    def shut_down(self) -> int:
        """See Daemon."""
        if not self._ending:
            self._ending = True
            if self._service is not None:
                self._service.stop()
            # A successor would find nothing to do, and would not be found.
            self._keeper.send({"op": "last"})
            if not self._configuration.problems:
                # With problems no worker was started: the state of an earlier pool waits until its files are valid
                # again.
                self._store.delete_file()
            self._runtime_files.withdraw()
            # The answer that says so has to get out first.
            asyncio.get_running_loop().call_later(_LAST_ANSWER_SECONDS, self.over.set)
        return self._keeper_pid

    def _end_if_unused(self) -> None:
        if self.core.servers.unused and not (self._verbs.used or self._parts.serve_alone):
            self.shut_down()

    def expired(self, placement: Placement) -> None:
        """See RunnerEvents."""
        if entry := self.core.entries.get(placement.server):
            self.core.renew(entry, placement.generation)

    def idle(self, placement: Placement, idle: bool) -> None:
        """See RunnerEvents."""
        if entry := self.core.entries.get(placement.server):
            self.core.idle(entry, placement.id, idle)

    def output_lost(self, name: str, count: int, path: str, reason: str) -> None:
        """See RunnerEvents."""
        self._lost.report(name, count, path, reason)

    def figures_refused(self, server: str, worker: str, reason: str) -> None:
        """See RunnerEvents."""
        message = f"worker {worker} shows impossible figures, which stay as they were: {reason}"
        if entry := self.core.entries.get(server):
            self.events.record(
                "health", "figures refused",
                server=server, bind=entry.config.key, worker=worker, message=message, severity="warning",
            )  # fmt: skip

    def identity(self) -> About:
        """See Daemon; with `calm`, `keeper_problem` and `not_served` where they are true of it."""
        lost_events = [f"[events]: {self.events.problem}"] if self.events.problem else []
        not_served = (*self._observers.problems, *lost_events)
        return About(
            name=self.name,
            files=tuple(self.files),
            version=__version__,
            protocol=PROTOCOL,
            python=sys.version.split()[0],
            supervisor_pid=os.getpid(),
            keeper_pid=self._keeper_pid,
            calm=self._calm or None,
            keeper_problem=self._watch.problem or None,
            not_served=not_served or None,
        )


def _failed_status(exit_: Exit | None) -> int:
    """The exit status that a shell reports for such an end; never 0, because it is a failure."""
    if exit_ is None:
        return FAILED
    if exit_.signal is not None:
        return _SIGNALLED + exit_.signal
    return exit_.status or FAILED


def _stops_everything(request: Request) -> bool:
    selector = request.body.get("selector") or {}
    return request.verb == "stop" and isinstance(selector, dict) and not any(selector.values())
