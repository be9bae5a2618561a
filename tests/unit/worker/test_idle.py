"""A worker tells when it has had nothing to do for a while, and when that ends."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect

from poolctl.worker.worker_process import IdleTimer
from tests.serving import ENGINES, Client, Engine, Served, served

SECONDS = 0.15


@pytest.fixture(params=ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


class Told:
    """What was told so far."""

    def __init__(self) -> None:
        self.news: list[bool] = []
        self._unheard: asyncio.Queue[bool] = asyncio.Queue()

    def __call__(self, idle: bool) -> None:
        self.news.append(idle)
        self._unheard.put_nowait(idle)

    async def next(self) -> bool:
        return await asyncio.wait_for(self._unheard.get(), 5)


@asynccontextmanager
async def watched(engine: Engine) -> AsyncIterator[tuple[Served, Told]]:
    async with served(engine) as serving:
        told = Told()
        idleness = IdleTimer(serving.server.server_state, SECONDS, told)
        try:
            yield serving, told
        finally:
            idleness.end()


def test_worker_without_traffic_reports_once_that_it_is_idle(engine: Engine) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with watched(engine) as (_, told):
            assert await told.next() is True
            assert loop.time() - begun >= SECONDS * 0.9
            await asyncio.sleep(2 * SECONDS)
            assert told.news == [True]

    engine.run(scenario())


def test_connection_or_request_ends_idleness(engine: Engine) -> None:
    async def scenario() -> None:
        async with watched(engine) as (serving, told):
            assert await told.next() is True
            client = await Client.connect(serving.port)
            assert await told.next() is False
            assert await told.next() is True  # open, and silent
            await client.get()
            assert await told.next() is False
            assert await told.next() is True
            assert told.news == [True, False] * 2 + [True]

    engine.run(scenario())


def test_requests_put_it_off(engine: Engine) -> None:
    async def scenario() -> None:
        async with watched(engine) as (serving, told):
            client = await Client.connect(serving.port)
            loop = asyncio.get_running_loop()
            times = [loop.time()]
            while times[-1] < times[0] + 3 * SECONDS:
                await client.get()
                times.append(loop.time())
                await asyncio.sleep(SECONDS / 5)
            times.append(loop.time())
            longest = max(later - earlier for earlier, later in itertools.pairwise(times))
            # On a machine that is busy otherwise a pause may be one indeed.
            assert told.news == [] or longest >= SECONDS * 0.9
            if told.news:
                return
            assert await told.next() is True

    engine.run(scenario())


def test_request_under_way_is_no_idleness_and_its_end_restarts_the_idle_time(engine: Engine) -> None:
    async def scenario() -> None:
        async with watched(engine) as (serving, told):
            client = await Client.connect(serving.port)
            await client.send("/slow")
            await asyncio.sleep(3 * SECONDS)
            assert told.news == []
            serving.app.release.set()
            await client.answer()
            ended = asyncio.get_running_loop().time()
            assert await told.next() is True
            assert asyncio.get_running_loop().time() - ended >= SECONDS * 0.9

    engine.run(scenario())


def test_worker_with_an_open_websocket_is_not_idle(engine: Engine) -> None:
    async def scenario() -> None:
        async with watched(engine) as (serving, told):
            async with connect(f"ws://127.0.0.1:{serving.port}/", proxy=None):
                await asyncio.sleep(3 * SECONDS)
                assert told.news == []
            assert await told.next() is True

    engine.run(scenario())


def test_idleness_reports_nothing_once_it_has_ended(engine: Engine) -> None:
    async def scenario() -> None:
        async with watched(engine) as (serving, _):
            told = Told()
            idleness = IdleTimer(serving.server.server_state, SECONDS, told)
            idleness.end()
            await Client.connect(serving.port)
            await asyncio.sleep(2 * SECONDS)
            assert told.news == []

    engine.run(scenario())
