"""The reconciling function over random histories: a world that does what it decides, and everything that happens to it.

Nothing here waits or opens anything: a worker is a line in a table, and each rule is one thing that may happen next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from poolctl.core.decide import (
    Action,
    Arm,
    Attend,
    Check,
    Close,
    Disarm,
    Drain,
    Open,
    Release,
    Rotate,
    Sleep,
    Spawn,
    Stop,
    decide,
)
from poolctl.core.desired import FOLLOWS, IN_BACKOFF, Desired
from poolctl.core.view import LEAVING, Listener, Phase, View, WorkerView
from poolctl.states import State

MOST_WORKERS = 3
# Open, spawn, see ready, retire, see ended, close: no history needs more rounds than this to come to rest.
MOST_ROUNDS = 20


def applied(view: View, actions: list[Action]) -> View:
    """What an executor shows the moment it has begun to perform the actions. Checks that they can be performed."""
    workers = {worker.id: worker for worker in view.workers}
    told: set[str] = set()
    listener, armed, facts = view.listener, view.armed, dict[str, Any]()
    for action in actions:
        match action:
            case Open():
                assert listener is Listener.CLOSED
                listener = Listener.OPENING
            case Close():
                assert listener is Listener.OPEN
                leaves = view.desired is Desired.REMOVED or view.vacates
                accepting = [each for each in view.workers if each.phase not in LEAVING or not leaves]
                assert not accepting, "a listener outlives its workers"
                assert not armed, "nobody watches what is closed"
                listener = Listener.CLOSING
            case Arm():
                assert listener is Listener.OPEN
                assert not armed
                armed = True
            case Disarm():
                assert armed
                armed = False
            case Sleep():
                facts = {"called": False, "generation": view.generation + 100}
                for worker in view.staying:
                    assert worker.phase is Phase.READY
                    assert worker.idle
                    workers[worker.id] = replace(worker, phase=Phase.DRAINING)
            case Spawn(generation, index):
                assert listener is Listener.OPEN
                assert not armed, "a worker and a bell are not to compete"
                name = f"{generation}.{index}.{len(workers)}"
                taken = {(each.generation, each.index) for each in workers.values()}
                assert (generation, index) not in taken, "what leaves keeps its name until it has gone"
                # As one does that has a probe to pass first.
                workers[name] = WorkerView(name, generation, index, Phase.PLACING, resting=True)
            case Check():
                assert not view.overlap
                assert not view.checking
                facts["checking"] = True
            case Drain(name):
                assert workers[name].phase is Phase.READY
                assert not workers[name].stuck, "it can finish nothing"
                assert name not in told
                told.add(name)
                workers[name] = replace(workers[name], phase=Phase.DRAINING)
            case Stop(name):
                assert workers[name].phase is not Phase.STOPPING
                assert name not in told
                told.add(name)
                workers[name] = replace(workers[name], phase=Phase.STOPPING)
            case Release(key):
                assert key in view.abandoned
            case Rotate(name, in_rotation):
                assert workers[name].phase is Phase.READY
                assert workers[name].out is in_rotation
                workers[name] = replace(workers[name], out=not in_rotation)
            case Attend(name, accepting):
                assert workers[name].phase is Phase.READY
                assert workers[name].resting is accepting
                well = [each for each in serving(view) if not each.ko]
                assert accepting or (workers[name].ko and well), "only who is ko rests, and never all of them"
                workers[name] = replace(workers[name], resting=not accepting)
    released = {action.key for action in actions if isinstance(action, Release)}
    abandoned = tuple(key for key in view.abandoned if key not in released)
    workers_after = tuple(workers.values())
    return replace(view, listener=listener, armed=armed, abandoned=abandoned, workers=workers_after, **facts)


def serving(view: View) -> list[WorkerView]:
    return [worker for worker in view.workers if worker.phase is Phase.READY]


def complete(view: View) -> bool:
    """Whether the generation that should serve does so with all its workers."""
    present = {worker.index for worker in serving(view) if worker.generation == view.generation}
    return present.issuperset(range(view.count))


def check_step(before: View, actions: list[Action], after: View) -> None:
    """What must hold of every single decision."""
    spawns = [action for action in actions if isinstance(action, Spawn)]
    if before.vacates and before.listener is Listener.OPEN:
        assert not spawns
    if before.desired is not Desired.RUN or not before.may_start:
        assert not spawns
    if before.desired.rests:
        assert not any(isinstance(action, Open) for action in actions)
        if not before.may_stop:
            others = [action for action in actions if not isinstance(action, Release)]
            assert not others or not before.workers
    if before.desired is Desired.REFUSING:
        assert not any(isinstance(action, Open) for action in actions)
    for spawn in spawns:
        assert spawn.generation == before.generation
        assert 0 <= spawn.index < before.count
    if not before.overlap and spawns:
        assert {worker.generation for worker in before.workers} <= {before.generation}
    if not before.overlap and not before.feasible and not before.desired.rests and not before.vacates:
        ended = {action.worker for action in actions if isinstance(action, Stop)}
        old = [each for each in serving(before) if each.generation != before.generation]
        assert ended.isdisjoint(each.id for each in old), "what serves stays until another can be started"
    if not before.may_open:
        assert not any(isinstance(action, Open) for action in actions)
    assert {action.key for action in actions if isinstance(action, Release)} == set(before.abandoned)
    if Sleep() in actions:
        assert before.sleepy
        assert not before.needed
        return
    proceeds = before.desired is Desired.RUN and not before.vacates and before.listener is Listener.OPEN
    if proceeds and before.may_start:
        waiting = before.called or before.needed or not before.sleepy
        alone = all(worker.generation == before.generation for worker in before.workers)
        if waiting and (before.overlap or (alone and before.workers == tuple(before.staying))):
            going = {worker.index for worker in before.workers if worker.generation == before.generation}
            full = going.issuperset(range(before.count))
            assert after.staying or full, "somebody serves, or comes, for as long as anybody asks"
        if not waiting and not before.staying:
            assert after.armed
            assert not spawns
    if before.overlap and not before.desired.rests and not before.vacates:
        # Never a gap: a decision takes no more away than is too many.
        assert len(serving(after)) >= min(before.count, len(serving(before)))
    serves = before.desired is Desired.RUN and not before.vacates and before.listener is Listener.OPEN
    if serves and complete(before):
        # Two generations are ready for no longer than a swap.
        assert {worker.generation for worker in serving(after)} == {before.generation}
        assert len(serving(after)) == before.count or not before.overlap


def check_words(view: View) -> None:
    """What is said of a server must be true of its workers."""
    state = view.state
    if state is State.RUNNING or (state is State.DRAINING and serving(view)):
        assert (state is State.DRAINING) == view.out
    if state is State.DRAINING and not serving(view):
        assert view.asleep, "it falls asleep"
    else:
        assert (state in (State.RUNNING, State.DRAINING)) == (bool(serving(view)) and not view.desired.rests)
    if state in (State.STOPPED, State.DISABLED, State.FAILED, State.SLEEPING):
        assert not view.workers
    if state is State.SLEEPING:
        assert (view.listener, view.armed, view.ready) == (Listener.OPEN, True, False)
    if state is State.STOPPING:
        assert view.desired.rests
        assert view.workers
    if view.ready:
        assert state is State.RUNNING or (view.job and view.desired is Desired.COMPLETED)


class World(RuleBasedStateMachine):
    """One server, its workers and its listener, under everything that may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.view = View(Desired.IDLE, generation=1)
        self.newest = 1

    @initialize(
        overlap=st.booleans(), sleepy=st.booleans(), count=st.integers(1, MOST_WORKERS), runs=st.booleans()
    )
    def begin(self, overlap: bool, sleepy: bool, count: int, runs: bool) -> None:
        self.change(overlap=overlap, sleepy=sleepy, count=count)
        if runs:
            # By chance hardly a history would get that far.
            self.change(desired=Desired.RUN, called=True)
            for _ in range(5):
                self.everything_goes_well()

    def change(self, **facts: Any) -> None:
        """Something is different now: decide until there is nothing more to decide."""
        self.view = replace(self.view, **facts)
        for _ in range(3):
            actions = decide(self.view)
            after = applied(self.view, actions)
            check_step(self.view, actions, after)
            check_words(after)
            self.view = after
            self.newest = max(self.newest, after.generation)
            if not actions:
                return
        assert not decide(self.view), "one decision is performed before the next is asked for"

    def become(self, desired: Desired, **facts: Any) -> None:
        """This is wanted now, if that may follow."""
        if desired in FOLLOWS[self.view.desired]:
            self.change(desired=desired, **facts)

    def after_death(self, verdict: str) -> dict[str, Any]:
        """What is wanted after a worker has ended by itself: what was given up stays so."""
        desired = AFTER_DEATH[verdict]
        return {} if self.view.desired.rests or verdict == "again" else {"desired": desired}

    def with_phase(self, worker: WorkerView, phase: Phase | None) -> tuple[WorkerView, ...]:
        others = [each for each in self.view.workers if each.id != worker.id]
        return tuple(others if phase is None else [*others, replace(worker, phase=phase)])

    def any_in(self, data: st.DataObject, *phases: Phase) -> WorkerView:
        return data.draw(st.sampled_from([each for each in self.view.workers if each.phase in phases]))

    def has(self, *phases: Phase) -> bool:
        return any(worker.phase in phases for worker in self.view.workers)

    # What people order.

    @rule()
    def start(self) -> None:
        self.become(Desired.RUN)

    @rule()
    def stop(self) -> None:
        self.become(Desired.STOPPED, called=False)

    @rule()
    def restart(self) -> None:
        if any(worker.generation == self.view.generation for worker in self.view.workers):
            self.newest += 1
            self.change(generation=self.newest, feasible=False)
        self.start()

    @rule(count=st.integers(1, MOST_WORKERS))
    def scale(self, count: int) -> None:
        self.change(count=count)

    @rule(out=st.booleans())
    def drain_or_undrain(self, out: bool) -> None:
        self.change(out=out)
        if self.view.desired is Desired.RUN and not self.view.vacates and self.view.listener is Listener.OPEN:
            assert all(worker.out is out for worker in serving(self.view))

    @rule()
    def must_vacate(self) -> None:
        self.newest += 1
        self.change(generation=self.newest, vacates=self.view.listener is Listener.OPEN)

    @rule(may_open=st.booleans())
    def another_has_its_address(self, may_open: bool) -> None:
        self.change(may_open=may_open)

    @precondition(lambda self: self.view.listener is Listener.OPEN and not self.view.vacates)
    @rule()
    def moves(self) -> None:
        self.newest += 1
        self.change(generation=self.newest, listener=Listener.CLOSED, armed=False)

    @rule()
    def nobody_accepts_from_its_former_address(self) -> None:
        self.change(abandoned=("127.0.0.1:1",))

    @rule()
    def remove(self) -> None:
        self.become(Desired.REMOVED, out=False)

    @precondition(lambda self: self.view.desired is Desired.REMOVED)
    @rule()
    def come_back(self) -> None:
        self.become(Desired.IDLE)

    # What others do.

    @rule(may_start=st.booleans(), may_stop=st.booleans())
    def neighbours_change(self, may_start: bool, may_stop: bool) -> None:
        self.change(may_start=may_start, may_stop=may_stop)

    @precondition(lambda self: self.view.armed)
    @rule()
    def rings(self) -> None:
        self.change(armed=False, called=True)

    @precondition(lambda self: self.view.sleepy)
    @rule(needed=st.booleans())
    def dependents_change(self, needed: bool) -> None:
        self.change(needed=needed)

    @precondition(lambda self: self.has(Phase.READY))
    @rule(data=st.data(), idle=st.booleans())
    def traffic_changes(self, data: st.DataObject, idle: bool) -> None:
        worker = self.any_in(data, Phase.READY)
        others = [each for each in self.view.workers if each.id != worker.id]
        self.change(workers=(*others, replace(worker, idle=idle)))

    @precondition(lambda self: self.has(Phase.READY))
    @rule(data=st.data(), stuck=st.booleans())
    def one_is_stuck(self, data: st.DataObject, stuck: bool) -> None:
        worker = self.any_in(data, Phase.READY)
        others = [each for each in self.view.workers if each.id != worker.id]
        self.change(workers=(*others, replace(worker, stuck=stuck)))

    @precondition(lambda self: self.has(Phase.READY))
    @rule(data=st.data(), ko=st.booleans())
    def probes_change(self, data: st.DataObject, ko: bool) -> None:
        worker = self.any_in(data, Phase.READY)
        others = [each for each in self.view.workers if each.id != worker.id]
        self.change(workers=(*others, replace(worker, ko=ko)))

    @precondition(lambda self: self.has(Phase.READY))
    @rule(data=st.data())
    def one_is_relieved(self, data: st.DataObject) -> None:
        self.change(workers=self.with_phase(self.any_in(data, Phase.READY), Phase.STOPPING))

    # What comes of the actions.

    @precondition(lambda self: self.view.listener is Listener.OPENING)
    @rule(well=st.booleans(), verdict=st.sampled_from(["again", "later", "failed"]))
    def open_ends(self, well: bool, verdict: str) -> None:
        self.change(
            listener=Listener.OPEN if well else Listener.CLOSED, **({} if well else self.after_death(verdict))
        )

    @precondition(lambda self: self.view.listener is Listener.CLOSING)
    @rule()
    def close_ends(self) -> None:
        self.change(listener=Listener.CLOSED, vacates=False)

    @precondition(lambda self: self.has(Phase.PLACING))
    @rule(data=st.data())
    def placed(self, data: st.DataObject) -> None:
        worker = self.any_in(data, Phase.PLACING)
        self.change(workers=self.with_phase(worker, Phase.STARTING))

    @precondition(lambda self: self.has(Phase.STARTING))
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        worker = self.any_in(data, Phase.STARTING)
        self.change(workers=self.with_phase(worker, Phase.READY), called=True)

    @precondition(lambda self: self.has(*LEAVING))
    @rule(data=st.data())
    def ended_as_told(self, data: st.DataObject) -> None:
        self.change(workers=self.with_phase(self.any_in(data, *LEAVING), None))

    @precondition(lambda self: self.has(Phase.PLACING, Phase.STARTING, Phase.READY))
    @rule(data=st.data(), verdict=st.sampled_from(["again", "later", "failed", "done"]))
    def dies(self, data: st.DataObject, verdict: str) -> None:
        worker = self.any_in(data, Phase.PLACING, Phase.STARTING, Phase.READY)
        left = self.with_phase(worker, None)
        facts: dict[str, Any] = {"workers": left}
        older = [each.generation for each in left if each.phase is Phase.READY]
        older = [generation for generation in older if generation != worker.generation]
        if worker.generation == self.view.generation:
            if worker.phase is not Phase.READY and older:
                facts["generation"] = max(older)  # the replacement failed: what serves stays
            else:
                facts |= self.after_death(verdict)
        self.change(**facts)

    @precondition(lambda self: self.view.checking)
    @rule(well=st.booleans())
    def check_ends(self, well: bool) -> None:
        facts: dict[str, Any] = {"checking": False, "feasible": True}
        older = [each.generation for each in serving(self.view) if each.generation != self.view.generation]
        if not well and older:
            facts["generation"] = max(older)  # what serves stays
        self.change(**facts)

    # Time.

    @precondition(lambda self: self.view.desired in IN_BACKOFF)
    @rule()
    def backoff_is_over(self) -> None:
        self.become(Desired.RUN)

    @precondition(lambda self: self.view.desired is Desired.BACKOFF)
    @rule()
    def backoff_takes_long(self) -> None:
        self.become(Desired.REFUSING)

    def teardown(self) -> None:
        """Whatever has happened: once nothing more goes wrong, what is wanted becomes what is there."""
        desired = Desired.RUN if self.view.desired in IN_BACKOFF else self.view.desired
        self.change(desired=desired, may_start=True, may_stop=True, may_open=True, needed=False)
        for _ in range(MOST_ROUNDS):
            self.everything_goes_well()
        view = self.view
        assert decide(view) == []
        if view.desired.rests:
            assert (view.workers, view.listener) == ((), Listener.CLOSED)
            assert view.state in (State.STOPPED, State.FAILED)
            assert not view.armed
        elif view.asleep:
            assert (view.workers, view.state) == ((), State.SLEEPING)
        else:
            assert not all(worker.idle for worker in view.workers) or not view.sleepy
            assert not view.armed
            assert view.listener is Listener.OPEN
            assert {worker.phase for worker in view.workers} == {Phase.READY}
            well = {worker.id for worker in view.workers if not worker.ko}
            accepting = {worker.id for worker in view.workers if not worker.resting}
            assert accepting == well or (accepting and not well), "who is well accepts, or else somebody"
            found = sorted((worker.generation, worker.index) for worker in view.workers)
            assert found == [(view.generation, index) for index in range(view.count)]
            assert view.ready is (bool(well) and not view.out)
            assert {worker.out for worker in view.workers} == {view.out}

    def everything_goes_well(self) -> None:
        reached = {Listener.OPENING: Listener.OPEN, Listener.CLOSING: Listener.CLOSED}
        step = {Phase.PLACING: Phase.STARTING, Phase.STARTING: Phase.READY, Phase.READY: Phase.READY}
        closes = self.view.listener is Listener.CLOSING
        self.change(
            listener=reached.get(self.view.listener, self.view.listener),
            checking=False,
            feasible=self.view.feasible or self.view.checking,
            vacates=self.view.vacates and not closes,
            workers=tuple(
                replace(worker, phase=step[worker.phase])
                for worker in self.view.workers
                if worker.phase not in LEAVING
            ),
        )


