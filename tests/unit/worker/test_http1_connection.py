"""Connections move to another worker, close when they are quiet, and their heads are limited in time and size."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import re
import socket
import ssl
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from websockets.asyncio.client import connect

from poolctl.keeper import connection_handover
from poolctl.worker import tally
from poolctl.worker.serving.accepting import AdoptionPair, protocol_factory
from poolctl.worker.serving.connection_state import PoolServerState
from poolctl.worker.serving.http1_connection import TransferableWebSocketRequest
from poolctl.worker.serving.pool_server import connection_class
from poolctl.worker.serving.request_records import FailedRequestLog, RequestCounts
from tests.asgi_apps import answer, hello, lifespan
from tests.certificates import certificate
from tests.serving import (
    PLAIN,
    App,
    Client,
    Engine,
    Pair,
    Served,
    Wire,
    accepted,
    blank_page,
    leaving,
    served,
    turns,
    until,
)
from tests.virtual_loop import VirtualLoop

BIG = b"x" * 16_000_000  # more than the kernel keeps for a client that does not read


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
async def two(any_engine: Engine, pair: Pair, **options: Any) -> AsyncIterator[Two]:
    async with (
        served(any_engine, Answering(), adoption=pair.worker(), **options) as old,
        served(any_engine, Answering(), adoption=pair.worker()) as new,
    ):
        yield Two(old, new)


async def connected(served_: Served) -> Client:
    """A client that has had its first answer from there."""
    client = await Client.connect(served_.port)
    await client.get()
    return client


def answered(served_: Served) -> int:
    return len(served_.app.scopes)


async def test_idle_connection_continues_in_the_other_worker(any_engine: Engine, pair: Pair) -> None:
    async with two(any_engine, pair) as (old, new):
        client = await connected(old)
        old.server.drain(migrate=True)
        await asyncio.wait_for(old.running, 10)
        for _ in range(3):
            status, headers, _body = await client.get()
            assert (status, "connection" in headers) == (200, False)
        assert (answered(old), answered(new)) == (1, 3)
        assert new.app.scopes[0]["client"] == client.writer.get_extra_info("sockname")
        assert new.app.scopes[0]["server"] == ("127.0.0.1", old.port)


async def test_connection_without_a_request_yet_moves_too(any_engine: Engine, pair: Pair) -> None:
    async with two(any_engine, pair) as (old, new):
        client = await Client.connect(old.port)
        await until(lambda: old.server.server_state.connections)
        old.server.drain(migrate=True)
        await asyncio.wait_for(old.running, 10)
        assert (await client.get())[0] == 200
        assert answered(new) == 1


async def test_response_in_progress_is_completed_before_the_connection_moves(
    any_engine: Engine, pair: Pair
) -> None:
    async with two(any_engine, pair) as (old, new):
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


async def test_client_that_never_pauses_does_not_hold_the_worker(any_engine: Engine, pair: Pair) -> None:
    async with two(any_engine, pair) as (old, new):
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


async def test_pipelined_requests_are_all_answered_in_order(any_engine: Engine, pair: Pair) -> None:
    async with two(any_engine, pair) as (old, new):
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


def echo(body: bytes) -> bytes:
    return b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


@pytest.mark.parametrize(
    "cut", [3, 30, len(echo(b"a body")) - 2], ids=["in the first line", "in the head", "in the body"]
)
async def test_request_that_has_partly_arrived_is_answered_before_the_move(
    any_engine: Engine, pair: Pair, cut: int
) -> None:
    async with two(any_engine, pair) as (old, new):
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


async def test_unread_body_is_no_part_of_the_next_request(any_engine: Engine, pair: Pair) -> None:
    async with two(any_engine, pair) as (old, new):
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


async def test_response_in_the_write_buffer_is_sent_before_the_move(any_engine: Engine, pair: Pair) -> None:
    async with two(any_engine, pair) as (old, new):
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


async def test_connection_is_served_until_a_full_pair_has_room(any_engine: Engine, pair: Pair) -> None:
    other = Pair()
    gives_only = AdoptionPair(pair.give, other.take)
    async with served(any_engine, adoption=gives_only) as old:
        client = await connected(old)
        pair.fill()
        old.server.drain(migrate=True)
        await leaving(old.server)
        for _ in range(3):
            status, headers, _body = await client.get()
            assert (status, "connection" in headers) == (200, False)
        async with served(any_engine, adoption=pair.worker()) as new:
            await asyncio.wait_for(old.running, 10)
            assert (await client.get())[0] == 200
            assert answered(new) == 1
    other.close()


async def test_response_longer_than_the_drain_is_completed_and_its_connection_moves(
    any_engine: Engine, pair: Pair
) -> None:
    async with two(any_engine, pair, drain_seconds=0.05) as (old, new):
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


@pytest.mark.parametrize("migrate", [True, False])
async def test_stop_during_the_drain_closes_busy_connections_only_without_a_successor(
    any_engine: Engine, pair: Pair, migrate: bool
) -> None:
    async with two(any_engine, pair) as (old, new):
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


async def test_stop_with_a_successor_leaves_connections_to_a_later_worker(
    any_engine: Engine, pair: Pair
) -> None:
    async with served(any_engine, adoption=pair.worker()) as old:
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
        async with served(any_engine, adoption=pair.worker()) as new:
            for client in (idle, busy):
                assert (await client.answer())[0] == 200
            assert answered(new) == 2


async def test_connection_closed_by_its_client_does_not_delay_a_drain(any_engine: Engine, pair: Pair) -> None:
    async with two(any_engine, pair) as (old, new):
        client = await connected(old)
        old.server.drain(migrate=True)
        client.close()
        await asyncio.wait_for(old.running, 10)
        await until(lambda: not new.server.server_state.connections)


async def test_connections_linger_without_a_pair(any_engine: Engine, pair: Pair) -> None:
    async with two(any_engine, pair) as (old, _):
        client = await connected(old)
        old.server.drain()
        await leaving(old.server)
        assert (await client.get())[1]["connection"] == "close"
        await asyncio.wait_for(old.running, 10)


async def test_on_a_unix_socket_connections_go_on_as_well(
    any_engine: Engine, pair: Pair, tmp_path: Path
) -> None:
    path = str(tmp_path / "s")
    async with two(any_engine, pair, listening=path) as (old, new):
        client = Client(*await asyncio.open_unix_connection(path))
        await client.get()
        old.server.drain(migrate=True)
        await asyncio.wait_for(old.running, 10)
        assert (await client.get())[0] == 200
        assert answered(new) == 1


# A worker that is out of rotation answers everything, each time for the last time on its connection.


async def test_out_of_rotation_a_new_connection_is_answered_and_closed(any_engine: Engine) -> None:
    async with served(any_engine) as (server, _, port, running):
        server.set_in_rotation_or_drain(False)
        for _ in range(2):
            client = await Client.connect(port)
            status, headers, _body = await client.get()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.at_end()
        assert not running.done()


async def test_out_of_rotation_an_idle_connection_is_answered_once_more_or_closed_when_quiet(
    any_engine: Engine,
) -> None:
    async with served(any_engine) as (server, _, port, _running):
        quiet, talking = await Client.connect(port), await Client.connect(port)
        await quiet.get()
        await talking.get()
        server.set_in_rotation_or_drain(False)
        assert (await talking.get())[1]["connection"] == "close"
        assert await talking.at_end()
        assert await quiet.at_end()


@pytest.mark.loop(run=PLAIN.run)
async def test_back_in_rotation_connections_are_kept_again() -> None:
    async with served(PLAIN) as (server, _, port, _running):
        client = await Client.connect(port)
        await client.get()
        server.set_in_rotation_or_drain(False)
        server.set_in_rotation_or_drain(True)
        assert await client.stays_open(2.2)
        for _ in range(2):
            assert "connection" not in (await client.get())[1]


async def test_websocket_stays_open_out_of_rotation(any_engine: Engine) -> None:
    async with (
        served(any_engine) as (server, app, port, _running),
        connect(f"ws://127.0.0.1:{port}/", proxy=None) as client,
    ):
        await app.under_way.wait()
        server.set_in_rotation_or_drain(False)
        await turns()
        assert client.close_code is None


async def test_draining_worker_does_not_return_to_rotation(any_engine: Engine) -> None:
    async with served(any_engine) as (server, _, port, running):
        client = await Client.connect(port)
        await client.get()
        server.drain()
        await leaving(server)
        server.set_in_rotation_or_drain(True)
        assert (await client.get())[1]["connection"] == "close"
        await running


HEAD_SECONDS = 0.15
HALF = b"GET / HTTP/1.1\r\nhost: te"
WHOLE = b"GET / HTTP/1.1\r\nhost: test\r\n\r\n"


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


async def test_connection_without_data_is_closed_without_a_response(engine: Engine) -> None:
    async with served(engine, head_seconds=HEAD_SECONDS) as (server, _, port, _running):
        client = await Client.connect(port)
        assert await client.at_end()
        assert not server.server_state.head_timeouts.due


@pytest.mark.parametrize("asked_before", [False, True])
async def test_half_a_head_is_answered_with_408_and_the_connection_closed(
    engine: Engine, asked_before: bool
) -> None:
    async with served(engine, head_seconds=HEAD_SECONDS) as (_, app, port, _running):
        client = await Client.connect(port)
        if asked_before:
            await client.get()
        client.writer.write(HALF)
        status, headers, body = await client.answer()
        assert (status, headers["connection"], body) == (408, "close", b"Request Timeout")
        assert await client.at_end()
        assert len(app.scopes) == asked_before


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("data", [b"GET /" + b"a" * 100, b"\r\n" * 100], ids=["request", "empty lines"])
async def test_head_sent_byte_by_byte_gets_no_more_time(
    engine: Engine, asked_before: bool, data: bytes
) -> None:
    async with served(engine, head_seconds=HEAD_SECONDS) as (_, _app, port, _running):
        client = await Client.connect(port)
        if asked_before:
            await client.get()
        sending = asyncio.ensure_future(dribble(client, data))
        said = await client.reader.read()
        # h11 takes empty lines for a bad request.
        assert said.startswith((b"HTTP/1.1 408", b"HTTP/1.1 400" if data[:1] == b"\r" else b"HTTP/1.1 408"))
        assert not sending.done()
        await sending


async def test_between_two_requests_only_the_keep_alive_timeout_counts(engine: Engine) -> None:
    for keep_alive in (60.0, 2 * HEAD_SECONDS):
        config = {"timeout_keep_alive": keep_alive}
        async with served(engine, head_seconds=HEAD_SECONDS, config=config) as it:
            client = await Client.connect(it.port)
            await client.get()
            if keep_alive == 60.0:
                assert await client.stays_open(2 * HEAD_SECONDS)
                await client.get()
            else:
                assert await client.at_end()


async def test_slow_body_is_limited_only_after_its_response_and_by_silence(engine: Engine) -> None:
    config: Any = {"timeout_keep_alive": 60.0}
    async with served(engine, reading, head_seconds=HEAD_SECONDS, config=config) as it:
        client = await Client.connect(it.port)
        client.writer.write(b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 12\r\n\r\n")
        assert (await client.answer())[2] == b"0"
        await dribble(client, b"x" * 12, HEAD_SECONDS / 5)
        client.writer.write(WHOLE)
        assert (await client.answer())[0] == 200
    config = {"timeout_keep_alive": 2 * HEAD_SECONDS}
    async with served(engine, reading, head_seconds=HEAD_SECONDS, config=config) as it:
        client = await Client.connect(it.port)
        client.writer.write(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 12\r\n\r\n")
        await dribble(client, b"x" * 12, HEAD_SECONDS / 5)
        assert (await client.answer())[2] == b"12"
        client = await Client.connect(it.port)
        client.writer.write(b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 12\r\n\r\nxx")
        assert (await client.answer())[0] == 200
        assert await client.at_end()


async def test_time_of_a_pipelined_head_begins_after_the_response_before_it(engine: Engine) -> None:
    async with served(engine, head_seconds=HEAD_SECONDS) as (_, app, port, _running):
        client = await Client.connect(port)
        client.writer.write(b"GET /slow HTTP/1.1\r\nhost: test\r\n\r\n" + HALF)
        await app.under_way.wait()
        assert await client.stays_open(1.5 * HEAD_SECONDS)
        app.release.set()
        assert (await client.answer())[0] == 200
        assert (await client.answer())[0] == 408
        assert await client.at_end()


async def test_head_that_arrived_while_the_loop_was_busy_is_answered(engine: Engine) -> None:
    async with served(engine, head_seconds=1.0) as (server, _, port, _running):
        client = await Client.connect(port)
        client.writer.write(HALF)
        await until(lambda: any(each.head and each.head.size for each in server.server_state.connections))
        client.writer.write(b"st\r\n\r\n")
        time.sleep(1.25)  # noqa: ASYNC251
        assert (await client.answer())[0] == 200


LARGE = {
    "a target": b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: test\r\n\r\n",
    "a header": b"GET / HTTP/1.1\r\nhost: test\r\na: " + b"a" * 70_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nhost: test\r\n" + b"a: bcdefghi\r\n" * 6000 + b"\r\n",
    "one without an end": b"GET / HTTP/1.1\r\nhost: test\r\na: " + b"a" * 500_000,
}


@pytest.mark.parametrize("piece", [1000, 1_000_000])
@pytest.mark.parametrize("what", LARGE)
async def test_head_that_is_too_large_is_answered_with_431(engine: Engine, what: str, piece: int) -> None:
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


POST = b"POST /echo HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"GET / HTTP/1.1\r\nhost: test\r\na:", b"\0\r\n\r\n"),
        (b"GET / HTTP/1.1\r\nhost: test\r\na: b\r\n", b"\r|\r\n\r\n"),
        (POST + b"1;", b"\n|\r\n"),
        (POST + b"0;", b"\n|\r\n"),
        (POST + b"0\r\na:", b"\0\r\n\r\n"),
    ],
    ids=["head", "fold", "chunk", "last chunk", "trailer"],
)
async def test_time_for_blanks_before_a_control_character_grows_as_they_do(
    engine: Engine, before: bytes, after: bytes, pieces: int
) -> None:
    async def seconds(port: int, blanks: int) -> float:
        client = await Client.connect(port)
        sent = before + b" " * blanks + after
        begun = time.thread_time()
        for at in range(0, len(sent), -(-len(sent) // pieces)):
            client.writer.write(sent[at : at + -(-len(sent) // pieces)])
            await turns(2)
        assert (await client.answer())[0] == 400
        return time.thread_time() - begun

    async with served(engine, Answering()) as (_, _app, port, _running):
        shorter = min([await seconds(port, 10_000) for _ in range(3)])
        assert min([await seconds(port, 60_000) for _ in range(3)]) < 12 * max(shorter, 0.002)


@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_binary_body_in_chunks_and_pipelined_requests_are_read(engine: Engine, piece: int) -> None:
    async with served(engine, Answering()) as (_, _app, port, _running):
        client = await Client.connect(port)
        body = bytes(range(256)) + b"\r\n\r\n"
        head = b"POST /echo HTTP/1.1\r\nhost: test\r\n"
        chunk = b"%X;a=b\r\n%b\r\n" % (len(body), body)
        chunked = head + b"transfer-encoding: chunked\r\n\r\n" + chunk * 2 + b"0\r\nx: y\r\n\r\n"
        plain = head + b"content-length: %d\r\n\r\n%b" % (len(body), body)
        sent = (chunked + plain) * 2
        for at in range(0, len(sent), piece):
            client.writer.write(sent[at : at + piece])
            await asyncio.sleep(0)
        for times in (2, 1, 2, 1):
            assert (await client.answer())[2] == body * times


async def test_pipelined_head_takes_bounded_memory(engine: Engine) -> None:
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


async def test_client_that_keeps_sending_can_read_why_it_was_refused(engine: Engine) -> None:
    async with served(engine) as (_, _app, port, _running):
        client = await Client.connect(port)
        for _ in range(200):
            client.writer.write(b"a" * 10_000)
        assert (await client.answer())[0] in (400, 431)


async def test_refused_client_that_stays_is_disconnected(engine: Engine) -> None:
    async with served(engine) as (server, _, port, running):
        client = await Client.connect(port)
        client.writer.write(LARGE["a target"])
        await client.answer()
        await until(lambda: not server.server_state.connections)
        server.drain()
        await asyncio.wait_for(running, 15)


async def test_drain_waits_for_a_head_until_its_time_limit(engine: Engine) -> None:
    async with served(engine, head_seconds=0.5) as (server, _, port, running):
        client = await Client.connect(port)
        client.writer.write(HALF)
        await until(lambda: any(each.head and each.head.size for each in server.server_state.connections))
        server.drain()
        assert (await client.answer())[0] == 408
        client.close()
        await asyncio.wait_for(running, 15)


@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01\x00"])
async def test_time_of_a_head_includes_the_tls_handshake(
    engine: Engine, tmp_path: Path, begun: bytes
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    trusting = ssl._create_unverified_context()

    async with served(engine, head_seconds=0.5, secure=context) as (server, _, port, _running):
        client = await Client.connect(port)
        client.writer.write(begun)
        assert await client.at_end()
        await until(lambda: not server.server_state.expected)
        silent = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=trusting))
        assert await silent.at_end()
    async with served(engine, secure=context) as (server, _, port, _running):
        whole = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=trusting))
        await until(lambda: len(server.server_state.head_timeouts.due) == 1)
        assert (await whole.get())[0] == 200
        assert not server.server_state.head_timeouts.due
        assert not server.server_state.expected


@pytest.mark.parametrize(("asked", "begun"), [(False, b""), (False, HALF), (True, b"")])
async def test_adopted_connection_has_the_time_that_was_left(
    engine: Engine, pair: Pair, asked: bool, begun: bytes
) -> None:
    async with served(engine, adoption=pair.worker()):
        client, sock = await accepted()
        client.writer.write(begun)
        pair.hand_over(sock, until=time.monotonic() + HEAD_SECONDS, asked=asked)
        if begun:
            assert (await client.answer())[0] == 408
        assert await client.at_end()


pytest.importorskip("httptools")

REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


class Kept:
    """A connection on a loop whose time passes at once."""

    def __init__(
        self, sock: socket.socket, *until: float | None, http: Any = "httptools", stock: bool = False
    ) -> None:
        self.loop = VirtualLoop()
        self.wire = Wire(sock, self.loop)
        self.state = PoolServerState()
        self.state.date_header = False
        config = uvicorn.Config(hello, http=http, timeout_keep_alive=75, log_config=None)
        config.load()
        if not stock:
            config.http_protocol_class = connection_class(config.http_protocol_class)  # type: ignore[arg-type]
        self.loop.run_until_complete(self._connect(config, *until))

    async def _connect(self, config: uvicorn.Config, *until: float | None) -> None:
        self.protocol: Any = protocol_factory(config, self.state, {})()
        self.wire.protocol = self.protocol
        for each in until:
            self.protocol.set_read_deadline(each, between_requests=True)
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
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, clients = socket.socketpair()
    with ours, clients:
        yield ours, clients


@pytest.fixture
def kept(sockets: tuple[socket.socket, socket.socket]) -> Iterator[Kept]:
    made = Kept(sockets[0])
    yield made
    made.close()


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
    kept.protocol.close_when_idle()
    kept.loop.pass_time(1)
    assert not kept.wire.closed
    kept.loop.pass_time(2)
    assert kept.wire.closed


def test_connection_that_stays_has_its_full_time_again(kept: Kept) -> None:
    kept.ask()
    kept.protocol.close_when_idle()
    kept.protocol.cancel_close_when_idle()
    kept.loop.pass_time(74)
    assert not kept.wire.closed


def test_connection_that_stays_is_handed_over_with_its_remaining_time(kept: Kept, pair: Pair) -> None:
    kept.ask()
    kept.protocol.close_when_idle()
    kept.protocol.cancel_close_when_idle()
    kept.loop.pass_time(25)
    assert kept.protocol.hand_over(pair.give)
    with connection_handover.receive_connection(pair.take) as taken:
        assert taken.idle
        assert taken.until is not None
        assert taken.until - time.monotonic() == pytest.approx(50, abs=5)


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_connection_whose_body_stops_after_the_response_is_closed_after_the_keep_alive(
    sockets: tuple[socket.socket, socket.socket], http: str
) -> None:
    kept = Kept(sockets[0], http=http)
    kept.ask(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n12345")
    assert kept.wire.written.startswith(b"HTTP/1.1 200")
    kept.loop.pass_time(50)
    kept.ask(b"67")
    kept.loop.pass_time(74)
    assert not kept.wire.closed
    kept.loop.pass_time(2)
    assert kept.wire.closed
    kept.close()


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


def test_idle_connection_is_handed_over_with_its_remaining_time(kept: Kept, pair: Pair) -> None:
    kept.ask()
    kept.loop.pass_time(25)
    assert kept.protocol.hand_over(pair.give)
    assert (kept.wire.aborted, kept.wire.reading) == (True, False)
    assert kept.protocol not in kept.state.connections
    with connection_handover.receive_connection(pair.take) as taken:
        assert taken.idle
        assert taken.until is not None
        assert taken.until - time.monotonic() == pytest.approx(50, abs=5)
        assert taken.received == b""
    assert not kept.protocol.hand_over(pair.give)


def test_lingering_connection_is_handed_over_without_a_time_limit(kept: Kept, pair: Pair) -> None:
    kept.ask()
    kept.protocol.close_when_idle()
    assert kept.protocol.hand_over(pair.give)
    with connection_handover.receive_connection(pair.take) as taken:
        assert (taken.until, taken.idle) == (None, False)


def test_connection_before_its_first_request_is_handed_over_with_the_time_of_its_head(
    kept: Kept, pair: Pair
) -> None:
    due = kept.state.head_timeouts.due[kept.protocol]
    assert kept.protocol.hand_over(pair.give)
    with connection_handover.receive_connection(pair.take) as taken:
        assert (taken.until, taken.idle) == (due, False)


def test_connection_that_cannot_be_handed_over_is_read_on(kept: Kept, pair: Pair) -> None:
    kept.ask()
    kept.wire.buffered = 1
    assert not kept.protocol.hand_over(pair.give)
    kept.wire.buffered = 0
    count = pair.fill()
    assert not kept.protocol.hand_over(pair.give)
    pair.empty(count)
    assert kept.wire.pauses == 2
    kept.wire.protocol = asyncio.Protocol()
    assert not kept.protocol.hand_over(pair.give)
    kept.wire.protocol = kept.protocol
    kept.ask(REQUEST[:10])
    assert not kept.protocol.hand_over(pair.give)
    kept.wire.closed = True
    kept.ask(REQUEST[10:])
    assert not kept.protocol.hand_over(pair.give)
    assert (kept.wire.pauses, kept.wire.reading, kept.wire.aborted) == (2, True, False)


def test_move_is_tried_again_after_growing_pauses_until_all_is_sent(kept: Kept, pair: Pair) -> None:
    kept.ask()
    kept.state.moves_to = pair.give
    kept.wire.buffered = 1
    begun = kept.loop.time()
    kept.wire.looked_at.clear()
    kept.loop.call_soon(kept.protocol.move_or_close_when_idle)
    kept.loop.pass_time(0.2)
    found = [round(each - begun, 6) for each in kept.wire.looked_at]
    assert found == [0, 0, 0.003, 0.009, 0.021, 0.045, 0.093, 0.143, 0.193]
    kept.loop.call_soon(kept.protocol.move_or_close_when_idle)  # takes the place of the attempt that is due
    kept.loop.pass_time(0.049)
    assert len(kept.wire.looked_at) == len(found) + 1
    kept.wire.buffered = 0
    kept.loop.pass_time(0.01)
    assert kept.wire.aborted
    connection_handover.receive_connection(pair.take).close()


@pytest.mark.parametrize("change", ["closing", "left", "another protocol", "within a request"])
def test_connection_that_has_become_something_else_does_not_move(kept: Kept, pair: Pair, change: str) -> None:
    kept.ask()
    kept.state.moves_to = pair.give
    if change == "closing":
        kept.wire.closed = True
    elif change == "left":
        kept.state.connections.discard(kept.protocol)
    elif change == "another protocol":
        kept.wire.protocol = asyncio.Protocol()
    else:
        kept.protocol.data_received(REQUEST[:10])
    kept.loop.call_soon(kept.protocol.move_or_close_when_idle)
    kept.loop.pass_time(1)
    assert (kept.wire.pauses, kept.wire.aborted) == (0, False)


def test_upgrade_moves_with_the_head_of_its_request(kept: Kept, pair: Pair) -> None:
    kept.ask()
    upgrade = TransferableWebSocketRequest(kept.protocol)
    kept.wire.buffered = 1
    assert not upgrade.hand_over(pair.give)
    assert kept.wire.reading
    kept.wire.buffered = 0
    assert upgrade.hand_over(pair.give)
    assert (kept.wire.aborted, kept.protocol in kept.state.connections) == (True, False)
    with connection_handover.receive_connection(pair.take) as taken:
        assert (taken.received, taken.until) == (REQUEST, None)


def test_upgrade_whose_connection_closes_or_finds_no_room_does_not_move(kept: Kept, pair: Pair) -> None:
    kept.ask()
    count = pair.fill()
    assert not TransferableWebSocketRequest(kept.protocol).hand_over(pair.give)
    pair.empty(count)
    assert (kept.wire.reading, kept.wire.aborted, kept.wire.pauses) == (True, False, 1)
    kept.wire.closed = True
    assert not TransferableWebSocketRequest(kept.protocol).hand_over(pair.give)
    assert kept.wire.pauses == 1


def test_late_connection_without_data_is_closed_and_one_with_half_a_head_gets_408(kept: Kept) -> None:
    kept.state.fixed_headers = [(b"server", b"uvicorn")]
    page = blank_page()
    kept.protocol.counts = RequestCounts(page)
    kept.ask(REQUEST[:10])
    kept.wire.pause_reading()  # the client may have to be read to its end before it reads the response
    kept.loop.call_soon(kept.protocol.on_head_timeout)
    kept.loop.pass_time()
    assert kept.wire.written == (
        b"HTTP/1.1 408 Request Timeout\r\nserver: uvicorn\r\ncontent-length: 15\r\nconnection: close\r\n\r\n"
        b"Request Timeout"
    )
    assert (page[tally.MALFORMED], page[tally.STATUS + 4], page[tally.STATUS + 5]) == (1, 1, 0)
    assert (kept.wire.at_eof, kept.wire.reading, kept.protocol.head) == (True, True, None)
    assert not kept.state.head_timeouts.due
    kept.loop.pass_time(1.9)
    assert not kept.wire.closed
    kept.loop.pass_time(0.2)
    assert kept.wire.closed
    assert kept.protocol in kept.state.connections
    kept.wire.protocol.connection_lost(None)
    assert kept.protocol not in kept.state.connections


@pytest.mark.parametrize("begun", [b"", REQUEST[:10]])
def test_late_connection_that_has_sent_nothing_or_closes_gets_no_response(kept: Kept, begun: bytes) -> None:
    if begun:
        kept.ask(begun)
        kept.wire.closed = True
    kept.loop.call_soon(kept.protocol.on_head_timeout)
    kept.loop.pass_time()
    assert (kept.wire.written, kept.wire.closed, kept.protocol.head) == (b"", True, None)
    assert not kept.state.head_timeouts.due


def test_late_head_of_the_maximum_size_gets_408(kept: Kept) -> None:
    kept.state.head_timeouts.most_bytes = len(REQUEST) - 1
    kept.ask(REQUEST[:-1])
    kept.loop.call_soon(kept.protocol.on_head_timeout)
    kept.loop.pass_time()
    assert kept.wire.written.startswith(b"HTTP/1.1 408")
    kept.loop.pass_time(3)


def test_application_sees_the_fields_of_the_head_and_no_trailers(kept: Kept) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await whole_body(receive)
        seen.extend(scope["headers"])
        await answer(send, "ok")

    kept.protocol.app = app
    kept.ask(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
    kept.ask(b"1\r\nx\r\n0\r\nx-user: admin\r\n\r\n")
    assert seen == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]


CONTENT = b"GET /secret HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("separately", [False, True])
@pytest.mark.parametrize(
    ("field", "body"),
    [
        (b"content-length: %d" % len(CONTENT), CONTENT),
        (b"transfer-encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)),
    ],
)
def test_request_that_asks_for_h2c_has_its_body_and_so_have_those_behind_it(
    sockets: tuple[socket.socket, socket.socket], http: str, separately: bool, field: bytes, body: bytes
) -> None:
    kept, seen = Kept(sockets[0], http=http), list[tuple[str, bytes]]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["path"], await whole_body(receive)))
        await answer(send, "ok")

    kept.protocol.app = app
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
    for path in (b"/a", b"/b"):
        head = b"POST %b HTTP/1.1\r\nhost: a\r\n%b%b\r\n\r\n" % (path, upgrade, field)
        for part in (head, body + REQUEST) if separately else (head + body + REQUEST,):
            kept.ask(part)
    kept.loop.pass_time()
    assert seen == [("/a", CONTENT), ("/", b""), ("/b", CONTENT), ("/", b"")]
    assert kept.wire.written.count(b"HTTP/1.1 200 OK") == 4
    assert not kept.state.head_timeouts.due
    kept.close()


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("body", [b"", b"hello"])
@pytest.mark.parametrize(
    ("connection", "protocol"),
    [
        (b"Upgrade, close", b"TLS/1.2"),
        (b"close, upgrade", b"foo"),
        (b"Upgrade, HTTP2-Settings, close", b"h2c"),
        (b"upgrade", b"h2c"),
    ],
)
def test_upgrade_that_nobody_serves_is_answered_and_seen_by_the_application(
    sockets: tuple[socket.socket, socket.socket],
    connection: bytes,
    protocol: bytes,
    body: bytes,
    version: bytes,
    http: str,
) -> None:
    kept, seen = Kept(sockets[0], http=http), list[tuple[list[Any], bytes]]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["headers"], await whole_body(receive)))
        await answer(send, "ok")

    kept.protocol.app = app
    fields = [(b"host", b"a"), (b"upgrade", protocol), (b"connection", connection)]
    fields += [(b"content-length", b"%d" % len(body))] if body else []
    lines = [b"POST / HTTP/" + version, *(name + b": " + value for name, value in fields), b"", body]
    kept.ask(b"\r\n".join(lines))
    kept.loop.pass_time(1)
    assert seen == [(fields, body)]
    assert kept.wire.written.startswith(b"HTTP/1.1 200 OK")
    assert kept.wire.closed is (b"close" in connection or version == b"1.0")
    kept.close()


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("piece", [1000, 3000, 8191, 20_000, 1_000_000])
@pytest.mark.parametrize("body", [0, 10, 9000])
def test_limit_of_a_head_is_one_of_each_pipelined_request(
    sockets: tuple[socket.socket, socket.socket], body: int, piece: int, http: str
) -> None:
    kept = Kept(sockets[0], http=http)
    kept.state.head_timeouts.most_bytes = 8192
    kept.protocol.app = sized(b"hello")
    field = b"content-length: %d" % body if body else b"a: b"
    data = 20 * (request(b"GET /", b"cookie: " + b"c" * 5000, field) + b"x" * body)
    for start in range(0, len(data), piece):
        kept.loop.call_soon(kept.protocol.data_received, data[start : start + piece])
    kept.loop.pass_time(1)
    assert re.findall(rb"HTTP/1.1 (\d+)", kept.wire.written) == [b"200"] * 20
    assert not kept.state.head_timeouts.due
    kept.close()


def released() -> tuple[asyncio.Event, Any]:
    """An event, and an application that answers once it is set."""
    release = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await release.wait()
        await answer(send, "ok")

    return release, app


def test_pipelined_head_that_has_grown_too_large_gets_431_after_the_response_before_it(kept: Kept) -> None:
    release, kept.protocol.app = released()
    for data in (REQUEST, REQUEST[:10], b"a" * kept.state.head_timeouts.most_bytes):
        kept.ask(data)
    kept.loop.call_soon(release.set)
    kept.loop.pass_time()
    kept.loop.call_soon(kept.protocol.on_head_timeout)
    kept.loop.pass_time()
    assert re.findall(rb"HTTP/1.1 (\d+)", kept.wire.written) == [b"200", b"431"]
    kept.loop.pass_time(3)


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_client_that_sends_many_requests_ahead_is_read_no_further_until_they_are_answered(
    sockets: tuple[socket.socket, socket.socket], http: str
) -> None:
    kept = Kept(sockets[0], http=http)
    kept.state.head_timeouts.most_bytes = 8192
    release, kept.protocol.app = released()
    kept.ask()
    count = kept.state.head_timeouts.most_bytes // len(REQUEST) + 1
    kept.ask(REQUEST * count)
    assert not kept.wire.reading
    kept.loop.call_soon(release.set)
    kept.loop.pass_time(1)
    assert kept.wire.written.count(b"HTTP/1.1 200") == 1 + count
    assert kept.wire.reading
    kept.close()


async def streaming(scope: Any, receive: Any, send: Any) -> None:
    """Half of a response, until the client has gone. `/fixed` has a known length."""
    headers = [(b"content-length", b"100")] if scope["path"] == "/fixed" else []
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
    await receive()


@pytest.mark.parametrize(
    ("path", "accept", "rest"),
    [
        (b"/", b"text/event-stream", b"0\r\n\r\n"),
        (b"/", b"text/html, text/event-stream;q=1", b"0\r\n\r\n"),
        (b"/fixed", b"text/event-stream", b""),
        (b"/", b"*/*", None),
    ],
)
def test_event_stream_is_ended_between_two_events_and_no_other_stream(
    kept: Kept, path: bytes, accept: bytes, rest: bytes | None
) -> None:
    kept.protocol.end_event_streams()
    assert not kept.wire.closed, "no request is in progress"
    kept.protocol.app = streaming
    kept.ask(b"GET %b HTTP/1.1\r\nhost: a\r\naccept: %b\r\n\r\n" % (path, accept))
    before = kept.wire.written
    assert b"data: tick" in before
    kept.loop.call_soon(kept.protocol.end_event_streams)
    kept.loop.pass_time()
    assert kept.wire.written == before + (rest or b"")
    assert kept.wire.closed == (rest is not None)
    assert (not kept.state.tasks) == (rest is not None)


@pytest.mark.parametrize(
    ("asked_before", "empty_lines", "cut"),
    [
        (0, 0, 0), (0, 2, 0), (0, 0, 10), (0, 0, 4000), (0, 0, 5000), (0, 0, -2),
        (1, 0, 0), (1, 2, 0), (1, 0, 5000), (1, 0, -2),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("more", "status"), [(0, b"200"), (1, b"431")])
def test_head_is_limited_to_the_byte_however_it_arrives(
    kept: Kept, more: int, status: bytes, asked_before: int, empty_lines: int, cut: int
) -> None:
    kept.state.head_timeouts.most_bytes = 8192
    for _ in range(asked_before):
        kept.ask()
    begin = b"GET / HTTP/1.1\r\nhost: a\r\na: "
    head = begin + b"a" * (8192 + more - len(begin) - 4) + b"\r\n\r\n"
    data = b"\r\n" * empty_lines + head
    for piece in (data[:cut], data[cut:]) if cut else (data,):
        kept.ask(piece)
    assert re.findall(rb"HTTP/1.1 (\d+)", kept.wire.written) == [b"200"] * asked_before + [status]
    kept.loop.pass_time(3)


@pytest.mark.parametrize("cuts", [(-1,), (-2,), (-4,), (-3, -1), (-3, -2, -1)])
@pytest.mark.parametrize(("more", "statuses"), [(0, [b"200", b"200"]), (1, [b"431"])])
def test_end_of_a_head_is_found_in_pieces_of_which_the_last_has_the_next_request_too(
    kept: Kept, more: int, statuses: list[bytes], cuts: tuple[int, ...]
) -> None:
    kept.state.head_timeouts.most_bytes = 8192
    begin = b"GET / HTTP/1.1\r\nhost: a\r\na: "
    head = begin + b"a" * (8192 + more - len(begin) - 4) + b"\r\n\r\n"
    for start, end in itertools.pairwise((0, *cuts)):
        kept.ask(head[start:end])
    kept.ask(head[cuts[-1] :] + REQUEST)
    assert re.findall(rb"HTTP/1.1 (\d+)", kept.wire.written) == statuses
    kept.loop.pass_time(3)


@pytest.mark.parametrize(("left_seconds", "open_seconds"), [(-5.0, 0.0), (20.0, 20.0), (1000.0, 75.0)])
def test_connection_of_another_process_closes_with_the_time_that_its_client_has_left(
    sockets: tuple[socket.socket, socket.socket], left_seconds: float, open_seconds: float
) -> None:
    kept = Kept(sockets[0], time.monotonic() + left_seconds)
    assert kept.protocol not in kept.state.head_timeouts.due
    if open_seconds:
        kept.loop.pass_time(open_seconds - 1)
        assert not kept.wire.closed
        kept.loop.pass_time(1)
    kept.loop.pass_time(0.01)
    assert kept.wire.closed
    kept.close()


# A client gets the same bytes at the same time as from uvicorn, whose heads and bodies are sent separately.

LONG = b"x" * 100_000
PARSERS = ["h11", "httptools"]


def request(start: bytes = b"GET /", *headers: bytes) -> bytes:
    return b"\r\n".join((start + b" HTTP/1.1", b"host: a", *headers, b"", b""))


def responding(*messages: Any, status: int = 200, headers: Any = (), result: Any = None) -> Any:
    """An application that sends a head, and then bodies; a number is a pause, an exception is raised."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        await send({"type": "http.response.start", "status": status, "headers": [*headers]})
        for message in messages:
            if isinstance(message, Exception):
                raise message
            if isinstance(message, int):
                await asyncio.sleep(message)
            else:
                body, more = message
                await send({"type": "http.response.body", "body": body, "more_body": more})
        return result

    return app


