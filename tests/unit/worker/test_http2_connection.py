"""Connections of HTTP/2: told apart from others, drained by GOAWAY without a lost request, limited as others are."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
import ssl
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from poolctl.keeper import connection_handover
from poolctl.keeper.connection_handover import Routed
from poolctl.routing.context import try_get_route, upstream_name
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import write_table
from poolctl.worker.serving import http1_connection, http2_connection
from poolctl.worker.serving.http2_connection import PREFACE
from poolctl.worker.serving.worker_routes import Routes
from tests.asgi_apps import answer, lifespan
from tests.certificates import certificate
from tests.serving import Client, Engine, Pair, accepted, leaving, served, turns, until

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

    def ask(self, path: str = "/") -> int:
        stream = self.conn.send_request(b"GET", path.encode(), b"2", [(b"host", b"test")])
        stream.end_message()
        self.send()
        return int(stream.stream_id)

    def send(self) -> None:
        self.client.writer.write(self.conn.data_to_send())

    async def read(self) -> bool:
        """Whether there was something before the end."""
        data = await asyncio.wait_for(self.client.reader.read(65536), 5)
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
        async with served(engine, http2=True, head_seconds=0.2) as (_, _app, port, _running):
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
        async with served(engine, http2=True, head_seconds=0.1) as (_, _app, port, _running):
            client = await Http2.connect(port)
            assert await client.answer(client.ask()) == (200, b"ok")
            assert await client.client.stays_open(0.3)
            assert await client.answer(client.ask()) == (200, b"ok")

    engine.run(scenario())


def test_frames_are_followed_however_they_are_cut() -> None:
    conn = zttp.Connection(zttp.CLIENT, protocol=zttp.HTTP2)
    conn.initiate_connection()
    conn.send_request(b"GET", b"/", b"2", [(b"host", b"test"), (b"a", b"b" * 3000)]).end_message()
    sent = conn.data_to_send()
    for size in (1, 7, len(sent)):
        frames = http2_connection.Frames()
        assert frames.within
        for at in range(0, len(sent), size):
            frames.feed(sent[at : at + size])
            assert frames.within is (at + size < len(sent)) or not frames.within
        assert not frames.within
        assert 1000 < frames.head_bytes < 4000


@pytest.mark.parametrize(("seconds", "asked"), [(None, False), (5, False), (5, True)])
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


@pytest.mark.parametrize("protocol", ["h2", "http/1.1"])
def test_application_sees_the_route_of_a_tls_connection_that_the_gateway_passed_on(
    engine: Engine, pair: Pair, tmp_path: Path, protocol: str
) -> None:
    route = Route(alias="one", host="one.test", to=(Target(server="one"),))
    table = write_table([route], 5)
    routes = Routes("one")
    routes.renew([table])
    os.close(table)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))
    context.set_alpn_protocols(["h2", "http/1.1"])

    async def scenario() -> None:
        options: Any = {"adoption": pair.worker(), "routes": routes, "http2": True, "secure": context}
        async with served(engine, **options) as (_, app, _port, _running):
            client = await _passed_tls(pair, Routed("one", 5), protocol)
            if protocol == "h2":
                other = Http2(client)
                assert await other.answer(other.ask()) == (200, b"ok")
                assert await other.answer(other.ask("/x")) == (200, b"ok")
            else:
                assert (await client.get("/", "X-Real-IP: 1.1.1.1", "X-Forwarded-For: 1.1.1.1"))[0] == 200
            assert {each["http_version"] for each in app.scopes} == {"2" if protocol == "h2" else "1.1"}
            for scope in app.scopes:
                assert try_get_route(scope) == route
                assert upstream_name(scope) == "one"
                headers = dict(scope["headers"])
                assert headers[b"x-forwarded-for"] == b"127.0.0.1"
                assert headers[b"x-forwarded-proto"] == b"https"
                assert b"x-real-ip" not in headers
        routes.renew([])

    engine.run(scenario())


async def _passed_tls(pair: Pair, routed: Routed, protocol: str) -> Client:
    """A client whose connection has been passed on before its handshake, in which it offers this protocol alone."""
    client_side = ssl._create_unverified_context()
    client_side.set_alpn_protocols([protocol])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = asyncio.ensure_future(
            asyncio.open_connection(*listener.getsockname(), ssl=client_side, server_hostname="one.test")
        )
        await turns()
        sock, _ = await asyncio.to_thread(listener.accept)
    with sock:
        connection_handover.give(pair.give, sock.fileno(), routed=routed)
    return Client(*await connecting)


@pytest.mark.parametrize("said", [b"", PREFACE[:1], PREFACE[:-1]])
def test_connection_that_ends_before_its_preface_is_forgotten(engine: Engine, said: bytes) -> None:
    async def scenario() -> None:
        async with served(engine, http2=True) as (server, _, port, _):
            state = server.server_state
            client = await Client.connect(port)
            client.writer.write(said)
            await until(lambda: len(state.connections) == 1 and len(state.heads.due) == 1)
            client.writer.close()
            await until(lambda: not state.connections)
            assert not state.heads.due
            assert state.open_connections == 0

    engine.run(scenario())
