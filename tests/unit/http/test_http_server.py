"""The small server's manners: time, keep-alive, answers of unknown length, clients that leave or do not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from poolctl.http.http_server import HttpServer, Received, Responder, ServerLimits
from poolctl.http.messages import BadMessage

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
QUICK = ServerLimits(request_seconds=0.1, keep_alive_seconds=5.0, connections=3)


class Handler:
    """Echoes the body; /stream in pieces; /wait never; /fail not at all."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def handle(self, request: Received, response: Responder) -> None:
        if request.head.path == b"/fail":
            raise RuntimeError("not thought of")
        if request.head.path == b"/wait":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if request.head.path == b"/stream":
            response.begin(200, [])
            for piece in (b"a", b"", b"bc"):
                response.write(piece)
            await response.finish()
            return
        await response.send(200, [], b"<" + request.body + b">")

    def admit(self, sock: socket.socket) -> None: ...

    def refuse(self, error: BadMessage) -> tuple[int, str, bytes]:
        return error.status, "text/plain", b"no\n"


@asynccontextmanager
async def served(path: Path, limits: ServerLimits = QUICK, *, watch: bool = False) -> AsyncIterator[Handler]:
    handler = Handler()
    server = HttpServer(handler, limits, what="requests", watch=watch)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    server.listen(listener, 16)
    try:
        async with asyncio.timeout(60):
            yield handler
    finally:
        server.abort()
        await server.close(5.0)


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ask(path: Path, data: bytes) -> Streams:
    stream, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    return stream, writer


async def everything(path: Path, data: bytes) -> bytes:
    stream, writer = await ask(path, data)
    found = await stream.read()
    writer.close()
    return found


def test_request_that_does_not_come_in_time_is_answered_408_and_silence_is_not(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s"):
            assert (await everything(tmp_path / "s", GET[:10])).startswith(
                b"HTTP/1.1 408 Request Timeout\r\n"
            )
            assert await everything(tmp_path / "s", b"") == b""

    asyncio.run(scenario())


def test_answer_of_unknown_length_is_chunked_and_until_the_end_for_an_older_client(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s"):
            stream, writer = await ask(tmp_path / "s", b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
            chunks = b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
            assert (await stream.readuntil(b"<>")).startswith(
                b"HTTP/1.1 200 OK\r\n" + chunks + b"HTTP/1.1 200"
            )
            writer.close()
            older = await everything(tmp_path / "s", b"GET /stream HTTP/1.0\r\n\r\n")
            assert older.endswith(b"connection: close\r\n\r\nabc")

    asyncio.run(scenario())


def test_head_is_answered_without_a_body(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s"):
            head = b"HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            assert (await everything(tmp_path / "s", head)).endswith(
                b"content-length: 2\r\nconnection: close\r\n\r\n"
            )
            head = b"HEAD /stream HTTP/1.0\r\n\r\n"
            assert (await everything(tmp_path / "s", head)).endswith(b"\r\n\r\n")

    asyncio.run(scenario())


def test_client_that_waits_for_100_gets_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s"):
            head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            stream, writer = await ask(tmp_path / "s", head)
            assert await stream.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"ok")
            assert (await stream.readuntil(b"<ok>")).startswith(b"HTTP/1.1 200 OK")
            writer.close()

    asyncio.run(scenario())


def test_refusal_reaches_a_client_that_is_still_sending(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s"):
            head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"
            found = await everything(tmp_path / "s", head + b"x" * 500_000)
            assert found.startswith(b"HTTP/1.1 413 Content Too Large\r\n")

    asyncio.run(scenario())


@pytest.mark.parametrize("piece", [b"a: b\r\n" * 1000, b"a" * 6000], ids=["fields", "one field"])
def test_client_that_sends_a_head_without_end_is_cut_off_at_the_limit(tmp_path: Path, piece: bytes) -> None:
    async def scenario() -> None:
        limits = ServerLimits(head_bytes=16 * 1024, body_bytes=16 * 1024)
        async with served(tmp_path / "s", limits):
            _, writer = await ask(tmp_path / "s", GET[:-2])
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 1024 * 1024:
                    writer.write(piece)
                    await writer.drain()
                    sent += len(piece)
            assert sent < 1024 * 1024, "nothing more is read"
            writer.transport.abort()

    asyncio.run(scenario())


def test_oldest_connection_makes_room_for_a_new_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = ServerLimits(connections=3)
        async with served(tmp_path / "s", limits):
            held = [await ask(tmp_path / "s", b"GET ") for _ in range(3)]
            assert (await everything(tmp_path / "s", GET)).endswith(b"<>")
            with contextlib.suppress(ConnectionResetError):
                assert await held[0][0].read() == b""
            held[1][1].write(GET.removeprefix(b"GET "))
            assert (await held[1][0].read()).endswith(b"<>")
            for _, writer in held:
                writer.close()

    asyncio.run(scenario())


def test_answer_is_given_up_when_its_client_goes_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s", watch=True) as handler:
            _, writer = await ask(tmp_path / "s", b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            writer.close()
            await handler.cancelled.wait()

    asyncio.run(scenario())


def test_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s"):
            body = b"x" * 60_000
            head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
            with socket.socket(socket.AF_UNIX) as client:
                client.setblocking(False)
                client.connect(str(tmp_path / "s"))
                loop = asyncio.get_running_loop()
                with pytest.raises(ConnectionError):  # noqa: PT012 - one of many is refused
                    while True:
                        await loop.sock_sendall(client, head + body)

    asyncio.run(scenario())


def test_failure_of_a_handler_ends_the_connection_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s"):
            assert await everything(tmp_path / "s", b"GET /fail HTTP/1.0\r\n\r\n") == b""
            assert (await everything(tmp_path / "s", b"GET / HTTP/1.0\r\n\r\n")).endswith(b"<>")

    asyncio.run(scenario())
    assert "not thought of" in caplog.text
