"""The process that serves the dashboard: spawned by the keeper, told what to serve, watched, ended."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from poolctl.bootstrap import command
from poolctl.keeper import wire
from poolctl.runners import withheld
from poolctl.runners.link import Link, LinkLost
from poolctl.runners.local.resources.process_watchdog import ProcessWatchdog, identity, kill

from .dashboard_settings import Told

_UP_SECONDS = 30.0
_ENDS_SECONDS = 10.0


class DashboardProcess:
    """The one at the other end of `sock`; `known` is its identity, `mark` what it was told.

    `on_end` is called when it has ended by itself.
    """

    def __init__(
        self,
        sock: socket.socket,
        known: dict[str, Any],
        mark: str,
        on_end: Callable[[DashboardProcess], None],
    ) -> None:
        self.mark = mark
        self.known = known
        self.up = asyncio.Event()
        self.began = asyncio.get_running_loop().time()
        self._on_end = on_end
        self._watched: ProcessWatchdog | None = None
        # Soon: the first message may find the link lost, before this object is ready to report that.
        self.link = Link(sock, self._heard, self._ends)
        self._watched = ProcessWatchdog(self.link, known, "the dashboard's process")

    @classmethod
    async def start(
        cls,
        keeper: Link,
        directory: str,
        told: Told,
        mark: str,
        sockets: Sequence[socket.socket],
        on_end: Callable[[DashboardProcess], None],
    ) -> DashboardProcess:
        """A new one that serves. Raises LinkLost, TimeoutError when it does not come up: then it is ended."""
        ours, theirs = wire.pair()
        argv = command(sys.executable, "web")
        output = os.path.join(directory, "dashboard.log")
        with theirs:
            reply, _ = await keeper.call(
                {
                    "op": "spawn",
                    "argv": argv,
                    "output": output,
                    "session": True,
                    "without": withheld.present(),
                },
                [theirs.fileno()],
            )
        process = cls(ours, identity(int(reply["pid"])), mark, on_end)
        begin = {"t": "begin", "bind": told.bind, "directory": directory, "settings": told.settings}
        process.link.send(begin, [sock.fileno() for sock in sockets])
        try:
            async with asyncio.timeout(_UP_SECONDS):
                await process.up.wait()
            if process.link.sock.fileno() < 0:
                raise LinkLost(f"its process ended at its start; see {output}")
        except BaseException:
            process.end()
            raise
        return process

    def end(self) -> None:
        """Have it end, whatever it does: one that hangs does not hear it, and would hold its listener for ever."""
        self._watch_no_more()
        self.link.send({"t": "end"})
        self.link.close()
        asyncio.get_running_loop().call_later(_ENDS_SECONDS, kill, self.known)

    def _heard(self, message: wire.Message, fds: list[int]) -> None:
        if self._watched is not None:
            self._watched.received(message)
        if message.get("t") == "up":
            self.up.set()

    def _watch_no_more(self) -> None:
        if self._watched is not None:
            self._watched.close()
            self._watched = None

    def _ends(self) -> None:
        asyncio.get_running_loop().call_soon(self._ended)

    def _ended(self) -> None:
        self._watch_no_more()
        self.up.set()
        self._on_end(self)
