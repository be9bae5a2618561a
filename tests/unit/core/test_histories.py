"""Random histories of two servers: the core with its real executor, and a runner and a clock that the test moves.

Nothing waits or opens anything. Each rule is one thing that may happen next: a command, the end of one operation of the
runner, the death of a worker, time. Whatever has happened: once nothing more goes wrong, what is wanted is there.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from poolctl import ServerConfig
from poolctl.core.core import Core
from poolctl.core.decide import ASLEEP, AWAKE, ServerView, decide
from poolctl.core.server_entry import Entry, record_of, restore
from poolctl.core.server_state import ListenerState, Overrides
from poolctl.core.worker import LEAVING, WorkerPhase
from poolctl.runners.runner_protocol import Exit
from poolctl.states import State
from poolctl.time_windows import period_at
from tests.examples import examples
from tests.manual_clock import ManualClock
from tests.unit.core.ordered_core import RecordedEvents
from tests.unit.core.stepped_runner import SteppedLoop, SteppedRunner
from tests.unit.core.test_decide_properties import applied, check_step

NAMES = ("db", "api")
BACKOFF = {"limit": 3, "window": 60, "backoff": {"initial": 1, "max": 40, "jitter": 0}}
MAX_WORKERS = 3
# Longer than any backoff, start_timeout and window.
LONG_SECONDS = 100.0

WINDOWS = (
    {"awake": ["*/3 * * * *"]},
    {"asleep": ["*/3 * * * *"]},
    {"asleep": ["*/2 * * * *"], "awake": ["1-59/4 * * * *"]},
)

HOOKS = ({"before_start": ["a"]}, {"after_stop": ["b"]}, {"before_start": ["a"], "after_stop": ["b"]})

servers = st.sampled_from(NAMES)
options = st.fixed_dictionaries(
    {
        "workers": st.integers(1, MAX_WORKERS),
        "policy": st.sampled_from(["on-failure", "always"]),
        "overlap": st.booleans(),
        "sleeps": st.booleans(),
        "windows": st.sampled_from([{}, {}, *WINDOWS]),
        "port": st.sampled_from([8001, 8002]),
        "hooks": st.sampled_from([{}, {}, *HOOKS]),
    }
)


def configured(name: str, depends: bool, given: dict[str, Any]) -> ServerConfig:
    keys: dict[str, Any] = {}
    if given["sleeps"]:
        keys["scale"] = {"min": 0, "idle": "10s", **given["windows"]}
    if not given["sleeps"]:
        keys["workers"] = given["workers"] if given["overlap"] else 1
    if given["hooks"]:
        keys["hooks"] = given["hooks"]
    if depends and name == "api":
        keys["depends_on"] = ["db"]
    port = given["port"] + (10 if name == "api" else 0)
    return ServerConfig(
        name=name, bind=f"127.0.0.1:{port}", app="any:app", overlap=given["overlap"],
        restart={"policy": given["policy"], **BACKOFF}, **keys
    )  # fmt: skip


class CheckedCore(Core):
    """A core whose decisions are checked: each must be sound by itself."""

    def view(self, entry: Entry) -> ServerView:
        view = super().view(entry)
        actions = decide(view)
        check_step(view, actions, applied(view, actions))
        return view


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock()
        self.loop = SteppedLoop(self.clock)
        self.runner = SteppedRunner()

    @initialize(db=options, api=options, depends=st.booleans(), runs=st.booleans())
    def begin(self, db: dict[str, Any], api: dict[str, Any], depends: bool, runs: bool) -> None:
        self.depends = depends
        configs = [configured("db", depends, db), configured("api", depends, api)]
        self.core = CheckedCore(configs, self.runner, self.clock, RecordedEvents())
        if runs:
            # By chance hardly a history would get that far.
            for entry in self.core.entries.values():
                self.command(self.core.start, entry)
            self.everything_goes_well()

    def command(self, work: Callable[..., Any], *args: Any, **options: Any) -> None:
        async def ordered() -> None:
            work(*args, **options)

        self.loop.run_until_complete(ordered())
        self.loop.settle()
        self.check()

    def check(self) -> None:
        """Invariants that hold at every moment."""
        for entry in self.core.entries.values():
            self.check_queued(entry)
            self.check_state(entry)
            generations = {
                worker.generation
                for worker in entry.observed.workers.values()
                if worker.placement is not None
            }
            if not entry.config.overlap and all(
                not worker.config.overlap for worker in entry.observed.workers.values()
            ):
                ready = {
                    worker.generation
                    for worker in entry.observed.workers.values()
                    if worker.phase is WorkerPhase.READY
                }
                assert len(ready) <= 1, "two generations that must not run at once"
            running = [worker for worker in self.runner.running if worker.startswith(f"{entry.name}.")]
            hook = entry.hooks.running is not None and entry.hooks.running.placement is not None
            assert generations or hook or not running
            again = Entry(entry.config)
            restore(again, record_of(entry))
            assert (again.wanted, again.wants_no_worker, again.desired.overrides) == (
                entry.wanted,
                entry.wants_no_worker,
                entry.desired.overrides,
            )
            due = again.hooks.before_start_due, again.hooks.after_stop_due
            assert due == (entry.hooks.before_start_due, entry.hooks.after_stop_due)

    def check_queued(self, entry: Entry) -> None:
        """Where no operation is under way, whose end brings the next decision, there is nothing to decide."""
        held = (
            entry.config,
            entry.listener.bound,
            *entry.listener.previous_configs,
            *entry.listener.releasing,
        )
        whats = {entry.name, *(config.key for config in held if config is not None)}
        if not any(
            step.what in whats or step.what.startswith(f"{entry.name}.") for step in self.runner.steps
        ):
            assert not decide(self.core.view(entry)), f"{entry.name} is not decided on"
            scale = entry.config.scale
            if entry.wanted and (scale.awake or scale.asleep):
                windows = ((ASLEEP, scale.asleep), (AWAKE, scale.awake))
                assert entry.observed.window.state == period_at(windows, self.clock.time()).state, (
                    "a window is late"
                )

    @staticmethod
    def check_state(entry: Entry) -> None:
        """The state in one word agrees with the workers."""
        assert entry.desired.queued_start is None or entry.is_stopping
        state, workers = State(entry.state), entry.observed.workers.values()
        serves = any(worker.phase is WorkerPhase.READY for worker in workers)
        if state is State.DRAINING and not serves:
            assert entry.should_sleep, "it falls asleep"
        else:
            assert (state in (State.RUNNING, State.DRAINING)) == (serves and not entry.wants_no_worker)
        if serves and not entry.wants_no_worker:
            assert (state is State.DRAINING) == entry.out_of_rotation
        if state in (State.STOPPED, State.DISABLED, State.FAILED, State.SLEEPING):
            assert not workers
        if state is State.SLEEPING:
            assert entry.window_demand == ASLEEP or entry.listener.state is ListenerState.OPEN
            assert not entry.ready
        if entry.wanted and entry.window_demand == AWAKE:
            assert not entry.should_sleep
        if state is State.STOPPING:
            assert entry.wants_no_worker
            assert workers or entry.hooks.cleans_up
        if entry.ready:
            assert state is State.RUNNING

    def entry(self, name: str) -> Entry | None:
        return self.core.entries.get(name)

    # Commands.

    @rule(name=servers, alone=st.booleans(), after_stop=st.booleans())
    def start(self, name: str, alone: bool, after_stop: bool) -> None:
        if entry := self.entry(name):
            self.command(self.core.start, entry, ignore_dependencies=alone, after_stop=after_stop)

    @rule(name=servers, kill=st.booleans())
    def stop(self, name: str, kill: bool) -> None:
        if entry := self.entry(name):
            self.command(self.core.stop, entry, kill=kill)

    @rule(name=servers)
    def restart(self, name: str) -> None:
        if (entry := self.entry(name)) and not entry.is_disabled:
            self.command(self.core.restart, entry)

    @rule(name=servers, workers=st.integers(1, MAX_WORKERS), out=st.booleans())
    def scale_or_drain(self, name: str, workers: int, out: bool) -> None:
        if entry := self.entry(name):
            count = workers if entry.config.overlap else None
            self.command(
                self.core.replace_overrides, entry, Overrides(count, entry.desired.overrides.disabled, out)
            )

    @rule(name=servers, disabled=st.booleans())
    def disable_or_enable(self, name: str, disabled: bool) -> None:
        if entry := self.entry(name):
            self.command(self.core.disable if disabled else self.core.enable_and_start, entry)

    @rule(name=servers, keys=options)
    def reload(self, name: str, keys: dict[str, Any]) -> None:
        """The server is removed, or added, or has another configuration."""
        config, entry = configured(name, self.depends, keys), self.entry(name)
        if entry is None or entry.removed:
            self.command(self.core.add, config)
            self.command(self.core.start, self.core.entries[name])
        else:
            self.command(self.core.change, entry, config, live=False)

    @rule(name=servers)
    def remove(self, name: str) -> None:
        if entry := self.entry(name):
            self.command(self.core.schedule_removal, entry)

    # Outcomes of the actions, and events without an action.

    @precondition(lambda self: self.runner.steps)
    @rule(data=st.data(), well=st.sampled_from([True, True, False]))
    def operation_ends(self, data: st.DataObject, well: bool) -> None:
        step = self.runner.steps[data.draw(st.integers(0, len(self.runner.steps) - 1))]
        self.command(step.future.set_result, well)

    @precondition(lambda self: self.runner.running)
    @rule(data=st.data(), status=st.sampled_from([0, 1]))
    def worker_dies(self, data: st.DataObject, status: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.runner.running)))
        self.command(self.runner.end, worker, Exit.from_returncode(status))

    @precondition(lambda self: self.runner.armed)
    @rule(data=st.data())
    def request_comes(self, data: st.DataObject) -> None:
        self.command(self.runner.ring, data.draw(st.sampled_from(sorted(self.runner.armed))))

    @precondition(lambda self: self.ready_workers())
    @rule(data=st.data(), what=st.sampled_from(["idle", "busy", "stuck", "relieved", "old", "expired"]))
    def worker_changes(self, data: st.DataObject, what: str) -> None:
        entry, worker = data.draw(st.sampled_from(self.ready_workers()))
        match what:
            case "idle" | "busy":
                self.command(self.core.set_idle, entry, worker.id, what == "idle")
            case "stuck":
                self.command(self.core.mark_stuck, entry, worker, not worker.stuck)
            case "relieved":
                self.command(self.core.drain_then_replace, entry, worker)
            case "old":
                self.command(self.core.replace_worker, entry, worker.id)
            case "expired":
                self.command(self.core.mark_expired, entry, worker.id)

    def ready_workers(self) -> list[tuple[Entry, Any]]:
        entries = self.core.entries.values() if hasattr(self, "core") else ()
        return [
            (entry, worker)
            for entry in entries
            for worker in entry.observed.workers.values()
            if worker.phase is WorkerPhase.READY
        ]

    @rule(seconds=st.sampled_from([1.0, 10.0, 35.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.settle()
        self.check()

    # The end.

    def everything_goes_well(self) -> None:
        for _ in range(60):
            if not self.runner.steps:
                return
            for step in list(self.runner.steps):
                if not step.future.done():
                    step.future.set_result(True)
            self.loop.settle()
        raise AssertionError(f"it does not come to rest: {self.runner.steps}")

    def killed_processes_end(self) -> None:
        """SIGKILL has an effect in the end, though a stop has given up waiting for it."""
        for entry in list(self.core.entries.values()):
            for worker in list(entry.observed.workers.values()):
                if worker.unstoppable and worker.id in self.runner.running:
                    self.runner.end(worker.id, Exit(signal=signal.SIGKILL))
        self.loop.settle()

    def teardown(self) -> None:
        try:
            if hasattr(self, "core"):
                for _ in range(4):
                    self.everything_goes_well()
                    self.killed_processes_end()
                    self.clock.advance(LONG_SECONDS)
                    self.loop.settle()
                self.everything_goes_well()
                for entry in self.core.entries.values():
                    self.check_converged(entry)
                entries = self.core.entries.values()
                workers = {worker for entry in entries for worker in entry.observed.workers}
                assert set(self.runner.running) == workers, "no worker is forgotten"
                entries = self.core.entries.values()
                held = [
                    config.key
                    for entry in entries
                    for config in (entry.listener.bound, *entry.listener.previous_configs)
                    if config is not None
                ]
                assert self.runner.opened == set(held), "no listener is forgotten"
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()

    def check_converged(self, entry: Entry) -> None:
        phases = {worker.phase for worker in entry.observed.workers.values()}
        if entry.removed and not self.core.servers.may_stop(entry):
            return  # what depends on it goes on with it
        if entry.wants_no_worker:
            assert (phases, entry.listener.state, entry.listener.bound) == (
                set(),
                ListenerState.CLOSED,
                None,
            ), entry
        elif entry.is_asleep:
            assert (phases, entry.state) == (set(), "sleeping")
            assert entry.listener.state is (
                ListenerState.CLOSED if entry.window_demand == ASLEEP else ListenerState.OPEN
            )
        elif self.core.servers.may_start(entry):
            assert phases == {WorkerPhase.READY}
            assert entry.is_fully_ready
            vacant = sum(bool(slot.vacant) for slot in entry.observed.slots.values())
            assert len(entry.observed.workers) == entry.size - vacant
            assert (entry.listener.state, entry.listener.previous_configs, entry.listener.must_reopen) == (
                ListenerState.OPEN,
                [],
                False,
            )
        assert not phases & LEAVING
        assert entry.hooks.running is None
        assert not entry.hooks.after_stop_due


TestHistories = Histories.TestCase
TestHistories.settings = examples(80, stateful_step_count=40)
