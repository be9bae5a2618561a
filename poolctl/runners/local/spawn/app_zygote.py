"""The runner's side of one app zygote: a process that imports an application and forks its workers on request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Sequence

from poolctl.config import masked_text
from poolctl.keeper import fd_store, wire
from poolctl.units import format_duration

from ... import untrusted_messages
from ...process_link import Link, LinkLost, Receiver, Refused
from ...runner_protocol import Exit, WorkerFailed
from ..fork_verification import Children, Forged, Process
from ..output_pipes import Output, last_lines
from .zygotes import END_SECONDS, SILENT_SECONDS

_EXIT_SECONDS = 1.0
_LAST_OUTPUT_SECONDS = 3.0
_LAST_LINES = 200

logger = logging.getLogger("poolctl.supervisor")


class ImportFailed(WorkerFailed):
    """The application cannot be imported. `printed` is its output, which is already in the log of `server`."""

    def __init__(
        self, message: str, server: str, printed: list[str], *, hint: str = "", exit: Exit | None
    ) -> None:
        super().__init__(message, hint=hint or f"poolctl logs {server}", exit=exit)
        self.server = server
        self.printed = printed


class AppZygote(Receiver):
    """A process that imports an application and forks workers from it.

    `code_since` is a monotonic time in seconds: the imported code is at least as new; infinite before the import. `up`
    gives the reason why the process cannot be used, "" if it can, and raises LinkLost if it exits before that.
    """

    link: Link

    def __init__(
        self,
        keeper: Link,
        children: Children,
        key: str,
        process: Process,
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
        self.uid = uid  # of its user; None for the pool's own
        self.server = server  # its log has the import's output
        self.begun: asyncio.Future[None] = loop.create_future()
        self.imported: asyncio.Future[None] = loop.create_future()
        self.up: asyncio.Future[str] = loop.create_future()
        self.up.add_done_callback(self._is_over)
        self.exited: asyncio.Future[Exit] = loop.create_future()
        self._reason = ""
        self._forks = 0  # in progress
        self._ends = False

    @property
    def name(self) -> str:
        """The name of the zygote's entry in the keeper's store."""
        return f"{fd_store.APP_ZYGOTE}{self.key}.{self.process.pid}"

    @property
    def usable(self) -> bool:
        """Whether the zygote can be asked to fork."""
        return not self._ends and self.link.sock.fileno() >= 0

    def follow(self, sock: socket.socket) -> None:
        """Receive the zygote's messages until it exits."""
        self.link = Link(sock, self, trusted=False)
        if (early := self._children.add(self.process.pid)) is not None:
            self.exited.set_result(early)

    def begin(self) -> None:
        """Order the zygote to import the application."""
        self.code_since = min(self.code_since, time.monotonic())
        self.link.send({"order": "go"})
        self._has_begun()

    def received(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        """See Receiver."""
        event = untrusted_messages.text(message, "event")
        if event == "failed":
            self._reason = masked_text(untrusted_messages.text(message, "message"))
        elif event in ("up", "unusable") and not self.up.done():
            self.up.set_result(untrusted_messages.text(message, "problem"))

    def lost(self) -> None:
        """See Receiver."""
        self._keeper.send({"op": "drop", "name": self.name})
        self._give_up()
        self._children.kill_after(self.process, self.exited, END_SECONDS)

    def breached(self, deed: str) -> None:
        """See Receiver."""
        logger.warning("the process that has imported %s %s: killing it", self.server, deed)
        self._children.kill_after(self.process, self.exited, 0.0)

    def forged(self, deed: str) -> None:
        """Stop using the zygote, because it has named a process that it cannot have forked."""
        self.link.cut_off(deed)

    async def finish(self, timeout_seconds: float, output: Output, pipe: str = "") -> str:
        """Wait for the import to finish. Returns "", or the reason why the zygote cannot fork workers.

        Raises ImportFailed, once the output from the `pipe` is in the log file. If cancelled, it ends the process.
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
            message = exit_.before_ready(self._reason)
            hint = ""
        except asyncio.CancelledError:
            self.end()
            raise
        self.end()
        await output.finished(pipe, _LAST_OUTPUT_SECONDS)
        path = output.paths.get(self.server, "")
        printed = last_lines(path, _LAST_LINES, since) if path else []
        raise ImportFailed(message, self.server, printed, hint=hint, exit=exit_)

    async def fork(self, fds: Sequence[int]) -> Process:
        """Fork a worker that inherits `fds`. Raises WorkerFailed, or LinkLost if the zygote has exited."""
        self._forks += 1
        try:
            reply, _ = await self.link.call({"op": "worker"}, fds, patience_seconds=SILENT_SECONDS)
            return await self._children.verify(reply, self.uid, self.process.start)
        except Refused as error:
            raise WorkerFailed(f"no worker can be forked: {error}") from error
        except Forged as error:
            self.forged(str(error))
            raise WorkerFailed(
                f"its preloaded application {error}: it is not trusted",
                hint=f"check what {self.server} imports",
            ) from error
        finally:
            self._forks -= 1
            if self._ends:
                self._close_after_forks()

    def end(self) -> None:
        """Let the process exit after the forks in progress; a process that is importing is killed."""
        importing = not self.up.done()
        seconds = END_SECONDS + (SILENT_SECONDS if self._forks else 0.0)
        self._ends = True
        self._close_after_forks()
        self._give_up()
        self._children.kill_after(self.process, self.exited, 0.0 if importing else seconds)

    def _close_after_forks(self) -> None:
        if not self._forks:
            self.link.close()
            # Not earlier: the keeper shuts down a socket that it drops, and our end of it is the same socket.
            self._keeper.send({"op": "drop", "name": self.name})

    def _give_up(self) -> None:
        if not self.up.done():
            self.up.set_exception(LinkLost("the process has exited"))

    def _is_over(self, up: asyncio.Future[str]) -> None:
        up.exception()  # possibly no caller awaits it
        self.imported.set_result(None)
        self._has_begun()

    def _has_begun(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)
