"""Time that a test moves, a rate limit, and a watchdog that waits only while it runs itself."""

from __future__ import annotations

import random

import pytest

from poolctl.clock import (
    FIRST_MESSAGE_SECONDS,
    PING_SECONDS,
    SILENT_SECONDS,
    Clock,
    HungProcessDetector,
    RateLimit,
    ReportLimit,
    next_aligned_time,
)
from tests.manual_clock import ManualClock


def test_the_systems_time_goes_on() -> None:
    clock = Clock()
    assert clock.monotonic() <= clock.monotonic()
    assert clock.time() > 1_700_000_000


def test_manual_clock_moves_only_when_advanced() -> None:
    clock = ManualClock()
    began = clock.time()
    clock.advance(3600)
    assert (clock.monotonic(), clock.time() - began) == (3600.0, 3600.0)


def test_time_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="does not go back"):
        ManualClock().advance(-1)


def silent_at(watchdog: HungProcessDetector, until: float) -> float | None:
    """When it is given up by one who looks whenever it is due; None if not until then."""
    while (now := watchdog.due) <= until:
        if watchdog.check_for_hang(now):
            return now
        watchdog.mark_ping_sent_if_due(now)
    return None


def test_first_message_may_take_long() -> None:
    watchdog = HungProcessDetector(100.0)
    assert not watchdog.mark_ping_sent_if_due(100.0 + SILENT_SECONDS)
    assert silent_at(watchdog, 1000.0) == pytest.approx(100.0 + FIRST_MESSAGE_SECONDS)


def test_quiet_process_is_pinged_once() -> None:
    watchdog = HungProcessDetector(0.0)
    watchdog.received(1.0)
    assert watchdog.due == PING_SECONDS
    assert not watchdog.mark_ping_sent_if_due(PING_SECONDS - 0.1)
    assert watchdog.mark_ping_sent_if_due(PING_SECONDS)
    assert not watchdog.mark_ping_sent_if_due(PING_SECONDS)
    assert silent_at(watchdog, 1000.0) == pytest.approx(PING_SECONDS + SILENT_SECONDS)


@pytest.mark.parametrize(("now", "moment"), [(0.0, 5.0), (0.003, 5.0), (4.4, 5.0), (4.6, 10.0), (5.0, 10.0)])
def test_periodic_moments_are_multiples_of_their_interval(now: float, moment: float) -> None:
    assert next_aligned_time(now, 5.0) == moment


def test_early_ping_is_sent_at_once() -> None:
    watchdog = HungProcessDetector(0.0)
    watchdog.received(1.0)
    assert watchdog.mark_ping_sent_if_due(2.0, early=True)
    assert silent_at(watchdog, 1000.0) == pytest.approx(2.0 + SILENT_SECONDS)


def test_any_message_counts_as_an_answer() -> None:
    watchdog = HungProcessDetector(0.0)
    watchdog.received(1.0)
    assert watchdog.mark_ping_sent_if_due(10.0)
    assert silent_at(watchdog, 19.0) is None
    watchdog.received(19.9)
    assert not watchdog.check_for_hang(1000.0)
    assert watchdog.waited_seconds == 0
    assert watchdog.mark_ping_sent_if_due(1000.0)
    assert silent_at(watchdog, 2000.0) == pytest.approx(1000.0 + SILENT_SECONDS)


@pytest.mark.parametrize("began", [0.0, 0.5, 3.0, 9.5])
def test_pause_of_the_watching_process_does_not_count(began: float) -> None:
    watchdog = HungProcessDetector(0.0)
    watchdog.received(0.0)
    assert watchdog.mark_ping_sent_if_due(10.0)
    assert silent_at(watchdog, 10.0 + began) is None
    awake = 10.0 + began + 3600.0
    # What it answered meanwhile is read next. If it has not, it has the rest of its time.
    assert not watchdog.check_for_hang(awake)
    given_up = silent_at(watchdog, awake + SILENT_SECONDS)
    assert given_up is not None
    assert given_up >= awake + SILENT_SECONDS - began


def test_repeated_pauses_do_not_count() -> None:
    chance = random.Random(1)
    watchdog = HungProcessDetector(0.0)
    watchdog.received(0.0)
    assert watchdog.mark_ping_sent_if_due(5.0)
    ran, now = 0.0, 5.0
    while not watchdog.check_for_hang(now):
        paused = chance.choice((0.0, 0.0, 7.0, 600.0))
        ran += 0.0 if paused else watchdog.due - now
        now = watchdog.due + paused
    assert ran == pytest.approx(SILENT_SECONDS)


def test_answer_is_late_after_a_fifth_of_the_time_for_it() -> None:
    watchdog = HungProcessDetector(0.0)
    watchdog.received(0.0)
    assert watchdog.mark_ping_sent_if_due(10.0)
    assert silent_at(watchdog, 10.0 + 0.15 * SILENT_SECONDS) is None
    assert not watchdog.may_be_stopped
    assert silent_at(watchdog, 10.0 + 0.25 * SILENT_SECONDS) is None
    assert watchdog.may_be_stopped
    watchdog.received(10.0 + 0.25 * SILENT_SECONDS)
    assert not watchdog.may_be_stopped


def test_each_key_is_reported_at_most_once_a_minute_with_everything_since_then() -> None:
    reports = ReportLimit()
    assert reports.count_to_report(5.0, 3, "web") == 3
    assert reports.count_to_report(5.0, 2, "web") == reports.count_to_report(64.9, 1, "web") == 0
    assert reports.count_to_report(64.9, 7, "api") == 7
    assert reports.count_to_report(65.0, 1, "web") == 4
    assert reports.count_to_report(124.9, 1, "web") == 0


def test_rate_is_limited_after_a_burst_that_is_regained_in_time() -> None:
    limit = RateLimit(burst=3, per_second=2)
    assert [limit.take(1, 10.0) for _ in range(4)] == [True, True, True, False]
    assert not limit.take(1.1, 10.5)
    assert limit.take(1, 10.5)
    assert not limit.take(0.5, 9.0), "time does not go back"
    assert limit.take(3, 100.0)
    assert not limit.take(0.5, 100.0)
