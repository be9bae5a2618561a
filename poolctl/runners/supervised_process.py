"""Base class of processes that a supervisor starts and watches; descriptor 3 is the link to the supervisor."""

from __future__ import annotations

import asyncio
import signal

from poolctl import __version__
from poolctl.keeper import wire

from .process_link import PING, Link, LinkHandler

LINK_FD = 3


class SupervisedProcess(LinkHandler):
    """Handles the supervisor's messages until `over` is set.

    `over` is set by the message `end`, by SIGTERM, or when keeper and supervisor have exited. The keeper also holds the
    supervisor's end of the link, which therefore stays open while a supervisor is replaced.
    """

    def __init__(self, fd: int = LINK_FD) -> None:
        self.mark = __version__  # compared by the supervisor with the mark of a new process
        self._sock = wire.socket_from_fd(fd)

    async def serve_supervisor(self) -> None:
        """Handle the supervisor's messages; returns when the process should exit."""
        self.over = asyncio.Event()
        # Ctrl-C in a terminal is left to the pool.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.over.set)
        self.link = Link(self._sock, self)
        await self.over.wait()
        await self.end_service()
        self.link.close()

    async def end_service(self) -> None:
        """Finish current requests before the process exits."""

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Carry out a message specific to this kind of process, and take ownership of the descriptors `fds`."""
        raise NotImplementedError

    def on_link_lost(self) -> None:
        """Exit, because keeper and supervisor have both exited."""
        self.over.set()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        if message == PING:
            self.link.send({"t": "pong"})
        elif message.get("t") == "end":
            self.over.set()
        elif message.get("t") == "performed":
            self.confirm_performed(message)
        else:
            self.perform(message, fds)

    def confirm_performed(self, message: wire.Message) -> None:
        """Reply that all orders before this message have been carried out."""
        self.link.send({"t": "performed", "id": message["id"]})
