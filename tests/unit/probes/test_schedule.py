"""Turns in their order, with a clock and a timer of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.probes.schedule import GRAIN_SECONDS, Schedule


class Clock(asyncio.AbstractEventLoop):
    """Time that the test moves, and the one timer that is set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []
        self.rings = 0

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, fn: Callable[[], None]) -> Timer:
        timer = Timer(self, when, fn)
        self.timers.append(timer)
        return timer

    def run_until(self, end: float) -> None:
        while self.timers and min(timer.when for timer in self.timers) <= end:
            timer = min(self.timers, key=lambda each: each.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when)
            self.rings += 1
            timer.fn()
        self.now = end


class Timer:
    def __init__(self, clock: Clock, when: float, fn: Callable[[], None]) -> None:
        self.clock, self.when, self.fn = clock, when, fn

    def cancel(self) -> None:
        self.clock.timers.remove(self)


class Guest:
    """Wants a turn every `interval`, and notes when it had one."""

    def __init__(self, schedule: Schedule, interval: float = 1.0) -> None:
        self.schedule, self.interval = schedule, interval
        self.due: float | None = None
        self.turns: list[float] = []

    def run(self, now: float) -> None:
        self.turns.append(now)
        if self.interval:
            self.schedule.put(self, now + self.interval)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def schedule(clock: Clock) -> Schedule:
    return Schedule(clock)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=30))
def test_every_probe_runs_when_it_is_due_or_a_little_after(wishes: list[float]) -> None:
    clock = Clock()
    schedule = Schedule(clock)
    guests = [Guest(schedule, 0) for _ in wishes]
    for guest, wish in zip(guests, wishes, strict=True):
        schedule.put(guest, wish)
        assert len(clock.timers) == 1
    clock.run_until(10)
    for guest, wish in zip(guests, wishes, strict=True):
        assert len(guest.turns) == 1
        assert wish <= guest.turns[0] <= wish + 2 * GRAIN_SECONDS
    assert clock.timers == []


def test_thousand_probes_are_served_by_few_timers(clock: Clock, schedule: Schedule) -> None:
    guests = [Guest(schedule) for _ in range(1000)]
    for place, guest in enumerate(guests):
        schedule.put(guest, place / 1000)
    clock.run_until(5)
    assert all(4 <= len(guest.turns) <= 5 for guest in guests)
    assert clock.rings <= 5 / GRAIN_SECONDS + 1


def test_new_time_of_a_probe_replaces_the_previous_one(clock: Clock, schedule: Schedule) -> None:
    guest = Guest(schedule, 0)
    schedule.put(guest, 1.0)
    schedule.put(guest, 2.0)
    clock.run_until(1.5)
    assert guest.turns == []
    clock.run_until(3)
    assert guest.turns == [2.0]


def test_removed_probe_does_not_run(clock: Clock, schedule: Schedule) -> None:
    guest, other = Guest(schedule, 0), Guest(schedule, 0)
    schedule.put(guest, 1.0)
    schedule.put(other, 2.0)
    schedule.remove(guest)
    clock.run_until(3)
    assert (guest.turns, other.turns) == ([], [2.0])


def test_failing_callback_does_not_prevent_the_others(clock: Clock, schedule: Schedule) -> None:
    class Broken(Guest):
        def run(self, now: float) -> None:
            raise ValueError("broken")

    broken, other = Broken(schedule), Guest(schedule)
    schedule.put(broken, 1.0)
    schedule.put(other, 1.0)
    with pytest.raises(ValueError, match="broken"):
        clock.run_until(3)
    clock.run_until(3)
    assert len(other.turns) >= 2


def test_closed_schedule_runs_no_probe(clock: Clock, schedule: Schedule) -> None:
    guest = Guest(schedule)
    schedule.put(guest, 1.0)
    schedule.close()
    clock.run_until(3)
    assert guest.turns == []
