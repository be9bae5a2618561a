"""Requests that are proxied, and their responses: what passes through."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from poolctl.routing.route import Header
from tests.features.gateway.proxy_stage import Backend, Script, Stage, Wire, ok, play, route

GET = b"GET /a?b=c HTTP/1.1\r\nHost: a.example\r\n\r\n"
POST = b"POST /a HTTP/1.1\r\nHost: a.example\r\n"
OK = b"HTTP/1.1 200 OK\r\n"


def answer(response: bytes, *, close: bool = False) -> Script:
    """Answers every request with these bytes."""

    async def script(backend: Backend, wire: Wire) -> None:
        while True:
            await backend.request(wire)
            await wire.send(response)
            if close:
                return

    return script


async def echo(backend: Backend, wire: Wire) -> None:
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
            await client.send(GET)
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
        client = await stage.client(received=GET[:20])
        await client.send(GET[20:])
        assert await client.response() == (b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 5\r\n\r\n", b"hello")

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


def test_read_ahead_is_bounded() -> None:
    async def scene(stage: Stage) -> None:
        answered = asyncio.Event()

        async def late(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            await answered.wait()
            await wire.send(OK + b"Content-Length: 0\r\n\r\n")
            await ok(backend, wire)

        await stage.route(late)
        client = await stage.client()
        more = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1000 + b"\r\n\r\n"
        client.writer.write(GET + more * 20_000)  # 20 MB
        connection = None
        while connection is None or connection._reading:
            await asyncio.sleep(0)
            connection = next(iter(stage.edge.pool.clients), None)
        assert len(connection._buffer) < 1024 * 1024
        answered.set()
        for _ in range(101):
            assert (await client.response())[0].startswith(OK)

    play(scene)


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_pass_through_both_ways(size: int, chunked: bool) -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(echo)
        client = await stage.client()
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        if chunked:
            chunks = b"".join(
                b"%x\r\n%b\r\n" % (len(body[at : at + 7001]), body[at : at + 7001])
                for at in range(0, size, 7001)
            )
            sent = POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
        else:
            sent = POST + b"Content-Length: %d\r\n\r\n" % size + body
        for _ in range(2):
            _, (_, received) = await asyncio.gather(client.send(sent), client.response())
            assert received == body

    play(scene)


CHUNKS = b"5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
RESPONSES = {
    "chunks with trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"helloabc"),
    "canonical chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello"),
    "until the end": (OK + b"X: y\r\n\r\nhello", b"hello"),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
    "no content": (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b""),
    "not modified": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", b""),
    "folded field": (OK + b"X: a\r\n b\r\nContent-Length: 2\r\n\r\nok", b"ok"),
}


@pytest.mark.parametrize("name", RESPONSES)
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_responses_in_every_framing_reach_clients_of_either_version(name: str, version: bytes) -> None:
    response, expected = RESPONSES[name]
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
            await client.send(GET)
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
        await client.send(GET)
        assert await client.head() == hints
        assert b"chunked" in await client.head()
        assert await client.until(b"\r\n\r\n") == b"5\r\nhello\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"

    play(scene)


def test_an_expectation_is_met_by_the_backend() -> None:
    async def expecting(backend: Backend, wire: Wire) -> None:
        assert b"Expect: 100-continue" in await backend.request(wire)
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wire.send(OK + b"Content-Length: 3\r\n\r\n" + await wire.exactly(3))

    async def scene(stage: Stage) -> None:
        await stage.route(expecting)
        client = await stage.client()
        await client.send(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert (await client.response())[1] == b"abc"

    play(scene)


def test_response_before_the_end_of_the_request_ends_the_connection_after_it() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(answer(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n"))
        client = await stage.client()
        await client.send(POST + b"Content-Length: 100000\r\n\r\nabc")
        head, body = await client.response()
        assert head.startswith(b"HTTP/1.1 413 ")
        assert b"\r\nConnection: close\r\n" in head
        assert body == b"no\n"
        await client.send(b"x" * 1000)  # read and dropped: no reset
        assert await client.rest() == b""

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
        await client.send(GET)
        await client.head()
        for number in range(3):
            assert await client.until(b"\n\n\r\n") == b"9\r\ndata: %d\n\n\r\n" % number
            seen.set()
        assert await client.exactly(5) == b"0\r\n\r\n"

    play(scene)


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
        await client.send(GET)
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
        client.writer.write(POST + b"Content-Length: %d\r\n\r\n" % size)
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
        one, other = await stage.backend(ok), await stage.backend(echo)
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


def test_backends_on_unix_sockets_are_reached(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.backend(ok, str(tmp_path / "s"))
        stage.routes(route(backend))
        client = await stage.client()
        await client.send(GET)
        assert (await client.response())[1] == b"hello"

    play(scene)


def test_what_was_proxied_is_counted_for_route_and_backend() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.client()
        for _ in range(3):
            await client.send(GET)
            await client.response()
        for traffic in (stage.edge.counts.route("app"), stage.edge.counts.backend(backend.url)):
            assert (traffic.requests, traffic.failures) == (3, 0)
            assert traffic.bytes_out == 15

    play(scene)
