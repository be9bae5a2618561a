"""What is served is counted, on both loops and with both parsers: requests, responses, latencies, connections."""

from __future__ import annotations

from typing import Any

import pytest
from websockets.asyncio.client import connect

from poolctl.worker import tally
from poolctl.worker.serving.request_counting import Batch
from tests.asgi_apps import lifespan
from tests.serving import ENGINES, ZTTP, Client, Engine, blank_page, served, until


@pytest.fixture(params=ENGINES + ZTTP, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def page() -> memoryview:
    return blank_page()


def in_flight(page: memoryview) -> int:
    return tally.in_flight(page.tolist())


async def scripted(scope: Any, receive: Any, send: Any) -> None:
    """Answers `/404` with that status; fails at `/fails` before the answer and at `/breaks` within it."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    what = scope["path"].strip("/")
    if what == "fails":
        raise RuntimeError("on purpose")
    status = int(what) if what.isdigit() else 200
    length = b"9" if what in ("breaks", "waits") else b"2"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
    if what == "breaks":
        raise RuntimeError("on purpose")
    if what == "waits":
        await receive()
        await receive()
        return
    await send({"type": "http.response.body", "body": b"ok"})


def test_latency_is_counted_in_the_first_bucket_that_it_does_not_exceed() -> None:
    page = blank_page()
    batch = Batch(page)
    batch.started = 5
    batch.latencies_ns += [100_000, tally.BOUNDS_NS[0], tally.BOUNDS_NS[0] + 1, 60_000_000_000]
    batch.write()
    counts = page.tolist()
    assert (tally.responses(counts), tally.in_flight(counts)) == (4, 1)
    assert counts[tally.BUCKETS : tally.BUCKETS + 2] == [2, 1]
    assert counts[tally.COUNTED - 1] == 1
    assert counts[tally.LATENCY_NS] == 100_000 + 2 * tally.BOUNDS_NS[0] + 1 + 60_000_000_000


def test_responses_are_counted_by_status_and_by_latency(engine: Engine, page: memoryview) -> None:
    async def scenario() -> None:
        async with served(engine, scripted, tally=page) as (_, _app, port, _running):
            client = await Client.connect(port)
            for path in ("/200", "/201", "/302", "/404", "/404", "/503"):
                assert (await client.get(path))[0] == int(path[1:])
            await until(lambda: tally.responses(page.tolist()) == 6)
            assert page[tally.STATUS : tally.STATUS + 6].tolist() == [0, 0, 2, 1, 2, 1]
            assert page[tally.STARTED] == 6
            assert 0 < page[tally.LATENCY_NS] < 5_000_000_000
            assert in_flight(page) == 0
            client.close()

    engine.run(scenario())


def test_request_is_in_flight_until_its_response_is_complete(engine: Engine, page: memoryview) -> None:
    async def scenario() -> None:
        async with served(engine, tally=page) as (_, app, port, _running):
            client = await Client.connect(port)
            await client.send("/slow")
            await until(lambda: in_flight(page) == 1)
            app.release.set()
            await client.answer()
            await until(lambda: in_flight(page) == 0)
            client.close()

    engine.run(scenario())


def test_requests_that_were_sent_ahead_are_counted_one_by_one(engine: Engine, page: memoryview) -> None:
    async def scenario() -> None:
        async with served(engine, tally=page) as (_, app, port, _running):
            client = await Client.connect(port)
            for path in ("/slow", "/", "/"):
                await client.send(path)
            await app.under_way.wait()
            app.release.set()
            for _ in range(3):
                assert (await client.answer())[0] == 200
            await until(lambda: (page[tally.STARTED], tally.responses(page.tolist())) == (3, 3))
            assert in_flight(page) == 0
            client.close()

    engine.run(scenario())


def test_client_that_goes_away_is_distinguished_from_an_application_that_fails(
    engine: Engine, page: memoryview
) -> None:
    async def scenario() -> None:
        async with served(engine, scripted, tally=page) as (_, _app, port, _running):
            leaving = await Client.connect(port)
            await leaving.send("/waits")
            await until(lambda: in_flight(page) == 1)
            leaving.close()
            await until(lambda: page[tally.DISCONNECTED] == 1)
            broken = await Client.connect(port)
            await broken.send("/breaks")
            await until(lambda: page[tally.BROKEN] == 1)
            assert (page[tally.DISCONNECTED], in_flight(page)) == (1, 0)
            failing = await Client.connect(port)
            await failing.send("/fails")
            assert (await failing.answer())[0] == 500
            await until(lambda: page[tally.STATUS + 5] == 1)
            assert page[tally.BROKEN] == 1
            assert in_flight(page) == 0

    engine.run(scenario())


def test_invalid_request_is_counted_as_such(engine: Engine, page: memoryview) -> None:
    async def scenario() -> None:
        async with served(engine, scripted, tally=page) as (_, _app, port, _running):
            client = await Client.connect(port)
            client.writer.write(b"this is no HTTP\r\n\r\n")
            assert (await client.answer())[0] == 400
            assert (page[tally.MALFORMED], page[tally.STARTED], in_flight(page)) == (1, 0, 0)
            assert page[tally.STATUS : tally.STATUS + 6].tolist() == [0, 0, 0, 0, 1, 0]

    engine.run(scenario())


def test_status_that_does_not_exist_is_not_counted(engine: Engine, page: memoryview) -> None:
    async def scenario() -> None:
        async with served(engine, scripted, tally=page) as (_, _app, port, _running):
            client = await Client.connect(port)
            await client.send("/700")
            assert await client.at_end()
            await until(lambda: page[tally.BROKEN] == 1)
            assert sum(page[tally.STATUS : tally.COUNTED]) == 0

    engine.run(scenario())


def test_connections_and_websockets_are_counted_while_they_are_open(engine: Engine, page: memoryview) -> None:
    async def scenario() -> None:
        async with served(engine, tally=page) as (_, app, port, _running):
            client = await Client.connect(port)
            await client.get()
            async with connect(f"ws://127.0.0.1:{port}/") as _socket:
                await app.under_way.wait()
                assert (page[tally.CONNECTIONS], page[tally.OPEN_CONNECTIONS]) == (2, 2)
                assert (page[tally.WEBSOCKETS], page[tally.OPEN_WEBSOCKETS]) == (1, 1)
                assert in_flight(page) == 0
            client.close()
            await until(lambda: page[tally.OPEN_CONNECTIONS] == 0)
            assert page[tally.OPEN_WEBSOCKETS] == 0

    engine.run(scenario())


def test_server_without_a_page_counts_nothing_and_serves(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, scripted) as (_, _app, port, _running):
            client = await Client.connect(port)
            assert (await client.get("/404"))[0] == 404
            client.close()

    engine.run(scenario())
