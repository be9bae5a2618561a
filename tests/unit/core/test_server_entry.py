"""Entries: which changes of the desired state are allowed, what a successor restores, and who may change them."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl.config import ServerConfig
from poolctl.core.decide import ASLEEP, AWAKE
from poolctl.core.server_entry import (
    Availability,
    Entry,
    ObservedState,
    ScheduleState,
    Slot,
    record_of,
    restore,
)
from poolctl.core.server_state import (
    ALLOWED_CHANGES,
    Desired,
    DesiredState,
    HookState,
    ImpossibleChange,
    ListenerState,
    Overrides,
    RunningHook,
    ServerListener,
)
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.errors import ServerError
from poolctl.json_form import from_json, to_json
from poolctl.runners.runner_protocol import Placement
from poolctl.states import Status
from poolctl.time_windows import WindowState
from tests.needs import needs
from tests.unit.core.ordered_core import OrderedCore, let_wait, turns, web


def entry(desired: Desired = Desired.IDLE, **keys: Any) -> Entry:
    served = {} if "command" in keys else {"bind": ":1", "app": "a:b"}
    server = Entry(ServerConfig(name="web", **served, **keys))
    server.desired.state = desired
    return server


def add_worker(
    server: Entry,
    phase: WorkerPhase = WorkerPhase.READY,
    index: int = 0,
    *,
    generation: int = 1,
    **values: Any,
) -> Worker:
    worker = Worker(f"web.{generation}.{index}", generation, index, server.config, phase, **values)
    server.observed.workers[worker.id] = worker
    return worker


HOOKS = {"before_start": ["true"], "after_stop": ["true"]}
JOB = {"command": ["true"], "job": True}
SCHEDULED = JOB | {"every": "0 3 * * *"}
SLEEPER = {"scale": {"min": 0}}
PROBED = {"health": {"liveness": {"http": "/"}}}


def test_every_value_says_what_may_follow_it() -> None:
    assert ALLOWED_CHANGES.keys() == set(Desired)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Desired.IDLE, Desired.COMPLETED),
        (Desired.STOPPED, Desired.FAILED),
        (Desired.FAILED, Desired.COMPLETED),
        (Desired.REMOVED, Desired.RUN),
    ],
)
def test_impossible_change_of_the_desired_state_is_refused(before: Desired, after: Desired) -> None:
    server = entry()
    server.desired.state = before
    with pytest.raises(ImpossibleChange, match=f"web: {before} does not become {after}"):
        server.set_desired(after)
    assert server.desired.state is before


def test_backoffs_of_all_workers_end_with_an_order() -> None:
    server = entry(workers=2)
    server.set_desired(Desired.RUN)
    timers = [let_wait(server, 0), let_wait(server, 1)]
    assert server.in_backoff
    server.set_desired(Desired.STOPPED)
    assert all(timer.cancelled() for timer in timers)
    assert not server.in_backoff
    server.set_desired(Desired.RUN)
    assert server.state == "starting"


def test_server_is_in_backoff_only_if_each_of_its_workers_waits_or_has_ended() -> None:
    server = entry(Desired.RUN, workers=3)
    let_wait(server, 0)
    server.slot(1).vacant = "ended"
    assert server.state == "starting"
    let_wait(server, 2)
    assert server.state == "backoff"
    add_worker(server, WorkerPhase.READY)
    assert server.state == "running"


def test_history_of_workers_that_the_server_no_longer_has_is_forgotten() -> None:
    server = entry(Desired.RUN, workers=2)
    timer = let_wait(server, 2)
    server.slot(1).vacant = "failed"
    server.forget_surplus_slots()
    assert (list(server.observed.slots), timer.cancelled()) == ([1], True)


def test_server_without_a_worker_that_has_ended_for_good_is_healthy_with_a_warning() -> None:
    server = entry(Desired.RUN, workers=2)
    add_worker(server, WorkerPhase.READY)
    assert (server.health, server.is_fully_ready) == (Status.OK, False)
    server.slot(1).vacant = "ended"
    assert (server.health, server.is_fully_ready) == (Status.WARN, True)
    server.fill_vacant_slots()
    assert (server.health, server.is_fully_ready) == (Status.OK, False)


async def test_a_server_that_a_command_has_stopped_stays_so_when_it_is_disabled_and_enabled_by_a_reload() -> (
    None
):
    pool = OrderedCore(web())
    await pool.start()
    server = pool.core.entries["web"]
    await pool.stop("web")
    for disabled in (True, False):
        pool.core.change(server, web(disabled=disabled), live=True)
        assert server.desired.state is Desired.STOPPED


async def test_a_server_that_ran_until_it_was_disabled_runs_again_when_it_is_enabled() -> None:
    pool = OrderedCore(web())
    await pool.start()
    server = pool.core.entries["web"]
    pool.core.change(server, web(disabled=True), live=True)
    assert server.desired.state is Desired.IDLE
    pool.core.change(server, web(), live=True)
    assert server.desired.state is Desired.RUN


PACKAGE = Path(poolctl.__file__).parent
VALUES = {
    "desired": DesiredState,
    "observed": ObservedState,
    "listener": ServerListener,
    "schedule": ScheduleState,
    "hooks": HookState,
}
OWNED = {field.name for kind in (Entry, Worker) for field in fields(kind)} - {"config"}
MUTATORS = {"append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update"}


def changes(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each change of an attribute that an entry or a worker has, of another object than `self`."""
    for node in ast.walk(ast.parse(source)):
        targets: list[ast.expr] = []
        if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, (ast.Assign, ast.Delete)):
            targets = [element for target in node.targets for element in getattr(target, "elts", [target])]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in MUTATORS:
                targets = [node.func.value]
            elif node.func.attr in ("set_desired", "begin_generation"):
                yield node.lineno, ast.unparse(node.func)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            yield node.lineno, ast.unparse(node)
        for target in targets:
            while isinstance(target, ast.Subscript):
                target = target.value
            if isinstance(target, ast.Attribute) and is_owned(ast.unparse(target.value), target.attr):
                yield node.lineno, ast.unparse(target)


