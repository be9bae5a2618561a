"""The app zygotes of a pool: processes that have imported an application and fork the workers of `preload` servers.

A zygote serves all servers that are equal in the settings visible to an import. It belongs to one version of the code:
a request for newer code gets another zygote, and the old zygote is used until then. Imports, in app zygotes and in
workers, take turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import socket
import time
from collections import defaultdict, deque
from collections.abc import Coroutine
from typing import Any, Protocol

from poolctl.config import ServerConfig
from poolctl.keeper import wire

from ...process_link import Link
from ...runner_protocol import IMPORTS_PER_CPU, Exit, WorkerFailed
from ...worker_spec import Spec, spec_file
from ..fork_verification import Children, Process
from ..output_pipes import Output
from .app_zygote import AppZygote, ImportFailed
from .zygotes import Zygotes

_ADOPTION_SECONDS = 30.0


class Importer(Protocol):
    """A process that waits for its turn to import. `imported` is done when it has imported, failed or exited."""

    imported: asyncio.Future[None]

    def begin(self) -> None:
        """Start the import."""


class ImportLimit:
    """Lets a limited number of processes import at the same time; the others wait in a queue.

    They are forked ahead: forking uses one processor, while the imports use the rest.
    """

    def __init__(self, at_once: int = IMPORTS_PER_CPU * (os.cpu_count() or 1)) -> None:
        self._free = at_once
        self._waiting: deque[Importer] = deque()

    def queue(self, importer: Importer) -> None:
        """Call the importer's `begin` when it is its turn."""
        self._waiting.append(importer)
        self._begin_next()

    def _begin_next(self) -> None:
        while self._free and self._waiting:
            importer = self._waiting.popleft()
            # One that has exited while it waited is skipped.
            if not importer.imported.done():
                self._free -= 1
                importer.imported.add_done_callback(self._import_is_over)
            importer.begin()

    def _import_is_over(self, imported: asyncio.Future[None]) -> None:
        self._free += 1
        self._begin_next()


class _Making:
    """An import in progress. If it has not begun yet, it will read newer code than any other."""

    task: asyncio.Task[AppZygote | str]

    def __init__(self, zygote: AppZygote | None = None) -> None:
        self.zygote = zygote

    @property
    def code_since(self) -> float:
        return math.inf if self.zygote is None else self.zygote.code_since


