"""Processes that import an application: started, seen through their import, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from signal import SIGKILL

from poolctl.config.model import ServerConfig
from poolctl.keeper import wire
from poolctl.logs.line import stamp
from poolctl.logs.read import tail
from poolctl.units import format_duration

from ..keeping.output import Output
from ..link import Link, LinkLost
from ..placed.orders import signal
from ..protocol import Exit, WorkerFailed
from ..spec import Spec, spec_file
from .app_zygote import AppZygote
from .turns import Turns
from .zygotes import Zygotes

_EXIT_SECONDS = 1.0
_LAST_OUTPUT_SECONDS = 1.0
_LAST_LINES = 200

logger = logging.getLogger("poolctl.supervisor")


class ImportFailed(WorkerFailed):
    """The application cannot be imported; `printed` is what it said, in the log of `server` already."""

    def __init__(
        self, message: str, server: str, printed: list[str], *, hint: str = "", exit: Exit | None
    ) -> None:
        super().__init__(message, hint=hint or f"poolctl logs {server}", exit=exit)
        self.server = server
        self.printed = printed


class Imports:
    """Each waits for its turn. `early` holds exits that were reported before anybody knew the process."""

    def __init__(
        self, keeper: Link, zygotes: Zygotes, output: Output, turns: Turns, early: dict[int, Exit]
    ) -> None:
        self._keeper = keeper
        self._zygotes = zygotes
        self._output = output
        self._turns = turns
        self._early = early
        self._by_pid: dict[int, AppZygote] = {}
        self._killing: set[asyncio.Task[None]] = set()

    async def start(
        self, key: str, server: ServerConfig, spec: Spec, asked_at: float, on_end: Callable[[AppZygote], None]
    ) -> tuple[AppZygote, str]:
        """A process that imports when it is its turn, and the key of the pipe that takes what it prints meanwhile."""
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
            fds = [file, theirs.fileno(), write]
            pid = await self._zygotes.twice(
                spec["python"], lambda: self._zygotes.fork(spec["python"], fds, "app")
            )
            if_failed.pop_all()
            self._output.follow(output, pid)
            zygote = AppZygote(key, asked_at, pid, server.name)
            self.follow(zygote, link, on_end)
            meta = {"key": key, "asked_at": asked_at, "pid": pid, "server": server.name}
            self._keeper.send({"op": "put", "name": zygote.name, "meta": meta}, [link.fileno()])
        self._turns.queue(zygote)
        return zygote, output

    def follow(self, zygote: AppZygote, sock: socket.socket, on_end: Callable[[AppZygote], None]) -> None:
        """Hear from the process until it has ended."""

        def ended() -> None:
            self._keeper.send({"op": "drop", "name": zygote.name})
            zygote.ended()
            on_end(zygote)

        def breached(deed: str) -> None:
            logger.warning("the process that has imported %s %s: it is ended", zygote.server, deed)

        zygote.link = Link(sock, zygote.heard, ended, on_breach=breached)
        early = self._early.pop(zygote.pid, None)
        if early is None:
            self._by_pid[zygote.pid] = zygote
        else:
            zygote.exited.set_result(early)

    def exited(self, pid: int, exit_: Exit) -> bool:
        """Note the end of a process; whether it was one of these."""
        zygote = self._by_pid.pop(pid, None)
        if zygote is not None:
            zygote.exited.set_result(exit_)
        return zygote is not None

    async def finish(self, zygote: AppZygote, timeout_seconds: float, output: str = "") -> str:
        """Return when the application is imported: "", or why nothing can be forked from there.

        Raises ImportFailed. Cancelled, it ends the process.
        """
        since = time.time()
        try:
            await asyncio.shield(zygote.begun)
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(zygote.up)
        except TimeoutError:
            message = f"was not ready within {format_duration(timeout_seconds)}"
            hint = f"poolctl logs {zygote.server}; start_timeout says how long it may take"
            exit_ = None
        except LinkLost:
            message, hint, exit_ = await self._why(zygote)
        except asyncio.CancelledError:
            self.end(zygote)
            raise
        self.end(zygote)
        await self._output.finished(output, _LAST_OUTPUT_SECONDS)
        path = self._output.paths.get(zygote.server, "")
        printed = [line.text for line in tail(path, _LAST_LINES, since=stamp(since))] if path else []
        raise ImportFailed(message, zygote.server, printed, hint=hint, exit=exit_)

    async def _why(self, zygote: AppZygote) -> tuple[str, str, Exit]:
        """What a worker that imports the application itself would be said to have died of."""
        exit_ = Exit(message="ended")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_SECONDS):
                exit_ = await asyncio.shield(zygote.exited)
        message = f"{exit_.message} before it was ready"
        return (f"{message}: {zygote.reason}" if zygote.reason else message), "", exit_

    async def repeat(self, failure: ImportFailed, server: ServerConfig) -> WorkerFailed:
        """The failure as one of another server that shares the import, with what was printed in that one's log too."""
        await self._output.say(server, failure.printed)
        hint = failure.hint.replace(f"poolctl logs {failure.server}", f"poolctl logs {server.name}")
        return WorkerFailed(failure.message, hint=hint, exit=failure.exit)

    def end(self, zygote: AppZygote) -> None:
        """Let the process end when it has made the forks under way; kill it while it imports: it would not hear it."""
        importing = not zygote.up.done()
        zygote.after_forks(zygote.link.close)
        zygote.ended()
        self._keeper.send({"op": "drop", "name": zygote.name})
        if importing:
            kill = signal(self._keeper, zygote.pid, zygote.exited, SIGKILL, group=True)
            task = asyncio.ensure_future(kill)
            self._killing.add(task)
            task.add_done_callback(self._killing.discard)
