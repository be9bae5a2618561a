"""The head of a request may take so long to come, and be so large; nothing else is limited by that."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import Any

import pytest

from poolctl.worker.serving import http1_connection
from tests.asgi_apps import answer, lifespan
from tests.certificates import certificate
from tests.serving import FAST, PLAIN, ZTTP, Client, Engine, Pair, accepted, served, turns, until

SECONDS = 0.15
# Both loops and both parsers: each test waits.
WAITED_FOR = [PLAIN, FAST, *ZTTP]
HALF = b"GET / HTTP/1.1\r\nhost: te"
WHOLE = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


@pytest.fixture(params=WAITED_FOR, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


async def reading(scope: Any, receive: Any, send: Any) -> None:
    """Says how long the body is; `/early` answers before it has read it."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    size, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        size, more = size + len(message["body"]), message["more_body"]
    await answer(send, str(size))


async def dribble(client: Client, data: bytes, pause: float = SECONDS / 10) -> None:
    """Sends a byte at a time until all is sent or the server has had enough."""
    for byte in data:
        client.writer.write(bytes([byte]))
        await asyncio.sleep(pause)
        if client.reader.at_eof():
            return


def test_connection_without_data_is_closed_without_a_response(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, head_seconds=SECONDS) as (server, _, port, _running):
            client = await Client.connect(port)
            await until(lambda: server.server_state.connections)
            assert await client.at_end()
            assert not server.server_state.heads

    engine.run(scenario())


@pytest.mark.parametrize("asked_before", [False, True])
def test_half_a_head_is_answered_with_408_and_the_connection_closed(
    engine: Engine, asked_before: bool
) -> None:
    async def scenario() -> None:
        async with served(engine, head_seconds=SECONDS) as (_, app, port, _running):
            client = await Client.connect(port)
            if asked_before:
                await client.get()
            client.writer.write(HALF)
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (408, "close", b"Request Timeout")
            assert await client.at_end()
            assert len(app.scopes) == asked_before

    engine.run(scenario())


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("data", [b"GET /" + b"a" * 100, b"\r\n" * 100], ids=["request", "empty lines"])
def test_head_sent_byte_by_byte_gets_no_more_time(engine: Engine, asked_before: bool, data: bytes) -> None:
    async def scenario() -> None:
        async with served(engine, head_seconds=SECONDS) as (_, _app, port, _running):
            client = await Client.connect(port)
            if asked_before:
                await client.get()
            sending = asyncio.ensure_future(dribble(client, data))
            said = await client.reader.read()
            # h11 takes empty lines for a bad request.
            assert said.startswith(
                (b"HTTP/1.1 408", b"HTTP/1.1 400" if data[:1] == b"\r" else b"HTTP/1.1 408")
            )
            assert not sending.done()
            await sending

    engine.run(scenario())


def test_between_two_requests_only_the_keep_alive_timeout_counts(engine: Engine) -> None:
    async def scenario() -> None:
        config = {"timeout_keep_alive": 3 * SECONDS}
        async with served(engine, head_seconds=SECONDS, config=config) as (_, _app, port, _running):
            client = await Client.connect(port)
            await client.get()
            assert await client.stays_open(2 * SECONDS)
            await client.get()
            assert await client.at_end()

    engine.run(scenario())


