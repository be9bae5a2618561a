"""Hands a logger's pipes over to the next supervisor when keeper and supervisor have died."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence

from poolctl.keeper import rendezvous, wire

from .output_stream import OutputStream


class PipeHandover:
    """A listener in the logger's loop. Each connection gets every stream with its pipe, and then `over`.

    The one that answers `taken` owns them all; then `taken` is true and the logger exits.
    """

    def __init__(self, directory: str, epoll: select.epoll) -> None:
        self.taken = False
        self._epoll = epoll
        self._listener, self._path = rendezvous.bind(directory, rendezvous.LOGGER)
        self._listener.listen()
        self._connections: dict[int, socket.socket] = {}
        epoll.register(self._listener.fileno(), select.EPOLLIN)

    def has(self, fd: int) -> bool:
        """Whether the descriptor is the listener or one of its connections."""
        return fd == self._listener.fileno() or fd in self._connections

    def serve(self, fd: int, streams: Sequence[OutputStream]) -> bool:
        """Handle a readable descriptor; whether the streams have been taken."""
        if fd != self._listener.fileno():
            self._read_answer(fd)
            return self.taken
        connection = rendezvous.accept(self._listener, {0, os.geteuid()})
        if connection is None:
            return False
        connection.settimeout(1.0)
        try:
            for stream in streams:
                wire.send(connection, {**stream.order, "pid": stream.pid}, [stream.fd])
            wire.send(connection, {"t": "over"})
        except (OSError, wire.WireError):
            connection.close()
            return False
        self._connections[connection.fileno()] = connection
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return False

    def close(self) -> None:
        """Stop listening."""
        rendezvous.forget(self._path)
        for sock in (self._listener, *self._connections.values()):
            self._epoll.unregister(sock.fileno())
            sock.close()
        self._connections.clear()

    def _read_answer(self, fd: int) -> None:
        received = rendezvous.receive(self._connections[fd])
        self.taken = received is not None and received[0].get("t") == "taken"
        self._epoll.unregister(fd)
        self._connections.pop(fd).close()
