"""Connections that change their protocol, TLS towards clients and backends, and the end of all connections."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from poolctl.features.gateway.process.proxy import client_connection, connection_pool
from poolctl.features.gateway.process.proxy.serving import drain
from poolctl.features.gateway.process.tls import BUFFER_BYTES, ListenerCertificates
from tests.certificates import certificate
from tests.features.gateway.proxy_stage import Backend, Stage, Wire, ok, play, route

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: %b\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"
CLOSE_1012 = b"\x88\x02\x03\xf4"
SOON = 0.1


def upgrading(protocol: bytes, first: bytes = b"") -> object:
    """Switches, sends these bytes, and returns what it receives, until its end."""

    async def script(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(SWITCHING % protocol + first)
        while data := await wire.some():
            await wire.send(data)
        await wire.send(b"bye")

    return script


@pytest.mark.parametrize("protocol", [b"websocket", b"other/1"])
def test_bytes_are_copied_both_ways_after_an_upgrade(protocol: bytes) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(upgrading(protocol, first=b"\x81\x02hi"))
        client = await stage.client()
        await client.send(UPGRADE % protocol + b"early")
        assert await client.head() == SWITCHING % protocol
        assert await client.exactly(9) == b"\x81\x02hiearly"
        assert b"\r\nConnection: Upgrade\r\nUpgrade: %b\r\n" % protocol in backend.heads[0]
        data = bytes(range(256)) * 10_000
        _, received = await asyncio.gather(client.send(data), client.exactly(len(data)))
        assert received == data
        client.eof()  # the other direction goes on
        assert await client.rest() == b"bye"
        while stage.edge.pool.clients:
            await asyncio.sleep(0)
        assert stage.edge.counts.route("app").failures == 0
        assert stage.edge.backends.of(next(iter(stage.edge.table))).in_flight == 0

    play(scene)


def test_backend_may_close_its_direction_first() -> None:
    async def scene(stage: Stage) -> None:
        received = asyncio.get_running_loop().create_future()

        async def half(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await wire.send(SWITCHING % b"x" + b"all")
            wire.eof()
            received.set_result(await wire.rest())

        await stage.route(half)
        client = await stage.client()
        await client.send(UPGRADE % b"x")
        await client.head()
        assert await client.rest() == b"all"
        await client.send(b"still")
        client.eof()
        assert await asyncio.wait_for(received, 20) == b"still"

    play(scene)


def test_upgrade_that_is_not_wanted_is_answered_as_usual() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client()
        for _ in range(2):
            await client.send(UPGRADE % b"websocket")
            assert (await client.response())[1] == b"hello"

    play(scene)


@pytest.mark.parametrize("request_", [GET, UPGRADE % b"h2c"], ids=["none", "h2c"])
def test_switching_without_being_asked_is_a_bad_gateway(request_: bytes) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(upgrading(b"h2c"))
        client = await stage.client()
        await client.send(request_)
        assert (await client.response())[0].startswith(b"HTTP/1.1 502 ")
        assert b"Upgrade" not in backend.heads[0]

    play(scene)


def test_idle_tunnel_is_closed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(upgrading(b"x"), timeouts={"idle": SOON})
        client = await stage.client()
        await client.send(UPGRADE % b"x")
        await client.head()
        assert await client.rest() == b""

    play(scene)


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
        context = certificates.context(":443")
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
        context = certificates.context(":443")
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
            context=certificates.context("x"), ssl=authority(cert), server_hostname="localhost"
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
                context=certificates.context("x"), ssl=authority(cert), server_hostname="localhost"
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
        client = await stage.client(context=certificates.context("x"))
        await client.send(GET)
        assert b"HTTP" not in await client.rest()
        assert not stage.edge.pool.clients

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
