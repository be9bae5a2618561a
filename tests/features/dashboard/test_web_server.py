"""The dashboard's web server: its certificate, and limits on what a client can cost."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.dashboard import _web_server as web_server
from poolctl.features.dashboard._web_server import WebServer, context_of, keep_current
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.features.dashboard.stage import TOKEN, Stage, dashboard_of
from tests.features.dashboard.test_app import Client


def tls(cert: Path, key: Path) -> dict[str, Any]:
    return {
        "cert": str(cert), "key": str(key), "ca": None, "password": "",
        "client_auth": "none", "min_version": "1.2", "ciphers": None,
    }  # fmt: skip


async def shown(context: ssl.SSLContext) -> bytes | None:
    """The certificate that a client sees."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.transport.abort()
    return found


def test_renewed_files_are_used_and_broken_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    cert, key = certificate(tmp_path)
    new_cert, new_key = certificate(tmp_path / "new")

    async def run() -> None:
        context = context_of(tls(cert, key))
        keeping = asyncio.ensure_future(keep_current(context, tls(cert, key), every_seconds=0.01))
        await asyncio.sleep(0)
        first = await shown(context)
        new_cert.replace(cert)  # for a moment it does not fit the key
        for _ in range(5):
            assert await shown(context) == first
        new_key.replace(key)
        async with asyncio.timeout(60):
            while await shown(context) == first:
                await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(run())


def test_listener_that_is_shut_down_during_the_order_to_stop_raises_nothing() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise AssertionError("nobody asks")

    async def run() -> list[dict[str, Any]]:
        raised: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
        over = asyncio.Event()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = WebServer(app, over)
            serving = asyncio.ensure_future(server.serve([listener]))
            while not server.started:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            listener.shutdown(socket.SHUT_RDWR)
            over.set()
            async with asyncio.timeout(60):
                await serving
        return raised

    assert asyncio.run(run()) == []


LIMIT_SECONDS = 0.3


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(web_server, "REQUEST_SECONDS", LIMIT_SECONDS)
    monkeypatch.setattr(web_server, "MOST_CONNECTIONS", 8)
    with dashboard_of() as found:
        yield found


def connect(stage: Stage, sent: bytes = b"") -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", stage.port), timeout=60)
    sock.sendall(sent)
    return sock


def is_closed(sock: socket.socket) -> bool:
    """Whether the page has closed it, once it has had the time to."""
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTT",
        b"GET / HTTP/1.1\r\nhost: localhost\r\n",
        b"POST /poolctl/login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{",
    ],
)  # fmt: skip
def test_an_incomplete_request_is_closed_after_the_deadline(stage: Stage, sent: bytes) -> None:
    with connect(stage, sent) as sock:
        assert is_closed(sock)


def test_sending_byte_by_byte_does_not_extend_the_deadline(stage: Stage) -> None:
    begun = time.monotonic()
    with connect(stage) as sock:
        for byte in b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 2000:
            try:
                sock.sendall(bytes([byte]))
            except OSError:
                break
            if time.monotonic() - begun > 30 * LIMIT_SECONDS:
                raise AssertionError("it is still open")
            time.sleep(0.01)


def test_a_head_without_an_end_is_refused_before_it_is_large(stage: Stage) -> None:
    with connect(stage, b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ") as sock:
        sent = 0
        try:
            while sent < 50_000_000:
                sent += sock.send(b"y" * 100_000)
        except OSError:
            pass
        assert sent < 20_000_000


def test_the_connections_that_have_waited_longest_make_room_for_new_ones(stage: Stage) -> None:
    waiting = [connect(stage, b"GET / HTTP/1.1\r\n") for _ in range(8)]
    client = Client(stage)
    assert client.send("GET", "/").status == 200
    assert is_closed(waiting[0])
    for sock in waiting:
        sock.close()


def test_a_stream_stays_while_others_come_and_wait(stage: Stage) -> None:
    client = Client(stage)
    client.login()
    head = f"GET /poolctl/stream HTTP/1.1\r\nhost: localhost\r\ncookie: {client.headers['Cookie']}\r\n\r\n"
    with connect(stage, head.encode()) as stream:
        assert stream.recv(4096).startswith(b"HTTP/1.1 200")
        waiting = [connect(stage, b"GET") for _ in range(20)]
        assert is_closed(waiting[0])
        for sock in waiting:
            sock.close()
        stream.settimeout(3 * LIMIT_SECONDS)
        assert not is_closed(stream)


def test_half_a_surrogate_pair_is_a_wrong_token_like_any_other(stage: Stage) -> None:
    client = Client(stage)
    for _ in range(10):
        assert client.send("POST", "/poolctl/login", {"token": "\ud800"}).status == 401
    assert client.send("POST", "/poolctl/login", {"token": TOKEN}).status == 429


def test_a_logged_out_cookie_stays_invalid_in_the_next_process(stage: Stage) -> None:
    client = Client(stage)
    client.login()
    cookie = client.headers["Cookie"]
    assert client.send("POST", "/poolctl/logout", {}, **{"X-CSRF-Token": client.csrf}).status == 204
    stage.end()
    stage.begin()
    client.headers["Cookie"] = cookie
    assert client.send("GET", "/poolctl/session").status == 401


def test_half_a_tls_handshake_is_given_up_and_so_many_at_most_are_awaited(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(web_server, "HANDSHAKE_SECONDS", LIMIT_SECONDS)
    monkeypatch.setattr(web_server, "MOST_HANDSHAKES", 8)
    stage.end()
    stage.tls = tls(*certificate(tmp_path))
    stage.begin()
    waiting = [connect(stage, b"\x16\x03\x01") for _ in range(8)]
    assert all(map(is_closed, waiting))
    monkeypatch.setattr(web_server, "HANDSHAKE_SECONDS", 60)
    waiting += [connect(stage, b"\x16\x03\x01") for _ in range(9)]
    # Not always the last one: a place may not be free yet when its connection is closed already.
    assert select.select(waiting[8:], [], [], 60)[0], "one too many is closed while the others still wait"
    for sock in waiting:
        sock.close()
    wait_until(lambda: secure_answer(stage).startswith(b"HTTP/1.1 200"))


def secure_answer(stage: Stage) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with connect(stage) as plain, context.wrap_socket(plain) as secure:
            secure.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
            return secure.recv(4096)
    except OSError:
        return b""
