"""One client's connection: what passes through, what fails, and how both sides learn of it in time."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.features.gateway.process.backends.route_backends import UNUSED, Lease
from poolctl.features.gateway.process.proxy import client_connection
from poolctl.features.gateway.process.proxy.client_connection import (
    MOST_FRAMES_AT_ONCE,
    MOST_PASSABLE,
    MOST_REQUESTS_AT_ONCE,
    ClientConnection,
    WebSocketFrameTracker,
)
from poolctl.features.gateway.process.proxy.serving import start_serving, start_serving_tls
from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.features.gateway.process.tls import CertificatesByListener
from poolctl.features.gateway.process.waiting_connections import WaitingConnections
from poolctl.http.messages import MOST_CHUNKS_A_SECOND, MOST_CHUNKS_AT_ONCE, ChunkedBodyReader
from poolctl.keeper.connection_handover import Connection
from poolctl.routing.context import context_line
from poolctl.routing.route import BreakerRule, Header, Redirect, Route, Target, TrafficLimits
from poolctl.worker import tally
from tests.certificates import certificate
from tests.examples import examples
from tests.features.gateway import passing_stage
from tests.features.gateway.passing_stage import Pair, app_route, until
from tests.features.gateway.proxy_stage import (
    DEADLINE,
    Backend,
    Script,
    Stage,
    Wire,
    _pair,
    no_descriptors_left,
    ok,
    play,
    route,
)
from tests.features.gateway.test_gateway_access_log import lines_of, parts
from tests.features.gateway.test_serving import authority

CLOSE_1012 = b"\x88\x02\x03\xf4"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
UPGRADE = b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: %b\r\n\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %b\r\n\r\n"
# Short timeouts of routes: what is waited for never comes.
SOON = 0.1


async def status_of(client: Wire) -> int:
    head, _ = await client.response()
    return int(head[9:12])


def failing(*steps: bytes, reset: bool = False) -> Script:
    """Reads a request, sends these pieces and closes."""

    async def script(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        for step in steps:
            await wire.send(step)
        if reset:
            wire.reset()

    return script


async def hanging(backend: Backend, wire: Wire) -> None:
    """Never answers."""
    await backend.request(wire)
    await wire.rest()


def unreachable() -> str:
    """The URL of a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_backend_that_cannot_be_reached_is_a_bad_gateway() -> None:
    async def scene(stage: Stage) -> None:
        stage.routes(Route(alias="app", to=(Target(url=unreachable()),)))
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 502
        await client.send(GET)  # the connection goes on
        assert await status_of(client) == 502
        url = next(iter(stage.edge.table)).to[0].url
        for traffic in (stage.edge.counts.route("app"), stage.edge.counts.backend(url)):
            assert traffic.to_json()["errors"] == {"connect": 2}

    play(scene)


