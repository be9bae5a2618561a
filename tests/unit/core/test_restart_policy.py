"""Whether and when a server that ended is started again; the clock is an argument."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.config import Backoff, Restart
from poolctl.core.decide import Next, Verdict, judge
from poolctl.runners.runner_protocol import Exit

GOOD, BAD = Exit.from_status(0), Exit.from_status(1)
KILLED, TERMINATED = Exit.from_signal(9), Exit.from_signal(15)


def verdict(exit_: Exit, policy: str = "on-failure", **more: Any) -> Verdict:
    """Of a death at 100 s, unless `now` says otherwise, without chance."""
    about = {key: more.pop(key) for key in ("was_ready", "restarts", "now") if key in more}
    rules = Restart(policy=policy, **more)
    return judge(rules, exit_, **{"was_ready": True, "restarts": (), "now": 100.0, "jitter": 0.0} | about)


@pytest.mark.parametrize(
    ("policy", "exit_", "expected"),
    [
        ("no", GOOD, Next.DONE), ("no", BAD, Next.FAILED), ("no", TERMINATED, Next.FAILED),
        ("on-failure", GOOD, Next.DONE), ("on-failure", BAD, Next.RESTART), ("on-failure", KILLED, Next.RESTART),
        ("on-failure", TERMINATED, Next.RESTART), ("on-failure", Exit(), Next.RESTART),
        ("always", GOOD, Next.RESTART), ("always", BAD, Next.RESTART), ("always", TERMINATED, Next.RESTART),
    ],
)  # fmt: skip
def test_policy_decides_and_an_unrequested_signal_is_a_failure(
    policy: str, exit_: Exit, expected: Next
) -> None:
    assert verdict(exit_, policy).next is expected


def test_the_first_restart_is_at_once_if_it_had_been_ready() -> None:
    assert verdict(BAD).delay_seconds == 0
    assert verdict(BAD, was_ready=False).delay_seconds == 0.2


def test_the_delays_grow_to_their_maximum() -> None:
    backoff = Backoff(initial=1, max=5, factor=2)
    delays = [
        verdict(BAD, restarts=(99.0,) * count, backoff=backoff, limit=100).delay_seconds for count in range(6)
    ]
    assert delays == [0, 1, 2, 4, 5, 5]


def test_restarts_before_the_window_do_not_count() -> None:
    old = tuple(float(number) for number in range(10))
    assert verdict(BAD, restarts=old, now=200.0, limit=3, window=60).delay_seconds == 0
    given_up = verdict(BAD, restarts=old, now=30.0, limit=3, window=60)
    assert given_up.next is Next.FAILED
    assert given_up.reason == "exited with status 1; given up after 10 restarts in 1m"


def test_a_limit_of_nothing_never_restarts() -> None:
    assert verdict(BAD, limit=0).next is Next.FAILED


@given(
    st.lists(st.floats(0, 1000), max_size=200), st.floats(0, 1000), st.floats(-1, 1), st.floats(0, 1),
    st.floats(1, 100), st.booleans(),
)  # fmt: skip
def test_delays_stay_within_what_is_configured(
    restarts: list[float], now: float, jitter: float, share: float, factor: float, was_ready: bool
) -> None:
    policy = Restart(limit=1_000_000, backoff=Backoff(initial=0.2, max=30, factor=factor, jitter=share))
    found = judge(policy, BAD, was_ready=was_ready, restarts=restarts, now=now, jitter=jitter)
    assert found.next is Next.RESTART
    assert 0 <= found.delay_seconds <= 30 * (1 + share)
