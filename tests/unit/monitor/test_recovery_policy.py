"""The recovery of unhealthy workers, decided over random histories and without waiting for anything."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.config import Patience, Recovery
from poolctl.monitor.recovery_policy import Decision, Situation, Step, decide, within

POLICY = Recovery(limit=3, window=100, backoff=Patience(initial=10, max=20, jitter=0))


def seen(*histories: list[float], **facts: Any) -> Situation:
    facts = {"strategy": "restart", "ready": 1, "size": 1, "now": 1000.0} | facts
    return Situation(histories=histories or ([],), **facts)


situations = st.builds(
    Situation,
    strategy=st.sampled_from(["restart", "replace", "disable", "notify", "none"]),
    histories=st.lists(st.lists(st.floats(0, 1000), max_size=6).map(sorted), max_size=4),
    ready=st.integers(0, 6),
    size=st.integers(1, 6),
    overlaps=st.booleans(),
    under_way=st.booleans(),
    now=st.floats(1000, 2000),
    jitter=st.floats(-1, 1),
).filter(lambda situation: len(situation.histories) <= situation.ready)


@pytest.mark.parametrize(
    ("strategy", "step"),
    [
        ("restart", Step.RESTART),
        ("replace", Step.REPLACE),
        ("disable", Step.DISABLE),
        ("notify", Step.TELL),
        ("none", Step.NOTHING),
    ],
)
def test_first_recovery_is_immediate(strategy: str, step: Step) -> None:
    assert decide(POLICY, seen(strategy=strategy)).step is step


def test_recoveries_wait_longer_each_time() -> None:
    assert decide(POLICY, seen([995.0])) == Decision(Step.WAIT, again_seconds=5.0)
    assert decide(POLICY, seen([980.0, 995.0])) == Decision(Step.WAIT, again_seconds=15.0)
    assert decide(POLICY, seen([980.0, 985.0], jitter=1.0)).step is Step.WAIT
    assert decide(POLICY, seen([990.0])).step is Step.RESTART


def test_recovery_pauses_after_the_limit_until_the_window_has_passed() -> None:
    times = [910.0, 930.0, 960.0]
    step, _, again = decide(POLICY, seen(times))
    assert (step, again) == (Step.GIVE_UP, 10.0)
    assert decide(POLICY, seen(times, now=1010.0)).step is Step.RESTART
    step, _, again = decide(Recovery(limit=0), seen())
    assert (step, again) == (Step.GIVE_UP, 0.0), "there is no time at which to try again"


def test_server_is_restarted_instead_of_replaced_when_generations_may_not_overlap() -> None:
    assert decide(POLICY, seen(strategy="replace", overlaps=False)).step is Step.RESTART


def test_last_ready_worker_of_several_is_never_stopped() -> None:
    assert decide(POLICY, seen([], [], [], size=3, ready=3)).chosen == [0, 1]
    assert decide(POLICY, seen(size=2, ready=1)).step is Step.WAIT
    assert decide(POLICY, seen(size=1, ready=1)).chosen == [0], "there is only this one"


def test_only_workers_whose_pause_is_over_are_recovered() -> None:
    step, chosen, again = decide(POLICY, seen([995.0], [], [910.0, 930.0, 960.0], size=4, ready=4))
    assert (step, chosen, again) == (Step.RESTART, [1], 5.0)


def test_recovery_waits_while_another_is_under_way() -> None:
    assert decide(POLICY, seen(under_way=True)) == Decision(Step.WAIT)


@given(situations)
def test_decision_never_stops_more_workers_than_allowed(situation: Situation) -> None:
    step, chosen, again = decide(POLICY, situation)
    assert set(chosen) <= set(range(len(situation.histories)))
    assert again >= 0
    acts = step in (Step.RESTART, Step.REPLACE, Step.DISABLE)
    if not situation.histories or situation.strategy in ("none", "notify"):
        assert not acts
    if step in (Step.RESTART, Step.REPLACE):
        assert chosen
        assert not situation.under_way
        for place in chosen:
            assert len(within(situation.histories[place], POLICY.window, situation.now)) < POLICY.limit
    if step is Step.RESTART and situation.size > 1:
        assert situation.ready - len(chosen) >= 1, "one that is ready stays"
    if step is Step.REPLACE:
        assert situation.overlaps
        assert situation.strategy == "replace"


@given(
    st.floats(0, 50),
    st.integers(1, 5),
    st.floats(1, 100),
    st.lists(st.floats(-1, 1), min_size=40, max_size=40),
)
def test_permanently_unhealthy_worker_is_recovered_as_often_as_the_limit_allows(
    initial: float, limit: int, window: float, jitters: list[float]
) -> None:
    policy = Recovery(limit=limit, window=window, backoff=Patience(initial=initial, max=60))
    now, times = 0.0, list[float]()
    for jitter in jitters:
        decision = decide(policy, seen(times, now=now, jitter=jitter))
        if decision.step is Step.RESTART:
            times.append(now)
            assert len(within(times, window, now)) <= limit
            now += 0.5
        else:
            assert decision.again_seconds > 0, "it is looked at again"
            now += decision.again_seconds
    assert times
