"""Connections move to another worker, close when they are quiet, and their heads are limited in time and size."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from websockets.asyncio.client import connect

from poolctl.keeper import connection_handover
from poolctl.worker.serving import http1_connection
from poolctl.worker.serving.accepting import AdoptionPair, protocol_factory
from poolctl.worker.serving.connection_state import PoolServerState
from poolctl.worker.serving.pool_server import connection_class
from tests.asgi_apps import answer, hello, lifespan
from tests.certificates import certificate
from tests.serving import (
    ENGINES,
    FAST,
    PLAIN,
    ZTTP,
    App,
    Client,
    Engine,
    Pair,
    Served,
    accepted,
    leaving,
    served,
    turns,
    until,
)
from tests.virtual_loop import VirtualLoop

BIG = b"x" * 16_000_000  # more than the kernel keeps for a client that does not read


@pytest.fixture(params=ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


class Answering(App):
    """As App; besides `/big` is big, `/early` answers before it has read its body, `/echo` says it again."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path")
        if path not in ("/big", "/early", "/echo"):
            await super().__call__(scope, receive, send)
            return
        self.scopes.append(scope)
        body = BIG if path == "/big" else b"ok"
        if path == "/echo":
            body = await whole_body(receive)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


async def whole_body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            return body


class Two(NamedTuple):
    """The worker that leaves, and the one that stays."""

    old: Served
    new: Served


@contextlib.asynccontextmanager
async def two(engine: Engine, pair: Pair, **options: Any) -> AsyncIterator[Two]:
    async with (
        served(engine, Answering(), adoption=pair.worker(), **options) as old,
        served(engine, Answering(), adoption=pair.worker()) as new,
    ):
        yield Two(old, new)


async def connected(served_: Served) -> Client:
    """A client that has had its first answer from there."""
    client = await Client.connect(served_.port)
    await client.get()
    return client


def answered(served_: Served) -> int:
    return len(served_.app.scopes)


