"""Connections of HTTP/2: told apart from others, drained by GOAWAY without a lost request, limited as others are."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import re
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from poolctl.keeper import connection_handover
from poolctl.routing.context import CONTEXT_FIELD, context_value, try_get_route
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import write_table
from poolctl.worker import tally
from poolctl.worker.serving import http1_connection, http2_connection
from poolctl.worker.serving.accepting import protocol_factory
from poolctl.worker.serving.connection_balancer import ConnectionBalancer
from poolctl.worker.serving.connection_state import PoolServerState
from poolctl.worker.serving.http2_connection import PREFACE, Http2Connection
from poolctl.worker.serving.pool_server import connection_class
from poolctl.worker.serving.request_records import FailedRequestLog, RequestCounts
from poolctl.worker.serving.route_context import RouteContexts
from tests.asgi_apps import answer, hello, lifespan
from tests.serving import (
    Client,
    Engine,
    Pair,
    Seat,
    Wire,
    accepted,
    blank_page,
    leaving,
    served,
    until,
)
from tests.virtual_loop import VirtualLoop

zttp = pytest.importorskip("zttp")
if importlib.util.find_spec("uvicorn.protocols.http.zttp_h2_impl") is None:
    pytest.skip("this uvicorn has no HTTP/2", allow_module_level=True)


BIG = 1_000_000
HIGHEST = 2**31 - 1


@pytest.fixture(params=["asyncio", "uvloop"])
def engine(request: pytest.FixtureRequest) -> Engine:
    return Engine(request.param, "zttp")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (http1_connection, http2_connection):
        monkeypatch.setattr(module, "QUIET_SECONDS", 0.15)


class Http2:
    """A client that reads only when it is told to; `events` are those of each stream, of the connection under 0."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.conn = zttp.Connection(zttp.CLIENT, protocol=zttp.HTTP2)
        self.conn.initiate_connection()
        self.events: dict[int, list[Any]] = defaultdict(list)

    @classmethod
    async def connect(cls, port: int) -> Http2:
        return cls(await Client.connect(port))

    def ask(self, path: str = "/", *headers: tuple[bytes, bytes]) -> int:
        stream = self.conn.send_request(b"GET", path.encode(), b"2", [(b"host", b"test"), *headers])
        stream.end_message()
        self.send()
        return int(stream.stream_id)

    def send(self) -> None:
        self.client.writer.write(self.conn.data_to_send())

    async def read(self) -> bool:
        """Whether there was something before the end."""
        data = await asyncio.wait_for(self.client.reader.read(65536), 60)
        if data:
            self.conn.receive_data(data)
            while (event := self.conn.next_event()) is not zttp.NEED_DATA:
                self.events[getattr(event, "stream_id", 0)].append(event)
            self.send()
        return bool(data)

    async def answer(self, stream: int) -> tuple[int, bytes]:
        """Status and body."""
        while not any(isinstance(each, zttp.EndOfMessage) for each in self.events[stream]):
            assert await self.read(), "the connection has ended"
        (status,) = [each.status_code for each in self.events[stream] if isinstance(each, zttp.Response)]
        return status, b"".join(each.data for each in self.events[stream] if isinstance(each, zttp.Data))

    @property
    def goaways(self) -> list[tuple[int, int]]:
        return [
            (each.last_stream_id, each.error_code) for each in self.events[0] if isinstance(each, zttp.GoAway)
        ]


async def told(client: Http2) -> None:
    """Return when the client has been told to open no stream more."""
    while not client.goaways:
        assert await client.read()


