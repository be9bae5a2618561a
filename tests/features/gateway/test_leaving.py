"""Connections that leave the proxy between two requests: to a worker, or to wait where idle ones cost little."""

from __future__ import annotations

import asyncio
import socket

import pytest

from poolctl.features.gateway.process.proxy import client_connection
from poolctl.features.gateway.process.proxy.client_connection import MOST_PASSABLE, ClientConnection
from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.features.gateway.process.waiting_connections import WaitingConnections
from poolctl.keeper.connection_handover import Connection
from tests.features.gateway.passing_stage import Pair, Stage, app_route, play, until
from tests.features.gateway.proxy_stage import Backend, ok, route

OTHER = b"GET / HTTP/1.1\r\nHost: other\r\n\r\n"
USERS = b"GET /v1 HTTP/1.1\r\nHost: users\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\nhello"
# What is waited for comes at once; a connection is idle after this.
SOON = 0.1


async def proxied_and_passed(stage: Stage) -> tuple[Backend, Pair]:
    """A backend that every request can be proxied to, and the pair of the server to which those for users can go."""
    backend = await stage.backend(ok)
    stage.routes(app_route("users", host="users"), route(backend, host="other", alias="other"))
    bind = backend.url.removeprefix("http://")
    facts = {"users": ServerFacts(name="users", bind=bind, state="running", ready=True)}
    stage.edge.backends.apply(list(stage.edge.table), facts)
    return backend, stage.server("users")


async def ask(stage: Stage, client: socket.socket, request: bytes) -> None:
    """Send the request, and read the answer to it."""
    await stage.edge.loop.sock_sendall(client, request)
    await answers(stage, client, 1)


async def answers(stage: Stage, client: socket.socket, count: int) -> None:
    data = b""
    while len(data) < count * len(ANSWER):
        data += await stage.edge.loop.sock_recv(client, count * len(ANSWER) - len(data))
    assert data == count * ANSWER


async def waiting_outside(stage: Stage) -> socket.socket:
    """A client whose connection has left the proxy after a request that was proxied."""
    client = await stage.connect(OTHER)
    await answers(stage, client, 1)
    await until(lambda: stage.waiting)
    return client


async def has_left(stage: Stage) -> None:
    await until(lambda: not stage.edge.pool.clients)


def test_connection_goes_to_a_worker_after_some_requests_that_could_have_been_passed() -> None:
    async def scene(stage: Stage) -> None:
        backend, pair = await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        for _ in range(MOST_PASSABLE):
            await ask(stage, client, USERS)
        await stage.edge.loop.sock_sendall(client, USERS)
        taken = await pair.take()
        assert (taken.received, taken.routed.hops, taken.routed.route) == (USERS, 0, "app")
        assert taken.getpeername() == client.getsockname()
        await has_left(stage)
        await stage.edge.loop.run_in_executor(None, taken.sendall, ANSWER)
        await answers(stage, client, 1)
        assert len(backend.heads) == 1 + MOST_PASSABLE
        taken.close()
        assert await stage.read(client) == b""  # the gateway has no descriptor left

    play(scene)


def test_connection_whose_requests_take_both_ways_in_turn_stays() -> None:
    async def scene(stage: Stage) -> None:
        _, pair = await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        for _ in range(3):
            for request in [OTHER, *[USERS] * MOST_PASSABLE]:
                await ask(stage, client, request)
        assert pair.take_now() is None

    play(scene)


def test_pipelined_requests_are_answered_in_order_if_the_connection_goes_to_a_worker_meanwhile() -> None:
    async def scene(stage: Stage) -> None:
        _, pair = await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        data = bytearray()

        async def read() -> None:
            while True:
                data.extend(await stage.edge.loop.sock_recv(client, 65536))

        reading = asyncio.create_task(read())
        await stage.edge.loop.sock_sendall(client, USERS * 9)
        taken = await until(lambda: pair.take_now() or len(data) == 9 * len(ANSWER))
        received = taken.received if isinstance(taken, Connection) else b""
        proxied = 9 - received.count(USERS)
        await until(lambda: len(data) == proxied * len(ANSWER))
        assert (data, received) == (proxied * ANSWER, (9 - proxied) * USERS)
        reading.cancel()
        if isinstance(taken, Connection):
            taken.close()

    play(scene)


