"""Keeps the pool's helpers running: the logger, and the processes `accept`, `config` and `web`.

A helper is a child of the keeper, outlives its supervisor, and is adopted by the next one. Most are poolctl's own
programs (HelperProcess): descriptor 3 is the link to the supervisor, which the keeper also holds. They send `up` when
they are ready, answer `ping`, and exit when they are ordered to `end` or when keeper and supervisor have both exited.
Other programs, such as HAProxy, are subclasses of HelperChild.

An owner decides with which settings its helper should run (see HelperOwner); a Helper reconciles: it starts, adopts,
replaces or ends a process. The pool does not depend on helpers: their problems are logged, and raised only
to callers of `ask` and `wait_until_up`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar
from weakref import WeakSet

from poolctl import __version__
from poolctl.config.model.server_tables import Log
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.keeper import wire
from poolctl.keeper.spawn import MAX_SIZE_BYTES
from poolctl.platform import close_all

from .left_overs import ProcessNote, ProcessNotes
from .process_link import (
    PING,
    HasDescriptor,
    Link,
    LinkHandler,
    LinkLost,
    NoAnswer,
    ProcessWatchdog,
    Reply,
    identity,
    kill,
    spawn,
)
from .runner_protocol import Exit

_STATUS_SECONDS = 5.0
_STORED_SECONDS = 1.0
# Small: the pool's directory is often in memory.
_LIMITS = Log(max_size=MAX_SIZE_BYTES, keep=1)
_SECOND_PAUSE_SECONDS = 0.2

logger = logging.getLogger("poolctl.supervisor")


@dataclass(frozen=True, kw_only=True)
class HelperKind:
    """A kind of helper. `name` is one word, used in `status -v` and metrics; `label` names it in messages.

    `argv` is its command, and `entry` its name in the keeper's store.

    A kind with `on_demand` is started by a request, also after its exit. Any other kind is started at once, and
    restarted after its exit, with pauses that grow from `first_pause_seconds` to `max_pause_seconds`. With `overlaps`,
    it is replaced without a gap: the next process is up before the current one is ordered to end. It is replaced when
    its settings or its `version` change, by default poolctl's version.
    """

    name: str
    label: str
    argv: tuple[str, ...]
    entry: str
    overlaps: bool = True
    on_demand: bool = False
    ready_seconds: float = 30.0
    end_seconds: float = 10.0
    # How a process ends that has outlived keeper and supervisor: see ProcessNote.
    stop_signal: int = signal.SIGTERM
    drain_seconds: float | None = 0.0
    first_pause_seconds: float = 0.2
    max_pause_seconds: float = 30.0
    calm_seconds: float = 60.0  # running this long resets the pause
    version: str = __version__

    def mark_of(self, settings: str) -> str:
        """The mark of a process of this version with these settings."""
        return f"{self.version} {settings}".rstrip()


class LogPipes(Protocol):
    """Connects the output of processes to the logger: see OutputPipes."""

    @property
    def is_logger_up(self) -> bool: ...

    def create_log_pipe(self, name: str, path: str, form: str, limits: Log) -> tuple[str, int]: ...

    def register_pipe(self, key: str, pid: int) -> None: ...

    def discard(self, key: str) -> None: ...

    async def wait_until_all_stored(self, timeout_seconds: float) -> None: ...


class HelperLog:
    """The log file of a helper, at `path`.

    Its processes print through `pipes`; while no logger runs, directly to the file. So the file shows why the logger
    itself cannot start.
    """

    def __init__(
        self, directory: str, kind: HelperKind, pipes: LogPipes | None, notes: ProcessNotes | None
    ) -> None:
        self.path = os.path.join(directory, f"{kind.name}.log")
        self._kind = kind
        self._pipes = pipes
        self._notes = notes

    async def spawn(
        self,
        keeper: Link,
        argv: Sequence[str],
        fds: Sequence[int | HasDescriptor],
    ) -> Table:
        """Have the keeper start a program that prints to this log; return its identity: see process_link.spawn."""
        if self._pipes is None or not self._pipes.is_logger_up:
            process = identity(await spawn(keeper, argv, self.path, fds))
            self.note(process)
            return process
        pipe, write = self._pipes.create_log_pipe(f"[{self._kind.name}]", self.path, "raw", _LIMITS)
        try:
            process = identity(await spawn(keeper, argv, write, fds))
        except BaseException:
            self._pipes.discard(pipe)
            raise
        finally:
            os.close(write)
        self.note(process)
        self._pipes.register_pipe(pipe, process["pid"])
        return process

    def note(self, process: Table, drain_seconds: float | None = None) -> None:
        """Note the process, in case it outlives keeper and supervisor. `drain_seconds` overrides its kind's value."""
        if self._notes is not None and process["start"] is not None:
            kind = self._kind
            note = ProcessNote(
                process["pid"],
                process["start"],
                kind.label,
                stop_signal=kind.stop_signal,
                stop_seconds=kind.end_seconds,
                drain_seconds=kind.drain_seconds if drain_seconds is None else drain_seconds,
            )
            self._notes.add(note)

    async def wait_until_stored(self) -> None:
        """Wait until the file has all that was printed so far, or a second has passed."""
        if self._pipes is not None:
            await self._pipes.wait_until_all_stored(_STORED_SECONDS)

    @property
    def size(self) -> int:
        """The file's size in bytes, or 0 if it does not exist."""
        with contextlib.suppress(OSError):
            return os.stat(self.path).st_size
        return 0


