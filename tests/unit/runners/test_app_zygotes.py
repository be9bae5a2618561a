"""Imports take turns: the workers exist, and wait to be told to begin."""

from __future__ import annotations

import asyncio
from typing import cast

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.runners.local.fork_verification import Children, Process
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.local.spawn.app_zygote import AppZygote
from poolctl.runners.local.spawn.app_zygotes import ImportLimit
from poolctl.runners.process_link import Link, LinkLost
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEvents


def worker(index: int, **config: object) -> LocalWorker:
    server = ServerConfig(name="web", bind="127.0.0.1:8080", **(config or {"app": "web:app"}))
    return LocalWorker(
        cast(Children, None), cast(RunnerEvents, None), Placement.of("web", 1, index), server, "web"
    )


def begun(workers: list[LocalWorker]) -> list[bool]:
    return [each.begun.done() for each in workers]


async def a_moment() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_worker_begins_when_another_has_its_application() -> None:
    async def run() -> None:
        turns, workers = ImportLimit(at_once=2), [worker(index) for index in range(4)]
        for each in workers:
            turns.queue(each)
        assert begun(workers) == [True, True, False, False]
        workers[1].received({"event": "imported"}, [])
        await a_moment()
        assert begun(workers) == [True, True, True, False]
        workers[1].answer()  # ready as well: its turn was over before
        await a_moment()
        assert begun(workers) == [True, True, True, False]

    asyncio.run(run())


def test_a_worker_that_ends_gives_up_its_turn_and_one_that_ended_before_takes_none() -> None:
    async def run() -> None:
        turns, workers = ImportLimit(at_once=1), [worker(index) for index in range(4)]
        for each in workers:
            turns.queue(each)
        workers[1].ended(Exit(status=1))
        workers[0].ended(Exit(status=1))
        await a_moment()
        assert begun(workers) == [True, True, True, False]

    asyncio.run(run())


def test_app_zygote_takes_a_turn_and_gives_it_back_when_it_ends() -> None:
    async def run() -> None:
        turns, waiting = ImportLimit(at_once=1), worker(0)
        (ours, theirs), at_keeper = wire.pair(), wire.pair()
        keeper = Link(at_keeper[0])
        zygote = AppZygote(keeper, Children(keeper, 0), "key", Process(1, None), None, "web")
        zygote.follow(ours)
        turns.queue(zygote)
        turns.queue(waiting)
        assert zygote.begun.done()
        assert not waiting.begun.done()
        theirs.close()
        async with asyncio.timeout(60):
            await waiting.begun
        assert isinstance(zygote.up.exception(), LinkLost)
        turns.queue(zygote)  # one that has ended while it waited begins, to no effect
        keeper.close()
        at_keeper[1].close()

    asyncio.run(run())
