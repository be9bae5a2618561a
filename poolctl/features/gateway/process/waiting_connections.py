"""Connections that wait for the rest of a head, or for the client to close. They use no CPU.

All are in one edge-triggered epoll instance, so that unread bytes in a socket are reported only once, and not in
every loop iteration.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import select
import socket
from itertools import islice

from poolctl.platform import close_promptly

_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDS = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_EVENTS_AT_ONCE = 256
_NEVER = float("inf")
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
# Maximum number of silent connections examined to find one to close: from the others, something has just arrived.
_LOOKED_AT = 32
# After a refusal: maximum time to wait for the client to close, and maximum bytes read meanwhile.
_LINGER_SECONDS = 2.0
_MOST_LINGERED_BYTES = 1024 * 1024
_READ_BYTES = 64 * 1024
# While draining: time in which a client that has sent nothing may still send its request.
QUIET_SECONDS = 2.0
# Bounded because each connection costs the kernel memory, independently of the limit on open files.
_MOST = 100_000


class ConnectionAwaitingInput:
    """A connection that waits for bytes from the client, or for the client to close it."""

    __slots__ = ("deadline", "silent", "sock", "timer")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.deadline = _NEVER
        self.timer: asyncio.TimerHandle | None = None
        self.silent = True  # nothing was received from it yet

    def needs_more_after_read(self, *, ended: bool) -> bool:
        """Handle new bytes, or with `ended` the client's end of file; returns whether to wait for more.

        After False, the connection is no longer watched, and `proceed` is called.
        """
        raise NotImplementedError

    def serve_or_close(self) -> None:
        """Serve the connection after `needs_more_after_read` returned False, or close it if nothing was received."""
        raise NotImplementedError

    @property
    def most_seconds(self) -> float:
        """The maximum time in seconds to wait for further bytes after the first ones have arrived."""
        return _NEVER

    def has_unread(self) -> bool:
        """Whether the socket has unread bytes, which epoll may not have reported yet."""
        try:
            return bool(self.sock.recv(1, _PEEK))
        except OSError:
            return False

    def on_deadline(self) -> None:
        """Called after the deadline, when the connection is no longer watched; closes it by default."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        close_promptly(self.sock.detach())


