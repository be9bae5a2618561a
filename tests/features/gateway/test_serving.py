"""Taking over clients' sockets, TLS towards clients, and the end of all connections."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.gateway.process.proxy import client_connection
from poolctl.features.gateway.process.proxy.serving import SharedSocketTransport, drain_clients, start_serving
from poolctl.features.gateway.process.tls import CertificatesByListener
from poolctl.keeper.connection_handover import Connection
from tests.certificates import certificate
from tests.features.gateway import passing_stage
from tests.features.gateway.passing_stage import until
from tests.features.gateway.proxy_stage import DEADLINE, Backend, Stage, Wire, _pair, ok, play
from tests.features.gateway.test_tls import client_hello

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: %b\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"
CLOSE_1012 = b"\x88\x02\x03\xf4"
SOON = 0.1


def test_idle_connections_end_while_draining_and_others_after_their_response(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "QUIET_SECONDS", SOON)

    async def scene(stage: Stage) -> None:
        go_on = asyncio.Event()

        async def later(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await go_on.wait()
            await wire.send(OK + b"Content-Length: 2\r\n\r\nok")

        backend = await stage.route(later)
        idle, busy = await stage.client(), await stage.client()
        await busy.send(GET)
        while not backend.heads:
            await asyncio.sleep(0)
        stage.edge.drain_connections()
        draining = asyncio.create_task(drain_clients(stage.edge, 20.0))
        assert await idle.rest() == b""
        go_on.set()
        head, body = await busy.response()
        assert b"\r\nConnection: close\r\n" in head
        assert body == b"ok"
        await asyncio.wait_for(draining, 20)
        assert not stage.edge.pool.clients

    play(scene)


@pytest.mark.parametrize("split", [False, True])
def test_websocket_ends_with_1012_when_the_time_for_draining_is_over(
    monkeypatch: pytest.MonkeyPatch, split: bool
) -> None:
    monkeypatch.setattr(client_connection, "CLOSE_FRAME_SECONDS", DEADLINE)

    async def scene(stage: Stage) -> None:
        over = asyncio.Event()

        async def chatting(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await wire.send(SWITCHING % b"websocket" + b"\x81\x05" + (b"he" if split else b"hello"))
            if split:
                await over.wait()
                await wire.send(b"llo\x81\x05again")
            await wire.rest()

        await stage.route(chatting)
        client = await stage.client()
        await client.send(UPGRADE % b"websocket")
        await client.head()
        await client.exactly(4 if split else 7)
        stage.edge.drain_connections()
        draining = asyncio.create_task(drain_clients(stage.edge, SOON))
        connection = next(iter(stage.edge.pool.clients))
        while not connection._frames.ending:
            await asyncio.sleep(0.01)
        over.set()
        assert await client.exactly(7 if split else 4) == (b"llo" if split else b"") + CLOSE_1012
        client.close()
        await asyncio.wait_for(draining, 20)

    play(scene)


def authority(*certificates: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for each in certificates:
        context.load_verify_locations(each)
    return context


@pytest.mark.slow
def test_tls_uses_the_certificate_of_the_name_and_a_renewed_one_at_once(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        made = {name: certificate(tmp_path, name) for name in ("a.example", "b.example")}
        certificates = CertificatesByListener()
        for name, paths in made.items():
            certificates.put(":443", [name], {}, [path.read_bytes() for path in paths])
        for name in ("a.example", "b.example"):
            client = await tls_client(stage, certificates, name, authority(made[name][0]))
            for _ in range(2):
                await client.send(GET)
                assert (await client.response())[1] == b"hello"
        before = client.writer.get_extra_info("peercert")["serialNumber"]
        renewed = certificate(tmp_path, "b.example")
        certificates.put(":443", ["b.example"], {}, [path.read_bytes() for path in renewed])
        later = await tls_client(stage, certificates, "b.example", authority(renewed[0]))
        assert later.writer.get_extra_info("peercert")["serialNumber"] != before
        await client.send(GET)  # the connection with the former one goes on
        assert (await client.response())[1] == b"hello"
        with pytest.raises(ssl.SSLError):
            certificates.put(
                ":443", ["b.example"], {}, [renewed[0].read_bytes(), made["a.example"][1].read_bytes()]
            )

    async def tls_client(
        stage: Stage, certificates: CertificatesByListener, name: str, trust: ssl.SSLContext
    ) -> Wire:
        context = certificates.context(":443", "")
        assert context is not None
        return await stage.client(context=context, ssl=trust, server_hostname=name)

    play(scene)


def test_requests_over_tls_are_reported_as_such(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        cert, key = certificate(tmp_path)
        certificates = CertificatesByListener()
        certificates.put("x", [], {}, [cert.read_bytes(), key.read_bytes()])
        client = await stage.client(
            context=certificates.context("x", ""), ssl=authority(cert), server_hostname="localhost"
        )
        await client.send(GET)
        await client.response()
        assert b"\r\nX-Forwarded-Proto: https\r\n" in backend.heads[0]
        assert stage.edge.pool.arriving == 0

    play(scene)


@pytest.mark.slow
def test_bodies_over_tls_that_are_read_at_once_are_not_mixed(tmp_path: Path) -> None:
    size = 768 * 1024  # three times the buffer that connections share

    async def echo(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        body = await wire.exactly(size)
        await wire.send(OK + b"Content-Length: %d\r\n\r\n" % size + body)

    async def scene(stage: Stage) -> None:
        await stage.route(echo)
        cert, key = certificate(tmp_path)
        certificates = CertificatesByListener()
        certificates.put("x", [], {}, [cert.read_bytes(), key.read_bytes()])

        async def ask(letter: bytes) -> bytes:
            client = await stage.client(
                context=certificates.context("x", ""), ssl=authority(cert), server_hostname="localhost"
            )
            await client.send(
                b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + letter * size
            )
            return (await client.response())[1]

        letters = [b"a", b"b", b"c", b"d"]
        for letter, body in zip(letters, await asyncio.gather(*map(ask, letters)), strict=True):
            assert body == letter * size

    play(scene)


def test_no_handshake_no_connection(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        cert, key = certificate(tmp_path)
        certificates = CertificatesByListener()
        certificates.put("x", [], {}, [cert.read_bytes(), key.read_bytes()])
        client = await stage.client(context=certificates.context("x", ""))
        await client.send(GET)
        assert b"HTTP" not in await client.rest()
        assert not stage.edge.pool.clients
        await until(lambda: not stage.edge.pool.arriving)

    play(scene)


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
    start_serving(stage.edge, Connection(fileno=theirs.detach()), received)
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


def test_oldest_of_too_many_handshakes_is_given_up(tmp_path: Path) -> None:
    contents = [path.read_bytes() for path in certificate(tmp_path)]

    async def scene(stage: passing_stage.Stage) -> None:
        stage.edge.certificates.put("127.0.0.1:0", (), {}, contents)
        stage.edge.descriptors.of_handshakes = 2
        begun = []
        for count in (1, 2, 2):
            begun.append(await stage.connect(client_hello("localhost")))
            await until(lambda count=count: stage.edge.pool.arriving == count)
        await stage.read(begun[0])
        await until(lambda: len(stage.edge.pool.handshakes) == 2)
        assert stage.edge.counts.snapshot()["refused"] == {"tls": 1}

    passing_stage.play(scene, tls=True)


class Recorder(asyncio.Protocol):
    """A protocol that records what its transport calls."""

    def __init__(self, *, keeps_half_open: bool = True) -> None:
        self.calls: list[object] = []
        self._keeps_half_open = keeps_half_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.calls.append(data)

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return self._keeps_half_open

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.calls.append(("lost", type(error)))


LOST = ("lost", type(None))


class Ends:
    """The client's end of a connection, and a transport for the other one."""

    def __init__(self, **options: bool) -> None:
        self.client, theirs = _pair()
        self.client.setblocking(False)
        self.loop = asyncio.get_running_loop()
        self.recorder = Recorder(**options)
        self.calls = self.recorder.calls
        self.connection = Connection(fileno=theirs.detach())
        self.transport = SharedSocketTransport(self.loop, self.connection, self.recorder)

    async def until_called(self, *calls: object) -> None:
        await until(lambda: self.calls == [*calls])

    async def received(self, size: int) -> int:
        """The number of bytes that the client has read: `size`, or less at the end."""
        count = 0
        while count < size and (data := await self.loop.sock_recv(self.client, size - count)):
            count += len(data)
        return count