def test_slow_body_is_limited_only_after_its_response_and_by_silence(engine: Engine) -> None:
    async def scenario() -> None:
        config = {"timeout_keep_alive": 2 * SECONDS}
        async with served(engine, reading, head_seconds=SECONDS, config=config) as (_, _app, port, _run):
            client = await Client.connect(port)
            for path, said in (("/", b"12"), ("/early", b"0")):
                client.writer.write(
                    f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 12\r\n\r\n".encode()
                )
                if path == "/early":
                    assert (await client.answer())[2] == said
                await dribble(client, b"x" * 12, SECONDS / 5)
                if path == "/":
                    assert (await client.answer())[2] == said
            client.writer.write(WHOLE)
            assert (await client.answer())[0] == 200
            client.writer.write(b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 12\r\n\r\nxx")
            assert (await client.answer())[0] == 200
            assert await client.at_end()

    engine.run(scenario())


def test_time_of_a_pipelined_head_begins_after_the_response_before_it(engine: Engine) -> None:
    if engine.http == "zttp":
        pytest.skip("zttp does not say what it holds")

    async def scenario() -> None:
        async with served(engine, head_seconds=SECONDS) as (_, app, port, _running):
            client = await Client.connect(port)
            client.writer.write(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n" + HALF)
            await app.under_way.wait()
            assert await client.stays_open(1.5 * SECONDS)
            app.release.set()
            assert (await client.answer())[0] == 200
            assert (await client.answer())[0] == 408
            assert await client.at_end()

    engine.run(scenario())


def test_head_that_arrived_while_the_loop_was_busy_is_answered(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, head_seconds=SECONDS) as (server, _, port, _running):
            client = await Client.connect(port)
            client.writer.write(HALF)
            await until(lambda: any(each.head and each.head.size for each in server.server_state.connections))
            client.writer.write(b"st\r\n\r\n")
            time.sleep(1.5 * SECONDS)  # noqa: ASYNC251
            assert (await client.answer())[0] == 200

    engine.run(scenario())


LARGE = {
    "a target": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: test\r\n\r\n",
    "a header": b"GET / HTTP/1.1\r\nhost: test\r\na: " + b"a" * 70_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nhost: test\r\n" + b"a: bcdefghi\r\n" * 6000 + b"\r\n",
    "one without an end": b"GET / HTTP/1.1\r\nhost: test\r\na: " + b"a" * 500_000,
}


@pytest.mark.parametrize("piece", [1000, 1_000_000])
@pytest.mark.parametrize("what", LARGE)
def test_head_that_is_too_large_is_answered_with_431(engine: Engine, what: str, piece: int) -> None:
    async def scenario() -> None:
        async with served(engine) as (_, app, port, _running):
            client = await Client.connect(port)
            for asked in range(2):
                if asked:
                    client = await Client.connect(port)
                    await client.get()
                for at in range(0, len(LARGE[what]), piece):
                    client.writer.write(LARGE[what][at : at + piece])
                    await asyncio.sleep(0)
                status, headers, body = await client.answer()
                assert (status, headers["connection"]) == (431, "close")
                assert body == b"Request Header Fields Too Large"
                assert await client.at_end()
            assert len(app.scopes) == 1

    engine.run(scenario())


@pytest.mark.parametrize("piece", [999, 1_000_000])
def test_head_of_the_maximum_size_is_answered_and_so_is_the_next(engine: Engine, piece: int) -> None:
    async def scenario() -> None:
        async with served(engine, reading, head_bytes=8192) as (_, _app, port, _running):
            client = await Client.connect(port)
            begin = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\na: "
            head = begin + b"a" * (8192 - len(begin) - 4) + b"\r\n\r\n"
            sent = (head + b"b" * 100_000) * 3
            for at in range(0, len(sent), piece):
                client.writer.write(sent[at : at + piece])
                await asyncio.sleep(0)
            for _ in range(3):
                assert (await client.answer())[2] == b"100000"

    engine.run(scenario())


def test_pipelined_head_takes_bounded_memory(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (_, app, port, _running):
            client = await Client.connect(port)
            client.writer.write(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")
            await app.under_way.wait()
            client.writer.write(LARGE["one without an end"])
            await turns(200)
            app.release.set()
            assert (await client.answer())[0] == 200
            client.writer.write(b"a")
            assert (await client.answer())[0] == 431

    engine.run(scenario())


def test_client_that_keeps_sending_can_read_why_it_was_refused(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (_, _app, port, _running):
            client = await Client.connect(port)
            for _ in range(200):
                client.writer.write(b"a" * 10_000)
            assert (await client.answer())[0] in (400, 431)

    engine.run(scenario())


def test_refused_client_that_stays_is_disconnected(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_connection, "_READ_ON_SECONDS", SECONDS)

    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            client = await Client.connect(port)
            client.writer.write(LARGE["a target"])
            await client.answer()
            await until(lambda: not server.server_state.connections)
            server.drain()
            await asyncio.wait_for(running, 15)

    engine.run(scenario())


def test_drain_waits_for_a_head_until_its_time_limit(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, head_seconds=SECONDS) as (server, _, port, running):
            client = await Client.connect(port)
            client.writer.write(HALF)
            await until(lambda: any(each.head and each.head.size for each in server.server_state.connections))
            server.drain()
            assert (await client.answer())[0] == 408
            client.close()
            await asyncio.wait_for(running, 15)

    engine.run(scenario())


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x00"])
def test_time_of_a_head_includes_the_tls_handshake(engine: Engine, tmp_path: Path, begun: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    trusting = ssl._create_unverified_context()

    async def scenario() -> None:
        async with served(engine, head_seconds=SECONDS, secure=context) as (server, _, port, _running):
            client = await Client.connect(port)
            client.writer.write(begun)
            assert await client.at_end()
            await until(lambda: not server.server_state.expected)
            whole = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=trusting))
            assert (await whole.get())[0] == 200
            assert await whole.stays_open(2 * SECONDS)
            silent = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=trusting))
            assert await silent.at_end()

    engine.run(scenario())


@pytest.mark.parametrize(("asked", "begun"), [(False, b""), (False, HALF), (True, b"")])
def test_adopted_connection_has_the_time_that_was_left(
    engine: Engine, pair: Pair, asked: bool, begun: bytes
) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker()):
            client, sock = await accepted()
            client.writer.write(begun)
            pair.hand_over(sock, until=time.monotonic() + SECONDS, asked=asked)
            if begun:
                assert (await client.answer())[0] == 408
            assert await client.at_end()

    engine.run(scenario())


@pytest.mark.parametrize("asked", [False, True])
def test_moved_connection_keeps_its_remaining_time(engine: Engine, pair: Pair, asked: bool) -> None:
    if engine.http == "zttp":
        pytest.skip("its connections do not move")

    async def scenario() -> None:
        config = {"timeout_keep_alive": 3 * SECONDS}
        limits: Any = {"head_seconds": 3 * SECONDS, "config": config, "adoption": pair.worker()}
        async with served(engine, **limits) as (old, _, port, running):
            client = await Client.connect(port)
            began = time.monotonic()
            if asked:
                await client.get()
            await until(lambda: old.server_state.connections)
            await asyncio.sleep(SECONDS)
            async with served(engine, adoption=pair.worker(), head_seconds=60.0):
                old.drain(migrate=True)
                await running
                assert await client.at_end()
                assert 2.5 * SECONDS < time.monotonic() - began < 30

    engine.run(scenario())
