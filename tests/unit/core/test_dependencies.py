"""Dependencies: servers start and stop in their order, and wait no longer than that demands."""

from __future__ import annotations

import asyncio

from poolctl import ServerConfig
from poolctl.core.decision_input import Overrides, Phase
from poolctl.runners.runner_protocol import Exit
from tests.unit.pool.scripted_runner import FAILS, NEVER
from tests.unit.supervisor.desk import Desk, run, turns, web


def job(name: str, **keys: object) -> ServerConfig:
    return ServerConfig(name=name, command=["migrate"], job=True, **keys)


def test_server_waits_until_its_dependency_is_ready() -> None:
    async def scenario() -> None:
        desk = Desk(web("api", depends_on=["db"]), web("db"), db=NEVER)
        desk.begin("start")
        await turns()
        assert desk.states() == {"api": "starting", "db": "starting"}
        assert [line for line in desk.runner.log if line.startswith("place")] == ["place db.1.0"]

    run(scenario())


def test_started_waits_for_the_process_only() -> None:
    async def scenario() -> None:
        condition = {"name": "db", "condition": "started"}
        desk = Desk(web("api", depends_on=[condition]), web("db"), db=NEVER)
        desk.begin("start")
        await turns()
        assert desk.states() == {"api": "running", "db": "starting"}

    run(scenario())


def test_completed_waits_for_the_end_of_a_job_and_that_it_was_good() -> None:
    async def scenario() -> None:
        condition = {"name": "migrate", "condition": "completed"}
        desk = Desk(web("api", depends_on=[condition]), job("migrate"), migrate=NEVER)
        desk.begin("start", timeout=1)
        await turns()
        assert desk.states() == {"api": "starting", "migrate": "starting"}
        desk.runner.end("migrate.1.0", Exit.from_status(1))
        await turns()
        assert desk.states() == {"api": "starting", "migrate": "failed"}
        desk.runner.script.clear()
        await desk.ask("start", "migrate")
        await turns()
        assert desk.states() == {"api": "running", "migrate": "completed"}

    run(scenario())


def test_server_that_waits_for_one_that_has_failed_reports_it_and_waits_no_longer() -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), db=FAILS)
        assert (await desk.ask("start"))["exit_code"] == 1
        table = {"name": "api", "bind": "127.0.0.1:7070", "app": "a:b", "depends_on": ["db"]}
        answer = await desk.ask("add", server=table, base_dir="/nowhere")
        assert answer["exit_code"] == 1
        assert "db" in answer["errors"][0]["message"]

    run(scenario())


def test_job_that_fails_after_a_takeover_keeps_no_command_waiting() -> None:
    async def scenario() -> None:
        condition = {"name": "migrate", "condition": "completed"}
        desk = Desk(web("api", depends_on=[condition]), job("migrate"), migrate=NEVER)
        starting = desk.begin("start")
        await turns()
        # It was taken over as one that runs: there is no failure to become ready.
        worker = desk.core.entries["migrate"].observed.workers["migrate.1.0"]
        worker.phase, worker.ready_at = Phase.READY, 0.0
        desk.runner.end("migrate.1.0", Exit(message="ended"))
        answer = await starting
        assert answer["exit_code"] == 1
        assert [each["name"] for each in answer["errors"]] == ["api", "migrate"]

    run(scenario())


def test_those_that_do_not_wait_for_each_other_start_at_once() -> None:
    async def scenario() -> None:
        desk = Desk(
            web("a"), web("b"), web("on-a", depends_on=["a"]), web("on-b", depends_on=["b"]),
            web("on-both", depends_on=["a", "b"]), b=NEVER,
        )  # fmt: skip
        desk.begin("start")
        await turns(40)
        ready = {name for name, state in desk.states().items() if state == "running"}
        assert ready == {"a", "on-a"}

    run(scenario())


def test_they_stop_in_the_other_direction_and_side_by_side_where_they_may() -> None:
    async def scenario() -> None:
        desk = Desk(
            web("db"), web("one", depends_on=["db"]), web("two", depends_on=["db"]), web("front", depends_on=["one"])
        )  # fmt: skip
        await desk.ask("start")
        desk.runner.log.clear()
        desk.runner.may_stop = asyncio.Event()
        stopping = desk.begin("stop")
        await turns()
        assert set(desk.runner.log) == {"stop front.1.0 10", "stop two.1.0 10"}
        desk.runner.may_stop.set()
        assert (await stopping)["exit_code"] == 0
        stops = [line.split()[1].split(".")[0] for line in desk.runner.log if line.startswith("stop")]
        assert stops.index("front") < stops.index("one") < stops.index("db")
        assert stops.index("two") < stops.index("db")

    run(scenario())


def test_one_that_dies_is_no_reason_to_stop_what_depends_on_it() -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("api", depends_on=["db"]))
        await desk.ask("start")
        desk.runner.end("db.1.0", Exit.from_signal(9))
        await turns()
        assert desk.states() == {"db": "failed", "api": "running"}

    run(scenario())


def test_a_server_starts_when_the_removed_one_that_it_depends_on_is_gone() -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("api", depends_on=["db"]))
        await desk.ask("start", "db")
        desk.runner.may_close.clear()
        desk.core.remove(desk.core.entries["db"])
        await turns()
        desk.core.start(desk.core.entries["api"])
        await turns()
        assert desk.states() == {"db": "stopped", "api": "starting"}
        desk.runner.may_close.set()
        await turns()
        assert desk.states() == {"api": "running"}

    run(scenario())


def test_dependent_waits_for_a_hung_server_out_of_rotation_and_starts_when_it_answers_again() -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("api", depends_on=["db"]))
        await desk.ask("start", "db")
        db = desk.core.entries["db"]
        worker = db.observed.workers["db.1.0"]
        desk.core.mark_stuck(db, worker, True)
        desk.begin("start", "api", timeout=1)
        await turns()
        assert desk.states() == {"db": "running", "api": "starting"}
        desk.core.override(db, Overrides(out=True))
        await turns()
        assert desk.states() == {"db": "draining", "api": "starting"}
        assert not desk.core.servers.may_start(desk.core.entries["api"]), "a hung server answers no dependent"
        desk.core.mark_stuck(db, worker, False)
        await turns()
        assert desk.states() == {"db": "draining", "api": "running"}

    run(scenario())
