"""A worker answers heartbeats, follows orders, waits to be adopted, and reports that it is idle."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect

from poolctl.keeper import wire
from poolctl.worker.process_setup import BEAT
from poolctl.worker.tally import BEAT_ASKED_NS, BEAT_AT_NS, BEAT_LAG_NS
from poolctl.worker.worker_process import IdleTimer, answer, begin
from tests.serving import ENGINES, Client, Engine, Served, blank_page, served

SECONDS = 0.15


# Heartbeats.


def test_page_shows_that_a_worker_answers_heartbeats() -> None:
    page = blank_page()
    assert page[BEAT_AT_NS] == 0
    begin(page)
    assert 0 < page[BEAT_AT_NS] <= time.monotonic_ns()
    begin(None)


def test_heartbeat_is_answered_with_time_and_lag() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        theirs.setblocking(False)
        page = blank_page()
        asked = time.monotonic_ns() - 5_000_000
        page[BEAT_ASKED_NS] = asked
        ours.send(BEAT)
        assert answer(theirs, page)
        assert page[BEAT_AT_NS] >= asked + 5_000_000
        assert page[BEAT_LAG_NS] == page[BEAT_AT_NS] - asked
        assert not answer(theirs, page), "there is no second one"
        ours.send(BEAT)
        assert answer(theirs, None), "who counts nothing reads it all the same"


def test_other_messages_stay_in_the_socket_with_their_descriptors() -> None:
    ours, theirs = wire.pair()
    with ours, theirs:
        theirs.setblocking(False)
        for message in ({"order": "stop"}, {"order": "beat", "more": 1}):
            with open(os.devnull) as file:
                wire.send(ours, message, [file.fileno()])
            assert not answer(theirs, blank_page())
            received = wire.receive(theirs)
            assert received is not None
            assert received[0] == message
            (fd,) = received[1]
            os.close(fd)
        ours.send(BEAT + b" ")
        assert not answer(theirs, blank_page())
        assert wire.receive(theirs) is not None
        ours.close()
        assert not answer(theirs, blank_page()), "an end of the file is not a heartbeat"


# Idleness.


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
