"""What verbs share: the selection, progress, results, and the running build."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from poolctl import ServerConfig
from poolctl.bootstrap import installed_build, is_package_changed_since
from poolctl.control.answers import ProgressLine
from poolctl.core.server_entry import Entry
from poolctl.errors import ServerError
from poolctl.selection.selector import Selector
from poolctl.states import Status
from poolctl.supervisor.verbs.verb import (
    Call,
    RunningPoolctlBuild,
    complaint_of,
    details,
    items,
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


async def test_progress_of_a_restart_is_each_change_once_and_over_when_the_old_worker_has_ended() -> None:
    desk = Desk(web("a"))
    await desk.ask("start")

    async def steps(verb: str, **options: Any) -> list[tuple[str, bool, bool, str]]:
        lines: list[ProgressLine] = []
        await desk.verbs.perform(verb, Call(Selector.from_dict({"targets": ["a"]}), options, lines.append))
        progress = [line.progress for line in lines if line.progress is not None]
        assert {(step.name, step.bind) for step in progress} <= {("a", desk.core.entries["a"].config.key)}
        return [(step.state, step.ready, step.done, step.message) for step in progress]

    restarted = await steps("restart")
    assert (restarted[0], restarted[-1]) == (("running", True, False, ""), ("running", True, True, ""))
    assert len(restarted) == len(set(restarted))
    assert await steps("restart", progress=False) == []
    desk.runner.script["a"] = FAILS
    await desk.ask("stop")
    assert (await steps("start"))[-1] == ("failed", False, True, "exited with status 3 before it was ready")


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
