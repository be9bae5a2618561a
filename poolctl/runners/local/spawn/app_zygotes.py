"""The app zygotes of a pool: processes that have imported an application and fork the workers of `preload` servers.

One serves all servers whose settings that an import can see are equal. It belongs to one version of the code: a
request for newer code gets another zygote, and the old one is used until then.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

from poolctl.config import ServerConfig
from poolctl.keeper import wire

from ...link import Link
from ...protocol import Exit, WorkerFailed
from ...spec import Spec
from ..resources.output import Output
from .app_zygote import AppZygote
from .children import Children, Process
from .import_limit import ImportLimit
from .imports import ImportFailed, Imports
from .zygotes import Zygotes

_ADOPTION_SECONDS = 30.0


class _Making:
    """An import in progress. One that has not begun yet will read newer code than any other."""

    task: asyncio.Task[AppZygote | str]

    def __init__(self, zygote: AppZygote | None = None) -> None:
        self.zygote = zygote

    @property
    def code_since(self) -> float:
        return math.inf if self.zygote is None else self.zygote.code_since


class AppZygotes:
    """Makes app zygotes when they are needed, and ends them when no server needs them any more.

    Each imports when `turns` lets it.
    """

    def __init__(
        self, keeper: Link, children: Children, zygotes: Zygotes, output: Output, turns: ImportLimit
    ) -> None:
        self._imports = Imports(keeper, children, zygotes, output, turns)
        self._present: dict[str, AppZygote] = {}
        self._making: dict[str, _Making] = {}
        self._unusable: dict[str, tuple[float, str]] = {}
        self._key_of: dict[str, str] = {}  # by the server's address
        self._users: defaultdict[str, set[str]] = defaultdict(set)

    async def get(self, server: ServerConfig, spec: Spec, since: float) -> AppZygote | str:
        """A zygote whose code is not older than `since` (monotonic, in seconds), or the reason why there can be none.

        Raises WorkerFailed if the application cannot be imported.
        """
        key = self.need(server, spec)
        present = self._present.get(key)
        if present is not None and present.code_since >= since:
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
            raise await self._imports.repeat(failure, server) from None
        except asyncio.CancelledError:
            if task.cancelled():
                raise WorkerFailed("was stopped before its application was imported") from None
            raise

    def need(self, server: ServerConfig, spec: Spec) -> str:
        """Record which zygote the server needs; returns its key."""
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
        """Handle the exit of a process; whether it was one of these."""
        return self._imports.exited(pid, exit_)

    def adopt(self, meta: wire.Message, fd: int) -> None:
        """Adopt another supervisor's zygote; `end_unneeded` follows."""
        process = Process(int(meta["pid"]), meta.get("start"))
        code_since, server = float(meta["asked_at"]), str(meta["server"])
        zygote = AppZygote(meta["key"], process, meta.get("uid"), server, code_since)
        self._imports.follow(zygote, wire.over(fd), self._gone)
        before = self._making.get(zygote.key)
        if before is not None and before.code_since > zygote.code_since:
            self._imports.end(zygote)
            return
        zygote.begin()
        # It may have reported to another supervisor that it is up.
        zygote.link.send({"op": "ping"})
        if before is not None:
            before.task.cancel()
        self._begin(zygote.key, _Making(zygote), self._finish(zygote, _ADOPTION_SECONDS))

    def end_unneeded(self) -> None:
        """End those that no server needs."""
        for key in {*self._present, *self._making}:
            self._end_unneeded(key)

    def close(self) -> None:
        """End all of them; workers keep running."""
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
            self._imports.end(zygote)

    # Making one.

    def _begin(self, key: str, making: _Making, work: Coroutine[Any, Any, AppZygote | str]) -> None:
        making.task = asyncio.ensure_future(work)
        self._making[key] = making

        def done(made: asyncio.Task[AppZygote | str]) -> None:
            if self._making.get(key) is making:
                del self._making[key]
            # Callers that await it get the exception; there may be none.
            if not made.cancelled():
                made.exception()

        making.task.add_done_callback(done)

    async def _make(self, key: str, server: ServerConfig, spec: Spec, making: _Making) -> AppZygote | str:
        making.zygote, output = await self._imports.start(key, server, spec, self._gone)
        return await self._finish(making.zygote, server.start_timeout, output)

    async def _finish(self, zygote: AppZygote, timeout_seconds: float, output: str = "") -> AppZygote | str:
        problem = await self._imports.finish(zygote, timeout_seconds, output)
        if problem:
            self._unusable[zygote.key] = (zygote.code_since, problem)
            self._imports.end(zygote)
            return problem
        before = self._present.get(zygote.key)
        if before is None:
            newest = zygote
        else:
            # Two imports may end in another order than they began.
            older, newest = sorted((before, zygote), key=lambda each: each.code_since)
            self._imports.end(older)
        self._present[zygote.key] = newest
        return newest

    def _gone(self, zygote: AppZygote) -> None:
        if self._present.get(zygote.key) is zygote:
            del self._present[zygote.key]
