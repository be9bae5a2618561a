"""Servers that come, change and go while the others serve on."""

from __future__ import annotations

from poolctl.core.decision_input import Overrides, Phase
from poolctl.core.server_entry import Worker
from poolctl.core.servers import restore
from tests.unit.pool.scripted_runner import FAILS
from tests.unit.supervisor.desk import Desk, run, turns, web


def test_a_worker_keeps_the_configuration_that_it_was_placed_with_until_it_is_changed_live() -> None:
    async def scenario() -> None:
        desk = Desk(web(stop_timeout=1))
        await desk.ask("start")
        entry = desk.core.entries["web"]
        desk.core.change(entry, web(stop_timeout=2), live=False)
        await turns()
        assert "stop web.1.0 1" in desk.runner.log
        desk.core.change(entry, web(stop_timeout=3), live=True)
        await desk.ask("stop")
        assert "stop web.2.0 3" in desk.runner.log

    run(scenario())


def test_a_changed_server_whose_replacement_fails_goes_back_to_the_configuration_that_serves() -> None:
    async def scenario() -> None:
        before, after = web(), web(tags=["new"])
        desk = Desk(before, **{"web.2.0": FAILS})
        await desk.ask("start")
        entry = desk.core.entries["web"]
        desk.core.change(entry, after, live=False)
        await turns()
        assert entry.config is before
        assert desk.states() == {"web": "running"}
        desk.core.change(entry, after, live=False)
        await turns()
        assert entry.config is after
        assert set(desk.runner.running) == {"web.3.0"}

    run(scenario())


def test_a_worker_that_must_not_run_twice_ends_before_one_of_a_configuration_that_may() -> None:
    async def scenario() -> None:
        desk = Desk(web(overlap=False))
        await desk.ask("start")
        desk.core.change(desk.core.entries["web"], web(overlap=True), live=False)
        await turns()
        assert desk.runner.most_at_once == {"web": 1}
        assert set(desk.runner.running) == {"web.2.0"}

    run(scenario())


def test_an_ordered_restart_counts_when_its_replacement_is_ready() -> None:
    async def scenario() -> None:
        desk = Desk(web(), **{"web.2.0": FAILS})
        await desk.ask("start")
        entry = desk.core.entries["web"]
        for restarts in (0, 1, 2):
            await desk.ask("restart")
            assert entry.observed.restarts == restarts
        desk.core.change(entry, web(tags=["new"]), live=False)
        await turns()
        assert entry.observed.restarts == 3

    run(scenario())


def test_a_supervisor_counts_the_restart_whose_replacement_it_finds_ready() -> None:
    async def scenario() -> None:
        desk = Desk(web())
        entry = desk.core.entries["web"]
        entry.order_restart()
        desk.core.adopt_worker(entry, Worker("web.2.0", 2, 0, entry.config, Phase.READY, ready_at=1.0))
        assert (entry.observed.restarts, entry.desired.restarting) == (1, 0)

    run(scenario())


def test_a_change_of_a_server_that_does_not_run_starts_nothing() -> None:
    async def scenario() -> None:
        desk = Desk(web())
        desk.core.change(desk.core.entries["web"], web(tags=["new"]), live=False)
        await turns()
        assert desk.runner.log == []

    run(scenario())


def test_a_removed_server_finishes_what_it_has_and_is_forgotten_with_its_edges() -> None:
    async def scenario() -> None:
        desk = Desk(web("db"), web("api", depends_on=["db"]), web("other"))
        await desk.ask("start")
        desk.core.remove(desk.core.entries["api"])
        await turns()
        assert [line for line in desk.runner.log if "api" in line][-2:] == [
            "drain api.1.0",
            "stop api.1.0 10",
        ]
        assert desk.states() == {"db": "running", "other": "running"}
        assert desk.core.servers.dependents(desk.core.entries["db"]) == []

    run(scenario())


def test_an_added_server_waits_for_what_it_depends_on_and_is_waited_for() -> None:
    async def scenario() -> None:
        desk = Desk(web("api", depends_on=["db"]))
        desk.core.start(desk.core.add(web("late", depends_on=["api"])))
        desk.core.start(desk.core.add(web("db")))
        await desk.ask("start")
        placed = [line for line in desk.runner.log if line.startswith("place")]
        assert placed == ["place db.1.0", "place api.1.0", "place late.1.0"]

    run(scenario())


