"""Servers that change their addresses, and addresses that change their servers."""

from __future__ import annotations

import asyncio

from poolctl import ServerConfig
from poolctl.core.decision_input import Phase
from poolctl.core.server_entry import Worker
from poolctl.core.servers import restore
from tests.unit.pool.scripted_runner import FAILS, NEVER
from tests.unit.supervisor.desk import Desk, run, turns, web

A, B, C = "127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003"


def moved(desk: Desk, *configs: ServerConfig) -> None:
    """As a reload would have it: all at once."""
    for config in configs:
        desk.core.change(desk.core.entries[config.name], config, live=False)


def listening(desk: Desk) -> dict[str, str]:
    """By address, whose workers there are."""
    found = {}
    for entry in desk.core.entries.values():
        for worker in entry.observed.workers.values():
            found[worker.config.key] = entry.name
    return found


def test_the_new_address_is_open_and_served_before_the_old_one_closes() -> None:
    async def scenario() -> None:
        desk = Desk(web(bind=A))
        await desk.ask("start")
        desk.runner.log.clear()
        moved(desk, web(bind=B))
        await turns(40)
        log = desk.runner.log
        assert log[:2] == ["open web", "place web.2.0"]
        assert {f"close {A}", "drain web.1.0", "stop web.1.0 10"} == set(log[2:])
        assert desk.runner.opened == {B}
        await desk.ask("stop")
        assert desk.runner.opened == set()

    run(scenario())


def test_a_new_address_that_cannot_be_served_leaves_everything_as_it_was() -> None:
    async def scenario() -> None:
        desk = Desk(web(bind=A), **{"web.2.0": FAILS})
        await desk.ask("start")
        moved(desk, web(bind=B))
        await turns(40)
        entry = desk.core.entries["web"]
        assert (entry.config.key, entry.state, desk.runner.opened) == (A, "running", {A})
        assert set(desk.runner.running) == {"web.1.0"}
        await desk.ask("stop")
        assert desk.runner.opened == set()

    run(scenario())


def test_a_stop_in_the_middle_of_a_move_closes_both_addresses() -> None:
    async def scenario() -> None:
        desk = Desk(web(bind=A), **{"web.2.0": NEVER})
        await desk.ask("start")
        moved(desk, web(bind=B))
        await turns(40)
        assert desk.runner.opened == {A, B}
        assert (await desk.ask("stop"))["exit_code"] == 0
        assert desk.runner.opened == set()

    run(scenario())


def test_an_address_that_overlaps_the_one_before_opens_after_it_has_closed() -> None:
    async def scenario() -> None:
        desk = Desk(web(bind=A))
        await desk.ask("start")
        desk.runner.log.clear()
        moved(desk, web(bind="0.0.0.0:8001"))
        await turns(60)
        assert desk.runner.log.index(f"close {A}") < desk.runner.log.index("open web")
        assert desk.runner.log.index("stop web.1.0 10") < desk.runner.log.index("open web")
        assert desk.runner.opened == {"0.0.0.0:8001"}
        assert desk.states() == {"web": "running"}

    run(scenario())


def test_an_address_that_goes_to_another_server_stays_open_on_the_way() -> None:
    async def scenario() -> None:
        desk = Desk(web("a", bind=A), web("b", bind=B))
        await desk.ask("start")
        desk.runner.log.clear()
        moved(desk, web("a", bind=C), web("b", bind=A))
        await turns(80)
        assert desk.states() == {"a": "running", "b": "running"}
        assert listening(desk) == {C: "a", A: "b"}
        assert desk.runner.opened == {A, C}
        assert f"close {A}" not in desk.runner.log

    run(scenario())


def test_two_servers_may_exchange_their_addresses() -> None:
    async def scenario() -> None:
        desk = Desk(web("a", bind=A), web("b", bind=B))
        await desk.ask("start")
        desk.runner.log.clear()
        moved(desk, web("a", bind=B), web("b", bind=A))
        await turns(80)
        assert desk.states() == {"a": "running", "b": "running"}
        assert listening(desk) == {B: "a", A: "b"}
        assert not [line for line in desk.runner.log if line.startswith(("close", "open"))]
        await desk.ask("stop")
        assert desk.runner.opened == set()

    run(scenario())


def test_listener_kept_open_for_a_server_is_closed_when_that_is_stopped_instead() -> None:
    async def scenario() -> None:
        desk = Desk(web("a", bind=A), web("b", bind=B))
        await desk.ask("start")
        desk.runner.may_end.clear()
        moved(desk, web("a", bind=C), web("b", bind=A))
        await turns(40)
        stopping = desk.begin("stop", "b")
        await turns()
        desk.runner.may_end.set()
        assert (await stopping)["exit_code"] == 0
        await turns(40)
        assert desk.runner.opened == {C}

    run(scenario())


