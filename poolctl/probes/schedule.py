"""When whose turn is: one heap and one timer, however many there are."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from typing import Protocol

from .multiplexer import Ears

# Together is cheaper than one by one, and nobody asks for more precision.
GRAIN_SECONDS = 0.02
# So many turns at once, and the answers are heard together.
_MANY = 8


class Due(Protocol):
    """Somebody whose turn comes; `due` is when, in the seconds of the schedule's clock, None for never."""

    due: float | None

    def turn(self, now: float) -> None:
        """It is its turn; `now` is of the same clock."""
        ...


class Timer(Protocol):
    """What a loop gives for a call that it will make."""

    def cancel(self) -> None:
        """Do not make it."""
        ...


class Schedule:
    """Gives each its turn, at most 20 ms late. A turn may ask for others; an earlier wish of the same is forgotten."""

    def __init__(
        self,
        time: Callable[[], float] | None = None,
        call_at: Callable[[float, Callable[[], None]], Timer] | None = None,
    ) -> None:
        self._time = time
        self._call_at = call_at
        self._heap: list[tuple[float, int, Due]] = []
        self._numbers = itertools.count()
        self._timer: Timer | None = None
        self._at = 0.0
        self._ears: Ears | None = None

    @property
    def ears(self) -> Ears:
        """What hears the answers to what is asked in a turn."""
        if self._ears is None:
            self._ears = Ears()
        return self._ears

    def now(self) -> float:
        """Seconds on the schedule's clock."""
        return self._time() if self._time is not None else asyncio.get_running_loop().time()

    def put(self, whom: Due, when: float) -> None:
        """Let it have its turn at that time, and not before."""
        whom.due = when
        heapq.heappush(self._heap, (when, next(self._numbers), whom))
        if self._timer is None or when < self._at - GRAIN_SECONDS:
            self._arm(when)

    def take_out(self, whom: Due) -> None:
        """Let it have no turn any more."""
        whom.due = None

    def close(self) -> None:
        """Let nobody have a turn any more."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._at = when
        call_at = self._call_at or asyncio.get_running_loop().call_at
        self._timer = call_at(when, self._run)

    def _run(self) -> None:
        self._timer = None
        now = self.now()
        heap = self._heap
        turns = 0
        try:
            while heap and heap[0][0] <= now:
                when, _, whom = heapq.heappop(heap)
                if whom.due == when:
                    whom.due = None
                    turns += 1
                    whom.turn(now)
        finally:
            if turns >= _MANY and self._ears is not None:
                self._ears.wait()
            while heap and heap[0][2].due != heap[0][0]:
                heapq.heappop(heap)
            if heap:
                self._arm(max(heap[0][0], now + GRAIN_SECONDS))
