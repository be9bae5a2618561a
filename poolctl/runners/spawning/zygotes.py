"""The zygotes of a pool, one an interpreter: started when the first worker needs one, replaced when one dies."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from poolctl.bootstrap import command
from poolctl.keeper import stored, wire
from poolctl.platform import process_start

from .. import untrusted, withheld
from ..link import Link, LinkLost, Refused
from ..protocol import WorkerFailed
from .children import Children, Forged, Process, kill

START_SECONDS = 30.0
# A fork takes milliseconds. Who is silent for so long while it is asked for some is stopped, or stuck.
SILENT_SECONDS = 10.0
# In which one ends that nobody needs any more.
END_SECONDS = 2.0

T = TypeVar("T")

logger = logging.getLogger("poolctl.supervisor")


class Unfit(Refused):
    """An interpreter that cannot run workers; `hint` is the mend."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.hint = hint


class Zygotes:
    """Forks workers by way of the keeper's zygotes; `directory` takes their own (seldom) output."""

    def __init__(self, keeper: Link, children: Children, directory: str) -> None:
        self._keeper = keeper
        self._children = children
        self._output = os.path.join(directory, "helpers.log")
        self._running: dict[str, asyncio.Task[Link]] = {}
        self._processes: dict[Link, Process] = {}
        self._without: dict[
            str, list[str]
        ] = {}  # by interpreter: the variables that its zygote was not given

    def adopt(self, interpreter: str) -> None:
        """Listen to a zygote that the keeper holds: it may have answered a supervisor that is dead."""
        self._zygote(interpreter)

    async def fork(self, interpreter: str, fds: Sequence[int], role: str = "worker") -> Process:
        """A new worker that was given `fds`, and that waits to be told to begin (or of another role).

        Raises WorkerFailed; LinkLost when the zygote died or got stuck meanwhile, perhaps after the fork: asked again
        with another control socket, the next one does it.
        """
        zygote = await self.up(interpreter)
        try:
            reply, _ = await zygote.call({"op": role}, fds, patience_seconds=SILENT_SECONDS)
            return await self._children.verify(reply, None, None)
        except (Refused, Forged) as error:
            raise self._failure(interpreter, error) from error

    async def up(self, interpreter: str) -> Link:
        """The interpreter's zygote, once it can fork. Raises WorkerFailed; LinkLost when it has died meanwhile."""
        try:
            return await asyncio.shield(self._zygote(interpreter))
        except Unfit as error:
            raise WorkerFailed(f"{interpreter} {error}", hint=error.hint) from error

    async def twice(self, interpreter: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What the attempt to fork gives, made again if the zygote died meanwhile. Raises WorkerFailed."""
        for last in (False, True):
            try:
                return await attempt()
            except LinkLost as error:
                if last:
                    raise self._failure(interpreter, error) from error
        raise AssertionError("unreachable")

    def _failure(self, interpreter: str, error: LinkLost | Forged) -> WorkerFailed:
        """What to say of an interpreter in which nothing can be forked: why is in its zygote's output."""
        return WorkerFailed(f"no worker can be forked in {interpreter}: {error}", hint=f"see {self._output}")

    def close(self) -> None:
        """End every zygote; workers live on."""
        for interpreter in list(self._running):
            self._end(interpreter)

    def _end(self, interpreter: str) -> None:
        task = self._running.pop(interpreter, None)
        if task is None:
            return
        self._keeper.send({"op": "drop", "name": f"{stored.ZYGOTE}{interpreter}"})
        if task.done() and not task.cancelled() and task.exception() is None:
            self._let_go(task.result())
        else:
            task.cancel()

    def _let_go(self, link: Link) -> None:
        """Let the process end that is at the other end of the link; kill it if it does not: it may be stopped."""
        link.close()
        process = self._processes.pop(link, None)
        if process is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(END_SECONDS, kill, self._keeper, process)

    def _zygote(self, interpreter: str) -> asyncio.Task[Link]:
        without = withheld.present()
        if self._without.get(interpreter, without) != without:
            self._end(interpreter)
        self._without[interpreter] = without
        task = self._running.get(interpreter)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = asyncio.ensure_future(self._start(interpreter))
            # Those who wait for it see the exception; often nobody does.
            task.add_done_callback(lambda started: started.cancelled() or started.exception())
            self._running[interpreter] = task
        return task

    async def _start(self, interpreter: str) -> Link:
        starting = asyncio.current_task()
        up: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_message(message: wire.Message, fds: list[int]) -> None:
            event = untrusted.text(message, "event")
            if event == "up" and not up.done():
                up.set_result(None)
            elif event == "unfit" and not up.done():
                up.set_exception(Unfit(untrusted.text(message, "reason"), untrusted.text(message, "hint")))

        def on_end() -> None:
            if self._running.get(interpreter) is starting:
                del self._running[interpreter]
                self._keeper.send({"op": "drop", "name": f"{stored.ZYGOTE}{interpreter}"})
            if not up.done():
                up.set_exception(LinkLost("the interpreter ended at its start"))
            self._let_go(link)

        kept = await self._kept(interpreter)
        # One that is kept has most likely been up for long.
        limit_seconds = START_SECONDS if kept is None else SILENT_SECONDS
        sock, process = kept or await self._spawn(interpreter)
        link = Link(sock, on_message, on_end, on_breach=lambda deed: self._breached(interpreter, deed))
        self._processes[link] = process
        if kept is not None:
            # Its first word may have been heard by another supervisor.
            link.send({"op": "ping"})
        try:
            async with asyncio.timeout(limit_seconds):
                await up
        except BaseException as error:
            self._let_go(link)
            if isinstance(error, TimeoutError):
                on_end()  # or it would be asked for again
                raise LinkLost(f"the interpreter was not up within {limit_seconds:g} s") from None
            raise
        return link

    def _breached(self, interpreter: str, deed: str) -> None:
        logger.warning("the zygote of %s %s: it is replaced", interpreter, deed)

    async def _kept(self, interpreter: str) -> tuple[socket.socket, Process] | None:
        """A zygote that the keeper has started or kept, if it has the right environment."""
        reply, fds = await self._keeper.call({"op": "get", "name": f"{stored.ZYGOTE}{interpreter}"})
        if not fds:
            return None
        meta = reply.get("meta") or {}
        if meta.get("without", []) == self._without[interpreter]:
            return wire.over(fds[0]), _process(meta)
        for fd in fds:
            os.close(fd)
        return None

    async def _spawn(self, interpreter: str) -> tuple[socket.socket, Process]:
        argv, without = command(interpreter, "worker", "zygote"), self._without[interpreter]
        order = {"op": "spawn", "argv": argv, "output": self._output, "session": True, "without": without}
        ours, theirs = wire.pair()
        with theirs:
            reply, _ = await self._keeper.call(order, [theirs.fileno()])
        meta = {"without": without, "pid": reply["pid"], "start": process_start(reply["pid"])}
        self._keeper.send(
            {"op": "put", "name": f"{stored.ZYGOTE}{interpreter}", "meta": meta}, [ours.fileno()]
        )
        return ours, _process(meta)


def _process(meta: wire.Message) -> Process:
    return Process(int(meta.get("pid", 0)), meta.get("start"))
