"""Servers that change their addresses, and addresses that change their servers."""

from __future__ import annotations

import asyncio

from poolctl import ServerConfig
from poolctl.core.decision_input import Phase
from poolctl.core.server_entry import Worker, restore
from tests.unit.core.ordered_core import OrderedCore, run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER

A, B, C = "127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003"


def moved(pool: OrderedCore, *configs: ServerConfig) -> None:
    """As a reload would have it: all at once."""
    for config in configs:
        pool.core.change(pool.core.entries[config.name], config, live=False)


def listening(pool: OrderedCore) -> dict[str, str]:
    """By address, whose workers there are."""
    found = {}
    for entry in pool.core.entries.values():
        for worker in entry.observed.workers.values():
            found[worker.config.key] = entry.name
    return found


def test_the_new_address_is_open_and_served_before_the_old_one_closes() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(bind=A))
        await pool.start()
        pool.runner.log.clear()
        moved(pool, web(bind=B))
        await turns(40)
        log = pool.runner.log
        assert log[:2] == ["open web", "place web.2.0"]
        assert {f"close {A}", "drain web.1.0", "stop web.1.0 10"} == set(log[2:])
        assert pool.runner.opened == {B}
        await pool.stop()
        assert pool.runner.opened == set()

    run(scenario())


def test_a_new_address_that_cannot_be_served_leaves_everything_as_it_was() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(bind=A), **{"web.2.0": FAILS})
        await pool.start()
        moved(pool, web(bind=B))
        await turns(40)
        entry = pool.core.entries["web"]
        assert (entry.config.key, entry.state, pool.runner.opened) == (A, "running", {A})
        assert set(pool.runner.running) == {"web.1.0"}
        await pool.stop()
        assert pool.runner.opened == set()

    run(scenario())


def test_a_stop_in_the_middle_of_a_move_closes_both_addresses() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(bind=A), **{"web.2.0": NEVER})
        await pool.start()
        moved(pool, web(bind=B))
        await turns(40)
        assert pool.runner.opened == {A, B}
        assert await pool.stop() == []
        assert pool.runner.opened == set()

    run(scenario())


def test_an_address_that_overlaps_the_one_before_opens_after_it_has_closed() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(bind=A))
        await pool.start()
        pool.runner.log.clear()
        moved(pool, web(bind="0.0.0.0:8001"))
        await turns(60)
        assert pool.runner.log.index(f"close {A}") < pool.runner.log.index("open web")
        assert pool.runner.log.index("stop web.1.0 10") < pool.runner.log.index("open web")
        assert pool.runner.opened == {"0.0.0.0:8001"}
        assert pool.states() == {"web": "running"}

    run(scenario())


def test_an_address_that_goes_to_another_server_stays_open_on_the_way() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("a", bind=A), web("b", bind=B))
        await pool.start()
        pool.runner.log.clear()
        moved(pool, web("a", bind=C), web("b", bind=A))
        await turns(80)
        assert pool.states() == {"a": "running", "b": "running"}
        assert listening(pool) == {C: "a", A: "b"}
        assert pool.runner.opened == {A, C}
        assert f"close {A}" not in pool.runner.log

    run(scenario())


def test_two_servers_may_exchange_their_addresses() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("a", bind=A), web("b", bind=B))
        await pool.start()
        pool.runner.log.clear()
        moved(pool, web("a", bind=B), web("b", bind=A))
        await turns(80)
        assert pool.states() == {"a": "running", "b": "running"}
        assert listening(pool) == {B: "a", A: "b"}
        assert not [line for line in pool.runner.log if line.startswith(("close", "open"))]
        await pool.stop()
        assert pool.runner.opened == set()

    run(scenario())


def test_listener_kept_open_for_a_server_is_closed_when_that_is_stopped_instead() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("a", bind=A), web("b", bind=B))
        await pool.start()
        pool.runner.may_end.clear()
        moved(pool, web("a", bind=C), web("b", bind=A))
        await turns(40)
        stopping = pool.begin(pool.stop("b"))
        await turns()
        pool.runner.may_end.set()
        assert await stopping == []
        await turns(40)
        assert pool.runner.opened == {C}

    run(scenario())