def test_server_without_a_pair_keeps_the_connection_in_the_proxy() -> None:
    async def scene(stage: Stage) -> None:
        await proxied_and_passed(stage)
        stage.edge.passing.withdraw("users", lambda: None)
        client = await stage.connect(USERS)
        await answers(stage, client, 1)
        for _ in range(2 * MOST_PASSABLE):
            await ask(stage, client, USERS)
        assert len(stage.edge.pool.clients) == 1

    play(scene)


def test_idle_connection_waits_outside_and_its_next_request_takes_its_own_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "IDLE_SECONDS", SOON)

    async def scene(stage: Stage) -> None:
        _, pair = await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        for _ in range(2):
            await until(lambda: stage.waiting)
            await has_left(stage)
            await ask(stage, client, OTHER)
        await until(lambda: stage.waiting)
        await stage.edge.loop.sock_sendall(client, USERS)
        taken = await pair.take()
        assert taken.recv(1000) == USERS
        taken.close()

    play(scene)


def test_connection_that_waits_outside_is_closed_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "IDLE_SECONDS", SOON)

    async def scene(stage: Stage) -> None:
        await proxied_and_passed(stage)
        client = await waiting_outside(stage)
        assert await stage.read(client) == b""
        assert not stage.waiting

    play(scene, keep_alive_seconds=3 * SOON)


def test_slow_head_on_a_connection_that_waited_outside_gets_408_after_the_time_for_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "IDLE_SECONDS", SOON)

    async def scene(stage: Stage) -> None:
        await proxied_and_passed(stage)
        client = await waiting_outside(stage)
        await stage.edge.loop.sock_sendall(client, OTHER[:9])
        assert (await stage.read(client)).startswith(b"HTTP/1.1 408 ")

    play(scene, head_seconds=3 * SOON, keep_alive_seconds=1000.0)


def test_connection_of_a_worker_stays_one_that_an_application_may_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "IDLE_SECONDS", SOON)

    async def scene(stage: Stage) -> None:
        _, pair = await proxied_and_passed(stage)
        client = await stage.connect(USERS)
        taken = await pair.take()
        await stage.edge.loop.run_in_executor(None, taken.recv, len(USERS))
        stage.give_back(taken, OTHER)
        await answers(stage, client, 1)
        await until(lambda: stage.waiting)
        (waiting,) = stage.edge.passing.waiting._connections.values()
        assert isinstance(waiting.sock, Connection)
        # The application keeps its duplicate, and makes it blocking: the gateway does not wait for all that.
        taken.setblocking(True)
        await ask(stage, client, OTHER)
        taken.close()

    play(scene)


def test_idle_connection_that_would_take_the_place_of_another_stays() -> None:
    async def scene(stage: Stage) -> None:
        await proxied_and_passed(stage)
        stage.edge.passing.waiting = WaitingConnections(most=1)
        first, second = await stage.connect(OTHER), await stage.connect(OTHER)
        for client in (first, second):
            await answers(stage, client, 1)
        for connection in list(stage.edge.pool.clients):
            assert isinstance(connection, ClientConnection)
            connection._idle()
        assert (stage.waiting, len(stage.edge.pool.clients)) == (1, 1)
        for client in (first, second):
            await ask(stage, client, OTHER)

    play(scene)


def test_connection_with_unsent_bytes_does_not_leave() -> None:
    async def scene(stage: Stage) -> None:
        await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        (connection,) = stage.edge.pool.clients
        assert isinstance(connection, ClientConnection)
        size = 32 * 1024 * 1024  # more than the kernel takes
        connection._transport.write(bytes(size))
        connection._idle()
        assert len(stage.edge.pool.clients) == 1
        while size:
            size -= len(await stage.edge.loop.sock_recv(client, 1 << 20))
        connection._idle()
        await until(lambda: stage.waiting)

    play(scene)
