"""The dashboard's web server: its certificate, and limits on what a client can cost."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import select
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.features.dashboard import _web_server as web_server
from poolctl.features.dashboard._web_server import (
    DashboardServerProcess,
    WebServer,
    reload_certificates_when_changed,
    tls_context,
)
from poolctl.keeper import wire
from poolctl.runners.process_link import Link, LinkHandler
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.features.dashboard.stage import TOKEN, Stage, dashboard_of
from tests.features.dashboard.test_app import Client
from tests.http_get import get
from tests.virtual_loop import VirtualLoop


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
        config: Any = SimpleNamespace(ssl=tls_context(tls(cert, key)))
        keeping = asyncio.ensure_future(
            reload_certificates_when_changed(config, tls(cert, key), every_seconds=0.01)
        )
        await asyncio.sleep(0)
        first = await shown(config.ssl)
        new_cert.replace(cert)  # for a moment it does not fit the key
        for _ in range(5):
            assert await shown(config.ssl) == first
        new_key.replace(key)
        async with asyncio.timeout(60):
            while await shown(config.ssl) == first:
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
    monkeypatch.setattr(web_server, "REQUEST_SECONDS", 600)
    monkeypatch.setattr(web_server, "MOST_CONNECTIONS", 8)
    with dashboard_of() as found:
        yield found


@pytest.fixture
def limited(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A page whose deadline for a request is LIMIT_SECONDS."""
    monkeypatch.setattr(web_server, "REQUEST_SECONDS", LIMIT_SECONDS)
    return stage


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
def test_an_incomplete_request_is_closed_after_the_deadline(limited: Stage, sent: bytes) -> None:
    with connect(limited, sent) as sock:
        assert is_closed(sock)


def test_sending_byte_by_byte_does_not_extend_the_deadline(limited: Stage) -> None:
    begun = time.monotonic()
    with connect(limited) as sock:
        for byte in b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 2000:
            try:
                sock.sendall(bytes([byte]))
            except OSError:
                break
            if time.monotonic() - begun > 30 * LIMIT_SECONDS:
                raise AssertionError("it is still open")
            time.sleep(0.01)


def test_further_request_of_a_connection_has_the_deadline_of_a_first_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(stage, b"GET /poolctl/session HTTP/1.1\r\nhost: localhost\r\n\r\n") as sock:
        assert sock.recv(65536).startswith(b"HTTP/1.1 401")
        monkeypatch.setattr(web_server, "REQUEST_SECONDS", 0.01)
        sock.sendall(b"GET / HTT")
        assert is_closed(sock)


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


def test_a_stream_stays_while_others_come_and_wait(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(stage)
    client.login()
    head = f"GET /poolctl/stream HTTP/1.1\r\nhost: localhost\r\ncookie: {client.headers['Cookie']}\r\n\r\n"
    monkeypatch.setattr(web_server, "REQUEST_SECONDS", LIMIT_SECONDS)

    def begun() -> socket.socket | None:
        """A stream whose request came before the deadline."""
        sock = socket.create_connection(("127.0.0.1", stage.port), timeout=60)
        with contextlib.suppress(OSError):
            sock.sendall(head.encode())
            if sock.recv(4096).startswith(b"HTTP/1.1 200"):
                return sock
        sock.close()
        return None

    with wait_until(begun) as stream:
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


class Listener:
    """A listener that refuses to accept with this error."""

    def __init__(self, number: int) -> None:
        self._error = OSError(number, os.strerror(number))
        self._sock, self._other = socket.socketpair()

    def accept(self) -> Any:
        raise self._error

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()
        self._other.close()


async def _no_app(scope: object, receive: object, send: object) -> None:
    raise AssertionError("no request comes")


@pytest.mark.parametrize(
    ("number", "rests", "ends"),
    [
        (errno.EMFILE, True, False),
        (errno.ENOMEM, True, False),
        (errno.EAGAIN, False, False),
        (errno.ECONNABORTED, False, False),
        (errno.EINVAL, True, True),
    ],
)
def test_listener_rests_for_a_second_without_descriptors_and_ends_when_it_is_shut_down(
    number: int, rests: bool, ends: bool
) -> None:
    loop = VirtualLoop()
    listener: Any = Listener(number)

    def is_watched() -> bool:
        watched = loop.remove_reader(listener)
        if watched:
            loop.add_reader(listener, list)
        return watched

    async def begin() -> WebServer:
        server = WebServer(_no_app, asyncio.Event())
        loop.add_reader(listener, list)
        server._accept(listener)
        return server

    try:
        server = loop.run_until_complete(begin())
        assert (is_watched(), server.over.is_set()) == (not rests, ends)
        loop.pass_time(0.9)
        assert is_watched() is not rests
        loop.pass_time(0.2)
        assert is_watched() is not ends
        server.over.set()
        loop.remove_reader(listener)
        server._accept_from(listener)
        assert not is_watched(), "it is over"
    finally:
        loop.remove_reader(listener)
        listener.close()
        loop.close()


def test_process_serves_from_the_order_to_begin_to_the_order_to_end(tmp_path: Path) -> None:
    async def run() -> None:
        ours, theirs = wire.pair()
        process = DashboardServerProcess(theirs.detach())
        running = asyncio.ensure_future(process.serve_supervisor())
        messages: list[Any] = []

        class Supervisor(LinkHandler):
            def received(self, message: wire.Message, fds: list[int]) -> None:
                messages.append(message)

            def on_link_lost(self) -> None:
                messages.append("lost")

        link = Link(ours, Supervisor())
        settings = {
            "socket_path": str(tmp_path / "control.sock"), "logs_directory": str(tmp_path), "key": "k", "name": "shop",
            "token": TOKEN, "hosts": [], "tls": None, "ended_path": str(tmp_path / "ended"),
        }  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            begin = {"t": "begin", "directory": str(tmp_path), "settings": settings}
            link.send({"t": "other"})
            link.send(begin, [listener])
            async with asyncio.timeout(60):
                while messages != [{"t": "up"}]:
                    await asyncio.sleep(0.001)
            reply = await asyncio.to_thread(get, port, "/")
            assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
            stream = socket.create_connection(("127.0.0.1", port))
        stream.setblocking(False)
        request = f"GET /poolctl/stream HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
        stream.sendall(request.encode())
        async with asyncio.timeout(60):
            received = await asyncio.get_running_loop().sock_recv(stream, 65536)
        assert received.startswith(b"HTTP/1.1 200 ")
        link.send({"t": "end"})
        async with asyncio.timeout(60):
            await running
            with stream:
                while data := stream.recv(65536):
                    received += data
            assert received.endswith(b"\r\n0\r\n\r\n"), "the stream ends before the process"
            while messages[-1] != "lost":
                await asyncio.sleep(0.001)
        link.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    handlers = [*logging.getLogger().handlers]
    try:
        asyncio.run(run())
    finally:
        for handler in {*logging.getLogger().handlers} - {*handlers}:
            logging.getLogger().removeHandler(handler)
            handler.close()


def test_connection_that_waits_longest_makes_room(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "REQUEST_SECONDS", 600)
    waiting = [connect(stage) for _ in range(8)]
    answered = connect(stage, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
    assert answered.recv(4096).startswith(b"HTTP/1.1 200")
    assert select.select(waiting, [], [], 60)[0] == [waiting[0]]
    for sock in (*waiting, answered):
        sock.close()
