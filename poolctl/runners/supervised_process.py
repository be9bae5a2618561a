"""The inside of a process that a supervisor starts and watches: descriptor 3 leads to the supervisor."""

from __future__ import annotations

import asyncio
import os
import signal

from poolctl.keeper import wire

from .process_link import Link, Receiver
from .process_watchdog import PING

LINK_FD = 3


class SupervisedProcess(Receiver):
    """Follows the supervisor's messages until `over` is set: by `end`, by SIGTERM, or as the last process of its pool.

    The link has an end at the keeper too, so a supervisor that is replaced is not noticed here.
    """

    def __init__(self, fd: int = LINK_FD) -> None:
        self._sock = wire.over(fd)

    async def run(self) -> None:
        """Return when it is over."""
        self.over = asyncio.Event()
        # Ctrl-C in a terminal is handled by the pool.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.over.set)
        self.link = Link(self._sock, self)
        await self.over.wait()
        await self.finish()
        self.link.close()

    async def finish(self) -> None:
        """End what is being served."""

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Follow another order than those that all such processes know; the descriptors are the callee's."""
        raise NotImplementedError

    def lost(self) -> None:
        """See Receiver: neither keeper nor supervisor is left."""
        self.over.set()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """See Receiver."""
        if message == PING:
            self.link.send({"t": "pong", "pid": os.getpid()})
        elif message.get("t") == "end":
            self.over.set()
        elif message.get("t") == "performed":
            self.link.send({"t": "performed", "id": message["id"]})
        else:
            self.perform(message, fds)
