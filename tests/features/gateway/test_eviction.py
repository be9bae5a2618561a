"""When all connections or descriptors are in use: idle connections are closed for new ones, and nothing else is."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.process import acceptor
from poolctl.features.gateway.process.descriptor_limit import DescriptorLimit, lowest_free
from poolctl.keeper.connection_handover import Connection
from poolctl.routing.route import BreakerRule, Route, Target
from tests.certificates import certificate
from tests.features.gateway.passing_stage import HEAD, Stage, play, until
from tests.features.gateway.proxy_stage import Backend, Wire, ok, route
from tests.features.gateway.test_client_hello import client_hello

BODY = b"hello"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "_AGAIN_SECONDS", 0.01)


async def answered(stage: Stage, sock: socket.socket) -> bool:
    """Whether a whole response arrives on the connection, which is kept."""
    data = b""
    while not data.endswith(BODY):
        piece = await stage.edge.loop.sock_recv(sock, 65536)
        if not piece:
            return False
        data += piece
    return data.startswith(b"HTTP/1.1 200 ")


async def ask(stage: Stage, sock: socket.socket) -> bool:
    await stage.edge.loop.sock_sendall(sock, HEAD)
    return await answered(stage, sock)


async def idle_client(stage: Stage) -> socket.socket:
    """A client that has got a response, and keeps its connection."""
    sock = await stage.connect()
    assert await ask(stage, sock)
    return sock


async def is_closed(stage: Stage, sock: socket.socket) -> bool:
    return not await stage.edge.loop.sock_recv(sock, 1)


@contextmanager
def no_descriptors_left() -> Iterator[list[int]]:
    """The descriptors that take up all that are left."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free() + 1, limits[1]))
    held: list[int] = []
    try:
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            yield held
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in held:
            os.close(fd)


def test_client_used_longest_ago_makes_room_for_a_new_one() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        first, second, third = [await idle_client(stage) for _ in range(3)]
        assert await ask(stage, first)
        fourth = await idle_client(stage)
        assert await is_closed(stage, second)
        fifth = await idle_client(stage)
        assert await is_closed(stage, third)
        for sock in (first, fourth, fifth):
            assert await ask(stage, sock)
        assert stage.edge.evicted == 2

    play(scene, max_connections=3)


def test_client_with_a_request_in_flight_is_left_alone() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(backend: Backend, wire: Wire) -> None:
        while True:
            await backend.request(wire)
            asked.set()
            await answer.wait()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    async def scene(stage: Stage) -> None:
        await stage.route(slow)
        busy = await stage.connect(HEAD)
        await asked.wait()
        late = await stage.connect(HEAD)
        await until(lambda: stage.acceptor._timer)
        answer.set()
        assert await answered(stage, busy)
        assert await answered(stage, late)
        assert await is_closed(stage, busy)

    play(scene, max_connections=1)


def test_client_whose_next_request_waits_to_be_read_is_not_closed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        first, second = [await idle_client(stage) for _ in range(2)]
        first.send(HEAD)
        assert stage.edge.evict_client()
        assert await is_closed(stage, second)
        assert await answered(stage, first)

    play(scene)


def test_silent_client_whose_request_has_just_arrived_is_not_closed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.connect()
        await until(lambda: stage.waiting)
        client.send(HEAD)
        assert not stage.edge.evict_client()
        assert await answered(stage, client)

    play(scene)


def test_client_that_leaves_the_proxy_closes_no_other() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        clients = [await idle_client(stage) for _ in range(2)]
        stage.edge.descriptors.mark = 0
        oldest: Any = next(iter(stage.edge.pool.idle_clients))
        assert oldest._leave(b"", 60.0)
        await until(lambda: stage.waiting)
        for client in clients:
            assert await ask(stage, client)
        assert not stage.edge.evicted

    play(scene, max_connections=2)


