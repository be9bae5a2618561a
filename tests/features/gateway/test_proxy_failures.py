"""Backends and clients that fail: what the other side gets, and that it gets it in time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from poolctl.features.gateway.process.proxy import client_connection
from poolctl.features.gateway.process.proxy.serving import serve
from poolctl.routing.route import Limit, Route, Target
from poolctl.worker import tally
from tests.features.gateway.proxy_stage import Backend, Script, Stage, Wire, ok, play, route
from tests.http_corpus import RESPONSES, ResponseCase

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
# Short timeouts of routes: what is waited for never comes.
SOON = 0.1
# The same where something else has to be done in time.
RATHER_SOON = 1.0


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


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"])
def test_backend_that_ends_before_its_response_is_a_bad_gateway(sent: bytes, reset: bool) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(failing(sent, reset=reset))
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 502
        assert len(backend.heads) == 1

    play(scene)


REFUSED = [
    case
    for case in RESPONSES
    if not case.status and case.whole and case.name != "other protocol, not asked for"
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_malformed_response_is_a_bad_gateway_or_cut_off(case: ResponseCase) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(failing(case.data))
        client = await stage.client()
        await client.send(GET[:-2] + b"Connection: close\r\n\r\n")
        try:
            received = await client.rest()
        except ConnectionError:
            return
        received = received.rpartition(b"HTTP/1.1 100 Continue\r\n\r\n")[2]
        if received.startswith(OK):  # only its body is malformed
            assert not received.endswith(b"0\r\n\r\n")
        else:
            assert received == b"" or received.startswith(b"HTTP/1.1 502 ")

    play(scene)


CUT = {
    "length": OK + b"Content-Length: 10\r\n\r\nhel",
    "chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
    "no last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
    "broken chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\nxyz\r\n",
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_response_that_is_cut_off_is_not_taken_for_whole(name: str, version: bytes) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(failing(CUT[name]))
        client = await stage.client()
        await client.send(b"GET / HTTP/%b\r\nHost: a\r\nConnection: close\r\n\r\n" % version)
        try:
            received = await client.rest()
        except ConnectionResetError:
            return
        if received.startswith(b"HTTP/1.1 502 "):
            assert name == "broken chunk"  # nothing had been passed on yet
            return
        assert version == b"1.1" or name == "length"
        assert not received.endswith(b"0\r\n\r\n")

    play(scene)


def test_closed_idle_connection_costs_no_request_that_may_be_repeated() -> None:
    async def once(backend: Backend, wire: Wire) -> None:
        """Answers one request, and closes when it has read the beginning of another."""
        await backend.request(wire)
        await wire.send(OK + b"Content-Length: 2\r\n\r\nok")
        await wire.some()

    async def scene(stage: Stage) -> None:
        backend = await stage.route(once)
        client = await stage.client()
        for number in range(3):
            await client.send(GET)
            assert await status_of(client) == 200
            assert backend.connections == number + 1
        await client.send(POST + b"Content-Length: 1\r\n\r\na")
        assert await status_of(client) == 502  # it may have been acted upon
        assert backend.connections == 3

    play(scene)


def test_post_is_not_sent_on_a_connection_that_the_backend_has_closed() -> None:
    async def once(backend: Backend, wire: Wire) -> None:
        head = await backend.request(wire)
        if b"POST" in head:
            await wire.exactly(1)
        await wire.send(OK + b"Content-Length: 2\r\n\r\nok")

    async def scene(stage: Stage) -> None:
        backend = await stage.route(once)
        client = await stage.client()
        for number in range(5):
            await client.send(POST + b"Content-Length: 1\r\n\r\na")
            assert await status_of(client) == 200
            assert backend.connections == number + 1

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
        first = (await stage.backend(script)).url if script else unreachable()
        other = await stage.backend(ok)
        targets = Target(url=first), Target(url=other.url)
        timeouts = {"head": RATHER_SOON} if name == "hangs" else {}
        stage.routes(route(to=targets, policy="first", retries=1, timeouts=timeouts))
        client = await stage.client()
        await client.send(b"%b / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na" % method)
        status = await status_of(client)
        if method == b"GET" or name == "unreachable":
            assert (status, len(other.heads)) == (200, 1)
        else:
            assert status == {"answers 503": 503, "hangs": 504}.get(name, 502)
            assert not other.heads

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


@pytest.mark.parametrize(
    ("script", "timeouts"), [(trickling, {"idle": SOON}), (endless, {"total": 2 * SOON})]
)
def test_response_that_does_not_end_is_cut_off(script: Script, timeouts: dict[str, float]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(script, timeouts=timeouts)
        client = await stage.client()
        await client.send(GET[:-2] + b"Connection: close\r\n\r\n")
        assert len(await client.rest()) < 1000

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
        client, silent, second = [await stage.client() for _ in range(3)]
        await second.send(GET)
        assert await status_of(second) == 200
        await client.send(GET[:10])
        await second.send(GET[:10])
        for each in (client, second):
            assert await status_of(each) == 408
            assert await each.rest() == b""
        assert await silent.rest() == b""  # nothing to respond to

    play(scene, head_seconds=RATHER_SOON)


def test_slow_body_is_a_request_timeout() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(hanging, timeouts={"idle": SOON})
        client = await stage.client()
        await client.send(POST + b"Content-Length: 5\r\n\r\nab")
        assert await status_of(client) == 408

    play(scene)


def test_idle_connection_is_closed_after_its_time() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client()
        await client.send(GET)
        assert await status_of(client) == 200
        assert await client.rest() == b""

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
        backend = await stage.route(hanging, limit=Limit(concurrency=1))
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

        backend = await stage.route(later, limit=Limit(concurrency=1, queue=5, queue_seconds=20.0))
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


def test_lingering_client_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "LINGER_SECONDS", SOON)

    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        client = await stage.client()
        await client.send(b"no request\r\n\r\n")
        assert await status_of(client) == 400
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
                serve(stage.edge, listener.accept()[0])
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n")
                while not stage.edge.pool.clients:
                    await asyncio.sleep(0)
                while stage.edge.pool.clients:
                    await asyncio.sleep(0.01)
        counts = stage.edge.counts.route("app")
        assert (counts.failures, counts.requests) == (0, 2)

    play(scene, keep_alive_seconds=SOON)