def test_a_server_that_is_renamed_answers_under_its_new_name_before_the_old_one_goes() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("old", bind=A))
        await pool.start()
        pool.runner.log.clear()
        pool.core.remove(pool.core.entries["old"])
        pool.core.start(pool.core.add(web("new", bind=A)))
        await turns(60)
        assert pool.runner.log == ["place new.1.0", "drain old.1.0", "stop old.1.0 10"]
        assert (pool.states(), pool.runner.opened) == ({"new": "running"}, {A})
        await pool.stop()
        assert pool.runner.opened == set()

    run(scenario())


def test_renamed_server_that_fails_does_not_keep_the_old_one() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("old", bind=A), new=FAILS)
        await pool.start()
        pool.core.remove(pool.core.entries["old"])
        pool.core.start(pool.core.add(web("new", bind=A)))
        await turns(60)
        assert (pool.states(), pool.runner.opened) == ({"new": "failed"}, set())

    run(scenario())


def test_listener_kept_open_for_a_server_that_never_took_it_is_closed_when_that_is_stopped() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("a", bind=A), web("b", bind=B), web("never"), never=NEVER)
        await pool.start("a", "b")
        pool.begin(pool.start("never"))
        moved(pool, web("a", bind=C), web("b", bind=A, depends_on=["never"]))
        await turns(60)
        assert pool.runner.opened >= {A, B, C}, "what b is to have, has, and what a has now"
        assert await pool.stop("b") == []
        await turns(40)
        assert not pool.runner.opened & {A, B}

    run(scenario())


def test_an_address_that_overlaps_the_one_of_a_server_that_moves_away_opens_after_it() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("a", bind=A), web("b", bind=B))
        await pool.start()
        pool.runner.log.clear()
        moved(pool, web("a", bind=C), web("b", bind="0.0.0.0:8001"))
        await turns(80)
        log = pool.runner.log
        assert log.index(f"close {A}") < log.index("open b")
        assert log.index("stop a.1.0 10") < log.index("open b")
        assert pool.runner.opened == {C, "0.0.0.0:8001"}

    run(scenario())


def test_new_server_waits_for_an_address_in_any_order_of_decision() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("a", bind=A), web("b", bind=B))
        await pool.start()
        pool.core.start(pool.core.add(web("new", bind="0.0.0.0:8001")))
        moved(pool, web("b", bind="0.0.0.0:8003"), web("a", bind="0.0.0.0:8002"))
        await turns(120)
        assert pool.states() == {"a": "running", "b": "running", "new": "running"}
        assert [entry.observed.failures for entry in pool.core.entries.values()] == [0, 0, 0]

    run(scenario())


def test_a_move_goes_on_under_another_supervisor() -> None:
    async def scenario() -> None:
        pools = []  # kept to the end: so that no serving worker is collected
        for address in (B, "0.0.0.0:8001"):
            before, after = web(bind=A), web(bind=address)
            pools.append(pool := OrderedCore(after))
            entry = pool.core.entries["web"]
            restore(entry, {"desired": "run", "generation": 2, "newest": 2})
            await pool.runner.open(before)
            placement = await pool.runner.place(before, 1, 0)
            pool.core.adopt_worker(entry, Worker(placement.id, 1, 0, before, Phase.READY, placement, 1.0))
            pool.core.adopt_listener(entry, before)
            pool.core.resume(entry)
            await turns(80)
            assert set(pool.runner.running) == {"web.2.0"}
            assert (pool.states(), pool.runner.opened) == ({"web": "running"}, {address})

    run(scenario())


def test_removed_server_added_again_at_another_address_before_it_could_stop_moves_there() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web("db", bind="127.0.0.1:8002"), web("api", depends_on=["db"]))
        await pool.start()
        db, api = pool.core.entries["db"], pool.core.entries["api"]
        pool.runner.may_drain = asyncio.Event()
        pool.core.remove(db)
        pool.core.remove(api)
        await turns()
        assert set(pool.runner.running) == {"db.1.0", "api.1.0"}, "its dependent has to end first"
        pool.core.start(pool.core.add(web("db", bind="127.0.0.1:8001")))
        pool.runner.may_drain.set()
        await turns()
        assert set(pool.runner.running) == {"db.2.0"}
        assert pool.runner.opened == {"127.0.0.1:8001"}

    run(scenario())
