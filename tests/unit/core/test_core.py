"""Servers that come, change and go while the others serve on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.address import Address
from poolctl.core.core import Goal
from poolctl.core.decide import Desired, Overrides, Phase
from poolctl.core.server_entry import Entry, Worker, record_of, restore
from poolctl.errors import PoolStartError, PoolStopError, ServerError
from poolctl.runners.runner_protocol import Exit
from tests.unit.core.ordered_core import OrderedCore, run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER


def test_a_worker_keeps_the_configuration_that_it_was_placed_with_until_it_is_changed_live() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(stop_timeout=1))
        await pool.start()
        entry = pool.core.entries["web"]
        pool.core.change(entry, web(stop_timeout=2), live=False)
        await turns()
        assert "stop web.1.0 1" in pool.runner.log
        pool.core.change(entry, web(stop_timeout=3), live=True)
        await pool.stop()
        assert "stop web.2.0 3" in pool.runner.log

    run(scenario())


def test_a_changed_server_whose_replacement_fails_goes_back_to_the_configuration_that_serves() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_a_worker_that_must_not_run_twice_ends_before_one_of_a_configuration_that_may() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(overlap=False))
        await pool.start()
        pool.core.change(pool.core.entries["web"], web(overlap=True), live=False)
        await turns()
        assert pool.runner.most_at_once == {"web": 1}
        assert set(pool.runner.running) == {"web.2.0"}

    run(scenario())


def test_an_ordered_restart_counts_when_its_replacement_is_ready() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(), **{"web.2.0": FAILS})
        await pool.start()
        entry = pool.core.entries["web"]
        for restarts in (0, 1, 2):
            await pool.restart()
            assert entry.observed.restarts == restarts
        pool.core.change(entry, web(tags=["new"]), live=False)
        await turns()
        assert entry.observed.restarts == 3

    run(scenario())


def test_a_supervisor_counts_the_restart_whose_replacement_it_finds_ready() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        entry = pool.core.entries["web"]
        entry.order_restart()
        pool.core.adopt_worker(entry, Worker("web.2.0", 2, 0, entry.config, Phase.READY, ready_at=1.0))
        assert (entry.observed.restarts, entry.desired.restarting) == (1, 0)

    run(scenario())


def test_a_change_of_a_server_that_does_not_run_starts_nothing() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        pool.core.change(pool.core.entries["web"], web(tags=["new"]), live=False)
        await turns()
        assert pool.runner.log == []

    run(scenario())


def test_a_removed_server_finishes_what_it_has_and_is_forgotten_with_its_edges() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("db"), web("api", depends_on=["db"]), web("other"))
        await pool.start()
        pool.core.remove(pool.core.entries["api"])
        await turns()
        assert [line for line in pool.runner.log if "api" in line][-2:] == [
            "drain api.1.0",
            "stop api.1.0 10",
        ]
        assert pool.states() == {"db": "running", "other": "running"}
        assert pool.core.servers.dependents(pool.core.entries["db"]) == []

    run(scenario())


def test_an_added_server_waits_for_what_it_depends_on_and_is_waited_for() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("api", depends_on=["db"]))
        pool.core.start(pool.core.add(web("late", depends_on=["api"])))
        pool.core.start(pool.core.add(web("db")))
        await pool.start()
        placed = [line for line in pool.runner.log if line.startswith("place")]
        assert placed == ["place db.1.0", "place api.1.0", "place late.1.0"]

    run(scenario())


def test_server_that_is_added_again_while_it_leaves_runs_next_to_the_leaving_one() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        await pool.start()
        pool.runner.may_end.clear()
        pool.core.remove(pool.core.entries["web"])
        await turns()
        pool.core.start(pool.core.add(web(tags=["again"])))
        await turns()
        assert pool.states() == {"web": "running"}
        pool.runner.may_end.set()
        await turns()
        assert set(pool.runner.running) == {"web.2.0"}
        assert pool.core.entries["web"].config.tags == ("again",)

    run(scenario())


async def _start_after_stop(pool: OrderedCore, *names: str) -> list[str]:
    def start(entry: Entry) -> None:
        pool.core.start(entry, after_stop=True)

    problems = await pool.order(PoolStartError, [pool.core.entries[name] for name in names], start)
    return [problem.message for problem in problems]


def test_start_after_a_stop_lets_it_end_and_dependents_wait_for_both() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_start_after_a_stop_is_cancelled_by_another_stop_and_overtaken_by_a_start_at_once() -> None:
    async def scenario() -> None:
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

    run(scenario())


def test_the_order_of_the_servers_is_the_one_that_is_asked_for() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("a"), web("b"), web("c"))
        pool.core.servers.arrange(["c", "a", "unknown"])
        assert list(pool.states()) == ["c", "a", "b"]

    run(scenario())


def test_server_out_of_rotation_answers_is_not_ready_and_keeps_no_command_waiting() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("db", workers=2), web("api", depends_on=["db"]))
        await pool.start("db")
        entry = pool.core.entries["db"]
        pool.core.override(entry, Overrides(out=True))
        await turns()
        assert pool.runner.log[-2:] == ["out db.1.0", "out db.1.1"]
        assert (entry.state, entry.ready) == ("draining", False)
        assert await pool.start("api") == []
        # What replaces it is out of rotation as well.
        await pool.restart("db")
        await turns()
        assert {"out db.2.0", "out db.2.1"} <= set(pool.runner.log)
        pool.core.override(entry)
        await turns()
        assert pool.runner.log[-2:] == ["in db.2.0", "in db.2.1"]
        assert pool.states()["db"] == "running"

    run(scenario())


def test_servers_are_started_in_the_order_of_the_file_right_after_a_boot_that_found_nothing() -> None:
    async def scenario() -> None:
        names = [f"s{number}" for number in range(20)]
        pool = OrderedCore(*(web(name, bind=f"127.0.0.1:{8100 + place}") for place, name in enumerate(names)))
        for entry in pool.core.entries.values():
            pool.core.resume(entry)
        await turns(1)
        await pool.start()
        assert [line for line in pool.runner.log if line.startswith("place")] == [
            f"place {name}.1.0" for name in names
        ]

    run(scenario())


def test_adopted_server_continues_with_the_generation_that_serves() -> None:
    async def scenario() -> None:
        pools = []  # kept until the end, so that no task is collected while the loop runs
        for leaving, staying, expected in ((1, 2, 2), (1, None, 3), (None, 1, 2)):
            pool = OrderedCore(web())
            pools.append(pool)
            entry = pool.core.entries["web"]
            generation = 2 if leaving is None else 1
            restore(entry, {"desired": "run", "generation": generation, "newest": 2})
            await pool.runner.open(entry.config)
            for generation, phase in ((leaving, Phase.DRAINING), (staying, Phase.READY)):
                if generation is not None:
                    placement = await pool.runner.place(entry.config, generation, 0)
                    worker = Worker(placement.id, generation, 0, entry.config, phase, placement, 1.0)
                    pool.core.adopt_worker(entry, worker)
            pool.core.adopt_listener(entry, entry.config)
            pool.core.resume(entry)
            await turns(40)
            assert set(pool.runner.running) == {f"web.{expected}.0"}
            assert pool.states() == {"web": "running"}

    run(scenario())


def test_serving_worker_is_not_ended_for_a_successor_that_cannot_start() -> None:
    async def scenario() -> None:
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

    run(scenario())


def job(**keys: Any) -> ServerConfig:
    """A job that runs to its end."""
    return ServerConfig(**{"name": "job", "command": ["true"], "job": True} | keys)


def test_job_whose_schedule_is_taken_out_runs_once_and_one_that_gets_a_schedule_waits() -> None:
    async def scenario() -> None:
        stage = OrderedCore(job(every="0 3 * * *"))
        entry = stage.core.entries["job"]
        await stage.start()
        assert (entry.desired.state, entry.observed.workers) == (Desired.SCHEDULED, {})
        stage.core.change(entry, job(), live=False)
        await turns()
        assert (entry.completed, entry.desired.state) == (True, Desired.COMPLETED)

    run(scenario())


def test_change_of_a_schedule_of_a_stopped_job_starts_nothing() -> None:
    async def scenario() -> None:
        stage = OrderedCore(job(every="0 3 * * *"))
        entry = stage.core.entries["job"]
        stage.core.change(entry, job(), live=False)
        await turns()
        assert (entry.wanted, entry.observed.workers) == (False, {})

    run(scenario())


def canary_address(bind: str) -> Address:
    found: list[Address] = []

    async def scenario() -> None:
        pool = OrderedCore(web(bind=bind))
        apart = await pool.core.open_canary_address(pool.core.entries["web"].config)
        found.append(apart.address)
        assert pool.runner.opened == {apart.key}
        pool.core.close_canary_address(apart)
        await turns()
        assert not pool.runner.opened

    run(scenario())
    return found[0]


@pytest.mark.parametrize(
    ("bind", "host"), [("0.0.0.0:8080", "127.0.0.1"), ("[::]:8080", "::1"), (":8080", "127.0.0.1")]
)
def test_a_canary_has_a_port_of_its_own_that_only_this_machine_reaches(bind: str, host: str) -> None:
    address = canary_address(bind)
    assert (address.kind, address.host) == ("tcp", host)
    assert address.port not in (0, 8080)


def test_a_canary_of_a_server_at_a_path_has_a_path_next_to_it() -> None:
    assert canary_address("unix:/run/web.sock").path == "/run/web.sock.canary"


def test_a_canary_address_that_never_opens_is_an_error() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(bind="127.0.0.1:8080"))
        pool.runner.unopenable.add("web")
        with pytest.raises(ServerError, match="port is in use"):
            await pool.core.open_canary_address(pool.core.entries["web"].config)

    run(scenario())


def test_a_stop_that_a_start_overtakes_names_the_other_command() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())
        await pool.start()
        entry = pool.core.entries["web"]
        goal = Goal(pool.core, PoolStopError, [entry])
        assert goal.is_over(entry), "it runs, and nobody has stopped it"
        assert goal.is_overtaken(entry)
        (problem,) = filter(None, [goal.problem(entry)])
        assert "was started by another command meanwhile" in problem.message

    run(scenario())


def test_a_server_that_ends_after_it_was_ready_is_a_failure_of_its_start_and_none_of_its_stop() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(restart="on-failure"))
        await pool.start()
        entry = pool.core.entries["web"]
        to_start, to_stop = Goal(pool.core, PoolStartError, [entry]), Goal(pool.core, PoolStopError, [entry])
        pool.runner.script["web"] = NEVER
        pool.runner.end("web.1.0", Exit.from_signal(9))
        await turns()
        assert entry.state == "starting"
        started = to_start.problem(entry)
        assert started is not None
        assert "SIGKILL" in started.message
        later = Goal(pool.core, PoolStartError, [entry])
        assert later.problem(entry) is None, "it ended before this command"
        pool.core.stop(entry)
        await turns()
        assert to_stop.problem(entry) is None

    run(scenario())


@pytest.mark.parametrize(
    ("keys", "script", "why", "fix"),
    [
        ({"disabled": True}, None, "waits for db, which is disabled", "poolctl enable db"),
        ({}, None, "waits for db, which is stopped", "poolctl start db"),
        ({}, FAILS, "waits for db, which did not become ready", "poolctl logs db"),
    ],
)
def test_a_server_whose_dependency_cannot_become_ready_names_it_and_the_fix(
    keys: dict[str, Any], script: str | None, why: str, fix: str
) -> None:
    async def scenario() -> None:
        pool = OrderedCore(
            web("db", **keys), web("api", depends_on=["db"]), **({"db": script} if script else {})
        )
        if script:
            await pool.start("db")
        api = pool.core.entries["api"]
        (problem,) = await pool.order(PoolStartError, [api], pool.core.start)
        assert why in problem.message
        assert problem.hint == fix

    run(scenario())


def test_a_server_that_is_changed_waits_for_its_dependencies_though_it_was_started_without_them() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
        await pool.start("api", deps=False)
        api = pool.core.entries["api"]
        assert api.desired.ignore_dependencies
        pool.core.change(api, web("api", depends_on=["db"], tags=["new"]), live=False)
        assert not api.desired.ignore_dependencies

    run(scenario())


# Servers that sleep under the core: who wakes whom, in which order, and what becomes of those who wait in vain.


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
