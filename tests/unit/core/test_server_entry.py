"""Entries: which changes of the desired state are allowed, what a successor restores, and who may change them."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl.config import ServerConfig
from poolctl.core.decide import FOLLOWS, Desired, ImpossibleChange, Overrides
from poolctl.core.server_entry import (
    Availability,
    Canary,
    DesiredState,
    Entry,
    HookState,
    ObservedState,
    ScheduleState,
    ServerListener,
    Worker,
    record_of,
    restore,
)
from poolctl.errors import ServerError
from poolctl.states import Status
from tests.unit.core.ordered_core import OrderedCore, run, web


def entry() -> Entry:
    return Entry(ServerConfig(name="web", bind=":1", app="a:b"))


def test_every_value_says_what_may_follow_it() -> None:
    assert FOLLOWS.keys() == set(Desired)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Desired.IDLE, Desired.BACKOFF),
        (Desired.IDLE, Desired.COMPLETED),
        (Desired.STOPPED, Desired.FAILED),
        (Desired.RUN, Desired.REFUSING),
        (Desired.FAILED, Desired.BACKOFF),
        (Desired.FAILED, Desired.COMPLETED),
        (Desired.COMPLETED, Desired.BACKOFF),
        (Desired.REMOVED, Desired.RUN),
    ],
)
def test_impossible_change_of_the_desired_state_is_refused(before: Desired, after: Desired) -> None:
    server = entry()
    server.desired.state = before
    with pytest.raises(ImpossibleChange, match=f"web: {before} does not become {after}"):
        server.become(after)
    assert server.desired.state is before


def test_a_backoff_ends_with_its_timers() -> None:
    async def scenario() -> None:
        server = entry()
        server.become(Desired.RUN)
        server.become(Desired.BACKOFF)
        timer = asyncio.get_running_loop().call_later(60, print)
        server.observed.timers.append(timer)
        server.become(Desired.REFUSING)
        assert not timer.cancelled()
        server.become(Desired.STOPPED)
        assert timer.cancelled()
        assert server.observed.timers == []

    asyncio.run(scenario())


def test_a_server_that_a_command_has_stopped_stays_so_when_it_is_disabled_and_enabled_by_a_reload() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        await pool.start()
        server = pool.core.entries["web"]
        await pool.stop("web")
        for disabled in (True, False):
            pool.core.change(server, web(disabled=disabled), live=True)
            assert server.desired.state is Desired.STOPPED

    run(scenario())


def test_a_server_that_ran_until_it_was_disabled_runs_again_when_it_is_enabled() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        await pool.start()
        server = pool.core.entries["web"]
        pool.core.change(server, web(disabled=True), live=True)
        assert server.desired.state is Desired.IDLE
        pool.core.change(server, web(), live=True)
        assert server.desired.state is Desired.RUN

    run(scenario())


PACKAGE = Path(poolctl.__file__).parent
VALUES = {
    "desired": DesiredState,
    "observed": ObservedState,
    "listener": ServerListener,
    "schedule": ScheduleState,
    "hooks": HookState,
}
OWNED = {each.name for kind in (Entry, Worker) for each in fields(kind)} - {"config"}
MUTATORS = {"append", "clear", "extend", "insert", "pop", "remove", "setdefault", "update"}


def changes(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each change of an attribute that an entry or a worker has, of another object than `self`."""
    for node in ast.walk(ast.parse(source)):
        targets: list[ast.expr] = []
        if isinstance(node, (ast.AugAssign, ast.AnnAssign)):
            targets = [node.target]
        elif isinstance(node, (ast.Assign, ast.Delete)):
            targets = [each for target in node.targets for each in getattr(target, "elts", [target])]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in MUTATORS:
                targets = [node.func.value]
            elif node.func.attr in ("become", "next_generation"):
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
        value is not None and name in {each.name for each in fields(value)}
    )


