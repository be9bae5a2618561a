"""Hooks of a start or a stop that other changes overtake, that fail, or that cannot be ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.core.workqueue import caused_by
from poolctl.runners.runner_protocol import Exit
from poolctl.units import format_duration
from tests.manual_clock import ManualClock
from tests.unit.core.ordered_core import OrderedCore, RecordedEvents, web
from tests.unit.core.stepped_runner import SteppedLoop, SteppedRunner
from tests.unit.runners.scripted_runner import break_once

BOTH = {"before_start": ["before"], "after_stop": ["after"]}


class Stage:
    """A database, and a server with hooks that depends on it; each operation of the runner waits for the test."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.loop = SteppedLoop(self.clock)
        self.runner = SteppedRunner()
        db = ServerConfig(name="db", bind="127.0.0.1:8001", app="a:b")
        web = ServerConfig(
            name="web", bind="127.0.0.1:8002", app="a:b", hooks=BOTH, depends_on=["db"], restart="no"
        )
        self.events = RecordedEvents()
        self.core = Core([db, web], self.runner, self.clock, self.events)

    def order(self, work: Callable[..., Any], *args: Any, **options: Any) -> None:
        async def ordered() -> None:
            work(*args, **options)

        self.loop.run_until_complete(ordered())
        self.loop.settle()

    def finish(self, *kinds: str, well: bool = True) -> None:
        """Let operations of these kinds end, one after another."""
        for kind in kinds:
            (step,) = [step for step in self.runner.steps if step.kind == kind]
            self.order(step.future.set_result, well)

    @property
    def db(self) -> Entry:
        return self.core.entries["db"]

    @property
    def web(self) -> Entry:
        return self.core.entries["web"]

    def under_way(self) -> list[tuple[str, str]]:
        return [(step.kind, step.what) for step in self.runner.steps]


@pytest.fixture
def stage() -> Iterator[Stage]:
    new_stage = Stage()
    yield new_stage
    new_stage.loop.close()


def started(stage: Stage) -> None:
    """Both run."""
    stage.order(stage.core.start, stage.db)
    stage.finish("open", "place", "ready")
    stage.order(stage.core.start, stage.web)
    stage.finish("hook", "run", "open", "place", "ready")
    assert stage.web.ready


def test_hook_that_a_reload_takes_out_while_it_waits_is_not_run(stage: Stage) -> None:
    stage.order(stage.core.start, stage.web)
    assert stage.under_way() == [], "its dependency does not run"
    stage.order(stage.core.change, stage.web, stage.web.config.model_copy(update={"hooks": None}), live=True)
    stage.order(stage.core.start, stage.db)
    stage.finish("open", "place", "ready")
    stage.finish("open", "place", "ready")
    assert stage.web.ready


def test_start_during_a_stop_runs_both_hooks_before_the_next_worker(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web)
    stage.order(stage.core.start, stage.web)
    stage.finish("stop")
    assert stage.under_way() == [("hook", "web.after_stop")]
    stage.finish("hook", "run")
    assert stage.under_way() == [("hook", "web.before_start")]
    stage.finish("hook", "run", "place", "ready")
    assert stage.web.ready


def test_start_before_a_stop_has_begun_runs_no_hook(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.change, stage.db, stage.db.config.replace(hooks=BOTH), live=True)
    stage.order(stage.core.stop, stage.web)
    stage.order(stage.core.stop, stage.db)
    assert stage.under_way() == [("stop", "web.1.0")], "it waits for its dependent"
    stage.order(stage.core.start, stage.db)
    stage.finish("stop", "close", "hook", "run")
    assert (stage.under_way(), stage.db.ready) == ([], True)


def test_dependency_is_stopped_after_the_hook_of_its_dependent(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web)
    stage.order(stage.core.stop, stage.db)
    stage.finish("stop", "close")
    assert stage.under_way() == [("hook", "web.after_stop")]
    assert stage.web.state == "stopping"
    stage.finish("hook", "run")
    assert stage.under_way() == [("stop", "db.1.0")]


def test_stop_asks_the_start_hook_that_runs_to_end(stage: Stage) -> None:
    stage.order(stage.core.start, stage.db)
    stage.finish("open", "place", "ready")
    stage.order(stage.core.start, stage.web)
    stage.finish("hook")
    assert stage.under_way() == [("run", "web.before_start")]
    stage.order(stage.core.stop, stage.web)
    assert ("stop", "web.before_start") in stage.under_way()
    stage.finish("stop")
    assert "web.before_start" not in stage.runner.running


def test_kill_does_not_wait_for_hooks_and_says_so(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web, kill=True)
    stage.finish("close")
    assert stage.web.is_fully_stopped
    assert stage.web.observed.warnings == ["web: was killed: hooks.after_stop was not run to its end"]


def test_kill_ends_the_hook_that_runs(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web)
    stage.finish("stop", "close", "hook")
    stage.order(stage.core.stop, stage.web, kill=True)
    assert stage.web.is_fully_stopped
    assert stage.runner.running.keys() == {"db.1.0"}