AFTER_DEATH = {
    "again": Desired.RUN,
    "later": Desired.BACKOFF,
    "failed": Desired.FAILED,
    "done": Desired.COMPLETED,
}


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# What is interesting happens to servers that should run, so most of the views are of such.
seldom = st.sampled_from([False, False, False, True])
mostly = seldom.map(lambda value: not value)
phases = st.sampled_from([Phase.READY, Phase.READY, *Phase])

views = st.builds(
    View,
    desired=st.sampled_from([Desired.RUN] * 8 + list(Desired)),
    generation=st.integers(1, 2),
    count=st.integers(1, MOST_WORKERS),
    overlap=mostly,
    may_start=mostly,
    may_stop=mostly,
    sleepy=st.booleans(),
    called=st.booleans(),
    needed=seldom,
    job=seldom,
    out=seldom,
    vacates=seldom,
    may_open=mostly,
    listener=st.sampled_from([Listener.OPEN, Listener.OPEN, *Listener]),
    workers=st.lists(
        st.tuples(st.integers(1, 2), st.integers(0, MOST_WORKERS), phases),
        max_size=6,
        unique_by=lambda worker: (worker[0], worker[1]),
    ).flatmap(
        lambda rows: st.lists(mostly, min_size=len(rows), max_size=len(rows)).map(
            lambda idle: tuple(
                WorkerView(f"{g}.{i}", g, i, phase, idle=phase is Phase.READY and still)
                for (g, i, phase), still in zip(rows, idle, strict=True)
            )
        )
    ),
)