def with_ends(scene: Callable[[Ends], Coroutine[Any, Any, None]], **options: bool) -> None:
    async def run() -> None:
        ends = Ends(**options)
        try:
            await scene(ends)
        finally:
            ends.client.close()
            ends.transport.abort()
            await until(lambda: ends.connection.fileno() < 0)

    asyncio.run(asyncio.wait_for(run(), DEADLINE))


def test_transport_reads_only_while_its_protocol_wants_it() -> None:
    async def scene(ends: Ends) -> None:
        transport = ends.transport
        assert transport.is_reading()
        assert transport.get_extra_info("socket") is ends.connection
        assert transport.get_extra_info("peername") == ends.client.getsockname()
        ends.client.send(b"one")
        await ends.until_called(b"one")
        transport.pause_reading()
        assert not transport.is_reading()
        ends.client.send(b"two")
        for _ in range(5):
            await asyncio.sleep(0)
        assert ends.calls == [b"one"]
        transport.resume_reading()
        await ends.until_called(b"one", b"two")

    with_ends(scene)


@pytest.mark.parametrize("keeps", [True, False])
def test_end_of_the_clients_side_ends_the_connection_unless_the_protocol_keeps_it(keeps: bool) -> None:
    async def scene(ends: Ends) -> None:
        ends.client.shutdown(socket.SHUT_WR)
        await ends.until_called("eof", *([] if keeps else [LOST]))
        assert ends.transport.is_closing() is not keeps
        ends.transport.resume_reading()
        assert not ends.transport.is_reading(), "nothing more is to be read"
        ends.transport.write(b"late")
        assert await ends.received(4) == (4 if keeps else 0)

    with_ends(scene, keeps_half_open=keeps)