def test_idle_connection_continues_in_the_other_worker(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            client = await connected(old)
            old.server.drain(migrate=True)
            await asyncio.wait_for(old.running, 10)
            for _ in range(3):
                status, headers, _body = await client.get()
                assert (status, "connection" in headers) == (200, False)
            assert (answered(old), answered(new)) == (1, 3)
            assert new.app.scopes[0]["client"] == client.writer.get_extra_info("sockname")
            assert new.app.scopes[0]["server"] == ("127.0.0.1", old.port)

    engine.run(scenario())


def test_connection_without_a_request_yet_moves_too(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            client = await Client.connect(old.port)
            await until(lambda: old.server.server_state.connections)
            old.server.drain(migrate=True)
            await asyncio.wait_for(old.running, 10)
            assert (await client.get())[0] == 200
            assert answered(new) == 1

    engine.run(scenario())


def test_response_in_progress_is_completed_before_the_connection_moves(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            client = await Client.connect(old.port)
            await client.send("/slow")
            await old.app.under_way.wait()
            old.server.drain(migrate=True)
            await leaving(old.server)
            old.app.release.set()
            status, headers, _ = await client.answer()
            assert (status, "connection" in headers) == (200, False)
            await asyncio.wait_for(old.running, 10)
            assert (await client.get())[0] == 200
            assert answered(new) == 1

    engine.run(scenario())


def test_client_that_never_pauses_does_not_hold_the_worker(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            clients = [await connected(old) for _ in range(5)]
            over = asyncio.Event()

            async def ask(client: Client) -> None:
                while not over.is_set():
                    status, headers, _ = await client.get()
                    assert (status, "connection" in headers) == (200, False)

            asking = [asyncio.ensure_future(ask(client)) for client in clients]
            await until(lambda: answered(old) > 20)
            old.server.drain(migrate=True)
            await asyncio.wait_for(old.running, 10)
            before = answered(new)
            await until(lambda: answered(new) >= before + 20)
            over.set()
            await asyncio.gather(*asking)

    engine.run(scenario())


def test_pipelined_requests_are_all_answered_in_order(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            client = await Client.connect(old.port)
            await client.send("/slow")
            await old.app.under_way.wait()
            for number in range(3):
                client.writer.write(echo(b"before %d" % number))
            await turns()
            old.server.drain(migrate=True)
            await leaving(old.server)
            for number in range(3):
                client.writer.write(echo(b"after %d" % number))
            old.app.release.set()
            bodies = [(await client.answer())[2] for _ in range(7)]
            expected = [b"%s %d" % (word, number) for word in (b"before", b"after") for number in range(3)]
            assert bodies == [b"ok", *expected]
            await asyncio.wait_for(old.running, 10)
            await client.get()
            assert answered(new) >= 1

    engine.run(scenario())


def echo(body: bytes) -> bytes:
    return b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    "cut", [3, 30, len(echo(b"a body")) - 2], ids=["in the first line", "in the head", "in the body"]
)
def test_request_that_has_partly_arrived_is_answered_before_the_move(
    engine: Engine, pair: Pair, cut: int
) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            client = await connected(old)
            request = echo(b"a body")
            client.writer.write(request[:cut])
            await turns()
            old.server.drain(migrate=True)
            await leaving(old.server)
            assert not old.running.done()
            client.writer.write(request[cut:])
            assert (await client.answer())[2] == b"a body"
            await asyncio.wait_for(old.running, 10)
            assert (answered(old), answered(new)) == (2, 0)
            assert (await client.get())[0] == 200

    engine.run(scenario())


def test_unread_body_is_no_part_of_the_next_request(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            client = await connected(old)
            client.writer.write(b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\n12345")
            assert (await client.answer())[0] == 200
            old.server.drain(migrate=True)
            await leaving(old.server)
            assert not old.running.done()
            client.writer.write(b"67890")
            await asyncio.wait_for(old.running, 10)
            assert (await client.get())[0] == 200
            assert answered(new) == 1

    engine.run(scenario())


def test_response_in_the_write_buffer_is_sent_before_the_move(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            with socket.create_connection(("127.0.0.1", old.port)) as slow:
                slow.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(slow, b"GET /big HTTP/1.1\r\nhost: test\r\n\r\n")
                await until(lambda: answered(old))
                old.server.drain(migrate=True)
                await leaving(old.server)
                assert not old.running.done()
                client = Client(*await asyncio.open_connection(sock=slow.dup()))
                assert (await client.answer())[2] == BIG
                await asyncio.wait_for(old.running, 10)
                assert (await client.get())[0] == 200
                assert answered(new) == 1

    engine.run(scenario())


def test_connection_is_served_until_a_full_pair_has_room(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        other = Pair()
        gives_only = AdoptionPair(pair.give, other.take)
        async with served(engine, adoption=gives_only) as old:
            client = await connected(old)
            pair.fill()
            old.server.drain(migrate=True)
            await leaving(old.server)
            for _ in range(3):
                status, headers, _body = await client.get()
                assert (status, "connection" in headers) == (200, False)
            async with served(engine, adoption=pair.worker()) as new:
                await asyncio.wait_for(old.running, 10)
                assert (await client.get())[0] == 200
                assert answered(new) == 1
        other.close()

    engine.run(scenario())


def test_response_longer_than_the_drain_is_completed_and_its_connection_moves(
    engine: Engine, pair: Pair
) -> None:
    async def scenario() -> None:
        async with two(engine, pair, drain_seconds=0.05) as (old, new):
            client = await Client.connect(old.port)
            await client.send("/slow")
            await old.app.under_way.wait()
            old.server.drain(migrate=True)
            await asyncio.sleep(0.15)
            old.app.release.set()
            assert "connection" not in (await client.answer())[1]
            await asyncio.wait_for(old.running, 10)
            assert (await client.get())[0] == 200
            assert answered(new) == 1

    engine.run(scenario())


@pytest.mark.parametrize("migrate", [True, False])
def test_stop_during_the_drain_closes_busy_connections_only_without_a_successor(
    engine: Engine, pair: Pair, migrate: bool
) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            client = await Client.connect(old.port)
            await client.send("/slow")
            await old.app.under_way.wait()
            old.server.drain(migrate=True)
            await leaving(old.server)
            old.server.stop(migrate=migrate)
            await turns()
            old.app.release.set()
            assert ("connection" in (await client.answer())[1]) is not migrate
            await asyncio.wait_for(old.running, 10)
            if migrate:
                assert (await client.get())[0] == 200
            assert answered(new) == migrate

    engine.run(scenario())


def test_stop_with_a_successor_leaves_connections_to_a_later_worker(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker()) as old:
            idle, busy = await connected(old), await Client.connect(old.port)
            await busy.send("/slow")
            await old.app.under_way.wait()
            old.server.stop(migrate=True)
            await leaving(old.server)
            await idle.send()
            old.app.release.set()
            assert "connection" not in (await busy.answer())[1]
            await asyncio.wait_for(old.running, 10)
            await busy.send()
            async with served(engine, adoption=pair.worker()) as new:
                for client in (idle, busy):
                    assert (await client.answer())[0] == 200
                assert answered(new) == 2

    engine.run(scenario())


def test_connection_closed_by_its_client_does_not_delay_a_drain(engine: Engine, pair: Pair) -> None:
    async def scenario() -> None:
        async with two(engine, pair) as (old, new):
            client = await connected(old)
            old.server.drain(migrate=True)
            client.close()
            await asyncio.wait_for(old.running, 10)
            await until(lambda: not new.server.server_state.connections)

    engine.run(scenario())


def test_connections_linger_without_a_pair(
    engine: Engine, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1_connection, "QUIET_SECONDS", 5.0)

    async def scenario() -> None:
        async with two(engine, pair) as (old, _):
            client = await connected(old)
            old.server.drain()
            await leaving(old.server)
            assert (await client.get())[1]["connection"] == "close"
            await asyncio.wait_for(old.running, 10)

    engine.run(scenario())


def test_on_a_unix_socket_connections_go_on_as_well(engine: Engine, pair: Pair, tmp_path: Path) -> None:
    async def scenario() -> None:
        path = str(tmp_path / "s")
        async with two(engine, pair, listening=path) as (old, new):
            client = Client(*await asyncio.open_unix_connection(path))
            await client.get()
            old.server.drain(migrate=True)
            await asyncio.wait_for(old.running, 10)
            assert (await client.get())[0] == 200
            assert answered(new) == 1

    engine.run(scenario())


@pytest.mark.parametrize(("seconds", "keep_alive"), [(0.05, 60), (-1.0, 60), (60.0, 0.05), (None, 0.05)])
def test_connection_from_another_process_is_closed_at_its_deadline_or_after_the_keep_alive(
    engine: Engine, pair: Pair, seconds: float | None, keep_alive: float
) -> None:
    async def scenario() -> None:
        async with served(
            engine, adoption=pair.worker(), config={"timeout_keep_alive": keep_alive}, head_seconds=60
        ):
            client, sock = await accepted()
            limits: Any = {} if seconds is None else {"until": time.monotonic() + seconds, "asked": True}
            with sock:
                connection_handover.give(pair.give, sock.fileno(), limits)
            assert await asyncio.wait_for(client.at_end(), 30)

    engine.run(scenario())


# A worker that is out of rotation answers everything, each time for the last time on its connection.


def test_out_of_rotation_a_new_connection_is_answered_and_closed(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            server.rotate(False)
            for _ in range(2):
                client = await Client.connect(port)
                status, headers, _body = await client.get()
                assert (status, headers["connection"]) == (200, "close")
                assert await client.at_end()
            assert not running.done()

    engine.run(scenario())


def test_out_of_rotation_an_idle_connection_is_answered_once_more_or_closed_when_quiet(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1_connection, "QUIET_SECONDS", 5.0)

    async def scenario() -> None:
        async with served(engine) as (server, _, port, _running):
            quiet, talking = await Client.connect(port), await Client.connect(port)
            await quiet.get()
            await talking.get()
            server.rotate(False)
            assert (await talking.get())[1]["connection"] == "close"
            assert await talking.at_end()
            monkeypatch.setattr(http1_connection, "QUIET_SECONDS", 0.15)
            server.rotate(True)
            server.rotate(False)
            assert await quiet.at_end()

    engine.run(scenario())


def test_back_in_rotation_connections_are_kept_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_connection, "QUIET_SECONDS", 0.05)

    async def scenario() -> None:
        async with served(engine) as (server, _, port, _running):
            client = await Client.connect(port)
            await client.get()
            server.rotate(False)
            server.rotate(True)
            assert await client.stays_open(0.15)
            for _ in range(2):
                assert "connection" not in (await client.get())[1]

    engine.run(scenario())


def test_websocket_stays_open_out_of_rotation(engine: Engine) -> None:
    async def scenario() -> None:
        async with (
            served(engine) as (server, app, port, _running),
            connect(f"ws://127.0.0.1:{port}/", proxy=None) as client,
        ):
            await app.under_way.wait()
            server.rotate(False)
            await turns()
            assert client.close_code is None

    engine.run(scenario())


def test_draining_worker_does_not_return_to_rotation(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            client = await Client.connect(port)
            await client.get()
            server.drain()
            await leaving(server)
            server.rotate(True)
            assert (await client.get())[1]["connection"] == "close"
            await running

    engine.run(scenario())


HEAD_SECONDS = 0.15
# Both loops and both parsers: each test waits.
WAITED_FOR = [PLAIN, FAST, *(pytest.param(each, marks=pytest.mark.slow) for each in ZTTP)]
HALF = b"GET / HTTP/1.1\r\nhost: te"
WHOLE = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


@pytest.fixture(params=WAITED_FOR, ids="-".join)
def each_engine(request: pytest.FixtureRequest) -> Engine:
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


async def dribble(client: Client, data: bytes, pause: float = HEAD_SECONDS / 10) -> None:
    """Sends a byte at a time until all is sent or the server has had enough."""
    for byte in data:
        client.writer.write(bytes([byte]))
        await asyncio.sleep(pause)
        if client.reader.at_eof():
            return


def test_connection_without_data_is_closed_without_a_response(each_engine: Engine) -> None:
    async def scenario() -> None:
        async with served(each_engine, head_seconds=HEAD_SECONDS) as (server, _, port, _running):
            client = await Client.connect(port)
            await until(lambda: server.server_state.connections)
            assert await client.at_end()
            assert not server.server_state.heads

    each_engine.run(scenario())


@pytest.mark.parametrize("asked_before", [False, True])
def test_half_a_head_is_answered_with_408_and_the_connection_closed(
    each_engine: Engine, asked_before: bool
) -> None:
    async def scenario() -> None:
        async with served(each_engine, head_seconds=HEAD_SECONDS) as (_, app, port, _running):
            client = await Client.connect(port)
            if asked_before:
                await client.get()
            client.writer.write(HALF)
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (408, "close", b"Request Timeout")
            assert await client.at_end()
            assert len(app.scopes) == asked_before

    each_engine.run(scenario())


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("data", [b"GET /" + b"a" * 100, b"\r\n" * 100], ids=["request", "empty lines"])
def test_head_sent_byte_by_byte_gets_no_more_time(
    each_engine: Engine, asked_before: bool, data: bytes
) -> None:
    async def scenario() -> None:
        async with served(each_engine, head_seconds=HEAD_SECONDS) as (_, _app, port, _running):
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

    each_engine.run(scenario())


def test_between_two_requests_only_the_keep_alive_timeout_counts(each_engine: Engine) -> None:
    async def scenario() -> None:
        config = {"timeout_keep_alive": 3 * HEAD_SECONDS}
        async with served(each_engine, head_seconds=HEAD_SECONDS, config=config) as (_, _app, port, _running):
            client = await Client.connect(port)
            await client.get()
            assert await client.stays_open(2 * HEAD_SECONDS)
            await client.get()
            assert await client.at_end()

    each_engine.run(scenario())


def test_slow_body_is_limited_only_after_its_response_and_by_silence(each_engine: Engine) -> None:
    async def scenario() -> None:
        config = {"timeout_keep_alive": 2 * HEAD_SECONDS}
        async with served(each_engine, reading, head_seconds=HEAD_SECONDS, config=config) as (
            _,
            _app,
            port,
            _run,
        ):
            client = await Client.connect(port)
            for path, said in (("/", b"12"), ("/early", b"0")):
                client.writer.write(
                    f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 12\r\n\r\n".encode()
                )
                if path == "/early":
                    assert (await client.answer())[2] == said
                await dribble(client, b"x" * 12, HEAD_SECONDS / 5)
                if path == "/":
                    assert (await client.answer())[2] == said
            client.writer.write(WHOLE)
            assert (await client.answer())[0] == 200
            client.writer.write(b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 12\r\n\r\nxx")
            assert (await client.answer())[0] == 200
            assert await client.at_end()

    each_engine.run(scenario())


def test_time_of_a_pipelined_head_begins_after_the_response_before_it(each_engine: Engine) -> None:
    if each_engine.http == "zttp":
        pytest.skip("zttp does not say what it holds")

    async def scenario() -> None:
        async with served(each_engine, head_seconds=HEAD_SECONDS) as (_, app, port, _running):
            client = await Client.connect(port)
            client.writer.write(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n" + HALF)
            await app.under_way.wait()
            assert await client.stays_open(1.5 * HEAD_SECONDS)
            app.release.set()
            assert (await client.answer())[0] == 200
            assert (await client.answer())[0] == 408
            assert await client.at_end()

    each_engine.run(scenario())


def test_head_that_arrived_while_the_loop_was_busy_is_answered(each_engine: Engine) -> None:
    async def scenario() -> None:
        async with served(each_engine, head_seconds=HEAD_SECONDS) as (server, _, port, _running):
            client = await Client.connect(port)
            client.writer.write(HALF)
            await until(lambda: any(each.head and each.head.size for each in server.server_state.connections))
            client.writer.write(b"st\r\n\r\n")
            time.sleep(1.5 * HEAD_SECONDS)  # noqa: ASYNC251
            assert (await client.answer())[0] == 200

    each_engine.run(scenario())


LARGE = {
    "a target": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: test\r\n\r\n",
    "a header": b"GET / HTTP/1.1\r\nhost: test\r\na: " + b"a" * 70_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nhost: test\r\n" + b"a: bcdefghi\r\n" * 6000 + b"\r\n",
    "one without an end": b"GET / HTTP/1.1\r\nhost: test\r\na: " + b"a" * 500_000,
}


@pytest.mark.parametrize("piece", [1000, 1_000_000])
@pytest.mark.parametrize("what", LARGE)
def test_head_that_is_too_large_is_answered_with_431(each_engine: Engine, what: str, piece: int) -> None:
    async def scenario() -> None:
        async with served(each_engine) as (_, app, port, _running):
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

    each_engine.run(scenario())


@pytest.mark.parametrize("piece", [999, 1_000_000])
def test_head_of_the_maximum_size_is_answered_and_so_is_the_next(each_engine: Engine, piece: int) -> None:
    async def scenario() -> None:
        async with served(each_engine, reading, head_bytes=8192) as (_, _app, port, _running):
            client = await Client.connect(port)
            begin = b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\na: "
            head = begin + b"a" * (8192 - len(begin) - 4) + b"\r\n\r\n"
            sent = (head + b"b" * 100_000) * 3
            for at in range(0, len(sent), piece):
                client.writer.write(sent[at : at + piece])
                await asyncio.sleep(0)
            for _ in range(3):
                assert (await client.answer())[2] == b"100000"

    each_engine.run(scenario())


def test_pipelined_head_takes_bounded_memory(each_engine: Engine) -> None:
    async def scenario() -> None:
        async with served(each_engine) as (_, app, port, _running):
            client = await Client.connect(port)
            client.writer.write(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n")
            await app.under_way.wait()
            client.writer.write(LARGE["one without an end"])
            await turns(200)
            app.release.set()
            assert (await client.answer())[0] == 200
            client.writer.write(b"a")
            assert (await client.answer())[0] == 431

    each_engine.run(scenario())


def test_client_that_keeps_sending_can_read_why_it_was_refused(each_engine: Engine) -> None:
    async def scenario() -> None:
        async with served(each_engine) as (_, _app, port, _running):
            client = await Client.connect(port)
            for _ in range(200):
                client.writer.write(b"a" * 10_000)
            assert (await client.answer())[0] in (400, 431)

    each_engine.run(scenario())


def test_refused_client_that_stays_is_disconnected(
    each_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1_connection, "_READ_ON_SECONDS", HEAD_SECONDS)

    async def scenario() -> None:
        async with served(each_engine) as (server, _, port, running):
            client = await Client.connect(port)
            client.writer.write(LARGE["a target"])
            await client.answer()
            await until(lambda: not server.server_state.connections)
            server.drain()
            await asyncio.wait_for(running, 15)

    each_engine.run(scenario())


def test_drain_waits_for_a_head_until_its_time_limit(each_engine: Engine) -> None:
    async def scenario() -> None:
        async with served(each_engine, head_seconds=HEAD_SECONDS) as (server, _, port, running):
            client = await Client.connect(port)
            client.writer.write(HALF)
            await until(lambda: any(each.head and each.head.size for each in server.server_state.connections))
            server.drain()
            assert (await client.answer())[0] == 408
            client.close()
            await asyncio.wait_for(running, 15)

    each_engine.run(scenario())


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x00"])
def test_time_of_a_head_includes_the_tls_handshake(each_engine: Engine, tmp_path: Path, begun: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    trusting = ssl._create_unverified_context()

    async def scenario() -> None:
        async with served(each_engine, head_seconds=HEAD_SECONDS, secure=context) as (
            server,
            _,
            port,
            _running,
        ):
            client = await Client.connect(port)
            client.writer.write(begun)
            assert await client.at_end()
            await until(lambda: not server.server_state.expected)
            whole = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=trusting))
            assert (await whole.get())[0] == 200
            assert await whole.stays_open(2 * HEAD_SECONDS)
            silent = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=trusting))
            assert await silent.at_end()

    each_engine.run(scenario())


@pytest.mark.parametrize(("asked", "begun"), [(False, b""), (False, HALF), (True, b"")])
def test_adopted_connection_has_the_time_that_was_left(
    each_engine: Engine, pair: Pair, asked: bool, begun: bytes
) -> None:
    async def scenario() -> None:
        async with served(each_engine, adoption=pair.worker()):
            client, sock = await accepted()
            client.writer.write(begun)
            pair.hand_over(sock, until=time.monotonic() + HEAD_SECONDS, asked=asked)
            if begun:
                assert (await client.answer())[0] == 408
            assert await client.at_end()

    each_engine.run(scenario())


@pytest.mark.parametrize("asked", [False, True])
def test_moved_connection_keeps_its_remaining_time(each_engine: Engine, pair: Pair, asked: bool) -> None:
    if each_engine.http == "zttp":
        pytest.skip("its connections do not move")

    async def scenario() -> None:
        config = {"timeout_keep_alive": 3 * HEAD_SECONDS}
        limits: Any = {"head_seconds": 3 * HEAD_SECONDS, "config": config, "adoption": pair.worker()}
        async with served(each_engine, **limits) as (old, _, port, running):
            client = await Client.connect(port)
            began = time.monotonic()
            if asked:
                await client.get()
            await until(lambda: old.server_state.connections)
            await asyncio.sleep(HEAD_SECONDS)
            async with served(each_engine, adoption=pair.worker(), head_seconds=60.0):
                old.drain(migrate=True)
                await running
                assert await client.at_end()
                assert 2.5 * HEAD_SECONDS < time.monotonic() - began < 30

    each_engine.run(scenario())


pytest.importorskip("httptools")

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport whose client has sent nothing that is unread."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock, "sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 9)})
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def resume_reading(self) -> None:
        """There is nothing to read."""


class Kept:
    """A connection on a loop whose time passes at once."""

    def __init__(self, sock: socket.socket) -> None:
        self.loop = VirtualLoop()
        self.wire = Wire(sock)
        config = uvicorn.Config(hello, http="httptools", timeout_keep_alive=75, log_config=None)
        config.load()
        config.http_protocol_class = connection_class(config.http_protocol_class)  # type: ignore[arg-type]
        self.loop.run_until_complete(self._connect(config))

    async def _connect(self, config: uvicorn.Config) -> None:
        self.protocol: Any = protocol_factory(config, PoolServerState(), {})()
        self.protocol.connection_made(self.wire)

    def ask(self, data: bytes = REQUEST) -> None:
        self.loop.call_soon(self.protocol.data_received, data)
        self.loop.pass_time()

    @property
    def timer(self) -> asyncio.TimerHandle | None:
        timer: asyncio.TimerHandle | None = self.protocol.timeout_keep_alive_task
        return timer

    def close(self) -> None:
        self.protocol.connection_lost(None)
        self.loop.pass_time(1)
        self.loop.close()


@pytest.fixture
def kept() -> Iterator[Kept]:
    ours, clients = socket.socketpair()
    made = Kept(ours)
    yield made
    made.close()
    ours.close()
    clients.close()


def test_connection_closes_when_the_last_response_is_as_old_as_the_timeout(kept: Kept) -> None:
    kept.ask()
    kept.loop.pass_time(50)
    kept.ask()
    kept.loop.pass_time(74)
    assert not kept.wire.closed
    kept.loop.pass_time(2)
    assert kept.wire.closed


def test_lingering_connection_closes_sooner(kept: Kept) -> None:
    kept.ask()
    kept.protocol.linger()
    kept.loop.pass_time(1)
    assert not kept.wire.closed
    kept.loop.pass_time(2)
    assert kept.wire.closed


def test_connection_that_stays_has_its_full_time_again(kept: Kept) -> None:
    kept.ask()
    kept.protocol.linger()
    kept.protocol.stay()
    kept.loop.pass_time(74)
    assert not kept.wire.closed


def test_incomplete_head_is_not_cut_by_the_timer(kept: Kept) -> None:
    kept.ask()
    kept.loop.pass_time(74)
    kept.ask(REQUEST[:10])
    kept.loop.pass_time(2)
    assert not kept.wire.closed
    assert kept.timer is None
    kept.ask(REQUEST[10:])
    assert kept.wire.written.count(b"HTTP/1.1 200") == 2
    assert kept.timer is not None


def test_lost_connection_leaves_no_timer(kept: Kept) -> None:
    kept.ask()
    kept.protocol.connection_lost(OSError())
    assert kept.timer is None
