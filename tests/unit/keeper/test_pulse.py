"""A process is asked seldom, and given up only when it had time to answer while the one who asks ran itself."""

from __future__ import annotations

import random

import pytest

from poolctl.keeper.pulse import ASK_SECONDS, FIRST_WORD_SECONDS, SILENT_SECONDS, Pulse


def silent_at(pulse: Pulse, until: float) -> float | None:
    """When it is given up by one who looks whenever it is due; None if not until then."""
    while (now := pulse.due) <= until:
        if pulse.is_silent(now):
            return now
        pulse.should_ask(now)
    return None


def test_its_first_word_may_take_long() -> None:
    pulse = Pulse(100.0)
    assert not pulse.should_ask(100.0 + SILENT_SECONDS)
    assert silent_at(pulse, 1000.0) == pytest.approx(100.0 + FIRST_WORD_SECONDS)


def test_it_is_asked_when_it_has_been_quiet_and_once() -> None:
    pulse = Pulse(0.0)
    pulse.heard(1.0)
    assert pulse.due == 1.0 + ASK_SECONDS
    assert not pulse.should_ask(1.0 + ASK_SECONDS - 0.1)
    assert pulse.should_ask(1.0 + ASK_SECONDS)
    assert not pulse.should_ask(1.0 + ASK_SECONDS)
    assert silent_at(pulse, 1000.0) == pytest.approx(1.0 + ASK_SECONDS + SILENT_SECONDS)


def test_an_early_question_is_asked_at_once() -> None:
    pulse = Pulse(0.0)
    pulse.heard(1.0)
    assert pulse.should_ask(2.0, early=True)
    assert silent_at(pulse, 1000.0) == pytest.approx(2.0 + SILENT_SECONDS)


def test_whatever_it_says_is_an_answer() -> None:
    pulse = Pulse(0.0)
    pulse.heard(1.0)
    assert pulse.should_ask(10.0)
    assert silent_at(pulse, 19.0) is None
    pulse.heard(19.9)
    assert not pulse.is_silent(1000.0)
    assert pulse.waited_seconds == 0
    assert pulse.should_ask(1000.0)
    assert silent_at(pulse, 2000.0) == pytest.approx(1000.0 + SILENT_SECONDS)


@pytest.mark.parametrize("began", [0.0, 0.5, 3.0, 9.5])
def test_a_pause_of_the_asking_process_does_not_count_whenever_it_came(began: float) -> None:
    pulse = Pulse(0.0)
    pulse.heard(0.0)
    assert pulse.should_ask(10.0)
    assert silent_at(pulse, 10.0 + began) is None
    awake = 10.0 + began + 3600.0
    # What it answered meanwhile is read next. If it has not, it has the rest of its time.
    assert not pulse.is_silent(awake)
    given_up = silent_at(pulse, awake + SILENT_SECONDS)
    assert given_up is not None
    assert given_up >= awake + SILENT_SECONDS - began


def test_pauses_again_and_again_do_not_count() -> None:
    chance = random.Random(1)
    pulse = Pulse(0.0)
    pulse.heard(0.0)
    assert pulse.should_ask(5.0)
    ran, now = 0.0, 5.0
    while not pulse.is_silent(now):
        paused = chance.choice((0.0, 0.0, 7.0, 600.0))
        ran += 0.0 if paused else pulse.due - now
        now = pulse.due + paused
    assert ran == pytest.approx(SILENT_SECONDS)