class HelperChild:
    """A process of a helper. `identity` is its pid and start time, `mark` its version and settings.

    `up` is set when the process is ready, or has exited; `exited` is done when it has exited. A process that hangs is
    killed: see `watch`.
    """

    def __init__(self, kind: HelperKind, process: Table, mark: str) -> None:
        loop = asyncio.get_running_loop()
        self.kind = kind
        self.identity = process
        self.mark = mark
        self.up = asyncio.Event()
        self.exited: asyncio.Future[None] = loop.create_future()
        self.began = loop.time()
        self.output_start = 0  # its output begins at this position of the log, or later
        self._exit: asyncio.Future[Exit] = loop.create_future()
        self._watchdog: ProcessWatchdog | None = None

    @property
    def pid(self) -> int:
        return int(self.identity["pid"])

    @property
    def is_gone(self) -> bool:
        """Whether the process has exited, or nothing can be sent to it."""
        return self.exited.done()

    def ping(self) -> None:
        """Send the process a ping; `answered` is called when it answers."""
        raise NotImplementedError

    def save_to_keeper(self, keeper: Link) -> None:
        """Put the process into the keeper's store, where the next supervisor finds it."""
        raise NotImplementedError

    def receive_with(self, receive: Callable[[wire.Message, list[int]], None]) -> None:
        """Pass messages that are not about the process itself to `receive`, with their descriptors."""

    def end(self) -> None:
        """Order the process to exit, and kill it after `end_seconds`: a hung process would hold its listeners forever.

        Does not wait. Its messages are still received.
        """
        self.stop_watching()
        asyncio.get_running_loop().call_later(self.kind.end_seconds, self.kill_and_close)

    def close(self) -> None:
        """Have the process exit like `end`, and receive nothing more."""
        self.end()

    def kill_and_close(self) -> None:
        """Kill the process if it still runs, and receive nothing more."""
        kill(self.identity)

    async def wait_until_ready(self, log: HelperLog) -> None:
        """Wait until the process is up. If it exits or takes too long, end it, and raise LinkLost or TimeoutError."""
        try:
            async with asyncio.timeout(self.kind.ready_seconds):
                await self.up.wait()
            if self.is_gone:
                await log.wait_until_stored()
                raise LinkLost(f"its process ended at its start{f'; see {log.path}' if log.size else ''}")
        except BaseException:
            self.close()
            raise

    async def wait_briefly_for_exit(self) -> Exit | None:
        """Wait up to five seconds until the keeper reports how the process has exited; None if it does not."""
        await asyncio.wait({self._exit}, timeout=_STATUS_SECONDS)
        return self._exit.result() if self._exit.done() else None

    def record_exit(self, exit_: Exit) -> None:
        if not self._exit.done():
            self._exit.set_result(exit_)

    async def finish(self) -> None:
        """Have the process exit; returns when it has, or was killed."""
        self.end()
        await asyncio.wait({self.exited}, timeout=self.kind.end_seconds)

    def watch(self) -> None:
        """Ping the process from now on, and kill it if it hangs."""
        self._watchdog = ProcessWatchdog(self.ping, self.identity, f"{self.kind.label}'s process")

    def answered(self) -> None:
        """Record that the process does not hang."""
        if self._watchdog is not None:
            self._watchdog.received()

    def stop_watching(self) -> None:
        """Stop pinging the process; it is no longer killed if it hangs."""
        if self._watchdog is not None:
            self._watchdog.stop_watching()
            self._watchdog = None

    def mark_exited(self) -> None:
        self.stop_watching()
        self.up.set()
        if not self.exited.done():
            self.exited.set_result(None)