def test_limit_of_a_stop_is_that_of_its_hook_too(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web, limit_seconds=2.0)
    stage.finish("stop", "close", "hook")
    stage.clock.advance(1.9)
    stage.loop.settle()
    assert not stage.web.is_fully_stopped
    stage.clock.advance(0.2)
    stage.loop.settle()
    assert stage.web.is_fully_stopped
    assert stage.web.observed.warnings == ["web: hooks.after_stop had not ended after 2s, and was killed"]


def test_stop_of_a_server_that_has_failed_runs_the_hook_unless_the_other_one_is_why(stage: Stage) -> None:
    started(stage)
    stage.order(stage.runner.end, "web.1.0", Exit.from_returncode(1))
    stage.finish("close")
    assert stage.web.state == "failed"
    stage.order(stage.core.stop, stage.web)
    stage.finish("hook", "run")
    assert stage.web.state == "stopped"
    stage.order(stage.core.start, stage.web)
    stage.finish("hook")
    stage.finish("run", well=False)
    assert stage.web.state == "failed"
    assert stage.web.observed.failure is not None
    assert stage.web.observed.failure.message == "hooks.before_start exited with status 3"
    stage.order(stage.core.stop, stage.web)
    assert (stage.web.state, stage.under_way()) == ("stopped", [])


def test_hook_that_cannot_be_run_fails_the_start_with_the_reason(stage: Stage) -> None:
    stage.order(stage.core.start, stage.db)
    stage.finish("open", "place", "ready")
    stage.order(stage.core.start, stage.web)
    stage.finish("hook", well=False)
    assert stage.web.state == "failed"
    assert stage.web.observed.failure is not None
    assert stage.web.observed.failure.message == "hooks.before_start cannot be run: no process can be made"


def test_start_hook_that_a_stop_overtakes_before_it_has_a_process_is_ended(stage: Stage) -> None:
    stage.order(stage.core.start, stage.db)
    stage.finish("open", "place", "ready")
    stage.order(stage.core.start, stage.web)
    stage.order(stage.core.stop, stage.web)
    assert stage.under_way() == [("hook", "web.before_start")]
    stage.finish("hook")
    assert stage.runner.running.keys() == {"db.1.0"}
    assert (stage.web.state, stage.web.observed.failure) == ("stopped", None)


def test_start_hook_that_exceeds_the_start_timeout_is_killed_and_named_with_the_limit(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web)
    stage.finish("stop", "close", "hook", "run")
    begun_at = stage.clock.time()
    stage.order(stage.core.start, stage.web)
    stage.finish("hook")
    stage.clock.advance(stage.web.config.start_timeout)
    stage.loop.settle()
    observed, limit = stage.web.observed, format_duration(stage.web.config.start_timeout)
    assert (stage.web.state, observed.failed_since) == ("failed", begun_at)
    assert observed.failure is not None
    assert observed.failure.message == f"hooks.before_start had not ended after {limit}, and was killed"
    assert observed.failure.hint == "poolctl logs web; start_timeout says how long it may take"
    assert observed.next_step == "not restarted: poolctl logs web"
    assert stage.runner.running.keys() == {"db.1.0"}


def test_failed_stop_hook_is_an_event_with_the_cause_of_the_stop(stage: Stage) -> None:
    started(stage)
    with caused_by("poolctl stop"):
        stage.order(stage.core.stop, stage.web)
    stage.finish("stop", "close", "hook")
    stage.order(stage.runner.end, "web.after_stop", Exit.from_signal(9))
    (event,) = [event for event in stage.events if event.event == "hook failed"]
    message = "hooks.after_stop was killed by SIGKILL"
    assert (event.kind, event.message, event.cause) == ("lifecycle", message, "poolctl stop")
    assert (event.server, event.bind) == ("web", stage.web.config.key)
    assert (stage.web.state, stage.web.observed.warnings) == ("stopped", [f"web: {message}"])


async def test_hook_that_the_runner_cannot_run_fails_the_start_with_the_reason_and_its_hint() -> None:
    pool = OrderedCore(web(hooks=BOTH))
    (problem,) = await pool.start()
    assert problem.message == "hooks.before_start cannot be run: no process can be made"
    assert problem.hint == "look"
    assert pool.states() == {"web": "failed"}


def test_each_stop_returns_while_a_hook_cannot_be_killed(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web)
    stage.finish("stop", "close", "hook")
    stage.runner.deaf.add("web")
    stage.clock.advance(stage.web.config.stop_timeout + 1)
    stage.loop.settle()
    message = "hooks.after_stop still running after SIGKILL (nowhere)"
    assert stage.web.observed.failure is not None
    assert (stage.web.observed.failure.message, stage.web.observed.failures) == (message, 1)
    stage.order(stage.core.stop, stage.web)
    stage.finish("stop")
    assert stage.web.observed.failures == 2
    stage.runner.deaf.clear()
    stage.order(stage.runner.end, "web.after_stop", Exit.from_signal(9))
    assert stage.web.is_fully_stopped


def test_hook_that_cannot_be_watched_fails_the_start(stage: Stage) -> None:
    stage.order(stage.core.start, stage.db)
    stage.finish("open", "place", "ready")
    break_once(stage.runner, "wait_for_exit")
    stage.order(stage.core.start, stage.web)
    stage.finish("hook")
    assert stage.web.observed.failure is not None
    assert stage.web.observed.failure.message == "hooks.before_start cannot be run: can't start new thread"
    assert stage.web.state == "failed"
