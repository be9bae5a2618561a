"""Schedules all probes with one heap and one timer."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Protocol

# A batch costs less than single wake-ups, and is precise enough for probes.
GRAIN_SECONDS = 0.02


class Scheduled(Protocol):
    """An item that runs when it is `due`, in seconds of the schedule's clock; None: never."""

    due: float | None

    def run(self, now: float) -> None:
        """Handle the item, which is due; `now` is the time on the schedule's clock."""
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
        try:
            while heap and heap[0][0] <= now:
                when, _, item = heapq.heappop(heap)
                if item.due == when:
                    item.due = None
                    item.run(now)
        finally:
            while heap and heap[0][2].due != heap[0][0]:
                heapq.heappop(heap)
            if heap:
                self._arm(max(heap[0][0], now + GRAIN_SECONDS))
