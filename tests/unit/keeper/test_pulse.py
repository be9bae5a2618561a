"""A supervisor is asked seldom, and given up only when it had time to answer."""

from __future__ import annotations

from poolctl.keeper.pulse import ASK_SECONDS, FIRST_WORD_SECONDS, SILENT_SECONDS, Pulse


def test_its_first_word_may_take_long() -> None:
    pulse = Pulse(100.0)
    assert not pulse.should_ask(100.0 + SILENT_SECONDS)
    assert not pulse.is_silent(100.0 + FIRST_WORD_SECONDS - 1)
    assert pulse.due == 100.0 + FIRST_WORD_SECONDS
    assert pulse.is_silent(100.0 + FIRST_WORD_SECONDS)


def test_it_is_asked_when_it_has_been_quiet_and_once() -> None:
    pulse = Pulse(0.0)
    pulse.heard(1.0)
    assert pulse.due == 1.0 + ASK_SECONDS
    assert not pulse.should_ask(1.0 + ASK_SECONDS - 0.1)
    assert pulse.should_ask(1.0 + ASK_SECONDS)
    assert not pulse.should_ask(1.0 + ASK_SECONDS)
    assert not pulse.is_silent(1.0 + ASK_SECONDS + SILENT_SECONDS - 0.1)
    assert pulse.is_silent(1.0 + ASK_SECONDS + SILENT_SECONDS)


def test_whatever_it_says_is_an_answer() -> None:
    pulse = Pulse(0.0)
    pulse.heard(1.0)
    assert pulse.should_ask(10.0)
    pulse.heard(19.9)
    assert not pulse.is_silent(1000.0)
    assert pulse.should_ask(1000.0)


def test_who_asks_and_stood_still_itself_waits_as_long_again() -> None:
    pulse = Pulse(0.0, 1.0, 2.0)
    pulse.heard(0.0)
    pulse.spare(0.5)
    assert pulse.should_ask(1.0)
    pulse.spare(100.0)
    assert not pulse.is_silent(101.9)
    assert pulse.is_silent(102.0)