def is_owned(owner: str, name: str) -> bool:
    """Whether the core owns this attribute of the expression `owner`."""
    value = VALUES.get(owner.rpartition(".")[2])
    return (name in OWNED and owner != "self") or (
        value is not None and name in {field.name for field in fields(value)}
    )


@pytest.mark.slow
def test_only_the_core_changes_an_entry_or_a_worker() -> None:
    writes = [
        f"{path.relative_to(PACKAGE)}:{line} changes {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "core" and "poolctl.core" in (source := path.read_text())
        for line, what in changes(source)
    ]
    assert writes == []


def test_the_check_sees_every_kind_of_change() -> None:
    source = (
        "entry.observed.restarts += 1\nentry.desired, other = 1, 2\nentry.observed.workers['a'] = 1\n"
        "del entry.observed.workers['a']\nentry.observed.warnings.append('x')\nentry.set_desired(1)\n"
        "setattr(entry, 'files', {})\nself.restarts = 1\nprint(entry.observed.restarts)\n"
    )
    assert [line for line, _ in changes(source)] == [1, 2, 3, 4, 5, 6, 7]


PERSISTED = (DesiredState, ObservedState, ServerListener, ScheduleState, HookState)


def value_with(entry: Entry, name: str) -> Any:
    """The value of the entry that has the field."""
    values = (entry.desired, entry.observed, entry.listener, entry.schedule, entry.hooks)
    return next(value for value in values if hasattr(value, name))


def test_every_field_of_an_entrys_values_says_whether_it_is_persisted() -> None:
    undeclared = [
        field.name for kind in PERSISTED for field in fields(kind) if "persisted" not in field.metadata
    ]
    assert undeclared == [], "declare them with persisted() or transient()"


def test_the_record_of_a_new_entry_is_empty() -> None:
    assert record_of(entry()) == {}


