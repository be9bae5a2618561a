"""Proxied connections that an application still shares: what it does to them holds up no other client."""

from __future__ import annotations

import asyncio
import socket
import struct

from poolctl.features.gateway.process.proxy.serving import serve
from poolctl.keeper.connection_handover import Connection
from tests.features.gateway.proxy_stage import DEADLINE, Backend, Stage, Wire, _pair, ok, play

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
SIZE = 8_000_000


async def large(backend: Backend, wire: Wire) -> None:
    await backend.request(wire)
    await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + b"x" * SIZE)


async def echo(backend: Backend, wire: Wire) -> None:
    while True:
        head = await backend.request(wire)
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + await wire.exactly(size))


async def shared(stage: Stage, received: bytes = b"") -> tuple[socket.socket, socket.socket]:
    """A client's connection that is proxied, and the application's duplicate of the other end."""
    ours, theirs = _pair()
    application = theirs.dup()
    serve(stage.edge, Connection(fileno=theirs.detach()), received)
    while not stage.edge.pool.clients:
        await asyncio.sleep(0)
    return ours, application


def test_application_that_makes_a_connection_block_holds_up_no_other_client() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(large)
        ours, application = await shared(stage)
        with ours, application:
            application.setblocking(True)
            ours.send(GET)
            while not backend.heads:
                await asyncio.sleep(0)
            other = await stage.client()
            await other.send(GET)
            assert (await other.response())[1] == b"x" * SIZE
            # The first client reads its response after all.
            reader, writer = await asyncio.open_connection(sock=ours)
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
            assert await asyncio.wait_for(reader.readexactly(SIZE), DEADLINE) == b"x" * SIZE
            writer.close()

    play(scene)


def test_connection_whose_close_would_wait_is_closed_promptly() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(large)
        ours, application = await shared(stage)
        with ours:
            application.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 300))
            application.setblocking(True)
            ours.send(GET)
            while not backend.heads:
                await asyncio.sleep(0)
            application.close()
            for client in list(stage.edge.pool.clients):
                client.end_now()
            while stage.edge.pool.clients:
                await asyncio.sleep(0)

    play(scene)


def test_bodies_in_both_directions_and_later_requests_are_served() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(echo)
        head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        ours, application = await shared(stage, received=head % 3)
        with application:
            reader, writer = await asyncio.open_connection(sock=ours)
            wire = Wire(reader, writer)
            await wire.send(b"abc")
            assert (await wire.response())[1] == b"abc"
            body = b"0123456789" * 300_000
            writer.write(head % len(body) + body)
            assert (await wire.response())[1] == body
            wire.close()
            while stage.edge.pool.clients:
                await asyncio.sleep(0)

    play(scene)


def test_last_response_is_sent_before_the_connection_is_closed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        ours, application = await shared(stage)
        application.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        writer.write(GET + b"no request\r\n\r\n")
        received = await asyncio.wait_for(reader.read(), DEADLINE)
        assert received.count(b"HTTP/1.1 200") == received.count(b"HTTP/1.1 400") == 1
        writer.close()

    play(scene)
