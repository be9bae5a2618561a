"""Deadlines of many connections with one timer of the event loop.

Nearly all deadlines are moved before they expire, many times a second. Moving one is an assignment: a timer stays in
the slot in which it was put, and when that slot is due it moves to the slot of its current deadline. Deadlines are
observed up to one slot late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

SLOT_SECONDS = 0.1
_NEVER = float("inf")


class TimerWheel:
    """Slots of timers by the time of the loop. The loop is woken only for slots that hold timers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = loop.time
        self._loop = loop
        self._slots: dict[int, set[Timer]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._due = _NEVER

    def __repr__(self) -> str:
        return f"<TimerWheel: {sum(map(len, self._slots.values()))} timers>"

    def close(self) -> None:
        """Stop the wheel: no timer expires from now on."""
        self._slots.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._due = _NEVER

    def put(self, timer: Timer) -> None:
        """Put the timer into the slot of its deadline, out of any other."""
        self.remove(timer)
        number = timer.slot = int(timer.deadline / SLOT_SECONDS) + 1
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = set()
            if number * SLOT_SECONDS < self._due:
                self._wake_at(number)
        slot.add(timer)
        timer.visit = number * SLOT_SECONDS

    def remove(self, timer: Timer) -> None:
        """Take the timer out of its slot, if it is in one."""
        slot = self._slots.get(timer.slot)
        if slot is not None:
            slot.discard(timer)

    def _wake_at(self, number: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._due = number * SLOT_SECONDS
        self._handle = self._loop.call_at(self._due, self._expire)

    def _expire(self) -> None:
        now = self.now()
        self._handle, self._due = None, _NEVER
        for number in [each for each in self._slots if each * SLOT_SECONDS <= now]:
            for timer in self._slots.pop(number, ()):
                timer.visited(now)
        if self._slots:
            first = min(self._slots)
            if first * SLOT_SECONDS < self._due:
                self._wake_at(first)


class Timer:
    """One deadline that is moved often; `expired` is called when it has passed."""

    __slots__ = ("_expired", "_wheel", "deadline", "slot", "visit")

    def __init__(self, wheel: TimerWheel) -> None:
        self._wheel = wheel
        self._expired: Callable[[], None] = _nothing
        self.deadline = _NEVER
        self.visit = _NEVER  # when the wheel comes to its slot
        self.slot = -1

    def start(self, seconds: float, expired: Callable[[], None]) -> None:
        """Replace the deadline and its callback; 0 seconds means no deadline."""
        self._expired = expired
        self.deadline = deadline = self._wheel.now() + seconds if seconds else _NEVER
        if deadline < self.visit:
            self._wheel.put(self)

    def extend(self, seconds: float) -> None:
        """Move the deadline to `seconds` from now."""
        self.deadline = self._wheel.now() + seconds if seconds else _NEVER

    def stop(self) -> None:
        """Clear the deadline. The timer keeps its slot, because the next deadline is probably near."""
        self.deadline = _NEVER
        self._expired = _nothing

    def close(self) -> None:
        """Clear the deadline for good, and release the objects that the timer refers to."""
        self.stop()
        self._wheel.remove(self)
        self.visit = _NEVER

    def visited(self, now: float) -> None:
        """The slot is due: expire, or move on to the slot of the deadline."""
        self.visit, self.slot = _NEVER, -1
        if self.deadline <= now:
            expired = self._expired
            self.stop()
            expired()
        elif self.deadline < _NEVER:
            self._wheel.put(self)


def _nothing() -> None:
    pass
