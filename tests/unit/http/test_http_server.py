"""The small server's manners: time, keep-alive, answers of unknown length, clients that leave or do not read."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from poolctl.http.http_server import ClientGone, HttpServer, ReceivedRequest, Responder, ServerLimits
from poolctl.http.messages import BadMessage
from tests.virtual_loop import run_in_virtual_time

GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"
ONCE = b"GET /a HTTP/1.0\r\n\r\n"
PATIENT = ServerLimits(request_seconds=60.0, keep_alive_seconds=60.0)
QUICK = ServerLimits(request_seconds=0.1, keep_alive_seconds=60.0, connections=3)


class Handler:
    """Echoes the body; /stream in pieces; /gate when it is opened; /wait never; /fail not at all."""

    server: HttpServer

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.gate = asyncio.Event()
        self.refused = ""
        self.failures: list[str] = []
        self.pieces = 0

    async def handle(self, request: ReceivedRequest, response: Responder) -> None:
        if request.path == "/fail":
            raise RuntimeError("not thought of")
        if request.path == "/wait":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        if request.path == "/gate":
            await self.gate.wait()
        if request.path == "/large":
            response.begin(200, [])
            response.write(bytes(2_000_000))
            await self.noting(response.finish())
            return
        if request.path == "/flood":
            response.begin(200, [])
            try:
                while True:
                    response.write(bytes(10_000))
                    self.pieces += 1
            except ClientGone as error:
                self.failures.append(str(error))
                raise
        if request.path in ("/descriptor", "/late"):
            response.begin(200, [])
            if request.path == "/late":
                response.write(bytes(2_000_000))
            with open(os.devnull) as file:  # noqa: ASYNC230
                try:
                    response.send_with_descriptor(request.sock, file.fileno(), b"here")
                except ClientGone as error:
                    self.failures.append(str(error))
                    raise
            await response.finish()
            return
        if request.path == "/stream":
            response.begin(200, [])
            for piece in (b"a", b"", b"bc"):
                response.write(piece)
            await response.finish()
            return
        await response.send(200, [], b"<" + request.body + b">")

    async def noting(self, work: Awaitable[None]) -> None:
        try:
            await work
        except ClientGone as error:
            self.failures.append(str(error))
            raise

    def check_client(self, sock: socket.socket) -> None:
        if self.refused:
            raise BadMessage(self.refused, 403)

    def error_response(self, error: BadMessage) -> tuple[int, str, bytes]:
        return error.status, "text/plain", b"no\n"


@asynccontextmanager
async def served(
    path: Path,
    limits: ServerLimits = PATIENT,
    *,
    watch: bool = False,
    reserve: contextlib.AbstractContextManager[None] | None = None,
) -> AsyncIterator[Handler]:
    handler = Handler()
    server = handler.server = HttpServer(handler, limits, what="requests", watch=watch, reserve=reserve)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    server.listen(listener, 16)
    try:
        async with asyncio.timeout(60):
            yield handler
    finally:
        server.abort()
        await server.drain_requests(5.0)


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


@pytest.mark.loop(run=run_in_virtual_time)
async def test_request_that_does_not_come_in_time_is_answered_408_and_silence_is_not(tmp_path: Path) -> None:
    async with served(tmp_path / "s", QUICK):
        assert (await everything(tmp_path / "s", GET[:10])).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert await everything(tmp_path / "s", b"") == b""


async def test_answer_of_unknown_length_is_chunked_and_until_the_end_for_an_older_client(
    tmp_path: Path,
) -> None:
    async with served(tmp_path / "s"):
        stream, writer = await ask(tmp_path / "s", b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
        chunks = b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
        assert (await stream.readuntil(b"<>")).startswith(b"HTTP/1.1 200 OK\r\n" + chunks + b"HTTP/1.1 200")
        writer.close()
        older = await everything(tmp_path / "s", b"GET /stream HTTP/1.0\r\n\r\n")
        assert older.endswith(b"Connection: close\r\n\r\nabc")


async def test_head_is_answered_without_a_body(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        head = b"HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await everything(tmp_path / "s", head)).endswith(
            b"content-length: 2\r\nConnection: close\r\n\r\n"
        )
        head = b"HEAD /stream HTTP/1.0\r\n\r\n"
        assert (await everything(tmp_path / "s", head)).endswith(b"\r\n\r\n")


async def test_client_that_waits_for_100_gets_it(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        stream, writer = await ask(tmp_path / "s", head)
        assert await stream.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"o")
        for _ in range(10):
            await asyncio.sleep(0)
        writer.write(b"k")
        assert (await stream.readuntil(b"<ok>")).startswith(b"HTTP/1.1 200 OK")
        writer.close()


@pytest.mark.loop(run=run_in_virtual_time)
async def test_refusal_reaches_a_client_that_is_still_sending(tmp_path: Path) -> None:
    async with served(tmp_path / "s"):
        head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"
        found = await everything(tmp_path / "s", head + b"x" * 500_000)
        assert found.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("piece", [b"a: b\r\n" * 1000, b"a" * 6000], ids=["fields", "one field"])
async def test_client_that_sends_a_head_without_end_is_cut_off_at_the_limit(
    tmp_path: Path, piece: bytes
) -> None:
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


async def test_oldest_connection_makes_room_for_a_new_one(tmp_path: Path) -> None:
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


async def test_answer_is_given_up_when_its_client_goes_away(tmp_path: Path) -> None:
    async with served(tmp_path / "s", watch=True) as handler:
        _, writer = await ask(tmp_path / "s", b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.close()
        await handler.cancelled.wait()


async def test_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    async with served(tmp_path / "s", QUICK):
        body = b"x" * 60_000
        head = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
        with socket.socket(socket.AF_UNIX) as client:
            client.setblocking(False)
            client.connect(str(tmp_path / "s"))
            loop = asyncio.get_running_loop()
            with pytest.raises(ConnectionError):  # noqa: PT012 - one of many is refused
                while True:
                    await loop.sock_sendall(client, head + body)


async def test_failure_of_a_handler_ends_the_connection_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path / "s"):
        assert await everything(tmp_path / "s", b"GET /fail HTTP/1.0\r\n\r\n") == b""
        assert (await everything(tmp_path / "s", b"GET / HTTP/1.0\r\n\r\n")).endswith(b"<>")
    assert "not thought of" in caplog.text


@pytest.mark.loop(run=run_in_virtual_time)
async def test_refusal_ends_the_connection_at_once_for_the_client(tmp_path: Path) -> None:
    async with served(tmp_path / "s", PATIENT) as handler:
        handler.refused = "not you"
        assert await everything(tmp_path / "s", b"") == (
            b"HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n"
            b"Connection: close\r\n\r\nno\n"
        )
        assert asyncio.get_running_loop().time() == 0


@pytest.mark.parametrize(("sent", "answered"), [(b"", b""), (GET[:10], b"HTTP/1.1 400 Bad Request\r\n")])
async def test_client_that_ends_within_a_request_is_refused_and_before_one_it_is_not(
    tmp_path: Path, sent: bytes, answered: bytes
) -> None:
    async with served(tmp_path / "s", PATIENT):
        stream, writer = await ask(tmp_path / "s", sent)
        writer.write_eof()
        assert (await stream.read())[: max(len(answered), 1)] == answered
        writer.close()


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_connection_serves_one_request_unless_it_is_kept_for_others(
    tmp_path: Path, seconds: float
) -> None:
    limits = ServerLimits(request_seconds=60.0, keep_alive_seconds=seconds)
    async with served(tmp_path / "s", limits):
        stream, writer = await ask(tmp_path / "s", GET + GET.replace(b"Host", b"Connection: close\r\nHost"))
        once = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: close\r\n\r\n<>"
        kept = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n<>"
        assert await stream.read() == (kept + once if seconds else once)
        writer.close()


async def test_server_that_watches_its_clients_answers_those_that_stay(tmp_path: Path) -> None:
    async with served(tmp_path / "s", PATIENT, watch=True) as handler:
        assert (await everything(tmp_path / "s", b"GET / HTTP/1.0\r\n\r\n")).endswith(b"<>")
        assert not handler.cancelled.is_set()


async def test_server_that_watches_its_clients_serves_one_request_on_each_connection(tmp_path: Path) -> None:
    async with served(tmp_path / "s", PATIENT, watch=True):
        stream, writer = await ask(tmp_path / "s", GET)
        assert await stream.read() == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nConnection: close\r\n\r\n<>"
        writer.close()


async def test_closing_server_accepts_no_more_and_lets_requests_finish(tmp_path: Path) -> None:
    async with served(tmp_path / "s", PATIENT) as handler:
        stream, writer = await ask(tmp_path / "s", b"GET /gate HTTP/1.0\r\n\r\n")
        other, idle = await ask(tmp_path / "s", GET)
        assert (await other.readuntil(b"<>")).startswith(b"HTTP/1.1 200 OK")
        await handler.server.drain_requests(0.001)
        closing = asyncio.create_task(handler.server.drain_requests(60.0))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionRefusedError):
            await ask(tmp_path / "s", GET)
        assert not closing.done()
        idle.close()
        handler.gate.set()
        assert (await stream.read()).endswith(b"<>")
        await closing
        writer.close()


async def test_aborted_server_resets_its_connections_and_watches_no_listener(tmp_path: Path) -> None:
    async with served(tmp_path / "s", PATIENT) as handler:
        listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        numbers = [each.fileno() for each in listeners]
        for each, name in zip(listeners, "ab", strict=True):
            each.bind(str(tmp_path / name))
            handler.server.listen(each, 16)
        stream, writer = await ask(tmp_path / "b", b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        other, idle = await ask(tmp_path / "a", GET)
        await other.readuntil(b"<>")
        handler.server.abort()
        for name in "sab":
            with pytest.raises(ConnectionRefusedError):
                await ask(tmp_path / name, GET)
        assert [asyncio.get_running_loop().remove_reader(number) for number in numbers] == [False, False]
        assert (await stream.read(), await other.read()) == (b"", b"")
        await handler.cancelled.wait()
        writer.close()
        idle.close()


async def test_connections_that_have_ended_do_not_count(tmp_path: Path) -> None:
    async with served(tmp_path / "s", ServerLimits(connections=2, request_seconds=60.0)):
        stream, writer = await ask(tmp_path / "s", GET[:10])
        for _ in range(4):
            assert (await everything(tmp_path / "s", GET)).endswith(b"<>")
        writer.write(GET[10:])
        assert (await stream.read()).endswith(b"<>")
        writer.close()


async def test_many_connections_at_once_leave_as_many_as_may_be_open(tmp_path: Path) -> None:
    async with served(tmp_path / "s", ServerLimits(connections=1, request_seconds=60.0)):
        clients = [socket.socket(socket.AF_UNIX) for _ in range(5)]
        for each in clients:
            each.connect(str(tmp_path / "s"))
            each.sendall(GET[:10])
            each.setblocking(False)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            for each in clients[:-1]:
                assert await loop.sock_recv(each, 100) == b""
        await loop.sock_sendall(clients[-1], GET[10:])
        assert (await loop.sock_recv(clients[-1], 1000)).endswith(b"<>")
        for each in clients:
            each.close()


class Full(contextlib.AbstractContextManager[None]):
    """No descriptor is free at first."""

    tries = 0

    def __enter__(self) -> None:
        self.tries += 1
        if self.tries <= 2:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def __exit__(self, *args: object) -> None: ...


@pytest.mark.loop(run=run_in_virtual_time)
async def test_connection_waits_until_a_descriptor_is_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(tmp_path / "s", reserve=Full()):
        assert (await everything(tmp_path / "s", b"GET / HTTP/1.0\r\n\r\n")).endswith(b"<>")
    assert caplog.messages == ["cannot accept requests: Too many open files"] * 2


async def test_large_answer_reaches_a_client_that_reads_it(tmp_path: Path) -> None:
    async with served(tmp_path / "s", PATIENT) as handler:
        found = await everything(tmp_path / "s", b"GET /large HTTP/1.0\r\n\r\n")
        assert found.endswith(b"\r\n\r\n" + bytes(2_000_000))
        assert handler.failures == []


@pytest.mark.parametrize("path", [b"/large", b"/flood", b"/late"])
@pytest.mark.loop(run=run_in_virtual_time)
async def test_answer_that_is_not_read_is_given_up(tmp_path: Path, path: bytes) -> None:
    limits = ServerLimits(request_seconds=0.05, unread_bytes=100_000 if path == b"/flood" else 1 << 30)
    async with served(tmp_path / "s", limits) as handler:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.sendall(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            client.setblocking(False)
            while not handler.failures:
                await asyncio.sleep(0.001)
            assert handler.failures == ["the client does not read"]
            if path == b"/flood":
                taken = 0
                with contextlib.suppress(ConnectionError):
                    while data := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
                        taken += len(data)
                assert 90_000 < 10_000 * handler.pieces - taken < 120_000


@pytest.mark.parametrize(("version", "data"), [(b"1.1", b"4\r\nhere\r\n"), (b"1.0", b"here")])
async def test_descriptor_is_sent_with_its_piece_of_the_answer(
    tmp_path: Path, version: bytes, data: bytes
) -> None:
    async with served(tmp_path / "s", PATIENT) as handler:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "s"))
            client.sendall(b"GET /descriptor HTTP/" + version + b"\r\nHost: x\r\n\r\n")
            client.settimeout(60)
            found, descriptors = b"", []
            while data not in found:
                piece, sent, *_ = await asyncio.to_thread(socket.recv_fds, client, 1000, 4)
                found += piece
                descriptors += sent
            assert found.partition(b"\r\n\r\n")[2].startswith(data)
            assert [os.readlink(f"/proc/self/fd/{each}") for each in descriptors] == [os.devnull]
            for each in descriptors:
                os.close(each)
            assert handler.failures == []