def test_only_the_core_changes_an_entry_or_a_worker() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line} changes {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "core" and "poolctl.core" in (source := path.read_text())
        for line, what in changes(source)
    ]
    assert found == []


def test_the_check_sees_every_kind_of_change() -> None:
    source = (
        "entry.observed.restarts += 1\nentry.desired, other = 1, 2\nentry.observed.workers['a'] = 1\n"
        "del entry.observed.workers['a']\nentry.observed.warnings.append('x')\nentry.become(1)\n"
        "setattr(entry, 'files', {})\nself.restarts = 1\nprint(entry.observed.restarts)\n"
    )
    assert [line for line, _ in changes(source)] == [1, 2, 3, 4, 5, 6, 7]


PERSISTED = (DesiredState, ObservedState, ServerListener, ScheduleState, HookState)


def value_with(entry: Entry, name: str) -> Any:
    """The value of the entry that has the field."""
    values = (entry.desired, entry.observed, entry.listener, entry.schedule, entry.hooks)
    return next(each for each in values if hasattr(each, name))


def test_every_field_of_an_entrys_values_says_whether_it_is_persisted() -> None:
    undeclared = [
        each.name for kind in PERSISTED for each in fields(kind) if "persisted" not in each.metadata
    ]
    assert undeclared == [], "declare them with persisted() or transient()"


def test_the_record_of_a_new_entry_is_empty() -> None:
    assert record_of(entry()) == {}


