"""All probe connections behind one epoll descriptor: many small wake-ups cost more than the work they wake for."""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable

# Workers that are probed together mostly answer within this time; a latency is never more than this too long.
PAUSE_SECONDS = 0.004


class Multiplexer:
    """Calls back for each descriptor that can be read. Belongs to the running loop.

    Without epoll, the loop watches each descriptor separately.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._pause: asyncio.TimerHandle | None = None

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever there is something to read."""
        if self._epoll is None:
            self._loop.add_reader(fd, callback)
            return
        if not self._callbacks and self._pause is None:
            self._loop.add_reader(self._epoll.fileno(), self._dispatch)
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Stop watching the descriptor, which is still open."""
        if self._epoll is None:
            self._loop.remove_reader(fd)
        elif self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            if not self._callbacks:
                self._stop()

    def pause(self) -> None:
        """Stop watching for a moment, because many requests were just sent; then read all responses in one batch."""
        if self._epoll is not None and self._callbacks and self._pause is None:
            self._loop.remove_reader(self._epoll.fileno())
            self._pause = self._loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._pause = None
        if self._epoll is not None and self._callbacks:
            self._loop.add_reader(self._epoll.fileno(), self._dispatch)
            self._dispatch()

    def _dispatch(self) -> None:
        assert self._epoll is not None
        for fd, _ in self._epoll.poll(0):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()

    def _stop(self) -> None:
        assert self._epoll is not None
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.remove_reader(self._epoll.fileno())
