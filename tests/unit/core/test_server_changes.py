"""The order in which the core decides on servers."""

from __future__ import annotations

import asyncio

from poolctl.config import ServerConfig
from poolctl.core.server_changes import BATCH, Workqueue
from poolctl.core.server_entry import Entry


def entries(count: int) -> list[Entry]:
    return [
        Entry(ServerConfig(name=f"s{number}", bind=f"127.0.0.1:{8000 + number}", app="a:b"))
        for number in range(count)
    ]


def names(turn: list[Entry]) -> list[str]:
    return [entry.name for entry in turn]


def test_a_batch_takes_some_in_the_order_of_their_change_each_once() -> None:
    queue = Workqueue()
    queue.update(many := entries(BATCH + 2))
    queue.add(many[0])
    assert names(list(queue.batch())) == names(many[:BATCH])
    assert names(list(queue.batch())) == names(many[BATCH:])
    assert not queue


def test_server_with_a_finished_action_is_decided_on_before_one_that_has_not_begun() -> None:
    queue = Workqueue()
    queue.update(many := entries(4))
    queue.add(many[3], progressed=True)
    assert names(list(queue.batch())) == ["s0", "s3", "s1", "s2"]


def test_none_is_passed_over_for_ever() -> None:
    queue = Workqueue()
    *restless, patient = entries(BATCH + 3)
    queue.update(restless)
    queue.add(patient)
    turns = []
    while patient not in [entry for turn in turns for entry in turn] and len(turns) < 100:
        turns.append(list(queue.batch()))
        for entry in restless:
            queue.add(entry, progressed=True)
    assert len(turns) <= len(restless) + 1


def test_server_queued_during_a_batch_may_be_part_of_it() -> None:
    queue = Workqueue()
    first, second = entries(2)
    queue.add(first)
    seen = []
    for entry in queue.batch():
        seen.append(entry)
        if entry is first:
            queue.add(second)
    assert seen == [first, second]


def test_changes_of_one_turn_are_decided_on_together() -> None:
    async def scenario() -> None:
        settled: list[list[str]] = []
        changes = Workqueue()
        changes.feed(lambda: settled.append(names(changes.take_changed())))
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

    asyncio.run(scenario())
