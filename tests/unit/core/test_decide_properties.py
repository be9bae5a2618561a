"""The decision over any view at all: each is sound by itself; the histories are in test_histories."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poolctl.config import ServerConfig
from poolctl.core.decide import (
    AFTER_STOP,
    ASLEEP,
    AWAKE,
    BEFORE_START,
    Accept,
    Action,
    Arm,
    Check,
    Close,
    Disarm,
    Drain,
    EndHook,
    FallAsleep,
    Open,
    Refuse,
    Release,
    Rotate,
    RunHook,
    ServerView,
    Spawn,
    Stop,
    decide,
)
from poolctl.core.server_entry import Entry, ObservedState
from poolctl.core.server_state import (
    Desired,
    DesiredState,
    HookState,
    ListenerState,
    Overrides,
    RunningHook,
    ServerListener,
)
from poolctl.core.worker import LEAVING, Worker, WorkerPhase
from poolctl.states import State
from poolctl.time_windows import WindowState
from tests.examples import examples
from tests.unit.core.ordered_core import let_wait

MAX_WORKERS = 3
PLAIN = ServerConfig(name="web", bind=":1", app="a:b")


def applied(view: ServerView, actions: list[Action]) -> ServerView:
    """What an executor shows the moment it has begun to perform the actions. Checks that they can be performed."""
    workers = {worker.id: worker for worker in view.workers}
    leaving: set[str] = set()
    listener, armed, facts = view.listener.state, view.listener.armed, dict[str, Any]()
    for action in actions:
        match action:
            case Open():
                assert listener is ListenerState.CLOSED
                listener = ListenerState.OPENING
            case Close() | Refuse():
                assert listener is ListenerState.OPEN
                leaves = (
                    view.desired.state is Desired.REMOVED
                    or view.listener.must_reopen
                    or view.window_demand == ASLEEP
                )
                leaves = leaves or view.in_backoff
                accepting = [worker for worker in view.workers if worker.phase not in LEAVING or not leaves]
                assert not accepting, "a listener outlives its workers"
                assert not armed, "no closed listener is watched"
                listener = ListenerState.CLOSING
            case Arm():
                assert listener is ListenerState.OPEN
                assert not armed
                armed = PLAIN
            case Disarm():
                assert armed
                armed = None
            case FallAsleep():
                desired = replace(view.desired, generation=view.desired.generation + 100)
                facts = {"has_pending_request": False, "desired": desired}
                for worker in view.staying:
                    assert worker.phase is WorkerPhase.READY
                    assert worker.idle
                    workers[worker.id] = replace(worker, phase=WorkerPhase.DRAINING)
            case Spawn(generation, index):
                assert listener is ListenerState.OPEN
                assert not armed, "a worker and a bell are not to compete"
                name = f"{generation}.{index}.{len(workers)}"
                taken = {(worker.generation, worker.index) for worker in workers.values()}
                assert (generation, index) not in taken, "what leaves keeps its name until it has gone"
                # As one does that has a probe to pass first.
                workers[name] = Worker(name, generation, index, PLAIN, resting=True, stopped_accepting=True)
            case RunHook(hook):
                assert view.hooks.running is None, "one of a server at a time"
                assert not workers, "hooks run before the first worker and after the last one"
                assert view.hooks.after_stop_due if hook == AFTER_STOP else view.hooks.before_start_due
                facts["hooks"] = replace(view.hooks, running=RunningHook(hook))
            case EndHook():
                assert view.hooks.running == RunningHook(BEFORE_START)
                facts["hooks"] = replace(view.hooks, running=RunningHook(BEFORE_START, ends=True))
            case Check():
                assert not view.overlap
                assert not view.checking
                facts["checking"] = True
            case Drain(name):
                assert workers[name].phase not in LEAVING
                assert not workers[name].stuck, "it can finish nothing"
                assert name not in leaving
                leaving.add(name)
                workers[name] = replace(workers[name], phase=WorkerPhase.DRAINING)
            case Stop(name):
                assert workers[name].phase is not WorkerPhase.STOPPING
                assert name not in leaving
                leaving.add(name)
                workers[name] = replace(workers[name], phase=WorkerPhase.STOPPING)
            case Release(key):
                assert key in view.abandoned
            case Rotate(name, in_rotation):
                assert workers[name].phase is WorkerPhase.READY
                assert workers[name].out is in_rotation
                workers[name] = replace(workers[name], out=not in_rotation)
            case Accept(name, accepting):
                assert workers[name].phase is WorkerPhase.READY
                assert workers[name].resting is accepting
                well = [worker for worker in serving(view) if not worker.unhealthy]
                assert accepting or (workers[name].unhealthy and well), (
                    "only who is ko rests, and never all of them"
                )
                workers[name] = replace(workers[name], resting=not accepting)
    released = {action.key for action in actions if isinstance(action, Release)}
    abandoned = tuple(key for key in view.abandoned if key not in released)
    facts |= {"abandoned": abandoned, "workers": tuple(workers.values())}
    return replace(view, listener=replace(view.listener, state=listener, armed=armed), **facts)


def serving(view: ServerView) -> list[Worker]:
    return [worker for worker in view.workers if worker.phase is WorkerPhase.READY]


def complete(view: ServerView) -> bool:
    """Whether the generation that should serve does so with all its workers."""
    present = {worker.index for worker in serving(view) if view.desired.is_current(worker)}
    return present.issuperset(view.indexes)


def check_step(before: ServerView, actions: list[Action], after: ServerView) -> None:
    """The properties of every single decision."""
    spawns = [action for action in actions if isinstance(action, Spawn)]
    if before.listener.must_reopen and before.listener.state is ListenerState.OPEN:
        assert not spawns
    if before.desired.state is not Desired.RUN or not before.may_start or before.hooks.awaited:
        assert not spawns
    if before.desired.state is not Desired.RUN or not before.may_start:
        assert RunHook(BEFORE_START) not in actions
    running = after.hooks.running
    if running is not None and running.name == BEFORE_START and before.desired.state.wants_no_worker:
        assert running.ends
    if before.desired.state.wants_no_worker:
        assert not any(isinstance(action, Open) for action in actions)
        if not before.may_stop:
            others = [action for action in actions if not isinstance(action, Release)]
            assert not others or not before.workers
    if before.in_backoff:
        assert not any(isinstance(action, Open) for action in actions)
        closes = before.refuses and before.listener.state is ListenerState.OPEN and not before.hooks.awaited
        assert not closes or before.desired.state is not Desired.RUN or Refuse() in actions
    serves_on = before.awaits_replacement and not before.may_start and not before.hooks.awaited
    if serves_on and before.desired.state is Desired.RUN and before.window_demand != ASLEEP:
        others = (Accept, Disarm, Release, Rotate)
        returns = before.listener.returned and actions == [Open()]
        assert returns or all(isinstance(action, others) for action in actions), "what serves stays as it is"
    for spawn in spawns:
        assert spawn.generation == before.desired.generation_at(spawn.index)
        assert 0 <= spawn.index < before.count
        assert spawn.index not in before.vacant
        assert spawn.index not in before.waiting
    if not before.overlap and spawns:
        assert all(map(before.desired.is_current, before.workers))
    if (
        not before.overlap
        and not before.feasible
        and not before.desired.state.wants_no_worker
        and not before.listener.must_reopen
    ):
        ended = {action.worker for action in actions if isinstance(action, Stop)}
        old = [worker for worker in serving(before) if not before.desired.is_current(worker)]
        assert ended.isdisjoint(one.id for one in old), "what serves stays until another can be started"
    if not before.may_open:
        assert not any(isinstance(action, Open) for action in actions)
    assert {action.key for action in actions if isinstance(action, Release)} == set(before.abandoned)
    if before.hooks.awaited and before.desired.state is Desired.RUN:
        others = (Open, Arm, FallAsleep)
        assert not any(isinstance(action, others) for action in actions), "the hook comes first"
        return
    if FallAsleep() in actions:
        assert before.sleepy
        assert not before.has_live_dependents
        assert not before.window_demand
        return
    if before.window_demand == ASLEEP:
        begins = any(isinstance(action, (Open, Spawn, Arm)) for action in actions)
        assert not (before.desired.state.wanted and begins)
        return
    proceeds = (
        before.desired.state is Desired.RUN
        and not before.listener.must_reopen
        and before.listener.state is ListenerState.OPEN
    )
    if proceeds and before.may_start and not before.in_backoff:
        waiting = (
            before.has_pending_request
            or before.has_live_dependents
            or not before.sleepy
            or before.window_demand == AWAKE
        )
        alone = all(map(before.desired.is_current, before.workers))
        if waiting and (before.overlap or (alone and before.workers == tuple(before.staying))):
            going = {worker.index for worker in before.workers if before.desired.is_current(worker)}
            full = going.issuperset(set(before.indexes) - {*before.waiting})
            assert after.staying or full, "somebody serves, or comes, for as long as anybody asks"
        if not waiting and not before.staying:
            assert after.listener.armed
            assert not spawns
    if before.overlap and not before.desired.state.wants_no_worker and not before.listener.must_reopen:
        # Never a gap: a decision takes no more away than is too many.
        assert len(serving(after)) >= min(len(before.indexes), len(serving(before)))
    serves = (
        before.desired.state is Desired.RUN
        and not before.listener.must_reopen
        and before.listener.state is ListenerState.OPEN
    )
    if serves and complete(before):
        # Two generations are ready for no longer than a swap.
        assert all(map(before.desired.is_current, serving(after)))
        assert len(serving(after)) == len(before.indexes) or not before.overlap


# Most views are of servers that should run, because those have the interesting cases.
seldom = st.sampled_from([False, False, False, True])
mostly = seldom.map(lambda value: not value)
phases = st.sampled_from([WorkerPhase.READY, WorkerPhase.READY, *WorkerPhase])


def reachable(view: ServerView) -> ServerView:
    """Windows are for servers that can sleep, and their dependents win. A hook that runs is due.

    An index waits, or is vacant, only after its worker has ended, and not every index is vacant.
    """
    going = {worker.index for worker in view.staying if view.desired.is_current(worker)}
    vacant = {*view.vacant} - going
    vacant = (
        vacant if view.desired.state is Desired.RUN and not vacant.issuperset(range(view.count)) else set()
    )
    waiting = {*view.waiting} - going - vacant if view.desired.state is Desired.RUN else set()
    view = replace(view, vacant=vacant, waiting=waiting)
    due = {BEFORE_START: view.hooks.before_start_due, AFTER_STOP: view.hooks.after_stop_due}
    if view.hooks.running is not None and (view.workers or not due[view.hooks.running.name]):
        view = replace(view, hooks=replace(view.hooks, running=None))
    impossible = not view.sleepy or (view.window_demand == ASLEEP and view.has_live_dependents)
    return replace(view, window_demand="") if impossible else view


running = st.none() | st.builds(RunningHook, st.sampled_from([BEFORE_START, AFTER_STOP]), ends=seldom)
views = st.builds(
    ServerView,
    window_demand=st.sampled_from(["", "", "", AWAKE, ASLEEP]),
    desired=st.builds(
        DesiredState,
        st.sampled_from([Desired.RUN] * 8 + list(Desired)),
        st.builds(Overrides, out=seldom),
        generation=st.integers(1, 2),
        renewed=st.one_of(st.just({}), st.dictionaries(st.sampled_from("0123"), st.just(3))),
    ),
    count=st.integers(1, MAX_WORKERS),
    vacant=st.one_of(st.just(set()), st.sets(st.integers(0, MAX_WORKERS))),
    waiting=st.one_of(st.just(set()), st.sets(st.integers(0, MAX_WORKERS))),
    refuses=st.booleans(),
    overlap=mostly,
    may_start=mostly,
    may_stop=mostly,
    sleepy=st.booleans(),
    has_pending_request=st.booleans(),
    has_live_dependents=seldom,
    job=seldom,
    may_open=mostly,
    hooks=st.builds(HookState, seldom, seldom, running),
    listener=st.builds(
        ServerListener,
        st.sampled_from([ListenerState.OPEN, ListenerState.OPEN, *ListenerState]),
        must_reopen=seldom,
    ),
    workers=st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, MAX_WORKERS), phases),
        max_size=6,
        unique_by=lambda worker: (worker[0], worker[1]),
    ).flatmap(
        lambda rows: st.lists(mostly, min_size=len(rows), max_size=len(rows)).map(
            lambda idle: tuple(
                Worker(
                    f"{g}.{i}", g, i, PLAIN, phase, stopped_accepting=True, idle=still and phase == "ready"
                )
                for (g, i, phase), still in zip(rows, idle, strict=True)
            )
        )
    ),
).map(reachable)


@examples(600)
@given(views)
def test_any_view_at_all_is_decided_soundly(view: ServerView) -> None:
    actions = decide(view)
    after = applied(view, actions)
    check_step(view, actions, after)
    assert actions == decide(view), "nothing is remembered"


SLEEPY = ServerConfig(name="web", bind=":1", app="a:b", scale={"min": 0})
JOB = ServerConfig(name="web", command=["migrate"], job=True)


def entry_of(view: ServerView, *, armed: bool) -> Entry:
    """A server with these facts."""
    config = JOB if view.job else SLEEPY if view.sleepy else PLAIN
    entry = Entry(
        config,
        replace(view.desired),
        ObservedState(
            has_pending_request=view.has_pending_request,
            has_live_dependents=view.has_live_dependents,
            window=WindowState(view.window_demand),
        ),
        replace(view.listener, armed=config if armed else None),
        hooks=replace(view.hooks),
    )
    for index in view.vacant:
        entry.slot(index).vacant = "ended"
    for index in view.waiting:
        let_wait(entry, index)
    entry.desired.overrides = replace(entry.desired.overrides, workers=None if view.sleepy else view.count)
    entry.observed.workers = {worker.id: worker for worker in view.workers}
    return entry


@given(views, st.booleans())
def test_state_of_a_server_agrees_with_its_workers(view: ServerView, armed: bool) -> None:
    entry = entry_of(view, armed=armed)
    serves, state = bool(serving(view)), State(entry.state)
    viewed = entry.view(may_start=True, may_stop=True, may_open=True)
    assert entry.should_sleep == viewed.should_sleep
    assert entry.awaits_replacement == viewed.awaits_replacement
    assert entry.in_backoff == (viewed.in_backoff and entry.desired.state is Desired.RUN)
    assert (state is State.BACKOFF) <= entry.in_backoff
    if state is State.DRAINING and not serves:
        assert entry.is_asleep, "it falls asleep"
    else:
        assert (state in (State.RUNNING, State.DRAINING)) == (serves and not entry.wants_no_worker)
    if state in (State.RUNNING, State.DRAINING) and serves:
        assert (state is State.DRAINING) == view.desired.overrides.out
    if state in (State.STOPPED, State.DISABLED, State.FAILED, State.SLEEPING):
        assert not view.workers
    if state is State.STOPPING:
        assert entry.wants_no_worker
        assert view.workers or entry.hooks.cleans_up
    if entry.ready:
        assert state is State.RUNNING or (view.job and entry.completed)


@given(views)
def test_a_decision_that_is_under_way_is_not_taken_again(view: ServerView) -> None:
    for _ in range(4):
        actions = decide(view)
        if not actions:
            return
        view = applied(view, actions)
    raise AssertionError(f"still deciding: {decide(view)} about {view}")


@given(st.integers(1, MAX_WORKERS), seldom, seldom, seldom, seldom)
def test_server_falls_asleep_when_complete_idle_and_not_needed(
    count: int, needed: bool, out: bool, busy: bool, incomplete: bool
) -> None:
    workers = [Worker(f"1.{n}", 1, n, PLAIN, WorkerPhase.READY, out=out, idle=True) for n in range(count)]
    if busy:
        workers[0] = replace(workers[0], idle=False)
    if incomplete:
        workers.pop()
    view = ServerView(
        DesiredState(Desired.RUN, Overrides(out=out)), ServerListener(ListenerState.OPEN), HookState(),
        count=count, sleepy=True,
        has_pending_request=True, has_live_dependents=needed, workers=tuple(workers),
    )  # fmt: skip
    assert (decide(view) == [FallAsleep()]) == (not (needed or out or busy or incomplete))
