"""What verbs share: the selection, progress, results, and the running build."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from poolctl import ServerConfig
from poolctl.bootstrap import installed_build, is_package_changed_since
from poolctl.control.answers import ProgressLine
from poolctl.core.server_entry import Entry
from poolctl.errors import PoolRestartError, PoolStartError, ServerError
from poolctl.selection.selector import NothingMatched, Selector, SelectorError
from poolctl.states import Status
from poolctl.supervisor.verbs.verb import (
    Call,
    Operation,
    RunningPoolctlBuild,
    complaint_of,
    details,
    disabled_error,
    drained_error,
    error_of_kind,
    items,
    match_expressions,
    names_of,
    reporter,
    selected,
    unhealthy_error,
    with_dependents,
)
from tests.deadline import wait_until
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER
from tests.unit.supervisor.desk import Desk


async def test_warnings_are_reported_once() -> None:
    desk = Desk(web())
    await desk.ask("start")
    desk.core.entries["web"].observed.warnings.append("of before")
    assert (await desk.ask("restart"))["warnings"] == []


async def test_progress_of_a_restart_is_not_over_while_the_old_worker_serves() -> None:
    desk = Desk(web("a"))
    await desk.ask("start")
    lines: list[ProgressLine] = []
    call = Call(Selector.from_dict({"targets": ["a"]}), {"progress": True}, lines.append)
    await desk.verbs.perform("restart", call)
    steps = [line.progress for line in lines if line.progress is not None]
    assert (steps[0].state, steps[0].ready, steps[0].done) == ("running", True, False)
    assert (steps[-1].state, steps[-1].done) == ("running", True)


FIRST = Selector.from_dict({"targets": ["a"]})


def entries_of(*servers: ServerConfig) -> tuple[Desk, list[Entry]]:
    desk = Desk(*servers)
    return desk, [*desk.core.entries.values()]


async def test_build_that_is_on_disk_is_running_until_it_is_replaced(tmp_path: Path) -> None:
    package = str(tmp_path)
    (tmp_path / "module.py").write_text("one")
    wait_until(lambda: not is_package_changed_since(time.time() - 0.02, package))
    build = RunningPoolctlBuild(package)
    assert build.known_digest == ""
    one = installed_build(package)
    assert await build.digest() == build.known_digest == one
    assert (await build.is_running(one), await build.is_running("two")) == (True, False)
    assert not await build.is_replaced()
    (tmp_path / "module.py").write_text("two")
    assert await build.digest() == one
    assert await build.is_replaced()
    late = RunningPoolctlBuild(package)
    (tmp_path / "module.py").write_text("three")
    assert await late.digest() == "", "it was replaced before it was read"
    assert not await late.is_running("")


def test_selection_is_in_the_order_of_the_file_and_an_empty_one_is_the_answer() -> None:
    desk, _ = entries_of(web("a"), web("b"), web("c"))
    chosen = selected(desk.core, Selector.from_dict({"targets": ["c", "a"]}))
    assert [entry.name for entry in chosen] == ["a", "c"]
    assert len(selected(desk.core, Selector())) == 3
    with pytest.raises(NothingMatched) as caught:
        selected(desk.core, Selector.from_dict({"targets": ["aa"]}))
    assert (caught.value.message, caught.value.hint) == ("no server matches 'aa'", "did you mean 'a'?")


async def test_expressions_are_matched_before_the_selection() -> None:
    desk, _ = entries_of(web("users"), web("orders"))
    selector = Selector.from_dict({"name": ["^u"], "bind": ["127"]})
    await match_expressions(desk.core, selector)
    assert selector.matched is not None
    assert selector.matched["name"] == {"users"}
    assert [entry.name for entry in selected(desk.core, selector)] == ["users"]
    slow = Selector.from_dict({"name": ["("]})
    with pytest.raises(SelectorError, match="name: invalid regular expression"):
        await match_expressions(desk.core, slow)
    await match_expressions(desk.core, Selector.from_dict({"targets": ["users"]}))


def test_reporter_sends_each_change_once() -> None:
    _, (entry, _) = entries_of(web("a"), web("b"))
    lines: list[ProgressLine] = []
    done: list[bool] = [False]
    report = reporter(Call(FIRST, {}, lines.append), lambda entry: done[0])
    report(entry)
    report(entry)
    assert len(lines) == 1
    done[0] = True
    report(entry)
    entry.observed.failure = ServerError("no port")
    report(entry)
    assert [(line.progress.done, line.progress.message) for line in lines if line.progress] == [
        (False, ""),
        (True, ""),
    ]
    step = lines[0].progress
    assert step is not None
    assert (step.name, step.bind, step.state, step.ready) == ("a", entry.config.key, "stopped", False)
    silent: list[ProgressLine] = []
    reporter(Call(FIRST, {"progress": False}, silent.append), lambda entry: True)(entry)
    assert silent == []


def test_reporter_says_why_a_server_has_failed() -> None:
    _, (entry,) = entries_of(web("a"))
    entry.observed.failure = ServerError("no port")
    lines: list[ProgressLine] = []
    reporter(Call(FIRST, {}, lines.append), lambda entry: True)(entry)
    assert lines[0].progress is not None
    assert lines[0].progress.message == "no port"


async def test_operation_ends_with_every_failure_in_the_code_of_its_command() -> None:
    desk, entries = entries_of(web("a"), web("b"))
    desk.runner.script["b"] = FAILS
    operation = Operation(desk.core, PoolRestartError, entries)
    for entry in entries:
        desk.core.start(entry)
    entries[0].observed.warnings.append("late")
    result = await operation.wait_for_result(
        entries[:1], Call(Selector(), {"timeout": 20}, lambda line: None)
    )
    assert (result.exit_code, [item.name for item in result.items], result.warnings) == (
        1,
        ["a"],
        ("late",),
    )
    assert [(error.code, error.error, error.name) for error in result.errors] == [
        (1325, "ErrorPoolRestart", "b")
    ]
    unawaited = Operation(desk.core, PoolStartError, entries)
    assert await unawaited.wait_for_outcome(Call(Selector(), {"wait": False}, lambda line: None)) == 0
    assert unawaited.errors == []


async def test_operation_that_takes_too_long_is_124() -> None:
    desk, entries = entries_of(web("a"))
    desk.runner.script["a"] = NEVER
    operation = Operation(desk.core, PoolStartError, entries)
    desk.core.start(entries[0])
    call = Call(Selector(), {"timeout": 0.01, "progress": False}, lambda line: None)
    assert (await operation.wait_for_result(entries, call)).exit_code == 124


def test_names_of_no_entry_are_left_out() -> None:
    _, entries = entries_of(web("a"), web("b"))
    assert (names_of(entries), names_of([])) == (("a", "b"), None)


async def test_client_is_warned_of_running_dependents_that_it_did_not_select() -> None:
    desk, entries = entries_of(
        web("db"), web("api", depends_on=["db"]), web("idle", depends_on=["db"]), web("other")
    )
    await desk.ask("start", "db", "api", "other")
    lines: list[ProgressLine] = []
    stopping = with_dependents(desk.core, entries[:1], lines.append)
    assert {entry.name for entry in stopping} == {"db", "api", "idle"}
    assert [line.warning for line in lines] == ["stopping api as well, which depends on db"]
    lines.clear()
    with_dependents(desk.core, entries[:2], lines.append)
    assert lines == []


async def test_item_has_the_state_of_its_server() -> None:
    desk, (entry, _) = entries_of(
        web("a", tags=["api"], workers=2),
        ServerConfig(name="j", job=True, command=["x"], every="0 3 * * *"),
    )
    await desk.ask("start")
    desk.clock.advance(12.3456)
    entry.observed.restarts = 3
    item, job = items(desk.core, desk.core.entries.values())
    assert (item.name, item.bind, item.state, item.ready, item.health) == (
        "a",
        entry.config.key,
        "running",
        True,
        "ok",
    )
    assert (item.workers, item.uptime_seconds, item.restarts, item.tags) == (2, 12.346, 3, ("api",))
    assert (item.pids, item.expose, item.address) == ((1001, 1001), entry.config.expose, None)
    assert (item.kept, item.kept_until, item.next_run_at, item.last_run) == (None, None, None, None)
    assert job.next_run_at is not None
    assert job.next_run_at.endswith("Z")
    assert job.last_run is None
    run_record = {"result": "succeeded", "started_at": 0.0, "ended_at": 1.0, "message": ""}
    desk.core.entries["j"].schedule.last_run = run_record
    entry.schedule.last_run = run_record
    item, job = items(desk.core, desk.core.entries.values())
    assert job.last_run == {
        "result": "succeeded", "started_at": "1970-01-01T00:00:00Z", "ended_at": "1970-01-01T00:00:01Z",
        "message": "",
    }  # fmt: skip
    assert item.last_run is None, "it is no job"


async def test_item_of_a_server_that_a_window_keeps_asleep_says_until_when() -> None:
    desk, (entry,) = entries_of(web("a", scale={"min": 0, "asleep": ["* * * * *"]}))
    await desk.ask("start")
    (item,) = items(desk.core, [entry])
    assert item.kept == "asleep"
    entry.observed.window = entry.observed.window._replace(until=60.0)
    assert items(desk.core, [entry])[0].kept_until == "1970-01-01T00:01:00Z"
    await desk.ask("stop")
    assert items(desk.core, [entry])[0].kept is None


async def test_details_have_overrides_workers_and_the_failure() -> None:
    desk, (entry, _) = entries_of(web("a", workers=2), web("b"))
    await desk.ask("start", "a")
    await desk.ask("scale", "a", workers=1)
    entry.observed.failure = ServerError("no port", hint="another")
    entry.observed.preload_problem = "it has no gunicorn"
    entry.observed.certificate_ends = 60.0
    shown = details(desk.core, entry, {"bind": "/p:3"}, reveal=False)
    assert (shown.overrides.workers, shown.overrides.disabled, shown.overrides.drained) == (1, None, None)
    assert (shown.overrides.added, shown.origin, shown.generation) == (None, {"bind": "/p:3"}, 1)
    (worker, *_) = shown.worker_list
    assert (worker.id, worker.pid, worker.phase) == ("a.1.0", 1001, "ready")
    assert (worker.health, worker.resting, worker.probes, worker.placed_at) == (
        "ok",
        False,
        (),
        desk.clock.time(),
    )
    assert shown.failure is not None
    assert (shown.failure.message, shown.failure.hint) == ("no port", "another")
    assert (shown.preload_problem, shown.certificate_expires) == (
        "it has no gunicorn",
        "1970-01-01T00:01:00Z",
    )
    assert (shown.stacks, shown.complaint) == (None, "")
    assert shown.endpoints == (entry.config.key,)
    await desk.ask("drain", "a")
    assert details(desk.core, entry, None, reveal=False).overrides.drained is True
    await desk.ask("disable", "b")
    other = details(desk.core, desk.core.entries["b"], None, reveal=False)
    assert (other.overrides.disabled, other.worker_list, other.failure) == (True, (), None)


async def test_worker_that_is_not_ready_has_no_health_and_no_place() -> None:
    desk, (entry,) = entries_of(web("a"))
    desk.runner.script["a"] = NEVER
    desk.core.start(entry)
    await turns()
    (worker,) = entry.observed.workers.values()
    assert details(desk.core, entry, None, reveal=False).worker_list[0].health == "unknown"
    worker.placement = None
    (shown,) = details(desk.core, entry, None, reveal=False).worker_list
    assert shown.pid is None
    worker.placed_at = 0.0
    assert details(desk.core, entry, None, reveal=False).worker_list[0].placed_at is None


async def test_probes_of_a_worker_have_their_last_result() -> None:
    desk, (entry,) = entries_of(web("a"))
    await desk.ask("start")
    (worker,) = entry.observed.workers.values()
    probe: Any = SimpleNamespace(kind="readiness", status=Status.WARN, message="503", latency_seconds=0.2)
    worker.probes = cast(Any, SimpleNamespace(probes=[probe], message=""))
    (shown,) = details(desk.core, entry, None, reveal=False).worker_list
    assert [(probe.kind, probe.status, probe.message, probe.latency_seconds) for probe in shown.probes] == [
        ("readiness", "warn", "503", 0.2)
    ]
    worker.probes = None


def test_errors_of_a_server_name_it_with_the_fix() -> None:
    _, (entry,) = entries_of(web("a"))
    assert [
        (problem.name, problem.message, problem.hint)
        for problem in (disabled_error(entry), drained_error(entry), unhealthy_error(entry, ""))
    ] == [
        ("a", "is disabled", "poolctl enable a, or remove `disabled = true` from its table"),
        ("a", "is drained: it runs, out of rotation", "poolctl undrain a"),
        ("a", "runs but is unhealthy", "poolctl logs a"),
    ]
    assert unhealthy_error(entry, "503").message == "runs but is unhealthy: 503"
    assert unhealthy_error(entry, "503").bind == entry.config.key
    error = error_of_kind(PoolStartError, ServerError("no", hint="fix", code=1, error="x"))
    assert (error.code, error.error, error.message, error.hint) == (1323, "ErrorPoolStart", "no", "fix")


async def test_complaint_is_that_of_the_health_or_the_failure_of_a_server_that_is_not_ready() -> None:
    desk, (entry,) = entries_of(web("a"))
    assert complaint_of(desk.core, entry) == ""
    entry.observed.failure = ServerError("no port")
    assert complaint_of(desk.core, entry) == "no port"
    await desk.ask("start")
    entry.observed.failure = ServerError("of before")
    assert complaint_of(desk.core, entry) == ""
    (worker,) = entry.observed.workers.values()
    worker.stuck = True
    assert complaint_of(desk.core, entry) == desk.core.health.first_worker_problem(entry) != ""
