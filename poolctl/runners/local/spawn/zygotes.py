"""The zygotes of a pool, one per interpreter.

Each is started when a worker first needs it, and replaced when it dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from poolctl.bootstrap import as_user, command
from poolctl.clock import PING_SECONDS, aligned
from poolctl.config import enter_as
from poolctl.keeper import fd_store, wire
from poolctl.platform import is_stopped, process_start

from ... import untrusted_messages, withheld_variables
from ...process_link import Link, LinkLost, Receiver, Refused, spawn
from ...runner_protocol import WorkerFailed
from ..fork_verification import Children, Forged, Process

START_SECONDS = 30.0
# A fork takes milliseconds. A zygote that is silent for longer with requests pending is stopped, or hangs.
SILENT_SECONDS = 10.0
# Time for which a check of the users that can change an interpreter's files is valid.
_OWNER_SECONDS = 10.0
# Time for an unused one to exit.
END_SECONDS = 2.0

T = TypeVar("T")

logger = logging.getLogger("poolctl.supervisor")


class Unfit(Refused):
    """An interpreter cannot run workers; `hint` says how to fix this."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


class Source(NamedTuple):
    """Names a zygote to fork from: its interpreter, and its `user` (uid, gid), or None for the pool's user."""

    interpreter: str
    user: tuple[int, int] | None = None

    @property
    def key(self) -> str:
        """The name of the zygote's entry in the keeper's store."""
        return self.interpreter if self.user is None else "{}:{}:{}".format(*self.user, self.interpreter)

    @classmethod
    def of(cls, key: str) -> Source:
        """The source that has this key."""
        found = re.fullmatch(r"(\d+):(\d+):(/.*)", key, re.DOTALL)
        return cls(key) if found is None else cls(found[3], (int(found[1]), int(found[2])))