class HelperProcess(HelperChild, LinkHandler):
    """A process of a helper, controlled over `link`."""

    def __init__(self, kind: HelperKind, sock: socket.socket, process: Table, mark: str) -> None:
        super().__init__(kind, process, mark)
        self._receive: Callable[[wire.Message, list[int]], None] = lambda message, fds: close_all(fds)
        self.link = Link(sock, self)
        self.watch()

    @classmethod
    async def spawn(cls, keeper: Link, log: HelperLog, kind: HelperKind, mark: str) -> Self:
        """Have the keeper start a process that prints to this log. Raises LinkLost, or OSError."""
        output_start = log.size
        ours, theirs = wire.pair()
        try:
            with theirs:
                started = await log.spawn(keeper, kind.argv, [theirs])
        except BaseException:
            ours.close()
            raise
        process = cls(kind, ours, started, mark)
        process.output_start = output_start
        return process

    @classmethod
    async def adopt(cls, keeper: Link, kind: HelperKind) -> Self | None:
        """The process of this kind, if the keeper holds a link to it; otherwise None. Raises LinkLost."""
        reply, fds = await keeper.call({"op": "get", "name": kind.entry})
        if not fds:
            return None
        meta = reply["meta"]
        running = {"pid": meta["pid"], "start": meta["start"]}
        process = cls(kind, wire.socket_from_fd(fds[0]), running, meta["mark"])
        process.answered()  # it already runs: the long timeout for a first answer does not apply
        return process

    @property
    def is_gone(self) -> bool:
        return self.link.sock.fileno() < 0

    def ping(self) -> None:
        self.link.send(PING)

    def save_to_keeper(self, keeper: Link) -> None:
        meta = {**self.identity, "mark": self.mark}
        keeper.send({"op": "put", "name": self.kind.entry, "meta": meta}, [self.link.sock])

    def receive_with(self, receive: Callable[[wire.Message, list[int]], None]) -> None:
        self._receive = receive

    async def ask(
        self,
        message: wire.Message,
        fds: Sequence[int | HasDescriptor] = (),
        *,
        patience_seconds: float | None = None,
    ) -> Reply:
        """Send a request, and return the answer with its descriptors. Raises LinkLost, or Refused.

        If the process sends nothing at all for `patience_seconds`, it is killed, and NoAnswer raised.
        """
        try:
            return await self.link.call(message, fds, patience_seconds=patience_seconds)
        except NoAnswer:
            kill(self.identity)
            raise

    async def wait_until_performed(self) -> None:
        """Wait until the process has carried out every order sent so far. Raises LinkLost."""
        await self.link.call({"t": "performed"})

    def end(self) -> None:
        super().end()
        self.link.send({"t": "end"})

    def close(self) -> None:
        super().close()
        self.link.close()

    def kill_and_close(self) -> None:
        super().kill_and_close()
        self.link.close()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        self.answered()
        if message.get("t") == "up":
            self.up.set()
        elif message.get("t") != "pong":
            self._receive(message, fds)

    def on_link_lost(self) -> None:
        loop = asyncio.get_running_loop()
        # Deferred, because the first message that is sent may already find the link lost.
        loop.call_soon(self.mark_exited)
        # A process that has closed its link without exiting must not stay.
        loop.call_later(self.kind.end_seconds, kill, self.identity)