def sized(body: Any) -> Any:
    return responding((body, False), headers=[(b"content-length", b"%d" % len(body))])


async def reading_first(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, (await whole_body(receive)).decode())


async def failing(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("on purpose")


async def silent(scope: Any, receive: Any, send: Any) -> None: ...


async def leaving_out_the_head(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.body", "body": b"ok"})


EXPECTING = request(b"POST /", b"expect: 100-continue", b"content-length: 2")
RESPONSES: dict[str, tuple[Any, tuple[bytes, ...]]] = {
    "with a known length": (sized(b"hello"), (request(),)),
    "without a body": (sized(b""), (request(),)),
    "in a chunk": (responding((b"hello", False)), (request(),)),
    "in chunks": (responding((b"one", True), (b"", True), (b"two", True), (b"", False)), (request(),)),
    "to HEAD": (sized(b"hello"), (request(b"HEAD /"), request())),
    "to HEAD in parts": (responding((b"one", True), 1, (b"two", False)), (request(b"HEAD /"), request())),
    "204": (responding((b"", False), status=204), (request(), request())),
    "304": (responding((b"", False), status=304), (request(), request())),
    "to HTTP/1.0": (sized(b"hello"), (b"GET / HTTP/1.0\r\n\r\n",)),
    "to a last request": (sized(b"hello"), (request(b"GET /", b"connection: close"),)),
    "that is the last": (
        responding((b"", False), headers=[(b"connection", b"close"), (b"content-length", b"0")]),
        (request(), request()),
    ),
    "after 100-continue": (reading_first, (EXPECTING, b"ok", request())),
    "after 100-continue and another response": (reading_first, (request() + EXPECTING, b"ok", request())),
    "instead of 100-continue": (sized(b"no"), (EXPECTING, b"ok", request())),
    "of a failing application": (failing, (request(), request())),
    "of an application that fails after the head": (
        responding(RuntimeError("on purpose"), headers=[(b"content-length", b"5")]),
        (request(), request()),
    ),
    "of an application that fails within the body": (
        responding((b"one", True), 1, RuntimeError("on purpose")),
        (request(), request()),
    ),
    "that never begins": (silent, (request(), request())),
    "that begins with its body": (leaving_out_the_head, (request(), request())),
    "that never ends": (responding(), (request(), request())),
    "with an invalid field": (responding((b"", False), headers=[(b"a", b"b\nc")]), (request(), request())),
    "with an unknown status": (responding((b"", False), status=777), (request(), request())),
    "that is too long": (responding((b"ok", False), headers=[(b"content-length", b"1")]), (request(),)),
    "that is too short": (responding((b"ok", False), headers=[(b"content-length", b"3")]), (request(),)),
    "whose head comes first": (responding(1, (b"one", True), 1, (b"two", False)), (request(), request())),
    "to requests at once": (sized(b"hello"), (request() * 3 + request(b"HEAD /") + request(), request())),
    "to slow requests at once": (responding(1, (b"one", False)), (request() * 3,)),
    "before an invalid request": (sized(b"hello"), (request(), b"\0\r\n\r\n")),
    "during an invalid request": (responding(1, (b"one", False)), (request(), b"\0\r\n\r\n")),
    "that is long": (sized(LONG), (request(), request())),
    "that is a bytearray": (sized(bytearray(b"hello")), (request(),)),
}


def exchange(kept: Kept, app: Any, sent: tuple[bytes, ...]) -> list[tuple[bytes, bool]]:
    """All that was written, and whether the connection is closed, after each step."""
    kept.protocol.app = app
    seen = []
    for data in sent:
        if not kept.wire.closed:
            kept.ask(data)
        seen.append((kept.wire.written, kept.wire.closed))
    for _ in range(8):
        kept.loop.pass_time(0.5)
        seen.append((kept.wire.written, kept.wire.closed))
    return seen


@pytest.mark.parametrize("http", PARSERS)
@pytest.mark.parametrize("name", RESPONSES)
def test_client_gets_the_same_response_at_the_same_time_as_from_uvicorn(
    sockets: tuple[socket.socket, socket.socket], name: str, http: str
) -> None:
    app, sent = RESPONSES[name]
    stock, kept, page = Kept(sockets[0], http=http, stock=True), Kept(sockets[1], http=http), blank_page()
    kept.protocol.counts = RequestCounts(page)
    kept.state.failed = FailedRequestLog("text")
    expected = exchange(stock, app, sent)
    assert exchange(kept, app, sent) == expected
    statuses = [int(status) // 100 for status in re.findall(rb"HTTP/1.1 (\d+)", kept.wire.written)]
    counted = page[tally.STATUS : tally.STATUS + 6].tolist()
    assert counted == [0, 0, *(statuses.count(each) for each in range(2, 6))]
    for each in (stock, kept):
        each.close()


FIVE = [(b"content-length", b"5")]
FAILURE = RuntimeError("on purpose")
# Responses of applications with an error, complete for their client: the application, and the method of the request.
COMPLETE: dict[str, tuple[Any, bytes]] = {
    "then fails": (responding((b"hello", False), FAILURE, headers=FIVE), b"GET"),
    "then fails later": (responding((b"hello", False), 1, FAILURE, headers=FIVE), b"GET"),
    "then fails, in chunks": (responding((b"hello", True), (b"", False), FAILURE, status=500), b"GET"),
    "then returns something": (responding((b"hello", False), headers=FIVE, result="unexpected"), b"GET"),
    "then continues": (responding((b"hello", False), (b"more", False), headers=FIVE), b"GET"),
    "of its length, not ended": (responding((b"hello", True), 1, FAILURE, headers=FIVE), b"GET"),
    "of its length, left open": (responding((b"he", True), (b"llo", True), headers=FIVE), b"GET"),
    "of its length, then more": (responding((b"hello", True), (b"more", True), headers=FIVE), b"GET"),
    "to HEAD": (responding(FAILURE, headers=FIVE), b"HEAD"),
    "to HEAD, later": (responding(1, FAILURE), b"HEAD"),
    "204 with a body": (responding((b"hello", False), status=204), b"GET"),
    "204 with a body, later": (responding(1, (b"hello", False), status=204, headers=FIVE), b"POST"),
    "304 with a body": (responding((b"hello", False), status=304, headers=FIVE), b"GET"),
    "304 with a length": (responding((b"", False), status=304, headers=FIVE), b"GET"),
}
# Responses that are not complete, and of which a client must not think so.
INCOMPLETE = {
    "without an end": responding((b"hello", True), 1, FAILURE),
    "too short": responding((b"hell", True), 1, FAILURE, headers=FIVE),
    "too short at its end": responding((b"hell", False), headers=FIVE),
    "too long at once": responding((b"hello!", False), headers=FIVE),
    "too long at last": responding((b"hell", True), (b"o!", False), headers=FIVE),
    "with only a head": responding(FAILURE, headers=FIVE),
    "with two framings": responding(
        (b"", True), 1, FAILURE, headers=[*FIVE, (b"transfer-encoding", b"chunked")]
    ),
}


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("ahead", [False, True], ids=["one by one", "pipelined"])
@pytest.mark.parametrize("name", COMPLETE)
def test_error_behind_a_complete_response_does_not_close_its_connection(
    sockets: tuple[socket.socket, socket.socket], name: str, ahead: bool, http: str
) -> None:
    app, method = COMPLETE[name]
    kept, page = Kept(sockets[0], http=http), blank_page()
    kept.protocol.counts = RequestCounts(page)
    kept.protocol.app = by_path({"/good": sized(b"good")}, app)
    parts = (method + b" / HTTP/1.1\r\nhost: a\r\n\r\n", request(b"GET /good"), request(b"GET /good"))
    for data in (b"".join(parts),) if ahead else parts:
        kept.ask(data)
        kept.loop.pass_time(2)
    assert not kept.wire.closed
    assert b"more" not in kept.wire.written
    first, _, others = kept.wire.written.partition(b"\r\n\r\n")
    assert others.count(b"HTTP/1.1 200 OK") == others.count(b"good") == 2
    assert b"close" not in kept.wire.written.lower()
    if "to HEAD" in name or first[9:12] in (b"204", b"304"):
        assert others.startswith(b"HTTP/1.1 200 OK")
    assert sum(page[tally.STATUS : tally.STATUS + 6]) == 3
    assert (page[tally.BROKEN], page[tally.DISCONNECTED]) == (0, 0)
    kept.loop.pass_time(kept.protocol.timeout_keep_alive)
    assert kept.wire.closed
    kept.close()


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("name", INCOMPLETE)
def test_incomplete_response_is_cut(
    sockets: tuple[socket.socket, socket.socket], name: str, http: str
) -> None:
    kept = Kept(sockets[0], http=http)
    kept.protocol.app = INCOMPLETE[name]
    kept.ask()
    kept.loop.pass_time(2)
    assert kept.wire.closed
    assert not kept.wire.written.endswith(b"0\r\n\r\n")
    kept.close()


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_late_error_does_not_close_the_connection_of_the_next_request(
    sockets: tuple[socket.socket, socket.socket], http: str
) -> None:
    kept = Kept(sockets[0], http=http)
    slow = responding((b"he", True), 2, (b"llo", False), headers=FIVE)
    kept.protocol.app = by_path({"/slow": slow}, responding((b"hello", False), 1, FAILURE, headers=FIVE))
    kept.ask()
    kept.ask(request(b"GET /slow"))
    kept.loop.pass_time(5)
    assert not kept.wire.closed
    assert kept.wire.written.count(b"hello") == 2
    kept.close()


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_connection_closes_as_announced_behind_an_error(
    sockets: tuple[socket.socket, socket.socket], http: str
) -> None:
    kept = Kept(sockets[0], http=http)
    kept.protocol.app = responding((b"hello", True), FAILURE, headers=FIVE)
    kept.ask(request(b"GET /", b"connection: close"))
    kept.loop.pass_time(1)
    assert kept.wire.closed
    assert b"connection: close" in kept.wire.written.lower()
    kept.close()


def by_path(apps: dict[str, Any], otherwise: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> Any:
        return await apps.get(scope["path"], otherwise)(scope, receive, send)

    return app


@pytest.mark.parametrize("http", PARSERS)
def test_head_is_sent_together_with_a_short_body_and_a_long_one_is_not_copied(
    sockets: tuple[socket.socket, socket.socket], http: str
) -> None:
    kept = Kept(sockets[0], http=http)
    for app, writes in ((sized(b"hello"), 1), (responding((b"hello", False)), 2), (sized(LONG), 2)):
        kept.protocol.app = app
        kept.ask()
        assert len(kept.wire.writes) <= writes
        kept.wire.writes.clear()
    kept.close()


@pytest.mark.parametrize("http", PARSERS)
def test_connection_that_has_closed_is_not_left_to_the_garbage_collector(
    sockets: tuple[socket.socket, socket.socket], http: str
) -> None:
    kept = Kept(sockets[0], http=http)
    kept.ask()
    connection = weakref.ref(kept.protocol)
    gc.collect()
    gc.disable()
    try:
        kept.protocol.connection_lost(None)
        kept.loop.pass_time()
        kept.protocol = kept.wire.protocol = None
        assert connection() is None
    finally:
        gc.enable()
    kept.loop.close()


async def test_date_of_a_response_is_never_older_than_its_request(engine: Engine) -> None:
    async with served(engine) as (_server, _, port, _running):
        client = await Client.connect(port)
        end = time.time() + 1.2
        while (asked := time.time()) < end:
            _, headers, _ = await client.get()
            assert int(asked) <= parsedate_to_datetime(headers["date"]).timestamp() <= time.time()
            await asyncio.sleep(0.01)
        client.writer.write(b"\0\r\n\r\n")
        status, headers, _ = await client.answer()
        if engine.http == "httptools":  # otherwise uvicorn sends none
            assert int(asked) <= parsedate_to_datetime(headers["date"]).timestamp() <= time.time()
        assert status == 400
