"""Manages zygotes, the processes from which workers are forked, and verifies the pids that they report.

There is one zygote per interpreter, started when a worker first needs it and replaced when it dies. An app zygote has
also imported an application, for the workers of `preload` servers. Servers share an app zygote if all settings that an
import can see are equal. Each has one version of the code; another is started when newer code is requested. The
number of concurrent imports, in app zygotes and in workers, is limited.

An application that is imported in a zygote can forge the zygote's replies, which name the pid of a new worker. The
keeper sends signals to workers, with its own rights, so each reported pid is verified: the process must be a child of
the keeper, run as the zygote's user, be no older than the zygote, and not be registered yet. Signals are sent by the
keeper, because only the parent of a process can be sure that its pid has not been reused.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import math
import os
import re
import signal
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from poolctl.bootstrap import as_user, command
from poolctl.config import ServerConfig, ids_to_start_interpreter_as, masked_text
from poolctl.keeper import fd_store, wire
from poolctl.keeper.wire import Message
from poolctl.platform import parent_and_start, process_start, process_users
from poolctl.units import format_duration

from .. import process_link
from ..left_overs import ProcessNote, ProcessNotes
from ..process_link import Link, LinkHandler, LinkLost, Refused, sanitized_text_or_empty
from ..runner_protocol import IMPORTS_PER_CPU, Exit, WorkerFailed
from ..withheld_variables import withheld_variables
from ..worker_spec import Spec, missing_module_hint, spec_file
from .output_pipes import OutputPipes, last_lines

logger = logging.getLogger("poolctl.supervisor")

_MAX_PID = 1 << 22  # the highest pid on any Linux system (proc(5), pid_max)
# Before this, the intermediate process that forks for the zygote may still be the parent.
_FIRST_CHECK_SECONDS = 0.1
_LAST_LOOK_SECONDS = 3.0
_SIGNAL_TRIES = 20
_SIGNAL_AGAIN_SECONDS = 0.005
# Longer than it takes to notice that the keeper does not answer, and to replace it.
_KEEPER_SECONDS = 15.0
START_SECONDS = 30.0
# A fork takes milliseconds. A zygote that is silent for longer with requests pending is stopped, or hangs.
SILENT_SECONDS = 10.0
# Time for an unused zygote to exit.
END_SECONDS = 2.0
_EXIT_SECONDS = 1.0
_LAST_OUTPUT_SECONDS = 3.0
_LAST_LINES = 200
_ADOPTED_IMPORT_SECONDS = 30.0

T = TypeVar("T")


class ProcessIdentity(NamedTuple):
    """The pid and the start time (see process_start) of a process. The start time is None if it has exited."""

    pid: int
    start: int | None


class Forged(Exception):
    """A zygote has reported a process that it cannot have forked. The text says what the zygote did."""


class Children:
    """The processes of this runner that were forked by zygotes.

    `keeper_pid` is the pid of their parent, 0 if unknown. `early` maps pids to exits that were reported before
    the process was registered with `add`.
    """

    def __init__(self, keeper: Link, keeper_pid: int) -> None:
        self.keeper_pid = keeper_pid
        self.early: dict[int, Exit] = {}
        self._keeper = keeper
        self._known: set[int] = set()
        self._unconfirmed: dict[ProcessIdentity, tuple[float, Callable[[str], None]]] = {}
        self._forks = 0  # in progress
        self._confirm_timer: asyncio.TimerHandle | None = None
        self._killing: set[asyncio.Task[None]] = set()
        self._sees_processes = process_start(os.getpid()) is not None

    @contextlib.contextmanager
    def recording_early_exits(self) -> Iterator[None]:
        """Context manager: record the exits of unknown processes while a fork is in progress."""
        if not self._forks:
            self.early.clear()  # earlier exits are of other processes, whose pids may be reused
        self._forks += 1
        try:
            yield
        finally:
            self._forks -= 1

    async def verified_process(
        self, reply: Message, uid: int | None, not_before: int | None
    ) -> ProcessIdentity:
        """Return the process that a zygote reports as newly forked. Raises Forged if the report must be false.

        The process must not be registered yet, must run as user `uid`, and must not have started before `not_before`.
        A check is omitted if its value is None. Raises LinkLost if the keeper is gone.
        """
        try:
            pid = process_link.number_of(reply, "pid", 2, _MAX_PID)
        except process_link.Malformed as error:
            raise Forged(f"answered with {error}") from None
        if pid in self._known:
            raise Forged(f"named pid {pid} as a new process, but it is another process of the pool")
        start = process_start(pid) if self._sees_processes else None
        if start is None and self._sees_processes:
            # All earlier exits are reported before the answer to this.
            await self._keeper.call({"op": "list", "after": "\U0010ffff"})
            if pid not in self.early:
                raise Forged(f"named pid {pid} as a new process, but there is no such process")
        elif start is not None:
            if uid is not None and process_users(pid) != {uid}:
                raise Forged(f"named pid {pid} as a new process, but it runs as another user")
            if not_before is not None and start < not_before:
                raise Forged(f"named pid {pid} as a new process, but it is older than the request")
        return ProcessIdentity(pid, start)

    def register_unless_exited(self, pid: int) -> Exit | None:
        """Register the process. Returns its exit if it has exited already."""
        exit_ = self.early.pop(pid, None)
        if exit_ is None:
            self._known.add(pid)
        return exit_

    def forget(self, pid: int) -> None:
        """Forget a process that has exited, since its pid may be reused."""
        self._known.discard(pid)
        for process in [each for each in self._unconfirmed if each.pid == pid]:
            del self._unconfirmed[process]

    def schedule_parent_check(self, process: ProcessIdentity, on_forged: Callable[[str], None]) -> None:
        """Check later that the process has become the keeper's child; if not, call `on_forged` with an error text."""
        if process.start is None or not self.keeper_pid:
            return
        loop = asyncio.get_running_loop()
        self._unconfirmed[process] = loop.time() + _LAST_LOOK_SECONDS, on_forged
        if self._confirm_timer is None:
            self._confirm_timer = loop.call_later(_FIRST_CHECK_SECONDS, self._confirm_parentage)

    def _confirm_parentage(self) -> None:
        loop = asyncio.get_running_loop()
        self._confirm_timer = None
        for process, (until, on_forged) in list(self._unconfirmed.items()):
            if parent_and_start(process.pid) == (self.keeper_pid, process.start):
                del self._unconfirmed[process]
            elif loop.time() >= until:
                del self._unconfirmed[process]
                self._known.discard(process.pid)
                on_forged(f"named pid {process.pid} as a new process, but it is not a process of the pool")
        if self._unconfirmed:
            self._confirm_timer = loop.call_later(_FIRST_CHECK_SECONDS, self._confirm_parentage)

    def kill_group_now(self, process: ProcessIdentity) -> None:
        """Have the keeper kill the process and its session, if the process is still the keeper's child."""
        if process.start is not None:
            self.signal_group_now(process, signal.SIGKILL)

    def signal_group_now(self, process: ProcessIdentity, number: int) -> None:
        """Have the keeper signal the process group that the process leads, or has led. Does not wait."""
        self._keeper.send(_signal_message(process, number, group=True))

    def continue_now(self, process: ProcessIdentity) -> None:
        """Have the keeper let the process run if it is suspended, so that it reads its orders. Does not wait."""
        self._keeper.send(_signal_message(process, signal.SIGCONT, group=False))

    async def try_signal(
        self, process: ProcessIdentity, exited: asyncio.Future[T], number: int, *, group: bool = False
    ) -> None:
        """Have the keeper signal the process or, with `group`, its process group, unless the process has `exited`."""
        order = _signal_message(process, number, group=group)
        with contextlib.suppress(LinkLost, TimeoutError):
            # Repeated, because the keeper becomes the parent a moment after the fork.
            for _ in range(_SIGNAL_TRIES):
                async with asyncio.timeout(_KEEPER_SECONDS):
                    reply, _ = await self._keeper.call(order)
                if reply["sent"] or exited.done():
                    return
                await asyncio.sleep(_SIGNAL_AGAIN_SECONDS)

    def kill_group_after(self, process: ProcessIdentity, exited: asyncio.Future[T], seconds: float) -> None:
        """Kill the process and its session if `exited` is not done within that time. Does not wait."""

        async def kill_unless_exited() -> None:
            await asyncio.wait({exited}, timeout=seconds)
            if not exited.done():
                await self.try_signal(process, exited, signal.SIGKILL, group=True)

        task = asyncio.ensure_future(kill_unless_exited())
        self._killing.add(task)
        task.add_done_callback(self._killing.discard)