Child = TypeVar("Child", bound=HelperChild)
Linked = TypeVar("Linked", bound=HelperProcess)
Started = TypeVar("Started", bound=HelperChild, covariant=True)


class ProcessSource(Protocol[Started]):
    """Starts the processes of a kind, or adopts the previous supervisor's process: see HelperProcess."""

    async def spawn(self, keeper: Link, log: HelperLog, kind: HelperKind, mark: str) -> Started: ...

    async def adopt(self, keeper: Link, kind: HelperKind) -> Started | None: ...


class HelperOwner(Generic[Child]):
    """Decides how a helper should run, and handles its messages. Each method has a default."""

    async def settings(self) -> str | None:
        """The settings on which the process depends; it is replaced when they change (see HelperKind).

        None if no process should run now. Raises ServerError if none can run; called again after a pause.
        """
        return ""

    def begin(self, process: Child) -> None:
        """Send a new process the orders that it needs to become ready."""

    def use(self, process: Child, *, is_new: bool) -> None:
        """Send orders to a new process that is up, or to an adopted one. The next supervisor will find it."""

    async def retire(self, process: Child) -> None:
        """Have a replaced process exit."""
        process.end()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """Handle a message of the process, and own its descriptors."""
        close_all(fds)

    def on_lost(self, process: Child) -> None:
        """Handle an unexpected exit of the process in use."""

    def on_event(self, event: str, message: str, **detail: Any) -> None:
        """Record an event of the helper, such as "dashboard failed"."""


