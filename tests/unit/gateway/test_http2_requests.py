"""HTTP/2 of clients: streams as requests of HTTP/1.1 to backends, and their responses."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from tests.unit.gateway.http2_client import Fields, Http2Stage
from tests.unit.gateway.proxy_stage import LOOPS, Backend, Wire, ok, play, route

OK = b"HTTP/1.1 200 OK\r\n"
START: Fields = [
    (b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a.example"), (b":path", b"/"),
]  # fmt: skip


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_streams_are_requests_with_the_fields_of_a_proxy(loop: str, tmp_path: Path) -> None:
    async def scene(stage: Http2Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.connect()
        response = await client.get(
            (b"x-own", b"1"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), path=b"/p?q=1"
        )
        assert (response.status, response.body) == (200, b"hello")
        assert response.fields[b"content-length"] == b"5"
        assert response.fields[b"x"] == b"y"
        lines = backend.heads[0].split(b"\r\n")
        assert lines[0] == b"GET /p?q=1 HTTP/1.1"
        for line in (b"Host: a.example", b"x-own: 1", b"cookie: a=1; b=2", b"X-Forwarded-Proto: https"):
            assert line in lines
        numbers = [await client.request(path=b"/%d" % n) for n in range(50)]
        for number in numbers:
            assert (await client.response(number)).body == b"hello"
        assert backend.connections <= 50

    play(loop, scene, partial(Http2Stage, tmp_path))


def test_body_without_a_length_is_chunked_with_its_trailers_and_one_with_a_length_is_not(
    loop: str, tmp_path: Path
) -> None:
    async def scene(stage: Http2Stage) -> None:
        bodies: list[bytes] = []

        async def take(backend: Backend, wire: Wire) -> None:
            while True:
                head = await backend.request(wire)
                if b"transfer-encoding: chunked" in head.lower():
                    bodies.append(await wire.until(b"0\r\n") + await wire.until(b"\r\n\r\n"))
                else:
                    assert b"\r\ncontent-length: 6\r\n" in head
                    bodies.append(await wire.exactly(6))
                await wire.send(OK + b"Content-Length: 2\r\n\r\nok")

        await stage.route(take)
        client = await stage.connect()
        number = await client.request((b"te", b"trailers"), method=b"POST", end=False)
        await client.data(number, b"abc")
        await client.data(number, b"")
        await client.data(number, b"def")
        client.h2.send_headers(number, [(b"x-sum", b"7"), (b"content-length", b"1")], end_stream=True)
        await client.flush()
        assert (await client.response(number)).body == b"ok"
        assert bodies.pop() == b"3\r\nabc\r\n3\r\ndef\r\n0\r\nx-sum: 7\r\n\r\n"
        number = await client.request((b"content-length", b"6"), method=b"POST", end=False)
        await client.data(number, b"abc")
        await client.data(number, b"def", end=True)
        assert (await client.response(number)).body == b"ok"
        assert bodies.pop() == b"abcdef"

    play(loop, scene, partial(Http2Stage, tmp_path))


@pytest.mark.parametrize(
    ("method", "response", "status", "body"),
    [
        (b"GET", OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", 200, b"abc"),
        (b"GET", OK + b"Connection: x-hop\r\nX-Hop: 1\r\nContent-Length: 1\r\n\r\na", 200, b"a"),
        (b"GET", OK + b"Keep-Alive: 5\r\nProxy-Connection: close\r\n\r\nuntil the end", 200, b"until the end"),
        (b"GET", OK + b"Content-Length: 0\r\n\r\n", 200, b""),
        (b"HEAD", OK + b"Content-Length: 9\r\n\r\n", 200, b""),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b""),
        (b"GET", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na", 200, b"a"),
    ],
)  # fmt: skip
def test_responses_have_no_fields_of_the_backends_connection(
    loop: str, tmp_path: Path, method: bytes, response: bytes, status: int, body: bytes
) -> None:
    async def answer(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(response)

    async def scene(stage: Http2Stage) -> None:
        await stage.route(answer)
        client = await stage.connect()
        found = await client.get(method=method)
        assert (found.status, found.body, found.reset) == (status, body, None)
        for name in (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"x-hop"):
            assert name not in found.fields
        assert found.trailers == ({b"x-sum": b"1"} if b"X-Sum" in response else {})
        assert [each[b"link"] for each in found.interim] == ([b"</a>"] if b"103" in response else [])
        if method == b"HEAD":
            assert found.fields[b"content-length"] == b"9"

    play(loop, scene, partial(Http2Stage, tmp_path))


@pytest.mark.parametrize(
    "fields",
    [
        [*START, (b"X-Capital", b"1")],
        [*START, (b"connection", b"close")],
        [*START, (b"transfer-encoding", b"chunked")],
        [*START, (b"upgrade", b"websocket")],
        [*START, (b"te", b"gzip")],
        [*START, (b"x", b"a\r\nb: c")],
        [*START, (b"x", b"a\0b")],
        [*START, (b"x", b" a")],
        [*START, (b"x y", b"a")],
        [*START, (b"", b"a")],
        [*START, (b":path", b"/again")],
        [*START, (b":other", b"1")],
        [*START, (b"host", b"b.example")],
        [*START, (b"host", b"a.example"), (b"host", b"a.example")],
        [(b"x", b"1"), *START],
        START[1:],
        [START[0], *START[2:]],
        [*START[:2], START[3]],
        START[:3],
        [*START[:3], (b":path", b"")],
        [*START[:3], (b":path", b"http://b.example/")],
        [*START[:3], (b":path", b"/ HTTP/1.1\r\nx: y")],
        [*START[:3], (b":path", b"/a b")],
        [(b":method", b"GET / HTTP/1.1"), *START[1:]],
        [*START[:2], (b":authority", b"user@a.example"), START[3]],
        [*START[:2], (b":authority", b""), START[3]],
        [(b":method", b"CONNECT"), *START[1:], (b":protocol", b"websocket")],
        [(b":method", b"POST"), *START[1:], (b"content-length", b"3")],
    ],
)
def test_malformed_request_resets_its_stream_only(tmp_path: Path, fields: Fields) -> None:
    async def scene(stage: Http2Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.connect()
        response = await client.response(await client.fields(fields))
        assert response.reset == 1  # PROTOCOL_ERROR
        assert (await client.get()).status == 200
        assert len(backend.heads) == 1

    play("uvloop", scene, partial(Http2Stage, tmp_path))


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(b":method", b"CONNECT"), (b":authority", b"a.example:80")], 405),
        ([(b":method", b"TRACE"), *START[1:]], 405),
        ([*START[:3], (b":path", b"/a/%2e%2e/%00")], 400),
        ([*START[:3], (b":path", b"/elsewhere")], 404),
        ([*START[:3], (b":path", b"*")], 400),
        ([*START, (b"expect", b"something")], 417),
        ([*START, (b"x", b"a" * 70000)], 431),
        ([*START[:2], (b":authority", b"b.example"), START[3]], 421),
        ([*START[:2], START[3], (b"host", b"a.example:443")], 200),
        ([*START[:2], (b":authority", b"A.example."), START[3]], 200),
        ([*START[:2], (b":authority", b"x.a.example"), START[3], (b"host", b"x.A.example")], 200),
    ],
)
def test_refused_requests_get_a_status(tmp_path: Path, fields: Fields, status: int) -> None:
    async def scene(stage: Http2Stage) -> None:
        backend = await stage.backend(ok)
        stage.routes(
            *(route(backend, alias=f"{host}-{path}", host=host, path=path)
              for host in ("a.example", "x.a.example", "b.example") for path in ("/only",)),
            *(route(backend, alias=host, host=host, path="/", methods=("GET",))
              for host in ("a.example", "x.a.example") if status == 200),
        )  # fmt: skip
        stage.put("a.example")
        stage.put("b.example")
        client = await stage.connect()
        response = await client.response(await client.fields(fields))
        assert response.status == status
        assert response.reset is None
        assert len(backend.heads) == (status == 200)

    play("uvloop", scene, partial(Http2Stage, tmp_path))


@pytest.mark.parametrize(
    ("length", "sent", "trailers"), [(3, b"ab", True), (0, b"ab", False), (9, b"ab", False)]
)
def test_body_of_another_length_than_the_head_names_never_ends_a_backends_request(
    tmp_path: Path, length: int, sent: bytes, trailers: bool
) -> None:
    async def scene(stage: Http2Stage) -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def take(backend: Backend, wire: Wire) -> None:
            await backend.request(wire)
            begun.set()
            assert len(await wire.rest()) <= length
            ended.set()

        await stage.route(take)
        client = await stage.connect()
        number = await client.request((b"content-length", b"%d" % length), method=b"POST", end=False)
        client.h2.streams[number]._expected_content_length = None  # h2 would check it here
        await asyncio.wait_for(
            begun.wait(), 20
        )  # what comes with the head may be refused before there is a backend
        await client.data(number, sent, end=not trailers)
        if trailers:
            client.h2.send_headers(number, [(b"x", b"y")], end_stream=True)
            await client.flush()
        response = await client.response(number)
        assert response.reset == 1 or client.closed
        await asyncio.wait_for(ended.wait(), 20)

    play("uvloop", scene, partial(Http2Stage, tmp_path))


@pytest.mark.parametrize("host", [b"127.0.0.1", b"127.0.0.1:8443", b"[::1]:8443", b"unknown.example"])
def test_hosts_without_a_certificate_of_their_own_belong_to_the_default_one(
    tmp_path: Path, host: bytes
) -> None:
    async def scene(stage: Http2Stage) -> None:
        await stage.route(ok)
        stage.put("a.example", "127.0.0.1")
        stage.put("b.example", "127.0.0.1")
        fields = [*START[:2], (b":authority", host), START[3]]
        for name, status in ((None, 200), ("a.example", 200), ("b.example", 421)):
            client = await stage.connect(name)
            assert (await client.response(await client.fields(fields))).status == status

    play("uvloop", scene, partial(Http2Stage, tmp_path))