class WaitingConnections:
    """The connections that wait for bytes from their clients, or for their clients to close them.

    If there are too many, the oldest one that has sent nothing is closed first. Must be created on the running loop.
    """

    def __init__(self, most: int = 0) -> None:
        self._loop = asyncio.get_running_loop()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The remaining descriptors are for proxied connections, and for connections being accepted.
        self._most = most or max(16, min(_MOST, soft // 2))
        self._epoll: select.epoll | None = None
        self._connections: dict[int, ConnectionAwaitingInput] = {}  # by descriptor, in the order of arrival
        self._silent: dict[int, None] = {}
        self._emptied: asyncio.Future[None] | None = None  # resolved when no connection is left

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def is_full(self) -> bool:
        """Whether a further connection would replace the oldest."""
        return len(self._connections) >= self._most

    def add(self, waiting: ConnectionAwaitingInput, seconds: float) -> None:
        """Watch the connection, without blocking; bytes that have already arrived are reported to it, too.

        If it still waits after `seconds`, its `on_deadline` is called.
        """
        fd = waiting.sock.fileno()
        if self.is_full and not self.close_silent():
            self._end(next(iter(self._connections.values())))
        if self._epoll is None:
            self._epoll = select.epoll()
            self._loop.add_reader(self._epoll.fileno(), self._on_events)
        try:
            self._epoll.register(fd, _EVENTS)
        except OSError:  # the user's limit of watches is reached (epoll(7))
            waiting.close()
            return
        self._connections[fd] = waiting
        if waiting.silent:
            self._silent[fd] = None
        self._set_deadline(waiting, self._loop.time() + seconds)

    def refuse(self, sock: socket.socket, answer: bytes) -> None:
        """Send this small answer and close the connection so that the client can read it."""
        # Closing with unread bytes would reset the connection, and the answer with it (RFC 9112 §9.6).
        refused = _LingeringCloseConnection(sock)
        try:
            sock.send(answer, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            sock.shutdown(socket.SHUT_WR)
            wait = refused.needs_more_after_read(ended=False)
        except OSError:
            wait = False
        if wait:
            self.add(refused, _LINGER_SECONDS)
        else:
            refused.close()

    def close_silent(self) -> bool:
        """Close the oldest connection that has sent nothing; returns False if there is no such connection."""
        for fd in islice(self._silent, _LOOKED_AT):
            waiting = self._connections[fd]
            if not waiting.has_unread():
                self._end(waiting)
                return True
        return False

    async def drain(self, seconds: float) -> None:
        """Wait for incomplete heads, for at most `seconds`, then close the remaining connections.

        Connections that have sent nothing are closed earlier, after a short time for bytes that are still under way.
        """
        if not self._connections:
            return
        self._emptied = self._loop.create_future()
        quiet = self._loop.call_later(QUIET_SECONDS, self._close_all_silent)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emptied, seconds)
        quiet.cancel()
        for waiting in list(self._connections.values()):
            self._end(waiting)

    def close(self) -> None:
        """Close all connections."""
        for waiting in list(self._connections.values()):
            self._end(waiting)
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _on_events(self) -> None:
        assert self._epoll is not None
        for fd, events in self._epoll.poll(0, _EVENTS_AT_ONCE):
            waiting = self._connections.get(fd)
            if waiting is None:
                continue  # closed by one of the events before it
            was_silent, waiting.silent = waiting.silent, False
            if was_silent:
                del self._silent[fd]
            if not waiting.needs_more_after_read(ended=bool(events & _ENDS)):
                self._remove(waiting)
                waiting.serve_or_close()
            elif was_silent:
                # The deadline was for the pause between requests, and the next request has begun.
                deadline = self._loop.time() + waiting.most_seconds
                self._set_deadline(waiting, min(waiting.deadline, deadline))

    def _remove(self, waiting: ConnectionAwaitingInput) -> None:
        fd = waiting.sock.fileno()
        del self._connections[fd]
        self._silent.pop(fd, None)
        if waiting.timer is not None:
            waiting.timer.cancel()
        # Explicitly: closing a descriptor does not remove it from an epoll while other processes hold duplicates.
        assert self._epoll is not None
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        if self._emptied is not None and not self._connections and not self._emptied.done():
            self._emptied.set_result(None)

    def _close_all_silent(self) -> None:
        for waiting in [self._connections[fd] for fd in self._silent]:
            if not waiting.has_unread():
                self._end(waiting)

    def _end(self, waiting: ConnectionAwaitingInput) -> None:
        self._remove(waiting)
        waiting.close()

    def _set_deadline(self, waiting: ConnectionAwaitingInput, deadline: float) -> None:
        if waiting.timer is not None:
            waiting.timer.cancel()
        waiting.deadline = deadline
        waiting.timer = self._loop.call_at(deadline, self._on_time, waiting)

    def _on_time(self, waiting: ConnectionAwaitingInput) -> None:
        self._remove(waiting)
        waiting.on_deadline()


class _LingeringCloseConnection(ConnectionAwaitingInput):
    """A refused connection, whose remaining bytes are read and discarded until the client closes it."""

    __slots__ = ("_left_bytes",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._left_bytes = _MOST_LINGERED_BYTES

    def needs_more_after_read(self, *, ended: bool) -> bool:
        try:
            while self._left_bytes > 0:
                data = self.sock.recv(_READ_BYTES, socket.MSG_DONTWAIT)
                if not data:
                    return False
                self._left_bytes -= len(data)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def serve_or_close(self) -> None:
        self.close()
