"""Starts processes that import an application, follows their import, and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from signal import SIGKILL

from poolctl.config import ServerConfig
from poolctl.keeper import wire
from poolctl.units import format_duration

from ...link import Link, LinkLost
from ...protocol import Exit, WorkerFailed
from ...spec import Spec, spec_file
from ..resources.output import Output, last_lines
from ..workers.worker_commands import signal
from .app_zygote import AppZygote
from .children import Children
from .import_limit import ImportLimit
from .zygotes import END_SECONDS, SILENT_SECONDS, Zygotes

_EXIT_SECONDS = 1.0
_LAST_OUTPUT_SECONDS = 1.0
_LAST_LINES = 200

logger = logging.getLogger("poolctl.supervisor")


class ImportFailed(WorkerFailed):
    """The application cannot be imported; `printed` is its output, which is in the log of `server` already."""

    def __init__(
        self, message: str, server: str, printed: list[str], *, hint: str = "", exit: Exit | None
    ) -> None:
        super().__init__(message, hint=hint or f"poolctl logs {server}", exit=exit)
        self.server = server
        self.printed = printed


class Imports:
    """The importing processes; each waits for its turn."""

    def __init__(
        self, keeper: Link, children: Children, zygotes: Zygotes, output: Output, turns: ImportLimit
    ) -> None:
        self._keeper = keeper
        self._zygotes = zygotes
        self._output = output
        self._turns = turns
        self._children = children
        self._by_pid: dict[int, AppZygote] = {}
        self._ending: set[asyncio.Task[None]] = set()

    async def start(
        self, key: str, server: ServerConfig, spec: Spec, on_end: Callable[[AppZygote], None]
    ) -> tuple[AppZygote, str]:
        """A process that imports when it is its turn, and the key of the pipe for its output until then."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as if_failed:
            link, theirs = wire.pair()
            if_failed.enter_context(link)
            ours.enter_context(theirs)
            output, write = self._output.attach(server)
            if_failed.callback(self._output.discard, output)
            ours.callback(os.close, write)
            file = spec_file({**spec, "server": server.name})
            ours.callback(os.close, file)
            # If the base zygote exits now, the request can be repeated.
            fds = [file, theirs.fileno(), write]
            source = self._zygotes.source(spec["python"], spec["user"])
            process = await self._zygotes.twice(source, lambda: self._zygotes.fork(source, fds, "app"))
            if_failed.pop_all()
            self._output.follow(output, process.pid)
            uid = spec["user"][0] if spec["user"] is not None else None
            zygote = AppZygote(key, process, uid, server.name)
            self.follow(zygote, link, on_end)
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
        self._turns.queue(zygote)
        return zygote, output

    def follow(self, zygote: AppZygote, sock: socket.socket, on_end: Callable[[AppZygote], None]) -> None:
        """Receive the process's messages until it has exited."""

        def ended() -> None:
            self._keeper.send({"op": "drop", "name": zygote.name})
            zygote.ended()
            on_end(zygote)
            self._kill_after_timeout(zygote, END_SECONDS)

        def breached(deed: str) -> None:
            logger.warning("the process that has imported %s %s: killing it", zygote.server, deed)
            self._kill_after_timeout(zygote, 0.0)

        zygote.link = Link(sock, zygote.received, ended, on_breach=breached)
        pid = zygote.process.pid
        early = self._children.add(pid)
        if early is None:
            self._by_pid[pid] = zygote
        else:
            zygote.exited.set_result(early)

    def exited(self, pid: int, exit_: Exit) -> bool:
        """Handle the exit of a process; whether it was one of these."""
        zygote = self._by_pid.pop(pid, None)
        if zygote is not None:
            zygote.exited.set_result(exit_)
        return zygote is not None

    async def finish(self, zygote: AppZygote, timeout_seconds: float, output: str = "") -> str:
        """Return when the application is imported: "", or the reason why nothing can be forked from there.

        Raises ImportFailed. Cancelled, it ends the process.
        """
        since = time.time()
        try:
            await asyncio.shield(zygote.begun)
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(zygote.up)
        except TimeoutError:
            message = f"was not ready within {format_duration(timeout_seconds)}"
            hint = f"poolctl logs {zygote.server}; start_timeout sets how long it may take"
            exit_ = None
        except LinkLost:
            message, hint, exit_ = await self._why(zygote)
        except asyncio.CancelledError:
            self.end(zygote)
            raise
        self.end(zygote)
        await self._output.finished(output, _LAST_OUTPUT_SECONDS)
        path = self._output.paths.get(zygote.server, "")
        printed = last_lines(path, _LAST_LINES, since) if path else []
        raise ImportFailed(message, zygote.server, printed, hint=hint, exit=exit_)

    async def _why(self, zygote: AppZygote) -> tuple[str, str, Exit]:
        """Message, hint and exit as for a worker that imports the application itself and fails."""
        exit_ = Exit(message="ended")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_SECONDS):
                exit_ = await asyncio.shield(zygote.exited)
        message = f"{exit_.message} before it was ready"
        return (f"{message}: {zygote.reason}" if zygote.reason else message), "", exit_

    async def repeat(self, failure: ImportFailed, server: ServerConfig) -> WorkerFailed:
        """The failure as that of another server that shares the import, with the output in that one's log too."""
        await self._output.say(server, failure.printed)
        hint = failure.hint.replace(f"poolctl logs {failure.server}", f"poolctl logs {server.name}")
        return WorkerFailed(failure.message, hint=hint, exit=failure.exit)

    def end(self, zygote: AppZygote) -> None:
        """Let the process exit after the forks in progress. While it imports it would not receive the request."""
        importing, forking = not zygote.up.done(), zygote.forking

        def close() -> None:
            zygote.link.close()
            # Not earlier: the keeper shuts down a socket that it drops, and our end of it is the same socket.
            self._keeper.send({"op": "drop", "name": zygote.name})

        zygote.after_forks(close)
        zygote.ended()
        self._kill_after_timeout(zygote, 0.0 if importing else END_SECONDS + SILENT_SECONDS * forking)

    def _kill_after_timeout(self, zygote: AppZygote, seconds: float) -> None:
        """Kill the process unless it exits by itself within that time: it may be stopped, or refuse to exit."""
        task = asyncio.ensure_future(self._kill_after(zygote, seconds))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _kill_after(self, zygote: AppZygote, seconds: float) -> None:
        await asyncio.wait({zygote.exited}, timeout=seconds)
        if not zygote.exited.done():
            await signal(self._keeper, *zygote.process, zygote.exited, SIGKILL, group=True)