def test_client_that_has_not_taken_its_response_is_not_closed() -> None:
    size = 60_000

    async def large(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await wire.some()

    async def scene(stage: Stage) -> None:
        await stage.route(large)
        # Most of the response stays in the gateway.
        stage.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        with client:
            await stage.edge.loop.sock_connect(client, stage.listener.getsockname())
            await stage.edge.loop.sock_sendall(client, HEAD)
            await until(lambda: len(stage.edge.pool.clients) == len(stage.edge.pool.idle_clients) == 1)
            assert not stage.edge.evict_client()
            received = b""
            while not received.endswith(bytes(size)):
                received += await stage.edge.loop.sock_recv(client, 65536)

    play(scene)


def test_idle_clients_make_room_before_the_last_descriptors_are_in_use() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        first, second = [await idle_client(stage) for _ in range(2)]
        stage.edge.descriptors = DescriptorLimit(2**20)
        stage.edge.descriptors.mark = lowest_free() + 2  # the client's and the gateway's
        third = await idle_client(stage)
        assert not stage.edge.evicted
        await idle_client(stage)
        assert await is_closed(stage, first)
        assert await ask(stage, second)
        await idle_client(stage)
        assert await is_closed(stage, third)
        assert [kind for kind, _ in stage.events] == ["gateway short of descriptors"]

    play(scene)


def test_backends_leave_descriptors_for_the_orders_of_the_supervisor() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.connect()
        await until(lambda: stage.waiting)
        limit = stage.edge.descriptors
        limit.mark, limit.limit = 0, lowest_free() + 10
        await stage.edge.loop.sock_sendall(client, HEAD)
        assert (await stage.read_head(client)).startswith(b"HTTP/1.1 503 ")
        assert not backend.connections

    play(scene)


def test_descriptors_above_the_mark_are_not_given_to_clients_while_lower_ones_become_free() -> None:
    limit = DescriptorLimit(2**20)
    highest = max(int(each) for each in os.listdir("/proc/self/fd"))
    fillers = []  # of the gaps between descriptors that others have left open
    held: list[int] = []
    try:
        while lowest_free() < highest:
            fillers.append(os.dup(0))
        limit.mark = lowest_free() + 20
        for number in range(100):
            held.append(os.dup(0))
            if limit.few():
                os.close(held.pop(number % 10))
        assert max(held) <= limit.mark
    finally:
        for fd in [*fillers, *held]:
            os.close(fd)


def test_silent_client_makes_room_before_an_idle_one_and_that_before_an_idle_backend() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        idle = await idle_client(stage)
        silent = await stage.connect()
        await until(lambda: stage.waiting)
        assert stage.edge.evict()
        assert await is_closed(stage, silent)
        assert stage.edge.evict()
        assert await is_closed(stage, idle)
        assert stage.edge.pool._idle
        assert stage.edge.evict()
        assert not stage.edge.evict()
        assert await idle_client(stage)
        assert backend.connections == 2

    play(scene)


def test_new_client_is_answered_when_no_descriptor_is_left() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        idle = [await idle_client(stage) for _ in range(3)]
        late = socket.socket()
        late.setblocking(False)
        with no_descriptors_left():
            await stage.edge.loop.sock_connect(late, stage.listener.getsockname())
            assert await ask(stage, late)
        assert await is_closed(stage, idle[0])
        late.close()

    play(scene)


def test_connection_to_a_backend_gets_the_descriptor_of_an_idle_client() -> None:
    async def scene(stage: Stage) -> None:
        first = await stage.backend(ok)
        with socket.create_server(("127.0.0.1", 0)) as second:
            port = second.getsockname()[1]
            other = Route(alias="other", host="other", to=(Target(url=f"http://127.0.0.1:{port}"),))
            stage.routes(route(first), other)
            idle, client = [await idle_client(stage) for _ in range(2)]
            # Idle backends are not needed for it; accepting as well would take one more here.
            with no_descriptors_left():
                await stage.edge.loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: other\r\n\r\n")
                assert await is_closed(stage, idle)
                await until(lambda: select.select([second], [], [], 0)[0])
            accepted, _ = second.accept()
            with accepted:
                accepted.setblocking(False)
                assert await stage.edge.loop.sock_recv(accepted, 1000)
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                assert await answered(stage, client)

    play(scene)


def test_backend_is_not_blamed_for_a_descriptor_that_is_missing() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok, breaker=BreakerRule(failures=1, open_seconds=60.0))
        client = await stage.connect()
        await until(lambda: stage.waiting)
        with no_descriptors_left():
            await stage.edge.loop.sock_sendall(client, HEAD)
            refusal = b""
            while not refusal.endswith(b"503 Service Unavailable\n"):
                refusal += await stage.edge.loop.sock_recv(client, 1000)
        assert b"Retry-After: 1\r\n" in refusal
        assert await ask(stage, client)
        assert stage.edge.counts.route("app").errors == {"refused": 1}

    play(scene)


def test_connection_that_is_given_back_counts_among_the_open_ones() -> None:
    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        await stage.route(ok)
        proxied = list(stage.edge.table)
        stage.route_to("users", alias="users", host="users.example.com")
        stage.routes(*proxied, *stage.edge.table)
        idle = await idle_client_of(stage, b"elsewhere")

        async def given_back(data: bytes) -> socket.socket:
            client = await stage.connect(HEAD)
            taken = await pair.take()
            taken.recv(1000)
            stage.give_back(taken, data)
            taken.close()
            return client

        request = b"GET / HTTP/1.1\r\nHost: elsewhere\r\n\r\n"
        first = await given_back(request)
        assert await is_closed(stage, idle)
        assert await answered(stage, first)

    play(scene, max_connections=1)


async def idle_client_of(stage: Stage, host: bytes) -> socket.socket:
    sock = await stage.connect(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
    assert await answered(stage, sock)
    return sock


def test_connection_that_is_given_back_gets_503_when_none_is_idle() -> None:
    async def scene(stage: Stage) -> None:
        stage.route_to("users")
        pending = await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting and not stage.edge.passing.waiting._silent)
        for data in (HEAD, b""):
            ours, theirs = _connected()
            stage.give_back(theirs, data)
            theirs.close()
            response = await stage.read(ours)
            assert response.startswith(b"HTTP/1.1 503 ") if data else not response
            assert (b"Retry-After: 1\r\n" in response) is bool(data)
            ours.close()
            await until(lambda: stage.waiting == 1)
        pending.close()

    play(scene, max_connections=1)


def _connected() -> tuple[socket.socket, Connection]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        fd = listener.accept()[0].detach()
    ours.setblocking(False)
    return ours, Connection(fileno=fd)


def test_oldest_of_too_many_handshakes_is_given_up(tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in certificate(tmp_path)]

    async def scene(stage: Stage) -> None:
        stage.edge.certificates.put("127.0.0.1:0", (), {}, contents)
        stage.edge.descriptors.of_handshakes = 2
        begun = []
        for count in (1, 2, 2):
            begun.append(await stage.connect(client_hello("localhost")))
            await until(lambda count=count: stage.edge.pool.arriving == count)
        await stage.read(begun[0])
        await until(lambda: len(stage.edge.pool.handshakes) == 2)
        assert stage.edge.counts.snapshot()["refused"] == {"tls": 1}

    play(scene, tls=True)