def test_protocol_is_paused_while_much_is_unsent_and_all_of_it_arrives() -> None:
    async def scene(ends: Ends) -> None:
        transport, size = ends.transport, 0
        while not ends.calls:
            transport.write(b"x" * 100_000)
            size += 100_000
        assert ends.calls == ["pause"]
        unsent = transport.get_write_buffer_size()
        assert 64 * 1024 < unsent < size
        transport.write(b"y" * 10)
        assert transport.get_write_buffer_size() == unsent + 10
        assert transport.can_write_eof()
        transport.write_eof()
        transport.write(b"after the end")
        assert await ends.received(size + 11) == size + 10
        await ends.until_called("pause", "resume")
        assert transport.get_write_buffer_size() == 0

    with_ends(scene)


def test_protocol_that_was_resumed_is_paused_again_as_often_as_much_is_unsent() -> None:
    async def scene(ends: Ends) -> None:
        for times in (1, 2, 3):
            size = 0
            while ends.transport.get_write_buffer_size() <= 64 * 1024:
                ends.transport.write(b"x" * 100_000)
                size += 100_000
            assert ends.calls == ["pause", "resume"] * (times - 1) + ["pause"]
            assert await ends.received(size) == size
            await ends.until_called(*["pause", "resume"] * times)

    with_ends(scene)


def test_closed_transport_sends_the_rest_first_and_an_aborted_one_does_not() -> None:
    async def scene(ends: Ends) -> None:
        while not ends.calls:
            ends.transport.write(b"x" * 100_000)
        left = ends.transport.get_write_buffer_size()
        ends.transport.close()
        assert ends.transport.is_closing()
        assert not ends.transport.is_reading()
        assert ends.calls == ["pause"]
        assert await ends.received(1 << 30) > left
        await until(lambda: ends.calls[-1] == LOST)

        aborted = Ends()
        while not aborted.calls:
            aborted.transport.write(b"x" * 100_000)
        assert aborted.transport.is_reading()
        aborted.transport.abort()
        assert not aborted.transport.is_reading()
        aborted.transport.abort()
        await aborted.until_called("pause", LOST)
        aborted.transport.write(b"late")
        assert aborted.transport.get_write_buffer_size() == 0
        aborted.client.close()

    with_ends(scene)


@pytest.mark.parametrize("writing", [False, True])
def test_reset_by_the_client_is_the_error_that_the_protocol_gets(writing: bool) -> None:
    async def scene(ends: Ends) -> None:
        if writing:
            ends.transport.pause_reading()
            while not ends.calls:
                ends.transport.write(b"x" * 100_000)
        ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends.client.close()
        await ends.until_called(*(["pause"] if writing else []), ("lost", ConnectionResetError))

    with_ends(scene)


def test_end_that_cannot_be_sent_because_the_client_has_reset_the_connection_is_its_loss() -> None:
    async def scene(ends: Ends) -> None:
        ends.transport.pause_reading()
        ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ends.client.close()
        ends.transport.write_eof()
        assert ends.transport.is_closing()
        await ends.until_called(("lost", OSError))

    with_ends(scene)


def test_connection_that_has_ended_before_it_is_served_is_closed() -> None:
    async def scene(stage: Stage) -> None:
        ours, theirs = _pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        ours.close()
        connection = Connection(fileno=theirs.detach())
        fd = connection.fileno()
        start_serving(stage.edge, connection)
        await until(lambda: not os.path.exists(f"/proc/self/fd/{fd}"))
        assert not stage.edge.pool.clients

    play(scene)
