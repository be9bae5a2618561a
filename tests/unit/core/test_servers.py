"""Dependencies: servers start and stop in their order, and wait no longer than that demands."""

from __future__ import annotations

import asyncio

from poolctl import ServerConfig
from poolctl.core.decision_input import Overrides, Phase
from poolctl.errors import PoolStartError
from poolctl.runners.runner_protocol import Exit
from tests.unit.core.ordered_core import OrderedCore, run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER


def job(name: str, **keys: object) -> ServerConfig:
    return ServerConfig(name=name, command=["migrate"], job=True, **keys)


def test_server_waits_until_its_dependency_is_ready() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("api", depends_on=["db"]), web("db"), db=NEVER)
        pool.begin(pool.start())
        await turns()
        assert pool.states() == {"api": "starting", "db": "starting"}
        assert [line for line in pool.runner.log if line.startswith("place")] == ["place db.1.0"]

    run(scenario())


def test_started_waits_for_the_process_only() -> None:
    async def scenario() -> None:
        condition = {"name": "db", "condition": "started"}
        pool = OrderedCore(web("api", depends_on=[condition]), web("db"), db=NEVER)
        pool.begin(pool.start())
        await turns()
        assert pool.states() == {"api": "running", "db": "starting"}

    run(scenario())


def test_completed_waits_for_the_end_of_a_job_and_that_it_was_good() -> None:
    async def scenario() -> None:
        condition = {"name": "migrate", "condition": "completed"}
        pool = OrderedCore(web("api", depends_on=[condition]), job("migrate"), migrate=NEVER)
        pool.begin(pool.start())
        await turns()
        assert pool.states() == {"api": "starting", "migrate": "starting"}
        pool.runner.end("migrate.1.0", Exit.from_status(1))
        await turns()
        assert pool.states() == {"api": "starting", "migrate": "failed"}
        pool.runner.script.clear()
        await pool.start("migrate")
        await turns()
        assert pool.states() == {"api": "running", "migrate": "completed"}

    run(scenario())


def test_server_that_waits_for_one_that_has_failed_reports_it_and_waits_no_longer() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("db"), db=FAILS)
        assert await pool.start() != []
        api = pool.core.add(web("api", depends_on=["db"]))
        (problem,) = await pool.order(PoolStartError, [api], pool.core.start)
        assert "db" in problem.message

    run(scenario())


def test_job_that_fails_after_a_takeover_keeps_no_command_waiting() -> None:
    async def scenario() -> None:
        condition = {"name": "migrate", "condition": "completed"}
        pool = OrderedCore(web("api", depends_on=[condition]), job("migrate"), migrate=NEVER)
        starting = pool.begin(pool.start())
        await turns()
        # It was taken over as one that runs: there is no failure to become ready.
        worker = pool.core.entries["migrate"].observed.workers["migrate.1.0"]
        worker.phase, worker.ready_at = Phase.READY, 0.0
        pool.runner.end("migrate.1.0", Exit(message="ended"))
        assert [problem.name for problem in await starting] == ["api", "migrate"]

    run(scenario())


def test_those_that_do_not_wait_for_each_other_start_at_once() -> None:
    async def scenario() -> None:
        pool = OrderedCore(
            web("a"), web("b"), web("on-a", depends_on=["a"]), web("on-b", depends_on=["b"]),
            web("on-both", depends_on=["a", "b"]), b=NEVER,
        )  # fmt: skip
        pool.begin(pool.start())
        await turns(40)
        ready = {name for name, state in pool.states().items() if state == "running"}
        assert ready == {"a", "on-a"}

    run(scenario())


def test_they_stop_in_the_other_direction_and_side_by_side_where_they_may() -> None:
    async def scenario() -> None:
        pool = OrderedCore(
            web("db"), web("one", depends_on=["db"]), web("two", depends_on=["db"]), web("front", depends_on=["one"])
        )  # fmt: skip
        await pool.start()
        pool.runner.log.clear()
        pool.runner.may_stop = asyncio.Event()
        stopping = pool.begin(pool.stop())
        await turns()
        assert set(pool.runner.log) == {"stop front.1.0 10", "stop two.1.0 10"}
        pool.runner.may_stop.set()
        assert await stopping == []
        stops = [line.split()[1].split(".")[0] for line in pool.runner.log if line.startswith("stop")]
        assert stops.index("front") < stops.index("one") < stops.index("db")
        assert stops.index("two") < stops.index("db")

    run(scenario())


def test_one_that_dies_is_no_reason_to_stop_what_depends_on_it() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
        await pool.start()
        pool.runner.end("db.1.0", Exit.from_signal(9))
        await turns()
        assert pool.states() == {"db": "failed", "api": "running"}

    run(scenario())


def test_a_server_starts_when_the_removed_one_that_it_depends_on_is_gone() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
        await pool.start("db")
        pool.runner.may_close.clear()
        pool.core.remove(pool.core.entries["db"])
        await turns()
        pool.core.start(pool.core.entries["api"])
        await turns()
        assert pool.states() == {"db": "stopped", "api": "starting"}
        pool.runner.may_close.set()
        await turns()
        assert pool.states() == {"api": "running"}

    run(scenario())


def test_dependent_waits_for_a_hung_server_out_of_rotation_and_starts_when_it_answers_again() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
        await pool.start("db")
        db = pool.core.entries["db"]
        worker = db.observed.workers["db.1.0"]
        pool.core.mark_stuck(db, worker, True)
        pool.begin(pool.start("api"))
        await turns()
        assert pool.states() == {"db": "running", "api": "starting"}
        pool.core.override(db, Overrides(out=True))
        await turns()
        assert pool.states() == {"db": "draining", "api": "starting"}
        assert not pool.core.servers.may_start(pool.core.entries["api"]), "a hung server answers no dependent"
        pool.core.mark_stuck(db, worker, False)
        await turns()
        assert pool.states() == {"db": "draining", "api": "running"}

    run(scenario())
