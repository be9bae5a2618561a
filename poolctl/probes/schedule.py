"""Schedules all probes with one heap and one timer, and reads their connections through one epoll descriptor."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import select
from collections.abc import Callable
from typing import Protocol

# Most workers probed together answer within this time, which is also the maximum error of a latency.
PAUSE_SECONDS = 0.004
# A batch costs less than single wake-ups, and is precise enough for probes.
GRAIN_SECONDS = 0.02
# With at least this many probes in a batch, the responses are read in one batch as well.
_MANY = 8


class Multiplexer:
    """Calls a function for each readable descriptor. Belongs to the running loop.

    Without epoll, the loop watches each descriptor separately.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._pause: asyncio.TimerHandle | None = None

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the descriptor is readable."""
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
        """Many requests were just sent: pause watching briefly, then read all responses in one batch."""
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


class Scheduled(Protocol):
    """An item that runs when it is `due`, in seconds of the schedule's clock; None: never."""

    due: float | None

    def run(self, now: float) -> None:
        """The item is due; `now` is the time on the same clock."""
        ...


class Schedule:
    """Runs each item when it is due, at most 20 ms late. A later `put` of an item replaces the earlier one.

    The default `loop` is the running one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Scheduled]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0
        self._multiplexer: Multiplexer | None = None

    @property
    def multiplexer(self) -> Multiplexer:
        """The multiplexer of the probes' connections."""
        if self._multiplexer is None:
            self._multiplexer = Multiplexer()
        return self._multiplexer

    def now(self) -> float:
        """Seconds on the schedule's clock."""
        return (self._loop or asyncio.get_running_loop()).time()

    def put(self, item: Scheduled, when: float) -> None:
        """Run the item at this time."""
        item.due = when
        heapq.heappush(self._heap, (when, next(self._numbers), item))
        if self._timer is None or when < self._at - GRAIN_SECONDS:
            self._arm(when)

    def remove(self, item: Scheduled) -> None:
        """Do not run the item."""
        item.due = None

    def close(self) -> None:
        """Cancel all items."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = when
        self._timer = (self._loop or asyncio.get_running_loop()).call_at(when, self._run_due)

    def _run_due(self) -> None:
        self._timer = None
        now = self.now()
        heap = self._heap
        ran = 0
        try:
            while heap and heap[0][0] <= now:
                when, _, item = heapq.heappop(heap)
                if item.due == when:
                    item.due = None
                    ran += 1
                    item.run(now)
        finally:
            if ran >= _MANY and self._multiplexer is not None:
                self._multiplexer.pause()
            while heap and heap[0][2].due != heap[0][0]:
                heapq.heappop(heap)
            if heap:
                self._arm(max(heap[0][0], now + GRAIN_SECONDS))
