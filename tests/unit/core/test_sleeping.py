"""Servers that sleep under the core: who wakes whom, in which order, and what becomes of those who wait in vain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolctl.core.decide import Desired
from poolctl.core.server_entry import record_of, restore
from poolctl.runners.runner_protocol import Exit
from tests.unit.core.ordered_core import OrderedCore, run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER


def sleepy(name: str = "web", **keys: Any) -> Any:
    return web(name, scale={"min": 0, "idle": 1}, **keys)


def quiet(pool: OrderedCore, name: str, *, idle: bool = True) -> None:
    """All workers of the server say that they have had no traffic, or that they have some again."""
    entry = pool.core.entries[name]
    for worker in list(entry.observed.workers.values()):
        pool.core.idle(entry, worker.id, idle)


async def woken(pool: OrderedCore, name: str) -> None:
    pool.runner.ring(name)
    await turns()
    assert pool.states()[name] == "running"


def test_server_is_watched_after_a_start_woken_by_a_request_and_drained_when_idle() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_order_to_wake_starts_a_sleeping_server_and_leaves_others_alone() -> None:
    async def scenario() -> None:
        pool = OrderedCore(sleepy("db"), sleepy("web", depends_on=["db"]))
        await pool.start()
        for _ in range(3):
            pool.core.wake(pool.core.entries["web"])
        await turns()
        pool.core.wake(pool.core.entries["web"])
        await turns()
        assert pool.states() == {"db": "running", "web": "running"}
        assert [line for line in pool.runner.log if line.startswith("place")] == [
            "place db.1.0",
            "place web.1.0",
        ]
        await pool.stop()
        pool.core.wake(pool.core.entries["web"])
        await turns()
        assert pool.states() == {"db": "stopped", "web": "stopped"}

    run(scenario())


def test_request_while_it_drains_starts_another_worker_next_to_the_draining_one() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_order_to_wake_a_server_that_falls_asleep_starts_another_worker() -> None:
    async def scenario() -> None:
        pool = OrderedCore(sleepy())
        await pool.start()
        await woken(pool, "web")
        pool.runner.may_drain = asyncio.Event()
        quiet(pool, "web")
        await turns()
        pool.core.entries["web"].listener.armed = None  # its listener is not watched yet
        pool.core.wake(pool.core.entries["web"])
        await turns()
        assert pool.states() == {"web": "running"}
        pool.runner.may_drain.set()
        await turns()

    run(scenario())


def test_traffic_that_begins_again_keeps_it_awake() -> None:
    async def scenario() -> None:
        pool = OrderedCore(sleepy())
        await pool.start()
        await woken(pool, "web")
        quiet(pool, "web")
        quiet(pool, "web", idle=False)
        await turns()
        assert pool.states() == {"web": "running"}

    run(scenario())


def test_dependencies_wake_first_and_sleep_last() -> None:
    async def scenario() -> None:
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

    run(scenario())


@pytest.mark.parametrize("deps", [True, False])
def test_dependencies_wake_first_after_a_restart_too_if_they_are_to_run(deps: bool) -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_server_that_always_runs_keeps_its_dependencies_awake() -> None:
    async def scenario() -> None:
        pool = OrderedCore(sleepy("db"), web("web", depends_on=["db"]))
        await pool.start()
        quiet(pool, "db")
        await turns()
        assert pool.states() == {"db": "running", "web": "running"}
        await pool.stop("web")
        await turns()
        assert pool.states() == {"db": "sleeping", "web": "stopped"}

    run(scenario())


def test_a_restart_of_one_that_sleeps_is_none() -> None:
    async def scenario() -> None:
        pool = OrderedCore(sleepy())
        await pool.start()
        assert (await pool.restart("web"), pool.core.entries["web"].observed.restarts) == ([], 0)
        assert pool.states() == {"web": "sleeping"}
        await pool.stop("web")
        assert pool.states() == {"web": "stopped"}
        assert not any(line.startswith("place") for line in pool.runner.log)

    run(scenario())


def test_one_that_has_had_enough_by_itself_sleeps_and_one_that_is_needed_does_not() -> None:
    async def scenario() -> None:
        pool = OrderedCore(
            sleepy("db", restart="on-failure"), sleepy("web", depends_on=["db"], restart="on-failure")
        )
        await pool.start()
        await woken(pool, "web")
        pool.runner.end("web.1.0", Exit.from_status(0))
        await turns()
        assert pool.states()["web"] == "sleeping"
        await woken(pool, "web")
        pool.runner.end("db.1.0", Exit.from_status(0))
        await turns()
        assert pool.states()["db"] == "stopped"

    run(scenario())


def test_one_that_dies_awake_is_started_again() -> None:
    async def scenario() -> None:
        pool = OrderedCore(sleepy(restart="on-failure"))
        await pool.start()
        await woken(pool, "web")
        pool.runner.end("web.1.0", Exit.from_signal(9))
        await turns()
        assert (pool.states(), pool.core.entries["web"].observed.restarts) == ({"web": "running"}, 1)

    run(scenario())


def test_a_wake_that_fails_is_a_failure_and_a_start_puts_it_to_sleep_again() -> None:
    async def scenario() -> None:
        pool = OrderedCore(sleepy(), web=FAILS)
        await pool.start()
        pool.runner.ring("web")
        await turns()
        assert pool.states() == {"web": "failed"}
        assert (await pool.start("web"), pool.states()) == ([], {"web": "sleeping"})

    run(scenario())


def test_sleeping_server_that_was_given_up_sleeps_again_after_the_window_and_wakes() -> None:
    async def scenario() -> None:
        policy = {"policy": "on-failure", "limit": 1, "window": 0.2, "backoff": {"initial": 0, "max": 0}}
        pool = OrderedCore(sleepy(restart=policy))
        entry = pool.core.entries["web"]
        await pool.start()
        await woken(pool, "web")
        for _ in range(2):
            (worker,) = pool.runner.running
            pool.runner.end(worker, Exit.from_signal(9))
            await turns()
        assert pool.states() == {"web": "failed"}
        successor = OrderedCore(sleepy(restart=policy)).core.entries["web"]
        restore(successor, record_of(entry))
        assert (successor.desired.state, successor.sleeps) == (Desired.RUN, True)
        async with asyncio.timeout(60):
            while pool.states() != {"web": "sleeping"}:
                await asyncio.sleep(0.01)
        await woken(pool, "web")

    run(scenario())


def test_stopped_server_that_was_given_up_stays_stopped() -> None:
    async def scenario() -> None:
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

    run(scenario())


@pytest.mark.parametrize("script", [NEVER, FAILS])
def test_wait_for_a_wake_is_bounded_by_the_start_timeout(script: str) -> None:
    async def scenario() -> None:
        policy = {"policy": "on-failure", "backoff": {"initial": 60, "max": 60}, "limit": 100}
        pool = OrderedCore(sleepy(start_timeout=0.02, restart=policy), web=script)
        await pool.start()
        pool.runner.ring("web")
        dismissed = f"dismiss {pool.core.entries['web'].config.key}"
        while dismissed not in pool.runner.log:
            await asyncio.sleep(0.001)
        assert pool.states()["web"] != "sleeping"

    run(scenario())


def test_server_whose_dependency_is_not_ready_stays_starting_without_its_clients_and_starts_after_it() -> (
    None
):
    async def scenario() -> None:
        pool = OrderedCore(web("db"), sleepy(depends_on=["db"], start_timeout=0.02), db=FAILS)
        await pool.start()
        assert pool.states() == {"db": "failed", "web": "sleeping"}
        pool.runner.ring("web")
        dismissed = f"dismiss {pool.core.entries['web'].config.key}"
        while dismissed not in pool.runner.log:
            await asyncio.sleep(0.001)
        assert pool.states() == {"db": "failed", "web": "starting"}
        pool.runner.script.clear()
        assert await pool.start("db") == []
        await turns()
        assert pool.states() == {"db": "running", "web": "running"}

    run(scenario())


def test_changed_idle_time_reaches_running_workers() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_another_configuration_is_watched_as_it_is() -> None:
    async def scenario() -> None:
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

    run(scenario())