def test_server_that_is_added_again_while_it_leaves_runs_next_to_the_leaving_one() -> None:
    async def scenario() -> None:
        desk = Desk(web())
        await desk.ask("start")
        desk.runner.may_end.clear()
        desk.core.remove(desk.core.entries["web"])
        await turns()
        desk.core.start(desk.core.add(web(tags=["again"])))
        await turns()
        assert desk.states() == {"web": "running"}
        desk.runner.may_end.set()
        await turns()
        assert set(desk.runner.running) == {"web.2.0"}
        assert desk.core.entries["web"].config.tags == ("again",)

    run(scenario())


def test_the_order_of_the_servers_is_the_one_that_is_asked_for() -> None:
    async def scenario() -> None:
        desk = Desk(web("a"), web("b"), web("c"))
        desk.core.servers.arrange(["c", "a", "unknown"])
        assert list(desk.states()) == ["c", "a", "b"]

    run(scenario())


def test_server_out_of_rotation_answers_is_not_ready_and_keeps_no_command_waiting() -> None:
    async def scenario() -> None:
        desk = Desk(web("db", workers=2), web("api", depends_on=["db"]))
        await desk.ask("start", "db")
        entry = desk.core.entries["db"]
        desk.core.override(entry, Overrides(out=True))
        await turns()
        assert desk.runner.log[-2:] == ["out db.1.0", "out db.1.1"]
        assert (entry.state, entry.ready) == ("draining", False)
        assert (await desk.ask("start", "api"))["exit_code"] == 0
        # What replaces it is out of rotation as well.
        await desk.ask("restart", "db")
        await turns()
        assert {"out db.2.0", "out db.2.1"} <= set(desk.runner.log)
        desk.core.override(entry)
        await turns()
        assert desk.runner.log[-2:] == ["in db.2.0", "in db.2.1"]
        assert desk.states()["db"] == "running"

    run(scenario())


def test_servers_are_started_in_the_order_of_the_file_right_after_a_boot_that_found_nothing() -> None:
    async def scenario() -> None:
        names = [f"s{number}" for number in range(20)]
        desk = Desk(*(web(name, bind=f"127.0.0.1:{8100 + place}") for place, name in enumerate(names)))
        for entry in desk.core.entries.values():
            desk.core.resume(entry)
        await turns(1)
        await desk.ask("start")
        assert [line for line in desk.runner.log if line.startswith("place")] == [
            f"place {name}.1.0" for name in names
        ]

    run(scenario())


def test_adopted_server_continues_with_the_generation_that_serves() -> None:
    async def scenario() -> None:
        desks = []  # kept until the end, so that no task is collected while the loop runs
        for leaving, staying, expected in ((1, 2, 2), (1, None, 3), (None, 1, 2)):
            desk = Desk(web())
            desks.append(desk)
            entry = desk.core.entries["web"]
            generation = 2 if leaving is None else 1
            restore(entry, {"desired": "run", "generation": generation, "newest": 2})
            await desk.runner.open(entry.config)
            for generation, phase in ((leaving, Phase.DRAINING), (staying, Phase.READY)):
                if generation is not None:
                    placement = await desk.runner.place(entry.config, generation, 0)
                    worker = Worker(placement.id, generation, 0, entry.config, phase, placement, 1.0)
                    desk.core.adopt_worker(entry, worker)
            desk.core.adopt_listener(entry, entry.config)
            desk.core.resume(entry)
            await turns(40)
            assert set(desk.runner.running) == {f"web.{expected}.0"}
            assert desk.states() == {"web": "running"}

    run(scenario())


def test_serving_worker_is_not_ended_for_a_successor_that_cannot_start() -> None:
    async def scenario() -> None:
        desk = Desk(web(overlap=False))
        await desk.ask("start")
        desk.runner.unplaceable.add("web")
        done = await desk.ask("restart")
        assert done["exit_code"] == 1
        assert [each["message"] for each in done["errors"]] == ["no worker can be forked"]
        assert set(desk.runner.running) == {"web.1.0"}
        assert desk.states() == {"web": "running"}
        desk.runner.unplaceable.clear()
        assert (await desk.ask("restart"))["exit_code"] == 0
        assert set(desk.runner.running) == {"web.3.0"}

    run(scenario())
