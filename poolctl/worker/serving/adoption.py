"""Connections that come from other processes, and a worker's two ends of its server's adoption pair."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

from ...keeper import handover
from ...keeper.wire import WireError

_AGAIN_SECONDS = 0.1


class Adoption:
    """The adoption pair, through which workers hand over connections with their unread bytes, unnoticed by clients."""

    def __init__(self, give: socket.socket, take: socket.socket) -> None:
        # Neither is made non-blocking here: that is a property of the open file, which all workers share.
        self._give = give
        self._take = take
        self._on_connection: Callable[[handover.Connection], None] = lambda taken: taken.close()
        self._resting: asyncio.TimerHandle | None = None

    @property
    def ends(self) -> tuple[socket.socket, socket.socket]:
        """The pair itself: the end to give to, and the end to take from."""
        return self._give, self._take

    def open(self, on_connection: Callable[[handover.Connection], None]) -> None:
        """Take connections from now on, and call `on_connection` with each."""
        self._on_connection = on_connection
        asyncio.get_running_loop().add_reader(self._take.fileno(), self._take_one)

    def close(self) -> None:
        """Take no more connections; those that wait are left to other workers."""
        if self._resting is not None:
            self._resting.cancel()
        asyncio.get_running_loop().remove_reader(self._take.fileno())

    def give(self, fd: int, limits: dict[str, Any] | None = None) -> bool:
        """Queue the connection for another worker; False when there is no room.

        `limits` are the remaining times of its client, as in a `handover.Connection`.
        """
        try:
            handover.give(self._give, fd, limits)
        except OSError:
            return False
        return True

    def close_in_child(self) -> None:
        """Close both ends in a process that the application has forked."""
        for end in (self._give, self._take):
            os.close(end.detach())

    def _take_one(self) -> None:
        # One in each iteration of the loop, so that other work, and other workers, have their turn.
        try:
            taken = handover.take(self._take)
        except handover.NoRoom:
            self._rest()
            return
        except (BlockingIOError, InterruptedError, WireError):
            return  # usually another worker was faster
        except OSError:
            taken = None
        if taken is None:
            self.close()
        else:
            self._on_connection(taken)

    def _rest(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._take.fileno())
        self._resting = loop.call_later(_AGAIN_SECONDS, self.open, self._on_connection)


class AcceptedConnections:
    """Connections that have no protocol yet; `changed` is set when one has got it, or has failed."""

    def __init__(self, changed: asyncio.Event) -> None:
        self._changed = changed
        self._tasks: set[asyncio.Task[Any]] = set()

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def attach(
        self,
        make: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        context: ssl.SSLContext | None,
        handshake_seconds: float | None = None,
    ) -> None:
        """Give the connection a protocol; with a context it uses TLS."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        # asyncio does not accept a handshake timeout without TLS.
        timeout = None if context is None else handshake_seconds
        work = loop.connect_accepted_socket(make, sock, ssl=context, ssl_handshake_timeout=timeout)
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Cancel those that have no protocol yet."""
        for task in list(self._tasks):
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # otherwise asyncio logs that it was never retrieved
        self._changed.set()