def test_every_persisted_field_is_restored() -> None:
    values: dict[str, Any] = {
        "source": ({"name": "web"}, "/srv"), "ignore_dependencies": True, "generation": 3, "newest": 4,
        "code_since": 1.5, "preload_problem": "it opened a thread", "files": {"tls": "12ab"},
        "certificate_ends": 2.5, "has_pending_request": True, "restarts": 2, "renewed": {"0": 4},
        "restarting": 3, "unproven": 3,
        "recoveries": {"0": [3.0]}, "recovering": {"step": "restart"}, "automatic": 4,
        "stopped_with": ["db"], "socket_found": "program", "overlap_found": "no",
        "before_start_due": True, "after_stop_due": True,
        "next_run": 5.5, "run_since": 6.5, "last_run": {"result": "failed"},
        "slots": {1: Slot([1.0], "failed", failed_attempts=2, spent=True, short_lives=3)}, "was_up": True,
            "ended_at": 7.5, "last_line": "done",
    }  # fmt: skip
    before, after = entry(), entry()
    for name, value in values.items():
        setattr(value_with(before, name), name, value)
    before.desired.state, before.desired.overrides = (
        Desired.FAILED,
        Overrides(workers=3, disabled=False, out=True),
    )
    before.observed.failure = ServerError(
        "exited with status 1: Error: no settings", name="web", hint="poolctl logs web"
    )
    restore(after, json.loads(json.dumps(record_of(before))))
    persisted = {field.name for kind in PERSISTED for field in fields(kind) if field.metadata["persisted"]}
    assert persisted == {*values, "state", "overrides", "failure"}
    assert [getattr(value_with(after, name), name) for name in values if name != "source"] == [
        value for name, value in values.items() if name != "source"
    ]
    assert (after.desired.source, after.desired.state, after.desired.overrides) == (
        [{"name": "web"}, "/srv"], before.desired.state, before.desired.overrides,
    )  # fmt: skip
    assert after.observed.failure is not None
    assert after.observed.failure.to_dict() == before.observed.failure.to_dict()


def test_a_successor_does_not_wait_for_the_end_of_a_backoff() -> None:
    server = entry(Desired.RUN)
    let_wait(server)
    assert record_of(server) == {"desired": "run"}


def test_state_of_a_job_that_has_ended_with_0_is_completed() -> None:
    job = Entry(ServerConfig(name="job", job=True, command=["true"]))
    job.desired.state = Desired.COMPLETED
    assert job.state == "completed"
    assert not job.keeps_dependencies_awake


@pytest.mark.parametrize(
    ("desired", "missing", "health"),
    [
        (Desired.STOPPED, False, Status.UNKNOWN),
        (Desired.REMOVED, False, Status.UNKNOWN),
        (Desired.FAILED, True, Status.KO),
        (Desired.RUN, True, Status.UNKNOWN),
    ],
)
def test_server_without_a_worker_is_missing_unless_it_was_stopped(
    desired: Desired, missing: bool, health: Status
) -> None:
    server = entry(desired)
    assert (server.is_missing, server.health) == (missing, health)
    assert not server.ready
    assert not server.is_responsive


def test_completed_job_is_ready_and_a_completed_server_is_not() -> None:
    job = Entry(ServerConfig(name="job", job=True, command=["true"]))
    server = entry()
    for finished in (job, server):
        finished.desired.state = Desired.COMPLETED
    assert (job.ready, job.is_missing, job.health) == (True, False, Status.OK)
    assert (server.ready, server.is_responsive) == (False, False)
    assert job.is_fully_stopped


# Up and down, rise and fall, over the life of a server; time is given.


def test_a_server_that_starts_runs_fails_and_comes_back() -> None:
    spans = Availability()
    for at, state in (
        (100, "starting"),
        (103, "running"),
        (203, "backoff"),
        (205, "starting"),
        (210, "running"),
    ):
        spans.note(at, state=state)
    spans.add_elapsed(310)
    assert (spans.uptime, spans.downtime) == (200, 10)
    assert (spans.risetime, spans.falltime) == (3, 7)
    assert (spans.rise, spans.fall) == (2, 1)
    assert spans.sli == 200 / 210
    assert spans.status == "ok"


