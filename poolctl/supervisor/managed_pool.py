"""The pool that a supervisor manages: its configuration, its core, and the answers on the control socket."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from poolctl.clock import SystemClock
from poolctl.config import longest_stop_seconds
from poolctl.control.messages import Document, result
from poolctl.control.pool_exit import PoolExit, write_exit
from poolctl.control.reserve import DescriptorReserve
from poolctl.control.server import ControlServer, Handler, Progress, Request
from poolctl.core.core import Core
from poolctl.core.events import caused_by
from poolctl.core.state import Entry
from poolctl.core.trace import Trace
from poolctl.exit_codes import INVALID_CONFIGURATION
from poolctl.keeper import wire
from poolctl.matching.matcher import close_matcher
from poolctl.pool.select import Selector
from poolctl.runners.local.resources.keeper_link import KeeperLink
from poolctl.runners.local.runner import LocalRunner
from poolctl.runners.protocol import Placement
from poolctl.units import format_duration

from .active_configuration import ActiveConfiguration
from .debounced import Debounced
from .deferred_imports import DeferredImports
from .health.setup import set_up_health
from .identity import identity
from .mandatory import Mandatory
from .observers.dashboard import PoolEnvironment
from .observers.event_recorder import LostOutput
from .observers.observers import Observers
from .runtime_files import RuntimeFiles, RuntimeWatch
from .takeover.adopt_workers import adopt, inherited
from .takeover.keeper_watch import watch_keeper
from .takeover.orphans import adopt_late_orphans, take_in
from .takeover.state_store import StateStore
from .verbs.verbs import CHANGING, Verbs

if TYPE_CHECKING:
    from .systemd import Service

_IDLE_SECONDS = 60.0
_SPARE_SECONDS = 5.0
_LAST_ANSWER_SECONDS = 0.02
# So long a supervisor that is to do nothing by itself waits until another may try.
_CALM_SECONDS = 300.0

logger = logging.getLogger("poolctl.supervisor")


class ManagedPool:
    """`over` is called when nothing is left to do, the runtime files withdrawn: the next command starts another."""

    def __init__(
        self,
        directory: str,
        files: Sequence[str],
        state_directory: str,
        keeper: KeeperLink,
        hello: wire.Message,
        runtime_files: RuntimeFiles,
        over: Callable[[], None],
        succeed: Callable[[list[str], list[str]], None],
    ) -> None:
        self.directory = directory
        self.files = list(files)
        self._keeper = keeper
        self._keeper_pid = int(hello["pid"])
        self._runtime_files = runtime_files
        self._over = over
        self._succeed = succeed
        self._ending = False
        logs = os.path.join(state_directory, "logs")
        os.makedirs(logs, mode=0o700, exist_ok=True)
        self.runner = LocalRunner(
            keeper,
            directory,
            logs,
            keeper_pid=self._keeper_pid,
            open_files=tuple(hello["open_files"]),
            on_dropped=lambda *lost: self._lost.report(*lost),
            on_expired=self._expired,
            on_idle=self._idle,
            orphanage=directory,
        )
        self._clock = SystemClock()
        self._memory = StateStore(keeper, directory)
        self._configuration = ActiveConfiguration(
            files, state_directory, self._memory, self.runner.forker.environments
        )
        pool_environment = PoolEnvironment(self._configuration, keeper, directory, state_directory)
        self._observers = Observers(pool_environment, self._clock, self._about)
        self.events = self._observers.events
        self._watch = watch_keeper(keeper, self._keeper_pid, self.events)
        self._terminated = False
        self.calm = False
        self._service: Service | None = None

    @property
    def name(self) -> str:
        """The pool's, by which it is found from anywhere."""
        return self._configuration.name

    @property
    def stop_seconds(self) -> float:
        """How long a stop of everything may take by the servers' own limits."""
        return longest_stop_seconds(each.config for each in self.core.entries.values()) + _SPARE_SECONDS

    async def begin(self, listener: socket.socket) -> None:
        """Load the configuration and answer requests from now on; an invalid one is the answer to the first."""
        self.runner.sockets.inherited = await inherited(self._keeper)
        servers = await self._configuration.begin()
        self._observers.record()
        trace = Trace.configured(os.environ)
        self.core = Core(servers, self.runner, self._clock, self.events, calm=self.calm, trace=trace)
        self._lost = LostOutput(self.core, self.events)
        deferred = DeferredImports()
        await self._observers.count(self.core, self.runner, self._memory)
        orphaned: dict[str, bool] = {}
        if not self._configuration.problems:
            orphaned = await take_in(self.runner, self.directory, {each.name: each for each in servers})
        placed = self._configuration.placed
        if adopted := await adopt(self.core, self.runner, self._memory, placed, orphaned):
            logger.info("took over %d workers", adopted)
        self._observers.tell(adopted)
        if not self.calm:
            set_up_health(self.core, self.events, self.runner.beats, deferred)
        await self.runner.output.start()
        self._remember = Debounced(self._leave_behind)
        self.core.listeners.add(self._changed)
        for entry in self.core.entries.values():
            # What was taken over may differ from the record, and the core may have told before anybody listened.
            self._changed(entry)
        ours = self._end_soon, self._configuration, self._make_way
        self._verbs = Verbs(self.core, self.events, self._about, *ours)
        await self._observers.answer(self._verbs, deferred)
        deferred.add(CHANGING, self._verbs.complete)
        deferred.add(("takeover.replace_keeper",))
        self._perform: Handler = self._verbs.handle
        if os.environ.get("NOTIFY_SOCKET") and not self._configuration.problems:
            from .systemd import Service

            self._service = Service(os.environ, self.core)
            self._perform = self._service.around(self._verbs.handle)
        self._control = ControlServer(self._handle, DescriptorReserve())
        self._control.listen(listener)
        asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._end_if_unused)
        self._runtime_watch = RuntimeWatch(
            self.directory, self._runtime_files, self._listen, self._leave_again
        )
        self._watching_runtime = asyncio.ensure_future(self._runtime_watch.watch())
        deferred.start()
        if self.calm:
            logger.error("doing nothing by itself for %d s: it has died too often", _CALM_SECONDS)
            what = f"the supervisor has died too often: for {format_duration(_CALM_SECONDS)} it serves commands only"
            self.events.record("pool", "calm", message=what, severity="error")
            asyncio.get_running_loop().call_later(_CALM_SECONDS, self._give_way)
            return
        self.core.listeners.add(Mandatory(self._end_with).look)
        self._observers.show()
        if not self._configuration.problems:
            work = adopt_late_orphans(self.core, self.runner, self.directory, self._give_way)
            self._late_orphans = asyncio.ensure_future(work)

    async def _handle(self, request: Request, progress: Progress) -> Document:
        if self._configuration.problems:
            self._end_soon()
            return result(
                [],
                self._configuration.problems,
                exit_code=INVALID_CONFIGURATION,
                ended=True,
                keeper_pid=self._keeper_pid,
            )
        if self._ending:
            # It came between the last answer and the end: without an answer its client asks the next supervisor.
            raise ConnectionAbortedError
        with self._watch.reporting(lambda problem: progress({"notice": problem})):
            document = await self._perform(request, progress)
        if request.verb == "start":
            await self._observers.attempted()
            document["warnings"] = [*(document.get("warnings") or ()), *self._observers.problems]
        self._runtime_files.rename(self.name)
        # What is answered is also what a successor will know. Where nothing has changed, nothing is written.
        self._memory.note(*self.core.take_changed())
        self._remember.now()
        return document

    async def _listen(self, listener: socket.socket) -> None:
        self._keeper.send({"op": "put", "name": "control"}, [listener.fileno()])
        self._control.listen(listener)

    def _leave_again(self) -> None:
        self._memory.leave_again()
        self._remember.now()

    def _give_way(self) -> None:
        """End as if killed: the keeper starts a successor, which adopts everything."""
        self.remember()
        logging.shutdown()
        os._exit(0)

    def _changed(self, entry: Entry) -> None:
        self._memory.note(entry)
        self._remember.soon()

    def _leave_behind(self) -> None:
        """The configuration first: what is wanted of a server means little without it."""
        self._configuration.keep(self.core)
        self._memory.remember(self.core.entries)
        self._observers.leave_behind()

    async def end(self) -> None:
        """Close everything; the answers under way are finished."""
        self._watching_runtime.cancel()
        self._verbs.event_stream.end()
        await self._control.close()
        await self._observers.hide()
        await self.runner.aclose()
        await self._observers.close()
        close_matcher()

    def terminate(self) -> None:
        """Stop every server in order, then end (the keeper was told to terminate)."""
        if not self._terminated:
            self._terminated = True
            if self._service is not None:
                self._service.stop()
            self._stopping = asyncio.ensure_future(self._stop_all())

    def remember(self) -> None:
        """Leave to a successor what is wanted now, and write what has happened."""
        # The caller may be ahead of the core, which has not reported yet what it has changed.
        self._memory.note(*self.core.entries.values())
        self._remember.now()
        self._observers.remember()

    def exit_reported(self, report: wire.Message) -> None:
        """The keeper reaped a child."""
        self.runner.exit_reported(report)

    def _end_with(self, status: int, reason: str) -> None:
        """Stop every server and end; whoever runs the pool in the foreground is left the status."""
        logger.error("the pool ends: %s", reason)
        write_exit(self.directory, PoolExit(status, reason, self._keeper_pid))
        self.core.reason = f"was stopped: {reason}"
        self.terminate()

    async def _stop_all(self) -> None:
        if not self._configuration.problems:
            cause = self.core.reason.removeprefix("was stopped: ") or "told to terminate"
            # Without a reason of its own it is somebody's wish.
            severity = "error" if self.core.reason else "info"
            self.events.record("pool", "stopping", cause=cause, severity=severity)
            with caused_by(cause):
                await self._verbs.perform("stop", Selector(), {}, lambda document: None)
        self._end_soon()

    def _make_way(self, keeper: list[str], supervisor: list[str]) -> None:
        """Take no more commands, and give the place to others: the answer that says so has to get out first."""
        self._ending = True
        asyncio.get_running_loop().call_later(_LAST_ANSWER_SECONDS, self._succeed, keeper, supervisor)

    def _end_soon(self) -> None:
        if not self._ending:
            self._ending = True
            if self._service is not None:
                self._service.stop()
            # A successor would find nothing to do, and would not be found.
            self._keeper.send({"op": "last"})
            if not self._configuration.problems:
                # With problems nothing was begun: what an earlier pool left waits until its files are valid again.
                self._memory.forget()
            self._runtime_files.withdraw()
            # The answer that says so has to get out first.
            asyncio.get_running_loop().call_later(_LAST_ANSWER_SECONDS, self._over)

    def _end_if_unused(self) -> None:
        if self.core.registry.unused and not self._verbs.used:
            self._end_soon()

    def _expired(self, placement: Placement) -> None:
        if entry := self.core.entries.get(placement.server):
            self.core.renew(entry, placement.generation)

    def _idle(self, placement: Placement, idle: bool) -> None:
        if entry := self.core.entries.get(placement.server):
            self.core.idle(entry, placement.id, idle)

    def _about(self) -> Document:
        problem = self._watch.problem
        return identity(
            self.name,
            self.files,
            self._keeper_pid,
            calm=self.calm,
            keeper_problem=problem,
            not_served=self._observers.problems,
        )
