"""Servers that come, change and go while the others serve on."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.core.command_goal import CommandGoal
from poolctl.core.configuration_diff import read_certificate_expiry
from poolctl.core.core import Core, RunnerEventForwarder
from poolctl.core.server_entry import Entry, restore
from poolctl.core.server_state import Desired, Overrides
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.core.workqueue import BATCH, caused_by
from poolctl.errors import PoolRestartError, PoolStartError, PoolStopError, ServerError
from poolctl.runners.runner_protocol import Exit, Placement
from tests.certificates import certificate
from tests.needs import needs
from tests.unit.core.ordered_core import OrderedCore, turns, web
from tests.unit.core.test_hooks import Stage
from tests.unit.runners.scripted_runner import BREAKS, FAILS, NEVER


async def test_a_worker_keeps_the_configuration_that_it_was_placed_with_until_it_is_changed_live() -> None:
    pool = OrderedCore(web(stop_timeout=1))
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.change(entry, web(stop_timeout=2), live=False)
    await turns()
    assert "stop web.1.0 1" in pool.runner.log
    pool.core.change(entry, web(stop_timeout=3), live=True)
    await pool.stop()
    assert "stop web.2.0 3" in pool.runner.log


async def test_a_changed_server_whose_replacement_fails_goes_back_to_the_configuration_that_serves() -> None:
    before, after = web(), web(tags=["new"])
    pool = OrderedCore(before, **{"web.2.0": FAILS})
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.change(entry, after, live=False)
    await turns()
    assert entry.config is before
    assert pool.states() == {"web": "running"}
    pool.core.change(entry, after, live=False)
    await turns()
    assert entry.config is after
    assert set(pool.runner.running) == {"web.3.0"}


async def test_a_worker_that_must_not_run_twice_ends_before_one_of_a_configuration_that_may() -> None:
    pool = OrderedCore(web(overlap=False))
    await pool.start()
    pool.core.change(pool.core.entries["web"], web(overlap=True), live=False)
    await turns()
    assert pool.runner.most_at_once == {"web": 1}
    assert set(pool.runner.running) == {"web.2.0"}


async def test_an_ordered_restart_counts_when_its_replacement_is_ready() -> None:
    pool = OrderedCore(web(), **{"web.2.0": FAILS})
    await pool.start()
    entry = pool.core.entries["web"]
    for restarts in (0, 1, 2):
        await pool.restart()
        assert entry.observed.restarts == restarts
    pool.core.change(entry, web(tags=["new"]), live=False)
    await turns()
    assert entry.observed.restarts == 3


async def test_a_supervisor_counts_the_restart_whose_replacement_it_finds_ready() -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    entry.order_restart()
    pool.core.adopt_worker(entry, Worker("web.2.0", 2, 0, entry.config, WorkerPhase.READY, ready_at=1.0))
    assert (entry.observed.restarts, entry.desired.restarting) == (1, 0)


async def test_a_change_of_a_server_that_does_not_run_starts_nothing() -> None:
    pool = OrderedCore(web())
    pool.core.change(pool.core.entries["web"], web(tags=["new"]), live=False)
    await turns()
    assert pool.runner.log == []


async def test_a_removed_server_finishes_what_it_has_and_is_forgotten_with_its_edges() -> None:
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]), web("other"))
    await pool.start()
    pool.core.schedule_removal(pool.core.entries["api"])
    await turns()
    assert [line for line in pool.runner.log if "api" in line][-2:] == ["drain api.1.0", "stop api.1.0 10"]
    assert pool.states() == {"db": "running", "other": "running"}
    assert pool.core.servers.dependents(pool.core.entries["db"]) == []


async def test_an_added_server_waits_for_what_it_depends_on_and_is_waited_for() -> None:
    pool = OrderedCore(web("api", depends_on=["db"]))
    pool.core.start(pool.core.add(web("late", depends_on=["api"])))
    pool.core.start(pool.core.add(web("db")))
    await pool.start()
    placed = [line for line in pool.runner.log if line.startswith("place")]
    assert placed == ["place db.1.0", "place api.1.0", "place late.1.0"]


async def test_server_that_is_added_again_while_it_leaves_runs_next_to_the_leaving_one() -> None:
    pool = OrderedCore(web())
    await pool.start()
    pool.runner.may_end.clear()
    pool.core.schedule_removal(pool.core.entries["web"])
    await turns()
    pool.core.start(pool.core.add(web(tags=["again"])))
    await turns()
    assert pool.states() == {"web": "running"}
    pool.runner.may_end.set()
    await turns()
    assert set(pool.runner.running) == {"web.2.0"}
    assert pool.core.entries["web"].config.tags == ("again",)


async def _start_after_stop(pool: OrderedCore, *names: str) -> list[str]:
    def start(entry: Entry) -> None:
        pool.core.start(entry, after_stop=True)

    problems = await pool.order(PoolStartError, [pool.core.entries[name] for name in names], start)
    return [problem.message for problem in problems]


async def test_start_after_a_stop_lets_it_end_and_dependents_wait_for_both() -> None:
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
    await pool.start()
    pool.runner.may_end.clear()
    stopping = pool.begin(pool.stop("db"))
    await turns()
    starting = pool.begin(_start_after_stop(pool, "db", "api"))
    await turns()
    assert pool.states() == {"db": "stopping", "api": "stopping"}
    pool.runner.log.clear()
    pool.runner.may_end.set()
    await stopping
    assert await starting == []
    assert [line for line in pool.runner.log if line[:5] in ("stop ", "place")] == [
        "stop api.1.0 10", "stop db.1.0 10", "place db.1.0", "place api.1.0",
    ]  # fmt: skip


async def test_start_after_a_stop_is_cancelled_by_another_stop_and_overtaken_by_a_start_at_once() -> None:
    pool = OrderedCore(web())
    await pool.start()
    pool.runner.may_end.clear()
    pool.begin(pool.stop())
    await turns()
    starting = pool.begin(_start_after_stop(pool, "web"))
    await turns()
    pool.begin(pool.stop())
    assert await starting == ["was stopped by another command meanwhile"]
    pool.begin(_start_after_stop(pool, "web"))
    await turns()
    assert pool.states() == {"web": "stopping"}
    await pool.start()
    assert pool.states() == {"web": "running"}
    assert pool.core.entries["web"].desired.queued_start is None
    pool.runner.may_end.set()
    await turns()
    assert set(pool.runner.running) == {"web.2.0"}


async def test_the_order_of_the_servers_is_the_one_that_is_asked_for() -> None:
    pool = OrderedCore(web("a"), web("b"), web("c"))
    pool.core.servers.sort(["c", "a", "unknown"])
    assert list(pool.states()) == ["c", "a", "b"]


async def test_server_out_of_rotation_answers_is_not_ready_and_keeps_no_command_waiting() -> None:
    pool = OrderedCore(web("db", workers=2), web("api", depends_on=["db"]))
    await pool.start("db")
    entry = pool.core.entries["db"]
    pool.core.replace_overrides(entry, Overrides(out=True))
    await turns()
    assert pool.runner.log[-2:] == ["out db.1.0", "out db.1.1"]
    assert (entry.state, entry.ready) == ("draining", False)
    assert await pool.start("api") == []
    # What replaces it is out of rotation as well.
    await pool.restart("db")
    await turns()
    assert {"out db.2.0", "out db.2.1"} <= set(pool.runner.log)
    pool.core.replace_overrides(entry)
    await turns()
    assert pool.runner.log[-2:] == ["in db.2.0", "in db.2.1"]
    assert pool.states()["db"] == "running"


async def test_servers_are_started_in_the_order_of_the_file_right_after_a_boot_that_found_nothing() -> None:
    names = [f"s{number}" for number in range(20)]
    pool = OrderedCore(*(web(name, bind=f"127.0.0.1:{8100 + place}") for place, name in enumerate(names)))
    for entry in pool.core.entries.values():
        pool.core.resume_adopted_server(entry)
    await turns(1)
    await pool.start()
    assert [line for line in pool.runner.log if line.startswith("place")] == [
        f"place {name}.1.0" for name in names
    ]


async def test_adopted_server_continues_with_the_generation_that_serves() -> None:
    pools = []  # kept until the end, so that no task is collected while the loop runs
    for leaving, staying, expected in ((1, 2, 2), (1, None, 3), (None, 1, 2)):
        pool = OrderedCore(web())
        pools.append(pool)
        entry = pool.core.entries["web"]
        generation = 2 if leaving is None else 1
        restore(entry, {"desired": "run", "generation": generation, "newest": 2})
        await pool.runner.open(entry.config)
        for generation, phase in ((leaving, WorkerPhase.DRAINING), (staying, WorkerPhase.READY)):
            if generation is not None:
                placement = await pool.runner.place(entry.config, generation, 0)
                worker = Worker(placement.id, generation, 0, entry.config, phase, placement, 1.0)
                pool.core.adopt_worker(entry, worker)
        pool.core.adopt_listener(entry, entry.config)
        pool.core.resume_adopted_server(entry)
        await turns(40)
        assert set(pool.runner.running) == {f"web.{expected}.0"}
        assert pool.states() == {"web": "running"}


async def test_serving_worker_is_not_ended_for_a_successor_that_cannot_start() -> None:
    pool = OrderedCore(web(overlap=False))
    await pool.start()
    pool.runner.unplaceable.add("web")
    done = await pool.restart()
    assert [problem.message for problem in done] == ["no worker can be forked"]
    assert set(pool.runner.running) == {"web.1.0"}
    assert pool.states() == {"web": "running"}
    pool.runner.unplaceable.clear()
    assert await pool.restart() == []
    assert set(pool.runner.running) == {"web.3.0"}


def job(**keys: Any) -> ServerConfig:
    """A job that runs to its end."""
    return ServerConfig(**{"name": "job", "command": ["true"], "job": True} | keys)


async def test_job_whose_schedule_is_taken_out_runs_once_and_one_that_gets_a_schedule_waits() -> None:
    stage = OrderedCore(job(every="0 3 * * *"))
    entry = stage.core.entries["job"]
    await stage.start()
    assert (entry.desired.state, entry.observed.workers) == (Desired.SCHEDULED, {})
    stage.core.change(entry, job(), live=False)
    await turns()
    assert (entry.completed, entry.desired.state) == (True, Desired.COMPLETED)


async def test_change_of_a_schedule_of_a_stopped_job_starts_nothing() -> None:
    stage = OrderedCore(job(every="0 3 * * *"))
    entry = stage.core.entries["job"]
    stage.core.change(entry, job(), live=False)
    await turns()
    assert (entry.wanted, entry.observed.workers) == (False, {})


async def test_a_stop_that_a_start_overtakes_names_the_other_command() -> None:
    pool = OrderedCore(web())
    await pool.start()
    entry = pool.core.entries["web"]
    goal = CommandGoal(pool.core, PoolStopError, [entry])
    assert goal.is_over(entry), "it runs, and nobody has stopped it"
    assert goal.is_overtaken(entry)
    (problem,) = filter(None, [goal.problem(entry)])
    assert "was started by another command meanwhile" in problem.message


async def test_a_server_that_ends_after_it_was_ready_is_a_failure_of_its_start_and_none_of_its_stop() -> None:
    pool = OrderedCore(web(restart="on-failure"))
    await pool.start()
    entry = pool.core.entries["web"]
    to_start = CommandGoal(pool.core, PoolStartError, [entry])
    to_stop = CommandGoal(pool.core, PoolStopError, [entry])
    pool.runner.script["web"] = NEVER
    pool.runner.end("web.1.0", Exit.from_signal(9))
    await turns()
    assert entry.state == "starting"
    started = to_start.problem(entry)
    assert started is not None
    assert "SIGKILL" in started.message
    later = CommandGoal(pool.core, PoolStartError, [entry])
    assert later.problem(entry) is None, "it ended before this command"
    pool.core.stop(entry)
    await turns()
    assert to_stop.problem(entry) is None


@pytest.mark.parametrize(
    ("keys", "script", "why", "fix"),
    [
        ({"disabled": True}, None, "waits for db, which is disabled", "poolctl enable db"),
        ({}, None, "waits for db, which is stopped", "poolctl start db"),
        ({}, FAILS, "waits for db, which did not become ready", "poolctl logs db"),
    ],
)
async def test_a_server_whose_dependency_cannot_become_ready_names_it_and_the_fix(
    keys: dict[str, Any], script: str | None, why: str, fix: str
) -> None:
    pool = OrderedCore(web("db", **keys), web("api", depends_on=["db"]), **({"db": script} if script else {}))
    if script:
        await pool.start("db")
    api = pool.core.entries["api"]
    (problem,) = await pool.order(PoolStartError, [api], pool.core.start)
    assert why in problem.message
    assert problem.hint == fix


async def test_a_server_that_is_changed_waits_for_its_dependencies_though_it_was_started_without_them() -> (
    None
):
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
    await pool.start("api", deps=False)
    api = pool.core.entries["api"]
    assert api.desired.ignore_dependencies
    pool.core.change(api, web("api", depends_on=["db"], tags=["new"]), live=False)
    assert not api.desired.ignore_dependencies


# Servers that sleep under the core: who wakes whom, in which order, and what becomes of those who wait in vain.


def sleepy(name: str = "web", **keys: Any) -> Any:
    return web(name, scale={"min": 0, "idle": 1}, **keys)


def quiet(pool: OrderedCore, name: str, *, idle: bool = True) -> None:
    """All workers of the server say that they have had no traffic, or that they have some again."""
    entry = pool.core.entries[name]
    for worker in list(entry.observed.workers.values()):
        pool.core.set_idle(entry, worker.id, idle)


async def woken(pool: OrderedCore, name: str) -> None:
    pool.runner.ring(name)
    await turns()
    assert pool.states()[name] == "running"


async def test_server_is_watched_after_a_start_woken_by_a_request_and_drained_when_idle() -> None:
    pool = OrderedCore(sleepy())
    assert (await pool.start(), pool.states()) == ([], {"web": "sleeping"})
    await woken(pool, "web")
    quiet(pool, "web")
    await turns()
    assert pool.states() == {"web": "sleeping"}
    await woken(pool, "web")
    assert pool.runner.log[1:] == [
        "arm web", "place web.1.0", "arm web", "drain web.1.0", "stop web.1.0 10", "place web.2.0",
    ]  # fmt: skip


async def test_order_to_wake_starts_a_sleeping_server_and_leaves_others_alone() -> None:
    pool = OrderedCore(sleepy("db"), sleepy("web", depends_on=["db"]))
    await pool.start()
    for _ in range(3):
        pool.core.wake(pool.core.entries["web"])
    await turns()
    pool.core.wake(pool.core.entries["web"])
    await turns()
    assert pool.states() == {"db": "running", "web": "running"}
    assert [line for line in pool.runner.log if line.startswith("place")] == ["place db.1.0", "place web.1.0"]
    await pool.stop()
    pool.core.wake(pool.core.entries["web"])
    await turns()
    assert pool.states() == {"db": "stopped", "web": "stopped"}


async def test_request_while_it_drains_starts_another_worker_next_to_the_draining_one() -> None:
    pool = OrderedCore(sleepy())
    await pool.start()
    await woken(pool, "web")
    pool.runner.may_drain = asyncio.Event()
    quiet(pool, "web")
    await turns()
    assert pool.states() == {"web": "draining"}
    assert not pool.core.entries["web"].is_missing
    await woken(pool, "web")
    assert len(pool.core.entries["web"].observed.workers) == 2
    pool.runner.may_drain.set()
    await turns()
    assert list(pool.core.entries["web"].observed.workers) == ["web.2.0"]


async def test_traffic_that_begins_again_keeps_it_awake() -> None:
    pool = OrderedCore(sleepy())
    await pool.start()
    await woken(pool, "web")
    quiet(pool, "web")
    quiet(pool, "web", idle=False)
    await turns()
    assert pool.states() == {"web": "running"}


async def test_dependencies_wake_first_and_sleep_last() -> None:
    pool = OrderedCore(sleepy("db"), sleepy("web", depends_on=["db"]))
    await pool.start()
    assert pool.states() == {"db": "sleeping", "web": "sleeping"}
    await woken(pool, "web")
    placed = [line for line in pool.runner.log if line.startswith("place")]
    assert placed == ["place db.1.0", "place web.1.0"]
    quiet(pool, "db")
    await turns()
    assert pool.states() == {"db": "running", "web": "running"}
    quiet(pool, "web")
    await turns()
    assert pool.states() == {"db": "sleeping", "web": "sleeping"}


@pytest.mark.parametrize("deps", [True, False])
async def test_dependencies_wake_first_after_a_restart_too_if_they_are_to_run(deps: bool) -> None:
    pool = OrderedCore(sleepy("db"), sleepy("web", depends_on=["db"]))
    await pool.start("web", deps=deps)
    await woken(pool, "web")
    await pool.restart("web")
    for name in ("web", "db"):
        quiet(pool, name)
    await turns()
    pool.runner.log.clear()
    await woken(pool, "web")
    placed = [line for line in pool.runner.log if line.startswith("place")]
    assert placed == (["place db.2.0", "place web.3.0"] if deps else ["place web.3.0"])


async def test_server_that_always_runs_keeps_its_dependencies_awake() -> None:
    pool = OrderedCore(sleepy("db"), web("web", depends_on=["db"]))
    await pool.start()
    quiet(pool, "db")
    await turns()
    assert pool.states() == {"db": "running", "web": "running"}
    await pool.stop("web")
    await turns()
    assert pool.states() == {"db": "sleeping", "web": "stopped"}


async def test_a_restart_of_one_that_sleeps_is_none() -> None:
    pool = OrderedCore(sleepy())
    await pool.start()
    assert (await pool.restart("web"), pool.core.entries["web"].observed.restarts) == ([], 0)
    assert pool.states() == {"web": "sleeping"}
    await pool.stop("web")
    assert pool.states() == {"web": "stopped"}
    assert not any(line.startswith("place") for line in pool.runner.log)


async def test_one_that_has_had_enough_by_itself_sleeps_and_one_that_is_needed_does_not() -> None:
    pool = OrderedCore(
        sleepy("db", restart="on-failure"), sleepy("web", depends_on=["db"], restart="on-failure")
    )
    await pool.start()
    await woken(pool, "web")
    pool.runner.end("web.1.0", Exit.from_returncode(0))
    await turns()
    assert pool.states()["web"] == "sleeping"
    await woken(pool, "web")
    pool.runner.end("db.1.0", Exit.from_returncode(0))
    await turns()
    assert pool.states()["db"] == "stopped"


async def test_one_that_dies_awake_is_started_again() -> None:
    pool = OrderedCore(sleepy(restart="on-failure"))
    await pool.start()
    await woken(pool, "web")
    pool.runner.end("web.1.0", Exit.from_signal(9))
    await turns()
    assert (pool.states(), pool.core.entries["web"].observed.restarts) == ({"web": "running"}, 1)


async def test_a_wake_that_fails_is_a_failure_and_a_start_puts_it_to_sleep_again() -> None:
    pool = OrderedCore(sleepy(), web=FAILS)
    await pool.start()
    pool.runner.ring("web")
    await turns()
    assert pool.states() == {"web": "failed"}
    assert (await pool.start("web"), pool.states()) == ([], {"web": "sleeping"})


async def test_stopped_server_that_was_given_up_stays_stopped() -> None:
    policy = {"policy": "on-failure", "limit": 0, "window": 0.5}
    pool = OrderedCore(sleepy(restart=policy))
    await pool.start()
    await woken(pool, "web")
    (worker,) = pool.runner.running
    pool.runner.end(worker, Exit.from_signal(9))
    await turns()
    assert pool.states() == {"web": "failed"}
    await pool.stop("web")
    await asyncio.sleep(0.6)  # longer than the window, after which it would sleep again
    assert pool.states() == {"web": "stopped"}


@pytest.mark.parametrize("script", [NEVER, FAILS])
async def test_wait_for_a_wake_is_bounded_by_the_start_timeout(script: str) -> None:
    policy = {"policy": "on-failure", "backoff": {"initial": 60, "max": 60}, "limit": 100}
    pool = OrderedCore(sleepy(start_timeout=0.02, restart=policy), web=script)
    await pool.start()
    pool.runner.ring("web")
    dismissed = f"close_waiting {pool.core.entries['web'].config.key}"
    while dismissed not in pool.runner.log:
        await asyncio.sleep(0.001)
    assert pool.states()["web"] != "sleeping"


async def test_server_whose_dependency_is_not_ready_stays_starting_without_its_clients_and_starts_after_it() -> (
    None
):
    pool = OrderedCore(web("db"), sleepy(depends_on=["db"], start_timeout=0.5), db=FAILS)
    await pool.start()
    assert pool.states() == {"db": "failed", "web": "sleeping"}
    pool.runner.ring("web")
    dismissed = f"close_waiting {pool.core.entries['web'].config.key}"
    while dismissed not in pool.runner.log:
        await asyncio.sleep(0.001)
    assert pool.states() == {"db": "failed", "web": "starting"}
    pool.runner.script.clear()
    assert await pool.start("db") == []
    await turns()
    assert pool.states() == {"db": "running", "web": "running"}


async def test_changed_idle_time_reaches_running_workers() -> None:
    pool = OrderedCore(sleepy())
    await pool.start()
    await woken(pool, "web")
    quiet(pool, "web")
    entry = pool.core.entries["web"]
    pool.core.change(entry, web(scale={"min": 0, "idle": 7}), live=True)
    await turns()
    assert pool.runner.log[-1] == "idle after 7 web.1.0"
    assert pool.states() == {"web": "running"}
    pool.core.change(entry, web(), live=True)
    assert pool.runner.log[-1] == "idle after 0 web.1.0"


async def test_another_configuration_is_watched_as_it_is() -> None:
    pool = OrderedCore(sleepy())
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.change(entry, sleepy(bind="127.0.0.1:9999"), live=False)
    await turns()
    assert pool.states() == {"web": "sleeping"}
    assert pool.runner.opened == {"127.0.0.1:9999"}
    pool.core.change(entry, web(bind="127.0.0.1:9999"), live=False)
    await turns()
    assert pool.states() == {"web": "running"}


@pytest.mark.parametrize("live", [True, False])
async def test_sleeping_server_is_watched_again_with_its_changed_configuration(live: bool) -> None:
    pool = OrderedCore(sleepy())
    await pool.start()
    entry = pool.core.entries["web"]
    pool.runner.log.clear()
    pool.core.change(entry, sleepy(tags=["new"]), live=live)
    await turns()
    assert pool.runner.log == [f"disarm {entry.config.key}", "arm web"]


async def test_restart_of_a_sleeping_server_imports_its_application_again() -> None:
    pool = OrderedCore(sleepy(preload=True))
    since: list[float] = []

    async def prepare(_: ServerConfig, code_since: float) -> str:
        since.append(code_since)
        return ""

    pool.runner.preload_application = prepare  # type: ignore[attr-defined]
    await pool.start()
    await turns()
    first = pool.clock.monotonic()
    pool.clock.advance(60)
    await pool.restart()
    await turns()
    assert (since, pool.states()) == ([first, first + 60], {"web": "sleeping"})


# Orders about one server, and what its runner is asked for because of them.


def worker_of(entry: Entry, worker_id: str) -> Worker:
    return entry.observed.workers[worker_id]


async def test_kill_ends_the_workers_at_once_and_a_limit_shortens_only_what_they_have_left() -> None:
    for order, seconds in (
        ({"kill": True}, "0"),
        ({"limit_seconds": 3.0}, "3"),
        ({"limit_seconds": 30.0}, "10"),
        ({}, "10"),
    ):
        pool = OrderedCore(web())
        await pool.start()
        pool.core.stop(pool.core.entries["web"], **order)  # type: ignore[arg-type]
        await turns()
        assert f"stop web.1.0 {seconds}" in pool.runner.log
        assert pool.states() == {"web": "stopped"}


@pytest.mark.parametrize(("failure", "state"), [(None, "stopped"), (ServerError("took too long"), "failed")])
async def test_start_that_is_given_up_stops_the_server_or_lets_it_fail(
    failure: ServerError | None, state: str
) -> None:
    pool = OrderedCore(web(), web="never")
    entry = pool.core.entries["web"]
    pool.core.start(entry)
    await turns()
    pool.core.abandon_start(entry, failure)
    await turns()
    assert pool.states() == {"web": state}
    assert entry.observed.failure is failure
    assert "stop web.1.0 0" in pool.runner.log


async def test_restart_that_is_given_up_leaves_the_serving_generation() -> None:
    pool = OrderedCore(web(), **{"web.2.0": NEVER})
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.restart(entry)
    await turns()
    assert set(pool.runner.running) == {"web.1.0", "web.2.0"}
    failure = ServerError("took too long")
    pool.core.abandon_start(entry, failure)
    await turns()
    assert set(pool.runner.running) == {"web.1.0"}
    assert (pool.states(), entry.observed.failure) == ({"web": "running"}, failure)


async def test_start_that_waits_for_a_stop_is_cancelled_when_it_is_given_up() -> None:
    pool = OrderedCore(web())
    await pool.start()
    entry = pool.core.entries["web"]
    pool.runner.may_end.clear()
    pool.core.stop(entry)
    pool.core.start(entry, after_stop=True)
    pool.core.abandon_start(entry)
    pool.runner.may_end.set()
    await turns()
    assert pool.states() == {"web": "stopped"}


@needs("scaling")
async def test_demand_of_waiting_requests_is_summed_for_the_triggers_of_a_server_that_may_serve() -> None:
    automatic = {"min": 2, "max": 5, "triggers": {"cpu": 80}}
    pool = OrderedCore(web(scale=automatic), web("fixed"))
    entry = pool.core.entries["web"]
    assert pool.core.wake_for_requests("web", 3) == 0, "it is stopped"
    await pool.start()
    assert [pool.core.wake_for_requests("web", count) for count in (3, 4)] == [2, 2]
    assert [pool.core.take_demand(entry) for _ in range(2)] == [7, 0]
    fixed = pool.core.entries["fixed"]
    assert (pool.core.wake_for_requests("fixed", 3), pool.core.take_demand(fixed)) == (1, 0)
    with pytest.raises(KeyError):
        pool.core.wake_for_requests("gone", 1)


async def test_restart_starts_a_stopped_server_and_a_job_with_a_schedule_only_waits() -> None:
    job = ServerConfig(name="job", job=True, command=["true"], every="0 3 * * *")
    pool = OrderedCore(web(), job)
    for entry in pool.core.entries.values():
        pool.core.restart(entry)
    await turns()
    assert pool.states() == {"web": "running", "job": "sleeping"}
    assert pool.core.entries["web"].observed.restarts == 0
    assert pool.core.entries["job"].desired.state is Desired.SCHEDULED


async def test_job_with_a_schedule_runs_once_more_when_it_is_ordered_to() -> None:
    job = ServerConfig(name="job", job=True, command=["true"], every="0 3 * * *")
    pool = OrderedCore(job)
    entry = pool.core.entries["job"]
    pool.core.run_now(entry)
    await turns()
    assert entry.schedule.last_run["result"] == "succeeded"
    assert pool.states() == {"job": "sleeping"}
    assert [line for line in pool.runner.log if line.startswith("place")] == ["place job.2.0"]
    pool.core.disable(entry)
    pool.core.run_now(entry)
    await turns()
    assert pool.states() == {"job": "disabled"}


def test_kill_ends_the_start_hook_that_runs() -> None:
    stage = Stage()
    try:
        stage.order(stage.core.start, stage.web, ignore_dependencies=True)
        stage.finish("hook")
        assert stage.under_way() == [("run", "web.before_start")]
        stage.order(stage.core.stop, stage.web, kill=True)
        assert (stage.under_way(), stage.web.state) == ([], "stopped")
    finally:
        stage.loop.close()


@pytest.mark.parametrize(("order", "seconds"), [("drain_then_replace", "10"), ("kill", "0")])
async def test_one_worker_is_ended_and_then_replaced(order: str, seconds: str) -> None:
    pool = OrderedCore(web(workers=2, restart="always"))
    await pool.start()
    entry = pool.core.entries["web"]
    pool.runner.log.clear()
    getattr(pool.core, order)(entry, worker_of(entry, "web.1.1"))
    await turns()
    assert f"stop web.1.1 {seconds}" in pool.runner.log
    assert "web.1.0" in pool.runner.running
    if order == "drain_then_replace":
        assert len(pool.runner.running) == 2
        assert any(line.startswith("place") for line in pool.runner.log)


async def test_recovery_is_in_the_servers_state_until_it_ends_and_may_count_as_a_restart() -> None:
    pool = OrderedCore(web())
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.take_changed()
    for counts, restarts in ((True, 1), (False, 1)):
        pool.core.note_recovery_begun(entry, {"step": "restart"}, {"0": [1.0]}, counts=counts)
        assert (entry.observed.recovering, entry.observed.recoveries) == ({"step": "restart"}, {"0": [1.0]})
        assert entry.observed.restarts == restarts
        assert pool.core.take_changed() == [entry]
    pool.core.note_recovery_ended(entry)
    assert entry.observed.recovering == {}
    assert pool.core.take_changed() == [entry]
    assert pool.core.take_changed() == []


async def test_idleness_of_a_worker_is_noted_when_it_changes() -> None:
    pool = OrderedCore(web())
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.take_changed()
    noted = []
    for worker_id, idle in (("web.1.0", True), ("web.1.0", True), ("web.9.0", True), ("web.1.0", False)):
        pool.core.set_idle(entry, worker_id, idle)
        noted.append(bool(pool.core.take_changed()))
    assert noted == [True, False, False, True]


async def test_counts_of_a_server_that_is_added_continue_and_its_table_is_kept() -> None:
    pool = OrderedCore()
    source = ({"name": "web"}, "/srv")
    entry = pool.core.add(web(), source, restarts=2, failures=3)
    assert (entry.observed.restarts, entry.observed.failures, entry.desired.source) == (2, 3, source)
    assert pool.states() == {"web": "stopped"}
    plain = pool.core.add(web("plain"))
    assert (plain.observed.restarts, plain.observed.failures, plain.added) == (0, 0, False)


async def test_address_is_held_by_another_server_that_runs_and_not_by_one_that_stops() -> None:
    pool = OrderedCore(web("old", bind=":9100"))
    await pool.start()
    old = pool.core.entries["old"]
    new = pool.core.add(web("new", bind=":9100"))
    assert pool.core.lasting_address_holder(new) is old
    assert pool.core.lasting_address_holder(old) is None
    pool.runner.may_end.clear()
    pool.core.stop(old)
    assert pool.core.lasting_address_holder(new) is None
    pool.core.start(new)
    await turns()
    assert set(pool.runner.running) == {"old.1.0"}, "the new server waits for the address"
    pool.runner.may_end.set()
    await turns(40)
    assert pool.states() == {"old": "stopped", "new": "running"}


async def test_question_about_an_address_makes_no_server_wait_for_one_that_runs() -> None:
    pool = OrderedCore(web("old", bind=":9100"))
    await pool.start()
    new = pool.core.add(web("new", bind=":9100"))
    await turns()
    assert pool.core.lasting_address_holder(new) is pool.core.entries["old"]
    other = pool.core.add(web("other", bind="127.0.0.1:9100"))
    pool.core.start(other)
    await turns(40)
    assert (other.failed, other.observed.failures) == (True, 1)


async def test_servers_are_decided_on_until_nothing_changes_and_further_batches_follow_the_first() -> None:
    pool = OrderedCore(
        *(web(f"s{number}", depends_on=["s0"] if number else []) for number in range(BATCH + 2))
    )
    await pool.start()
    await turns(40)
    decided: list[str] = []
    pool.core.observers.add(lambda entry: decided.append(entry.name))
    await turns(40)
    assert decided == []
    for entry in pool.core.entries.values():
        pool.core.touch(entry)
    await turns(40)
    assert decided == [*pool.core.entries]


async def test_changed_dependencies_do_not_replace_the_workers() -> None:
    pool = OrderedCore(web("db"), web())
    await pool.start()
    entry = pool.core.entries["web"]
    (dependency,) = web(depends_on=["db"]).depends_on
    before = entry.config
    pool.core.set_dependencies(entry, ())
    assert entry.config is before
    pool.core.set_dependencies(entry, (dependency,))
    await turns()
    assert entry.config.depends_on == (dependency,)
    assert "web.1.0" in pool.runner.running
    assert pool.core.servers.dependencies(entry) == [pool.core.entries["db"]]


async def test_values_of_the_pool_reach_the_applications_of_later_workers() -> None:
    pool = OrderedCore(web())
    pool.core.set_app_state(pool.core.entries["web"], {"db": "one"})
    await pool.start()
    assert pool.runner.values == [{"db": "one"}]


async def test_live_change_ends_with_a_change_of_the_files_and_idle_time_reaches_the_workers() -> None:
    pool = OrderedCore(web(scale={"min": 0, "idle": 1}))
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.wake(entry)
    await turns()
    entry.desired.source, entry.desired.automatic, entry.observed.socket_found = ({}, "/"), 3, "pool"
    entry.observed.overlap_found = "yes"
    pool.core.change(entry, web(scale={"min": 0, "idle": 5}), live=True)
    assert "idle after 5 web.1.0" in pool.runner.log
    assert (entry.desired.source, entry.desired.automatic) == (None, None)
    assert (entry.observed.socket_found, entry.observed.overlap_found) == ("pool", "yes")
    assert worker_of(entry, "web.1.0").config is entry.config
    pool.core.change(entry, web(app=None, command=["x"]), live=True)
    assert (entry.observed.socket_found, entry.observed.overlap_found) == ("", "")


async def test_change_of_the_files_tries_a_failed_server_again_and_leaves_a_stopped_one() -> None:
    pool = OrderedCore(web(), **{"web.1.0": FAILS})
    entry = pool.core.entries["web"]
    await pool.start()
    assert pool.states() == {"web": "failed"}
    pool.runner.script.clear()
    entry.desired.ignore_dependencies = True
    pool.core.change(entry, web(tags=["new"]), live=False)
    await turns()
    assert pool.states() == {"web": "running"}
    assert not entry.desired.ignore_dependencies
    await pool.stop()
    pool.core.change(entry, web(), live=False)
    await turns()
    assert pool.states() == {"web": "stopped"}


@needs("scaling")
async def test_number_of_workers_by_command_is_where_the_triggers_continue() -> None:
    pool = OrderedCore(web(scale={"min": 1, "max": 4, "triggers": {"cpu": 80}}), web("fixed"))
    await pool.start()
    entry, fixed = pool.core.entries["web"], pool.core.entries["fixed"]
    pool.core.set_automatic_workers(entry, 2, {"cpu": 90})
    await turns()
    assert (len(pool.runner.running), entry.desired.scaling) == (3, {"cpu": 90})
    for server in (entry, fixed):
        pool.core.replace_overrides(server, Overrides(workers=3))
    await turns()
    assert (entry.size, fixed.size, len(pool.runner.running)) == (3, 3, 6)
    for server in (entry, fixed):
        pool.core.replace_overrides(server)
    await turns()
    assert (entry.size, fixed.size) == (3, 1)
    pool.core.set_automatic_workers(entry, None)
    assert (entry.size, entry.desired.scaling) == (1, {})


@pytest.mark.parametrize("configured", [False, True])
async def test_disabled_server_stops_until_it_is_enabled_even_if_the_files_disable_it(
    configured: bool,
) -> None:
    pool = OrderedCore(web(disabled=configured))
    entry = pool.core.entries["web"]
    pool.core.replace_overrides(entry, Overrides(out=True))
    pool.core.enable_and_start(entry)
    await turns()
    assert (pool.states(), entry.out_of_rotation) == ({"web": "running" if configured else "stopped"}, False)
    assert entry.desired.overrides.disabled is (False if configured else None)
    await pool.start()
    pool.core.replace_overrides(entry, replace(entry.desired.overrides, out=True))
    pool.core.disable(entry)
    await turns()
    assert (pool.states(), entry.out_of_rotation) == ({"web": "disabled"}, False)
    assert entry.desired.overrides.disabled is (None if configured else True)
    pool.core.replace_overrides(entry, replace(entry.desired.overrides, out=True))
    pool.core.disable(entry)
    assert not entry.out_of_rotation, "although it was disabled before"
    pool.core.start(entry)
    await turns()
    assert pool.states() == {"web": "disabled"}
    await pool.stop()
    pool.core.enable_and_start(entry)
    await turns()
    assert pool.states() == {"web": "running"}


async def test_certificates_are_renewed_in_every_worker_that_stays() -> None:
    pool = OrderedCore(web(workers=2))
    await pool.start()
    entry = pool.core.entries["web"]
    leaving = worker_of(entry, "web.1.1")
    leaving.phase = WorkerPhase.STOPPING
    pool.core.take_changed()
    await pool.core.reload_tls(entry)
    assert [line for line in pool.runner.log if line.startswith("tls")] == ["tls web.1.0"]
    assert pool.core.take_changed() == [entry]


def test_warning_replaces_the_one_that_it_is_instead_of() -> None:
    core = OrderedCore(web()).core
    entry = core.entries["web"]
    for warning, instead_of in (("first", ""), ("second", ""), ("third", "first"), ("fourth", "gone")):
        core.add_command_warning(entry, warning, instead_of=instead_of)
    assert entry.observed.warnings == ["second", "third", "fourth"]
    core.clear_warnings(entry)
    assert entry.observed.warnings == []


async def test_server_that_was_found_running_is_wanted_unless_a_command_has_stopped_it() -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    for before, after in (
        (Desired.IDLE, Desired.RUN),
        (Desired.FAILED, Desired.RUN),
        (Desired.STOPPED, Desired.STOPPED),
        (Desired.REMOVED, Desired.REMOVED),
    ):
        entry.desired.state = before
        pool.core.mark_found_running(entry)
        assert entry.desired.state is after


@pytest.mark.parametrize(
    ("recorded", "generation"), [(True, 1), (False, 3)], ids=["recorded", "not recorded"]
)
async def test_adopted_worker_determines_the_serving_generation_only_without_a_record(
    recorded: bool, generation: int
) -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    pool.core.adopt_listener(entry, entry.config, [entry.config.key])
    pool.runner.opened.add(entry.config.key)
    assert pool.core.endpoints(entry.config) == (entry.config.key,)
    for number, phase in ((3, WorkerPhase.READY), (4, WorkerPhase.DRAINING)):
        placement = await pool.runner.place(entry.config, number, 0)
        worker = Worker(placement.id, number, 0, entry.config, phase, placement)
        pool.core.adopt_worker(entry, worker, generation_recorded=recorded)
    assert (entry.desired.generation, entry.desired.newest) == (generation, 4)
    assert entry.observed.has_pending_request


async def test_adopted_run_of_a_schedule_that_was_not_recorded_began_now() -> None:
    job = ServerConfig(name="job", job=True, command=["true"], every="0 3 * * *")
    pool = OrderedCore(job)
    entry = pool.core.entries["job"]
    entry.desired.state = Desired.SCHEDULED
    placement = await pool.runner.place(job, 1, 0)
    pool.core.adopt_worker(entry, Worker(placement.id, 1, 0, job, WorkerPhase.STARTING, placement))
    assert (entry.desired.state, entry.schedule.run_since) == (Desired.RUN, pool.clock.time())


@pytest.mark.parametrize(
    ("generations", "serving"),
    [({1: "ready", 2: "ready"}, 1), ({2: "ready", 3: "ready"}, 3), ({1: "leaving"}, 2)],
)
async def test_resumed_server_continues_with_the_newest_generation_that_stays(
    generations: dict[int, str], serving: int
) -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    entry.desired.state = Desired.RUN
    for generation, what in generations.items():
        phase = WorkerPhase.READY if what == "ready" else WorkerPhase.DRAINING
        worker = Worker(f"web.{generation}.0", generation, 0, entry.config, phase)
        entry.observed.workers[worker.id] = worker
    pool.core.resume_adopted_server(entry)
    assert entry.desired.generation == serving


async def test_resumed_server_whose_schedule_was_taken_out_runs() -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    entry.desired.state = Desired.SCHEDULED
    pool.core.resume_adopted_server(entry)
    await turns()
    assert pool.states() == {"web": "running"}


async def test_calm_core_starts_nothing_until_a_command_selects_it() -> None:
    pool = OrderedCore(web(), web("other"))
    pool.core.calm = True
    for entry in pool.core.entries.values():
        pool.core.mark_found_running(entry)
        pool.core.resume_adopted_server(entry)
    await turns()
    assert pool.runner.log == []
    with caused_by("start"):
        pool.core.start(pool.core.entries["web"])
    await turns()
    assert pool.states() == {"web": "running", "other": "starting"}


async def test_server_that_ends_by_itself_before_it_is_ready_ends_the_wait_for_it() -> None:
    pool = OrderedCore(web(), web="never")
    starting = pool.begin(pool.start())
    await turns()
    pool.runner.end("web.1.0", Exit.from_returncode(0))
    (problem,) = await starting
    assert "exited with status 0" in problem.message


@pytest.mark.parametrize(("keys", "state"), [({}, "backoff"), ({"retries": False}, "failed")])
async def test_server_that_fails_before_it_is_ready_is_retried_unless_its_start_says_otherwise(
    keys: dict[str, bool], state: str
) -> None:
    pool = OrderedCore(web(restart="on-failure"), web=FAILS)
    entry = pool.core.entries["web"]
    for order in (pool.core.start, pool.core.restart):
        (problem,) = await pool.order(PoolStartError, [entry], functools.partial(order, **keys))
        assert problem.message == "exited with status 3 before it was ready"
        assert entry.state == state


async def test_error_of_the_runner_is_the_cause_of_the_problem() -> None:
    pool = OrderedCore(web(), web=BREAKS)
    (problem,) = await pool.start()
    assert isinstance(problem.__cause__, OSError)


async def test_run_of_a_job_waits_for_its_dependencies_unless_they_are_ignored() -> None:
    job = ServerConfig(name="job", job=True, command=["true"], every="0 3 * * *", depends_on=["db"])
    pool = OrderedCore(web("db"), job)
    entry = pool.core.entries["job"]
    pool.core.run_now(entry)
    await turns()
    assert pool.runner.log == []
    pool.core.run_now(entry, ignore_dependencies=True)
    await turns()
    assert any(line.startswith("place job") for line in pool.runner.log)


async def test_stopped_sleeper_does_not_remember_its_requests() -> None:
    pool = OrderedCore(sleepy())
    await pool.start()
    await woken(pool, "web")
    await pool.stop()
    await pool.start()
    assert pool.states() == {"web": "sleeping"}


@pytest.mark.parametrize("desired", [Desired.STOPPED, Desired.SCHEDULED])
async def test_resumed_job_with_a_schedule_keeps_its_state(desired: Desired) -> None:
    pool = OrderedCore(ServerConfig(name="job", job=True, command=["true"], every="0 3 * * *"))
    entry = pool.core.entries["job"]
    entry.desired.state = desired
    pool.core.resume_adopted_server(entry)
    assert entry.desired.state is desired
    if desired is Desired.SCHEDULED:
        assert entry.schedule.next_run is not None


def test_resumed_server_that_was_stopped_stays_so() -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    entry.desired.state = Desired.STOPPED
    pool.core.resume_adopted_server(entry)
    assert entry.desired.state is Desired.STOPPED


def test_server_that_failed_before_the_command_is_reported_with_its_failure() -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    entry.desired.state = Desired.FAILED
    goal = CommandGoal(pool.core, PoolStartError, [entry])
    problem = goal.problem(entry)
    assert problem is not None
    assert (problem.message, problem.hint) == ("has failed before", "poolctl logs web")
    entry.observed.failure = ServerError("no module named shop", hint="install it")
    problem = goal.problem(entry)
    assert problem is not None
    assert (problem.message, problem.hint) == ("no module named shop", "install it")


async def test_server_that_is_not_ready_at_the_timeout_is_missing_and_reported_with_its_state() -> None:
    pool = OrderedCore(web(), web("other"), web=NEVER)
    entries = list(pool.core.entries.values())
    goal = CommandGoal(pool.core, PoolStartError, entries)
    for entry in entries:
        pool.core.start(entry)
    await turns()
    observers = set(pool.core.observers)
    await goal.wait_until_settled(0.001)
    assert (goal.missing, pool.core.observers) == ([entries[0]], observers)
    problem = goal.problem(entries[0])
    assert problem is not None
    assert (problem.message, goal.problem(entries[1])) == ("is still starting", None)


async def test_server_whose_dependency_has_ended_by_itself_names_it_and_the_fix() -> None:
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
    await pool.start("db")
    pool.runner.end("db.1.0", Exit.from_returncode(0))
    await turns()
    assert pool.core.entries["db"].completed
    api = pool.core.entries["api"]
    (problem,) = await pool.order(PoolStartError, [api], pool.core.start)
    assert problem.message == "waits for db, which has ended"
    assert problem.hint == "poolctl start db"


async def test_expiry_of_a_certificate_is_known_of_an_adopted_worker_that_becomes_ready(
    tmp_path: Path,
) -> None:
    cert, key = certificate(tmp_path)
    pool = OrderedCore(web(tls={"cert": str(cert), "key": str(key)}))
    entry = pool.core.entries["web"]
    pool.runner.opened.add(entry.config.key)
    placement = await pool.runner.place(entry.config, 1, 0)
    worker = Worker(placement.id, 1, 0, entry.config, WorkerPhase.STARTING, placement)
    pool.core.mark_found_running(entry)
    pool.core.adopt_worker(entry, worker)
    await turns()
    assert worker.phase is WorkerPhase.READY
    assert entry.observed.certificate_ends == read_certificate_expiry(entry.config) is not None


async def test_reports_of_the_runner_about_lifetime_and_idleness_reach_the_server() -> None:
    pool = OrderedCore(web(scale={"min": 0, "idle": 60}))
    await pool.start()
    pool.runner.ring("web")
    await turns()
    entry = pool.core.entries["web"]
    (worker,) = entry.observed.workers.values()
    assert worker.placement is not None
    events = RunnerEventForwarder()
    events.core = pool.core
    unknown = Placement.of("gone", 1, 0)
    events.idle_changed(unknown, True)
    events.expired(unknown)
    events.expired(worker.placement)
    assert worker.expired
    events.idle_changed(worker.placement, True)
    assert worker.idle
    await turns()
    assert not entry.is_current(worker)


async def test_worker_that_expires_before_it_is_known_to_be_ready_serves_until_its_replacement_does() -> None:
    pool = OrderedCore(web(), **{"web.2.0": NEVER})
    entry = pool.core.entries["web"]
    pool.core.start(entry)
    while not entry.observed.workers:
        await asyncio.sleep(0)
    pool.core.mark_expired(entry, "web.1.0")
    await turns()
    assert (set(pool.runner.running), worker_of(entry, "web.1.0").phase) == ({"web.1.0", "web.2.0"}, "ready")
    pool.runner.end("web.2.0", Exit.from_returncode(3))
    await turns()
    assert set(pool.runner.running) == {"web.1.0"}, "its replacement has failed: it is not replaced again"


async def test_job_that_becomes_a_server_during_a_run_is_replaced_by_its_workers() -> None:
    pool = OrderedCore(job(every="0 3 * * *"), job=NEVER)
    entry = pool.core.entries["job"]
    await pool.start()
    pool.core.run_now(entry)
    await turns()
    (run_,) = entry.observed.workers.values()
    pool.core.change(entry, web("job"), live=False)
    assert (entry.wanted, entry.desired.generation) == (True, run_.generation + 1)


async def test_window_that_puts_a_server_to_sleep_ends_its_workers_for_a_new_generation() -> None:
    windows = {"asleep": ["* 23 * * *"], "timezone": "UTC"}
    pool = OrderedCore(web(scale={"min": 0, "idle": 60, **windows}))
    assert pool.clock.time() == 1_700_000_000, "22:13:20"
    await pool.start()
    await woken(pool, "web")
    entry = pool.core.entries["web"]
    (worker,) = entry.observed.workers.values()
    pool.clock.advance(3600)
    for _ in range(2):
        pool.core.touch(entry)
        await turns()
        assert (entry.window_demand, entry.observed.has_pending_request, pool.runner.running) == (
            "asleep",
            False,
            {},
        )
        assert entry.desired.generation == worker.generation + 1


CHANGES: dict[str, Callable[[Core, Entry], Any]] = {
    "touch": lambda core, entry: core.touch(entry),
    "start": lambda core, entry: core.start(entry),
    "stop": lambda core, entry: core.stop(entry),
    "abandon start": lambda core, entry: core.abandon_start(entry),
    "restart": lambda core, entry: core.restart(entry),
    "renew": lambda core, entry: core.replace_worker(entry, "web.1.0"),
    "drain and replace": lambda core, entry: core.drain_then_replace(entry, worker_of(entry, "web.1.0")),
    "kill": lambda core, entry: core.kill(entry, worker_of(entry, "web.1.0")),
    "begin recovery": lambda core, entry: core.note_recovery_begun(entry, {}, {}, counts=False),
    "end recovery": lambda core, entry: core.note_recovery_ended(entry),
    "stuck": lambda core, entry: core.mark_stuck(entry, worker_of(entry, "web.1.0"), True),
    "idle": lambda core, entry: core.set_idle(entry, "web.1.0", True),
    "remove": lambda core, entry: core.schedule_removal(entry),
    "change": lambda core, entry: core.change(entry, web(tags=["new"]), live=True),
    "override": lambda core, entry: core.replace_overrides(entry),
    "scale": lambda core, entry: core.set_automatic_workers(entry, 2),
    "expect running": lambda core, entry: core.mark_found_running(entry),
    "resume": lambda core, entry: core.resume_adopted_server(entry),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_each_change_of_a_server_is_noted_for_its_record(change: str) -> None:
    pool = OrderedCore(web())
    await pool.start()
    await turns()
    pool.core.take_changed()
    entry = pool.core.entries["web"]
    CHANGES[change](pool.core, entry)
    assert pool.core.take_changed() == [entry]
    assert pool.core.take_changed() == []
    await turns()


@needs("scaling")
async def test_triggers_keep_their_number_of_workers_through_other_live_changes() -> None:
    pool = OrderedCore(web(scale={"min": 1, "max": 4, "triggers": {"cpu": 80}}), web("fixed"))
    entry, fixed = pool.core.entries.values()
    pool.core.set_automatic_workers(entry, 3, {"cpu": 0.9})
    assert entry.desired.scaling == {"cpu": 0.9}
    pool.core.replace_overrides(entry, Overrides(out=True))
    assert entry.desired.automatic == 3
    pool.core.replace_overrides(entry, Overrides(workers=4))
    assert entry.desired.automatic == 3
    pool.core.replace_overrides(entry)
    assert entry.desired.automatic == 4
    pool.core.set_automatic_workers(entry, None)
    assert (entry.desired.automatic, entry.desired.scaling) == (None, {})
    pool.core.replace_overrides(fixed, Overrides(workers=4))
    pool.core.replace_overrides(fixed)
    assert fixed.desired.automatic is None


async def test_failed_job_that_gets_a_schedule_waits_for_its_next_run() -> None:
    pool = OrderedCore(job(), job=FAILS)
    assert len(await pool.start()) == 1
    entry = pool.core.entries["job"]
    assert entry.failed
    pool.core.change(entry, job(every="0 3 * * *"), live=False)
    await turns()
    assert (entry.desired.state, entry.observed.workers) == (Desired.SCHEDULED, {})


async def test_order_to_run_a_job_with_a_schedule_is_complete_when_the_run_has_ended() -> None:
    pool = OrderedCore(job(every="0 3 * * *"), job=NEVER)
    entry = pool.core.entries["job"]
    running = pool.begin(pool.order(PoolRestartError, [entry], pool.core.run_now))
    await turns()
    (name,) = pool.runner.running
    assert not running.done()
    pool.runner.end(name, Exit.from_returncode(0))
    assert await running == []


async def test_start_does_not_wait_until_the_previous_address_is_closed() -> None:
    pool = OrderedCore(web())
    await pool.start()
    entry = pool.core.entries["web"]
    pool.runner.may_close.clear()

    def move(entry: Entry) -> None:
        pool.core.change(entry, web(bind="127.0.0.1:9999"), live=False)

    assert await pool.order(PoolStartError, [entry], move) == []
    assert entry.listener.previous_configs or entry.listener.releasing
    pool.runner.may_close.set()
    await turns()


async def test_cause_of_a_server_is_forgotten_when_its_command_is_complete() -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    with caused_by("poolctl start"):
        pool.core.start(entry)
    assert entry.desired.cause is not None
    pool.core.forget_cause(entry)
    assert entry.desired.cause is None


async def test_adopted_worker_of_a_removed_server_ends_and_the_server_is_forgotten() -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    restore(entry, {"desired": "removed"})
    await pool.runner.open(entry.config)
    placement = await pool.runner.place(entry.config, 1, 0)
    pool.core.adopt_worker(entry, Worker(placement.id, 1, 0, entry.config, WorkerPhase.READY, placement, 1.0))
    assert pool.core.servers.removed == {"web": entry}
    pool.core.adopt_listener(entry, entry.config)
    pool.core.resume_adopted_server(entry)
    await turns(40)
    assert (pool.core.entries, pool.runner.running, pool.runner.opened) == ({}, {}, set())


async def test_hook_of_a_previous_supervisor_is_followed_to_its_end() -> None:
    pool = OrderedCore(web(hooks={"before_start": ["true"]}))
    entry = pool.core.entries["web"]
    restore(entry, {"desired": "run", "before_start_due": True})
    placement = Placement.of("hook", 1, 0, where="nowhere", pid=7)
    pool.runner.running[placement.id] = asyncio.get_running_loop().create_future()
    pool.core.adopt_hook(entry, "before_start", placement)
    pool.core.resume_adopted_server(entry)
    await turns()
    assert entry.hooks.running is not None
    assert (entry.hooks.running.name, entry.hooks.running.placement) == ("before_start", placement)
    assert pool.states() == {"web": "starting"}
    pool.runner.end(placement.id, Exit.from_returncode(0))
    await turns(40)
    assert (entry.hooks.running, pool.states()) == (None, {"web": "running"})
