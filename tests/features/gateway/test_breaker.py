"""The circuit breaker: when it opens, whom it lets through, when it closes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from poolctl.features.gateway.process.backends.breaker import Breaker
from poolctl.routing.route import BreakerRule
from poolctl.routing.route_report import BreakerState

CONSECUTIVE = BreakerRule(failures=3, rate=0.0, open_seconds=10.0)
RATE = BreakerRule(failures=0, rate=0.5, minimum_requests=10, window_seconds=10.0, open_seconds=10.0)


def request(breaker: Breaker, now: float, good: bool, *, answered: bool = False) -> None:
    assert breaker.seconds_until_admission(now) == 0
    period = breaker.admit_and_return_period()
    if good:
        breaker.record_success(now, period)
    else:
        breaker.record_failure(now, period, answered=answered)


def test_it_opens_after_failures_in_a_row() -> None:
    changes: list[tuple[BreakerState, str]] = []
    breaker = Breaker(CONSECUTIVE, lambda state, why: changes.append((state, why)))
    for good in (False, False, True, False, False):
        request(breaker, 1.0, good)
    assert breaker.is_closed
    request(breaker, 2.0, good=False)
    assert changes == [(BreakerState.OPEN, "3 failures")]
    assert breaker.seconds_until_admission(2.0) == 10.0
    assert breaker.seconds_until_admission(7.0) == 5.0
    assert breaker.describe_problem(7.5) == "breaker open: 3 failures, 5 s left"
    assert breaker.describe_problem(12.0) == "breaker open: 3 failures, the next request tries it"
    breaker.admit_and_return_period()
    assert breaker.describe_problem(12.0) == "breaker half-open after 3 failures: a request tries it"


def test_it_opens_by_the_share_of_failures_only_with_enough_requests() -> None:
    breaker = Breaker(RATE)
    for at in range(9):
        request(breaker, at / 10, good=at % 2 == 1)
    assert breaker.is_closed, "nine requests are too few"
    request(breaker, 1.0, good=False)
    assert breaker.state is BreakerState.OPEN


def test_failures_before_the_window_do_not_count() -> None:
    breaker = Breaker(RATE)
    for _ in range(9):
        request(breaker, 0.0, good=False)
    for _ in range(11):
        request(breaker, 12.0, good=True)
    for _ in range(9):
        request(breaker, 12.0, good=False)
    assert breaker.is_closed
    for _ in range(2):
        request(breaker, 12.0, good=False)
    assert breaker.state is BreakerState.OPEN


@pytest.mark.parametrize("kind", ["good", "answered with an error", "not answered"])
@pytest.mark.parametrize(
    ("earlier", "last", "counted"),
    [
        ([], 0.0, 1),
        ([0.0], 9.99, 2),
        ([0.0], 10.0, 1),
        ([0.0, 0.99], 9.99, 3),
        ([0.0, 0.99], 10.0, 1),
        ([0.0, 1.0], 9.99, 3),
        ([0.0, 1.0], 10.0, 2),
        ([0.0, 1.0], 10.99, 2),
        ([0.0, 1.0], 11.0, 1),
        ([0.0, 2.5], 11.99, 2),
        ([0.0, 2.5], 12.0, 1),
        ([0.0, 25.0], 34.99, 2),
        ([0.0, 25.0], 35.0, 1),
    ],
)
@pytest.mark.parametrize("seconds", [0.625, 10.0])
def test_window_forgets_requests_by_tenths_of_its_length(
    kind: str, earlier: list[float], last: float, counted: int, seconds: float
) -> None:
    good, answered = kind == "good", kind == "answered with an error"
    for minimum in (counted, counted + 1):
        rule = replace(RATE, rate=1e-6, minimum_requests=minimum, window_seconds=seconds)
        breaker = Breaker(replace(rule, minimum_requests=100))
        for at in earlier:
            request(breaker, at * seconds / 10, good, answered=answered)
        breaker.rule = rule
        request(breaker, last * seconds / 10, good=False, answered=answered)
        if minimum > counted:
            assert breaker.is_closed
        else:
            failed = 1 if good else counted
            assert breaker.why == f"{failed} of {counted} requests failed within {seconds:g} s"
            assert breaker.by_answers == answered


def test_new_breaker_is_closed_and_is_shown_with_its_failures() -> None:
    breaker = Breaker(CONSECUTIVE)
    assert (breaker.state, breaker.is_closed, breaker.why, breaker.by_answers) == (
        BreakerState.CLOSED, True, "", False,
    )  # fmt: skip
    assert (breaker.seconds_until_admission(0.0), breaker.describe_problem(0.0)) == (0.0, "")
    request(breaker, 0.0, good=False)
    assert repr(breaker) == "<Breaker closed, 1 failures in a row>"


def test_single_failure_opens_it_if_the_rule_says_so() -> None:
    breaker = Breaker(replace(CONSECUTIVE, failures=1))
    request(breaker, 0.0, good=False)
    assert (breaker.state, breaker.why) == (BreakerState.OPEN, "1 failure")


def test_closing_it_resets_its_counts() -> None:
    changes: list[tuple[BreakerState, str]] = []
    breaker = Breaker(
        replace(CONSECUTIVE, rate=0.5, minimum_requests=4), lambda *change: changes.append(change)
    )
    for _ in range(3):
        request(breaker, 0.0, good=False)
    request(breaker, 10.0, good=True)
    for _ in range(2):
        request(breaker, 10.0, good=False)
    assert breaker.is_closed
    request(breaker, 10.0, good=False)
    assert changes == [
        (BreakerState.OPEN, "3 failures"),
        (BreakerState.HALF_OPEN, "a request is tried"),
        (BreakerState.CLOSED, "it answers again"),
        (BreakerState.OPEN, "3 failures"),
    ]


def test_open_breaker_probes_at_once_when_told_so() -> None:
    breaker = Breaker(CONSECUTIVE)
    for _ in range(3):
        request(breaker, 0.0, good=False)
    breaker.probe_now(4.0)
    assert breaker.seconds_until_admission(4.0) == 0.0
    assert breaker.describe_problem(4.0) == "breaker open: 3 failures, the next request tries it"


def test_breaker_that_is_kept_open_says_why_and_opens_for_no_time() -> None:
    breaker = Breaker(CONSECUTIVE)
    breaker.open_until_closed("haproxy says DOWN")
    assert (breaker.state, breaker.by_answers) == (BreakerState.OPEN, False)
    assert breaker.seconds_until_admission(1e9) == float("inf")
    assert breaker.describe_problem(0.0) == "breaker open: haproxy says DOWN"
    breaker.close("haproxy says UP")
    assert (breaker.seconds_until_admission(0.0), breaker.describe_problem(0.0)) == (0.0, "")


@pytest.mark.parametrize(
    ("answered", "dispensable", "state"),
    [
        (True, True, BreakerState.OPEN),
        (True, False, BreakerState.CLOSED),
        (False, True, BreakerState.OPEN),
        (False, False, BreakerState.OPEN),
    ],
)
def test_failed_probe_closes_it_only_if_it_was_answered_and_no_other_can_serve(
    answered: bool, dispensable: bool, state: BreakerState
) -> None:
    breaker = Breaker(CONSECUTIVE, is_dispensable=lambda: dispensable)
    for _ in range(3):
        request(breaker, 0.0, good=False)
    request(breaker, 10.0, good=False, answered=answered)
    assert (breaker.state, breaker.by_answers) == (state, answered and dispensable)


def test_conditions_that_are_0_are_off() -> None:
    breaker = Breaker(BreakerRule(failures=0, rate=0.0))
    for _ in range(100):
        request(breaker, 0.0, good=False)
    assert breaker.is_closed


@pytest.mark.parametrize("rule", [CONSECUTIVE, RATE])
def test_answers_open_it_only_while_others_can_take_the_requests(rule: BreakerRule) -> None:
    dispensable = False
    breaker = Breaker(rule, is_dispensable=lambda: dispensable)
    for _ in range(30):
        request(breaker, 0.0, good=False, answered=True)
    assert breaker.is_closed
    dispensable = True
    request(breaker, 0.0, good=False, answered=True)
    assert (breaker.state, breaker.by_answers) == (BreakerState.OPEN, True)


@pytest.mark.parametrize("rule", [CONSECUTIVE, RATE])
def test_requests_without_an_answer_open_it_although_nothing_can_take_its_place(rule: BreakerRule) -> None:
    breaker = Breaker(rule, is_dispensable=lambda: False)
    for _ in range(10):
        if breaker.is_closed:
            request(breaker, 0.0, good=False)
    assert (breaker.state, breaker.by_answers) == (BreakerState.OPEN, False)


def test_an_answer_interrupts_a_row_of_requests_without_one() -> None:
    breaker = Breaker(CONSECUTIVE, is_dispensable=lambda: False)
    for answered in (False, False, True, False, False):
        request(breaker, 0.0, good=False, answered=answered)
    assert breaker.is_closed
    request(breaker, 0.0, good=False)
    assert breaker.state is BreakerState.OPEN


def test_probe_that_is_answered_with_an_error_closes_the_breaker_of_the_last_backend() -> None:
    breaker = Breaker(CONSECUTIVE, is_dispensable=lambda: False)
    for _ in range(3):
        request(breaker, 0.0, good=False)
    request(breaker, 10.0, good=False, answered=True)
    assert breaker.is_closed
    for _ in range(9):
        request(breaker, 10.0, good=False, answered=True)
    assert breaker.is_closed


def test_half_open_lets_only_its_probes_through_and_all_of_them_must_succeed() -> None:
    breaker = Breaker(replace(CONSECUTIVE, probes=2))
    for _ in range(3):
        request(breaker, 0.0, good=False)
    first, second = breaker.admit_and_return_period(), breaker.admit_and_return_period()
    assert (breaker.state, breaker.seconds_until_admission(10.0)) == (BreakerState.HALF_OPEN, 1.0)
    breaker.record_success(10.0, first)
    assert (breaker.state, breaker.seconds_until_admission(10.0)) == (BreakerState.HALF_OPEN, 0.0)
    breaker.admit_and_return_period()
    assert breaker.seconds_until_admission(10.0) == 1.0
    breaker.record_success(10.0, second)
    assert breaker.state is BreakerState.CLOSED


def test_failed_probe_opens_it_again_for_the_whole_time() -> None:
    breaker = Breaker(CONSECUTIVE)
    for _ in range(3):
        request(breaker, 0.0, good=False)
    request(breaker, 10.0, good=False)
    assert breaker.seconds_until_admission(10.0) == 10.0


def test_abandoned_probe_frees_its_place() -> None:
    breaker = Breaker(CONSECUTIVE)
    for _ in range(3):
        request(breaker, 0.0, good=False)
    period = breaker.admit_and_return_period()
    assert breaker.seconds_until_admission(10.0) > 0
    breaker.record_no_result(period)
    assert breaker.seconds_until_admission(10.0) == 0
    breaker.admit_and_return_period()
    assert breaker.seconds_until_admission(10.0) == 1.0


def test_late_results_of_an_earlier_period_count_for_nothing() -> None:
    breaker = Breaker(CONSECUTIVE)
    late = [breaker.admit_and_return_period() for _ in range(4)]
    for _ in range(3):
        request(breaker, 0.0, good=False)
    probe = breaker.admit_and_return_period()
    breaker.record_success(10.0, late[0])
    breaker.record_failure(10.0, late[1], answered=False)
    breaker.record_no_result(late[2])
    assert (breaker.state, breaker.seconds_until_admission(10.0)) == (BreakerState.HALF_OPEN, 1.0)
    breaker.record_success(10.0, probe)
    breaker.record_failure(10.0, late[3], answered=False)
    assert breaker.is_closed


def test_answer_of_the_last_backend_does_not_open_its_breaker_for_earlier_failures_to_connect() -> None:
    breaker = Breaker(BreakerRule(failures=0, rate=0.5, minimum_requests=4), is_dispensable=lambda: False)
    request(breaker, 0.0, good=True)
    request(breaker, 0.0, good=False)
    request(breaker, 0.0, good=False)
    breaker.record_failure(0.0, breaker.admit_and_return_period(), answered=True)
    assert breaker.is_closed, "two of four requests did not reach it, but the last one did"
    request(breaker, 0.0, good=False)
    assert breaker.state is BreakerState.OPEN


class BreakerMachine(RuleBasedStateMachine):
    """Random histories: requests that end in any order, at any time, or never."""

    requests: Bundle[tuple[int, BreakerState]] = Bundle("requests")

    @initialize(failures=st.integers(0, 3), rate=st.sampled_from([0.0, 0.5, 1.0]), probes=st.integers(0, 3))
    def begin(self, failures: int, rate: float, probes: int) -> None:
        self.now = 0.0
        self.probes: dict[int, int] = {}  # by period
        self.changes: list[BreakerState] = []
        self.most = max(1, probes)
        self.unreached = 0  # in a row, since it was closed
        self.dispensable = True
        rule = BreakerRule(failures=failures, rate=rate, minimum_requests=4, probes=probes)
        self.breaker = Breaker(rule, self.change, lambda: self.dispensable)

    def change(self, state: BreakerState, why: str) -> None:
        self.changes.append(state)
        self.unreached = 0

    @rule(dispensable=st.booleans())
    def others_come_and_go(self, dispensable: bool) -> None:
        self.dispensable = dispensable

    @rule(target=requests)
    def send(self) -> object:
        if self.breaker.seconds_until_admission(self.now):
            return -1, BreakerState.OPEN
        before = self.breaker.state
        period = self.breaker.admit_and_return_period()
        assert self.breaker.state is not BreakerState.OPEN
        if before is not BreakerState.CLOSED:
            self.probes[period] = self.probes.get(period, 0) + 1
        return period, self.breaker.state

    @rule(request=consumes(requests), end=st.sampled_from(["good", "bad", "error", "left"]))
    def end(self, request: tuple[int, BreakerState], end: str) -> None:
        period, _ = request
        if period < 0:
            return
        before, changed = self.breaker.state, len(self.changes)
        is_current = period == self.breaker.period
        if period in self.probes:
            self.probes[period] -= 1
        if end == "good":
            self.breaker.record_success(self.now, period)
        elif end == "bad":
            self.unreached += is_current and before is BreakerState.CLOSED
            self.breaker.record_failure(self.now, period, answered=False)
        elif end == "error":
            self.breaker.record_failure(self.now, period, answered=True)
            if not self.dispensable:
                assert not is_current or self.breaker.is_closed
        else:
            self.breaker.record_no_result(period)
        if not is_current or end == "left":
            assert (self.breaker.state, len(self.changes)) == (before, changed)
        elif end == "bad" and before is BreakerState.HALF_OPEN:
            assert self.breaker.state is BreakerState.OPEN

    @rule(seconds=st.sampled_from([1.0, 9.0, 10.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def recovered(self) -> None:
        self.breaker.probe_now(self.now)

    @invariant()
    def never_more_probes_than_allowed(self) -> None:
        if self.breaker.state is BreakerState.HALF_OPEN:
            assert self.probes.get(self.breaker.period, 0) <= self.most

    @invariant()
    def it_comes_back(self) -> None:
        assert self.breaker.seconds_until_admission(self.now) <= 10.0
        if self.breaker.state is BreakerState.OPEN:
            assert self.breaker.seconds_until_admission(self.now + 10.0) == 0

    @invariant()
    def states_follow_each_other_in_order(self) -> None:
        order = [BreakerState.CLOSED, *self.changes]
        allowed = {
            BreakerState.CLOSED: {BreakerState.OPEN},
            BreakerState.OPEN: {BreakerState.HALF_OPEN},
            BreakerState.HALF_OPEN: {BreakerState.OPEN, BreakerState.CLOSED},
        }
        assert all(after in allowed[before] for before, after in pairwise(order))


TestBreakerMachine = BreakerMachine.TestCase