async def big(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    else:
        while (await receive())["more_body"]:
            continue
        await answer(send, "x" * BIG)


def test_http2_and_http1_are_distinguished_by_their_first_bytes(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, http2=True) as (_, app, port, _running):
            two = await Http2.connect(port)
            assert await two.answer(two.ask()) == (200, b"ok")
            one = await Client.connect(port)
            assert (await one.get())[0] == 200
            pieces = await Http2.connect(port)
            start = pieces.conn.data_to_send()
            pieces.client.writer.write(start[:10])
            await asyncio.sleep(0.02)
            pieces.client.writer.write(start[10:])
            assert await pieces.answer(pieces.ask()) == (200, b"ok")
            assert [scope["http_version"] for scope in app.scopes] == ["2", "1.1", "2"]

    engine.run(scenario())


def test_drain_answers_streams_opened_before_the_client_saw_goaway(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, http2=True) as (server, app, port, running):
            client = await Http2.connect(port)
            slow = client.ask("/slow")
            await app.under_way.wait()
            server.drain()
            await leaving(server)
            late = client.ask()  # on its way before the client has read what the server says
            assert await client.answer(late) == (200, b"ok")
            assert client.goaways == [(HIGHEST, 0)]
            assert not running.done()
            app.release.set()
            assert await client.answer(slow) == (200, b"ok")
            while await client.read():
                continue
            assert client.goaways == [(HIGHEST, 0), (late, 0)]
            await asyncio.wait_for(running, 10)

    engine.run(scenario())


def test_stop_refuses_new_streams_so_that_clients_can_repeat_them(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, http2=True) as (server, app, port, running):
            client = await Http2.connect(port)
            slow = client.ask("/slow")
            await app.under_way.wait()
            server.stop()
            await leaving(server)
            late = client.ask()
            while not client.events[late]:
                assert await client.read()
            (refused,) = client.events[late]
            assert (type(refused), refused.error_code) == (zttp.RstStream, 7)
            assert client.goaways == [(slow, 0)]
            app.release.set()
            assert await client.answer(slow) == (200, b"ok")
            await asyncio.wait_for(running, 10)
            assert len(app.scopes) == 1

    engine.run(scenario())


def test_request_that_a_stop_cuts_off_gets_503(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, http2=True, stop_seconds=0.1) as (server, app, port, running):
            client = await Http2.connect(port)
            stream = client.ask("/slow")
            await app.under_way.wait()
            server.stop()
            assert await client.answer(stream) == (503, b"Service Unavailable")
            (response,) = [each for each in client.events[stream] if isinstance(each, zttp.Response)]
            assert b"connection" not in dict(response.headers), "of HTTP/1.1 alone"
            assert client.goaways
            await running

    engine.run(scenario())


def test_drain_sends_a_response_whole_to_a_slow_reader(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, big, http2=True) as (server, _app, port, running):
            client = await Http2.connect(port)
            stream = client.ask()
            await until(lambda: any(getattr(each, "_newest", 0) for each in server.server_state.connections))
            server.drain()
            await asyncio.sleep(0.3)  # longer than it takes to be quiet
            assert not running.done()
            status, body = await client.answer(stream)
            assert (status, len(body)) == (200, BIG)
            await asyncio.wait_for(running, 10)

    engine.run(scenario())


def test_silent_connections_and_half_frames_have_the_time_of_a_head(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, http2=True, head_seconds=0.5) as (_, _app, port, _running):
            silent, begun, settled, asked = [await Http2.connect(port) for _ in range(4)]
            begun.client.writer.write(PREFACE[:5])
            settled.send()
            assert await asked.answer(asked.ask()) == (200, b"ok")
            asked.client.writer.write(b"\x00\x00\x08\x06")
            for client in (silent, begun, settled, asked):
                while await client.read():
                    continue

    engine.run(scenario())


def test_between_two_requests_only_the_keep_alive_timeout_counts(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, http2=True, head_seconds=0.3) as (_, _app, port, _running):
            client = await Http2.connect(port)
            assert await client.answer(client.ask()) == (200, b"ok")
            assert await client.client.stays_open(0.6)
            assert await client.answer(client.ask()) == (200, b"ok")

    engine.run(scenario())


def test_frames_are_followed_however_they_are_cut() -> None:
    settings, headers, more_headers, data = 4, 1, 9, 0
    sent = [
        PREFACE,
        frame(settings),
        frame(headers, b"a" * 300, flags=1)
        + frame(more_headers, b"b" * 70)
        + frame(more_headers, b"c", flags=4),
        frame(data, b"d" * 9),
        frame(headers, b"e" * 20, flags=4),
        frame(data, b"f"),
    ]
    ends = list(itertools.accumulate(map(len, sent)))
    frames = http2_connection.Http2FrameTracker()
    assert frames.within
    found, head_bytes = [], []
    for at, byte in enumerate(b"".join(sent), 1):
        frames.feed(bytes([byte]))
        if not frames.within:
            found.append(at)
            head_bytes.append(frames.head_bytes)
    assert found == ends
    assert head_bytes == [0, 0, 371, 371, 20, 20]
    for size in (7, ends[-1]):
        frames = http2_connection.Http2FrameTracker()
        for at in range(0, ends[-1], size):
            frames.feed(b"".join(sent)[at : at + size])
        assert (frames.within, frames.head_bytes) == (False, 20)


@pytest.mark.parametrize(("seconds", "asked"), [(None, False), (60, False), (60, True)])
def test_connection_that_another_process_accepted_is_served(
    engine: Engine, pair: Pair, seconds: float | None, asked: bool
) -> None:
    async def scenario() -> None:
        async with served(engine, adoption=pair.worker(), http2=True):
            until = None if seconds is None else time.monotonic() + seconds
            client, sock = await accepted()
            pair.hand_over(sock, until, asked=asked)
            assert (await client.get())[0] == 200
            if asked:
                return  # its client has spoken HTTP/1.1
            client, sock = await accepted()
            pair.hand_over(sock, until)
            other = Http2(client)
            assert await other.answer(other.ask()) == (200, b"ok")

    engine.run(scenario())


def test_application_sees_the_route_that_the_gateway_names_and_never_the_header(engine: Engine) -> None:
    route = Route(alias="one", host="one.test", to=(Target(server="one"),))
    table = write_table([route], 5)
    routes = RouteContexts("one")
    routes.replace_routes([table], "secret")
    os.close(table)
    name = CONTEXT_FIELD.encode()

    async def scenario() -> None:
        async with served(engine, http2=True, routes=routes, config={"proxy_headers": False}) as it:
            client = await Http2.connect(it.port)
            for key in ("secret", "guessed"):
                fields = [
                    (name, context_value("one", key, "one").encode()),
                    (b"x-forwarded-for", b"192.0.2.7"),
                    (b"x-forwarded-proto", b"https"),
                ]
                assert await client.answer(client.ask("/", *fields)) == (200, b"ok")
            believed, forged = it.app.scopes
            assert (try_get_route(believed), try_get_route(forged)) == (route, None)
            assert (believed["scheme"], believed["client"]) == ("https", ("192.0.2.7", 0))
            assert (forged["scheme"], forged["client"][0]) == ("http", "127.0.0.1")
            assert not [scope for scope in it.app.scopes if name in dict(scope["headers"])]

    engine.run(scenario())


@pytest.mark.parametrize("said", [b"", PREFACE[:1], PREFACE[:-1]])
def test_connection_that_ends_before_its_preface_is_forgotten(engine: Engine, said: bytes) -> None:
    async def scenario() -> None:
        async with served(engine, http2=True) as (server, _, port, _):
            state = server.server_state
            client = await Client.connect(port)
            client.writer.write(said)
            await until(lambda: len(state.connections) == 1 and len(state.head_timeouts.due) == 1)
            client.writer.close()
            await until(lambda: not state.connections)
            assert not state.head_timeouts.due
            assert state.open_connections == 0

    engine.run(scenario())


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """A frame of HTTP/2 (RFC 9113 §4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Connected(Http2):
    """A connection on a loop whose time passes at once, and its client, which reads all that was written."""

    def __init__(self, sock: socket.socket, state: PoolServerState | None = None, app: Any = hello) -> None:
        self.conn = zttp.Connection(zttp.CLIENT, protocol=zttp.HTTP2)
        self.conn.initiate_connection()
        self.events = defaultdict(list)
        self.loop = VirtualLoop()
        self.wire = Wire(sock, self.loop)
        self.state = state or PoolServerState()
        self.state.http2 = Http2Connection
        self.config = uvicorn.Config(app, http="h11", timeout_keep_alive=75, log_config=None)
        self.config.load()
        self.config.http_protocol_class = connection_class(self.config.http_protocol_class)  # type: ignore[arg-type]
        asyncio.set_event_loop(self.loop)

    def begin(self, **attributes: Any) -> None:
        """Tell the connection, with these attributes, that it has been made."""

        async def begin() -> None:
            made = protocol_factory(self.config, self.state, {})()
            for name, value in attributes.items():
                setattr(made, name, value)
            self.wire.protocol = made
            made.connection_made(self.wire)

        self.loop.run_until_complete(begin())

    def send(self) -> None:
        self.receive(self.conn.data_to_send())

    def receive(self, data: bytes) -> None:
        """Let the connection receive this, and its client read what the connection has written until then."""
        self.loop.call_soon(lambda: self.wire.protocol.data_received(data))
        self.pass_time()

    def pass_time(self, seconds: float = 0.0) -> None:
        self.loop.pass_time(seconds)
        if self.wire.written:
            self.conn.receive_data(self.wire.written)
        self.wire.written = b""
        while (event := self.conn.next_event()) is not zttp.NEED_DATA:
            self.events[getattr(event, "stream_id", 0)].append(event)

    def response(self, stream: int) -> tuple[int, bytes]:
        """Status and body of a complete response."""
        head, *body, end = self.events[stream]
        assert isinstance(end, zttp.EndOfMessage)
        return head.status_code, b"".join(each.data for each in body)

    def close(self) -> None:
        self.wire.protocol.connection_lost(None)
        self.loop.pass_time(1)
        asyncio.set_event_loop(None)
        self.loop.close()


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, clients = socket.socketpair()
    with ours, clients:
        yield ours, clients


@pytest.fixture
def undecided(sockets: tuple[socket.socket, socket.socket]) -> Iterator[Connected]:
    """A connection of which nothing has arrived."""
    made = Connected(sockets[0])
    made.begin()
    yield made
    made.close()


@pytest.fixture
def connected(undecided: Connected) -> Connected:
    """A connection of HTTP/2 without a request."""
    undecided.send()
    undecided.send()  # acknowledges the settings
    return undecided


def test_connection_without_data_is_handed_over_with_the_time_of_its_head(
    undecided: Connected, pair: Pair
) -> None:
    due = undecided.state.head_timeouts.due[undecided.wire.protocol]
    assert undecided.wire.protocol.hand_over(pair.give)
    with connection_handover.receive_connection(pair.take) as taken:
        assert (taken.until, taken.asked) == (due, False)
    assert (undecided.wire.aborted, undecided.wire.reading) == (True, False)
    assert not undecided.state.connections


@pytest.mark.parametrize("change", ["data", "closing", "another protocol"])
def test_connection_that_has_become_something_else_does_not_move(
    undecided: Connected, pair: Pair, change: str
) -> None:
    if change == "data":
        undecided.receive(PREFACE[:1])
    elif change == "closing":
        undecided.wire.closed = True
    protocol = undecided.wire.protocol
    if change == "another protocol":
        undecided.send()
    assert not protocol.hand_over(pair.give)
    assert (undecided.wire.pauses, undecided.wire.aborted) == (0, False)


def test_connection_whose_pair_is_full_is_read_on(undecided: Connected, pair: Pair) -> None:
    pair.fill()
    assert not undecided.wire.protocol.hand_over(pair.give)
    assert (undecided.wire.pauses, undecided.wire.reading, undecided.wire.aborted) == (1, True, False)
    assert undecided.wire.protocol in undecided.state.connections


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize(
    ("begun", "silent"), [("nothing", True), ("unread", False), ("preface", False), ("request", False)]
)
def test_connection_that_stays_silent_is_closed_by_a_drain(
    sockets: tuple[socket.socket, socket.socket], draining: bool, begun: str, silent: bool
) -> None:
    made = Connected(sockets[0])
    made.state.draining = draining
    made.begin()
    if not draining:
        made.wire.protocol.close_when_idle()
    if begun == "unread":
        sockets[1].send(b"G")
    elif begun == "preface":
        made.receive(PREFACE[:1])
    elif begun == "request":
        made.receive(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
    made.loop.pass_time(0.14)
    assert not made.wire.closed
    made.loop.pass_time(0.02)
    assert made.wire.closed is silent
    made.loop.pass_time(1)
    made.close()


def test_undecided_connection_is_closed_by_a_stop(undecided: Connected) -> None:
    undecided.wire.protocol.shutdown()
    assert undecided.wire.closed


@pytest.mark.parametrize(
    ("attributes", "moves"),
    [
        ({}, True),
        ({"_until": (None, False)}, False),
    ],
)
def test_new_connection_moves_at_once_if_this_worker_has_too_many(
    sockets: tuple[socket.socket, socket.socket], pair: Pair, attributes: dict[str, Any], moves: bool
) -> None:
    made = Connected(sockets[0])
    page: dict[Seat, int | None] = {}
    Seat(page).publish(0)

    async def join() -> None:
        made.state.balancer = ConnectionBalancer(made.state, pair.give, Seat(page), kept=True)  # type: ignore[arg-type]
        made.state.balancer.publish_accepting(True)

    made.loop.run_until_complete(join())
    made.state.connections.add("an earlier connection")
    made.begin(**attributes)
    assert made.wire.aborted is moves
    if moves:
        connection_handover.receive_connection(pair.take).close()
    else:
        made.send()
        assert Http2Connection in map(type, made.state.connections)
        assert not made.wire.aborted
    made.close()


def test_time_of_the_first_head_goes_on_when_the_protocol_is_known(undecided: Connected) -> None:
    due = undecided.state.head_timeouts.due[undecided.wire.protocol]
    undecided.receive(PREFACE)
    assert undecided.state.connections == {undecided.wire.protocol}
    assert isinstance(undecided.wire.protocol, Http2Connection)
    assert undecided.state.head_timeouts.due == {undecided.wire.protocol: due}
    undecided.receive(undecided.conn.data_to_send()[len(PREFACE) :])
    undecided.ask()
    assert not undecided.state.head_timeouts.due


@pytest.mark.parametrize("requests", [0, 1])
def test_connection_that_is_lost_within_a_head_is_forgotten_with_its_time_limit(
    connected: Connected, requests: int
) -> None:
    for _ in range(requests):
        connected.ask()
    connected.receive(frame(1, b"", flags=0, stream=1 + 2 * requests)[:-1])
    assert connected.state.head_timeouts.due
    connected.wire.protocol.connection_lost(OSError())
    assert not connected.state.head_timeouts.due


def test_uvicorns_access_log_is_written_if_the_configuration_says_so(
    undecided: Connected, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "uvicorn.access")
    undecided.config.access_log = False
    assert undecided.response(undecided.ask()) == (200, b"hello")
    assert not caplog.messages


def test_request_without_a_body_is_known_to_be_complete(connected: Connected) -> None:
    connected.wire.protocol.app = big
    connected.conn.send_request(b"GET", b"/", b"2", [(b"host", b"test")])
    head = bytearray(connected.conn.data_to_send())
    head[4] |= 1  # END_STREAM
    connected.receive(bytes(head))
    assert connected.events[1][0].status_code == 200


def test_requests_are_counted_with_their_status_and_latency(connected: Connected, capfd: Any) -> None:
    page = blank_page()
    protocol = connected.wire.protocol
    protocol.counts = RequestCounts(page)
    connected.state.failed = FailedRequestLog("text")
    protocol.app = slow
    begun_ns = time.monotonic_ns()
    stream = connected.ask()
    assert (page[tally.STARTED], sum(page[tally.BUCKETS : tally.BUCKETS + len(tally.BOUNDS_NS) + 1])) == (
        1,
        0,
    )
    connected.pass_time(1)
    assert connected.response(stream) == (503, b"late")
    assert (page[tally.STARTED], sum(page[tally.BUCKETS : tally.BUCKETS + len(tally.BOUNDS_NS) + 1])) == (
        1,
        1,
    )
    assert page[tally.STATUS + 5] == 1
    assert 0 < page[tally.LATENCY_NS] < time.monotonic_ns() - begun_ns
    protocol.counts = None
    connected.ask()
    connected.pass_time(1)
    for line in capfd.readouterr().out.splitlines():
        assert re.fullmatch(r'ERROR: +- - "GET / HTTP/2" 503 Service Unavailable \d+\.\dms', line)
    assert page[tally.STARTED] == 1


def test_request_is_activity_when_it_begins(connected: Connected) -> None:
    seen: list[str] = []
    connected.wire.protocol.app = slow
    connected.state.on_activity = lambda: seen.append("active")
    connected.ask()
    assert seen == ["active"]
    connected.pass_time(1)


async def slow(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.5)
    await answer(send, "late", 503)


@pytest.mark.parametrize(("more", "closed"), [(0, False), (1, True)])
def test_head_is_limited_to_the_byte(connected: Connected, more: int, closed: bool) -> None:
    connected.conn.send_request(b"GET", b"/", b"2", [(b"host", b"test"), (b"a", b"b" * 500)]).end_message()
    head = connected.conn.data_to_send()
    connected.state.head_timeouts.most_bytes = int.from_bytes(head[:3], "big") - more
    connected.receive(head)
    assert connected.wire.closed is closed
    assert [error for _, error in connected.goaways] == ([11] if closed else [])
    assert bool(connected.events[1]) is not closed


def test_connection_lingers_until_its_client_is_idle(connected: Connected) -> None:
    stream = connected.ask("/slow")
    connected.loop.call_soon(connected.wire.protocol.close_when_idle)
    connected.loop.call_soon(connected.wire.protocol.close_when_idle)
    connected.pass_time(0.2)
    assert connected.goaways == [(HIGHEST, 0)]
    connected.pass_time(0.11)
    assert connected.response(stream) == (200, b"slow hello")
    connected.pass_time(0.12)
    assert connected.response(connected.ask()) == (200, b"hello")
    connected.pass_time(0.14)
    assert not connected.wire.closed
    connected.pass_time(0.02)
    assert connected.goaways == [(HIGHEST, 0), (stream + 2, 0)]
    assert connected.wire.closed


@pytest.mark.parametrize(
    "end", ["close_when_idle", "shutdown", "timeout_keep_alive_handler", "on_head_timeout"]
)
def test_connection_that_closes_writes_nothing_more(connected: Connected, end: str) -> None:
    connected.wire.closed = True
    connected.loop.call_soon(getattr(connected.wire.protocol, end))
    connected.pass_time(1)
    assert not connected.goaways


@pytest.mark.parametrize("end", ["shutdown", "timeout_keep_alive_handler", "on_head_timeout"])
def test_idle_connection_closes_with_the_last_stream_that_was_answered(
    connected: Connected, end: str
) -> None:
    connected.ask()
    connected.loop.call_soon(getattr(connected.wire.protocol, end))
    connected.pass_time()
    assert connected.goaways == [(1, 0)]
    assert connected.wire.closed
    assert not connected.state.head_timeouts.due


def test_connection_made_during_a_drain_answers_and_closes(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    made = Connected(sockets[0])
    made.state.draining = True
    made.begin()
    assert made.response(made.ask()) == (200, b"hello")
    assert made.goaways == [(HIGHEST, 0)]
    made.pass_time(0.16)
    assert made.goaways == [(HIGHEST, 0), (1, 0)]
    made.close()


@pytest.mark.parametrize("lingering", [False, True])
@pytest.mark.parametrize("holds", ["unread data", "half a frame"])
def test_idle_connection_that_holds_data_of_a_request_stays_open(
    sockets: tuple[socket.socket, socket.socket], connected: Connected, lingering: bool, holds: str
) -> None:
    seconds = 0.15 if lingering else 75
    connected.ask()
    if lingering:
        connected.wire.protocol.close_when_idle()
    if holds == "unread data":
        sockets[1].send(b"\0")
    else:
        connected.receive(b"\0")
    connected.pass_time(seconds + 0.01)
    assert not connected.wire.closed
    if holds == "unread data":
        sockets[0].recv(1)
    else:
        connected.receive(frame(6, bytes(8))[1:])
    connected.pass_time(seconds - 0.02)
    assert not connected.wire.closed
    connected.pass_time(0.03)
    assert connected.wire.closed


def test_response_that_waits_for_its_client_is_sent_before_the_connection_closes(
    connected: Connected,
) -> None:
    connected.wire.protocol.app = big
    stream = connected.ask()
    for each in range(3):
        connected.loop.call_soon(
            connected.wire.protocol.shutdown if each == 0 else connected.wire.protocol.close_when_idle
        )
        connected.pass_time(0.2)
        assert not connected.wire.closed
    for _ in range(100):
        connected.send()
        connected.pass_time(0.2)
    assert connected.wire.closed
    assert len(connected.response(stream)[1]) == BIG


@pytest.mark.parametrize(("accept", "ends"), [(b"text/event-stream", True), (b"*/*", False)])
def test_event_stream_is_ended_between_two_events_and_no_other_stream(
    connected: Connected, accept: bytes, ends: bool
) -> None:
    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/waits":
            await asyncio.sleep(1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            continue

    connected.wire.protocol.app = streaming
    streams = []
    for path in (b"/", b"/waits"):
        stream = connected.conn.send_request(b"GET", path, b"2", [(b"host", b"test"), (b"accept", accept)])
        stream.end_message()
        connected.send()
        streams.append(stream.stream_id)
    connected.loop.call_soon(connected.wire.protocol.end_event_streams)
    connected.pass_time()
    begun, waiting = streams
    assert [type(each) for each in connected.events[begun]] == [
        zttp.Response,
        zttp.Data,
        *([zttp.EndOfMessage] if ends else []),
    ]
    assert not connected.events[waiting]
    assert len(connected.state.tasks) == (1 if ends else 2)
    connected.pass_time(1)
    assert [type(each) for each in connected.events[waiting]] == [zttp.Response, zttp.Data]