def test_while_it_is_off_no_time_is_counted_and_turning_it_off_is_no_fall() -> None:
    spans = Availability()
    spans.note(0, state="running")
    spans.note(10, state="stopped")
    spans.note(1000, state="running")
    spans.add_elapsed(1010)
    assert (spans.uptime, spans.downtime, spans.fall, spans.rise) == (20, 0, 0, 2)
    assert Availability().sli is None


def test_asleep_it_is_up_and_a_probe_that_says_ko_makes_it_down() -> None:
    spans = Availability()
    spans.note(0, state="running", health="ok")
    spans.note(10, state="sleeping")
    spans.note(20, state="running", health="warn")
    spans.note(25, health="ko")
    spans.note(35, health="ok")
    spans.add_elapsed(40)
    assert (spans.uptime, spans.downtime, spans.falltime) == (30, 10, 5)
    assert (spans.rise, spans.fall) == (2, 1)


def test_a_successor_goes_on_where_the_other_was() -> None:
    spans = Availability()
    spans.note(0, state="running")
    after = from_json(Availability, json.loads(json.dumps(to_json(spans))))
    after.add_elapsed(50)
    assert after.uptime == 50


def test_server_is_up_while_it_has_a_worker_or_should_have_one() -> None:
    server = entry()
    server.desired.state = Desired.RUN
    assert server.keeps_dependencies_awake
    server.desired.state = Desired.STOPPED
    assert not server.keeps_dependencies_awake
    server.observed.workers["web.1.0"] = Worker("web.1.0", 1, 0, server.config)
    assert server.keeps_dependencies_awake
    sleeper = Entry(ServerConfig(name="web", bind=":1", app="a:b", scale={"min": 0}))
    sleeper.desired.state = Desired.RUN
    assert not sleeper.keeps_dependencies_awake
    sleeper.observed.has_pending_request = True
    assert sleeper.keeps_dependencies_awake


def test_time_is_counted_from_the_last_change_and_never_backwards() -> None:
    spans = Availability()
    spans.note(100, state="running")
    spans.add_elapsed(110)
    spans.add_elapsed(105)
    assert spans.uptime == 10
    spans.add_elapsed(106)
    assert spans.uptime == 11


@needs("scaling")
def test_number_of_workers_is_the_commands_then_the_triggers_within_the_limits_then_the_files() -> None:
    server = entry(scale={"min": 2, "max": 4, "triggers": {"cpu": 80}})
    sizes = []
    for automatic in (None, 1, 3, 9):
        server.desired.automatic = automatic
        sizes.append(server.size)
    assert sizes == [2, 2, 3, 4]
    assert server.scales
    server.desired.overrides = Overrides(workers=7)
    assert server.size == 7
    assert not server.scales
    fixed = entry(workers=2)
    fixed.desired.automatic = 3
    assert fixed.size == 2
    assert not fixed.scales


def test_generations_overlap_only_if_the_configuration_and_every_running_worker_allow_it() -> None:
    exclusive = entry(overlap=False).config
    server = entry()
    add_worker(server)
    assert server.may_overlap
    add_worker(server, index=1).config = exclusive
    assert not server.may_overlap
    other = entry(overlap=False)
    assert not other.may_overlap
    add_worker(other).config = entry().config
    assert not other.may_overlap


@pytest.mark.parametrize(("configured", "changed", "disabled"), [
    (False, None, False), (True, None, True), (False, True, True), (True, False, False),
])  # fmt: skip
def test_live_change_decides_whether_a_server_is_disabled_before_the_files_do(
    configured: bool, changed: bool | None, disabled: bool
) -> None:
    server = entry(disabled=configured)
    server.desired.overrides = Overrides(disabled=changed)
    assert server.is_disabled is disabled
    assert server.state == ("disabled" if disabled else "stopped")


