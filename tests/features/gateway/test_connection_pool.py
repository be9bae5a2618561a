"""Connections to backends that are kept for further requests, and all clients of the proxy."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.process.proxy import connection_pool
from poolctl.features.gateway.process.proxy.backend_connection import BackendConnection
from poolctl.features.gateway.process.proxy.connection_pool import ProxyConnections
from poolctl.features.gateway.process.settings import Endpoint
from tests.certificates import certificate
from tests.features.gateway.proxy_stage import DEADLINE, Backend, Stage, Wire, ok, play, route
from tests.features.gateway.test_client_connection import status_of

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def test_closed_idle_connection_costs_no_request_that_may_be_repeated() -> None:
    async def once(backend: Backend, wire: Wire) -> None:
        """Answers one request, and closes when it has read the beginning of another."""
        await backend.request(wire)
        await wire.send(OK + b"Content-Length: 2\r\n\r\nok")
        await wire.some()

    async def scene(stage: Stage) -> None:
        backend = await stage.route(once)
        client = await stage.client()
        for number in range(3):
            await client.send(GET)
            assert await status_of(client) == 200
            assert backend.connections == number + 1
        await client.send(POST + b"Content-Length: 1\r\n\r\na")
        assert await status_of(client) == 502  # it may have been acted upon
        assert backend.connections == 3

    play(scene)


def test_post_is_not_sent_on_a_connection_that_the_backend_has_closed() -> None:
    async def once(backend: Backend, wire: Wire) -> None:
        head = await backend.request(wire)
        if b"POST" in head:
            await wire.exactly(1)
        await wire.send(OK + b"Content-Length: 2\r\n\r\nok")

    async def scene(stage: Stage) -> None:
        backend = await stage.route(once)
        client = await stage.client()
        for number in range(5):
            await client.send(POST + b"Content-Length: 1\r\n\r\na")
            assert await status_of(client) == 200
            assert backend.connections == number + 1

    play(scene)


@pytest.mark.parametrize("trusted", [False, True])
def test_certificates_of_backends_are_verified(
    tmp_path: Path, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(stage: Stage) -> None:
        cert, key = certificate(tmp_path)
        if trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        backend = await stage.backend(ok, context=context)
        stage.routes(route(backend))
        client = await stage.client()
        for _ in range(2):
            await client.send(GET)
            assert (await client.response())[0].startswith(b"HTTP/1.1 200 " if trusted else b"HTTP/1.1 502 ")
        assert len(backend.heads) == (2 if trusted else 0)
        assert backend.connections <= 1

    play(scene)


def test_idle_connections_to_backends_are_few_and_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_pool, "MOST_IDLE", 2)

    async def scene(stage: Stage) -> None:
        go_on = asyncio.Event()

        async def later(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await go_on.wait()
            await wire.send(OK + b"Content-Length: 0\r\n\r\n")
            await ok(backend, wire)

        backend = await stage.route(later)
        clients = [await stage.client() for _ in range(5)]
        for client in clients:
            await client.send(GET)
        while len(backend.heads) < 5:
            await asyncio.sleep(0)
        monkeypatch.setattr(connection_pool, "IDLE_SECONDS", 1000.0)
        go_on.set()
        for client in clients:
            await client.response()
        assert "2 idle" in repr(stage.edge.pool)
        row = stage.edge.backends.snapshot()[0]
        assert row["connections"] == 2
        for each in [*itertools.chain(*stage.edge.pool._idle.values())]:
            assert 900 < each.idle_until - stage.edge.loop.time() <= 1000
            each._timer.deadline = 0.0
            each._timer._on_loop_timer()
        while "0 idle" not in repr(stage.edge.pool):
            await asyncio.sleep(0.01)
        assert stage.edge.backends.snapshot()[0]["connections"] == 0

    play(scene)


class Client:
    """A client's connection that records what the pool does to it."""

    def __init__(self, closes: bool = True) -> None:
        self.closes = closes
        self.calls: list[str] = []

    def drain(self) -> None:
        self.calls.append("drain")

    def end_now(self) -> None:
        self.calls.append("end")

    def close_idle(self) -> bool:
        self.calls.append("close")
        return self.closes


def with_pool(scene: Callable[[ProxyConnections], Coroutine[Any, Any, None]]) -> None:
    async def work() -> None:
        pool = ProxyConnections()
        try:
            async with asyncio.timeout(DEADLINE):
                await scene(pool)
        finally:
            pool.close()

    asyncio.run(work())


def test_clients_are_idle_only_before_their_first_bytes_and_closed_in_that_order() -> None:
    async def scene(pool: ProxyConnections) -> None:
        first, busy, second = Client(), Client(), Client()
        for client in (first, second):
            pool.add_client(client, idle=True)
        pool.add_client(busy, idle=False)
        assert repr(pool) == "<ProxyConnections: 0 idle, 3 clients>"
        assert pool.close_idle_client()
        assert (first.calls, second.calls) == (["close"], [])
        assert pool.clients == {busy, second}
        assert pool.close_idle_client()
        assert not pool.close_idle_client()
        assert busy.calls == []

    with_pool(scene)


