"""A short chaos run, and tests that the checks detect faults."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Iterator

import pytest

from tests.chaos import endless, leaks
from tests.chaos.both_killed import BothKilled
from tests.chaos.gateway import EVENTS, gateway_chaos
from tests.chaos.program import program
from tests.chaos.run import ROLES, VERBS, run
from tests.chaos.stage import Fault, Stage
from tests.chaos.watch import Watch
from tests.deadline import wait_until

pytestmark = pytest.mark.slow

SEED = 711


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    try:
        yield made
    finally:
        made.close()


@pytest.mark.heavy
@pytest.mark.timeout(240)
def test_some_chaos_loses_nothing_and_leaves_nothing() -> None:
    assert run(SEED, 30) > 2  # minimum steps; the rest depends on the machine


@pytest.mark.heavy
@pytest.mark.timeout(120)
def test_restarts_in_a_row_lose_nothing_and_nothing_grows() -> None:
    assert endless.run(200).complete > 0


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_no_event_of_the_gateway_fails_a_request_that_its_death_does_not_excuse() -> None:
    with gateway_chaos(SEED) as chaos:
        assert set(chaos.run(1)) == set(EVENTS)


@pytest.mark.heavy
@pytest.mark.timeout(1200)
def test_a_worker_killed_every_second_fails_only_the_requests_that_it_had() -> None:
    with gateway_chaos(SEED, deaths=True) as chaos:
        assert set(chaos.run(1)) == set(EVENTS)


@pytest.mark.heavy
@pytest.mark.timeout(400)
def test_nothing_is_left_over_when_keeper_and_supervisor_are_killed_at_once() -> None:
    with contextlib.closing(BothKilled(SEED, print)) as chaos:
        chaos.run(2)


def test_the_same_seed_is_the_same_program() -> None:
    def first(seed: int) -> list[str]:
        return [str(step) for step in itertools.islice(program(seed, ROLES, VERBS), 200)]

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert len({line.split()[1] for line in first(1)}) > 8


@pytest.mark.heavy
@pytest.mark.timeout(120)
def test_the_checks_detect_a_refused_request_an_unexcused_cut_and_leftovers(stage: Stage) -> None:
    stage.ok("start")
    items = stage.settled()
    quiet = leaks.take(stage)
    stage.ok("reload")
    leaks.same(stage, quiet)
    watch = Watch(stage)
    try:
        watch.start()
        asking = [load for (server, _), load in watch.loads.items() if server == "long"]
        wait_until(
            lambda: all(report.messages or report.complete for report in (load.look() for load in asking))
        )
        watch.check()
        os.kill(items["long"]["pids"][0], signal.SIGKILL)
        with pytest.raises(Fault, match=r"of long, 0 cuts excused(.|\n)*(reset|dropped|truncated)"):
            wait_until(watch.check)
        stage.settled()
        watch.died("long")
        watch.check()
        stage.ok("stop", "unix")
        # A connection that waits in the backlog while the server is stopped is reset.
        with pytest.raises(Fault, match=r"of unix, 0 cuts excused(.|\n)*(refused|reset)"):
            wait_until(watch.check)
    finally:
        watch.abort()
    with pytest.raises(Fault, match="orphans"):
        leaks.nothing_left(stage, within_seconds=0.2)
    keeper = quiet["keeper"]
    fewer = {kind: count - 1 for kind, count in keeper.kinds.items()}
    less = leaks.Holdings(fewer, keeper.threads, keeper.private_bytes)
    with pytest.raises(Fault, match="keeper holds"):
        leaks.same(stage, quiet | {"keeper": less}, within_seconds=0.2)