@pytest.mark.parametrize(
    ("desired", "keys", "state", "active"),
    [
        (Desired.STOPPED, {}, "stopped", False),
        (Desired.RUN, {}, "starting", True),
        (Desired.RUN, SLEEPER, "starting", True),
        (Desired.FAILED, {}, "failed", False),
        (Desired.COMPLETED, {}, "stopped", False),
        (Desired.SCHEDULED, {}, "stopped", False),
        (Desired.SCHEDULED, SCHEDULED, "sleeping", True),
        (Desired.RUN, SCHEDULED, "running", True),
        (Desired.STOPPED, SCHEDULED, "stopped", False),
    ],
)
def test_state_of_a_server_without_a_worker(
    desired: Desired, keys: dict[str, Any], state: str, active: bool
) -> None:
    server = entry(desired, **keys)
    assert (server.state, server.has_or_wants_workers) == (state, active)


@pytest.mark.parametrize(
    ("desired", "phase", "out", "state"),
    [
        (Desired.RUN, WorkerPhase.READY, False, "running"),
        (Desired.RUN, WorkerPhase.READY, True, "draining"),
        (Desired.RUN, WorkerPhase.STARTING, False, "starting"),
        (Desired.STOPPED, WorkerPhase.STOPPING, False, "stopping"),
        (Desired.FAILED, WorkerPhase.STOPPING, False, "stopping"),
    ],
)
def test_state_of_a_server_with_a_worker(desired: Desired, phase: WorkerPhase, out: bool, state: str) -> None:
    server = entry(desired)
    server.desired.overrides = Overrides(out=out)
    add_worker(server, phase)
    assert (server.state, server.has_or_wants_workers) == (state, True)


def test_server_stops_until_its_last_hook_has_run() -> None:
    server = entry(Desired.STOPPED, hooks=HOOKS)
    server.hooks.after_stop_due = True
    assert (server.state, server.has_or_wants_workers, server.is_fully_stopped) == ("stopping", True, False)
    server.hooks.after_stop_due, server.hooks.running = False, RunningHook("after_stop")
    assert (server.state, server.has_or_wants_workers, server.is_fully_stopped) == ("stopping", True, False)
    server.hooks.running = None
    assert (server.state, server.has_or_wants_workers, server.is_fully_stopped) == ("stopped", False, True)


@pytest.mark.parametrize(
    ("cause", "sleeps"),
    [
        ("no request", True),
        ("a request", False),
        ("a dependent", False),
        ("a window that keeps it awake", False),
        ("a window that keeps it asleep", True),
        ("a window that keeps it asleep, and a dependent", False),
        ("a start hook", False),
        ("a number of workers by command", False),
        ("a worker", False),
        ("a leaving worker", True),
    ],
)
def test_server_with_scale_min_0_sleeps_unless_something_wakes_it(cause: str, sleeps: bool) -> None:
    server = entry(Desired.RUN, **SLEEPER)
    server.listener.armed = server.config
    server.observed.has_pending_request = cause == "a request"
    server.observed.has_live_dependents = cause.endswith("a dependent")
    if "window" in cause:
        server.observed.window = WindowState(ASLEEP if "asleep" in cause else AWAKE, None)
    server.hooks.before_start_due = cause == "a start hook"
    if cause.startswith("a number"):
        server.desired.overrides = Overrides(workers=1)
    if cause.endswith("worker"):
        add_worker(server, WorkerPhase.STOPPING if "leaving" in cause else WorkerPhase.STARTING)
    assert (server.should_sleep, server.is_asleep) == (sleeps, sleeps)
    assert server.settled is sleeps
    assert server.is_missing is not sleeps
    if sleeps:
        assert server.state == ("draining" if server.observed.workers else "sleeping")


def test_server_falls_asleep_once_its_listener_is_watched_or_a_window_keeps_it_asleep() -> None:
    server = entry(Desired.RUN, **SLEEPER)
    assert (server.should_sleep, server.is_asleep, server.state) == (True, False, "starting")
    server.observed.window = WindowState(ASLEEP, None)
    assert (server.window_demand, server.is_asleep, server.state) == (ASLEEP, True, "sleeping")
    always = entry(Desired.RUN)
    always.observed.window = WindowState(ASLEEP, None)
    assert (always.window_demand, always.should_sleep) == ("", False)


