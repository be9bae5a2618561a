"""The circuit breaker: when results open it, when tests close it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolctl.features.gateway.supervision.breaker import Breaker, Results
from poolctl.routing.route import BreakerRule
from poolctl.routing.route_report import BreakerState

CONSECUTIVE = BreakerRule(failures=3, rate=0.0, open_seconds=10.0)
RATE = BreakerRule(failures=0, rate=0.5, minimum_requests=10, window_seconds=10.0, open_seconds=10.0)
CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
UNREACHED = Results(unreached=1)


def record(breaker: Breaker, now: float, *found: Results, is_dispensable: bool = True) -> BreakerState:
    """Record the results, one after the other; returns the state after them."""
    for each in found:
        breaker.record(each, now, is_dispensable=is_dispensable)
    return breaker.state


def opened(rule: BreakerRule = CONSECUTIVE) -> Breaker:
    breaker = Breaker(rule)
    assert record(breaker, 0.0, Results(failed=20)) is OPEN
    return breaker


def half_open(rule: BreakerRule = CONSECUTIVE) -> Breaker:
    breaker = opened(rule)
    assert record(breaker, 10.0, Results()) is HALF_OPEN
    return breaker


def test_it_opens_after_failures_in_a_row_and_says_for_how_long() -> None:
    breaker = Breaker(CONSECUTIVE)
    assert record(breaker, 1.0, Results(failed=2), Results(answered=1), Results(failed=2)) is CLOSED
    assert breaker.describe_problem(1.0) == ""
    assert record(breaker, 2.0, Results(), Results(failed=1)) is OPEN
    assert breaker.describe_problem(4.5) == "breaker open: 3 failures, 8 s left"
    assert record(breaker, 11.9, Results()) is OPEN
    assert record(breaker, 12.0, Results()) is HALF_OPEN
    assert breaker.describe_problem(12.0) == "breaker half-open after 3 failures: a request tries it"


@pytest.mark.parametrize(
    ("failed", "answered", "state"),
    [(2, 1, CLOSED), (5, 1, OPEN), (4, 1, CLOSED), (9, 3, OPEN), (8, 3, CLOSED)],
)
def test_failures_among_good_responses_count_as_in_a_row_if_some_must_have_been(
    failed: int, answered: int, state: BreakerState
) -> None:
    assert record(Breaker(CONSECUTIVE), 0.0, Results(answered, failed)) is state


def test_single_failure_opens_it_if_the_rule_says_so() -> None:
    breaker = Breaker(replace(CONSECUTIVE, failures=1))
    assert record(breaker, 0.0, Results(answered=100, failed=1)) is OPEN
    assert breaker.why == "1 failure"


def test_connection_that_cannot_be_made_opens_it_at_once_whatever_else_can_serve() -> None:
    breaker = Breaker(CONSECUTIVE)
    assert record(breaker, 0.0, UNREACHED, is_dispensable=False) is OPEN
    assert breaker.why == "no connection can be made"


@pytest.mark.parametrize("reached", [Results(answered=1, unreached=1), Results(failed=1, unreached=1)])
def test_target_that_was_reached_meanwhile_is_not_unreachable(reached: Results) -> None:
    assert record(Breaker(CONSECUTIVE), 0.0, reached, is_dispensable=False) is CLOSED


def test_it_opens_by_the_share_of_failures_only_with_enough_requests() -> None:
    breaker = Breaker(RATE)
    assert record(breaker, 0.0, Results(answered=4, failed=5)) is CLOSED
    assert record(breaker, 1.0, Results(failed=1)) is OPEN
    assert breaker.why == "6 of 10 requests failed within 10 s"


@pytest.mark.parametrize(("later", "state"), [(9.9, OPEN), (11.0, CLOSED)])
def test_failures_before_the_window_do_not_count(later: float, state: BreakerState) -> None:
    breaker = Breaker(RATE)
    record(breaker, 0.0, Results(failed=8))
    assert record(breaker, later, Results(answered=1, failed=1)) is state


def test_conditions_that_are_0_are_off() -> None:
    breaker = Breaker(BreakerRule(failures=0, rate=0.0))
    assert record(breaker, 0.0, Results(failed=100), Results(unreached=100)) is CLOSED


def test_failures_open_it_only_while_others_can_take_the_requests() -> None:
    breaker = Breaker(CONSECUTIVE)
    assert (
        record(breaker, 0.0, Results(failed=30), Results(unreached=1, failed=3), is_dispensable=False)
        is CLOSED
    )
    assert record(breaker, 0.0, Results()) is CLOSED, "nothing has failed since"
    assert record(breaker, 0.0, Results(failed=1)) is OPEN


def test_as_many_tests_as_the_rule_says_close_it() -> None:
    breaker = half_open(replace(CONSECUTIVE, probes=2))
    assert record(breaker, 10.0, Results(answered=1)) is HALF_OPEN
    assert record(breaker, 11.0, Results(answered=1)) is CLOSED
    assert record(breaker, 11.0, Results(failed=2)) is CLOSED, "what was before is forgotten"


@pytest.mark.parametrize("found", [Results(failed=1), UNREACHED, Results(answered=5, failed=1)])
def test_test_that_fails_opens_it_again_for_the_whole_time(found: Results) -> None:
    breaker = half_open()
    assert record(breaker, 12.0, found) is OPEN
    assert breaker.why == "20 failures"
    assert record(breaker, 21.9, Results()) is OPEN
    assert record(breaker, 22.0, Results()) is HALF_OPEN


@pytest.mark.parametrize(("found", "state"), [(Results(failed=1), CLOSED), (UNREACHED, OPEN)])
def test_error_response_to_a_test_is_better_than_none_if_no_other_can_serve(
    found: Results, state: BreakerState
) -> None:
    assert record(half_open(), 10.0, found, is_dispensable=False) is state


def test_target_that_nothing_has_tried_is_not_restricted_for_ever() -> None:
    breaker = half_open()
    assert record(breaker, 19.9, Results()) is HALF_OPEN
    assert record(breaker, 20.0, Results()) is CLOSED


def test_open_one_that_serves_for_lack_of_others_closes_with_its_first_response() -> None:
    breaker = Breaker(CONSECUTIVE)
    record(breaker, 0.0, UNREACHED)
    assert record(breaker, 1.0, Results(answered=1)) is OPEN, "of a request that was begun before"
    assert record(breaker, 1.0, Results(answered=1), is_dispensable=False) is CLOSED


def test_it_is_shown_with_its_state_and_failures() -> None:
    breaker = Breaker(CONSECUTIVE)
    record(breaker, 0.0, Results(failed=1))
    assert repr(breaker) == "<Breaker closed, 1 failures in a row>"
