"""Taking over clients' sockets, TLS towards clients, and the end of all connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from pathlib import Path

import pytest

from poolctl.features.gateway.process.proxy import client_connection
from poolctl.features.gateway.process.proxy.serving import drain, serve
from poolctl.features.gateway.process.tls import BUFFER_BYTES, ListenerCertificates
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
        stage.edge.drain()
        draining = asyncio.create_task(drain(stage.edge, 20.0))
        assert await idle.rest() == b""
        go_on.set()
        head, body = await busy.response()
        assert b"\r\nConnection: close\r\n" in head
        assert body == b"ok"
        await asyncio.wait_for(draining, 20)
        assert not stage.edge.pool.clients

    play(scene)


@pytest.mark.parametrize("split", [False, True])
def test_websocket_ends_with_1012_when_the_time_for_draining_is_over(split: bool) -> None:
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
        stage.edge.drain()
        draining = asyncio.create_task(drain(stage.edge, SOON))
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


def test_tls_uses_the_certificate_of_the_name_and_a_renewed_one_at_once(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        made = {name: certificate(tmp_path, name) for name in ("a.example", "b.example")}
        certificates = ListenerCertificates()
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
        stage: Stage, certificates: ListenerCertificates, name: str, trust: ssl.SSLContext
    ) -> Wire:
        context = certificates.context(":443", "")
        assert context is not None
        return await stage.client(context=context, ssl=trust, server_hostname=name)

    play(scene)


def test_host_that_demands_a_client_certificate_is_refused_over_the_connection_of_another_host(
    tmp_path: Path,
) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        made = {
            name: certificate(tmp_path, name) for name in ("open.example", "also.example", "closed.example")
        }
        certificates = ListenerCertificates()
        for name, (cert, key) in made.items():
            demand = {"client_auth": "required"} if name == "closed.example" else {}
            contents = [cert.read_bytes(), key.read_bytes(), *([cert.read_bytes()] if demand else [])]
            certificates.put(":443", [name], demand, contents)
        trust = authority(*(cert for cert, _ in made.values()))
        trust.set_alpn_protocols(["h2", "http/1.1"])
        context = certificates.context(":443", "")
        for host, status in (
            (b"open.example", 200),
            (b"also.example:443", 200),
            (b"Closed.Example.:443", 421),
        ):
            client = await stage.client(context=context, ssl=trust, server_hostname="open.example")
            assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            await client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
            assert (await client.head()).startswith(b"HTTP/1.1 %d " % status)
        trust.load_cert_chain(*made["closed.example"])
        context = certificates.context(":443", "closed.example")
        client = await stage.client(context=context, ssl=trust, server_hostname="closed.example")
        for host in (b"closed.example", b"open.example"):
            await client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
            assert (await client.response())[0].startswith(b"HTTP/1.1 200 ")
        assert len(backend.heads) == 4

    play(scene)


def test_requests_over_tls_are_reported_as_such(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        cert, key = certificate(tmp_path)
        certificates = ListenerCertificates()
        certificates.put("x", [], {}, [cert.read_bytes(), key.read_bytes()])
        client = await stage.client(
            context=certificates.context("x", ""), ssl=authority(cert), server_hostname="localhost"
        )
        await client.send(GET)
        await client.response()
        assert b"\r\nX-Forwarded-Proto: https\r\n" in backend.heads[0]

    play(scene)


def test_bodies_over_tls_that_are_read_at_once_are_not_mixed(tmp_path: Path) -> None:
    size = 3 * BUFFER_BYTES  # connections share the buffer

    async def echo(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        body = await wire.exactly(size)
        await wire.send(OK + b"Content-Length: %d\r\n\r\n" % size + body)

    async def scene(stage: Stage) -> None:
        await stage.route(echo)
        cert, key = certificate(tmp_path)
        certificates = ListenerCertificates()
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
        certificates = ListenerCertificates()
        certificates.put("x", [], {}, [cert.read_bytes(), key.read_bytes()])
        client = await stage.client(context=certificates.context("x", ""))
        await client.send(GET)
        assert b"HTTP" not in await client.rest()
        assert not stage.edge.pool.clients

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
