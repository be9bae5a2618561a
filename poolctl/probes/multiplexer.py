"""All connections on which answers come, heard as one: many small wake-ups cost more than what wakes for."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable

# What was asked together is mostly answered within this time; a latency is never more than this too long.
DEAF_SECONDS = 0.004


class Ears:
    """Calls back for each descriptor that can be read. Belongs to the running loop.

    Where there is no epoll, each is heard by itself.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._heard: dict[int, Callable[[], None]] = {}
        self._deaf: asyncio.TimerHandle | None = None

    def add(self, fd: int, fn: Callable[[], None]) -> None:
        """Call `fn` whenever there is something to read."""
        if self._epoll is None:
            self._loop.add_reader(fd, fn)
            return
        if not self._heard and self._deaf is None:
            self._loop.add_reader(self._epoll.fileno(), self._listen)
        self._heard[fd] = fn
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Hear nothing of it any more; it is still open."""
        if self._epoll is None:
            self._loop.remove_reader(fd)
        elif self._heard.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            if not self._heard:
                self._stop()

    def wait(self) -> None:
        """Listen to nobody for a moment, because many were asked just now, and then to all of them at once."""
        if self._epoll is not None and self._heard and self._deaf is None:
            self._loop.remove_reader(self._epoll.fileno())
            self._deaf = self._loop.call_later(DEAF_SECONDS, self._listen_again)

    def _listen_again(self) -> None:
        self._deaf = None
        if self._epoll is not None and self._heard:
            self._loop.add_reader(self._epoll.fileno(), self._listen)
            self._listen()

    def _listen(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0):
            fn = self._heard.get(fd)
            if fn is not None:
                fn()

    def _stop(self) -> None:
        assert self._epoll is not None
        if self._deaf is not None:
            self._deaf.cancel()
            self._deaf = None
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._epoll.fileno())
