"""What a worker is asked beside its traffic, and a worker that rests."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolctl.worker.worker_process import IdleTimer
from tests.certificates import certificate
from tests.serving import ENGINES, Client, Engine, Served, served


@pytest.fixture(params=ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def asking(ours: socket.socket, context: ssl.SSLContext | None = None) -> Client:
    name = "anything" if context is not None else None
    return Client(*await asyncio.open_connection(sock=ours, ssl=context, server_hostname=name))


async def answers(served_: Served, seconds: float = 0.15) -> bool:
    client = await Client.connect(served_.port)
    await client.send()
    waiting = asyncio.ensure_future(client.answer())
    done, _ = await asyncio.wait({waiting}, timeout=seconds)
    if not done:
        waiting.cancel()
    return bool(done)


def test_probe_is_answered_like_a_request_and_not_counted(
    engine: Engine, pair: tuple[socket.socket, socket.socket]
) -> None:
    async def scenario() -> None:
        config = {"limit_max_requests": 2, "timeout_keep_alive": 0}
        async with served(engine, config=config) as (server, app, port, running):
            told: list[bool] = []
            idleness = IdleTimer(server.server_state, 0.1, told.append)
            server.answer_probe({"kind": "http"}, pair[1])
            client = await asking(pair[0])
            for _ in range(5):
                assert (await client.get())[0] == 200
            assert app.scopes[-1]["server"] == ("127.0.0.1", port)
            assert app.scopes[-1]["client"] == ("127.0.0.1", 0)
            assert app.scopes[-1]["scheme"] == "http"
            assert server.server_state.total_requests == 0
            while not told:
                await client.get()
                await asyncio.sleep(0)
            assert told == [True]
            assert not running.done()
            idleness.end()
            server.drain()
            assert await client.at_end()
            await running

    engine.run(scenario())


def test_probe_of_a_tls_server_may_use_tls_or_not(engine: Engine, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    async def scenario() -> None:
        async with served(engine, secure=context) as (server, app, _port, _running):
            for plain in (False, True):
                ours, theirs = socket.socketpair()
                server.answer_probe({"kind": "http", "plain": plain}, theirs)
                client = await asking(ours, None if plain else trusting)
                assert (await client.get())[0] == 200
                assert app.scopes[-1]["scheme"] == "https"
                client.close()

    engine.run(scenario())


def test_echo_is_answered_while_the_loop_runs(
    engine: Engine, pair: tuple[socket.socket, socket.socket]
) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, app, _port, _running):
            server.answer_probe({"kind": "echo"}, pair[1])
            client = await asking(pair[0])
            client.writer.write(b"?")
            assert await client.reader.readexactly(1) == b"?"
            assert app.scopes == []

    engine.run(scenario())


def test_worker_that_starts_out_of_rotation_accepts_when_put_into_it(
    engine: Engine, pair: tuple[socket.socket, socket.socket]
) -> None:
    async def scenario() -> None:
        async with served(engine, resting=True) as it:
            it.server.answer_probe({"kind": "http"}, pair[1])
            assert (await (await asking(pair[0])).get())[0] == 200
            waiting = await Client.connect(it.port)
            await waiting.send()
            assert not await answers(it)
            it.server.set_accepting(True)
            assert (await waiting.answer())[0] == 200
            it.server.set_accepting(False)
            it.server.set_accepting(True)
            assert await answers(it, 10)

    engine.run(scenario())


def test_resting_worker_drains_its_clients_and_accepts_no_new_ones(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as it:
            client = await Client.connect(it.port)
            await client.get()
            it.server.set_accepting(False)
            assert (await client.get())[1]["connection"] == "close"
            while not it.server.acceptor.settled:  # what connects meanwhile is still answered
                await asyncio.sleep(0)
            assert not await answers(it)
            it.server.rotate(False)
            it.server.set_accepting(True)
            other = await Client.connect(it.port)
            assert (await other.get())[1]["connection"] == "close"  # out of rotation all the same
            it.server.rotate(True)
            assert "connection" not in (await (await Client.connect(it.port)).get())[1]

    engine.run(scenario())


def test_worker_that_is_stopped_while_out_of_rotation_ends(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, resting=True) as (server, _app, _port, running):
            server.set_accepting(True)
            server.stop()
            await asyncio.wait_for(running, 15)
            assert server.servers == [] or not any(each.is_serving() for each in server.servers)

    engine.run(scenario())
