"""HTTP/2 of clients: flow control, floods, and the ends of connections."""

from __future__ import annotations

import asyncio
import random
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from poolctl.gateway.http2 import http2_connection
from poolctl.gateway.proxy.serving import drain
from tests.unit.gateway.http2_client import Client, Http2Stage
from tests.unit.gateway.proxy_stage import DEADLINE, Backend, Wire, ok, play

OK = b"HTTP/1.1 200 OK\r\n"
CALM, REFUSED = 11, 7  # ENHANCE_YOUR_CALM, REFUSED_STREAM
LARGE = 12 * 1024 * 1024
# A buffer of the kernel and of the transport on each side.
IN_BUFFERS = 8 * 1024 * 1024


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Http2Stage]:
    return partial(Http2Stage, tmp_path)


async def silent(backend: Backend, wire: Wire) -> None:
    """Read a request, and never answer."""
    await backend.request(wire)
    await wire.rest()


async def connection(stage: Http2Stage) -> http2_connection.Http2Connection:
    while not stage.edge.pool.clients:  # the client's side of the handshake ends first
        await asyncio.sleep(0)
    (client,) = stage.edge.pool.clients
    assert isinstance(client, http2_connection.Http2Connection)
    return client


def test_response_waits_for_the_window_of_a_slow_client(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        sent = 0

        async def large(backend: Backend, wire: Wire) -> None:
            nonlocal sent
            await backend.request(wire)
            await wire.send(OK + b"Content-Length: %d\r\n\r\n" % (LARGE))
            for _ in range(LARGE // 65536):
                await wire.send(bytes(65536))
                sent += 65536

        await stage.route(large, path="/large")
        client = await stage.connect()
        client.acknowledge = False
        client.h2.increment_flow_control_window(1024 * 1024)  # of the connection
        number = await client.request(path=b"/large")
        response = client.responses[number]
        while len(response.body) < 65535:
            await client.receive()
        other = await client.request(path=b"/none")  # the connection is not held up
        assert (await client.response(other)).status == 404
        assert (await connection(stage)).waiting <= 1024 * 1024
        assert sent <= IN_BUFFERS
        client.acknowledge = True
        client.h2.increment_flow_control_window(LARGE)
        client.h2.increment_flow_control_window(LARGE, number)
        await client.flush()
        assert len((await client.response(number)).body) == LARGE
        assert response.done

    play("uvloop", scene, stage)


def test_upload_waits_for_a_slow_backend(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        go_on = asyncio.Event()
        received = 0

        async def slow(backend: Backend, wire: Wire) -> None:
            nonlocal received
            await backend.request(wire)
            await go_on.wait()
            while received < LARGE:
                received += len(await wire.exactly(65536))
            await wire.send(OK + b"Content-Length: 2\r\n\r\nok")

        await stage.route(slow)
        client = await stage.connect()
        number = await client.request((b"content-length", b"%d" % (LARGE)), method=b"POST", end=False)
        sent = 0
        while sent < LARGE:
            window = min(client.h2.local_flow_control_window(number), 16384, LARGE - sent)
            if window:
                await client.data(number, bytes(window), end=sent + window == LARGE)
                sent += window
                continue
            if not go_on.is_set():
                # Answers to what was sent before this have come: the gateway gives no more.
                other = await client.request(path=b"*")
                assert (await client.response(other)).status == 400
                if not client.h2.local_flow_control_window(number):
                    assert sent <= IN_BUFFERS
                    go_on.set()
            else:
                await client.receive()
        assert (await client.response(number)).body == b"ok"
        assert received == LARGE

    play("uvloop", scene, stage)


def test_early_response_ends_a_request_whose_body_is_not_needed(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        async def early(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await wire.send(OK + b"Content-Length: 2\r\n\r\nok")

        await stage.route(early, max_body_bytes=1000)
        client = await stage.connect()
        number = await client.request(method=b"POST", end=False)
        response = await client.response(number)
        assert (response.status, response.body, response.done) == (200, b"ok", True)
        number = await client.request((b"content-length", b"1001"), method=b"POST", end=False)
        assert (await client.response(number)).status == 413

    play("uvloop", scene, stage)


def test_response_that_breaks_off_is_reset(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        async def breaks(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await wire.send(OK + b"Content-Length: 10\r\n\r\nok")

        await stage.route(breaks)
        client = await stage.connect()
        response = await client.get()
        assert (response.done, response.reset) == (False, 2)  # INTERNAL_ERROR

    play("uvloop", scene, stage)


def test_reset_stream_leaves_its_backend(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        left = asyncio.Event()

        async def waits(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await wire.rest()
            left.set()

        backend = await stage.route(waits)
        client = await stage.connect()
        number = await client.request()
        while not backend.heads:
            await asyncio.sleep(0)
        client.h2.reset_stream(number)
        await client.flush()
        await asyncio.wait_for(left.wait(), 20)

    play("uvloop", scene, stage)


def rapid_reset(client: Client, n: int) -> bytes:
    if n == 0:
        client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 4096})
    number = client.h2.get_next_available_stream_id()
    fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example"), (b":path", b"/")]
    client.h2.send_headers(number, fields, end_stream=True)
    client.h2.reset_stream(number)
    return client.h2.data_to_send()


def serialized(frame: Frame, *flags: str) -> bytes:
    for flag in flags:
        frame.flags.add(flag)
    return bytes(frame.serialize())


FLOODS: dict[str, Callable[[Client, int], bytes]] = {
    "reset": rapid_reset,
    "malformed": lambda _, n: serialized(HeadersFrame(5 + 2 * n, b"\x82"), "END_HEADERS", "END_STREAM"),
    "ping": lambda _, n: serialized(PingFrame(0, struct.pack("!Q", n))),
    "settings": lambda _, n: serialized(SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 65536 + n % 2})),
    "priority": lambda _, n: serialized(PriorityFrame(99, depends_on=0)),
    "unknown": lambda _, n: b"\0\0\1\xee\0\0\0\0\0x",
    "window": lambda _, n: serialized(WindowUpdateFrame(0, 1)),
    "closed stream": lambda _, n: serialized(WindowUpdateFrame(1, 1)),
    "reset closed stream": lambda _, n: serialized(RstStreamFrame(1, 8)),
    "empty data": lambda _, n: serialized(DataFrame(3)),
    "continuation": lambda _, n: serialized(HeadersFrame(5, b"\x82") if n == 0 else ContinuationFrame(5, b"\x84")),
    "large continuation": lambda _, n: serialized(
        HeadersFrame(5, b"\x82") if n == 0 else ContinuationFrame(5, bytes(16000))
    ),
    "large frame": lambda _, n: b"\xff\xff\xff\0\0\0\0\0\5" + bytes(20000) if n == 0 else bytes(20000),
}  # fmt: skip


@pytest.mark.parametrize("flood", FLOODS)
def test_floods_end_the_connection_within_bounds(stage: Callable[..., Http2Stage], flood: str) -> None:
    async def scene(stage: Http2Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.connect()
        assert (await client.get()).status == 200
        await client.request(method=b"POST", end=False)  # stream 3
        frame = FLOODS[flood]
        with suppress(ConnectionError, RuntimeError):  # the latter is uvloop's
            for n in range(0, 20000, 100):
                await client.wire.send(b"".join(frame(client, each) for each in range(n, n + 100)))
        await client.until_closed()
        while stage.edge.pool.clients:
            await asyncio.sleep(0)
        assert len(backend.heads) < 300
        other = await stage.connect()
        assert (await other.get()).status == 200

    play("uvloop", scene, stage)


def test_header_list_beyond_bounds_ends_the_connection(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        await stage.route(ok)
        client = await stage.connect()
        assert (await client.get()).status == 200  # its settings have arrived
        # One entry of the table, four thousand bytes, and references to it: a few kilobytes become megabytes.
        bomb = (
            b"\x82\x86\x84" + b"\x40\x01x\x7f" + b"\xa0\x1e" + b"a" * (127 + 32 + 30 * 128) + b"\xbe" * 4000
        )
        await client.wire.send(serialized(HeadersFrame(3, bomb), "END_HEADERS", "END_STREAM"))
        assert await client.until_closed() == CALM

    play("uvloop", scene, stage)


def test_table_that_a_client_wants_kept_is_bounded(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        async def unique(backend: Backend, wire: Wire) -> None:
            for n in range(200):
                await backend.request(wire)
                await wire.send(OK + b"Content-Length: 0\r\nX-Unique: %d%b\r\n\r\n" % (n, b"u" * 1000))

        await stage.route(unique)
        client = await stage.connect()
        client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 2**31})
        for _ in range(20):
            assert (await client.get()).status == 200
        assert (await connection(stage))._h2.encoder.header_table_size <= 4096

    play("uvloop", scene, stage)


def test_client_that_takes_no_responses_is_not_read(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        await stage.route(ok, path="/only")
        client = await stage.connect()
        served = await connection(stage)
        served.pause_writing()
        number = await client.request(path=b"/none")
        for _ in range(100):
            await asyncio.sleep(0)
        assert served._h2.highest_inbound_stream_id < number
        served.resume_writing()
        assert (await client.response(number)).status == 404

    play("uvloop", scene, stage)


def test_drain_answers_what_is_open_and_refuses_what_comes_later(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        over = asyncio.Event()

        async def later(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await over.wait()
            await wire.send(OK + b"Content-Length: 2\r\n\r\nok")

        backend = await stage.route(later)
        client, idle = await stage.connect(), await stage.connect()
        client.h2.config.validate_inbound_headers = False
        number = await client.request()
        while not backend.heads:
            await asyncio.sleep(0)
        stage.edge.drain()
        draining = asyncio.ensure_future(drain(stage.edge, 20))
        for each in (idle, client):  # a PING and the announcement
            raw = b""
            while not raw.endswith(b"draining\0\0\x08\7\0\0\0\0\0" + struct.pack("!II", 2**31 - 1, 0)):
                raw += await each.wire.some()
            await each.wire.send(serialized(PingFrame(0, b"draining"), "ACK"))
        assert (await idle.wire.rest()).endswith(b"\x08\7\0\0\0\0\0" + struct.pack("!II", 1, 0))
        assert b"\x08\7\0\0\0\0\0" + struct.pack("!II", 1, 0) in await client.wire.some()
        client.h2.get_next_available_stream_id()
        await client.request()
        assert await client.wire.exactly(13) == b"\0\0\4\3\0\0\0\0\3" + struct.pack("!I", REFUSED)
        over.set()
        assert (await client.wire.rest()).endswith(b"ok")
        assert number == 1
        assert len(backend.heads) == 1
        await asyncio.wait_for(draining, 20)

    play("uvloop", scene, stage)


def test_idle_connection_is_closed_with_a_goaway(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        await stage.route(ok)
        client = await stage.connect()
        assert (await client.get()).status == 200
        assert await client.until_closed() == 0
        client = await stage.connect()  # and one without a request
        assert await client.until_closed() == 0

    play("uvloop", scene, stage, keep_alive_seconds=0.2, head_seconds=0.2)


def test_connection_without_keep_alive_ends_with_its_last_stream(stage: Callable[..., Http2Stage]) -> None:
    both = asyncio.Barrier(2)

    async def together(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await both.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    async def scene(stage: Http2Stage) -> None:
        await stage.route(together)
        client = await stage.connect()
        for number in [await client.request(), await client.request()]:
            assert (await client.response(number)).body == b"hello"
        assert await client.until_closed() == 0
        client = await stage.connect()  # and one without a request
        assert await client.until_closed() == 0

    play("uvloop", scene, stage, keep_alive_seconds=0, head_seconds=0.2)


def test_client_that_says_goaway_still_gets_its_responses(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        go_on = asyncio.Event()

        async def later(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await go_on.wait()
            await wire.send(OK + b"Content-Length: 2\r\n\r\nok")

        await stage.route(later)
        client = await stage.connect()
        await client.request()
        await client.wire.send(b"\0\0\x08\7\0\0\0\0\0" + bytes(8))
        go_on.set()
        assert (await client.wire.rest()).endswith(b"ok")

    play("uvloop", scene, stage)


def test_any_frames_at_all_leave_the_gateway_working(stage: Callable[..., Http2Stage]) -> None:
    async def scene(stage: Http2Stage) -> None:
        await stage.route(ok)
        dice = random.Random(9113)
        for _ in range(100):
            client = await stage.connect()
            head = client.h2.encoder.encode(
                [
                    (b":method", b"POST"),
                    (b":scheme", b"https"),
                    (b":authority", b"a.example"),
                    (b":path", b"/"),
                ]
            )
            for n in range(dice.randrange(1, 30)):
                kind = dice.choice([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 200])
                payload = dice.choice([
                    b"", head, head[: dice.randrange(len(head))], dice.randbytes(dice.randrange(40)), bytes(4),
                    bytes(8), bytes(6), b"\0\0\0\1", b"\0\4" + dice.randbytes(4),
                ])  # fmt: skip
                flags = dice.choice([0, 1, 4, 5, 8, 0x20, dice.randrange(256)])
                stream = dice.choice([0, 1, 2 * n + 1, 2 * n + 1, dice.randrange(2**32)])
                frame = struct.pack("!I", len(payload))[1:] + bytes((kind, flags)) + struct.pack("!I", stream)
                client.wire.writer.write(frame + payload)
            client.wire.close()
            with suppress(ConnectionError, ssl.SSLError):
                await asyncio.wait_for(client.wire.writer.wait_closed(), DEADLINE)
        client = await stage.connect()
        assert (await client.get()).status == 200

    play("uvloop", scene, stage)