def _signal_message(process: ProcessIdentity, number: int, *, group: bool) -> Message:
    return {"op": "signal", "pid": process.pid, "start": process.start, "signal": number, "group": group}


class UnfitInterpreter(Refused):
    """An interpreter cannot run workers; `hint` says how to fix this."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


class InterpreterZygoteIdentity(NamedTuple):
    """Identifies a zygote: its interpreter, and its `user` (uid, gid), None for the pool's user."""

    interpreter: str
    user: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """The name of the zygote's entry in the keeper's store."""
        return self.interpreter if self.user is None else "{}:{}:{}".format(*self.user, self.interpreter)

    @classmethod
    def for_user(cls, interpreter: str, user: tuple[int, int] | None) -> InterpreterZygoteIdentity:
        """Return the zygote for servers of `user`. It runs as `user` if root must not trust the interpreter's files."""
        return cls(interpreter, ids_to_start_interpreter_as(interpreter, user, os.environ))

    @classmethod
    def from_key(cls, key: str) -> InterpreterZygoteIdentity:
        """Return the identity whose property `key` has this value."""
        found = re.fullmatch(r"(\d+):(\d+):(/.*)", key, re.DOTALL)
        return cls(key) if found is None else cls(found[3], (int(found[1]), int(found[2])))


