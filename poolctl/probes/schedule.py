"""When each probe is due: one heap and one timer for all of them."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Protocol

from .multiplexer import Multiplexer

# A batch costs less than single wake-ups, and probes need no more precision.
GRAIN_SECONDS = 0.02
# From this many probes in one batch on, their responses are read in one batch too.
_MANY = 8


class Scheduled(Protocol):
    """What runs when it is `due`, in seconds of the schedule's clock; None: never."""

    due: float | None

    def run(self, now: float) -> None:
        """It is due; `now` is of the same clock."""
        ...


class Timer(Protocol):
    """A call that an event loop will make."""

    def cancel(self) -> None:
        """Do not make the call."""
        ...


class Schedule:
    """Runs each when it is due, at most 20 ms late. A later `put` of the same item replaces the earlier one."""

    def __init__(
        self,
        time: Callable[[], float] | None = None,
        call_at: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        self._time = time
        self._call_at = call_at
        self._heap: list[tuple[float, int, Scheduled]] = []
        self._numbers = itertools.count()
        self._timer: Timer | None = None
        self._at = 0.0
        self._multiplexer: Multiplexer | None = None

    @property
    def multiplexer(self) -> Multiplexer:
        """What watches the connections of the probes."""
        if self._multiplexer is None:
            self._multiplexer = Multiplexer()
        return self._multiplexer

    def now(self) -> float:
        """Seconds on the schedule's clock."""
        return self._time() if self._time is not None else asyncio.get_running_loop().time()

    def put(self, item: Scheduled, when: float) -> None:
        """Run it at that time, and not before."""
        item.due = when
        heapq.heappush(self._heap, (when, next(self._numbers), item))
        if self._timer is None or when < self._at - GRAIN_SECONDS:
            self._arm(when)

    def remove(self, item: Scheduled) -> None:
        """Do not run it any more."""
        item.due = None

    def close(self) -> None:
        """Run nothing any more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = when
        call_at = self._call_at or asyncio.get_running_loop().call_at
        self._timer = call_at(when, self._run_due)

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
