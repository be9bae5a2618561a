"""Accepts a worker's connections from the listeners that all workers of a server share.

Without TLS the event loop's own server does it. With TLS it would begin the handshake at once, and nothing could be
decided about a connection before: so `TlsListener` accepts, and gives each connection to the worker as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from poolctl.keeper.connection_handover import Connection

from .connection_state import PoolServerState

logger = logging.getLogger("uvicorn.error")

_AT_ONCE = 16
ROOM_PART = 4
_RETRY_SECONDS = 1.0  # as asyncio's


class Listening(Protocol):
    """Accepts from one listener; asyncio.Server implements it."""

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The duplicates of the listener, on which the loop has a reader."""

    def close(self) -> None:
        """Stop accepting."""


class SharedListener(socket.socket):
    """A listener from which only a few connections are accepted at a time.

    asyncio needs some iterations to count them, so a worker accepts only a fraction of its room at a time.
    """

    def __init__(self, like: socket.socket, server_state: PoolServerState) -> None:
        # Not like.dup(): it makes the new socket blocking for a moment, and with it, because they share one open file,
        # the listener of every other worker; a worker that calls accept() at that moment blocks forever.
        numbers: Any = super(socket.socket, like)
        self._kind = numbers.family, numbers.type, numbers.proto
        super().__init__(*self._kind, fileno=os.dup(like.fileno()))
        self._server_state = server_state
        self._at_once = 1

    def accept(self) -> tuple[socket.socket, object]:
        """Like socket.accept(), but sometimes raises BlockingIOError early, so that the loop can do other work."""
        if not self._at_once:
            self._at_once = max(1, min(_AT_ONCE, self._server_state.room() // ROOM_PART))
            raise BlockingIOError
        self._at_once -= 1
        fd, address = self._accept()  # type: ignore[attr-defined]
        return socket.socket(*self._kind, fileno=fd), address

    def accept_one(self) -> Connection:
        """Accept the next connection. Raises OSError; BlockingIOError if no connection is waiting."""
        fd, _ = self._accept()  # type: ignore[attr-defined]
        return Connection(*self._kind, fd)


class TlsListener:
    """Accepts TLS connections until it is closed, or the loop has no reader on its socket.

    `begin_tls` gets each connection, of which nothing has been read, and owns it.
    """

    def __init__(self, listener: SharedListener, begin_tls: Callable[[socket.socket], None]) -> None:
        self.sockets = (listener,)
        self._listener = listener
        self._begin_tls = begin_tls
        self._retry: asyncio.TimerHandle | None = None
        self._begin()

    def close(self) -> None:
        """Stop accepting."""
        stop_reading(self.sockets)
        if self._retry is not None:
            self._retry.cancel()
        self._listener.close()

    def _begin(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        # One per iteration: a handshake takes far longer, and meanwhile another worker may accept the next connection.
        try:
            sock = self._listener.accept_one()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # usually no descriptor is free
            logger.warning("no connection can be accepted: %s", error)
            stop_reading(self.sockets)
            self._retry = asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._begin)
            return
        self._begin_tls(sock)


def stop_reading(listeners: Sequence[socket.socket]) -> None:
    """Stop accepting from these listeners; accepted connections continue."""
    loop = asyncio.get_running_loop()
    for listener in listeners:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_reader(listener.fileno())


async def close_all(listening: Sequence[Listening]) -> None:
    """Stop accepting, without losing a connection that has been accepted."""
    # asyncio's Server.close() destroys connections that it accepted and did not attach yet: stop reading the listener
    # first and close it some turns later, when those are attached.
    for each in listening:
        stop_reading(each.sockets)
    for _ in range(3):
        await asyncio.sleep(0)
    for each in listening:
        each.close()
    await asyncio.sleep(0)