def test_every_persisted_field_is_restored() -> None:
    values: dict[str, Any] = {
        "source": ({"name": "web"}, "/srv"), "ignore_dependencies": True, "generation": 3, "newest": 4,
        "code_since": 1.5, "preload_problem": "it opened a thread", "files": {"tls": "12ab"},
        "certificate_ends": 2.5, "called": True, "restart_times": [1.0], "restarts": 2, "restarting": 3,
        "recoveries": {"0": [3.0]}, "recovering": {"step": "restart"}, "automatic": 4, "canary_generation": 5,
        "stopped_with": ["db"], "canary_share": 0.1, "socket_found": "program", "before_start_due": True,
        "after_stop_due": True,
        "next_run": 5.5, "run_since": 6.5, "last_run": {"result": "failed"},
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
    persisted = {each.name for kind in PERSISTED for each in fields(kind) if each.metadata["persisted"]}
    assert persisted == {*values, "state", "overrides", "failure"}
    assert [getattr(value_with(after, name), name) for name in values if name != "source"] == [
        value for name, value in values.items() if name != "source"
    ]
    assert (after.desired.source, after.desired.state, after.desired.overrides) == (
        [{"name": "web"}, "/srv"], before.desired.state, before.desired.overrides,
    )  # fmt: skip
    assert after.observed.failure is not None
    assert after.observed.failure.to_dict() == before.observed.failure.to_dict()


@pytest.mark.parametrize("desired", [Desired.BACKOFF, Desired.REFUSING])
def test_a_successor_does_not_wait_for_the_end_of_a_backoff(desired: Desired) -> None:
    server = entry()
    server.desired.state = desired
    assert record_of(server) == {"desired": "run"}


def test_state_of_a_server_at_rest_says_why_it_rests() -> None:
    for desired, state in (
        (Desired.STOPPED, "stopped"),
        (Desired.FAILED, "failed"),
        (Desired.BACKOFF, "backoff"),
    ):
        server = entry()
        server.desired.state = desired
        assert server.state == state
    job = Entry(ServerConfig(name="job", job=True, command=["true"]))
    job.desired.state = Desired.COMPLETED
    assert job.state == "completed"
    assert not job.up


@pytest.mark.parametrize(
    ("desired", "missing", "health"),
    [
        (Desired.STOPPED, False, Status.UNKNOWN),
        (Desired.REMOVED, False, Status.UNKNOWN),
        (Desired.FAILED, True, Status.KO),
        (Desired.BACKOFF, True, Status.UNKNOWN),
        (Desired.RUN, True, Status.UNKNOWN),
    ],
)
def test_server_without_a_worker_is_missing_unless_it_was_stopped(
    desired: Desired, missing: bool, health: Status
) -> None:
    server = entry()
    server.desired.state = desired
    assert (server.is_missing, server.health) == (missing, health)
    assert not server.ready
    assert not server.answers


def test_completed_job_is_ready_and_a_completed_server_is_not() -> None:
    job = Entry(ServerConfig(name="job", job=True, command=["true"]))
    server = entry()
    for each in (job, server):
        each.desired.state = Desired.COMPLETED
    assert (job.ready, job.is_missing, job.health) == (True, False, Status.OK)
    assert (server.ready, server.answers) == (False, False)
    assert job.at_rest


# Up and down, rise and fall, over the life of a server; time is given.


def test_a_server_that_starts_runs_fails_and_comes_back() -> None:
    seen = Availability()
    for at, state in (
        (100, "starting"),
        (103, "running"),
        (203, "backoff"),
        (205, "starting"),
        (210, "running"),
    ):
        seen.note(at, state=state)
    seen.settle(310)
    assert (seen.uptime, seen.downtime) == (200, 10)
    assert (seen.risetime, seen.falltime) == (3, 7)
    assert (seen.rise, seen.fall) == (2, 1)
    assert seen.sli == 200 / 210
    assert seen.status == "ok"


def test_while_it_is_off_no_time_is_counted_and_turning_it_off_is_no_fall() -> None:
    seen = Availability()
    seen.note(0, state="running")
    seen.note(10, state="stopped")
    seen.note(1000, state="running")
    seen.settle(1010)
    assert (seen.uptime, seen.downtime, seen.fall, seen.rise) == (20, 0, 0, 2)
    assert Availability().sli is None


def test_asleep_it_is_up_and_a_probe_that_says_ko_makes_it_down() -> None:
    seen = Availability()
    seen.note(0, state="running", health="ok")
    seen.note(10, state="sleeping")
    seen.note(20, state="running", health="warn")
    seen.note(25, health="ko")
    seen.note(35, health="ok")
    seen.settle(40)
    assert (seen.uptime, seen.downtime, seen.falltime) == (30, 10, 5)
    assert (seen.rise, seen.fall) == (2, 1)


def test_a_successor_goes_on_where_the_other_was() -> None:
    seen = Availability()
    seen.note(0, state="running")
    after = Availability.restored(json.loads(json.dumps(seen.to_dict())))
    after.settle(50)
    assert after.uptime == 50


def test_further_workers_have_the_configuration_of_their_generation() -> None:
    server = entry()
    assert server.config_of(1) is server.config
    assert not server.is_of_canary(1)
    other = ServerConfig(name="web", bind=":1", app="a:other")
    server.desired.canary = Canary(generation=2, count=1, config=other, code_since=0.0, promoted=other)
    assert (server.is_of_canary(1), server.is_of_canary(2)) == (False, True)
    assert server.config_of(1) is server.config
    assert server.config_of(2) is other


def test_server_is_up_while_it_has_a_worker_or_should_have_one() -> None:
    server = entry()
    server.desired.state = Desired.RUN
    assert server.up
    server.desired.state = Desired.STOPPED
    assert not server.up
    server.observed.workers["web.1.0"] = Worker("web.1.0", 1, 0, server.config)
    assert server.up
    sleeper = Entry(ServerConfig(name="web", bind=":1", app="a:b", scale={"min": 0}))
    sleeper.desired.state = Desired.RUN
    assert not sleeper.up
    sleeper.observed.called = True
    assert sleeper.up


def test_time_is_counted_from_the_last_change_and_never_backwards() -> None:
    seen = Availability()
    seen.note(100, state="running")
    seen.settle(110)
    seen.settle(105)
    assert seen.uptime == 10
    seen.settle(106)
    assert seen.uptime == 11