@pytest.mark.parametrize(
    ("health", "stuck", "out", "answers", "ready", "status"),
    [
        (Status.UNKNOWN, False, False, True, True, Status.UNKNOWN),
        (Status.OK, False, False, True, True, Status.OK),
        (Status.WARN, False, False, True, True, Status.WARN),
        (Status.OK, False, True, True, False, Status.OK),
        (Status.KO, False, False, False, False, Status.KO),
        (Status.OK, True, False, False, False, Status.KO),
    ],
)
def test_server_answers_with_a_ready_worker_that_is_not_ko(
    health: Status, stuck: bool, out: bool, answers: bool, ready: bool, status: Status
) -> None:
    server = entry(Desired.RUN, **PROBED)
    server.desired.overrides = Overrides(out=out)
    add_worker(server, health=health, stuck=stuck)
    assert (server.is_responsive, server.ready, server.health) == (answers, ready, status)
    assert server.is_missing is not ready


def test_health_is_warn_while_workers_differ_and_ok_without_probes() -> None:
    server = entry(Desired.RUN, **PROBED)
    add_worker(server, health=Status.OK)
    add_worker(server, index=1, health=Status.KO)
    add_worker(server, WorkerPhase.STARTING, index=2, health=Status.KO)
    assert (server.health, server.is_responsive) == (Status.WARN, True)
    plain = entry(Desired.RUN)
    add_worker(plain, health=Status.KO)
    assert (plain.health, plain.is_responsive) == (Status.OK, True)
    plain.observed.workers["web.1.0"].stuck = True
    assert (plain.health, plain.is_responsive) == (Status.KO, False)


def test_failed_run_is_a_warning_about_a_server_with_a_schedule() -> None:
    server = entry(Desired.SCHEDULED, **SCHEDULED)
    assert (server.health, server.is_responsive, server.ready, server.is_fully_ready) == (
        Status.OK,
        True,
        True,
        True,
    )
    server.schedule.last_run = {"result": "failed"}
    assert server.health is Status.WARN
    assert not server.is_fully_stopped


def test_server_is_complete_when_every_worker_of_its_generation_is_ready_and_no_other_accepts() -> None:
    server = entry(Desired.RUN, workers=2)
    server.desired.generation = 2
    old = add_worker(server)
    add_worker(server, generation=2)
    starting = add_worker(server, WorkerPhase.STARTING, index=1, generation=2)
    assert not server.is_fully_ready
    starting.phase = WorkerPhase.READY
    assert server.is_fully_ready
    old.phase = WorkerPhase.DRAINING
    assert not server.is_fully_ready
    old.stopped_accepting = True
    assert server.is_fully_ready
    assert server.has_worker_of_serving_generation
    server.desired.generation = 3
    assert not server.is_fully_ready
    assert not server.has_worker_of_serving_generation
    assert not entry(Desired.STOPPED).is_fully_ready
    assert not entry(Desired.COMPLETED).is_fully_ready
    assert entry(Desired.COMPLETED, **JOB).is_fully_ready


def test_server_stops_until_it_is_at_rest_or_a_worker_cannot_be_ended() -> None:
    server = entry(Desired.STOPPED)
    assert (server.is_fully_stopped, server.is_stopping) == (True, False)
    for state, before, releasing in (
        (ListenerState.OPEN, [], []),
        (ListenerState.CLOSED, [server.config], []),
        (ListenerState.CLOSED, [], [server.config]),
    ):
        server.listener.state = state
        server.listener.previous_configs, server.listener.releasing = list(before), list(releasing)
        assert (server.is_fully_stopped, server.is_stopping) == (False, True)
    server.listener.releasing = []
    worker = add_worker(server, WorkerPhase.STOPPING)
    assert (server.is_fully_stopped, server.is_stopping) == (False, True)
    worker.unstoppable = True
    assert not server.is_stopping
    running = entry(Desired.RUN)
    assert (running.is_fully_stopped, running.is_stopping) == (False, False)


