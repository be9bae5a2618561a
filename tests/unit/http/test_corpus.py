"""One table of hostile messages against the server and the client; probes have a test of their own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.http.http_client import NoResponse, exchange
from poolctl.http.http_server import HttpServer, ReceivedRequest, Responder, ServerLimits
from poolctl.http.messages import BadMessage, ResponseReader, request_head
from tests.asyncio_server import Handler, listening
from tests.http_corpus import OK, REQUESTS, RESPONSES, SMUGGLED, STREAM, ResponseCase

MAX_BODY_BYTES = 64 * 1024
SMALL_BYTES = 2000  # larger cases are cut into larger pieces, to save time


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(st.sampled_from([b"", OK, OK + b"\r\n", STREAM]), st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(beginning: bytes, data: bytes) -> None:
    reader = ResponseReader(request_head("GET", "/", [("Host", "a")]))
    with contextlib.suppress(BadMessage):
        reader.feed(beginning + data)
        reader.record_disconnect()


class Echo:
    """Answers with the path and the body of what it is asked."""

    async def handle(self, request: ReceivedRequest, response: Responder) -> None:
        await response.send(200, [], request.path.encode() + b" " + request.body)

    def check_client(self, sock: socket.socket) -> None: ...

    def error_response(self, error: BadMessage) -> tuple[int, str, bytes]:
        return error.status, "text/plain", str(error).encode()


@asynccontextmanager
async def served(path: Path, keep_alive_seconds: float = 60.0) -> AsyncIterator[str]:
    limits = ServerLimits(body_bytes=MAX_BODY_BYTES, keep_alive_seconds=keep_alive_seconds)
    server = HttpServer(Echo(), limits, what="requests")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    server.listen(listener, 16)
    try:
        yield str(path)
    finally:
        await server.drain_requests(5.0)


async def answers(path: str, cut: list[bytes]) -> list[tuple[int, bytes]]:
    """Status and body of every answer to these pieces, until the server closes the connection."""
    stream, writer = await asyncio.open_unix_connection(path)
    for piece in cut:
        writer.write(piece)
        await asyncio.sleep(0)
    writer.write_eof()
    found: list[tuple[int, bytes]] = []
    async with asyncio.timeout(60):
        rest = await stream.read()
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append((int(head.split()[1]), rest[:length]))
        rest = rest[length:]
    writer.close()
    return found


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in pieces"])
async def test_server_answers_each_request_of_the_table_once_and_goes_on(tmp_path: Path, whole: bool) -> None:
    async with served(tmp_path / "s") as path:
        for case in REQUESTS:
            size = 1 if len(case.data) <= SMALL_BYTES else 97
            found = await answers(path, [case.data] if whole else pieces(case.data, size))
            expected = [case.status]
            if case.rest:
                # A second request that is in order has its own answer, the beginning of one is refused.
                expected.append(200 if case.rest == SMUGGLED else 400)
            assert [status for status, _ in found] == expected, case.name
            if case.status == 200:
                assert found[0][1].endswith(b" " + case.body), case.name


def replying(reply: Callable[[], bytes]) -> Handler:
    """A handler that reads a request, sends the given answer, and closes the connection."""

    async def connected(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stream.readuntil(b"\r\n\r\n")
        writer.write(reply())
        await writer.drain()
        writer.close()

    return connected


async def test_client_understands_or_refuses_each_response_of_the_table(tmp_path: Path) -> None:
    async def ask(case: ResponseCase) -> tuple[int, bytes]:
        method = "HEAD" if case.head_only else "GET"
        async with exchange(str(tmp_path / "s"), method, "/", [("Host", "a")]) as response:
            return response.status, b"".join([piece async for piece in response.body()])

    saying = b""
    async with listening(replying(lambda: saying), str(tmp_path / "s")):
        for case in RESPONSES:
            saying = case.data
            async with asyncio.timeout(60):
                if not case.whole:
                    with pytest.raises(NoResponse):
                        await ask(case)
                elif case.status:
                    assert await ask(case) == (case.status, case.body), case.name
                else:
                    with pytest.raises(BadMessage):
                        await ask(case)
