"""A status that does not flap: properties over random answers."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poolctl.config import Probe
from poolctl.probes.hysteresis import Hysteresis
from poolctl.states import Status

LEVELS = [Status.KO, Status.WARN, Status.OK]

counts = st.integers(1, 4)
probes = st.builds(
    lambda **keys: Probe(tcp=True, **keys),
    fall_count_warn=counts,
    fall_count_ko=counts,
    rise_count_warn=counts,
    rise_count_ko=counts,
    interval=st.just(5.0),
    interval_fall=st.sampled_from([None, 1.0]),
    interval_rise=st.sampled_from([None, 2.0]),
)


def probe(**keys: Any) -> Probe:
    return Probe(tcp=True, **keys)


def statuses(answers: str, **keys: Any) -> list[str]:
    """What follows from each answer: `+` is a success, `-` a failure."""
    hysteresis = Hysteresis(probe(**keys))
    return [hysteresis.record(answer == "+").value for answer in answers]


def test_by_default_one_success_is_ok_one_failure_warns_and_three_more_are_ko() -> None:
    assert statuses("+----++") == ["ok", "warn", "warn", "warn", "ko", "warn", "ok"]


def test_every_step_takes_its_own_count_in_a_row() -> None:
    assert statuses("+--+---+", fall_count_warn=3) == ["ok", "ok", "ok", "ok", "ok", "ok", "warn", "ok"]
    assert statuses("---+-+++", rise_count_ko=2, fall_count_ko=1, rise_count_warn=2) == [
        "warn", "ko", "ko", "ko", "ko", "ko", "warn", "warn",
    ]  # fmt: skip


def test_unknown_falls_as_ok_does_and_rises_as_warn_does() -> None:
    assert statuses("--", fall_count_warn=2) == ["unknown", "warn"]
    assert statuses("++", rise_count_warn=2) == ["unknown", "ok"]


@given(probes, st.lists(st.booleans(), max_size=60))
def test_status_moves_one_step_at_a_time_in_the_direction_of_the_result(
    chosen: Probe, answers: list[bool]
) -> None:
    hysteresis = Hysteresis(chosen, Status.OK)
    for answer in answers:
        before = LEVELS.index(hysteresis.status)
        step = LEVELS.index(hysteresis.record(answer)) - before
        assert step in ((0, 1) if answer else (0, -1))


@given(probes, st.lists(st.booleans(), max_size=60))
def test_a_step_is_taken_after_as_many_answers_in_a_row_as_its_threshold_and_no_fewer(
    chosen: Probe, answers: list[bool]
) -> None:
    hysteresis = Hysteresis(chosen, Status.OK)
    needed = {
        (Status.OK, False): chosen.fall_count_warn,
        (Status.WARN, False): chosen.fall_count_ko,
        (Status.KO, True): chosen.rise_count_ko,
        (Status.WARN, True): chosen.rise_count_warn,
    }
    row = 0
    last: bool | None = None
    for answer in answers:
        row = row + 1 if answer is last else 1
        last = answer
        before = hysteresis.status
        moved = hysteresis.record(answer) is not before
        assert moved is (row >= needed.get((before, answer), 1000))
        if moved:
            row = 0


@given(probes, st.lists(st.booleans(), max_size=60))
def test_status_reaches_either_end_when_the_results_stay_the_same(chosen: Probe, answers: list[bool]) -> None:
    for last, end in ((True, Status.OK), (False, Status.KO)):
        hysteresis = Hysteresis(chosen)
        for answer in answers + [last] * 8:
            hysteresis.record(answer)
        assert hysteresis.status is end
        assert hysteresis.interval_seconds == chosen.interval


@given(probes, st.lists(st.booleans(), min_size=1, max_size=60))
def test_interval_is_that_of_the_direction_in_which_the_status_moves(
    chosen: Probe, answers: list[bool]
) -> None:
    hysteresis = Hysteresis(chosen)
    for answer in answers:
        hysteresis.record(answer)
    expected = chosen.interval
    if answers[-1] and hysteresis.status is not Status.OK:
        expected = chosen.interval_rise or expected
    elif not answers[-1] and hysteresis.status is not Status.KO:
        expected = chosen.interval_fall or expected
    assert hysteresis.interval_seconds == expected


def test_results_before_a_reset_do_not_count() -> None:
    hysteresis = Hysteresis(probe(rise_count_warn=2))
    hysteresis.record(True)
    hysteresis.reset()
    assert hysteresis.record(True) is Status.UNKNOWN
    assert repr(hysteresis) == "<Hysteresis unknown +1>"