def test_each_backend_of_a_repeated_request_is_charged_for_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(client_connection, "monotonic", lambda: now)

    def taking(seconds: float, response: bytes) -> Script:
        async def script(backend: Backend, wire: Wire) -> None:
            nonlocal now
            await backend.request(wire)
            now += seconds
            await wire.send(response)

        return script

    async def scene(stage: Stage) -> None:
        busy = await stage.backend(taking(5.0, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"))
        good = await stage.backend(taking(1.0, OK + b"Content-Length: 0\r\n\r\n"))
        stage.routes(route(busy, good, policy="first", retries=1))
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 200
        counts = stage.edge.counts
        for traffic, seconds in (
            (counts.route("app"), 6),
            (counts.backend(busy.url), 5),
            (counts.backend(good.url), 1),
        ):
            assert traffic.slots[tally.LATENCY_NS] == seconds * 10**9

    play(scene)


FIRST = {
    "unreachable": None,
    "closes": failing(b""),
    "resets": failing(b"", reset=True),
    "answers 503": failing(b"HTTP/1.1 503 no\r\nContent-Length: 2\r\n\r\nno"),
    "is no server of HTTP": failing(b"SSH-2.0-x\r\n\r\n"),
    "hangs": hanging,
}


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_failed_request_is_sent_to_another_backend_if_it_may_be(name: str, method: bytes) -> None:
    async def scene(stage: Stage) -> None:
        script = FIRST[name]
        first = await stage.backend(script) if script else None
        other = await stage.backend(ok)
        targets = Target(url=first.url if first else unreachable()), Target(url=other.url)
        stage.routes(route(to=targets, policy="first", retries=1))
        client = await stage.client()
        await client.send(b"%b / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na" % method)
        if first and name == "hangs":
            await until(lambda: first.heads)
            timer = only_connection(stage)._timer
            timer.deadline = 0.0
            timer._on_loop_timer()
        status = await status_of(client)
        if method == b"GET" or name == "unreachable":
            assert (status, len(other.heads)) == (200, 1)
        else:
            assert status == {"answers 503": 503, "hangs": 504}.get(name, 502)
            assert not other.heads

    play(scene)


def test_request_that_reached_no_backend_is_sent_to_another_even_without_retries() -> None:
    async def scene(stage: Stage) -> None:
        other = await stage.backend(ok)
        targets = Target(url=unreachable()), Target(url=other.url)
        stage.routes(route(to=targets, policy="first"))
        client = await stage.client()
        await client.send(POST + b"Content-Length: 1\r\n\r\na")
        assert await status_of(client) == 200
        assert stage.edge.counts.backend(targets[0].url).errors == {"connect": 1}
        assert stage.edge.counts.route("app").errors == {}

    play(scene)


@pytest.mark.parametrize(("method", "status"), [(b"GET", 200), (b"POST", 502)])
def test_request_on_a_connection_that_the_backend_closes_meanwhile_is_repeated_if_it_may_be(
    method: bytes, status: int
) -> None:
    async def answering_once(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(OK + b"Content-Length: 5\r\n\r\nfirst")
        await backend.request(wire)

    async def scene(stage: Stage) -> None:
        backend = await stage.route(answering_once)
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 200
        await client.send(b"%b / HTTP/1.1\r\nHost: a\r\n\r\n" % method)
        assert await status_of(client) == status
        assert (backend.connections, len(backend.heads)) == ((2, 3) if status == 200 else (1, 2))

    play(scene)


def test_the_last_failing_backend_leaves_nothing_to_try() -> None:
    async def scene(stage: Stage) -> None:
        targets = tuple(Target(url=unreachable()) for _ in range(2))
        stage.routes(route(to=targets, retries=5))
        client = await stage.client()
        await client.send(GET)
        head, _ = await client.response()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: " in head

    play(scene)


async def trickling(backend: Backend, wire: Wire) -> None:
    """Sends a byte of its response, and another one only after the client would have given up."""
    await backend.request(wire)
    await wire.send(OK + b"Content-Length: 5\r\n\r\nh")
    await wire.rest()


async def endless(backend: Backend, wire: Wire) -> None:
    """Sends without end, a little at once."""
    await backend.request(wire)
    await wire.send(OK + b"Content-Length: 1000000\r\n\r\n")
    while True:
        await wire.send(b"x")
        await asyncio.sleep(0.01)


def test_response_that_does_not_begin_is_a_gateway_timeout() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(hanging, timeouts={"head": SOON})
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 504

    play(scene)


@pytest.mark.parametrize(("script", "timeouts"), [(trickling, {"idle": SOON}), (endless, {"total": 1000.0})])
def test_response_that_does_not_end_is_cut_off(
    script: Script, timeouts: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(client_connection, "monotonic", lambda: now)

    async def received(stage: Stage, request: bytes) -> bytes:
        """All of the response, whose total time is over once it has begun."""
        nonlocal now
        client = await stage.client()
        await client.send(request)
        head = await client.head()
        now += 1000.0
        return head + await client.rest()

    async def scene(stage: Stage) -> None:
        await stage.route(script, timeouts=timeouts)
        assert len(await received(stage, GET[:-2] + b"Connection: close\r\n\r\n")) < 1000
        with pytest.raises(ConnectionResetError):  # nothing else shows that the response is incomplete
            await received(stage, b"GET / HTTP/1.0\r\n\r\n")
        assert stage.edge.counts.route("app").errors == {"timeout": 2}

    play(scene)


def test_backend_that_does_not_accept_is_a_gateway_timeout() -> None:
    async def scene(stage: Stage) -> None:
        with socket.socket() as full:  # its backlog is used up by connections that are never accepted
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            waiting = [socket.socket() for _ in range(4)]
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}"
            stage.routes(route(to=(Target(url=url),), timeouts={"connect": SOON}))
            client = await stage.client()
            await client.send(GET)
            assert await status_of(client) == 504
            for each in waiting:
                each.close()

    play(scene)


def test_slow_head_is_a_request_timeout() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client, silent, second = [await stage.client(received) for received in (GET[:10], b"", GET)]
        assert await status_of(second) == 200
        await second.send(GET[:10])
        for each in (client, second):
            assert await status_of(each) == 408
            assert await each.rest() == b""
        assert await silent.rest() == b""  # nothing to respond to

    play(scene, head_seconds=SOON)


def test_slow_body_is_a_request_timeout() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(hanging, timeouts={"idle": SOON})
        client = await stage.client()
        await client.send(POST + b"Content-Length: 5\r\n\r\nab")
        assert await status_of(client) == 408

    play(scene)


@pytest.mark.parametrize("before_it_may_leave", [True, False])
def test_idle_connection_is_closed_after_its_time(
    before_it_may_leave: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 200
        assert await client.rest() == b""

    if not before_it_may_leave:
        monkeypatch.setattr(client_connection, "IDLE_SECONDS", SOON / 10)
    play(scene, keep_alive_seconds=SOON)


def test_connection_without_keep_alive_is_closed_after_its_response() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        for request in (GET, GET.replace(b"GET /", b"TRACE /")):  # the second gets the gateway's own response
            client = await stage.client()
            await client.send(request + GET)
            head, _ = await client.response()
            assert b"\r\nConnection: close\r\n" in head
            assert await client.rest() == b""

    play(scene, keep_alive_seconds=0)


@pytest.fixture
def lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that lingers does so for longer than a test takes."""
    monkeypatch.setattr(client_connection, "LINGER_SECONDS", 1000.0)


@pytest.mark.usefixtures("lingers")
def test_connection_whose_last_request_was_read_is_closed_without_lingering() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client()
        await client.send(GET[:-2] + b"Connection: close\r\n\r\n")
        assert await status_of(client) == 200
        await until(lambda: not stage.edge.pool.clients)

    play(scene)


def test_body_that_is_too_large_is_refused() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(hanging, max_body_bytes=10)
        for body in (
            b"Content-Length: 11\r\n\r\n",
            b"Transfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n",
        ):
            client = await stage.client()
            await client.send(POST + body)
            assert await status_of(client) == 413
            assert await client.rest() == b""
        assert not backend.heads
        client = await stage.client()
        await client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        while not backend.heads:
            await asyncio.sleep(0)
        await client.send(b"6\r\n world\r\n")
        assert await status_of(client) == 413

    play(scene)


def test_body_of_just_the_maximum_size_is_passed_on() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(echo_body, max_body_bytes=10)
        client = await stage.client()
        for body in (
            b"Content-Length: 10\r\n\r\n0123456789",
            b"Transfer-Encoding: chunked\r\n\r\n6\r\n012345\r\n4\r\n6789\r\n0\r\n\r\n",
        ):
            await client.send(POST + body)
            assert (await client.response())[1] == b"0123456789"

    play(scene)


@pytest.mark.usefixtures("lingers")
def test_client_sees_the_end_of_an_early_response_at_once_while_its_request_is_read() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client()
        await client.send(POST + b"Content-Length: 100000\r\n\r\n")
        assert await status_of(client) == 200
        assert await client.rest() == b""
        connection = only_connection(stage)
        await client.send(GET)
        await until(lambda: connection._dropped == len(GET))
        client.close()
        await until(lambda: not stage.edge.pool.clients)

    play(scene)


@pytest.mark.usefixtures("lingers")
@pytest.mark.parametrize(("path", "status"), [(b"/one", 413), (b"/elsewhere", 404)])
def test_client_reads_the_refusal_of_a_request_whose_body_it_still_sends(path: bytes, status: int) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok, path="/one", max_body_bytes=10)
        client = await stage.client()
        await client.send(POST.replace(b" / ", b" %b " % path) + b"Content-Length: 100000\r\n\r\n")
        connection = only_connection(stage)
        await until(lambda: connection._dropped is not None)
        await client.send(bytes(1000))
        await until(lambda: connection._dropped == 1000)
        assert await status_of(client) == status
        client.close()
        await until(lambda: not stage.edge.pool.clients)

    play(scene)


def test_refusal_of_a_request_for_a_head_has_no_body() -> None:
    async def scene(stage: Stage) -> None:
        stage.routes(Route(alias="app", to=(Target(url=unreachable()),)))
        client = await stage.client()
        for _ in range(2):
            await client.send(GET.replace(b"GET", b"HEAD"))
            assert (await client.head()).startswith(b"HTTP/1.1 502 ")

    play(scene)


def test_connections_are_shown_with_the_request_in_progress() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(hanging)
        client = await stage.client()
        connection = only_connection(stage)
        assert repr(connection) == "<ClientConnection idle>"
        await client.send(b"GET /page HTTP/1.0\r\nHost: a\r\n\r\n")
        await until(lambda: backend.heads)
        assert re.fullmatch("<ClientConnection <Exchange <.*/page.*> on app>>", repr(connection))

    play(scene)


def test_requests_without_a_route_and_slow_heads_are_counted_with_their_status() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok, host="a")
        client = await stage.client(OTHER + GET[:10])
        assert [await status_of(client) for _ in range(2)] == [404, 408]
        assert stage.edge.counts.snapshot()["refused"] == {"404": 1, "408": 1}

    play(scene, head_seconds=SOON)


def test_head_that_is_too_large_is_refused() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        for end in (b"", b"\r\n\r\n"):
            client = await stage.client()
            await client.send(GET[:-2] + b"X: " + b"x" * 5000 + end)
            assert await status_of(client) == 431

    play(scene, max_head_bytes=4096)


def test_requests_that_are_no_proxys_are_refused() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        for request, status in (
            (b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
            (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\n\r\n", 417),
            (b"GET /..;/b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", 400),
        ):
            client = await stage.client()
            await client.send(request)
            assert await status_of(client) == status
        assert not backend.heads

    play(scene)


def test_full_limit_is_refused_with_a_time_to_come_back() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(hanging, limit=TrafficLimits(concurrency=1))
        first, second = await stage.client(), await stage.client()
        await first.send(GET)
        while not backend.heads:
            await asyncio.sleep(0)
        await second.send(GET)
        head, _ = await second.response()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: " in head

    play(scene)


def test_request_in_the_queue_is_sent_when_its_turn_comes() -> None:
    async def scene(stage: Stage) -> None:
        go_on = asyncio.Event()

        async def later(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await go_on.wait()
            await wire.send(OK + b"Content-Length: 0\r\n\r\n")
            await ok(backend, wire)

        backend = await stage.route(later, limit=TrafficLimits(concurrency=1, queue=5, queue_seconds=20.0))
        clients = [await stage.client() for _ in range(3)]
        for each in clients:
            await each.send(GET)
        while stage.edge.backends.of(next(iter(stage.edge.table))).waiting < 2:
            await asyncio.sleep(0)
        # Neither the time for a head nor that of an idle connection applies.
        deadlines = sorted(each._timer.deadline for each in stage.edge.pool.clients)  # type: ignore[attr-defined]
        assert deadlines[1:] == [float("inf")] * 2
        clients[2].close()  # frees its place
        go_on.set()
        assert [await status_of(each) for each in clients[:2]] == [200, 200]
        assert len(backend.heads) == 2

    play(scene)


def test_request_in_the_queue_is_a_gateway_timeout_when_its_time_is_over() -> None:
    async def scene(stage: Stage) -> None:
        limit = TrafficLimits(concurrency=1, queue=1, queue_seconds=20.0)
        backend = await stage.route(ok, limit=limit, timeouts={"total": SOON})
        backends = stage.edge.backends.of(next(iter(stage.edge.table)))
        lease = backends.acquire("")
        assert isinstance(lease, Lease)
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 504
        lease.release(UNUSED)
        assert (backends.in_flight, backends.waiting, backend.connections) == (0, 0, 0)
        assert stage.edge.counts.route("app").errors == {"timeout": 1}

    play(scene)


def test_request_for_which_no_descriptor_is_left_is_refused_with_a_time_to_come_back() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client()
        with no_descriptors_left():
            await client.send(GET)
            head, _ = await client.response()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nRetry-After: " in head
        await client.send(GET)
        assert await status_of(client) == 200
        assert stage.edge.counts.route("app").errors == {"refused": 1}

    play(scene)


def in_flight(stage: Stage) -> Callable[[], int]:
    backends = stage.edge.backends.of(next(iter(stage.edge.table)))
    return lambda: backends.in_flight


@pytest.mark.parametrize("script", [hanging, trickling, endless])
def test_client_that_leaves_frees_the_backend(script: Script) -> None:
    async def scene(stage: Stage) -> None:
        ended = asyncio.Event()

        async def observed(backend: Backend, wire: Wire) -> None:
            try:
                await script(backend, wire)
            finally:
                ended.set()

        backend = await stage.route(observed)
        client = await stage.client()
        await client.send(GET)
        while not backend.heads:
            await asyncio.sleep(0)
        assert in_flight(stage)() == 1
        client.close()
        await asyncio.wait_for(ended.wait(), 20)
        while in_flight(stage)():
            await asyncio.sleep(0)
        assert stage.edge.counts.route("app").failures == 0

    play(scene)


@pytest.mark.usefixtures("lingers")
@pytest.mark.parametrize("limit", ["LINGER_SECONDS", "MOST_LINGERED"])
def test_lingering_client_is_cut_off(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, limit, SOON)

    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client()
        await client.send(b"no request\r\n\r\n")
        assert await status_of(client) == 400
        if limit == "MOST_LINGERED":
            await client.send(GET)
        while stage.edge.pool.clients:
            await asyncio.sleep(0.01)

    play(scene)


def test_client_that_never_takes_the_end_of_its_response_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "SENDING_SECONDS", SOON)

    async def large(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n" + b"x" * 90000)

    async def scene(stage: Stage) -> None:
        await stage.route(large)
        for field in (b"", b"Connection: close\r\n"):
            with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least that there is
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
                client.connect(listener.getsockname())
                start_serving(stage.edge, listener.accept()[0])
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n")
                while not stage.edge.pool.clients:
                    await asyncio.sleep(0)
                while stage.edge.pool.clients:
                    await asyncio.sleep(0.01)
        counts = stage.edge.counts.route("app")
        assert (counts.failures, counts.requests) == (0, 2)

    play(scene, keep_alive_seconds=SOON)


PAGE = b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\n\r\n"


UPLOAD = b"POST /a HTTP/1.1\r\nHost: a.example\r\n"


def answer(response: bytes, *, close: bool = False) -> Script:
    """Answers every request with these bytes."""

    async def script(backend: Backend, wire: Wire) -> None:
        while True:
            await backend.request(wire)
            await wire.send(response)
            if close:
                return

    return script


async def echo_body(backend: Backend, wire: Wire) -> None:
    """Answers with the body of the request, in its framing."""
    while True:
        head = await backend.request(wire)
        if b"Transfer-Encoding: chunked" in head:
            body = await wire.chunks()
        else:
            found = re.search(rb"Content-Length: (\d+)", head)
            body = await wire.exactly(int(found[1]) if found else 0)
        await wire.send(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def test_request_and_response_pass_through_over_one_connection_each() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.client()
        for _ in range(3):
            await client.send(PAGE)
            head, body = await client.response()
            assert head == b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\n"
            assert body == b"hello"
        assert backend.connections == 1
        assert backend.heads[0] == (
            b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n"
            b'X-Forwarded-Host: a.example\r\nForwarded: for=127.0.0.1;proto=http;host="a.example"\r\n\r\n'
        )

    play(scene)


def test_bytes_that_were_read_before_come_first() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client(received=PAGE[:20])
        await client.send(PAGE[20:])
        assert await client.response() == (b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\n", b"hello")

    play(scene)


@pytest.mark.parametrize("split", [0, 2, 3])
def test_request_behind_a_body_is_the_next(split: int) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(echo_body)
        client = await stage.client()
        rest = b"abc" + PAGE
        await client.send(UPLOAD + b"Content-Length: 3\r\n\r\n" + rest[:split])
        while not backend.heads:
            await asyncio.sleep(0)
        await client.send(rest[split:])
        assert [(await client.response())[1] for _ in range(2)] == [b"abc", b""]
        assert backend.connections == 1

    play(scene)


def test_pipelined_requests_are_answered_in_their_order() -> None:
    async def number(backend: Backend, wire: Wire) -> None:
        while True:
            target = (await backend.request(wire)).split(b" ")[1]
            await wire.send(OK + b"Content-Length: %d\r\n\r\n" % len(target) + target)

    async def scene(stage: Stage) -> None:
        await stage.route(number)
        client = await stage.client()
        await client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % each for each in range(50)))
        assert [(await client.response())[1] for _ in range(50)] == [b"/%d" % each for each in range(50)]

    play(scene)


def test_read_ahead_is_bounded_and_goes_on_with_the_responses() -> None:
    async def scene(stage: Stage) -> None:
        answered = asyncio.Event()

        async def late(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await answered.wait()
            await wire.send(OK + b"Content-Length: 0\r\n\r\n")
            await ok(backend, wire)

        await stage.route(late)
        client = await stage.client()
        more = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 10_000 + b"\r\n\r\n"
        client.writer.write(PAGE + more * 2000)  # 20 MB
        connection = None
        while connection is None or connection._reading:
            await asyncio.sleep(0)
            connection = next(iter(stage.edge.pool.clients), None)
        assert not connection._transport.is_reading()
        assert len(connection._buffer) < 1024 * 1024
        answered.set()
        for _ in range(101):  # more than the bound holds: the rest is read, too
            assert (await client.response())[0].startswith(OK)

    play(scene)


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_pass_through_both_ways(size: int, chunked: bool) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(echo_body)
        client = await stage.client()
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        if chunked:
            chunks = b"".join(
                b"%x\r\n%b\r\n" % (len(body[at : at + 7001]), body[at : at + 7001])
                for at in range(0, size, 7001)
            )
            sent = UPLOAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        else:
            sent = UPLOAD + b"Content-Length: %d\r\n\r\n" % size + body
        for _ in range(2):
            _, (_, received) = await asyncio.gather(client.send(sent), client.response())
            assert received == body

    play(scene)


CHUNKS = b"5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"


FRAMINGS = {
    "chunks with trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"helloabc"),
    "canonical chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "until the end": (OK + b"X: y\r\n\r\nhello", b"hello"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
    "no content": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", b""),
    "folded field": (OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", b"ok"),
}


@pytest.mark.parametrize("name", FRAMINGS)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_responses_in_every_framing_reach_clients_of_either_version(name: str, version: bytes) -> None:
    response, expected = FRAMINGS[name]
    until_close = name in ("until the end", "HTTP/1.0")

    async def scene(stage: Stage) -> None:
        await stage.route(answer(response, close=until_close))
        client = await stage.client()
        request = b"GET / HTTP/%b\r\nHost: a\r\nConnection: keep-alive\r\n\r\n" % version
        await client.send(request)
        if version == b"1.0" and (b"hunked" in response or until_close):
            head, _, body = (await client.rest()).partition(b"\r\n\r\n")
            assert b"\r\nConnection: close" in head
            assert b"hunked" not in head
            assert body == expected
            return
        head = await client.head()
        assert b"close" not in head
        assert (b"Connection: keep-alive" in head) == (version == b"1.0")
        if b"chunked" in head:
            assert await client.chunks() == expected
        else:
            assert await client.exactly(len(expected)) == expected
        await client.send(request)  # the connection is still in step
        assert (await client.head()) == head

    play(scene)


def test_response_that_comes_in_pieces_is_whole_without_the_line_that_keeps_the_connection() -> None:
    async def script(backend: Backend, wire: Wire) -> None:
        while True:
            await backend.request(wire)
            await wire.send(OK + b"Connection: keep-alive\r\nContent-Length: 11\r\n\r\nfirst")
            await asyncio.sleep(0)
            await wire.send(b"second")

    async def scene(stage: Stage) -> None:
        backend = await stage.route(script)
        client = await stage.client()
        for _ in range(3):
            await client.send(PAGE)
            assert await client.response() == (OK + b"Content-Length: 11\r\n\r\n", b"firstsecond")
        assert backend.connections == 1

    play(scene)


def test_response_to_head_has_no_body() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(answer(OK + b"Content-Length: 500\r\n\r\n"))
        client = await stage.client()
        for _ in range(2):
            await client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await client.head() == OK + b"Content-Length: 500\r\n\r\n"

    play(scene)


def test_trailers_and_early_hints_pass_through() -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"

    async def scene(stage: Stage) -> None:
        await stage.route(answer(hints + OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS))
        client = await stage.client()
        await client.send(PAGE)
        assert await client.head() == hints
        assert b"chunked" in await client.head()
        assert await client.until(b"\r\n\r\n") == b"5\r\nhello\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"

    play(scene)


def test_client_of_http_1_0_gets_no_early_hints() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(answer(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok"))
        client = await stage.client()
        await client.send(b"GET / HTTP/1.0\r\nHost: a\r\n\r\n")
        assert re.fullmatch(rb"HTTP/1.1 200 OK\r\n(?s:.*)\r\n\r\nok", await client.rest())

    play(scene)


def test_an_expectation_is_met_by_the_backend() -> None:
    async def expecting(backend: Backend, wire: Wire) -> None:
        assert b"Expect: 100-continue" in await backend.request(wire)
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wire.send(OK + b"Content-Length: 3\r\n\r\n" + await wire.exactly(3))

    async def scene(stage: Stage) -> None:
        await stage.route(expecting)
        client = await stage.client()
        await client.send(UPLOAD + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert (await client.response())[1] == b"abc"

    play(scene)


@pytest.mark.usefixtures("lingers")
def test_response_before_the_end_of_the_request_ends_the_connection_after_it() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(answer(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n"))
        client = await stage.client()
        await client.send(UPLOAD + b"Content-Length: 100000\r\n\r\nabc")
        head, body = await client.response()
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nConnection: close\r\n" in head
        assert body == b"no\n"
        await client.send(b"x" * 1000)  # read and dropped: no reset
        assert await client.rest() == b""

    play(scene)


@pytest.mark.usefixtures("lingers")
def test_client_whose_body_waited_for_the_backend_is_read_on_after_an_early_response() -> None:
    async def scene(stage: Stage) -> None:
        answered = asyncio.Event()

        async def early(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await answered.wait()
            await wire.send(OK + b"Content-Length: 0\r\n\r\n")
            await wire.rest()

        backend = await stage.route(early)
        client = await stage.client()
        await client.send(POST + b"Content-Length: 1000\r\n\r\nabc")
        await until(lambda: backend.heads)
        (connection,) = stage.edge.pool.clients
        assert isinstance(connection, ClientConnection)
        connection.set_accepts_body(False)  # as for a backend that takes no more bytes
        answered.set()
        assert await status_of(client) == 200
        assert await client.rest() == b""
        await client.send(b"def")
        await until(lambda: connection._dropped)

    play(scene)


def test_events_arrive_as_they_are_sent() -> None:
    async def scene(stage: Stage) -> None:
        seen = asyncio.Event()

        async def events(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await wire.send(OK + b"Content-Type: text/event-stream\r\n\r\n")
            for number in range(3):
                seen.clear()
                await wire.send(b"data: %d\n\n" % number)
                await seen.wait()  # the next one is sent only when the client has this one

        await stage.route(events)
        client = await stage.client()
        await client.send(PAGE)
        await client.head()
        for number in range(3):
            assert await client.until(b"\n\n\r\n") == b"9\r\ndata: %d\n\n\r\n" % number
            seen.set()
        assert await client.exactly(5) == b"0\r\n\r\n"

    play(scene)


@pytest.mark.slow
def test_a_slow_client_stops_the_backend() -> None:
    size = 200_000_000  # more than the kernel's buffers of both connections take

    async def scene(stage: Stage) -> None:
        async def flood(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await wire.send(OK + b"Content-Length: %d\r\n\r\n" % size)
            for _ in range(size // 1_000_000):
                await wire.send(b"x" * 1_000_000)

        await stage.route(flood)
        client = await stage.client()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(PAGE)
        exchange = None
        while exchange is None or not exchange._paused:
            await asyncio.sleep(0)
            exchange = next((each._exchange for each in stage.edge.pool.clients), None)
        assert not exchange._connection._transport.is_reading()
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        await client.head()
        for _ in range(size // 1_000_000):
            await client.exactly(1_000_000)

    play(scene)


def test_next_request_of_a_client_that_takes_no_response_waits() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.client()
        await client.send(GET)
        await client.response()
        (connection,) = stage.edge.pool.clients
        assert isinstance(connection, ClientConnection)
        connection.pause_writing()  # as the transport does while too many bytes wait for the client
        await client.send(GET)
        other = await stage.client()
        for _ in range(3):
            await other.send(GET)
            await other.response()
        assert len(backend.heads) == 4
        connection.resume_writing()
        assert (await client.response())[1] == b"hello"

    play(scene)


@pytest.mark.slow
def test_a_slow_backend_stops_the_client() -> None:
    size = 200_000_000  # more than the kernel's buffers of both connections take

    async def scene(stage: Stage) -> None:
        go_on = asyncio.Event()

        async def slow(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await go_on.wait()
            for _ in range(size // 1_000_000):
                await wire.exactly(1_000_000)
            await wire.send(OK + b"Content-Length: 0\r\n\r\n")

        await stage.route(slow)
        client = await stage.client()
        client.writer.write(UPLOAD + b"Content-Length: %d\r\n\r\n" % size)
        client.writer.write(b"x" * size)
        connection = None
        while connection is None or connection._reading:
            await asyncio.sleep(0)
            connection = next(iter(stage.edge.pool.clients), None)
        go_on.set()
        assert (await client.response())[0].startswith(OK)

    play(scene)


def test_the_route_changes_host_and_path_and_adds_fields() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(
            ok,
            path="/v1",
            strip_path=True,
            host_header="inner:80",
            add_headers=(Header(name="X-Api", value="1"),),
        )
        client = await stage.client()
        for target, expected in ((b"/v1/a?b", b"/a?b"), (b"/v1", b"/"), (b"/%761/./b/../c", b"/c")):
            await client.send(b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n" % target)
            await client.response()
            head = backend.heads[-1]
            assert head.startswith(b"GET %b HTTP/1.1\r\nHost: inner:80\r\n" % expected)
            assert b"\r\nX-Api: 1\r\n" in head
            assert b"\r\nX-Forwarded-Host: a\r\n" in head
            assert head.lower().count(b"\r\nhost:") == 1

    play(scene)


@pytest.mark.parametrize("asked", [False, True])
def test_the_backend_learns_of_the_route_if_that_asks_for_it(asked: bool) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok, path="/v1", context_headers=asked)
        client = await stage.client()
        await client.send(
            b"GET /v1 HTTP/1.1\r\nHost: a\r\nX-Poolctl-Route: mine\r\nX_Poolctl_Route: mine\r\n\r\n"
        )
        await client.response()
        fields = re.findall(rb"(?i)\r\nx[-_]poolctl[^\r]*", backend.heads[0])
        upstream = b"\r\nx-poolctl-upstream-url: " + backend.url.encode()
        assert fields[:1] == ([b"\r\nx-poolctl-route: app"] if asked else [])
        assert (upstream in fields) == asked

    play(scene)


def test_each_request_of_a_connection_takes_its_own_route() -> None:
    async def scene(stage: Stage) -> None:
        one, other = await stage.backend(ok), await stage.backend(echo_body)
        stage.routes(route(one, host="one"), route(other, alias="other", host="other"))
        client = await stage.client()
        for host, backend in ((b"one", one), (b"other:80", other), (b"ONE", one)):
            await client.send(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host)
            await client.response()
            assert b"\r\nHost: %b\r\n" % host in backend.heads[-1]
        await client.send(b"GET / HTTP/1.1\r\nHost: third\r\n\r\n")
        head, _ = await client.response()
        assert head.startswith(b"HTTP/1.1 404 ")
        assert b"close" not in head
        assert (len(one.heads), len(other.heads)) == (2, 1)

    play(scene)


def test_client_gets_the_cookie_of_its_backend_once_and_stays_with_it() -> None:
    async def scene(stage: Stage) -> None:
        backends = [await stage.backend(ok) for _ in range(2)]
        stage.routes(route(*backends, sticky_cookie="srv"))
        client = await stage.client()
        await client.send(GET)
        head, _ = await client.response()
        (cookie,) = re.findall(rb"\r\nSet-Cookie: (srv=\w+); Path=/; HttpOnly; SameSite=Lax\r\n", head)
        for _ in range(3):
            await client.send(GET[:-2] + b"Cookie: %b\r\n\r\n" % cookie)
            assert b"Set-Cookie" not in (await client.response())[0]
        assert sorted(len(each.heads) for each in backends) == [0, 4]

    play(scene)


def test_workers_of_the_pool_get_the_context_of_the_route() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.backend(ok)
        stage.routes(route(to=(Target(server="web"),)))
        bind = backend.url.removeprefix("http://")
        facts = ServerFacts(name="web", bind=bind, state="running", ready=True, context_key="key")
        stage.edge.backends.apply(list(stage.edge.table), {"web": facts})
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 200
        assert backend.heads[0].endswith(b"\r\n" + context_line("app", "key") + b"\r\n")

    play(scene)


def test_sleeping_server_is_answered_for() -> None:
    async def scene(stage: Stage) -> None:
        stage.routes(route(to=(Target(server="web"),), probe_responses=("/",)))
        facts = ServerFacts(name="web", state="sleeping")
        stage.edge.backends.apply(list(stage.edge.table), {"web": facts})
        client = await stage.client()
        for number in (1, 2):
            await client.send(GET)
            assert (await client.response())[1] == b"sleeping\n"
            assert in_flight(stage)() == 0
            traffic = stage.edge.counts.route("app")
            assert (traffic.requests, traffic.bytes_out, traffic.errors) == (number, 9 * number, {})

    play(scene)


def test_backends_on_unix_sockets_are_reached(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.backend(ok, str(tmp_path / "s"))
        stage.routes(route(backend))
        client = await stage.client()
        await client.send(PAGE)
        assert (await client.response())[1] == b"hello"

    play(scene)


def test_what_was_proxied_is_counted_for_route_and_backend() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.client()
        for _ in range(3):
            await client.send(PAGE)
            await client.response()
        for traffic in (stage.edge.counts.route("app"), stage.edge.counts.backend(backend.url)):
            assert (traffic.requests, traffic.failures) == (3, 0)
            assert traffic.bytes_out == 15

    play(scene)


SOME_RESPONSES = [
    OK + b"Content-Length: 5\r\n\r\nhello",
    OK + b"Content-Length: 300000\r\n\r\n" + b"y" * 300_000,
    OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 20 + b"0\r\n\r\n",
    b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n",
]
LAST_RESPONSES = [
    b"",
    OK[:7],
    OK + b"Content-Length: 10\r\n\r\nabc",
    OK + b"\r\n" + b"x" * 70_000,
    OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    b"no response\r\n\r\n",
]


REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 9,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"z" * 100_000,
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nzzz",
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"5;x\r\nhello\r\n" * 100
    + b"0\r\n\r\n",
    b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nabc",
    b"no request\r\n\r\n",
]


SWITCHED = b"HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi"


def disorderly_backend(random: Random) -> Script:
    async def script(backend: Backend, wire: Wire) -> None:
        while True:
            head = await wire.head()
            if b"chunked" in head:
                await wire.chunks()
            elif b"Content-Length: 100000" in head:
                if random.random() < 0.2:  # a response to a request that is not read
                    await wire.send(SOME_RESPONSES[0])
                    return
                await wire.exactly(100_000)
            what = random.random()
            if b"Upgrade" in head and what < 0.7:
                await wire.send(SWITCHED)
                while data := await wire.some():
                    await wire.send(data)
                    if random.random() < 0.2:
                        return
                return
            if what < 0.2:
                await wire.send(random.choice(LAST_RESPONSES))
                if what < 0.1:
                    wire.reset()
                return
            await wire.send(random.choice(SOME_RESPONSES))

    return script


async def disorderly_client(stage: Stage, random: Random) -> None:
    client = await stage.client()
    with suppress(OSError, RuntimeError):  # uvloop's, for a closed connection
        for _ in range(random.randrange(1, 6)):
            await client.send(random.choice(REQUESTS))
            if random.random() < 0.7:
                with suppress(TimeoutError):
                    await asyncio.wait_for(client.reader.read(100_000), 0.05)
        if random.random() < 0.5:
            client.reset()
    client.close()


def test_nothing_is_left_of_disorderly_clients_and_backends() -> None:
    random = Random(1)

    async def scene(stage: Stage) -> None:
        backends = [await stage.backend(disorderly_backend(random)) for _ in range(2)]
        limit = TrafficLimits(concurrency=10, queue=5, queue_seconds=0.2)
        timeouts = {"idle": 0.3, "head": 0.3}
        rule = BreakerRule(failures=0, rate=0.0)
        stage.routes(route(*backends, retries=1, breaker=rule, limit=limit, timeouts=timeouts))
        await asyncio.gather(*(disorderly_client(stage, random) for _ in range(100)))
        pool, of_route = stage.edge.pool, stage.edge.backends.of(next(iter(stage.edge.table)))
        while pool.clients or pool._tasks:
            await asyncio.sleep(0.01)
        assert (of_route.in_flight, of_route.waiting) == (0, 0)
        pool.close_idle_backend_connections()
        while any(row["connections"] for row in stage.edge.backends.snapshot()):
            await asyncio.sleep(0)
        traffic = stage.edge.counts.route("app")
        slots = traffic.slots
        ended = sum(slots[tally.STATUS : tally.STATUS + 6]) + slots[tally.BROKEN] + slots[tally.DISCONNECTED]
        assert traffic.requests == ended > 50

    play(scene, head_seconds=30.0, keep_alive_seconds=0.5)


def test_client_that_leaves_in_the_same_turn_as_its_response_arrives_is_disconnected() -> None:
    asked: asyncio.Queue[Wire] = asyncio.Queue()

    async def script(backend: Backend, wire: Wire) -> None:
        await wire.head()
        asked.put_nowait(wire)
        await wire.rest()

    async def scene(stage: Stage) -> None:
        await stage.route(script)
        client = await stage.client()
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wire = await asyncio.wait_for(asked.get(), 60)
        # Both before the loop looks again.
        with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_WR)
        response = OK + b"Connection: close\r\nContent-Length: 20000\r\n\r\n" + b"y" * 20_000
        os.write(wire.writer.get_extra_info("socket").fileno(), response)
        await client.rest()
        while stage.edge.pool.clients:
            await asyncio.sleep(0)
        assert stage.edge.counts.route("app").requests == 1

    play(scene)


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


def test_tunnel_ends_with_its_backend_and_is_no_failure() -> None:
    async def leaving(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(SWITCHING % b"x" + b"first")
        await wire.send((await wire.some()) * 2)
        await wire.some()
        wire.reset()

    async def scene(stage: Stage) -> None:
        backend = await stage.route(leaving)
        client = await stage.client()
        await client.send(UPGRADE % b"x" + b"abc")
        await client.head()
        assert await client.exactly(11) == b"firstabcabc"
        await client.send(b"end")
        assert await client.rest() == b""
        for traffic in (stage.edge.counts.route("app"), stage.edge.counts.backend(backend.url)):
            assert (traffic.bytes_in, traffic.bytes_out, traffic.errors) == (6, 11, {})
            assert traffic.slots[tally.STATUS + 1] == 1

    play(scene)


def test_idle_tunnel_is_closed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(upgrading(b"x"), timeouts={"idle": SOON})
        client = await stage.client()
        await client.send(UPGRADE % b"x")
        await client.head()
        assert await client.rest() == b""

    play(scene)


POST_CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


TINY, LAST = b"1\r\na\r\n", b"0\r\n\r\n"


TINY_CHUNKS = 5_000


TINY_BODY = TINY * TINY_CHUNKS + LAST


@pytest.fixture
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """All chunks come within one second."""
    monkeypatch.setattr(client_connection, "ChunkedBodyReader", partial(ChunkedBodyReader, clock=lambda: 0.0))


class Turns:
    """Counts the turns of the loop while it is entered."""

    def __init__(self) -> None:
        self.count = 0
        self._over = False

    def __enter__(self) -> Turns:
        asyncio.get_running_loop().call_soon(self._turn)
        return self

    def __exit__(self, *exception: object) -> None:
        self._over = True

    def _turn(self) -> None:
        self.count += 1
        if not self._over:
            asyncio.get_running_loop().call_soon(self._turn)


async def whole_body(backend: Backend, wire: Wire) -> None:
    """Answer when the whole body has come."""
    await backend.request(wire)
    assert await wire.exactly(len(TINY_BODY)) == TINY_BODY
    await wire.send(OK + b"Content-Length: 5\r\n\r\nwhole")
    await ok(backend, wire)


@pytest.mark.usefixtures("frozen_clock")
def test_tiny_chunks_of_a_request_are_passed_on_in_many_turns() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(whole_body)
        client = await stage.client()
        with Turns() as turns:
            await client.send(POST_CHUNKED + TINY_BODY + GET)
            assert (await client.response())[1] == b"whole"
        assert turns.count > TINY_CHUNKS / MOST_CHUNKS_AT_ONCE
        await client.head()  # that of the next request, which came behind the chunks

    play(scene)


@pytest.mark.usefixtures("frozen_clock", "lingers")
def test_request_with_too_many_chunks_a_second_gets_400_and_its_connection_ends() -> None:
    async def scene(stage: Stage) -> None:
        ended = asyncio.Event()

        async def drop(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await wire.rest()
            ended.set()

        await stage.route(drop)
        client = await stage.client()
        await client.send(POST_CHUNKED + TINY * (MOST_CHUNKS_A_SECOND + 1))
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"\r\nConnection: close\r\n" in head
        await client.rest()
        await asyncio.wait_for(ended.wait(), 20)  # for the backend, too

    play(scene)


@pytest.mark.parametrize(
    "head", [GET, GET[:-2] + b"X: " + b"y" * 20_000 + b"\r\n\r\n"], ids=["small", "large"]
)
def test_requests_without_a_backend_that_come_at_once_are_answered_in_many_turns(head: bytes) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok, path="/there")
        client = await stage.client()
        at_once = MOST_REQUESTS_AT_ONCE if head == GET else 1
        count = 20 * at_once
        with Turns() as turns:
            sending = asyncio.ensure_future(client.send(head * count + GET.replace(b"/", b"/there", 1)))
            for _ in range(count):
                assert (await client.response())[0].startswith(b"HTTP/1.1 404 ")
            assert (await client.response())[0].startswith(b"HTTP/1.1 200 ")
            await sending
        assert turns.count > count / at_once

    play(scene)


@pytest.mark.parametrize(
    ("fields", "at_once"),
    [(b"", MOST_REQUESTS_AT_ONCE), (b"X: " + b"y" * 20_000 + b"\r\n", 1)],
    ids=["small", "large"],
)
def test_several_small_requests_are_answered_in_the_turn_in_which_they_come(
    fields: bytes, at_once: int
) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok, path="/there")
        client = await stage.client()
        await until(lambda: stage.edge.pool.clients)
        count = MOST_REQUESTS_AT_ONCE + 2
        only_connection(stage).data_received((GET[:-2] + fields + b"\r\n") * count)
        assert stage.edge.counts.snapshot()["refused"] == {"404": at_once}
        for _ in range(count):
            assert await status_of(client) == 404

    play(scene)


def payload(size: int, masked: bool) -> bytes:
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2, "big")
    if masked:
        return b"\x82" + bytes([length[0] | 0x80]) + length[1:] + b"mask" + b"p" * size
    return b"\x82" + length + b"p" * size


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 5, 125, 126, 300]), st.booleans())),
    st.lists(st.integers(0, 900)),
)
@examples(100)
def test_the_ends_of_frames_are_known_however_they_are_split(
    frames: list[tuple[int, bool]], cuts: list[int]
) -> None:
    sent, ends = b"", {0}
    for size, masked in frames:
        sent += payload(size, masked)
        ends.add(len(sent))
    boundary, begin = WebSocketFrameTracker(), 0
    for end in sorted({min(cut, len(sent)) for cut in cuts} | {len(sent)}):
        assert boundary.track_frames_and_count_bytes(sent[begin:end]) == end - begin
        assert boundary.at_boundary == (end in ends)
        begin = end
    first = WebSocketFrameTracker()
    if len(sent) > 1:
        first.track_frames_and_count_bytes(sent[:1])
        assert 1 + first.track_frames_and_count_bytes(sent[1:], only_first=True) == min(ends - {0})


def test_a_long_frame_is_followed() -> None:
    boundary = WebSocketFrameTracker()
    boundary.track_frames_and_count_bytes(b"\x82\x7f" + (70_000).to_bytes(8, "big"))
    boundary.track_frames_and_count_bytes(b"p" * 69_999)
    assert not boundary.at_boundary
    boundary.track_frames_and_count_bytes(b"p")
    assert boundary.at_boundary


def test_tiny_frames_are_followed_up_to_a_number_a_read_and_then_copied_only() -> None:
    boundary = WebSocketFrameTracker()
    followed = b"\x81\x00" * MOST_FRAMES_AT_ONCE
    assert boundary.with_close_frame_if_ending(followed) == followed
    assert boundary.at_boundary
    assert boundary.with_close_frame_if_ending(followed + b"\x81\x00") == followed + b"\x81\x00"
    assert not boundary.at_boundary
    assert boundary.with_close_frame_if_ending(followed) == followed
    assert boundary.end_with_close_frame() == b""  # it would stand within a frame, perhaps
    assert boundary.with_close_frame_if_ending(followed) == followed


def test_close_frame_replaces_the_frames_after_the_current_one() -> None:
    boundary, between = WebSocketFrameTracker(), WebSocketFrameTracker()
    assert boundary.with_close_frame_if_ending(b"\x81\x05he") == b"\x81\x05he"
    assert (boundary.end_with_close_frame(), between.end_with_close_frame()) == (b"", CLOSE_1012)
    assert boundary.with_close_frame_if_ending(b"l") == b"l"
    assert boundary.with_close_frame_if_ending(b"lo\x81\x02hi") == b"lo" + CLOSE_1012
    for each in (boundary, between):
        assert each.with_close_frame_if_ending(b"\x81\x02hi") == b""


@pytest.mark.parametrize("seconds", [SOON, 1000.0])
def test_websocket_that_is_to_end_gets_a_close_frame_and_is_cut_off_after_its_time_or_at_once(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_connection, "CLOSE_FRAME_SECONDS", seconds)

    async def scene(stage: Stage) -> None:
        await stage.route(upgrading(b"websocket"))
        client = await stage.client()
        await client.send(UPGRADE % b"websocket")
        await client.head()
        connection = only_connection(stage)
        connection.end_now()
        assert await client.exactly(4) == CLOSE_1012
        if seconds != SOON:
            connection.end_now()
        assert await client.rest() == b""

    play(scene)


def only_connection(stage: Stage) -> ClientConnection:
    (connection,) = stage.edge.pool.clients
    assert isinstance(connection, ClientConnection)
    return connection


def test_idle_connection_that_is_to_end_is_closed_when_it_stays_quiet_and_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "QUIET_SECONDS", SOON)

    async def scene(stage: Stage) -> None:
        await stage.route(hanging, host="a")
        idle, busy = await stage.client(), await stage.client()
        await busy.send(GET)
        while not in_flight(stage)():
            await asyncio.sleep(0)
        for each in stage.edge.pool.clients:
            each.drain()
        assert await idle.rest() == b""
        assert in_flight(stage)() == 1
        only_connection(stage).end_now()
        assert await busy.rest() == b""

    play(scene)


def test_idle_connection_is_closed_for_another_unless_bytes_wait() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client()
        connection = only_connection(stage)
        with socket.socket(fileno=os.dup(client.writer.get_extra_info("socket").fileno())) as same:
            same.send(GET[:1])
        assert not connection.close_idle()
        await client.send(GET[1:])
        assert await status_of(client) == 200
        size = 32 * 1024 * 1024  # more than the kernel takes
        connection._transport.write(bytes(size))
        assert not connection.close_idle()
        await client.exactly(size)
        assert connection.close_idle()
        assert await client.rest() == b""

    play(scene)


def test_end_of_an_idle_connection_with_tls_is_announced_to_its_client_and_not_waited_for(
    tmp_path: Path,
) -> None:
    answered, gone = threading.Event(), threading.Event()

    def talk(sock: socket.socket, trust: ssl.SSLContext) -> bytes:
        sock.settimeout(DEADLINE)
        with trust.wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False) as client:
            client.sendall(GET)
            received = b""
            while not received.endswith(b"hello"):
                received += client.recv(1000)
            answered.set()
            end = client.recv(1)  # raises an error if the connection just ends
            gone.wait(DEADLINE)
            return end

    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        cert, key = certificate(tmp_path)
        certificates = CertificatesByListener()
        certificates.put("x", [], {}, [cert.read_bytes(), key.read_bytes()])
        context = certificates.context("x", "")
        assert context is not None
        ours, theirs = _pair()
        start_serving_tls(stage.edge, theirs, context)
        talking = asyncio.ensure_future(asyncio.to_thread(talk, ours, authority(cert)))
        await until(answered.is_set)
        try:
            assert only_connection(stage).close_idle()
            for _ in range(20):
                await asyncio.sleep(0)
            assert not stage.edge.pool.clients
        finally:
            gone.set()
        assert await talking == b""

    play(scene)


OTHER = b"GET / HTTP/1.1\r\nHost: other\r\n\r\n"


USERS = b"GET /v1 HTTP/1.1\r\nHost: users\r\n\r\n"


ANSWER = b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\nhello"


async def proxied_and_passed(stage: passing_stage.Stage) -> tuple[Backend, Pair]:
    """A backend that every request can be proxied to, and the pair of the server to which those for users can go."""
    backend = await stage.backend(ok)
    stage.routes(app_route("users", host="users"), route(backend, host="other", alias="other"))
    bind = backend.url.removeprefix("http://")
    facts = {"users": ServerFacts(name="users", bind=bind, state="running", ready=True)}
    stage.edge.backends.apply(list(stage.edge.table), facts)
    return backend, stage.server("users")


async def asked(stage: passing_stage.Stage, client: socket.socket, request: bytes) -> None:
    """Send the request, and read the answer to it."""
    await stage.edge.loop.sock_sendall(client, request)
    await answers(stage, client, 1)


async def answers(stage: passing_stage.Stage, client: socket.socket, count: int) -> None:
    data = b""
    while len(data) < count * len(ANSWER):
        data += await stage.edge.loop.sock_recv(client, count * len(ANSWER) - len(data))
    assert data == count * ANSWER


async def waiting_outside(stage: passing_stage.Stage) -> socket.socket:
    """A client whose connection has left the proxy after a request that was proxied."""
    client = await stage.connect(OTHER)
    await answers(stage, client, 1)
    await until(lambda: stage.waiting)
    return client


async def has_left(stage: passing_stage.Stage) -> None:
    await until(lambda: not stage.edge.pool.clients)


def test_connection_goes_to_a_worker_after_some_requests_that_could_have_been_passed() -> None:
    async def scene(stage: passing_stage.Stage) -> None:
        backend, pair = await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        for _ in range(MOST_PASSABLE):
            await asked(stage, client, USERS)
        await stage.edge.loop.sock_sendall(client, USERS)
        taken = await pair.take()
        assert (taken.received, taken.routed.hops, taken.routed.route) == (USERS, 0, "app")
        assert taken.getpeername() == client.getsockname()
        await has_left(stage)
        await stage.edge.loop.run_in_executor(None, taken.sendall, ANSWER)
        await answers(stage, client, 1)
        assert len(backend.heads) == 1 + MOST_PASSABLE
        taken.close()
        assert await stage.read(client) == b""  # the gateway has no descriptor left

    passing_stage.play(scene)


def test_connection_whose_requests_take_both_ways_in_turn_stays() -> None:
    async def scene(stage: passing_stage.Stage) -> None:
        _, pair = await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        for _ in range(3):
            for request in [OTHER, *[USERS] * MOST_PASSABLE]:
                await asked(stage, client, request)
        assert pair.take_now() is None

    passing_stage.play(scene)


def test_pipelined_requests_are_answered_in_order_if_the_connection_goes_to_a_worker_meanwhile() -> None:
    async def scene(stage: passing_stage.Stage) -> None:
        _, pair = await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        data = bytearray()

        async def read() -> None:
            while True:
                data.extend(await stage.edge.loop.sock_recv(client, 65536))

        reading = asyncio.create_task(read())
        await stage.edge.loop.sock_sendall(client, USERS * 9)
        taken = await until(lambda: pair.take_now() or len(data) == 9 * len(ANSWER))
        received = taken.received if isinstance(taken, Connection) else b""
        proxied = 9 - received.count(USERS)
        await until(lambda: len(data) == proxied * len(ANSWER))
        assert (data, received) == (proxied * ANSWER, (9 - proxied) * USERS)
        reading.cancel()
        if isinstance(taken, Connection):
            taken.close()

    passing_stage.play(scene)


def test_server_without_a_pair_keeps_the_connection_in_the_proxy() -> None:
    async def scene(stage: passing_stage.Stage) -> None:
        await proxied_and_passed(stage)
        stage.edge.passing.remove_server_and_reroute("users", lambda: None)
        client = await stage.connect(USERS)
        await answers(stage, client, 1)
        for _ in range(2 * MOST_PASSABLE):
            await asked(stage, client, USERS)
        assert len(stage.edge.pool.clients) == 1

    passing_stage.play(scene)


def test_idle_connection_waits_outside_and_its_next_request_takes_its_own_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "IDLE_SECONDS", SOON)

    async def scene(stage: passing_stage.Stage) -> None:
        _, pair = await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        for _ in range(2):
            await until(lambda: stage.waiting)
            await has_left(stage)
            await asked(stage, client, OTHER)
        await until(lambda: stage.waiting)
        await stage.edge.loop.sock_sendall(client, USERS)
        taken = await pair.take()
        assert taken.recv(1000) == USERS
        taken.close()

    passing_stage.play(scene)


def test_connection_that_waits_outside_is_closed_when_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "IDLE_SECONDS", SOON)

    async def scene(stage: passing_stage.Stage) -> None:
        await proxied_and_passed(stage)
        client = await waiting_outside(stage)
        waits = stage.edge.passing.waiting
        (waiting,) = waits._connections.values()
        now = stage.edge.loop.time()
        assert 900 < waiting.deadline - now < 1000
        waits._set_deadline(waiting, now)
        assert await stage.read(client) == b""
        assert not stage.waiting

    passing_stage.play(scene, keep_alive_seconds=1000.0)


def test_slow_head_on_a_connection_that_waited_outside_gets_408_after_the_time_for_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "IDLE_SECONDS", SOON)

    async def scene(stage: passing_stage.Stage) -> None:
        await proxied_and_passed(stage)
        client = await waiting_outside(stage)
        stage.edge.configure(replace(stage.edge.settings, head_seconds=SOON))
        await stage.edge.loop.sock_sendall(client, OTHER[:9])
        assert (await stage.read(client)).startswith(b"HTTP/1.1 408 ")

    passing_stage.play(scene, keep_alive_seconds=1000.0)


def test_connection_of_a_worker_stays_one_that_an_application_may_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_connection, "IDLE_SECONDS", SOON)

    async def scene(stage: passing_stage.Stage) -> None:
        _, pair = await proxied_and_passed(stage)
        client = await stage.connect(USERS)
        taken = await pair.take()
        await stage.edge.loop.run_in_executor(None, taken.recv, len(USERS))
        stage.give_back(taken, OTHER)
        await answers(stage, client, 1)
        await until(lambda: stage.waiting)
        (waiting,) = stage.edge.passing.waiting._connections.values()
        assert isinstance(waiting.sock, Connection)
        # The application keeps its duplicate, and makes it blocking: the gateway does not wait for all that.
        taken.setblocking(True)
        await asked(stage, client, OTHER)
        taken.close()

    passing_stage.play(scene)


def test_idle_connection_that_would_take_the_place_of_another_stays() -> None:
    async def scene(stage: passing_stage.Stage) -> None:
        await proxied_and_passed(stage)
        stage.edge.passing.waiting = WaitingConnections(most=1)
        first, second = await stage.connect(OTHER), await stage.connect(OTHER)
        for client in (first, second):
            await answers(stage, client, 1)
        for connection in list(stage.edge.pool.clients):
            assert isinstance(connection, ClientConnection)
            connection._hand_over_idle_or_set_timeout()
        assert (stage.waiting, len(stage.edge.pool.clients)) == (1, 1)
        for client in (first, second):
            await asked(stage, client, OTHER)

    passing_stage.play(scene)


@pytest.mark.parametrize("why", ["draining", "descriptors", "reported"])
def test_idle_connection_that_cannot_wait_outside_stays_in_the_proxy(why: str) -> None:
    async def scene(stage: passing_stage.Stage) -> None:
        await proxied_and_passed(stage)
        client, theirs = _pair()
        client.setblocking(False)
        start_serving(stage.edge, theirs, reported=("192.0.2.1", 1234) if why == "reported" else None)
        for _ in range(2):
            await asked(stage, client, OTHER)
            stage.edge.draining = why == "draining"
            with no_descriptors_left() if why == "descriptors" else nullcontext():
                only_connection(stage)._hand_over_idle_or_set_timeout()
            assert (stage.waiting, len(stage.edge.pool.clients)) == (0, 1)
            stage.edge.draining = False
        client.close()

    passing_stage.play(scene)


def test_connection_with_unsent_bytes_does_not_leave() -> None:
    async def scene(stage: passing_stage.Stage) -> None:
        await proxied_and_passed(stage)
        client = await stage.connect(OTHER)
        await answers(stage, client, 1)
        connection = only_connection(stage)
        size = 32 * 1024 * 1024  # more than the kernel takes
        connection._transport.write(bytes(size))
        connection._hand_over_idle_or_set_timeout()
        assert len(stage.edge.pool.clients) == 1
        while size:
            size -= len(await stage.edge.loop.sock_recv(client, 1 << 20))
        connection._hand_over_idle_or_set_timeout()
        await until(lambda: stage.waiting)

    passing_stage.play(scene)


@pytest.mark.parametrize("size", [300_000, client_connection.MOST_KEPT_BYTES])
def test_connection_that_was_read_ahead_up_to_the_bound_is_read_on_when_its_turn_comes(size: int) -> None:
    async def scene(stage: Stage) -> None:
        go_on, body = asyncio.Event(), b"x" * size

        async def first_later(backend: Backend, wire: Wire) -> None:
            head = await backend.request(wire)
            if head.startswith(b"GET"):
                await go_on.wait()
                await wire.send(OK + b"Content-Length: 5\r\n\r\nfirst")
                head = await backend.request(wire)
            assert await wire.exactly(len(body)) == body
            await wire.send(OK + b"Content-Length: 6\r\n\r\nsecond")
            await ok(backend, wire)

        await stage.route(first_later)
        client = await stage.client()
        client.writer.write(GET + POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        (connection,) = stage.edge.pool.clients
        while connection._reading:
            await asyncio.sleep(0)
        go_on.set()
        assert (await client.response())[1] == b"first"
        assert (await client.response())[1] == b"second"
        await client.send(GET)
        assert (await client.response())[1] == b"hello"

    play(scene)


def test_bytes_of_bodies_that_come_in_pieces_are_counted_for_route_and_backend() -> None:
    async def in_pieces(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.exactly(4)
        for piece in (OK + b"Content-Length: 6\r\n\r\n", b"ab", b"cd", b"ef"):
            await wire.send(piece)
            await asyncio.wait_for(seen.get(), 30)

    async def scene(stage: Stage) -> None:
        backend = await stage.route(in_pieces)
        client = await stage.client()
        await client.send(POST + b"Content-Length: 4\r\n\r\n12")
        while not backend.heads:
            await asyncio.sleep(0)
        await client.send(b"34")
        await client.until(b"\r\n\r\n")
        seen.put_nowait(None)
        for piece in (b"ab", b"cd", b"ef"):
            assert await client.exactly(2) == piece
            seen.put_nowait(None)
        for traffic in (stage.edge.counts.route("app"), stage.edge.counts.backend(backend.url)):
            assert (traffic.bytes_in, traffic.bytes_out) == (4, 6)
            assert (traffic.slots[tally.STARTED], traffic.slots[tally.STATUS + 2], traffic.errors) == (
                1,
                1,
                {},
            )

    seen: asyncio.Queue[None] = asyncio.Queue()
    play(scene)


def test_client_over_its_limit_is_refused_without_a_backend_until_its_time_has_come() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok, client_limit=TrafficLimits(requests_per_second=0.001, burst=2))
        client = await stage.client()
        for _ in range(2):
            await client.send(GET)
            assert await status_of(client) == 200
        await client.send(GET)
        head, _ = await client.response()
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        (seconds,) = re.findall(rb"\r\nRetry-After: (\d+)\r\n", head)
        assert 900 < int(seconds) <= 1000
        traffic = stage.edge.counts.route("app")
        assert (traffic.requests, traffic.errors, len(backend.heads)) == (3, {"refused": 1}, 2)

    play(scene)


def test_request_that_has_ended_makes_room_for_the_next_of_its_client() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok, client_limit=TrafficLimits(concurrency=1))
        client = await stage.client()
        for _ in range(3):
            await client.send(GET)
            assert await status_of(client) == 200
        backend = await stage.route(hanging, client_limit=TrafficLimits(concurrency=1))
        await client.send(GET)
        while not backend.heads:
            await asyncio.sleep(0)
        other = await stage.client()
        await other.send(GET)
        assert await status_of(other) == 429

    play(scene)


def test_redirect_is_counted_as_an_answer_of_its_route() -> None:
    async def scene(stage: Stage) -> None:
        stage.routes(Route(alias="old", redirect=Redirect(to="https://new.test/")))
        client = await stage.client()
        await client.send(GET)
        head, body = await client.response()
        status = int(head[9:12])
        assert b"\r\nLocation: https://new.test/\r\n" in head
        traffic = stage.edge.counts.route("old")
        assert (traffic.requests, traffic.slots[tally.STATUS + status // 100]) == (1, 1)
        assert (traffic.bytes_in, traffic.bytes_out, traffic.errors) == (0, len(body), {})

    play(scene)


def test_refusal_has_the_fields_that_the_route_sets_in_responses() -> None:
    async def scene(stage: Stage) -> None:
        headers = (Header(name="X-Frame-Options", value="DENY"),)
        stage.routes(Route(alias="app", to=(Target(url=unreachable()),), response_headers=headers))
        client = await stage.client()
        await client.send(GET)
        head, _ = await client.response()
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert head.count(b"\r\nX-Frame-Options: DENY\r\n") == 1

    play(scene)


def test_fields_that_the_route_sets_in_responses_replace_those_of_the_backend() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok, response_headers=(Header(name="X", value="z"),))
        client = await stage.client()
        await client.send(GET)
        assert await client.response() == (OK + b"X: z\r\nContent-Length: 5\r\n\r\n", b"hello")

    play(scene)


def test_refused_failed_abandoned_and_upgraded_requests_are_logged_with_their_status(tmp_path: Path) -> None:
    async def script(backend: Backend, wire: Wire) -> None:
        head = await backend.request(wire)
        if b"/hang" in head:
            await wire.rest()
        elif b"/upgrade" in head:
            upgraded = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
            await wire.send(upgraded)

    async def scene(stage: Stage) -> None:
        backend = await stage.route(script, host="a")
        for request, status in (
            (b"GET /none HTTP/1.1\r\nHost: b\r\n\r\n", b"404"),
            (b"GET /closed HTTP/1.1\r\nHost: a\r\n\r\n", b"502"),
            (b"GET /upgrade HTTP/1.0\r\nHost: a\r\n\r\n", b"502"),
            (b"GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", b"101"),
        ):
            client = await stage.client()
            await client.send(request)
            assert status in await client.head()
            client.close()
        client = await stage.client()
        await client.send(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
        await until(lambda: len(backend.heads) == 4)
        client.close()
        found = {parts(line)[1:4] for line in await lines_of(tmp_path / "log", 5)}
        assert found == {
            ("GET /none HTTP/1.1", "404", "Not Found "),
            ("GET /closed HTTP/1.1", "502", "Bad Gateway "),
            ("GET /upgrade HTTP/1.0", "502", "Bad Gateway "),
            ("GET /upgrade HTTP/1.1", "101", "Switching Protocols "),
            ("GET /hang HTTP/1.1", "499", ""),
        }

    play(scene, access_log=str(tmp_path / "log"))


def test_host_that_demands_a_client_certificate_is_refused_over_the_connection_of_another_host(
    tmp_path: Path,
) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        made = {
            name: certificate(tmp_path, name) for name in ("open.example", "also.example", "closed.example")
        }
        certificates = CertificatesByListener()
        for name, (cert, key) in made.items():
            demand = {"client_auth": "required"} if name == "closed.example" else {}
            contents = [cert.read_bytes(), key.read_bytes(), *([cert.read_bytes()] if demand else [])]
            certificates.put(":443", [name], demand, contents)
        trust = authority(*(cert for cert, _ in made.values()))
        trust.set_alpn_protocols(["h2", "http/1.1"])
        context = certificates.context(":443", "")
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
