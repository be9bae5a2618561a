"""Base of processes that a supervisor starts and watches, with the supervisor at descriptor 3.

A process whose clients must not notice the death of keeper and supervisor continues to serve: it listens in the pool's
directory, as orphaned workers do, until the next supervisor adopts it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterable, Sequence

from poolctl import __version__
from poolctl.keeper import pool_files, rendezvous, wire

from .process_link import PING, Link, Receiver

LINK_FD = 3
# The directory may be gone, or its file system full.
_BIND_AGAIN_SECONDS = 1.0

# An orphan's account of itself: messages, and the sockets that belong to each.
Holdings = Iterable[tuple[wire.Message, Sequence[socket.socket]]]


class SupervisedProcess(Receiver):
    """Follows the supervisor's messages until `over` is set.

    It is set by the message `end`, by SIGTERM, or when no other process of the pool is left. The link has an end at the
    keeper too, so a supervisor that is replaced is not noticed here.
    """

    def __init__(self, fd: int = LINK_FD) -> None:
        self.mark = __version__  # compared by the supervisor with the mark of a new process
        self._sock = wire.over(fd)
        self._orphan: OrphanedProcess | None = None

    async def run(self) -> None:
        """Follow the supervisor's messages; return when the process should end."""
        self.over = asyncio.Event()
        # Ctrl-C in a terminal is handled by the pool.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.over.set)
        self.link = Link(self._sock, self)
        await self.over.wait()
        if self._orphan is not None:
            self._orphan.close()
        await self.finish()
        self.link.close()

    async def finish(self) -> None:
        """Finish current requests before the process ends."""

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Follow an order that is specific to this process; it then owns the descriptors."""
        raise NotImplementedError

    def lost(self) -> None:
        """See Receiver. Keeper and supervisor are both gone."""
        self.over.set()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """See Receiver."""
        if message == PING:
            self.link.send({"t": "pong", "pid": os.getpid()})
        elif message.get("t") == "end":
            self.over.set()
        elif message.get("t") == "performed":
            self.performed(message)
        else:
            self.perform(message, fds)

    def performed(self, message: wire.Message) -> None:
        """Reply that all orders before this message have been followed."""
        self.link.send({"t": "performed", "id": message["id"]})

    def await_adoption(self, directory: str, kind: str) -> None:
        """Continue without keeper and supervisor, listening in the pool's directory as this kind of process."""
        self._orphan = OrphanedProcess(self, directory, kind)

    def holdings(self) -> Holdings:
        """The state and descriptors that an adopting supervisor needs and cannot recreate."""
        return ()

    def adopted(self, link: Link) -> None:
        """Follow the messages of this link from now on."""
        self._orphan = None
        self.link = link


class OrphanedProcess:
    """Listens in the pool's directory, and sends each connection the process's messages and sockets.

    The first connection that sends an order becomes the link to the supervisor. Other connections only read.
    """

    def __init__(self, process: SupervisedProcess, directory: str, kind: str) -> None:
        self.process = process
        self._directory, self._kind = directory, kind
        self._loop = asyncio.get_running_loop()
        self._connections: set[_Connection] = set()
        self._listener: socket.socket | None = None
        self._path = ""
        self._timer: asyncio.TimerHandle | None = None
        self._listen()

    def adopt(self, connection: _Connection) -> None:
        """Make this connection the process's link to the supervisor."""
        self._connections.discard(connection)
        self.close()
        self.process.adopted(connection.link)

    def forget(self, connection: _Connection) -> None:
        """Forget a connection that has been closed."""
        self._connections.discard(connection)

    def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            pool_files.forget(self._path)
        for each in self._connections:
            each.link.close()
        self._connections.clear()

    def _listen(self) -> None:
        self._timer = None
        try:
            self._listener, self._path = rendezvous.bind(self._directory, self._kind)
        except OSError:
            self._timer = self._loop.call_later(_BIND_AGAIN_SECONDS, self._listen)
            return
        self._listener.listen()
        self._loop.add_reader(self._listener.fileno(), self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        sock = rendezvous.accept(listener, {0, os.geteuid()})
        if sock is None:
            return
        connection = _Connection(self, sock)
        self._connections.add(connection)
        for message, sockets in self.process.holdings():
            connection.link.send(message, sockets)
        connection.link.send({"t": "over", "mark": self.process.mark})


class _Connection(Receiver):
    """A connection to an orphan."""

    def __init__(self, orphan: OrphanedProcess, sock: socket.socket) -> None:
        self._orphan: OrphanedProcess | None = orphan
        self._process = orphan.process
        self.link = Link(sock, self)

    def received(self, message: wire.Message, fds: list[int]) -> None:
        orphan, self._orphan = self._orphan, None
        if orphan is not None:
            orphan.adopt(self)
        self._process.received(message, fds)

    def lost(self) -> None:
        if self._orphan is not None:
            self._orphan.forget(self)
        else:
            self._process.lost()
