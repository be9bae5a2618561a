"""What HAProxy keeps of requests and responses: heads of the permitted size, and not more for clients that stall."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from poolctl.routing.route import Header, Route, Target
from tests.asyncio_server import listening
from tests.deadline import until
from tests.features.gateway.test_access_log import Log
from tests.features.gateway.test_haproxy_configuration import WEB, ask, haproxy, haproxy_program

DEADLINE = 60.0
APP = Route(alias="a", to=WEB)
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4


def head_of(size: int) -> dict[str, str]:
    """Fields with which the head of a request without other fields has about `size` bytes."""
    count = 60
    return {f"x-{number:02}": "v" * (size // count - 8) for number in range(count)}


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, DEADLINE))


@pytest.mark.capability
@pytest.mark.loop(run=run)
async def test_head_that_is_too_large_gets_431_and_a_line_in_the_log_that_names_the_key(
    tmp_path: Path,
) -> None:
    async with Log() as log, haproxy(tmp_path, [APP], stderr=log.pipe) as port:
        assert (await ask(port, "GET", "a.test", "/", head_of(16_000)))[0] == 200
        assert (await ask(port, "GET", "a.test", "/p?secret", head_of(17_000)))[0] == 431
        (line,) = await log.lines(1)
        assert "GET a.test/p of 127.0.0.1 gets 431" in line
        assert "max_head_size of [gateway] is 16384" in line


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_head_over_http2_that_is_too_large_gets_431(tmp_path: Path) -> None:
    async with Log() as log, haproxy(tmp_path, [APP], stderr=log.pipe) as port:
        async with Http2(port) as client:
            assert await client.status(client.request(fields=head_of(15_000))) == "200"
            assert await client.status(client.request(fields=head_of(17_500))) == "431"
        (line,) = await log.lines(1)
        assert "GET a.test/ of 127.0.0.1 gets 431" in line


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.loop(run=run)
async def test_access_log_names_the_key_of_a_head_that_is_too_large(tmp_path: Path, as_json: bool) -> None:
    form = "json" if as_json else True
    async with (
        Log() as log,
        haproxy(tmp_path, [APP], log_descriptor=log.pipe, access_log=form) as port,
    ):
        await log.lines(1)
        await ask(port, "GET", "a.test", "/", head_of(17_000))
        await ask(port, "GET", "a.test", "/", {})
        refused, served = await log.lines(2)
        assert "max_head_size of [gateway] is 16384" in refused
        assert "max_head_size" not in served


@pytest.mark.slow
@pytest.mark.parametrize("size", [4096, 16_384, 50_000])
@pytest.mark.loop(run=run)
async def test_longest_head_reaches_a_server_with_all_that_is_added(tmp_path: Path, size: int) -> None:
    long = (Header(name="x-added", value="v" * 4000),)
    route = Route(alias="a", to=WEB, add_headers=long, response_headers=long, sticky_cookie="c")
    async with haproxy(tmp_path, [route], max_head_size=size, trusted_proxies=("127.0.0.1",)) as port:
        hops = ", ".join(["192.0.2.7"] * 20)
        fields = head_of(size - 600) | {"X-Forwarded-For": hops}
        status, got = await ask(port, "GET", "a.test", "/", fields)
        assert status == 200
        assert dict(got["headers"])["x-added"] == "v" * 4000


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_downloads_that_a_client_does_not_read_need_little_memory(tmp_path: Path) -> None:
    connections, streams = 2, 100

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n")
        begun.append(writer)
        try:
            while True:
                writer.write(bytes(65_536))
                await writer.drain()
        finally:
            writer.close()

    begun: list[asyncio.StreamWriter] = []
    async with served(endless) as route, haproxy_program(tmp_path, [route]) as program:
        before = resident_bytes(program.pid)
        clients = [Http2(program.port, window=0) for _ in range(connections)]
        for client in clients:
            await client.__aenter__()
            for _ in range(streams):
                client.request()
        await until(lambda: len(begun) == connections * streams)
        # HAProxy reads no more than fits into its buffers.
        await until_steady(lambda: resident_bytes(program.pid))
        each = (resident_bytes(program.pid) - before) / (connections * streams)
        assert each < 84_000, "80 MiB for a thousand"
        for client in clients:
            await client.__aexit__()


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_upload_over_http2_does_not_wait_for_acknowledgements(tmp_path: Path) -> None:
    async with haproxy(tmp_path, [APP]) as port, Http2(port) as client:
        stream = client.request(method="POST", ends=False)
        settings = await client.settings()
        assert settings[4] == 1 << 20, "a megabyte in one round trip"
        for _ in range(60):
            client.send(DATA, 0, stream, bytes(16_000))
        client.send(DATA, END_STREAM, stream)
        assert await client.status(stream) == "200"


@pytest.mark.slow
@pytest.mark.loop(run=run)
async def test_upload_that_its_backend_does_not_read_leaves_other_connections_alone(tmp_path: Path) -> None:
    async def unread(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        stalled.append(writer)

    stalled: list[asyncio.StreamWriter] = []
    async with served(unread, path="/upload") as route, haproxy(tmp_path, [route, APP]) as port:
        async with Http2(port) as client:
            stream = client.request(method="POST", path="/upload", ends=False)
            await until(lambda: bool(stalled))
            flood = asyncio.ensure_future(client.flood(stream))
            await until_steady(lambda: client.sent_bytes)
            async with Http2(port) as other:
                assert await other.status(other.request()) == "200"
            assert (await ask(port, "GET", "a.test", "/", {}))[0] == 200
            assert not flood.done()
            flood.cancel()
        for each in stalled:
            each.close()


@asynccontextmanager
async def served(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]], path: str = "/"
) -> AsyncIterator[Route]:
    """A route to a backend that handles connections so."""
    async with listening(handle, "127.0.0.1", 0) as backend:
        port = backend.sockets[0].getsockname()[1]
        yield Route(alias="served", path=path, to=(Target(url=f"http://127.0.0.1:{port}"),))


async def until_steady(value: Callable[[], int]) -> None:
    """Return once the value has been the same for half a second."""
    last, unchanged = value(), 0
    while unchanged < 10:
        await asyncio.sleep(0.05)
        unchanged = unchanged + 1 if value() == last else 0
        last = value()


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Http2:
    """A client of HTTP/2 without TLS that sends what it is told, and reads when it is asked to."""

    def __init__(self, port: int, window: int = 65_535) -> None:
        self._port = port
        self._window = window
        self._streams = 0
        self.sent_bytes = 0

    async def __aenter__(self) -> Http2:
        self._reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        self.send(SETTINGS, 0, 0, b"\0\4" + self._window.to_bytes(4, "big"))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.transport.abort()

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
        self.writer.write(head + payload)

    def request(
        self, method: str = "GET", path: str = "/", fields: dict[str, str] | None = None, *, ends: bool = True
    ) -> int:
        """Begin a request, and return its stream."""
        stream = 2 * self._streams + 1
        self._streams += 1
        pseudo = {":method": method, ":scheme": "http", ":authority": "a.test", ":path": path}
        block = b"".join(
            b"\0" + _text(name) + _text(value) for name, value in (pseudo | (fields or {})).items()
        )
        parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        for number, part in enumerate(parts):
            flags = END_HEADERS if part is parts[-1] else 0
            self.send(9 if number else HEADERS, flags | (ends and not number and END_STREAM), stream, part)
        return stream

    async def flood(self, stream: int) -> None:
        """Send as much on the stream as the connection takes, and wait while it takes nothing."""
        while True:
            self.send(DATA, 0, stream, bytes(16_000))
            await self.writer.drain()
            self.sent_bytes += 16_000

    async def settings(self) -> dict[int, int]:
        while True:
            kind, flags, _, payload = await self._frame()
            if kind == SETTINGS and not flags:
                pairs = [payload[at : at + 6] for at in range(0, len(payload), 6)]
                return {int.from_bytes(each[:2], "big"): int.from_bytes(each[2:], "big") for each in pairs}

    async def status(self, wanted: int) -> str:
        """The status of the response on this stream; "" if there is none."""
        while True:
            kind, _, stream, payload = await self._frame()
            if kind == HEADERS and stream == wanted:
                if payload[0] == 0x88:  # an entry of the static table (RFC 7541, appendix A)
                    return "200"
                found = re.search(rb"\d{3}", payload)
                return found[0].decode() if found else ""
            if kind == GOAWAY or (kind == RST_STREAM and stream == wanted):
                return ""

    async def _frame(self) -> tuple[int, int, int, bytes]:
        head = await self._reader.readexactly(9)
        payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        return head[3], head[4], int.from_bytes(head[5:], "big"), payload


def _text(text: str) -> bytes:
    """A string of HPACK, as it is (RFC 7541 §5.2)."""
    size, encoded = len(text), bytearray()
    if size < 127:
        return bytes((size,)) + text.encode()
    encoded.append(127)
    size -= 127
    while size >= 128:
        encoded.append(size % 128 + 128)
        size //= 128
    encoded.append(size)
    return bytes(encoded) + text.encode()