class AppZygotes:
    """Starts app zygotes when servers need them, and ends those that no server needs.

    Each imports its application when `turns` lets it.
    """

    def __init__(
        self, keeper: Link, children: Children, zygotes: Zygotes, output: Output, turns: ImportLimit
    ) -> None:
        self._keeper = keeper
        self._children = children
        self._zygotes = zygotes
        self._output = output
        self._turns = turns
        self._by_pid: dict[int, AppZygote] = {}
        self._present: dict[str, AppZygote] = {}
        self._making: dict[str, _Making] = {}
        self._unusable: dict[str, tuple[float, str]] = {}
        self._key_of: dict[str, str] = {}  # by the server's address
        self._users: defaultdict[str, set[str]] = defaultdict(set)

    async def get(self, server: ServerConfig, spec: Spec, since: float) -> AppZygote | str:
        """A zygote whose code is not older than `since` (monotonic seconds), or the reason why it cannot be had.

        Raises WorkerFailed if the application cannot be imported.
        """
        key = self.need(server, spec)
        present = self._present.get(key)
        if present is not None and present.usable and present.code_since >= since:
            return present
        tried_at, problem = self._unusable.get(key, (-1.0, ""))
        if tried_at >= since:
            return problem
        making = self._making.get(key)
        if making is None or making.code_since < since:
            making = _Making()
            self._begin(key, making, self._make(key, server, spec, making))
        task = making.task
        try:
            return await asyncio.shield(task)
        except ImportFailed as failure:
            if failure.server == server.name:
                raise
            # Another server shares the import: its own log has the output too.
            await self._output.say(server, failure.printed)
            hint = failure.hint.replace(f"poolctl logs {failure.server}", f"poolctl logs {server.name}")
            raise WorkerFailed(failure.message, hint=hint, exit=failure.exit) from None
        except asyncio.CancelledError:
            if task.cancelled():
                raise WorkerFailed("was stopped before its application was imported") from None
            raise

    def need(self, server: ServerConfig, spec: Spec) -> str:
        """Record which zygote the server needs, and return that zygote's key."""
        import hashlib  # with OpenSSL: most servers are not preloaded

        key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]
        if self._key_of.get(server.key) != key:
            self.release(server.key)
            self._key_of[server.key] = key
            self._users[key].add(server.key)
        return key

    def release(self, address: str) -> None:
        """Note that the server of this address has been stopped and needs no zygote."""
        key = self._key_of.pop(address, None)
        if key is not None:
            self._users[key].discard(address)
            self._end_unneeded(key)

    def exited(self, pid: int, exit_: Exit) -> bool:
        """Handle the exit of a process. Returns whether it was an app zygote."""
        zygote = self._by_pid.pop(pid, None)
        if zygote is not None:
            zygote.exited.set_result(exit_)
        return zygote is not None

    @property
    def processes(self) -> list[Process]:
        """The processes of all app zygotes that have not exited."""
        return [zygote.process for zygote in self._by_pid.values()]

    def adopt(self, _: str, meta: wire.Message, fds: list[int]) -> tuple[()]:
        """Adopt another supervisor's zygote; the caller calls `end_unneeded` afterwards."""
        process = Process(int(meta["pid"]), meta.get("start"))
        code_since, server = float(meta["asked_at"]), str(meta["server"])
        zygote = self._zygote(meta["key"], process, meta.get("uid"), server, code_since)
        self._follow(zygote, wire.over(fds[0]))
        before = self._making.get(zygote.key)
        if before is not None and before.code_since > zygote.code_since:
            zygote.end()
            return ()
        zygote.begin()
        # It may have reported to another supervisor that it is up.
        zygote.link.send({"op": "ping"})
        if before is not None:
            before.task.cancel()
        self._begin(zygote.key, _Making(zygote), self._finish(zygote, _ADOPTION_SECONDS))
        return ()

    def end_unneeded(self) -> None:
        """End the zygotes that no server needs."""
        for key in {*self._present, *self._making}:
            self._end_unneeded(key)

    def close(self) -> None:
        """End all app zygotes. Workers keep running."""
        self._users.clear()
        self._key_of.clear()
        self.end_unneeded()

    def _end_unneeded(self, key: str) -> None:
        if self._users.get(key):
            return
        self._users.pop(key, None)
        self._unusable.pop(key, None)
        if (making := self._making.get(key)) is not None:
            making.task.cancel()
        if (zygote := self._present.pop(key, None)) is not None:
            zygote.end()

    # Making one.

    def _begin(self, key: str, making: _Making, work: Coroutine[Any, Any, AppZygote | str]) -> None:
        making.task = asyncio.ensure_future(work)
        self._making[key] = making

        def done(made: asyncio.Task[AppZygote | str]) -> None:
            if self._making.get(key) is making:
                del self._making[key]
            # Callers that await it get the exception; there may be no callers.
            if not made.cancelled():
                made.exception()

        making.task.add_done_callback(done)

    async def _make(self, key: str, server: ServerConfig, spec: Spec, making: _Making) -> AppZygote | str:
        making.zygote, pipe = await self._fork(key, server, spec)
        self._turns.queue(making.zygote)
        return await self._finish(making.zygote, server.start_timeout, pipe)

    async def _fork(self, key: str, server: ServerConfig, spec: Spec) -> tuple[AppZygote, str]:
        """Fork a process that waits for its turn to import, and return it with the key of its output pipe."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as if_failed:
            link, theirs = wire.pair()
            if_failed.enter_context(link)
            ours.enter_context(theirs)
            pipe, write = self._output.attach(server)
            if_failed.callback(self._output.discard, pipe)
            ours.callback(os.close, write)
            file = spec_file({**spec, "server": server.name})
            ours.callback(os.close, file)
            # If the base zygote exits now, the request can be repeated.
            fds = [file, theirs.fileno(), write]
            source = self._zygotes.source(spec["python"], spec["user"])
            process = await self._zygotes.twice(source, lambda: self._zygotes.fork(source, fds, "app"))
            if_failed.pop_all()
            self._output.follow(pipe, process.pid)
            uid = spec["user"][0] if spec["user"] is not None else None
            zygote = self._zygote(key, process, uid, server.name)
            self._follow(zygote, link)
            if source.user is not None:

                def on_forged(deed: str) -> None:
                    self._zygotes.forged(source, deed)
                    zygote.forged(deed)

                self._children.confirm(process, on_forged)
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

    def _zygote(
        self, key: str, process: Process, uid: int | None, server: str, code_since: float = math.inf
    ) -> AppZygote:
        return AppZygote(self._keeper, self._children, key, process, uid, server, code_since)

    def _follow(self, zygote: AppZygote, sock: socket.socket) -> None:
        zygote.follow(sock)
        if not zygote.exited.done():
            self._by_pid[zygote.process.pid] = zygote

    async def _finish(self, zygote: AppZygote, timeout_seconds: float, pipe: str = "") -> AppZygote | str:
        problem = await zygote.finish(timeout_seconds, self._output, pipe)
        if problem:
            self._unusable[zygote.key] = (zygote.code_since, problem)
            zygote.end()
            return problem
        before = self._present.get(zygote.key)
        if before is None or not before.usable:
            newest = zygote
        else:
            # Two imports may end in another order than they began.
            older, newest = sorted((before, zygote), key=lambda each: each.code_since)
            older.end()
        self._present[zygote.key] = newest
        return newest