def test_pids_and_uptime_are_those_of_the_workers_that_stay() -> None:
    server = entry(Desired.RUN)
    for index, (phase, pid, ready_at) in enumerate(
        [
            (WorkerPhase.READY, 12, 50.0),
            (WorkerPhase.STOPPING, 13, 10.0),
            (WorkerPhase.READY, 11, 40.0),
            (WorkerPhase.STARTING, None, None),
        ]
    ):
        placement = Placement.of("web", 1, index, pid=pid) if pid else None
        add_worker(server, phase, 3 - index, placement=placement, ready_at=ready_at)
    assert server.pids == [11, 12]
    assert server.uptime_seconds(100.0) == 60.0
    assert server.started
    for worker in server.observed.workers.values():
        worker.phase = WorkerPhase.STOPPING
    assert server.pids == [11, 13, 12]
    assert server.uptime_seconds(100.0) == 0.0
    assert not entry().started


def test_stop_hook_is_due_if_the_server_was_started_with_its_start_hook() -> None:
    for desired, before_start_due, due in (
        (Desired.RUN, False, True),
        (Desired.RUN, True, False),
        (Desired.STOPPED, False, False),
    ):
        server = entry(desired, hooks=HOOKS)
        server.hooks.before_start_due = before_start_due
        server.schedule_stop_hook()
        assert (server.hooks.after_stop_due, server.hooks.before_start_due) == (due, False)
    for hooks in ({}, {"hooks": {"before_start": ["true"]}}):
        without = entry(Desired.RUN, **hooks)
        without.schedule_stop_hook()
        assert not without.hooks.after_stop_due


def test_failure_is_left_out_of_the_record_of_a_ready_server() -> None:
    server = entry(Desired.RUN)
    server.observed.failure = ServerError("exited with status 1", name="web")
    assert "failure" in record_of(server)
    add_worker(server)
    assert "failure" not in record_of(server)


def test_time_while_it_comes_up_or_goes_down_is_counted_as_both() -> None:
    spans = Availability()
    spans.note(0, state="starting", health="unknown")
    spans.note(10, state="failed")
    assert (spans.downtime, spans.risetime, spans.falltime, spans.status, spans.is_up) == (
        10,
        10,
        0,
        "ko",
        False,
    )
    spans.note(15, state="disabled")
    assert (spans.downtime, spans.status, spans.rise, spans.fall) == (15, "unknown", 0, 0)
    spans.note(20, state="running", health="ok")
    spans.note(22, state="stopping")
    spans.note(25, state="stopped")
    assert (spans.uptime, spans.downtime, spans.falltime, spans.fall) == (2, 18, 3, 1)


def test_summary_has_all_that_neighbours_depend_on() -> None:
    server = entry(Desired.RUN)
    assert server.dependency_facts() == (Desired.RUN, False, False, False, False, False, False, True)
    worker = add_worker(server, placement=Placement.of("web", 1, 0))
    assert server.dependency_facts() == (Desired.RUN, True, True, True, False, False, True, True)
    worker.unstoppable = True
    assert server.dependency_facts() == (Desired.RUN, True, True, True, False, True, True, True)
    cleaning = entry(Desired.STOPPED, hooks=HOOKS)
    cleaning.hooks.after_stop_due = True
    assert cleaning.dependency_facts() == (Desired.STOPPED, False, False, False, True, False, False, False)


async def test_server_without_a_record_waits_for_its_dependencies() -> None:
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
    for name in ("api", "db"):
        pool.core.mark_found_running(pool.core.entries[name])
        pool.core.resume_adopted_server(pool.core.entries[name])
        await turns()
        assert [line for line in pool.runner.log if line.startswith("place")] == (
            [] if name == "api" else ["place db.1.0", "place api.1.0"]
        )
