"""Readiness of the sockets of sessions, from one epoll instance for all of them.

A loop's own `add_reader` and `remove_reader` make six system calls for a socket; this makes one. A closed socket needs
no call, because no other process has duplicates of it. It does not pay for sockets that are ready often, such as
connections, because each check is an extra system call per iteration of the loop.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

_AT_ONCE = 64


class SocketEvents:
    """Calls back while there is something to read from a socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        loop.add_reader(self._epoll.fileno(), self._dispatch)

    def close(self) -> None:
        """Stop calling back."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._readers.clear()

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back while there is something to read, until the socket is closed. Raises OSError."""
        self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        """Stop calling back, although the socket stays open."""
        self._epoll.unregister(fd)
        del self._readers[fd]

    def closing(self, fd: int) -> None:
        """The socket is closed next."""
        self._readers.pop(fd, None)

    def _dispatch(self) -> None:
        for fd, _ in self._epoll.poll(0, _AT_ONCE):
            callback = self._readers.get(fd)
            if callback is not None:
                try:
                    callback()
                except Exception as error:
                    context = {"message": "a session could not be served", "exception": error}
                    self._loop.call_exception_handler(context)
