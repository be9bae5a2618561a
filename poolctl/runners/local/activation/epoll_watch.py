"""The descriptors that the activator watches, in an epoll instance of their own: idle ones cost nothing."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable, Iterator

from .sleeping_listener import HeldConnection, SleepingListener

_HELD = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDS = select.EPOLLRDHUP | select.EPOLLHUP


class EpollWatch:
    """`ready` is called from the running loop when `events` has something to return."""

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._watched: dict[int, tuple[SleepingListener, HeldConnection | None]] = {}
        self._epoll: select.epoll | None = None

    def add(self, fd: int, sleeping: SleepingListener, held: HeldConnection | None = None) -> None:
        """Watch a connection, or with no `held` a listener or a pair. Raises OSError."""
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._ready)
        self._watched[fd] = (sleeping, held)
        self._epoll.register(fd, select.EPOLLIN if held is None else _HELD)

    def remove(self, fd: int) -> None:
        """Stop watching it, if it is watched."""
        # Explicitly: closing a descriptor does not remove it from an epoll while other processes hold duplicates.
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def events(self) -> Iterator[tuple[int, SleepingListener, HeldConnection | None, bool]]:
        """The readable descriptors, without those removed during the iteration; for a connection whether it ends."""
        for fd, events in self._epoll.poll(0) if self._epoll is not None else ():
            if fd in self._watched:
                sleeping, held = self._watched[fd]
                yield fd, sleeping, held, bool(events & _ENDS)

    def close(self) -> None:
        """Stop watching everything."""
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._watched.clear()
