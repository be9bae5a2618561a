"""Connections to backends that are kept for further requests, and all clients of the proxy."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from poolctl.features.gateway.process.proxy import connection_pool
from tests.certificates import certificate
from tests.features.gateway.proxy_stage import Backend, Stage, Wire, ok, play, route
from tests.features.gateway.test_client_connection import status_of

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
SOON = 0.1


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
        monkeypatch.setattr(connection_pool, "IDLE_SECONDS", SOON)
        go_on.set()
        for client in clients:
            await client.response()
        assert "2 idle" in repr(stage.edge.pool)
        row = stage.edge.backends.snapshot()[0]
        assert row["connections"] == 2
        while "0 idle" not in repr(stage.edge.pool):
            await asyncio.sleep(0.01)
        assert stage.edge.backends.snapshot()[0]["connections"] == 0

    play(scene)
