"""The app zygotes of a pool: processes that have imported an application and fork the workers of `preload` servers.

One serves all servers that are equal in what an import can see. It belongs to one version of the code: whoever orders a
newer one gets another zygote, the old one serves until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import time
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

from poolctl.config.model import ServerConfig
from poolctl.keeper import wire
from poolctl.units import format_duration

from .app_zygote import AppZygote
from .link import Link, LinkLost
from .output import Output
from .protocol import Exit, WorkerFailed
from .spec import Spec, spec_file
from .turns import Turns
from .zygotes import Zygotes

_EXIT_SECONDS = 1.0
_LAST_OUTPUT_SECONDS = 1.0
_ADOPTION_SECONDS = 30.0


class AppZygotes:
    """Makes them when they are needed, and ends them when no server needs them any more.

    Each imports when `turns` lets it. `early` holds exits that were reported before anybody knew the process.
    """

    def __init__(
        self, keeper: Link, zygotes: Zygotes, output: Output, turns: Turns, early: dict[int, Exit]
    ) -> None:
        self._keeper = keeper
        self._zygotes = zygotes
        self._output = output
        self._turns = turns
        self._early = early
        self._present: dict[str, AppZygote] = {}
        self._making: dict[str, tuple[float, asyncio.Task[AppZygote | str]]] = {}
        self._unusable: dict[str, tuple[float, str]] = {}
        self._by_pid: dict[int, AppZygote] = {}
        self._key_of: dict[str, str] = {}  # by the server's address
        self._users: defaultdict[str, set[str]] = defaultdict(set)

    async def get(self, server: ServerConfig, spec: Spec, since: float) -> AppZygote | str:
        """A zygote whose code is not older than `since` (monotonic, in seconds), or why there can be none.

        Raises WorkerFailed when the application cannot be imported.
        """
        key = self.need(server, spec)
        present = self._present.get(key)
        if present is not None and present.asked_at >= since:
            return present
        tried_at, problem = self._unusable.get(key, (-1.0, ""))
        if tried_at >= since:
            return problem
        asked_at, task = self._making.get(key, (-1.0, None))
        if task is None or asked_at < since:
            asked_at = time.monotonic()
            task = self._begin(key, asked_at, self._make(key, server, spec, asked_at))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise WorkerFailed("was stopped before its application was imported") from None
            raise

    def need(self, server: ServerConfig, spec: Spec) -> str:
        """Note what the server is forked from; the key of that."""
        key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
        if self._key_of.get(server.key) != key:
            self.release(server.key)
            self._key_of[server.key] = key
            self._users[key].add(server.key)
        return key

    def release(self, address: str) -> None:
        """The server of this address has been stopped."""
        key = self._key_of.pop(address, None)
        if key is not None:
            self._users[key].discard(address)
            self._end_unneeded(key)

    def exited(self, pid: int, exit_: Exit) -> bool:
        """Note the end of a process; whether it was one of these."""
        zygote = self._by_pid.pop(pid, None)
        if zygote is not None:
            zygote.exited.set_result(exit_)
        return zygote is not None

    def adopt(self, meta: wire.Message, fd: int) -> None:
        """Take over what another supervisor has made; `end_unneeded` follows."""
        zygote = AppZygote(meta["key"], float(meta["asked_at"]), int(meta["pid"]), str(meta["server"]))
        before, task = self._making.get(zygote.key, (-1.0, None))
        self._follow(zygote, wire.over(fd))
        if before > zygote.asked_at:
            self._end(zygote)
            return
        zygote.begin()
        # It has said that it is up, perhaps, but to another supervisor.
        zygote.link.send({"op": "ping"})
        if task is not None:
            task.cancel()
        self._begin(zygote.key, zygote.asked_at, self._settled(zygote, _ADOPTION_SECONDS))

    def end_unneeded(self) -> None:
        """End those that no server needs."""
        for key in {*self._present, *self._making}:
            self._end_unneeded(key)

    def close(self) -> None:
        """End all of them; workers live on."""
        self._users.clear()
        self._key_of.clear()
        self.end_unneeded()

    def _end_unneeded(self, key: str) -> None:
        if self._users.get(key):
            return
        self._users.pop(key, None)
        self._unusable.pop(key, None)
        _, task = self._making.get(key, (0.0, None))
        if task is not None:
            task.cancel()
        if (zygote := self._present.pop(key, None)) is not None:
            self._end(zygote)

    # Making one.

    def _begin(
        self, key: str, asked_at: float, work: Coroutine[Any, Any, AppZygote | str]
    ) -> asyncio.Task[AppZygote | str]:
        task = asyncio.ensure_future(work)
        self._making[key] = (asked_at, task)

        def done(made: asyncio.Task[AppZygote | str]) -> None:
            if self._making.get(key, (0.0, None))[1] is made:
                del self._making[key]
            # Those who wait for it see the exception; perhaps nobody does.
            if not made.cancelled():
                made.exception()

        task.add_done_callback(done)
        return task

    async def _make(self, key: str, server: ServerConfig, spec: Spec, asked_at: float) -> AppZygote | str:
        zygote, output = await self._fork(key, server, spec, asked_at)
        self._turns.queue(zygote)
        try:
            return await self._settled(zygote, server.start_timeout)
        except WorkerFailed:
            await self._output.finished(output, _LAST_OUTPUT_SECONDS)
            raise

    async def _fork(
        self, key: str, server: ServerConfig, spec: Spec, asked_at: float
    ) -> tuple[AppZygote, str]:
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as if_failed:
            link, theirs = wire.pair()
            if_failed.enter_context(link)
            ours.enter_context(theirs)
            output, write = self._output.attach(server)
            if_failed.callback(self._output.discard, output)
            ours.callback(os.close, write)
            file = spec_file({**spec, "server": server.name})
            ours.callback(os.close, file)
            # A base zygote that dies now takes no request with it that could not be made again.
            for last in (False, True):
                try:
                    pid = await self._zygotes.fork(spec["python"], [file, theirs.fileno(), write], "app")
                    break
                except LinkLost as error:
                    if last:
                        raise self._zygotes.failure(spec["python"], error) from error
            if_failed.pop_all()
            self._output.follow(output, pid)
            zygote = AppZygote(key, asked_at, pid, server.name)
            self._follow(zygote, link)
            meta = {"key": key, "asked_at": asked_at, "pid": pid, "server": server.name}
            self._keeper.send({"op": "put", "name": zygote.name, "meta": meta}, [link.fileno()])
            return zygote, output

    def _follow(self, zygote: AppZygote, sock: socket.socket) -> None:
        def on_end() -> None:
            if self._present.get(zygote.key) is zygote:
                del self._present[zygote.key]
            self._keeper.send({"op": "drop", "name": zygote.name})
            zygote.ended()

        zygote.link = Link(sock, zygote.heard, on_end)
        early = self._early.pop(zygote.pid, None)
        if early is None:
            self._by_pid[zygote.pid] = zygote
        else:
            zygote.exited.set_result(early)

    async def _settled(self, zygote: AppZygote, timeout_seconds: float) -> AppZygote | str:
        """The zygote once it is up, or why it is of no use. Raises WorkerFailed."""
        try:
            await asyncio.shield(zygote.begun)
            async with asyncio.timeout(timeout_seconds):
                problem = await asyncio.shield(zygote.up)
        except TimeoutError:
            self._end(zygote)
            message = f"was not ready within {format_duration(timeout_seconds)}"
            hint = f"poolctl logs {zygote.server}; start_timeout says how long it may take"
            raise WorkerFailed(message, hint=hint) from None
        except LinkLost:
            raise await self._failure(zygote) from None
        except asyncio.CancelledError:
            self._end(zygote)
            raise
        if problem:
            self._unusable[zygote.key] = (zygote.asked_at, problem)
            self._end(zygote)
            return problem
        before, self._present[zygote.key] = self._present.get(zygote.key), zygote
        if before is not None:
            self._end(before)
        return zygote

    async def _failure(self, zygote: AppZygote) -> WorkerFailed:
        """What a worker that imports the application itself would be said to have died of."""
        exit_ = Exit(message="ended")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_SECONDS):
                exit_ = await asyncio.shield(zygote.exited)
        message = f"{exit_.message} before it was ready"
        if zygote.reason:
            message = f"{message}: {zygote.reason}"
        return WorkerFailed(message, hint=f"poolctl logs {zygote.server}", exit=exit_)

    def _end(self, zygote: AppZygote) -> None:
        importing = not zygote.up.done()
        zygote.link.close()
        zygote.ended()
        self._keeper.send({"op": "drop", "name": zygote.name})
        if importing:
            # It does not see the end of its socket.
            order = {"op": "signal", "pid": zygote.pid, "signal": signal.SIGKILL, "group": True}
            self._keeper.send(order)
