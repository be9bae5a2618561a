"""A draining worker loses no request: connections linger, answers say that they are the last, WebSockets get 1012."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect

from poolctl.worker.serving import http1_connection
from tests.asgi_apps import lifespan
from tests.load.frames import CLOSE, PING, TEXT, frame, new_key
from tests.serving import ENGINES, ZTTP, Client, Engine, leaving, served, turns, until


@pytest.fixture(params=ENGINES + ZTTP, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_connection, "QUIET_SECONDS", 5.0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_connection, "QUIET_SECONDS", 0.15)


def test_drain_keeps_an_idle_connection_whose_next_response_says_close(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            client = await Client.connect(port)
            assert "connection" not in (await client.get())[1]
            server.drain()
            assert await client.stays_open(0.1)
            status, headers, _ = await client.get()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.at_end()
            await running

    engine.run(scenario())


@pytest.mark.usefixtures("quick")
def test_drain_closes_an_idle_connection_after_a_quiet_period(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            client = await Client.connect(port)
            await client.get()
            server.drain()
            assert await client.stays_open(0.1)
            assert await client.at_end()
            await running

    engine.run(scenario())


def test_response_in_progress_at_a_drain_is_the_last_one(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, app, port, running):
            client = await Client.connect(port)
            await client.send("/slow")
            await app.under_way.wait()
            server.drain()
            await leaving(server)
            app.release.set()
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (200, "close", b"ok")
            assert await client.at_end()
            await running

    engine.run(scenario())


def test_response_begun_before_a_drain_leaves_time_for_one_more_request(engine: Engine) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        begun.set()
        await release.wait()
        await send({"type": "http.response.body", "body": b"ok"})

    async def scenario() -> None:
        async with served(engine, slow) as (server, _, port, running):
            client = await Client.connect(port)
            await client.send("/")
            await begun.wait()
            server.drain()
            await leaving(server)
            release.set()
            assert "connection" not in (await client.answer())[1]
            assert await client.stays_open(0.05)
            assert (await client.get())[1]["connection"] == "close"
            await asyncio.wait_for(running, 10)

    engine.run(scenario())


def test_stop_after_a_drain_leaves_requests_in_progress_their_time(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, drain_seconds=0.05, stop_seconds=5.0) as (server, app, port, running):
            client = await Client.connect(port)
            await client.send("/slow")
            await app.under_way.wait()
            server.drain()
            await asyncio.sleep(0.15)
            server.stop()
            await turns()
            app.release.set()
            assert (await client.answer())[0] == 200
            await asyncio.wait_for(running, 10)
            assert "cancelled" not in app.events

    engine.run(scenario())


def test_drain_answers_the_first_request_of_a_new_connection(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            client = await Client.connect(port)
            await until(lambda: server.server_state.connections)
            server.drain()
            await leaving(server)
            status, headers, _ = await client.get()
            assert (status, headers["connection"]) == (200, "close")
            await running

    engine.run(scenario())


@pytest.mark.usefixtures("quick")
def test_silent_connection_delays_a_drain_only_by_the_quiet_period(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            silent = await Client.connect(port)
            await until(lambda: server.server_state.connections)
            server.drain()
            await asyncio.wait_for(running, 10)
            assert await silent.at_end()

    engine.run(scenario())


def test_drain_ends_at_its_timeout(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, drain_seconds=0.1, stop_seconds=0.1) as (server, app, port, running):
            client = await Client.connect(port)
            await client.send("/slow")
            await app.under_way.wait()
            server.drain()
            await asyncio.wait_for(running, 10)
            assert "cancelled" in app.events

    engine.run(scenario())


def test_stop_ends_a_drain_early(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            client = await Client.connect(port)
            await client.get()
            server.drain()
            await leaving(server)
            assert not running.done()
            server.stop()
            await asyncio.wait_for(running, 10)
            assert await client.at_end()

    engine.run(scenario())


WEBSOCKETS = ["websockets-sansio", "wsproto", "websockets"]


@pytest.fixture(params=WEBSOCKETS)
def websocket(request: pytest.FixtureRequest) -> dict[str, str]:
    """Each of uvicorn's WebSocket classes, as a part of its configuration."""
    if request.param == "wsproto":
        pytest.importorskip("wsproto")
    if request.param == "websockets":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("uvicorn.protocols.websockets.websockets_impl")
    return {"ws": request.param}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_websocket_is_closed_with_1012_after_a_drain(engine: Engine, websocket: dict[str, str]) -> None:
    async def scenario() -> None:
        async with served(engine, config=websocket, drain_seconds=0.2) as (server, app, port, running):
            async with connect(f"ws://127.0.0.1:{port}/", proxy=None) as client:
                await app.under_way.wait()
                server.drain()
                began = asyncio.get_running_loop().time()
                await client.wait_closed()
                assert client.close_code == 1012
                assert asyncio.get_running_loop().time() - began >= 0.15
            await running

    engine.run(scenario())