def test_a_server_that_is_renamed_answers_under_its_new_name_before_the_old_one_goes() -> None:
    async def scenario() -> None:
        desk = Desk(web("old", bind=A))
        await desk.ask("start")
        desk.runner.log.clear()
        desk.core.remove(desk.core.entries["old"])
        desk.core.start(desk.core.add(web("new", bind=A)))
        await turns(60)
        assert desk.runner.log == ["place new.1.0", "drain old.1.0", "stop old.1.0 10"]
        assert (desk.states(), desk.runner.opened) == ({"new": "running"}, {A})
        await desk.ask("stop")
        assert desk.runner.opened == set()

    run(scenario())


def test_renamed_server_that_fails_does_not_keep_the_old_one() -> None:
    async def scenario() -> None:
        desk = Desk(web("old", bind=A), new=FAILS)
        await desk.ask("start")
        desk.core.remove(desk.core.entries["old"])
        desk.core.start(desk.core.add(web("new", bind=A)))
        await turns(60)
        assert (desk.states(), desk.runner.opened) == ({"new": "failed"}, set())

    run(scenario())


def test_listener_kept_open_for_a_server_that_never_took_it_is_closed_when_that_is_stopped() -> None:
    async def scenario() -> None:
        desk = Desk(web("a", bind=A), web("b", bind=B), web("never"), never=NEVER)
        await desk.ask("start", "a", "b")
        desk.begin("start", "never")
        moved(desk, web("a", bind=C), web("b", bind=A, depends_on=["never"]))
        await turns(60)
        assert desk.runner.opened >= {A, B, C}, "what b is to have, has, and what a has now"
        assert (await desk.ask("stop", "b"))["exit_code"] == 0
        await turns(40)
        assert not desk.runner.opened & {A, B}

    run(scenario())


def test_an_address_that_overlaps_the_one_of_a_server_that_moves_away_opens_after_it() -> None:
    async def scenario() -> None:
        desk = Desk(web("a", bind=A), web("b", bind=B))
        await desk.ask("start")
        desk.runner.log.clear()
        moved(desk, web("a", bind=C), web("b", bind="0.0.0.0:8001"))
        await turns(80)
        log = desk.runner.log
        assert log.index(f"close {A}") < log.index("open b")
        assert log.index("stop a.1.0 10") < log.index("open b")
        assert desk.runner.opened == {C, "0.0.0.0:8001"}

    run(scenario())


def test_new_server_waits_for_an_address_in_any_order_of_decision() -> None:
    async def scenario() -> None:
        desk = Desk(web("a", bind=A), web("b", bind=B))
        await desk.ask("start")
        desk.core.start(desk.core.add(web("new", bind="0.0.0.0:8001")))
        moved(desk, web("b", bind="0.0.0.0:8003"), web("a", bind="0.0.0.0:8002"))
        await turns(120)
        assert desk.states() == {"a": "running", "b": "running", "new": "running"}
        assert [entry.observed.failures for entry in desk.core.entries.values()] == [0, 0, 0]

    run(scenario())


def test_a_move_goes_on_under_another_supervisor() -> None:
    async def scenario() -> None:
        desks = []  # kept to the end: so that no serving worker is collected
        for address in (B, "0.0.0.0:8001"):
            before, after = web(bind=A), web(bind=address)
            desks.append(desk := Desk(after))
            entry = desk.core.entries["web"]
            restore(entry, {"desired": "run", "generation": 2, "newest": 2})
            await desk.runner.open(before)
            placement = await desk.runner.place(before, 1, 0)
            desk.core.adopt_worker(entry, Worker(placement.id, 1, 0, before, Phase.READY, placement, 1.0))
            desk.core.adopt_listener(entry, before)
            desk.core.resume(entry)
            await turns(80)
            assert set(desk.runner.running) == {"web.2.0"}
            assert (desk.states(), desk.runner.opened) == ({"web": "running"}, {address})

    run(scenario())


def test_removed_server_added_again_at_another_address_before_it_could_stop_moves_there() -> None:
    async def scenario() -> None:
        desk = Desk(web("db", bind="127.0.0.1:8002"), web("api", depends_on=["db"]))
        await desk.ask("start")
        db, api = desk.core.entries["db"], desk.core.entries["api"]
        desk.runner.may_drain = asyncio.Event()
        desk.core.remove(db)
        desk.core.remove(api)
        await turns()
        assert set(desk.runner.running) == {"db.1.0", "api.1.0"}, "its dependent has to end first"
        desk.core.start(desk.core.add(web("db", bind="127.0.0.1:8001")))
        desk.runner.may_drain.set()
        await turns()
        assert set(desk.runner.running) == {"db.2.0"}
        assert desk.runner.opened == {"127.0.0.1:8001"}

    run(scenario())
