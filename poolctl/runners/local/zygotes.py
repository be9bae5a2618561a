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
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from poolctl.bootstrap import as_user, command
from poolctl.config import ids_to_start_interpreter_as
from poolctl.keeper import fd_store, wire
from poolctl.platform import close_all, process_start

from .. import process_link
from ..left_overs import ProcessNote, ProcessNotes
from ..process_link import Link, LinkHandler, LinkLost, Refused, sanitized_text_or_empty
from ..runner_protocol import WorkerFailed
from ..withheld_variables import withheld_variables
from .children import Children, Forged, ProcessIdentity

logger = logging.getLogger("poolctl.supervisor")

START_SECONDS = 30.0
# A fork takes milliseconds. A zygote that is silent for longer with requests pending is stopped, or hangs.
SILENT_SECONDS = 10.0
# Time for an unused zygote to exit.
END_SECONDS = 2.0

T = TypeVar("T")


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
        match = re.fullmatch(r"(\d+):(\d+):(/.*)", key, re.DOTALL)
        return cls(key) if match is None else cls(match[3], (int(match[1]), int(match[2])))


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

    def discard(self, source: InterpreterZygoteIdentity, violation: str) -> None:
        """Stop using the zygote, which reported a process that it cannot have forked; `violation` describes that."""
        if (link := _link_of(self._running.get(source.key))) is not None:
            link.cut_off(violation)

    @property
    def processes(self) -> list[ProcessIdentity]:
        """All zygote processes that have not exited, including starting ones."""
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

        A zygote is not used if the variables removed from its environment are not the variables withheld now.
        """
        reply, fds = await self._keeper.call({"op": "get", "name": f"{fd_store.ZYGOTE}{key}"})
        if not fds:
            return None
        meta = reply.get("meta") or {}
        if meta.get("without", []) == self._without[key]:
            self._note(_process_of(meta))
            return wire.socket_from_fd(fds[0]), _process_of(meta)
        close_all(fds)
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

    def on_violation(self, violation: str) -> None:
        logger.warning("the zygote of %s %s: replacing it", self.source.interpreter, violation)


def _link_of(started: asyncio.Task[Link] | None) -> Link | None:
    """The link to a zygote that is up; None while it starts, or if it has failed to start."""
    up = started is not None and started.done() and not started.cancelled() and started.exception() is None
    return started.result() if started is not None and up else None


def _process_of(meta: wire.Message) -> ProcessIdentity:
    return ProcessIdentity(int(meta.get("pid", 0)), meta.get("start"))