class Zygotes:
    """Forks workers from zygotes. The zygotes' own (rare) output goes to files in `directory`."""

    def __init__(
        self, keeper: Link, children: Children, directory: str, notes: ProcessNotes | None = None
    ) -> None:
        self._keeper = keeper
        self._children = children
        self._notes = notes
        self._output = os.path.join(directory, "zygotes.log")
        self._running: dict[str, asyncio.Task[Link]] = {}
        self._processes: dict[Link, ProcessIdentity] = {}
        # The variables missing in a zygote's environment, by interpreter.
        self._without: dict[str, list[str]] = {}

    async def fork(
        self, source: InterpreterZygoteIdentity, fds: Sequence[int], role: str = "worker"
    ) -> ProcessIdentity:
        """Fork a process that has inherited `fds` and waits for the order to begin. `role`: "worker" or "app" (zygote).

        Raises WorkerFailed. Raises LinkLost if the zygote exited or hung; the process may still have been forked. The
        caller may try again with another control socket.
        """
        zygote = await self.ensure_zygote_up(source)
        # Looked up before the call, because the zygote may exit right after its reply.
        process = self._processes.get(zygote)
        if process is None:
            raise LinkLost("it has exited")
        try:
            reply, _ = await zygote.call({"op": role}, fds, patience_seconds=SILENT_SECONDS)
            uid = None if source.user is None else source.user[0]
            forked = await self._children.verified_process(reply, uid, process.start)
            if role == "app":
                self._note(forked)
            return forked
        except Forged as error:
            zygote.cut_off(str(error))
            raise self._worker_failed(source, error) from error
        except Refused as error:
            raise self._worker_failed(source, error) from error

    async def ensure_zygote_up(self, source: InterpreterZygoteIdentity) -> Link:
        """The link to the zygote, once it can fork. Raises WorkerFailed, or LinkLost if it has exited meanwhile."""
        try:
            return await asyncio.shield(self.start(source))
        except UnfitInterpreter as error:
            raise WorkerFailed(f"{source.interpreter} {error}", hint=error.hint) from error

    async def with_retry(self, source: InterpreterZygoteIdentity, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, a fork that is repeated once if the zygote exits meanwhile. Raises WorkerFailed."""
        with contextlib.suppress(LinkLost):
            return await attempt()
        try:
            return await attempt()
        except LinkLost as error:
            raise self._worker_failed(source, error) from error

    def _worker_failed(self, source: InterpreterZygoteIdentity, error: LinkLost | Forged) -> WorkerFailed:
        """The error for a zygote that does not start or fork; its hint leads to the cause in the zygote's output."""
        hint = f"see {self._output}"
        if source.user is not None:
            # A process of another user may not write into the pool's files.
            uid, gid = source.user
            hint = f"try: setpriv --reuid={uid} --regid={gid} --init-groups {source.interpreter} -c 'import uvicorn'"
        return WorkerFailed(f"no worker can be forked in {source.interpreter}: {error}", hint=hint)

    def discard(self, source: InterpreterZygoteIdentity, deed: str) -> None:
        """Stop using the zygote, which reported a process that it cannot have forked. `deed` describes the report."""
        if (link := _link_of(self._running.get(source.key))) is not None:
            link.cut_off(deed)

    @property
    def processes(self) -> list[ProcessIdentity]:
        """All zygote processes that have not exited, including those that are still starting."""
        return list(self._processes.values())

    def close(self) -> None:
        """End every zygote; workers keep running."""
        for key in list(self._running):
            self._end(key)

    def _end(self, key: str) -> None:
        task = self._running.pop(key, None)
        if task is None:
            return
        self._keeper.send({"op": "drop", "name": f"{fd_store.ZYGOTE}{key}"})
        if (link := _link_of(task)) is not None:
            self._end_process(link)
        else:
            task.cancel()

    def _end_process(self, link: Link) -> None:
        """Close the link, so that its process exits. A process that does not exit, because it is stopped, is killed."""
        link.close()
        process = self._processes.pop(link, None)
        if process is not None:
            asyncio.get_running_loop().call_later(END_SECONDS, self._children.kill_group_now, process)

    def start(self, source: InterpreterZygoteIdentity) -> asyncio.Task[Link]:
        """Return the task that starts or adopts the zygote; the task's result is the Link to the zygote. Does not wait.

        If the zygote already runs, the returned task is already done. A zygote adopted from an earlier supervisor may
        still send replies meant for that supervisor.
        """
        key = source.key
        without = withheld_variables()
        if self._without.get(key, without) != without:
            self._end(key)
        self._without[key] = without
        task = self._running.get(key)
        if task is None or (task.done() and _link_of(task) is None):
            task = asyncio.ensure_future(self._adopt_or_spawn(source))
            # Marks the exception as retrieved, because there may be no caller that awaits this task.
            task.add_done_callback(lambda started: started.cancelled() or started.exception())
            self._running[key] = task
        return task

    async def _adopt_or_spawn(self, source: InterpreterZygoteIdentity) -> Link:
        key = source.key
        kept = await self._fetch_usable_from_store(key)
        # A zygote from the keeper's store has most likely been up for a long time.
        limit_seconds = START_SECONDS if kept is None else SILENT_SECONDS
        sock, process = kept or await self._spawn_and_store(source)
        zygote = _Zygote(self, source)
        zygote.link = link = Link(sock, zygote, trusted=False)
        self._processes[link] = process
        if kept is not None:
            # Another supervisor may have received its first message.
            link.send({"op": "ping"})
        try:
            async with asyncio.timeout(limit_seconds):
                await zygote.up
        except BaseException as error:
            self._end_process(link)
            if isinstance(error, TimeoutError):
                zygote.on_link_lost()  # so that it is not used again
                raise LinkLost(f"the interpreter was not up within {limit_seconds:g} s") from None
            raise
        return link

    def end_lost_zygote(self, zygote: _Zygote) -> None:
        """Forget a zygote that has exited or does not answer; the next fork starts another."""
        key = zygote.source.key
        if self._running.get(key) is zygote.starting:
            del self._running[key]
            self._keeper.send({"op": "drop", "name": f"{fd_store.ZYGOTE}{key}"})
        self._end_process(zygote.link)

    async def _fetch_usable_from_store(self, key: str) -> tuple[socket.socket, ProcessIdentity] | None:
        """Return the socket and process of a zygote that an earlier supervisor stored; None if there is none to use.

        A zygote is not used if the variables removed from its environment differ from those that are withheld now.
        """
        reply, fds = await self._keeper.call({"op": "get", "name": f"{fd_store.ZYGOTE}{key}"})
        if not fds:
            return None
        meta = reply.get("meta") or {}
        if meta.get("without", []) == self._without[key]:
            self._note(_process_of(meta))
            return wire.socket_from_fd(fds[0]), _process_of(meta)
        for fd in fds:
            os.close(fd)
        return None

    async def _spawn_and_store(
        self, source: InterpreterZygoteIdentity
    ) -> tuple[socket.socket, ProcessIdentity]:
        argv, output = command(source.interpreter, "worker", "zygote"), self._output
        without = self._without[source.key]
        if source.user is not None:
            argv, output = as_user(*source.user, argv), os.devnull
        ours, theirs = wire.pair()
        try:
            with theirs:
                pid = await process_link.spawn(self._keeper, argv, output, [theirs], without)
        except BaseException:
            ours.close()
            raise
        meta = {"without": without, "pid": pid, "start": process_start(pid)}
        self._keeper.send(
            {"op": "put", "name": f"{fd_store.ZYGOTE}{source.key}", "meta": meta}, [ours.fileno()]
        )
        self._note(_process_of(meta))
        return ours, _process_of(meta)

    def _note(self, process: ProcessIdentity) -> None:
        if self._notes is not None and process.start is not None:
            self._notes.add(ProcessNote(process.pid, process.start, "a zygote"))


class _Zygote(LinkHandler):
    """Receives the messages of one zygote. `up` is done once the zygote can fork."""

    link: Link

    def __init__(self, zygotes: Zygotes, source: InterpreterZygoteIdentity) -> None:
        self.source = source
        self.starting = asyncio.current_task()
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._zygotes = zygotes

    def received(self, message: wire.Message, fds: list[int]) -> None:
        event = sanitized_text_or_empty(message, "event")
        if event == "up" and not self.up.done():
            self.up.set_result(None)
        elif event == "unfit" and not self.up.done():
            self.up.set_exception(
                UnfitInterpreter(
                    sanitized_text_or_empty(message, "reason"), sanitized_text_or_empty(message, "hint")
                )
            )

    def on_link_lost(self) -> None:
        if not self.up.done():
            self.up.set_exception(LinkLost("the interpreter exited at its start"))
        self._zygotes.end_lost_zygote(self)

    def on_violation(self, deed: str) -> None:
        logger.warning("the zygote of %s %s: replacing it", self.source.interpreter, deed)


def _link_of(started: asyncio.Task[Link] | None) -> Link | None:
    """The link to a zygote that is up; None while it starts, or if it has failed to start."""
    up = started is not None and started.done() and not started.cancelled() and started.exception() is None
    return started.result() if started is not None and up else None


def _process_of(meta: wire.Message) -> ProcessIdentity:
    return ProcessIdentity(int(meta.get("pid", 0)), meta.get("start"))


class ImportFailed(WorkerFailed):
    """The application cannot be imported. `printed` is its output, which is already in the log of `server`.

    `missing` is the name of the module that was not found, or "".
    """

    def __init__(
        self,
        message: str,
        server: str,
        printed: list[str],
        missing: str = "",
        *,
        hint: str = "",
        exit: Exit | None,
    ) -> None:
        super().__init__(message, hint=hint or f"poolctl logs {server}", exit=exit)
        self.server = server
        self.printed = printed
        self.missing = missing


class AppZygote(LinkHandler):
    """A process that imports an application and forks workers from it.

    `code_since` is a monotonic time: the process has imported code that was current then, or newer code. It is infinite
    until the import begins. The result of the future `up` is "" once the process can fork workers, or the reason why it
    never can; its exception is LinkLost if the process exits before that.
    """

    def __init__(
        self,
        keeper: Link,
        children: Children,
        sock: socket.socket,
        key: str,
        process: ProcessIdentity,
        uid: int | None,
        server: str,
        code_since: float = math.inf,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._keeper = keeper
        self._children = children
        self.key = key
        self.code_since = code_since
        self.process = process
        self.uid = uid  # the user it runs as; None for the pool's own
        self.server = server  # the server whose log gets the output of the import
        self.begun: asyncio.Future[None] = loop.create_future()
        self.imported: asyncio.Future[None] = loop.create_future()
        self.up: asyncio.Future[str] = loop.create_future()
        self.up.add_done_callback(self._mark_import_finished)
        self.exited: asyncio.Future[Exit] = loop.create_future()
        self._reason = self._missing_module = ""
        self._forks = 0  # in progress
        self._ends = False
        self.link = Link(sock, self, trusted=False)
        if (early := children.register_unless_exited(process.pid)) is not None:
            self.exited.set_result(early)

    @property
    def name(self) -> str:
        """The name of the zygote's entry in the keeper's store."""
        return f"{fd_store.APP_ZYGOTE}{self.key}.{self.process.pid}"

    @property
    def usable(self) -> bool:
        """Whether the zygote can be asked to fork."""
        return not self._ends and self.link.sock.fileno() >= 0

    def begin_import(self) -> None:
        """Order the zygote to import the application."""
        self.code_since = min(self.code_since, time.monotonic())
        self.link.send({"order": "go"})
        self._mark_begun()

    def received(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        event = sanitized_text_or_empty(message, "event")
        if event == "failed":
            self._reason = masked_text(sanitized_text_or_empty(message, "message"))
            self._missing_module = sanitized_text_or_empty(message, "missing")
        elif event in ("up", "unusable") and not self.up.done():
            self.up.set_result(sanitized_text_or_empty(message, "problem"))

    def on_link_lost(self) -> None:
        self._keeper.send({"op": "drop", "name": self.name})
        self._give_up()
        self._children.kill_group_after(self.process, self.exited, END_SECONDS)

    def on_violation(self, deed: str) -> None:
        logger.warning("the process that has imported %s %s: killing it", self.server, deed)
        self._children.kill_group_after(self.process, self.exited, 0.0)

    async def fork_obstacle_after_import(
        self, timeout_seconds: float, output: OutputPipes, pipe: str = ""
    ) -> str:
        """Wait for the import to finish. Return "", or why the imported application must not be forked.

        If the import fails, raise ImportFailed, after the output from `pipe` was logged. If cancelled, end the zygote.
        """
        since = time.time()
        exit_ = None
        try:
            await asyncio.shield(self.begun)
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(self.up)
        except TimeoutError:
            message = f"was not ready within {format_duration(timeout_seconds)}"
            hint = f"poolctl logs {self.server}; start_timeout sets how long it may take"
        except LinkLost:
            exit_ = Exit(message="ended")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EXIT_SECONDS):
                    exit_ = await asyncio.shield(self.exited)
            message = exit_.message_before_ready(self._reason)
            hint = ""
        except asyncio.CancelledError:
            self.end()
            raise
        self.end()
        await output.wait_until_stored(pipe, _LAST_OUTPUT_SECONDS)
        path = output.paths.get(self.server, "")
        printed = await asyncio.to_thread(last_lines, path, _LAST_LINES, since) if path else []
        raise ImportFailed(message, self.server, printed, self._missing_module, hint=hint, exit=exit_)

    async def fork(self, fds: Sequence[int]) -> ProcessIdentity:
        """Fork a worker that inherits `fds`. Raises WorkerFailed, or LinkLost if the zygote has exited."""
        self._forks += 1
        try:
            reply, _ = await self.link.call({"op": "worker"}, fds, patience_seconds=SILENT_SECONDS)
            return await self._children.verified_process(reply, self.uid, self.process.start)
        except Refused as error:
            raise WorkerFailed(f"no worker can be forked: {error}") from error
        except Forged as error:
            self.link.cut_off(str(error))
            raise WorkerFailed(
                f"its preloaded application {error}: it is not trusted",
                hint=f"check what {self.server} imports",
            ) from error
        finally:
            self._forks -= 1
            if self._ends:
                self._close_if_no_forks_pending()

    def end(self) -> None:
        """Let the process exit after the forks in progress; a process that is importing is killed."""
        importing = not self.up.done()
        seconds = END_SECONDS + (SILENT_SECONDS if self._forks else 0.0)
        self._ends = True
        self._close_if_no_forks_pending()
        self._give_up()
        self._children.kill_group_after(self.process, self.exited, 0.0 if importing else seconds)

    def _close_if_no_forks_pending(self) -> None:
        if not self._forks:
            self.link.close()
            # Only now: the keeper shuts down a socket that it drops, and our descriptor refers to the same socket.
            self._keeper.send({"op": "drop", "name": self.name})

    def _give_up(self) -> None:
        if not self.up.done():
            self.up.set_exception(LinkLost("the process has exited"))

    def _mark_import_finished(self, up: asyncio.Future[str]) -> None:
        up.exception()  # mark it as retrieved, because there may be no caller that awaits it
        self.imported.set_result(None)
        self._mark_begun()

    def _mark_begun(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)


class ImportLimit:
    """The limit of how many processes import their applications at once; further processes wait in a queue.

    Waiting processes are already forked, so that forks and imports run at the same time on different processors.
    """

    def __init__(self, at_once: int = IMPORTS_PER_CPU * (os.cpu_count() or 1)) -> None:
        self._free = at_once
        self._waiting: deque[tuple[Callable[[], None], asyncio.Future[None]]] = deque()

    def queue(self, begin: Callable[[], None], imported: asyncio.Future[None]) -> None:
        """Call `begin` when an import may start, perhaps at once. The import runs until `imported` is done."""
        self._waiting.append((begin, imported))
        self._begin_queued_imports()

    def _begin_queued_imports(self) -> None:
        while self._free and self._waiting:
            begin, imported = self._waiting.popleft()
            # A process that has exited while it waited is not counted.
            if not imported.done():
                self._free -= 1
                imported.add_done_callback(self._end_import)
            begin()

    def _end_import(self, imported: asyncio.Future[None]) -> None:
        self._free += 1
        self._begin_queued_imports()


class _ImportInProgress:
    """An import in progress, or waiting for its turn."""

    task: asyncio.Task[AppZygote | str]

    def __init__(self, zygote: AppZygote | None = None) -> None:
        self.zygote = zygote

    @property
    def code_since(self) -> float:
        return math.inf if self.zygote is None else self.zygote.code_since


class AppZygotes:
    """Starts app zygotes when servers need them, and ends those that no server needs.

    `turns` limits how many of them import at the same time.
    """

    def __init__(
        self, keeper: Link, children: Children, zygotes: Zygotes, output: OutputPipes, turns: ImportLimit
    ) -> None:
        self._keeper = keeper
        self._children = children
        self._zygotes = zygotes
        self._output = output
        self._turns = turns
        self._by_pid: dict[int, AppZygote] = {}
        self._present: dict[str, AppZygote] = {}
        self._imports_in_progress: dict[str, _ImportInProgress] = {}
        self._unusable: dict[str, tuple[float, str]] = {}
        self._key_of: dict[str, str] = {}  # a zygote's key by the server's address

    async def get_or_import(self, server: ServerConfig, spec: Spec, since: float) -> AppZygote | str:
        """A zygote with code not older than `since` (monotonic seconds), or the reason why no zygote can be used.

        Raises WorkerFailed if the application cannot be imported.
        """
        key = self.retain_and_get_key(server, spec)
        present = self._present.get(key)
        if present is not None and present.usable and present.code_since >= since:
            return present
        tried_at, problem = self._unusable.get(key, (-1.0, ""))
        if tried_at >= since:
            return problem
        making = self._imports_in_progress.get(key)
        if making is None or making.code_since < since:
            making = _ImportInProgress()
            self._start_import_task(key, making, self._make(key, server, spec, making))
        task = making.task
        try:
            return await asyncio.shield(task)
        except ImportFailed as failure:
            hint = failure.hint.replace(f"poolctl logs {failure.server}", f"poolctl logs {server.name}")
            if failure.missing:
                hint = f"{missing_module_hint(failure.missing, server)}; {hint}"
            if failure.server != server.name:
                # Several servers share the import, and the log of each gets its output.
                await self._output.append_lines(server, failure.printed)
            raise WorkerFailed(failure.message, hint=hint, exit=failure.exit) from None
        except asyncio.CancelledError:
            if task.cancelled():
                raise WorkerFailed("was stopped before its application was imported") from None
            raise

    def retain_and_get_key(self, server: ServerConfig, spec: Spec) -> str:
        """Record that the server needs a zygote; returns the zygote's key."""
        key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
        if self._key_of.get(server.key) != key:
            self.release(server.key)
            self._key_of[server.key] = key
        return key

    def release(self, address: str) -> None:
        """Record that the server of this address has been stopped. A zygote that no server needs is ended."""
        key = self._key_of.pop(address, None)
        if key is not None:
            self._end_if_unneeded(key)

    def handle_exit(self, pid: int, exit_: Exit) -> bool:
        """Handle the exit of a process. Returns whether it was an app zygote."""
        zygote = self._by_pid.pop(pid, None)
        if zygote is not None:
            zygote.exited.set_result(exit_)
        return zygote is not None

    @property
    def processes(self) -> list[ProcessIdentity]:
        """The processes of all app zygotes that have not exited."""
        return [zygote.process for zygote in self._by_pid.values()]

    def adopt(self, _: str, meta: wire.Message, fds: list[int]) -> tuple[()]:
        """Adopt an earlier supervisor's app zygote. When all are adopted, the caller calls `end_unneeded`."""
        process = ProcessIdentity(int(meta["pid"]), meta.get("start"))
        code_since, server, uid = float(meta["asked_at"]), str(meta["server"]), meta.get("uid")
        sock, key = wire.socket_from_fd(fds[0]), meta["key"]
        zygote = AppZygote(self._keeper, self._children, sock, key, process, uid, server, code_since)
        self._register(zygote)
        before = self._imports_in_progress.get(zygote.key)
        if before is not None and before.code_since > zygote.code_since:
            zygote.end()
            return ()
        zygote.begin_import()
        # A ping, because it may have reported to another supervisor that it is up.
        zygote.link.send({"op": "ping"})
        if before is not None:
            before.task.cancel()
        self._start_import_task(
            zygote.key, _ImportInProgress(zygote), self._finish_import(zygote, _ADOPTED_IMPORT_SECONDS)
        )
        return ()

    def end_unneeded(self) -> None:
        """End the zygotes that no server needs."""
        for key in {*self._present, *self._imports_in_progress}:
            self._end_if_unneeded(key)

    def close(self) -> None:
        """End all app zygotes. Workers keep running."""
        self._key_of.clear()
        self.end_unneeded()

    def _end_if_unneeded(self, key: str) -> None:
        if key in self._key_of.values():
            return
        self._unusable.pop(key, None)
        if (making := self._imports_in_progress.get(key)) is not None:
            making.task.cancel()
        if (zygote := self._present.pop(key, None)) is not None:
            zygote.end()

    def _start_import_task(
        self, key: str, making: _ImportInProgress, work: Coroutine[Any, Any, AppZygote | str]
    ) -> None:
        making.task = asyncio.ensure_future(work)
        self._imports_in_progress[key] = making

        def done(made: asyncio.Task[AppZygote | str]) -> None:
            if self._imports_in_progress.get(key) is making:
                del self._imports_in_progress[key]
            # Mark the exception as retrieved, because there may be no caller that awaits this task.
            if not made.cancelled():
                made.exception()

        making.task.add_done_callback(done)

    async def _make(
        self, key: str, server: ServerConfig, spec: Spec, making: _ImportInProgress
    ) -> AppZygote | str:
        making.zygote, pipe = await self._fork_with_output_pipe(key, server, spec)
        self._turns.queue(making.zygote.begin_import, making.zygote.imported)
        return await self._finish_import(making.zygote, server.start_timeout, pipe)

    async def _fork_with_output_pipe(
        self, key: str, server: ServerConfig, spec: Spec
    ) -> tuple[AppZygote, str]:
        """Fork a process that waits for its turn to import, and return it with the key of its output pipe."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as if_failed:
            link, theirs = wire.pair()
            if_failed.enter_context(link)
            ours.enter_context(theirs)
            pipe, write = self._output.create_pipe(server)
            if_failed.callback(self._output.discard, pipe)
            ours.callback(os.close, write)
            file = spec_file({**spec, "server": server.name})
            ours.callback(os.close, file)
            # If the base zygote exits now, the request can be repeated.
            fds = [file, theirs.fileno(), write]
            source = InterpreterZygoteIdentity.for_user(spec["python"], spec["user"])
            process = await self._zygotes.with_retry(source, lambda: self._zygotes.fork(source, fds, "app"))
            if_failed.pop_all()
            self._output.register_pipe(pipe, process.pid)
            uid = spec["user"][0] if spec["user"] is not None else None
            zygote = AppZygote(self._keeper, self._children, link, key, process, uid, server.name)
            self._register(zygote)
            if source.user is not None:

                def on_forged(deed: str) -> None:
                    self._zygotes.discard(source, deed)
                    zygote.link.cut_off(deed)

                self._children.schedule_parent_check(process, on_forged)
            meta = {
                "key": key,
                "asked_at": time.monotonic(),
                "pid": process.pid,
                "start": process.start,
                "uid": uid,
                "server": server.name,
            }
            self._keeper.send({"op": "put", "name": zygote.name, "meta": meta}, [link.fileno()])
        return zygote, pipe

    def _register(self, zygote: AppZygote) -> None:
        if not zygote.exited.done():
            self._by_pid[zygote.process.pid] = zygote

    async def _finish_import(
        self, zygote: AppZygote, timeout_seconds: float, pipe: str = ""
    ) -> AppZygote | str:
        problem = await zygote.fork_obstacle_after_import(timeout_seconds, self._output, pipe)
        if problem:
            self._unusable[zygote.key] = (zygote.code_since, problem)
            zygote.end()
            return problem
        before = self._present.get(zygote.key)
        if before is None or not before.usable:
            newest = zygote
        else:
            # Imports may end in a different order than they began.
            older, newest = sorted((before, zygote), key=lambda each: each.code_since)
            older.end()
        self._present[zygote.key] = newest
        return newest
