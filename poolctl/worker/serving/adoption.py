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
    """Accepted connections, handed from worker to worker: unread bytes and all, and nobody at the other end sees it."""

    def __init__(self, give: socket.socket, take: socket.socket) -> None:
        # Neither is made non-blocking here: that is a property of the open file, which all workers share.
        self._give = give
        self._take = take
        self._on_connection: Callable[[handover.Connection], None] = lambda taken: taken.close()
        self._resting: asyncio.TimerHandle | None = None

    @property
    def ends(self) -> tuple[socket.socket, socket.socket]:
        """The pair itself: where it gives, and where it takes."""
        return self._give, self._take

    def open(self, on_connection: Callable[[handover.Connection], None]) -> None:
        """Call `on_connection` with every connection that is taken from now on."""
        self._on_connection = on_connection
        asyncio.get_running_loop().add_reader(self._take.fileno(), self._take_one)

    def close(self) -> None:
        """Take nothing more; what waits is for others."""
        if self._resting is not None:
            self._resting.cancel()
        asyncio.get_running_loop().remove_reader(self._take.fileno())

    def give(self, fd: int, limits: dict[str, Any] | None = None) -> bool:
        """Whether the connection waits for another worker now; False when there is no room.

        `limits` say how much time its client has left, as those of a `handover.Connection` do.
        """
        try:
            handover.give(self._give, fd, limits)
        except OSError:
            return False
        return True

    def forget(self) -> None:
        """Close both ends, in a process that is no worker."""
        for end in (self._give, self._take):
            os.close(end.detach())

    def _take_one(self) -> None:
        # One a turn: it is the same for all who are awake, and the rest of the loop has its turn.
        try:
            taken = handover.take(self._take)
        except handover.NoRoom:
            self._rest()
            return
        except (BlockingIOError, InterruptedError, WireError):
            return  # mostly: another worker was faster
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
    """`on_done` is called when one has its protocol, or has failed, for example in its handshake."""

    def __init__(self, on_done: Callable[[], None] = lambda: None) -> None:
        self._on_done = on_done
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
        """Give the connection a protocol; with a context TLS is spoken on it."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        # No other timeout than a TLS handshake's is allowed without TLS.
        timeout = None if context is None else handshake_seconds
        work = loop.connect_accepted_socket(make, sock, ssl=context, ssl_handshake_timeout=timeout)
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Give up those that have no protocol yet."""
        for task in list(self._tasks):
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio complains of one that nothing has asked for
        self._on_done()