class Zygotes:
    """Forks workers from zygotes. The zygotes' own (rare) output goes to files in `directory`."""

    def __init__(self, keeper: Link, children: Children, directory: str) -> None:
        self._keeper = keeper
        self._children = children
        self._output = os.path.join(directory, "helpers.log")
        self._running: dict[str, asyncio.Task[Link]] = {}
        self._processes: dict[Link, Process] = {}
        self._entered_as: dict[tuple[str, tuple[int, int]], tuple[float, tuple[int, int] | None]] = {}
        self._without: dict[
            str, list[str]
        ] = {}  # by interpreter: the variables left out of its zygote's environment

    def adopt(self, source: Source) -> None:
        """Adopt a zygote that the keeper holds. It may still send replies meant for a supervisor that has exited."""
        self._zygote(source)

    def source(self, interpreter: str, user: tuple[int, int] | None) -> Source:
        """The zygote for a server with that user.

        It runs as that user if others can change the files that it runs.
        """
        if user is None:
            return Source(interpreter)
        now = asyncio.get_running_loop().time()
        looked_at, entered_as = self._entered_as.get((interpreter, user), (-_OWNER_SECONDS, None))
        if now - looked_at >= _OWNER_SECONDS:
            entered_as = enter_as(interpreter, user, os.environ)
            self._entered_as[interpreter, user] = now, entered_as
        return Source(interpreter, entered_as)

    async def fork(self, source: Source, fds: Sequence[int], role: str = "worker") -> Process:
        """Fork a process that has inherited `fds` and waits for the order to begin.

        Raises WorkerFailed. Raises LinkLost if the zygote exited or hung meanwhile, perhaps after the fork: repeat the
        request with another control socket, and the next zygote serves it.
        """
        zygote = await self.up(source)
        try:
            reply, _ = await zygote.call({"op": role}, fds, patience_seconds=SILENT_SECONDS)
            uid = None if source.user is None else source.user[0]
            return await self._children.verify(reply, uid, self._processes[zygote].start)
        except Forged as error:
            zygote.cut_off(str(error))
            raise self._worker_failed(source, error) from error
        except Refused as error:
            raise self._worker_failed(source, error) from error

    async def up(self, source: Source) -> Link:
        """The link to the zygote, once it can fork. Raises WorkerFailed, or LinkLost if it has exited meanwhile."""
        try:
            return await asyncio.shield(self._zygote(source))
        except Unfit as error:
            raise WorkerFailed(f"{source.interpreter} {error}", hint=error.hint) from error

    async def twice(self, source: Source, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the attempt to fork, which is repeated once if the zygote exits meanwhile.

        Raises WorkerFailed.
        """
        for last in (False, True):
            try:
                return await attempt()
            except LinkLost as error:
                if last:
                    raise self._worker_failed(source, error) from error
        raise AssertionError("unreachable")

    def _worker_failed(self, source: Source, error: LinkLost | Forged) -> WorkerFailed:
        """The error for an interpreter whose zygote does not start; the zygote's output gives the cause."""
        hint = f"see {self._output}"
        if source.user is not None:
            # Another user's process does not write into the pool's files.
            uid, gid = source.user
            hint = f"try: setpriv --reuid={uid} --regid={gid} --init-groups {source.interpreter} -c 'import uvicorn'"
        return WorkerFailed(f"no worker can be forked in {source.interpreter}: {error}", hint=hint)

    def forged(self, source: Source, deed: str) -> None:
        """Stop using the zygote, because it has named a process that it cannot have forked."""
        task = self._running.get(source.key)
        if task is not None and task.done() and not task.cancelled() and task.exception() is None:
            task.result().cut_off(deed)

    @property
    def processes(self) -> list[Process]:
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
        if task.done() and not task.cancelled() and task.exception() is None:
            self._end_process(task.result())
        else:
            task.cancel()

    def _end_process(self, link: Link) -> None:
        """Let the process at the other end exit, and kill it if it does not, because it may be stopped by a signal."""
        link.close()
        process = self._processes.pop(link, None)
        if process is not None:
            asyncio.get_running_loop().call_later(END_SECONDS, self._children.kill, process)

    def _zygote(self, source: Source) -> asyncio.Task[Link]:
        key = source.key
        without = withheld_variables.present()
        if self._without.get(key, without) != without:
            self._end(key)
        self._without[key] = without
        task = self._running.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.ensure_future(self._start(source))
            # Callers that await it get the exception; often there are no callers.
            task.add_done_callback(lambda started: started.cancelled() or started.exception())
            self._running[key] = task
        return task

    async def _start(self, source: Source) -> Link:
        key = source.key
        kept = await self._take_from_store(key)
        # One from the keeper's store has most likely been up for long.
        limit_seconds = START_SECONDS if kept is None else SILENT_SECONDS
        sock, process = kept or await self._spawn(source)
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
                zygote.lost()  # otherwise it would be used again
                raise LinkLost(f"the interpreter was not up within {limit_seconds:g} s") from None
            raise
        return link

    def lost(self, zygote: _Zygote) -> None:
        """Forget a zygote that has exited or does not answer; the next fork starts another."""
        key = zygote.source.key
        if self._running.get(key) is zygote.starting:
            del self._running[key]
            self._keeper.send({"op": "drop", "name": f"{fd_store.ZYGOTE}{key}"})
        self._end_process(zygote.link)

    async def _take_from_store(self, key: str) -> tuple[socket.socket, Process] | None:
        """A zygote from the keeper's store, if it has the right environment; otherwise None."""
        reply, fds = await self._keeper.call({"op": "get", "name": f"{fd_store.ZYGOTE}{key}"})
        if not fds:
            return None
        meta = reply.get("meta") or {}
        if meta.get("without", []) == self._without[key]:
            return wire.over(fds[0]), _process(meta)
        for fd in fds:
            os.close(fd)
        return None

    async def _spawn(self, source: Source) -> tuple[socket.socket, Process]:
        argv, output = command(source.interpreter, "worker", "zygote"), self._output
        without = self._without[source.key]
        if source.user is not None:
            argv, output = as_user(*source.user, argv), os.devnull
        ours, theirs = wire.pair()
        pid = await spawn(self._keeper, argv, output, theirs, without)
        meta = {"without": without, "pid": pid, "start": process_start(pid)}
        self._keeper.send(
            {"op": "put", "name": f"{fd_store.ZYGOTE}{source.key}", "meta": meta}, [ours.fileno()]
        )
        return ours, _process(meta)


class _Zygote(Receiver):
    """Receives the messages of one zygote. `up` is done once the zygote can fork."""

    link: Link

    def __init__(self, zygotes: Zygotes, source: Source) -> None:
        self.source = source
        self.starting = asyncio.current_task()
        self.up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._zygotes = zygotes

    def received(self, message: wire.Message, fds: list[int]) -> None:
        event = untrusted_messages.text(message, "event")
        if event == "up" and not self.up.done():
            self.up.set_result(None)
        elif event == "unfit" and not self.up.done():
            self.up.set_exception(
                Unfit(untrusted_messages.text(message, "reason"), untrusted_messages.text(message, "hint"))
            )

    def lost(self) -> None:
        if not self.up.done():
            self.up.set_exception(LinkLost("the interpreter exited at its start"))
        self._zygotes.lost(self)

    def breached(self, deed: str) -> None:
        logger.warning("the zygote of %s %s: replacing it", self.source.interpreter, deed)


def _process(meta: wire.Message) -> Process:
    return Process(int(meta.get("pid", 0)), meta.get("start"))


logger = logging.getLogger("poolctl.supervisor")


class StoppedZygotes:
    """Kills zygotes that are found stopped (SIGSTOP) in two checks, so that no worker has to wait for them.

    Checks periodically, on the running loop until `close`. They are not asked, because each would have to fork for the
    answer. The next fork starts another zygote.
    """

    def __init__(self, children: Children, zygotes: Callable[[], Iterable[Process]]) -> None:
        self._children = children
        self._zygotes = zygotes
        self._stopped: set[Process] = (
            set()
        )  # at the last look: a debugger, or a paused container, takes a moment
        self._loop = asyncio.get_running_loop()
        self._set_timer()

    def close(self) -> None:
        """Stop checking."""
        self._timer.cancel()

    def _set_timer(self) -> None:
        self._timer = self._loop.call_at(aligned(self._loop.time(), PING_SECONDS), self._check_processes)

    def _check_processes(self) -> None:
        before, self._stopped = self._stopped, {each for each in self._zygotes() if is_stopped(each.pid)}
        for process in before & self._stopped:
            logger.error("a zygote (pid %d) is stopped: killing it", process.pid)
            self._children.kill(process)
        self._set_timer()
