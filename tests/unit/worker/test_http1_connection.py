"""A draining worker's connections go on in another one, and their clients see nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from websockets.asyncio.client import connect

from poolctl.keeper import connection_handover
from poolctl.worker.serving import http1_connection
from poolctl.worker.serving.accepting import AdoptionPair
from tests.serving import ENGINES, App, Client, Engine, Pair, Served, accepted, leaving, served, turns, until

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
