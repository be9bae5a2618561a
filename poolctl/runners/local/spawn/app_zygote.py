"""The runner's side of one app zygote: a process that imports an application and forks its workers on request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from poolctl.config import masked_text
from poolctl.keeper import fd_store, wire

from ... import untrusted
from ...link import Link, LinkLost, Refused
from ...protocol import Exit, WorkerFailed
from .children import Children, Forged, Process
from .zygotes import SILENT_SECONDS


class AppZygote:
    """`code_since` is a monotonic time in seconds: its code is of that time or newer; infinite before the import.

    `up` gives the reason why the process cannot be used, "" if it can, and raises LinkLost if it exits before that.
    """

    def __init__(
        self, key: str, process: Process, uid: int | None, server: str, code_since: float = math.inf
    ) -> None:
        loop = asyncio.get_running_loop()
        self.key = key
        self.code_since = code_since
        self.process = process
        self._uid = uid  # of its user; None for the pool's own
        self.server = server  # its log has the import's output
        self.link: Link
        self.begun: asyncio.Future[None] = loop.create_future()
        self.imported: asyncio.Future[None] = loop.create_future()
        self.up: asyncio.Future[str] = loop.create_future()
        self.up.add_done_callback(self._is_over)
        self.exited: asyncio.Future[Exit] = loop.create_future()
        self.reason = ""
        self._forks = 0  # in progress
        self._then: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        """The name of its entry in the keeper's store."""
        return f"{fd_store.APP_ZYGOTE}{self.key}.{self.process.pid}"

    @property
    def forking(self) -> bool:
        """Whether a caller waits for a fork."""
        return self._forks > 0

    def begin(self) -> None:
        """Have it import the application."""
        self.code_since = min(self.code_since, time.monotonic())
        self.link.send({"order": "go"})
        self._has_begun()

    def received(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        """A message from the process itself. Raises Malformed."""
        event = untrusted.text(message, "event")
        if event == "failed":
            self.reason = masked_text(untrusted.text(message, "message"))
        elif event in ("up", "unusable") and not self.up.done():
            self.up.set_result(untrusted.text(message, "problem"))

    def ended(self) -> None:
        """Its link is closed: no more messages follow."""
        if not self.up.done():
            self.up.set_exception(LinkLost("the process has exited"))

    async def fork(self, fds: Sequence[int], children: Children) -> Process:
        """A new worker that has inherited `fds`. Raises WorkerFailed; LinkLost if the zygote has exited."""
        self._forks += 1
        try:
            reply, _ = await self.link.call({"op": "worker"}, fds, patience_seconds=SILENT_SECONDS)
            return await children.verify(reply, self._uid, self.process.start)
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
            if not self._forks and self._then is not None:
                self._then()

    def forged(self, deed: str) -> None:
        """It has named a process that it cannot have forked: it is not used again."""
        self.link.cut_off(deed)

    def after_forks(self, then: Callable[[], None]) -> None:
        """Call `then` when no fork is in progress."""
        self._then = then
        if not self._forks:
            then()

    def _is_over(self, up: asyncio.Future[str]) -> None:
        up.exception()  # possibly no caller awaits it
        self.imported.set_result(None)
        self._has_begun()

    def _has_begun(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)
