"""Workers that die again and again: at once, later, and then no more, until somebody starts the server again."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.runners.runner_protocol import Exit
from poolctl.states import Status
from tests.manual_clock import ManualClock
from tests.unit.core.ordered_core import OrderedCore, RecordedEvents, run, turns, web
from tests.unit.core.stepped_runner import SteppedLoop, SteppedRunner
from tests.unit.runners.scripted_runner import FAILS, NEVER

AT_ONCE = {"policy": "on-failure", "backoff": {"initial": 0, "max": 0}, "limit": 2, "window": 60}
KILLED = Exit.from_signal(9)


async def die(pool: OrderedCore) -> None:
    (worker,) = pool.runner.running
    pool.runner.end(worker, KILLED)
    await turns()


def test_limit_is_of_a_window_and_the_reason_is_reported() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(restart=AT_ONCE))
        await pool.start()
        for _ in range(2):
            await die(pool)
            assert pool.states() == {"web": "running"}
        pool.clock.advance(61)
        for _ in range(2):
            await die(pool)
            assert pool.states() == {"web": "running"}
        assert len(pool.core.entries["web"].observed.restart_times) == 2, "what is older is forgotten"
        await die(pool)
        assert pool.states() == {"web": "failed"}
        entry = pool.core.entries["web"]
        assert entry.health is Status.KO
        assert entry.observed.failure is not None
        assert entry.observed.failure.message == "killed by SIGKILL; given up after 2 restarts in 1m"
        assert pool.runner.opened == set()

    run(scenario())


def test_start_resets_the_count() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(restart=AT_ONCE))
        await pool.start()
        for _ in range(3):
            await die(pool)
        assert pool.states() == {"web": "failed"}
        assert await pool.start() == []
        for _ in range(2):
            await die(pool)
            assert pool.states() == {"web": "running"}
        assert pool.core.entries["web"].observed.restarts == 4

    run(scenario())


def test_connections_wait_while_the_worker_is_replaced_and_in_a_short_pause() -> None:
    async def scenario() -> None:
        slow: dict[str, Any] = AT_ONCE | {"backoff": {"initial": 20, "max": 20}}
        pool = OrderedCore(web(restart=slow))
        await pool.start()
        await die(pool)
        assert (pool.states(), pool.runner.opened) == (
            {"web": "running"},
            {pool.core.entries["web"].config.key},
        )
        await die(pool)
        assert pool.states() == {"web": "backoff"}
        assert pool.runner.opened, "held, as it comes back sooner than a start may take"
        assert await pool.start() == []
        assert pool.states() == {"web": "running"}

    run(scenario())


def test_one_of_several_that_dies_leaves_the_others_alone() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(workers=3, restart=AT_ONCE))
        await pool.start()
        pool.runner.log.clear()
        pool.runner.end("web.1.1", KILLED)
        await turns()
        assert pool.runner.log == ["place web.1.1"]
        assert pool.states() == {"web": "running"}

    run(scenario())


def test_a_listener_that_cannot_be_opened_is_tried_again_after_a_pause_and_not_at_once() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(restart=AT_ONCE | {"backoff": {"initial": 20, "max": 20}}))
        pool.runner.unopenable.add("web")
        assert await pool.start() != []
        await turns()
        entry = pool.core.entries["web"]
        assert (entry.state, entry.observed.failures) == ("backoff", 1)
        pool.runner.unopenable.clear()
        assert await pool.start() == []

    run(scenario())


def test_server_not_ready_in_time_has_failed_although_it_ends_with_status_0() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(start_timeout="20ms"), web="never")
        (problem,) = await pool.start()
        assert "was not ready within 20ms" in problem.message
        assert all(exit_.ok for exit_ in pool.runner.ended.values())
        assert pool.states() == {"web": "failed"}

    run(scenario())


def test_refusal_by_the_system_is_explained_with_its_fix() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())

        async def place(*_: Any) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        pool.runner.place = place  # type: ignore[method-assign]
        (problem,) = await pool.start()
        assert problem.message == "the machine refuses a worker: Too many open files"
        assert "ulimit -n" in problem.hint

    run(scenario())


def test_server_whose_worker_exits_with_status_0_is_stopped_and_not_restarted_on_failure() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(restart=AT_ONCE))
        await pool.start()
        pool.runner.end("web.1.0", Exit.from_status(0))
        await turns()
        observed = pool.core.entries["web"].observed
        assert pool.states() == {"web": "stopped"}
        assert (observed.restarts, observed.next_step, observed.failure) == (0, "not restarted", None)
        assert (observed.last_exit, pool.runner.running) == (Exit.from_status(0), {})

    run(scenario())


def test_long_backoff_refuses_connections_after_the_start_timeout_and_ends_with_another_worker() -> None:
    pool = OrderedCore(web(restart=AT_ONCE | {"backoff": {"initial": 60, "max": 60}}, start_timeout=10))
    loop = SteppedLoop(pool.clock)
    entry = pool.core.entries["web"]
    try:
        loop.run_until_complete(pool.start())
        for _ in range(2):
            loop.run_until_complete(die(pool))
        assert (pool.states(), pool.runner.opened) == ({"web": "backoff"}, {entry.config.key})
        assert entry.observed.failure is not None
        assert entry.observed.failure.message == "killed by SIGKILL"
        assert entry.observed.next_step.startswith("restart")
        pool.clock.advance(9)
        loop.settle()
        assert pool.runner.opened, "connections wait as long as a start may take"
        pool.clock.advance(2)
        loop.settle()
        assert (pool.states(), pool.runner.opened) == ({"web": "backoff"}, set())
        pool.clock.advance(90)
        loop.settle()
        assert (pool.states(), pool.runner.opened) == ({"web": "running"}, {entry.config.key})
        assert entry.observed.restarts == 2
    finally:
        loop.close()


def test_restart_without_overlap_keeps_the_worker_and_reports_why_no_other_can_be_started() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(overlap=False))
        await pool.start()
        pool.runner.unplaceable.add("web")
        (problem,) = await pool.restart()
        assert (problem.message, problem.hint) == ("no worker can be forked", "look")
        assert (pool.states(), list(pool.runner.running)) == ({"web": "running"}, ["web.1.0"])
        pool.runner.unplaceable.clear()
        assert await pool.restart() == []
        assert "web.1.0" not in pool.runner.running

    run(scenario())


def test_listener_that_fails_to_open_after_a_stop_is_no_failure() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        pool.runner.may_open.clear()
        pool.runner.unopenable.add("web")
        starting = pool.begin(pool.start())
        await turns()
        stopping = pool.begin(pool.stop())
        await turns()
        pool.runner.may_open.set()
        assert await stopping == []
        await starting
        assert (pool.states(), pool.core.entries["web"].observed.failure) == ({"web": "stopped"}, None)

    run(scenario())


def test_worker_that_is_killed_gets_no_time_even_if_it_is_stopping_already() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(stop_timeout=7))
        await pool.start()
        entry = pool.core.entries["web"]
        (worker,) = entry.observed.workers.values()
        pool.runner.may_end.clear()
        stopping = pool.begin(pool.stop())
        await turns()
        pool.core.kill(entry, worker)
        assert await stopping == []
        pool.runner.may_end.set()
        assert "stop web.1.0 0" in pool.runner.log

    run(scenario())


def test_stuck_worker_has_a_second_to_end_and_less_if_its_stop_timeout_is_shorter() -> None:
    async def scenario(stop_timeout: float, expected: str) -> None:
        pool = OrderedCore(web(stop_timeout=stop_timeout))
        await pool.start()
        (worker,) = pool.core.entries["web"].observed.workers.values()
        worker.stuck = True
        await pool.stop()
        assert f"stop web.1.0 {expected}" in pool.runner.log

    run(scenario(7, "1"))
    run(scenario(0.5, "0.5"))


def test_worker_that_had_to_be_killed_is_named_in_a_warning_with_its_time() -> None:
    async def scenario(exit_: Exit, warnings: list[str]) -> None:
        pool = OrderedCore(web(stop_timeout=7))
        await pool.start()
        stop = pool.runner.stop

        async def stopped(*args: Any, **options: Any) -> Exit:
            await stop(*args, **options)
            return exit_

        pool.runner.stop = stopped  # type: ignore[method-assign]
        await pool.stop()
        await turns()
        assert pool.core.entries["web"].observed.warnings == warnings

    run(scenario(KILLED, ["web: had to be killed after 7s"]))
    run(scenario(Exit.from_signal(15), []))


def test_worker_that_survives_its_kill_is_reported_with_where_it_runs() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        await pool.start()
        (worker,) = pool.core.entries["web"].observed.workers.values()
        pool.runner.deaf.add("web")
        (problem,) = await pool.stop()
        assert problem.message == "could not be ended, not even by SIGKILL (nowhere)"
        assert worker.unstoppable
        assert list(pool.core.entries["web"].observed.workers) == ["web.1.0"]

    run(scenario())


def test_stop_during_the_import_of_an_application_places_no_worker() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(preload=True))
        imports = asyncio.Event()

        async def prepare(*_: Any) -> str:
            await imports.wait()
            return ""

        pool.runner.prepare = prepare  # type: ignore[attr-defined]
        starting = pool.begin(pool.start())
        await turns()
        assert await pool.stop() == []
        await starting
        assert pool.states() == {"web": "stopped"}
        assert not any(line.startswith("place") for line in pool.runner.log)

    run(scenario())


def test_application_that_cannot_be_preloaded_is_served_and_reported_once() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(preload=True, workers=2))

        async def prepare(*_: Any) -> str:
            return "it starts threads"

        pool.runner.prepare = prepare  # type: ignore[attr-defined]
        assert await pool.start() == []
        assert len(pool.runner.running) == 2
        assert pool.core.entries["web"].observed.warnings == [
            "web: preload = true has no effect: it starts threads"
        ]

    run(scenario())


def test_connections_that_wait_for_a_wake_are_closed_when_it_fails_and_not_before() -> None:
    pool = OrderedCore(web(scale={"min": 0, "idle": 1}, start_timeout=10), web=NEVER)
    loop = SteppedLoop(pool.clock)
    dismissal = f"dismiss {pool.core.entries['web'].config.key}"
    try:
        loop.run_until_complete(pool.start())
        assert pool.states() == {"web": "sleeping"}

        async def rung() -> None:
            pool.runner.ring("web")

        loop.run_until_complete(rung())
        loop.settle()
        assert list(pool.runner.running) == ["web.1.0"]
        pool.clock.advance(9)
        loop.settle()
        assert dismissal not in pool.runner.log
        pool.clock.advance(2)
        loop.settle()
        assert pool.runner.log.count(dismissal) == 1
    finally:
        loop.close()


def test_listener_of_a_sleeping_server_is_no_longer_watched_after_an_order_to_wake_it() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(scale={"min": 0, "idle": 1}))
        await pool.start()
        entry = pool.core.entries["web"]
        pool.core.wake(entry)
        await turns()
        assert pool.runner.log[1:] == ["arm web", f"disarm {entry.config.key}", "place web.1.0"]
        assert (entry.listener.armed, pool.states()) == (None, {"web": "running"})

    run(scenario())


def test_replacement_that_fails_leaves_the_configuration_of_the_worker_that_serves() -> None:
    async def scenario() -> None:
        before = web()
        pool = OrderedCore(before, **{"web.2.0": FAILS})
        await pool.start()
        entry = pool.core.entries["web"]
        pool.core.change(entry, web(tags=["new"]), live=False)
        await turns()
        assert (entry.config, entry.desired.generation) == (before, 1)
        assert (list(pool.runner.running), pool.states()) == (["web.1.0"], {"web": "running"})
        assert entry.observed.failure is not None
        assert entry.observed.failure.message == "exited with status 3 before it was ready"

    run(scenario())


# Hooks of a start or a stop that other changes overtake.


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
        self.core = Core([db, web], self.runner, self.clock, RecordedEvents())

    def order(self, work: Callable[..., Any], *args: Any, **options: Any) -> None:
        async def ordered() -> None:
            work(*args, **options)

        self.loop.run_until_complete(ordered())
        self.loop.settle()

    def finish(self, *kinds: str, well: bool = True) -> None:
        """Let operations of these kinds end, one after another."""
        for kind in kinds:
            (step,) = [each for each in self.runner.steps if each.kind == kind]
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
    made = Stage()
    yield made
    made.loop.close()


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
    stage.order(stage.core.change, stage.web, stage.web.config.but(hooks=None), live=True)
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


def test_kill_does_not_wait_for_hooks_and_says_so(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web, kill=True)
    stage.finish("close")
    assert stage.web.at_rest
    assert stage.web.observed.warnings == ["web: was killed: hooks.after_stop was not run to its end"]


def test_kill_ends_the_hook_that_runs(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web)
    stage.finish("stop", "close", "hook")
    stage.order(stage.core.stop, stage.web, kill=True)
    assert stage.web.at_rest
    assert stage.runner.running.keys() == {"db.1.0"}


def test_limit_of_a_stop_is_that_of_its_hook_too(stage: Stage) -> None:
    started(stage)
    stage.order(stage.core.stop, stage.web, limit_seconds=2.0)
    stage.finish("stop", "close", "hook")
    stage.clock.advance(1.9)
    stage.loop.settle()
    assert not stage.web.at_rest
    stage.clock.advance(0.2)
    stage.loop.settle()
    assert stage.web.at_rest
    assert stage.web.observed.warnings == ["web: hooks.after_stop had not ended after 2s, and was killed"]


def test_stop_of_a_server_that_has_failed_runs_the_hook_unless_the_other_one_is_why(stage: Stage) -> None:
    started(stage)
    stage.order(stage.runner.end, "web.1.0", Exit.from_status(1))
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
