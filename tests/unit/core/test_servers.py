"""Dependencies: servers start and stop in their order, and wait no longer than that demands."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.core.server_entry import Entry, restore
from poolctl.core.server_state import Desired, Overrides
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.core.workqueue import BATCH, Workqueue, caused_by
from poolctl.errors import PoolRestartError, PoolStartError
from poolctl.runners.runner_protocol import Exit
from tests.unit.core.ordered_core import OrderedCore, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER, READY


def job(name: str, **keys: object) -> ServerConfig:
    return ServerConfig(name=name, command=["migrate"], job=True, **keys)


async def test_completed_waits_for_the_end_of_a_job_and_that_it_was_good() -> None:
    condition = {"name": "migrate", "condition": "completed"}
    pool = OrderedCore(web("api", depends_on=[condition]), job("migrate"), migrate=NEVER)
    pool.begin(pool.start())
    await turns()
    assert pool.states() == {"api": "starting", "migrate": "starting"}
    pool.runner.end("migrate.1.0", Exit.from_returncode(1))
    await turns()
    assert pool.states() == {"api": "starting", "migrate": "failed"}
    pool.runner.script.clear()
    await pool.start("migrate")
    await turns()
    assert pool.states() == {"api": "running", "migrate": "completed"}


async def test_server_that_waits_for_one_that_has_failed_reports_it_and_waits_no_longer() -> None:
    pool = OrderedCore(web("db"), db=FAILS)
    assert await pool.start() != []
    api = pool.core.add(web("api", depends_on=["db"]))
    (problem,) = await pool.order(PoolStartError, [api], pool.core.start)
    assert "db" in problem.message


async def test_job_that_fails_after_a_takeover_keeps_no_command_waiting() -> None:
    condition = {"name": "migrate", "condition": "completed"}
    pool = OrderedCore(web("api", depends_on=[condition]), job("migrate"), migrate=NEVER)
    starting = pool.begin(pool.start())
    await turns()
    # It was taken over as one that runs: there is no failure to become ready.
    worker = pool.core.entries["migrate"].observed.workers["migrate.1.0"]
    worker.phase, worker.ready_at = WorkerPhase.READY, 0.0
    pool.runner.end("migrate.1.0", Exit(message="ended"))
    assert [problem.name for problem in await starting] == ["api", "migrate"]


async def test_those_that_do_not_wait_for_each_other_start_at_once() -> None:
    pool = OrderedCore(
        web("a"), web("b"), web("on-a", depends_on=["a"]), web("on-b", depends_on=["b"]),
        web("on-both", depends_on=["a", "b"]), b=NEVER,
    )  # fmt: skip
    pool.begin(pool.start())
    await turns(40)
    ready = {name for name, state in pool.states().items() if state == "running"}
    assert ready == {"a", "on-a"}


async def test_they_stop_in_the_other_direction_and_side_by_side_where_they_may() -> None:
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


async def test_one_that_dies_is_no_reason_to_stop_what_depends_on_it() -> None:
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
    await pool.start()
    pool.runner.end("db.1.0", Exit.from_signal(9))
    await turns()
    assert pool.states() == {"db": "failed", "api": "running"}


async def test_a_server_starts_when_the_removed_one_that_it_depends_on_is_gone() -> None:
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
    await pool.start("db")
    pool.runner.may_close.clear()
    pool.core.schedule_removal(pool.core.entries["db"])
    await turns()
    pool.core.start(pool.core.entries["api"])
    await turns()
    assert pool.states() == {"db": "stopped", "api": "starting"}
    pool.runner.may_close.set()
    await turns()
    assert pool.states() == {"api": "running"}


@pytest.mark.parametrize("ignored", [False, True])
async def test_removed_server_waits_for_its_dependents_unless_they_are_ignored(ignored: bool) -> None:
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
    await pool.start()
    pool.core.schedule_removal(pool.core.entries["db"], ignore_dependents=ignored)
    await turns(60)
    states = {"api": "running"} if ignored else {"db": "stopping", "api": "running"}
    assert pool.states() == states
    await pool.stop("api")
    await turns(60)
    assert pool.states() == {"api": "stopped"}


async def test_dependent_waits_for_a_hung_server_out_of_rotation_and_starts_when_it_answers_again() -> None:
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
    await pool.start("db")
    db = pool.core.entries["db"]
    worker = db.observed.workers["db.1.0"]
    pool.core.mark_stuck(db, worker, True)
    pool.begin(pool.start("api"))
    await turns()
    assert pool.states() == {"db": "running", "api": "starting"}
    pool.core.replace_overrides(db, Overrides(out=True))
    await turns()
    assert pool.states() == {"db": "draining", "api": "starting"}
    assert not pool.core.servers.may_start(pool.core.entries["api"]), "a hung server answers no dependent"
    pool.core.mark_stuck(db, worker, False)
    await turns()
    assert pool.states() == {"db": "draining", "api": "running"}


# Servers that change their addresses, and addresses that change their servers.


A, B, C = "127.0.0.1:8001", "127.0.0.1:8002", "127.0.0.1:8003"


def moved(pool: OrderedCore, *configs: ServerConfig) -> None:
    """As a reload would have it: all at once."""
    for config in configs:
        pool.core.change(pool.core.entries[config.name], config, live=False)


async def reload(pool: OrderedCore, *configs: ServerConfig) -> dict[str, str]:
    """Change these servers as a reload would, and wait; returns the problems by server."""
    entries = [pool.core.entries[config.name] for config in configs]
    by_name = {config.name: config for config in configs}
    problems = await pool.order(
        PoolRestartError, entries, lambda entry: pool.core.change(entry, by_name[entry.name], live=False)
    )
    return {problem.name: problem.message for problem in problems}


def places(pool: OrderedCore) -> list[str]:
    return [line.removeprefix("place ") for line in pool.runner.log if line.startswith("place")]


NEW = {"tags": ["new"]}
CHAIN = [("web", ["api"]), ("api", ["db"]), ("db", [])]


def chain(**keys: Any) -> list[ServerConfig]:
    return [web(name, depends_on=needs, **keys) for name, needs in CHAIN]


async def test_servers_that_change_together_are_replaced_in_the_order_of_their_dependencies() -> None:
    pool = OrderedCore(*chain())
    await pool.start()
    assert await reload(pool, *chain(**NEW)) == {}
    assert places(pool)[3:] == ["db.2.0", "api.2.0", "web.2.0"]
    await pool.restart()
    assert places(pool)[6:] == ["db.3.0", "api.3.0", "web.3.0"]
    await pool.restart("db")
    assert places(pool)[9:] == ["db.4.0"]


async def test_server_is_not_replaced_if_what_it_depends_on_fails_directly_or_not() -> None:
    before = chain()
    pool = OrderedCore(*before, **{"db.2.0": FAILS})
    await pool.start()
    problems = await reload(pool, *chain(**NEW))
    message = "was not replaced and runs as before, because db, on which it depends, has failed"
    assert (problems["api"], problems["web"]) == (message, message)
    assert [entry.config for entry in pool.core.entries.values()] == before
    assert {*pool.runner.running} == {"db.1.0", "api.1.0", "web.1.0"}
    assert await reload(pool, *chain(**NEW)) == {}


async def test_server_is_replaced_beside_a_dependency_that_has_to_be_started_only() -> None:
    needs = {"depends_on": [{"name": "db", "condition": "started"}]}
    pool = OrderedCore(web("api", **needs), web("db"), **{"db.2.0": NEVER})
    await pool.start()
    moved(pool, web("api", **needs, **NEW), web("db", **NEW))
    await turns(40)
    assert places(pool)[2:] == ["db.2.0", "api.2.0"]


async def test_server_is_replaced_when_all_workers_of_its_dependency_are_ready() -> None:
    pool = OrderedCore(web("api", depends_on=["db"]), web("db", workers=2), **{"db.2.1": NEVER})
    await pool.start()
    pool.begin(pool.restart())
    await turns(40)
    assert places(pool)[3:] == ["db.2.0", "db.2.1"]


async def test_single_worker_is_replaced_while_a_dependency_is_and_a_new_server_waits() -> None:
    keys: dict[str, Any] = {"depends_on": ["db"], "restart": "always"}
    pool = OrderedCore(
        web("api", **keys), web("db"), web("new", **keys), web("alone", **keys), **{"db.2.0": NEVER}
    )
    await pool.start("db", "api")
    pool.begin(pool.restart("db"))
    pool.begin(pool.start("new"))
    pool.begin(pool.start("alone", deps=False))
    await turns()
    pool.core.replace_worker(pool.core.entries["api"], "api.1.0")
    await turns()
    pool.runner.end("api.2.0", Exit.from_signal(9))
    await turns()
    assert places(pool)[2:] == ["db.2.0", "alone.1.0", "api.2.0", "api.2.0"]
    assert pool.states() == {"api": "running", "db": "running", "new": "starting", "alone": "running"}
    pool.runner.end("db.2.0", Exit.from_signal(9))
    await turns(40)
    assert pool.states()["new"] == "running"


async def test_server_is_replaced_if_its_dependency_waits_for_a_stopped_one() -> None:
    pool = OrderedCore(*chain())
    await pool.start()
    pool.core.stop(pool.core.entries["db"])
    await turns()
    assert await reload(pool, *chain(**NEW)[:2]) == {"api": "waits for db, which is stopped"}
    assert places(pool)[3:] == ["web.2.0"]
    await pool.start("db")
    await turns(40)
    assert places(pool)[3:] == ["web.2.0", "db.1.0", "api.2.0"]


async def test_replacement_that_waits_for_one_that_keeps_failing_keeps_no_command_waiting() -> None:
    pool = OrderedCore(*chain(), **{"db.2.0": FAILS})
    await pool.start()
    pool.runner.script["db"] = FAILS
    pool.runner.end("db.1.0", Exit.from_signal(9))
    await turns()
    problems = await reload(pool, *chain(restart="always"))
    assert (problems["web"], problems["api"]) == (
        "waits for api, which did not become ready",
        "waits for db, which did not become ready",
    )
    assert {*pool.runner.running} == {"api.1.0", "web.1.0"}


async def test_server_is_replaced_alone_after_the_failure_of_a_dependency_that_had_to_end_first() -> None:
    pool = OrderedCore(web("api", depends_on=["db"]), web("db", overlap=False, restart="always"), db=READY)
    await pool.start()
    pool.runner.script["db"] = FAILS
    assert {problem.name for problem in await pool.restart()} == {"api", "db"}
    assert await pool.restart("api") == []
    assert {*pool.runner.running} == {"api.3.0"}


@pytest.mark.parametrize("keys", [{}, {"overlap": False}, {"command": ["program", "{fd}"], "app": None}])
@pytest.mark.parametrize(
    ("api", "db"),
    [
        ((A, B), (B, A)),
        ((A, C), (B, A)),
        (("0.0.0.0:8001", C), (B, A)),
        (("127.0.0.2:8001", C), (A, "0.0.0.0:8001")),
    ],
)
async def test_server_whose_address_its_dependency_takes_over_does_not_wait_for_it_in_vain(
    api: tuple[str, str], db: tuple[str, str], keys: dict[str, Any]
) -> None:
    def configs(when: int) -> list[ServerConfig]:
        return [web("api", bind=api[when], depends_on=["db"], **keys), web("db", bind=db[when], **keys)]

    pool = OrderedCore(*configs(0))
    await pool.start()
    pool.runner.may_close.clear()
    reloading = asyncio.ensure_future(reload(pool, *configs(1)))
    await turns(40)
    pool.runner.may_close.set()
    assert await reloading == {}
    await turns(80)
    assert listening(pool) == {api[1]: "api", db[1]: "db"}


async def test_server_waits_for_a_dependency_that_has_to_leave_its_own_address_first() -> None:
    def configs(bind: str, **keys: Any) -> list[ServerConfig]:
        return [web("api", depends_on=["web"], **keys), program(bind=bind)]

    pool = OrderedCore(*configs(A))
    await pool.start()
    pool.runner.may_end.clear()
    moved(pool, *configs("0.0.0.0:8001", **NEW))
    await turns(40)
    assert {*pool.runner.running} == {"api.1.0", "web.1.0"}
    pool.runner.may_end.set()
    await turns(80)
    assert {*pool.runner.running} == {"api.2.0", "web.2.0"}


async def test_exchange_of_addresses_with_a_dependency_that_fails_is_undone() -> None:
    def configs(api: str, db: str) -> list[ServerConfig]:
        return [web("api", bind=api, depends_on=["db"]), web("db", bind=db)]

    pool = OrderedCore(*configs(A, B), **{"db.2.0": FAILS})
    await pool.start()
    problems = await reload(pool, *configs(B, A))
    assert problems["api"] == "was to exchange addresses with db, which cannot have its new one"
    assert listening(pool) == {A: "api", B: "db"}
    assert pool.states() == {"api": "running", "db": "running"}


def listening(pool: OrderedCore) -> dict[str, str]:
    """By address, whose workers there are."""
    listeners = {}
    for entry in pool.core.entries.values():
        for worker in entry.observed.workers.values():
            listeners[worker.config.key] = entry.name
    return listeners


async def test_the_new_address_is_open_and_served_before_the_old_one_closes() -> None:
    pool = OrderedCore(web(bind=A))
    await pool.start()
    pool.runner.log.clear()
    moved(pool, web(bind=B))
    await turns(40)
    log = pool.runner.log
    assert log[:2] == ["open web", "place web.2.0"]
    assert {f"close {A}", "drain web.1.0", "stop web.1.0 10"} == set(log[2:])
    assert pool.runner.opened == {B}
    entry = pool.core.entries["web"]
    assert (pool.core.endpoints(web(bind=A)), pool.core.endpoints(entry.config)) == ((), (B,))
    await pool.stop()
    assert pool.runner.opened == set()
    assert pool.core.endpoints(entry.config) == ()


async def test_a_new_address_that_cannot_be_served_leaves_everything_as_it_was() -> None:
    pool = OrderedCore(web(bind=A), **{"web.2.0": FAILS})
    await pool.start()
    moved(pool, web(bind=B))
    await turns(40)
    entry = pool.core.entries["web"]
    assert (entry.config.key, entry.state, pool.runner.opened) == (A, "running", {A})
    assert set(pool.runner.running) == {"web.1.0"}
    await pool.stop()
    assert pool.runner.opened == set()


async def test_a_stop_in_the_middle_of_a_move_closes_both_addresses() -> None:
    pool = OrderedCore(web(bind=A), **{"web.2.0": NEVER})
    await pool.start()
    moved(pool, web(bind=B))
    await turns(40)
    assert pool.runner.opened == {A, B}
    assert await pool.stop() == []
    assert pool.runner.opened == set()


async def test_an_address_that_overlaps_the_one_before_is_opened_beside_it() -> None:
    pool = OrderedCore(web(bind=A))
    await pool.start()
    pool.runner.log.clear()
    moved(pool, web(bind="0.0.0.0:8001"))
    await turns(60)
    log = [line for line in pool.runner.log if not line.startswith("drain")]
    assert log == ["open web", "place web.2.0", "stop web.1.0 10", f"close {A}"]
    assert pool.states() == {"web": "running"}


async def test_an_overlapping_address_of_a_program_opens_after_the_one_before_has_closed() -> None:
    pool = OrderedCore(program(bind=A))
    await pool.start()
    pool.runner.log.clear()
    moved(pool, program(bind="0.0.0.0:8001"))
    await turns(60)
    assert pool.runner.log.index(f"close {A}") < pool.runner.log.index("open web")
    assert pool.runner.log.index("stop web.1.0 10") < pool.runner.log.index("open web")
    assert pool.runner.opened == {"0.0.0.0:8001"}
    assert pool.states() == {"web": "running"}


def program(**keys: Any) -> ServerConfig:
    return ServerConfig(name="web", command=["program", "{fd}"], restart="no", **keys)


async def test_an_address_that_goes_to_another_server_stays_open_on_the_way() -> None:
    pool = OrderedCore(web("a", bind=A), web("b", bind=B))
    await pool.start()
    pool.runner.log.clear()
    moved(pool, web("a", bind=C), web("b", bind=A))
    await turns(80)
    assert pool.states() == {"a": "running", "b": "running"}
    assert listening(pool) == {C: "a", A: "b"}
    assert pool.runner.opened == {A, C}
    assert f"close {A}" not in pool.runner.log


async def test_two_servers_may_exchange_their_addresses() -> None:
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


async def test_listener_kept_open_for_a_server_is_closed_when_that_is_stopped_instead() -> None:
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


async def test_a_server_that_is_renamed_answers_under_its_new_name_before_the_old_one_goes() -> None:
    pool = OrderedCore(web("old", bind=A))
    await pool.start()
    pool.runner.log.clear()
    pool.core.schedule_removal(pool.core.entries["old"])
    pool.core.start(pool.core.add(web("new", bind=A)))
    await turns(60)
    assert pool.runner.log == ["place new.1.0", "drain old.1.0", "stop old.1.0 10"]
    assert (pool.states(), pool.runner.opened) == ({"new": "running"}, {A})
    await pool.stop()
    assert pool.runner.opened == set()


async def test_renamed_server_that_fails_does_not_keep_the_old_one() -> None:
    pool = OrderedCore(web("old", bind=A), new=FAILS)
    await pool.start()
    pool.core.schedule_removal(pool.core.entries["old"])
    pool.core.start(pool.core.add(web("new", bind=A)))
    await turns(60)
    assert (pool.states(), pool.runner.opened) == ({"new": "failed"}, set())


async def test_listener_kept_open_for_a_server_that_never_took_it_is_closed_when_that_is_stopped() -> None:
    pool = OrderedCore(web("a", bind=A), web("b", bind=B), web("never"), never=NEVER)
    await pool.start("a", "b")
    pool.begin(pool.start("never"))
    moved(pool, web("a", bind=C), web("b", bind=A, depends_on=["never"]))
    await turns(60)
    assert pool.runner.opened >= {A, B, C}, "what b is to have, has, and what a has now"
    assert await pool.stop("b") == []
    await turns(40)
    assert not pool.runner.opened & {A, B}


async def test_an_address_that_overlaps_the_one_of_a_server_that_moves_away_opens_after_it() -> None:
    pool = OrderedCore(web("a", bind=A), web("b", bind=B))
    await pool.start()
    pool.runner.log.clear()
    moved(pool, web("a", bind=C), web("b", bind="0.0.0.0:8001"))
    await turns(80)
    log = pool.runner.log
    assert log.index(f"close {A}") < log.index("open b")
    assert log.index("stop a.1.0 10") < log.index("open b")
    assert pool.runner.opened == {C, "0.0.0.0:8001"}


async def test_new_server_waits_for_an_address_in_any_order_of_decision() -> None:
    pool = OrderedCore(web("a", bind=A), web("b", bind=B))
    await pool.start()
    pool.core.start(pool.core.add(web("new", bind="0.0.0.0:8001")))
    moved(pool, web("b", bind="0.0.0.0:8003"), web("a", bind="0.0.0.0:8002"))
    await turns(120)
    assert pool.states() == {"a": "running", "b": "running", "new": "running"}
    assert [entry.observed.failures for entry in pool.core.entries.values()] == [0, 0, 0]


async def test_a_move_goes_on_under_another_supervisor() -> None:
    pools = []  # kept to the end: so that no serving worker is collected
    for address in (B, "0.0.0.0:8001"):
        before, after = web(bind=A), web(bind=address)
        pools.append(pool := OrderedCore(after))
        entry = pool.core.entries["web"]
        restore(entry, {"desired": "run", "generation": 2, "newest": 2})
        await pool.runner.open(before)
        placement = await pool.runner.place(before, 1, 0)
        pool.core.adopt_worker(entry, Worker(placement.id, 1, 0, before, WorkerPhase.READY, placement, 1.0))
        pool.core.adopt_listener(entry, before)
        pool.core.resume_adopted_server(entry)
        await turns(80)
        assert set(pool.runner.running) == {"web.2.0"}
        assert (pool.states(), pool.runner.opened) == ({"web": "running"}, {address})


async def test_removed_server_added_again_at_another_address_before_it_could_stop_moves_there() -> None:
    pool = OrderedCore(web("db", bind="127.0.0.1:8002"), web("api", depends_on=["db"]))
    await pool.start()
    db, api = pool.core.entries["db"], pool.core.entries["api"]
    pool.runner.may_drain = asyncio.Event()
    pool.core.schedule_removal(db)
    pool.core.schedule_removal(api)
    await turns()
    assert set(pool.runner.running) == {"db.1.0", "api.1.0"}, "its dependent has to end first"
    pool.core.start(pool.core.add(web("db", bind="127.0.0.1:8001")))
    pool.runner.may_drain.set()
    await turns()
    assert set(pool.runner.running) == {"db.2.0"}
    assert pool.runner.opened == {"127.0.0.1:8001"}


# The order in which the core decides on servers.


def entries(count: int) -> list[Entry]:
    return [
        Entry(ServerConfig(name=f"s{number}", bind=f"127.0.0.1:{8000 + number}", app="a:b"))
        for number in range(count)
    ]


def names(turn: list[Entry]) -> list[str]:
    return [entry.name for entry in turn]


def test_a_batch_takes_some_in_the_order_of_their_change_each_once() -> None:
    queue = Workqueue()
    queue.add_all(many := entries(BATCH + 2))
    queue.add(many[0])
    assert names(list(queue.take_batch())) == names(many[:BATCH])
    assert names(list(queue.take_batch())) == names(many[BATCH:])
    assert not queue


def test_server_with_a_finished_action_is_decided_on_before_one_that_has_not_begun() -> None:
    queue = Workqueue()
    queue.add_all(many := entries(4))
    queue.add(many[3], progressed=True)
    assert names(list(queue.take_batch())) == ["s0", "s3", "s1", "s2"]


def test_server_that_is_queued_twice_is_decided_on_once() -> None:
    queue = Workqueue()
    queue.add_all(many := entries(3))
    for entry in many:
        queue.add(entry, progressed=True)
    assert sorted(names(list(queue.take_batch()))) == ["s0", "s1", "s2"]


def test_none_is_passed_over_for_ever() -> None:
    queue = Workqueue()
    *restless, patient = entries(BATCH + 3)
    queue.add_all(restless)
    queue.add(patient)
    turns = []
    while patient not in [entry for turn in turns for entry in turn] and len(turns) < 100:
        turns.append(list(queue.take_batch()))
        for entry in restless:
            queue.add(entry, progressed=True)
    assert len(turns) <= len(restless) + 1


def test_server_queued_during_a_batch_may_be_part_of_it() -> None:
    queue = Workqueue()
    first, second = entries(2)
    queue.add(first)
    taken = []
    for entry in queue.take_batch():
        taken.append(entry)
        if entry is first:
            queue.add(second)
    assert taken == [first, second]


async def test_changes_of_one_turn_are_decided_on_together() -> None:
    settled: list[list[str]] = []
    changes = Workqueue(lambda: settled.append(names(changes.take_changed())))
    first, second = entries(2)
    changes.touch(first)
    changes.touch(second)
    changes.touch(first)
    assert settled == []
    await asyncio.sleep(0)
    assert settled == [["s0", "s1"]]
    changes.touch(second)
    await asyncio.sleep(0)
    assert settled == [["s0", "s1"], ["s1"]]
    changes.note(first)
    await asyncio.sleep(0)
    assert len(settled) == 2
    assert names(changes.take_changed()) == ["s0"]
    assert changes.take_changed() == []


async def test_revision_changes_with_each_new_server() -> None:
    servers = OrderedCore(web("one")).core.servers
    before = servers.revision
    servers.add_or_revive(web("two"))
    assert servers.revision == before + 1
    servers.add_or_revive(web("three"))
    assert servers.revision == before + 2


def test_revision_changes_with_every_change_of_the_configuration_and_never_goes_back() -> None:
    pool = OrderedCore(web("one"), web("two"))
    servers = pool.core.servers
    revisions = [servers.revision]
    for change in (
        lambda: servers.replace_config(servers.entries["one"], web("one", tags=["new"])),
        servers.note_revision,
        lambda: servers.forget(servers.entries["one"]),
    ):
        change()
        revisions.append(servers.revision)
    assert revisions == sorted(set(revisions))


def test_servers_are_arranged_by_name_with_the_others_behind_them() -> None:
    servers = OrderedCore(web("a"), web("b"), web("c")).core.servers
    servers.sort(["c", "gone", "a"])
    assert [*servers.entries] == ["c", "a", "b"]


async def test_pool_is_unused_until_a_server_is_wanted_or_has_run() -> None:
    for script, names in (({}, ["web"]), ({"web": FAILS}, ["web"])):
        pool = OrderedCore(web(), **script)
        assert pool.core.servers.has_never_run
        pool.core.start(pool.core.entries["web"])
        assert not pool.core.servers.has_never_run
        await turns()
        assert not pool.core.servers.has_never_run
        await pool.stop(*names)
        assert pool.core.servers.has_never_run is (not script)
    pool.core.entries["web"].observed.failures = 0
    pool.core.entries["web"].desired.generation = 2
    assert not pool.core.servers.has_never_run


def test_servers_that_were_stopped_with_disabled_ones_start_with_the_last_of_these() -> None:
    pool = OrderedCore(
        web("db"), web("cache"), web("api", depends_on=["db", "cache"]), web("site", depends_on=["api"])
    )
    servers, entries = pool.core.servers, pool.core.entries
    for disabled in ("db", "cache"):
        entries[disabled].desired.overrides = Overrides(disabled=True)
        before = {name: entries[name].desired.stopped_with for name in ("api", "site")}
        servers.note_stopped_with(before, [entries[disabled]])
    assert entries["api"].desired.stopped_with == entries["site"].desired.stopped_with == ["db", "cache"]
    servers.note_stopped_with({"api": ["db"]}, [entries["db"]])
    assert entries["api"].desired.stopped_with == ["db"]
    servers.note_stopped_with({"api": ["db"]}, [entries["cache"]])
    entries["db"].desired.overrides = Overrides()
    assert servers.stopped_along_with([entries["db"]]) == [], "the cache is still disabled"
    entries["cache"].desired.overrides = Overrides()
    assert [entry.name for entry in servers.stopped_along_with([entries["cache"]])] == ["api", "site"]
    assert servers.stopped_along_with([entries["site"]]) == []


async def test_dependency_that_is_to_start_again_after_a_stop_is_awaited() -> None:
    pool = OrderedCore(web("db"), web("api", depends_on=["db"]))
    db, api = pool.core.entries["db"], pool.core.entries["api"]
    await pool.start("db")
    assert pool.core.servers.may_start(api)
    pool.runner.may_end.clear()
    pool.core.stop(db)
    pool.core.start(db, after_stop=True)
    assert not pool.core.servers.may_start(api)
    pool.runner.may_end.set()
    await turns()
    assert pool.core.servers.may_start(api)


def test_sleeping_server_without_its_dependencies_waits_for_those_that_are_wanted() -> None:
    pool = OrderedCore(
        web("db"), web("api", depends_on=["db"], scale={"min": 0}), web("plain", depends_on=["db"])
    )
    db = pool.core.entries["db"]
    for name, waits in (("api", True), ("plain", False)):
        entry = pool.core.entries[name]
        entry.desired.ignore_dependencies = True
        db.desired.state = Desired.STOPPED
        assert pool.core.servers.may_start(entry)
        db.desired.state = Desired.RUN
        assert pool.core.servers.may_start(entry) is not waits


async def test_change_within_a_cause_belongs_to_it() -> None:
    pool = OrderedCore(web())
    entry = pool.core.entries["web"]
    with caused_by("start", {"user": "me"}):
        pool.core.start(entry)
    assert entry.desired.cause == ("start", {"user": "me"})
    pool.core.forget_cause(entry)
    pool.core.touch(entry)
    assert entry.desired.cause is None


async def test_server_is_commanded_if_its_change_has_a_cause() -> None:
    queue = Workqueue(lambda: None)
    queue.touch(Entry(web("own")))
    with caused_by("start"):
        queue.touch(Entry(web("ordered")))
    assert queue.commanded == {"ordered"}


async def test_removed_server_is_listed_until_it_is_forgotten() -> None:
    pool = OrderedCore(web())
    await pool.start()
    servers, entry = pool.core.servers, pool.core.entries["web"]
    servers.mark_removed(entry)
    assert (entry.removed, servers.removed) == (True, {"web": entry})
    pool.core.schedule_removal(entry)
    await turns(40)
    assert (servers.removed, servers.entries, pool.runner.opened) == ({}, {}, set())


async def test_new_server_waits_for_the_overlapping_address_of_a_removed_one() -> None:
    pool = OrderedCore(web("old", bind=A))
    await pool.start()
    pool.runner.may_close.clear()
    pool.core.schedule_removal(pool.core.entries["old"])
    new = pool.core.add(web("new", bind="0.0.0.0:8001"))
    pool.core.start(new)
    await turns(40)
    assert "open new" not in pool.runner.log
    pool.runner.may_close.set()
    await turns(60)
    assert (pool.states(), new.observed.failures) == ({"new": "running"}, 0)


async def test_overlapping_address_opens_after_the_last_draining_worker_of_a_server_that_moved_away() -> None:
    pool = OrderedCore(web("a", bind=A))
    await pool.start()
    pool.runner.may_drain = asyncio.Event()
    moved(pool, web("a", bind=C))
    await turns(40)
    assert pool.runner.opened == {C}
    pool.core.start(pool.core.add(web("b", bind="0.0.0.0:8001")))
    await turns(40)
    assert "open b" not in pool.runner.log, "the worker may still have the port"
    pool.runner.may_drain.set()
    await turns(40)
    assert pool.states() == {"a": "running", "b": "running"}


async def test_listener_that_was_to_be_vacated_stays_open_when_its_server_returns_to_its_address() -> None:
    pool = OrderedCore(program(bind=A))
    await pool.start()
    entry = pool.core.entries["web"]
    moved(pool, program(bind="0.0.0.0:8001"))
    await turns(1)
    assert entry.listener.must_reopen
    moved(pool, program(bind=A))
    await turns(60)
    assert (pool.states(), pool.runner.opened) == ({"web": "running"}, {A})
    assert not entry.listener.must_reopen
    assert f"close {A}" not in pool.runner.log


async def test_adopted_listener_has_its_endpoints_and_its_server_has_changed() -> None:
    pool = OrderedCore(web(bind=A))
    entry = pool.core.entries["web"]
    pool.core.take_changed()
    pool.core.adopt_listener(entry, entry.config, [A, "[::1]:8001"])
    assert pool.core.endpoints(entry.config) == (A, "[::1]:8001")
    assert pool.core.take_changed() == [entry]


async def test_server_waits_for_an_overlapping_listener_that_was_adopted_and_is_to_be_closed() -> None:
    before = web("a", bind=A)
    pool = OrderedCore(web("a", bind=B), web("b", bind="0.0.0.0:8001"))
    a, b = pool.core.entries["a"], pool.core.entries["b"]
    pool.runner.opened.add(A)
    pool.runner.may_close.clear()
    placement = await pool.runner.place(before, 1, 0)
    pool.core.adopt_worker(a, Worker(placement.id, 1, 0, before, WorkerPhase.READY, placement, 1.0))
    pool.core.adopt_listener(a, before)
    pool.core.mark_found_running(a)
    pool.core.start(b)
    await turns(40)
    assert "open b" not in pool.runner.log
    pool.core.restart(a)
    pool.runner.may_close.set()
    await turns(80)
    assert (pool.states(), b.observed.failures) == ({"a": "running", "b": "running"}, 0)
    assert pool.runner.opened == {B, "0.0.0.0:8001"}