def test_client_with_unread_bytes_is_passed_over_and_becomes_the_last() -> None:
    async def scene(pool: ProxyConnections) -> None:
        unread, idle = Client(closes=False), Client()
        for client in (unread, idle):
            pool.add_client(client, idle=True)
        assert pool.close_idle_client()
        assert [*pool.idle_clients] == [unread]
        assert not pool.close_idle_client()
        assert pool.clients == {unread}

    with_pool(scene)


def test_end_of_the_last_client_is_waited_for_within_a_time() -> None:
    async def scene(pool: ProxyConnections) -> None:
        assert await pool.wait_until_no_clients(0.0)
        clients = [Client(), Client()]
        for client in clients:
            pool.add_client(client, idle=False)
        assert not await pool.wait_until_no_clients(0.001)
        waiting = asyncio.ensure_future(pool.wait_until_no_clients(DEADLINE))
        await asyncio.sleep(0)
        pool.remove_client(clients[0])
        assert not waiting.done()
        pool.remove_client(clients[1])
        pool.remove_client(clients[1])
        assert await waiting

    with_pool(scene)


def test_close_ends_clients_and_tasks() -> None:
    async def scene(pool: ProxyConnections) -> None:
        client = Client()
        pool.add_client(client, idle=False)
        task = pool.start_task(asyncio.sleep(1000))
        done = pool.start_task(asyncio.sleep(0))
        await done
        assert pool._tasks == {task}
        pool.close()
        assert client.calls == ["end"]
        await asyncio.wait([task])
        assert task.cancelled()

    with_pool(scene)


class Connections:
    """Idle connections to two servers that keep them."""

    def __init__(self, pool: ProxyConnections) -> None:
        self.pool = pool

    async def begin(self) -> Connections:
        self.servers = [await asyncio.start_server(self.serve, "127.0.0.1", 0) for _ in range(2)]
        self.endpoints = [
            Endpoint("tcp", "127.0.0.1", each.sockets[0].getsockname()[1]) for each in self.servers
        ]
        return self

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        finally:
            writer.close()

    async def idle(self, to: int, count: int = 1) -> list[BackendConnection]:
        made = [await self.pool.open_backend_connection(self.endpoints[to]) for _ in range(count)]
        for each in made:
            self.pool.give_back(each)
        return made

    async def end(self) -> None:
        self.pool.close_idle_backend_connections()
        for each in self.servers:
            each.close()
        await asyncio.sleep(0)


def with_connections(
    scene: Callable[[ProxyConnections, Connections], Coroutine[Any, Any, None]],
) -> None:
    async def work(pool: ProxyConnections) -> None:
        connections = await Connections(pool).begin()
        try:
            await scene(pool, connections)
        finally:
            await connections.end()
            for _ in range(10):
                await asyncio.sleep(0)

    with_pool(work)


def test_last_used_connection_to_the_endpoint_is_taken_first() -> None:
    async def scene(pool: ProxyConnections, connections: Connections) -> None:
        first, second = await connections.idle(0, 2)
        (other,) = await connections.idle(1)
        one, two = connections.endpoints
        assert first.endpoint == one
        assert pool.take(one, certain=True) is second
        assert pool.take(one, certain=False) is first
        assert pool.take(one, certain=False) is None
        assert pool.take(two, certain=False) is other

    with_connections(scene)


def test_connection_that_is_idle_longest_is_closed_for_others() -> None:
    async def scene(pool: ProxyConnections, connections: Connections) -> None:
        assert not pool.close_idle_backend()
        (first,) = await connections.idle(0)
        (second,) = await connections.idle(1)
        (third,) = await connections.idle(0)
        for number, each in enumerate((first, second, third)):
            each._timer.deadline = float(number)
        assert pool.close_idle_backend()
        assert [each._transport.is_closing() for each in (first, second, third)] == [True, False, False]
        assert pool.close_idle_backend()
        assert [each._transport.is_closing() for each in (first, second, third)] == [True, True, False]

    with_connections(scene)


def test_connections_to_one_backend_are_closed_and_no_others() -> None:
    async def scene(pool: ProxyConnections, connections: Connections) -> None:
        closed = await connections.idle(0, 2)
        (kept,) = await connections.idle(1)
        pool.close_idle_to(connections.endpoints[0])
        pool.close_idle_to(connections.endpoints[0])
        assert all(each._transport.is_closing() for each in closed)
        assert pool.take(connections.endpoints[1], certain=False) is kept

    with_connections(scene)


def test_superfluous_connection_is_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_pool, "MOST_IDLE", 2)

    async def scene(pool: ProxyConnections, connections: Connections) -> None:
        made = await connections.idle(0, 3)
        assert [each._transport.is_closing() for each in made] == [False, False, True]

    with_connections(scene)


def test_certificates_of_other_hosts_are_verified_and_those_of_the_pools_servers_are_not() -> None:
    async def scene(pool: ProxyConnections) -> None:
        other = pool._context(Endpoint("tcp", "a.test", 443, tls=True, server_name="a.test"))
        own = pool._context(Endpoint("tcp", "127.0.0.1", 443, tls=True))
        assert (other.verify_mode, other.check_hostname) == (ssl.CERT_REQUIRED, True)
        assert (own.verify_mode, own.check_hostname) == (ssl.CERT_NONE, False)
        assert pool._context(Endpoint("tcp", "b.test", 443, tls=True, server_name="b.test")) is other

    with_pool(scene)
