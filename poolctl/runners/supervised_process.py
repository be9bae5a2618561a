"""Base class of processes that a supervisor starts and watches; descriptor 3 is the link to the supervisor.

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

from .process_link import PING, Link, LinkHandler

LINK_FD = 3
# The directory may be gone, or its file system full.
_BIND_AGAIN_SECONDS = 1.0

# An orphan's description of its state: messages, and the sockets sent with each.
AdoptionMessages = Iterable[tuple[wire.Message, Sequence[socket.socket]]]


class SupervisedProcess(LinkHandler):
    """Handles the supervisor's messages until `over` is set.

    `over` is set by the message `end`, by SIGTERM, or when keeper and supervisor have exited. The keeper also holds the
    supervisor's end of the link, which therefore stays open while a supervisor is replaced.
    """

    def __init__(self, fd: int = LINK_FD) -> None:
        self.mark = __version__  # compared by the supervisor with the mark of a new process
        self._sock = wire.socket_from_fd(fd)
        # For an orphan: the socket on which it listens, its path, and the connections.
        self._orphan_listener: socket.socket | None = None
        self._orphan_path = ""
        self._orphan_connections: set[_AdopterConnection] = set()
        self._bind_again: asyncio.TimerHandle | None = None

    async def serve_supervisor(self) -> None:
        """Handle the supervisor's messages; returns when the process should exit."""
        self.over = asyncio.Event()
        # Ctrl-C in a terminal is left to the pool.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.over.set)
        self.link = Link(self._sock, self)
        await self.over.wait()
        self._stop_accepting_adopters()
        await self.end_service()
        self.link.close()

    async def end_service(self) -> None:
        """Finish current requests before the process exits."""

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Carry out a message specific to this kind of process, and take ownership of the descriptors `fds`."""
        raise NotImplementedError

    def on_link_lost(self) -> None:
        """Exit, because keeper and supervisor have both exited. A subclass may wait to be adopted instead."""
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

    def listen_for_adoption(self, directory: str, kind: str) -> None:
        """Begin to listen on a socket of this kind in the pool's directory, where a supervisor can adopt this process.

        Does not wait. A supervisor that connects is sent the messages of `messages_for_adopter`. Binding the socket is
        repeated if it fails, and when the socket's file was removed.
        """
        loop = asyncio.get_running_loop()
        self._bind_again = loop.call_later(_BIND_AGAIN_SECONDS, self.listen_for_adoption, directory, kind)
        if self._orphan_listener is not None and os.path.lexists(self._orphan_path):
            return
        try:
            listener, self._orphan_path = rendezvous.bind_new_socket(directory, kind)
        except OSError:
            return
        if self._orphan_listener is not None:
            loop.remove_reader(self._orphan_listener.fileno())
            self._orphan_listener.close()
        self._orphan_listener = listener
        listener.listen()
        loop.add_reader(listener.fileno(), self._accept_adopter, listener)

    def messages_for_adopter(self) -> AdoptionMessages:
        """The messages, with sockets, that give an adopting supervisor the state that it cannot recreate."""
        return ()

    def adopted(self, link: Link) -> None:
        """Use this link to the supervisor from now on."""
        self.link = link

    def adopt_supervisor_connection(self, connection: _AdopterConnection) -> None:
        """Make this connection the link to the supervisor."""
        self.forget(connection)
        self._stop_accepting_adopters()
        self.adopted(connection.link)

    def forget(self, connection: _AdopterConnection) -> None:
        """Forget a connection that has been closed."""
        self._orphan_connections.discard(connection)

    def _accept_adopter(self, listener: socket.socket) -> None:
        sock = rendezvous.accept(listener, {0, os.geteuid()})
        if sock is None:
            return
        connection = _AdopterConnection(self, sock)
        self._orphan_connections.add(connection)
        for message, sockets in self.messages_for_adopter():
            connection.link.send(message, sockets)
        connection.link.send({"t": "over", "mark": self.mark})

    def _stop_accepting_adopters(self) -> None:
        if self._bind_again is not None:
            self._bind_again.cancel()
        if self._orphan_listener is not None:
            asyncio.get_running_loop().remove_reader(self._orphan_listener.fileno())
            self._orphan_listener.close()
            self._orphan_listener = None
            pool_files.unlink_quietly(self._orphan_path)
        for each in self._orphan_connections:
            each.link.close()
        self._orphan_connections.clear()


class _AdopterConnection(LinkHandler):
    """A connection to an orphaned process. The first one that sends an order becomes the link to the supervisor."""

    def __init__(self, process: SupervisedProcess, sock: socket.socket) -> None:
        self._process = process
        self._adopts = False
        self.link = Link(sock, self)

    def received(self, message: wire.Message, fds: list[int]) -> None:
        if not self._adopts:
            self._adopts = True
            self._process.adopt_supervisor_connection(self)
        self._process.received(message, fds)

    def on_link_lost(self) -> None:
        if self._adopts:
            self._process.on_link_lost()
        else:
            self._process.forget(self)
