"""The next actions for one server, by example; any view is in test_decide_properties, histories in test_histories."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig
from poolctl.config import Backoff, Restart
from poolctl.core.decide import (
    ASLEEP,
    AWAKE,
    Accept,
    Arm,
    Check,
    Close,
    Disarm,
    Drain,
    EndHook,
    ExitDecision,
    ExitSituation,
    FallAsleep,
    Open,
    Refuse,
    Rotate,
    RunHook,
    ServerView,
    Spawn,
    StepAfterExit,
    Stop,
    decide,
    judge_exit,
)
from poolctl.core.server_entry import Entry
from poolctl.core.server_state import (
    ALLOWED_CHANGES,
    Desired,
    DesiredState,
    HookState,
    ListenerState,
    Overrides,
    RunningHook,
    ServerListener,
)
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.runners.runner_protocol import Exit
from poolctl.states import State, Status

PROBED = ServerConfig(name="web", bind=":1", app="a:b", health={"liveness": {"tcp": True}})


def worker(generation: int = 1, index: int = 0, phase: WorkerPhase = WorkerPhase.READY) -> Worker:
    return Worker(f"w.{generation}.{index}", generation, index, PROBED, phase, stopped_accepting=True)


def view(*workers: Worker, **facts: Any) -> ServerView:
    state, out = facts.pop("desired", Desired.RUN), Overrides(out=facts.pop("out", False))
    generations = {name: facts.pop(name) for name in ("generation", "renewed") if name in facts}
    running = RunningHook(facts.pop("hook")) if "hook" in facts else None
    hooks = HookState(facts.pop("before_start_due", False), facts.pop("after_stop_due", False), running)
    listener = ServerListener(
        facts.pop("listener", ListenerState.OPEN), armed=PROBED if facts.pop("armed", False) else None,
        returned=facts.pop("returned", False), must_reopen=facts.pop("must_reopen_listener", False),
    )  # fmt: skip
    return ServerView(DesiredState(state, out, **generations), listener, hooks, workers=workers, **facts)


IDLE, UNHEALTHY = replace(worker(), idle=True), replace(worker(), health=Status.KO)
AWAKE_NOW: dict[str, Any] = {"sleepy": True, "has_pending_request": True}
EXAMPLES = {
    "opens before it spawns": (view(listener=ListenerState.CLOSED), [Open()]),
    "waits for the listener": (view(listener=ListenerState.OPENING), []),
    "spawns what is missing": (view(worker(index=1), count=3), [Spawn(1, 0), Spawn(1, 2)]),
    "does nothing when all is there": (view(worker(), worker(index=1), count=2), []),
    "waits for a worker that starts": (view(worker(phase=WorkerPhase.STARTING)), []),
    "waits for its dependencies with all": (view(may_start=False, listener=ListenerState.CLOSED), []),
    "opens before its dependencies and hooks what comes back": (
        view(may_start=False, before_start_due=True, listener=ListenerState.CLOSED, returned=True), [Open()],
    ),
    "leaves closed what a window keeps asleep": (
        view(listener=ListenerState.CLOSED, returned=True, window_demand=ASLEEP), [],
    ),
    "spawns the replacement first": (view(worker(), generation=2), [Spawn(2, 0)]),
    "keeps the old one until its dependencies are ready": (view(worker(), generation=2, may_start=False), []),
    "keeps the old one without overlap, too": (
        view(worker(), generation=2, may_start=False, overlap=False, feasible=False), [],
    ),
    "keeps the address of the old one, too": (
        view(worker(), generation=2, may_start=False, must_reopen_listener=True), [],
    ),
    "opens no new address before its dependencies are ready": (
        view(worker(), generation=2, may_start=False, sleepy=True, listener=ListenerState.CLOSED), [],
    ),
    "takes an old one out of rotation that waits to be replaced": (
        view(worker(), generation=2, may_start=False, out=True), [Rotate("w.1.0", False)],
    ),
    "keeps the old one until the new one is ready": (
        view(worker(), worker(2, phase=WorkerPhase.STARTING), generation=2), [],
    ),
    "drains the old one when the new one is ready": (view(worker(), worker(2), generation=2), [Drain("w.1.0")]),
    "drains the old ones when all new ones are ready": (
        view(worker(), worker(1, 1), worker(2), worker(2, 1, WorkerPhase.STARTING), generation=2, count=2), [],
    ),
    "drains an old one that is not known to be ready": (
        view(worker(phase=WorkerPhase.STARTING), worker(2), generation=2), [Drain("w.1.0")],
    ),
    "drains a superseded one that is not known to be ready": (
        view(worker(), worker(2, phase=WorkerPhase.STARTING), worker(3, phase=WorkerPhase.STARTING), generation=3),
        [Drain("w.2.0")],
    ),
    "drains one too many that has no process yet": (
        view(worker(), worker(index=1, phase=WorkerPhase.PLACING)), [Drain("w.1.1")],
    ),
    "stops one that is stuck": (
        view(replace(worker(), stuck=True), worker(2), generation=2), [Accept("w.1.0", False), Stop("w.1.0")],
    ),
    "leaves a superseded one that serves": (
        view(worker(), worker(2), worker(3, phase=WorkerPhase.STARTING), generation=3), [],
    ),
    "does not interrupt a job that is run again": (
        view(worker(phase=WorkerPhase.STARTING), generation=2, job=True), [Spawn(2, 0)],
    ),
    "runs the hook of a start before it opens": (
        view(listener=ListenerState.CLOSED, before_start_due=True), [RunHook("before_start")],
    ),
    "waits for its dependencies with the hook": (
        view(listener=ListenerState.CLOSED, before_start_due=True, may_start=False), [],
    ),
    "waits for the hook that runs": (view(before_start_due=True, hook="before_start"), []),
    "runs the hook of a start before it sleeps": (
        view(before_start_due=True, sleepy=True), [RunHook("before_start")],
    ),
    "lets a stop end before the next start begins": (
        view(worker(phase=WorkerPhase.STOPPING), before_start_due=True, after_stop_due=True), [],
    ),
    "runs the hook of that stop first": (
        view(before_start_due=True, after_stop_due=True), [RunHook("after_stop")],
    ),
    "runs the hook of a stop after the last worker": (
        view(desired=Desired.STOPPED, listener=ListenerState.CLOSED, after_stop_due=True), [RunHook("after_stop")],
    ),
    "stops the last worker first": (
        view(worker(), desired=Desired.STOPPED, after_stop_due=True), [Stop("w.1.0")],
    ),
    "ends the hook of a start that is not wanted any more": (
        view(desired=Desired.STOPPED, listener=ListenerState.CLOSED, hook="before_start"), [EndHook()],
    ),
    "does not end the hook of a stop": (
        view(desired=Desired.STOPPED, listener=ListenerState.CLOSED, after_stop_due=True, hook="after_stop"), [],
    ),
    "does not repeat itself": (view(worker(phase=WorkerPhase.DRAINING), worker(2), generation=2), []),
    "ends the old one first without overlap": (view(worker(), generation=2, overlap=False), [Stop("w.1.0")]),
    "sees first whether the new one can be started without overlap": (
        view(worker(), generation=2, overlap=False, feasible=False), [Check()],
    ),
    "waits until that is known": (
        view(worker(), generation=2, overlap=False, feasible=False, checking=True), [],
    ),
    "ends one that does not serve without that": (
        view(worker(phase=WorkerPhase.STARTING), generation=2, overlap=False, feasible=False), [Stop("w.1.0")],
    ),
    "waits for the old one without overlap": (
        view(worker(phase=WorkerPhase.STOPPING), generation=2, overlap=False), [],
    ),
    "stops what is not wanted": (view(worker(), desired=Desired.STOPPED), [Stop("w.1.0")]),
    "stops what drains, too": (view(worker(phase=WorkerPhase.DRAINING), desired=Desired.STOPPED), [Stop("w.1.0")]),
    "waits for those that depend on it": (view(worker(), desired=Desired.STOPPED, may_stop=False), []),
    "closes after the last worker": (view(desired=Desired.STOPPED), [Close()]),
    "does not close before": (view(worker(phase=WorkerPhase.STOPPING), desired=Desired.STOPPED), []),
    "rests": (view(desired=Desired.STOPPED, listener=ListenerState.CLOSED), []),
    "closes what has failed": (view(desired=Desired.FAILED), [Refuse()]),
    "closes what is done": (view(desired=Desired.COMPLETED), [Close()]),
    "holds the listener in a backoff": (view(waiting={0}), []),
    "closes the listener in a backoff that refuses": (view(waiting={0}, refuses=True), [Refuse()]),
    "keeps it for a worker that serves on": (view(worker(), waiting={1}, count=2, refuses=True), []),
    "opens again after the backoff": (view(listener=ListenerState.CLOSED, refuses=True), [Open()]),
    "does not open while it refuses": (
        view(listener=ListenerState.CLOSED, waiting={0}, refuses=True), [],
    ),
    "starts the others while one waits": (view(waiting={0}, count=2, refuses=True), [Spawn(1, 1)]),
    "closes the listener when those that have not ended wait": (
        view(waiting={0}, vacant={1}, count=2, refuses=True), [Refuse()],
    ),
    "replaces no worker that has ended for good": (view(worker(), vacant={1}, count=2), []),
    "drains the old ones although one of the new ones has ended for good": (
        view(worker(), worker(2), vacant={1}, generation=2, count=2), [Drain("w.1.0")],
    ),
    "replaces one worker alone": (view(worker(), worker(index=1), renewed={"1": 2}, count=2), [Spawn(2, 1)]),
    "drains one that was replaced alone, though another is missing": (
        view(worker(), worker(2), renewed={"0": 2}, waiting={1}, count=2), [Drain("w.1.0")],
    ),
    "ends one that is replaced alone first without overlap": (
        view(worker(), worker(index=1), renewed={"1": 2}, count=2, overlap=False), [Stop("w.1.1")],
    ),
    "watches the listener when it sleeps": (view(sleepy=True), [Arm()]),
    "sleeps while the listener is watched": (view(sleepy=True, armed=True), []),
    "stops watching when a request has woken it": (
        view(sleepy=True, armed=True, has_pending_request=True), [Disarm(), Spawn(1, 0)],
    ),
    "stops watching before it closes": (view(desired=Desired.STOPPED, armed=True), [Disarm(), Close()]),
    "falls asleep when it is idle": (view(IDLE, **AWAKE_NOW), [FallAsleep()]),
    "does not fall asleep while it is needed": (view(IDLE, has_live_dependents=True, **AWAKE_NOW), []),
    "does not fall asleep in a window that keeps it awake": (view(IDLE, window_demand=AWAKE, **AWAKE_NOW), []),
    "does not fall asleep out of rotation": (
        view(IDLE, out=True, **AWAKE_NOW), [Rotate("w.1.0", False)],
    ),
    "does not fall asleep with a worker that has traffic": (
        view(IDLE, worker(index=1), count=2, **AWAKE_NOW), [],
    ),
    "does not fall asleep before it is complete": (view(IDLE, count=2, **AWAKE_NOW), [Spawn(1, 1)]),
    "does not fall asleep during a restart": (view(IDLE, generation=2, **AWAKE_NOW), [Spawn(2, 0)]),
    "drains what a window keeps asleep": (view(worker(), window_demand=ASLEEP, **AWAKE_NOW), [Drain("w.1.0")]),
    "closes what a window keeps asleep": (view(sleepy=True, armed=True, window_demand=ASLEEP), [Disarm(), Close()]),
    "drains a worker whose listener is to be vacated": (view(worker(), must_reopen_listener=True), [Drain("w.1.0")]),
    "closes a listener that is to be vacated before its worker has drained": (
        view(worker(phase=WorkerPhase.DRAINING), must_reopen_listener=True), [Close()],
    ),
    "keeps the listener of what is removed while its worker may accept": (
        view(replace(worker(phase=WorkerPhase.DRAINING), stopped_accepting=False), desired=Desired.REMOVED), [],
    ),
    "drains what is removed": (view(worker(), desired=Desired.REMOVED), [Drain("w.1.0")]),
    "drains what is removed before it is ready": (
        view(worker(phase=WorkerPhase.STARTING), desired=Desired.REMOVED), [Drain("w.1.0")],
    ),
    "keeps what is removed until its dependents have ended": (
        view(worker(), desired=Desired.REMOVED, may_stop=False), [],
    ),
    "takes a ready worker out of rotation": (
        view(worker(), worker(index=1, phase=WorkerPhase.STARTING), count=2, out=True), [Rotate("w.1.0", False)],
    ),
    "puts a worker back into rotation": (view(replace(worker(), out=True)), [Rotate("w.1.0", True)]),
    "leaves a worker in rotation": (view(worker()), []),
    "lets the unhealthy worker that accepts go on": (
        view(UNHEALTHY, replace(UNHEALTHY, id="w.1.1", index=1, resting=True), count=2), [],
    ),
}  # fmt: skip


def test_servers_want_workers_unless_they_are_idle_stopped_or_removed() -> None:
    unwanted = {state for state in Desired if not state.wanted}
    assert unwanted == {Desired.IDLE, Desired.STOPPED, Desired.REMOVED}


ORDERED = "idle stopped run scheduled removed"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("idle", ORDERED),
        ("stopped", ORDERED),
        ("run", f"{ORDERED} completed failed"),
        ("scheduled", ORDERED),
        ("completed", f"{ORDERED} completed failed"),
        ("failed", f"{ORDERED} failed"),
        ("removed", "removed idle"),
    ],
)
def test_state_is_followed_by_what_commands_order_and_by_what_may_come_of_it(before: str, after: str) -> None:
    assert ALLOWED_CHANGES[Desired(before)] == {*after.split()}


@pytest.mark.parametrize(("facts", "actions"), EXAMPLES.values(), ids=list(EXAMPLES))
def test_decision_on_a_view_is_the_expected_one(facts: ServerView, actions: list[Any]) -> None:
    assert decide(facts) == actions


def entry(*phases: WorkerPhase, desired: Desired = Desired.RUN, **keys: Any) -> Entry:
    config = ServerConfig(**{"name": "web", "bind": "127.0.0.1:8001", "app": "any:app"} | keys)
    server = Entry(config, DesiredState(desired), listener=ServerListener(ListenerState.OPEN))
    for index, phase in enumerate(phases):
        server.observed.workers[f"web.1.{index}"] = Worker(f"web.1.{index}", 1, index, config, phase)
    return server


def test_state_follows_from_the_desired_state_and_the_workers() -> None:
    ready, starting, stopping, draining = (
        WorkerPhase.READY,
        WorkerPhase.STARTING,
        WorkerPhase.STOPPING,
        WorkerPhase.DRAINING,
    )
    for server, state in [
        (entry(ready), State.RUNNING),
        (entry(starting), State.STARTING),
        (entry(), State.STARTING),
        (entry(stopping, desired=Desired.STOPPED), State.STOPPING),
        (entry(desired=Desired.STOPPED), State.STOPPED),
        (entry(desired=Desired.STOPPED, disabled=True), State.DISABLED),
        (entry(desired=Desired.FAILED), State.FAILED),
        (entry(desired=Desired.COMPLETED), State.STOPPED),
        (entry(ready, starting), State.RUNNING),
        (entry(draining), State.STARTING),
    ]:
        assert server.state == state.value, server


def test_ready_is_a_server_that_answers_and_a_job_that_has_completed() -> None:
    job = Entry(ServerConfig(name="job", command=["migrate"], job=True), DesiredState(Desired.COMPLETED))
    assert entry(WorkerPhase.READY).ready
    assert not entry(WorkerPhase.STARTING).ready
    assert (job.ready, job.state) == (True, State.COMPLETED.value)
    job.set_desired(Desired.STOPPED)
    assert (job.ready, job.state) == (False, State.STOPPED.value)
    assert not entry(desired=Desired.COMPLETED).ready


GOOD, BAD = Exit.from_returncode(0), Exit.from_returncode(1)
KILLED, TERMINATED = Exit.from_signal(9), Exit.from_signal(15)


def verdict(exit_: Exit, policy: str = "on-failure", **more: Any) -> ExitDecision:
    """Of a death at 100 s, unless `now` says otherwise, without chance."""
    names = [attribute.name for attribute in fields(ExitSituation)]
    situation = ExitSituation(**{"now": 100.0} | {key: more.pop(key) for key in names if key in more})
    return judge_exit(policy, Restart(**more), exit_, situation, jitter=0.0)


@pytest.mark.parametrize(
    ("policy", "exit_", "expected"),
    [
        ("no", GOOD, StepAfterExit.DONE), ("no", BAD, StepAfterExit.FAILED), ("no", TERMINATED, StepAfterExit.FAILED),
        ("on-failure", GOOD, StepAfterExit.DONE), ("on-failure", BAD, StepAfterExit.RESTART),
        ("on-failure", KILLED, StepAfterExit.RESTART),
        ("on-failure", TERMINATED, StepAfterExit.RESTART), ("on-failure", Exit(), StepAfterExit.RESTART),
        ("always", GOOD, StepAfterExit.RESTART), ("always", BAD, StepAfterExit.RESTART),
        ("always", TERMINATED, StepAfterExit.RESTART),
    ],
)  # fmt: skip
def test_policy_decides_and_an_unrequested_signal_is_a_failure(
    policy: str, exit_: Exit, expected: StepAfterExit
) -> None:
    assert verdict(exit_, policy).next is expected


@pytest.mark.parametrize(
    ("policy", "exit_", "situation", "expected"),
    [
        ("on-failure", GOOD, {"others": True}, StepAfterExit.VACATE),
        ("on-failure", GOOD, {"others_wait": True}, StepAfterExit.VACATE),
        ("on-failure", GOOD, {"others_failed": True}, StepAfterExit.FAILED),
        ("on-failure", BAD, {"others": True}, StepAfterExit.RESTART),
        ("no", GOOD, {"others": True}, StepAfterExit.VACATE),
        ("no", BAD, {"others": True}, StepAfterExit.VACATE),
        ("always", GOOD, {"others": True}, StepAfterExit.RESTART),
    ],
)
def test_end_of_one_worker_ends_no_other(
    policy: str, exit_: Exit, situation: dict[str, bool], expected: StepAfterExit
) -> None:
    assert verdict(exit_, policy, **situation).next is expected


@pytest.mark.parametrize("policy", ["no", "on-failure", "always"])
def test_end_with_status_0_after_ready_is_sleep_for_a_server_that_may_sleep(policy: str) -> None:
    assert verdict(GOOD, policy, may_sleep=True).next is StepAfterExit.SLEEP
    for not_sleep in ({"was_ready": False}, {"others": True}):
        assert verdict(GOOD, policy, may_sleep=True, **not_sleep).next is not StepAfterExit.SLEEP
    assert verdict(BAD, policy, may_sleep=True).next is not StepAfterExit.SLEEP


SPENT: dict[str, Any] = {"restarts": (99.0,) * 8, "backoff": Backoff(initial=1, max=7)}


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({}, StepAfterExit.FAILED),
        ({"was_up": True}, StepAfterExit.RESTART),
        ({"was_up": True, "was_ready": False}, StepAfterExit.RESTART),
        ({"was_up": True, "limit": 8}, StepAfterExit.FAILED),
        ({"was_up": True, "may_sleep": True}, StepAfterExit.FAILED),
        ({"was_up": True, "restarts": (), "spent": True}, StepAfterExit.RESTART),
    ],
)
def test_server_that_was_up_is_given_up_only_if_the_file_limits_its_restarts(
    about: dict[str, Any], expected: StepAfterExit
) -> None:
    decision = verdict(BAD, **{**SPENT, **about})
    assert (decision.next, decision.spent) == (expected, expected is StepAfterExit.RESTART)
    if decision.spent:
        assert decision.delay_seconds == 7, "the longest"


def test_server_that_is_tried_without_end_pauses_whatever_its_backoff_is() -> None:
    at_once = Backoff(initial=0, max=0)
    assert verdict(BAD, **{**SPENT, "was_up": True, "backoff": at_once}).delay_seconds == 1


def test_server_that_was_never_up_is_given_up_within_its_window_although_its_delays_grow() -> None:
    restarts: list[float] = []
    now = 0.0
    restart = StepAfterExit.RESTART
    while (decision := verdict(BAD, was_ready=False, restarts=restarts, now=now)).next is restart:
        restarts.append(now)
        now += decision.delay_seconds + 30.0  # each attempt takes as long as it may
    assert (decision.next, len(restarts)) == (StepAfterExit.FAILED, 8)


def test_worker_at_its_limit_is_tried_after_the_longest_delay_while_others_serve() -> None:
    decision = verdict(BAD, others=True, restarts=(99.0,) * 3, limit=3, backoff=Backoff(initial=1, max=7))
    assert (decision.next, decision.delay_seconds) == (StepAfterExit.RESTART, 7)
    assert verdict(BAD, others_wait=True, restarts=(99.0,) * 3, limit=3).next is StepAfterExit.FAILED


@pytest.mark.parametrize(
    ("was_ready", "retries", "expected"),
    [
        (False, False, StepAfterExit.FAILED),
        (False, True, StepAfterExit.RESTART),
        (True, False, StepAfterExit.RESTART),
    ],
)
def test_worker_that_was_never_ready_is_not_replaced_if_its_start_is_not_retried(
    was_ready: bool, retries: bool, expected: StepAfterExit
) -> None:
    decision = verdict(BAD, was_ready=was_ready, retries=retries)
    reason = BAD.message if expected is StepAfterExit.FAILED else ""
    assert (decision.next, decision.reason) == (expected, reason)


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
    assert given_up.next is StepAfterExit.FAILED
    assert given_up.reason == "exited with status 1; given up after 10 restarts in 1m"


def test_a_limit_of_nothing_never_restarts() -> None:
    assert verdict(BAD, limit=0).next is StepAfterExit.FAILED


@given(
    st.lists(st.floats(0, 1000), max_size=200), st.floats(0, 1000), st.floats(-1, 1), st.floats(0, 1),
    st.floats(1, 100), st.booleans(),
)  # fmt: skip
def test_delays_stay_within_what_is_configured(
    restarts: list[float], now: float, jitter: float, share: float, factor: float, was_ready: bool
) -> None:
    limits = Restart(limit=1_000_000, backoff=Backoff(initial=0.2, max=30, factor=factor, jitter=share))
    decision = judge_exit("always", limits, BAD, ExitSituation(now, was_ready, restarts), jitter=jitter)
    assert decision.next is StepAfterExit.RESTART
    assert 0 <= decision.delay_seconds <= 30 * (1 + share)


def test_verdict_after_too_many_restarts_has_their_number() -> None:
    assert verdict(BAD, restarts=(99.0, 99.5), limit=3).restarts == 0
    given_up = verdict(BAD, restarts=(1.0, 99.0, 99.5), limit=2, window=60)
    assert (given_up.next, given_up.restarts) == (StepAfterExit.FAILED, 2)