@pytest.mark.skipif(uvicorn.__version__ < "0.53", reason="this version of uvicorn closes them in its own way")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_websocket_closes_when_its_client_has_replied(engine: Engine, websocket: dict[str, str]) -> None:
    async def scenario() -> None:
        async with served(engine, config=websocket, drain_seconds=0.05) as (server, app, port, running):
            client = await Client.connect(port)
            await client.send("/", *upgrade(new_key()))
            await client.reader.readuntil(b"\r\n\r\n")
            server.drain()
            assert await client.reader.readexactly(4) == b"\x88\x02" + (1012).to_bytes(2, "big")
            assert await client.stays_open(0.1)
            for _ in range(50):
                client.writer.write(frame(PING, b"x"))
                client.writer.write(frame(TEXT, b"x" * 100))
            client.writer.write(frame(CLOSE, (1012).to_bytes(2, "big")))
            await client.reader.read()  # pongs, perhaps, and then the end
            client.close()
            await asyncio.wait_for(running, 10)
            assert app.events[1] == "disconnect 1012"

    engine.run(scenario())


def upgrade(key: bytes) -> list[str]:
    return [
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-version: 13",
        f"sec-websocket-key: {key.decode()}",
    ]


async def ticking(scope: Any, receive: Any, send: Any) -> None:
    """One event, and then silence until the client has gone."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
    if (await receive())["type"] == "http.disconnect":
        scope["state"]["over"].set()


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
def test_drain_ends_event_streams_between_events_and_no_other_streams(engine: Engine, accept: str) -> None:
    over = asyncio.Event()

    async def scenario() -> None:
        options = {"drain_seconds": 0.1, "stop_seconds": 0.1, "state": {"over": over}}
        async with served(engine, ticking, **options) as (server, _, port, running):
            client = await Client.connect(port)
            await client.send("/", f"accept: {accept}")
            await client.reader.readuntil(b"tick\n\n")
            server.drain()
            rest = await client.reader.read()
            assert rest.endswith(b"0\r\n\r\n") == (accept == "text/event-stream")
            assert over.is_set() == (accept == "text/event-stream")
            await asyncio.wait_for(running, 10)

    engine.run(scenario())


def test_stop_during_a_drain_ends_event_streams_between_events(engine: Engine) -> None:
    async def scenario() -> None:
        options = {"drain_seconds": 10.0, "stop_seconds": 10.0, "state": {"over": asyncio.Event()}}
        async with served(engine, ticking, **options) as (server, _, port, running):
            client = await Client.connect(port)
            await client.send("/", "accept: text/event-stream")
            await client.reader.readuntil(b"tick\n\n\r\n")
            server.drain()
            assert await client.stays_open(0.05)
            server.stop()
            rest = await asyncio.wait_for(client.reader.read(), 10)
            assert rest.endswith(b"0\r\n\r\n")
            await asyncio.wait_for(running, 10)

    engine.run(scenario())


def test_keep_alive_timeout_spares_a_connection_with_an_unread_request() -> None:
    # Whether the loop has read it or not: a byte that has arrived is a request that has begun.
    async def scenario() -> None:
        async with served(Engine("asyncio", "h11")) as (server, _, port, _running):
            client = await Client.connect(port)
            await client.get()
            (lingering,) = server.server_state.connections
            lingering.transport.pause_reading()
            await client.send("/")
            await turns()
            lingering.timeout_keep_alive_handler()
            lingering.transport.resume_reading()
            assert (await client.answer())[0] == 200

    Engine("asyncio", "h11").run(scenario())