class Helper(Generic[Child]):
    """Keeps a helper running as its owner's settings say. `process` is the process in use, or None.

    `problem` says why none can run, or is ""; `restarts` counts unexpected exits. Nothing runs before `reconcile`,
    `adopt` or, on demand, the first request. Its processes print to `log`.
    """

    def __init__(
        self,
        keeper: Link,
        log: HelperLog,
        kind: HelperKind,
        owner: HelperOwner[Child],
        source: ProcessSource[Child],
    ) -> None:
        self.kind = kind
        self.log = log
        self.process: Child | None = None
        self.problem = ""
        self.restarts = 0
        self._keeper = keeper
        self._owner = owner
        self._source = source
        # The last process that was started or adopted, even after its exit.
        self.latest: Child | None = None
        # Exits by pid that arrive before their process is registered: while spawning, and until the first adoption.
        self._early_exits: dict[int, Exit] | None = {}
        self._processes: WeakSet[Child] = WeakSet()  # including processes that have just exited
        self._adopted = self._over = False
        self._is_wanted = True
        self._attempt_wanted = False
        self._work: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._pause_seconds = kind.first_pause_seconds
        self.failure: Exception | None = None  # the cause of `problem`
        self._changed = asyncio.Event()  # set and replaced at each change
        self._attempted = asyncio.Event()

    @property
    def pid(self) -> int:
        """The pid of the process that is in use or starting; 0 without one."""
        process = self.process or self.latest
        return process.pid if process is not None and not process.exited.done() else 0

    def reconcile(self) -> None:
        """Start, replace or end the process soon, because the owner's settings may have changed."""
        self._pause_seconds = self.kind.first_pause_seconds
        self._is_wanted = True
        self._attempted.clear()
        self._attempt_soon()

    async def adopt(self) -> None:
        """Use the previous supervisor's process, if there is one. Raises LinkLost."""
        await self._adopt_once()
        if self.kind.on_demand and self.process is not None and self.process.mark != await self._mark():
            self.end_process()

    async def wait_for_attempt(self) -> None:
        """Wait until it is known whether the process can run with the owner's settings; see `problem`."""
        await self._attempted.wait()

    def start(self) -> None:
        """Begin to start a process that is started on demand, unless it runs or is being started."""
        if self.process is None and (self._work is None or self._work.done()):
            self.problem, self.failure = "", None
            self._attempt_soon()

    async def wait_until_up(self) -> Child:
        """Return the process once it is up; start it if it is started on demand.

        Raises LinkLost if it cannot run, chained to the exception that prevented it.
        """
        if self.kind.on_demand:
            self.start()
        before = self.restarts
        while self.process is None and not self.problem and self._is_wanted and not self._over:
            if self.kind.on_demand and self.restarts != before:
                break  # it was up, and has ended since
            await self._changed.wait()
        if self.process is None:
            raise LinkLost(self.problem or "its process has ended") from self.failure
        return self.process

    async def ask(
        self: Helper[Linked], message: wire.Message, fds: Sequence[int | HasDescriptor] = ()
    ) -> Reply:
        """Send the process a request once it is up, and return the answer with its descriptors.

        Raises LinkLost if it cannot run, or exits before it has answered; Refused if it reports an error.
        """
        process = await self.wait_until_up()
        return await process.ask(message, fds)

    def end_process(self) -> None:
        """Have the process exit, if there is one. It is started again when the helper is next needed."""
        if (process := self.release()) is not None:
            process.end()

    def stop_attempts(self) -> None:
        """Stop starting and replacing processes, but keep the one in use. Attempts end soon: see wait_until_settled."""
        self._over = True
        if self._retry is not None:
            self._retry.cancel()
        if self._work is not None:
            self._work.cancel()

    def close(self) -> None:
        """Have the process exit, and start no other."""
        self.stop_attempts()
        if (process := self.release()) is not None:
            process.close()
        self._notify_changed()

    def note_settings(self, settings: str) -> None:
        """Record that the owner has changed the process in use: it runs with these settings now."""
        if self.process is not None and self.process.mark != (mark := self.kind.mark_of(settings)):
            self.process.mark = mark
            self.process.save_to_keeper(self._keeper)

    async def wait_until_settled(self) -> None:
        """Wait until the process runs as the owner's settings say now, or cannot; see `problem`."""
        while self._work is not None and not self._work.done():
            await asyncio.wait({self._work})

    async def aclose(self) -> None:
        """Close the helper; returns once its owner is no longer asked for settings."""
        self.close()
        if self._work is not None:
            await asyncio.wait({self._work})

    def handle_exit(self, pid: int, exit_: Exit) -> None:
        """Record how the process with this pid, a child of the keeper, has exited."""
        if self._early_exits is not None:
            self._early_exits[pid] = exit_
        for process in self._processes:
            if process.pid == pid:
                process.record_exit(exit_)

    def release(self) -> Child | None:
        """Return the process in use, and stop using it: its exit is no longer reported."""
        if (process := self.process) is not None:
            self.process = self.latest = None
            self._keeper.send({"op": "drop", "name": self.kind.entry})
        return process

    # Attempts: one at a time, then another if something has changed meanwhile.

    def _attempt_soon(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._over:
            return
        self._attempt_wanted = True
        if self._work is None or self._work.done():
            self._work = asyncio.ensure_future(self._attempt_until_current())

    async def _attempt_until_current(self) -> None:
        while self._attempt_wanted:
            self._attempt_wanted = False
            try:
                await self._attempt()
            except ServerError as error:
                self._fail(error.message, error)
            except (LinkLost, OSError, TimeoutError) as error:
                self._fail(str(error) or "its process does not come up", error)
            except Exception as error:
                logger.exception("%s could not be started", self.kind.label)
                self._fail(repr(error), error)
            self._release_attempt_waiters()
            self._notify_changed()

    async def _attempt(self) -> None:
        await self._adopt_once()
        mark = await self._mark()
        self._is_wanted = mark is not None
        self._release_attempt_waiters()
        before = self.process
        if mark is None:
            self.end_process()
        elif before is None or before.mark != mark:
            if before is not None and not self.kind.overlaps:
                self.process = None
                self._keeper.send({"op": "drop", "name": self.kind.entry})
                await before.finish()
            process = await self._start(mark)
            replaced = self.process
            self._manage(process, is_new=True)
            if replaced is not None:
                await self._owner.retire(replaced)
        self.problem, self.failure = "", None

    async def _adopt_once(self) -> None:
        if self._adopted:
            return
        self._adopted = True
        process = await self._source.adopt(self._keeper, self.kind)
        if process is not None:
            self._register(process)
            self.log.note(process.identity)
            self._manage(process, is_new=False)
        self._early_exits = None

    async def _mark(self) -> str | None:
        settings = await self._owner.settings()
        return None if settings is None else self.kind.mark_of(settings)

    async def _start(self, mark: str) -> Child:
        """Start a process; returns it when it is up, and in the keeper's store. Raises LinkLost or TimeoutError."""
        self._early_exits = {}
        try:
            process = await self._source.spawn(self._keeper, self.log, self.kind, mark)
            self._register(process)
        finally:
            self._early_exits = None
        self.latest = process
        self._owner.begin(process)
        await process.wait_until_ready(self.log)
        process.save_to_keeper(self._keeper)
        return process

    def _register(self, process: Child) -> None:
        process.receive_with(self._owner.received)
        self._processes.add(process)
        if self._early_exits is not None and (early := self._early_exits.get(process.pid)) is not None:
            process.record_exit(early)

    def _manage(self, process: Child, *, is_new: bool) -> None:
        self.process = self.latest = process
        process.exited.add_done_callback(lambda _: self._on_exited(process))
        self._owner.use(process, is_new=is_new)

    def _on_exited(self, process: Child) -> None:
        if self.process is not process:
            return
        self.process = None
        self.restarts += 1
        self._keeper.send({"op": "drop", "name": self.kind.entry})
        message = f"{self.kind.label}'s process has ended"
        if not self.kind.on_demand:
            message += "; another one is started"
            if asyncio.get_running_loop().time() - process.began > self.kind.calm_seconds:
                self._pause_seconds = self.kind.first_pause_seconds
        logger.error(message)
        self._owner.on_event(f"{self.kind.name} ended", message, severity="warning", pid=process.pid)
        if not self.kind.on_demand:
            self._retry_later()
        self._owner.on_lost(process)
        self._notify_changed()

    def _fail(self, problem: str, error: Exception) -> None:
        self.failure = error
        if problem != self.problem:
            self.problem = problem
            logger.error("%s: %s", self.kind.label, problem)
            self._owner.on_event(f"{self.kind.name} failed", problem)
        if not self.kind.on_demand:
            self._retry_later()

    def _retry_later(self) -> None:
        if self._over or (self._work is not None and not self._work.done() and self._attempt_wanted):
            return
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(self._pause_seconds, self._attempt_soon)
        next_pause_seconds = max(self._pause_seconds * 2, _SECOND_PAUSE_SECONDS)
        self._pause_seconds = min(next_pause_seconds, self.kind.max_pause_seconds)

    def _release_attempt_waiters(self) -> None:
        """Let `wait_for_attempt` return, unless something has changed since the attempt began."""
        if not self._attempt_wanted:
            self._attempted.set()

    def _notify_changed(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class Helpers:
    """The helpers of one pool: creates them, lists them, and passes them the exits that the keeper reports.

    The first is the logger; its owner sets `pipes`, to which all others print.
    """

    def __init__(self, keeper: Link, directory: str, notes: ProcessNotes | None = None) -> None:
        self.directory = directory
        self._notes = notes
        self.pipes: LogPipes | None = None
        self._keeper = keeper
        self._helpers: list[Helper[Any]] = []

    def __iter__(self) -> Iterator[Helper[Any]]:
        return iter(self._helpers)

    @property
    def pids(self) -> dict[str, int]:
        return {helper.kind.name: helper.pid for helper in self._helpers if helper.pid}

    def add(self, kind: HelperKind, owner: HelperOwner[Child], source: ProcessSource[Child]) -> Helper[Child]:
        log = HelperLog(self.directory, kind, self.pipes, self._notes)
        helper = Helper(self._keeper, log, kind, owner, source)
        self._helpers.append(helper)
        return helper

    def handle_exit_report(self, report: wire.Message) -> None:
        """Handle the keeper's report that a child has exited."""
        if report.get("event") == "exit":
            exit_ = Exit.from_report(report.get("status"), report.get("signal"))
            for helper in self._helpers:
                helper.handle_exit(report["pid"], exit_)