@settings(max_examples=600)
@given(views)
def test_any_view_at_all_is_decided_soundly(view: View) -> None:
    actions = decide(view)
    after = applied(view, actions)
    check_step(view, actions, after)
    check_words(view)
    assert actions == decide(view), "nothing is remembered"


@given(views)
def test_a_decision_that_is_under_way_is_not_taken_again(view: View) -> None:
    for _ in range(4):
        actions = decide(view)
        if not actions:
            return
        view = applied(view, actions)
    raise AssertionError(f"still deciding: {decide(view)} about {view}")


@given(st.integers(1, MOST_WORKERS), seldom, seldom, seldom, seldom)
def test_it_falls_asleep_when_it_is_complete_idle_and_nobody_needs_it(
    count: int, needed: bool, out: bool, busy: bool, incomplete: bool
) -> None:
    workers = [WorkerView(f"1.{n}", 1, n, Phase.READY, out=out, idle=True) for n in range(count)]
    if busy:
        workers[0] = replace(workers[0], idle=False)
    if incomplete:
        workers.pop()
    view = View(
        desired=Desired.RUN, generation=1, count=count, sleepy=True, called=True, needed=needed, out=out,
        listener=Listener.OPEN, workers=tuple(workers),
    )  # fmt: skip
    assert (decide(view) == [Sleep()]) == (not (needed or out or busy or incomplete))
