"""WSGI applications, by a2wsgi and by uvicorn's own middleware: what gunicorn's users rely on holds for both."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from wsgiref.validate import validator

import pytest
import uvicorn.middleware.wsgi

from poolctl.worker.serving.uvicorn_parts import settings_for
from poolctl.worker.serving.wsgi import RequestThreads, WsgiApp
from tests.serving import FAST, Client, Engine, Served, served, turns, until
from tests.threads import no_more_threads

Environ = dict[str, Any]
TEXT = [("Content-Type", "text/plain")]


@pytest.fixture(params=["a2wsgi", "uvicorn"], autouse=True)
def middleware(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which middleware serves; uvicorn's as in an environment without a2wsgi."""
    if request.param == "uvicorn":
        monkeypatch.setitem(sys.modules, "a2wsgi", None)
        own = uvicorn.middleware.wsgi._WSGIMiddleware
        monkeypatch.setattr(uvicorn.middleware.wsgi, "WSGIMiddleware", own)
    return str(request.param)


@contextlib.asynccontextmanager
async def serving(
    app: Any, *, engine: Engine = FAST, threads: int = 2, **options: Any
) -> AsyncIterator[Served]:
    made = WsgiApp(app, threads)
    config = settings_for(made, {"http": engine.http, "ws": "auto"} | options.pop("config", {}))
    async with served(engine, made, config=config, **options) as server:
        yield server


async def exchange(port: int, *lines: str, body: bytes = b"") -> tuple[str, dict[str, str], bytes]:
    """Status, headers and body of the response to one request on its own connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = "\r\n".join(
            [lines[0] + " HTTP/1.1", "Host: shop.test", "Connection: close", *lines[1:], "", ""]
        )
        writer.write(head.encode("latin-1") + body)
        received = await reader.read()
    finally:
        writer.close()
    first, _, rest = received.partition(b"\r\n\r\n")
    status, *fields = first.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in fields)
    chunks = rest.split(b"\r\n")[1::2]  # the chunks of these tests have no line breaks
    return status.split()[1], headers, b"".join(chunks) if "transfer-encoding" in headers else rest


def responses(app: Any, *requests: Any, engine: Engine = FAST, **options: Any) -> list[Any]:
    """The responses to requests, each a list of lines and perhaps the body."""

    async def ask() -> list[Any]:
        async with serving(app, engine=engine, **options) as server:
            found = []
            for lines in requests:
                *head, body = lines if isinstance(lines[-1], bytes) else [*lines, b""]
                found.append(await exchange(server.port, *head, body=body))
            return found

    result: list[Any] = engine.run(ask())
    return result


class Seen:
    """An application that records each environ, with the request's body as `body`."""

    def __init__(self) -> None:
        self.environs: list[Environ] = []

    def __call__(self, environ: Environ, start_response: Any) -> list[bytes]:
        self.environs.append(environ | {"body": environ["wsgi.input"].read(10**6)})
        start_response("200 OK", TEXT)
        return [b"seen"]


def test_application_that_checks_its_server_is_content(engine: Engine) -> None:
    seen = Seen()

    def app(environ: Environ, start_response: Any) -> Any:
        assert environ["wsgi.input"].readline(100) == b"a=1\n"
        return Seen.__call__(seen, environ, start_response)

    request = ["POST /a?x=1", "Content-Length: 8", "Content-Type: text/plain", b"a=1\nb=2\n"]
    state = {"release": "7"}
    assert [each[0] for each in responses(validator(app), request, engine=engine, state=state)] == ["200"]
    (environ,) = seen.environs
    assert environ["body"] == b"b=2\n"
    assert (environ["PATH_INFO"], environ["SCRIPT_NAME"], environ["QUERY_STRING"]) == ("/a", "", "x=1")
    assert (environ["CONTENT_LENGTH"], environ["CONTENT_TYPE"]) == ("8", "text/plain")
    assert (environ["HTTP_HOST"], environ["REMOTE_ADDR"]) == ("shop.test", "127.0.0.1")
    assert environ["asgi.scope"]["state"] == {"release": "7"}
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"].isdigit()) == ("127.0.0.1", True)


@pytest.fixture
def logged() -> Iterator[list[logging.LogRecord]]:
    """The records of uvicorn's logger, by a filter: `Engine.run` lets uvicorn replace the handlers."""
    records: list[logging.LogRecord] = []

    def record(each: logging.LogRecord) -> bool:
        records.append(each)
        return True

    logger = logging.getLogger("uvicorn.error")
    logger.addFilter(record)
    yield records
    logger.removeFilter(record)


def test_body_is_a_file_whose_end_is_the_end_of_the_request() -> None:
    def app(environ: Environ, start_response: Any) -> list[bytes]:
        file = environ["wsgi.input"]
        start_response("200 OK", TEXT)
        return [repr([file.readline(3), file.readline(99), *file, file.read(), file.readlines()]).encode()]

    request = ["POST /", "Transfer-Encoding: chunked", b"6\r\nab\ncde\r\n4\r\nf\ng\n\r\n0\r\n\r\n"]
    ((_, _, body),) = responses(app, request)
    assert body == repr([b"ab\n", b"cdef\n", b"g\n", b"", []]).encode()


def test_large_upload_arrives_whole() -> None:
    size = 20 * 2**20

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        got = sum(len(part) for part in iter(lambda: environ["wsgi.input"].read(65536), b""))
        start_response("200 OK", TEXT)
        return [str(got).encode()]

    ((_, _, body),) = responses(app, ["POST /", f"Content-Length: {size}", bytes(size)])
    assert body == str(size).encode()


def test_path_is_split_at_the_prefix_under_which_a_proxy_serves_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def paths(*requests: str, **options: Any) -> list[tuple[str, str]]:
        seen = Seen()
        responses(seen, *([each] for each in requests), **options)
        return [(each["SCRIPT_NAME"], each["PATH_INFO"]) for each in seen.environs]

    assert paths("GET /x/%C3%A9%FF?y") == [("", "/x/\xc3\xa9\xff")]
    assert paths("GET /x", "GET /", config={"root_path": "/shop"}) == [("/shop", "/x"), ("/shop", "/")]
    monkeypatch.setenv("SCRIPT_NAME", "/shop")
    assert paths("GET /shop/x", "GET /shop", "GET /shopping") == [
        ("/shop", "/x"), ("/shop", ""), ("/shop", "/shopping"),
    ]  # fmt: skip


def test_proxy_decides_about_client_and_scheme_only_where_it_is_trusted() -> None:
    forwarded = ["GET /", "X-Forwarded-For: 9.9.9.9", "X-Forwarded-Proto: https"]
    trusting = {"proxy_headers": True, "forwarded_allow_ips": ["127.0.0.1"]}
    found = []
    for config in (trusting, {"proxy_headers": False}):
        seen = Seen()
        responses(seen, forwarded, config=config)
        found += [(each["REMOTE_ADDR"], each["wsgi.url_scheme"]) for each in seen.environs]
    assert found == [("9.9.9.9", "https"), ("127.0.0.1", "http")]


def test_headers_with_underscores_are_left_out_and_repeated_ones_joined() -> None:
    seen = Seen()
    lines = [
        "X_Forwarded_Proto: https",
        "X-Forwarded-Proto: http",
        "A: 1",
        "A: 2",
        "Cookie: b=1",
        "Cookie: c=2",
    ]
    responses(seen, ["GET /", *lines])
    (environ,) = seen.environs
    assert (environ["HTTP_X_FORWARDED_PROTO"], environ["HTTP_A"]) == ("http", "1,2")
    assert environ["HTTP_COOKIE"] == "b=1; c=2"


def test_last_start_response_before_the_body_counts() -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [*TEXT, ("X-First", "1")])
        yield b""
        try:
            raise ValueError("no")
        except ValueError:
            start_response("503 Busy", [*TEXT, ("X-Name", "caf\xe9")], sys.exc_info())
        yield b"sorry"

    ((status, headers, body),) = responses(app, ["GET /"])
    assert (status, headers["x-name"], "x-first" in headers) == ("503", "caf\xe9", False)
    assert b"sorry" in body


def test_start_response_raises_the_error_when_the_body_has_begun(logged: list[logging.LogRecord]) -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [*TEXT, ("Content-Length", "10")])
        yield b"half"
        try:
            raise ValueError("too late")
        except ValueError:
            start_response("500 Error", TEXT, sys.exc_info())

    ((status, _, body),) = responses(app, ["GET /"])
    assert (status, len(body) < 10) == ("200", True)
    assert [str(each.exc_info[1]) for each in logged if each.exc_info] == ["too late"]


@pytest.mark.parametrize(
    "app",
    [
        lambda environ, start_response: start_response("200 OK", TEXT) and 1 / 0,
        lambda environ, start_response: [b"no head"],
        lambda environ, start_response: [],
        lambda environ, start_response: start_response("200 OK", TEXT) and start_response("201 OK", TEXT),
        lambda environ, start_response: sys.exit(3),
    ],
    ids=["error after start_response", "no start_response", "nothing", "twice", "exit"],
)
def test_application_that_fails_before_its_body_is_answered_with_500(app: Any) -> None:
    assert [each[0] for each in responses(app, ["GET /"])] == ["500"]


def test_responses_without_a_body_have_none_and_are_no_error(
    engine: Engine, logged: list[logging.LogRecord]
) -> None:
    def app(environ: Environ, start_response: Any) -> list[bytes]:
        start_response(environ["PATH_INFO"][1:], [*TEXT, ("Content-Length", "4")])
        return [b"body", b" and more than was announced"]

    found = responses(app, ["GET /204"], ["GET /304"], ["HEAD /200"], ["GET /200"], engine=engine)
    assert [(status, body) for status, _, body in found] == [
        ("204", b""), ("304", b""), ("200", b""), ("200", b"body"),
    ]  # fmt: skip
    assert found[2][1]["content-length"] == "4"
    assert [each for each in logged if each.exc_info] == []


class ClosingBadly(list[bytes]):
    """A body whose `close` fails."""

    def close(self) -> None:
        raise RuntimeError("on purpose")


def failing_at_its_end() -> Iterator[bytes]:
    yield b"hello"
    raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (failing_at_its_end, [("Content-Length", "5")]),
        (lambda: ClosingBadly([b"hello"]), [("Content-Length", "5")]),
        (lambda: ClosingBadly([b"hello"]), []),
    ],
    ids=["generator", "close", "close, in chunks"],
)
async def test_error_behind_a_whole_body_does_not_close_the_connection(
    engine: Engine, body: Callable[[], Any], fields: list[tuple[str, str]], logged: list[logging.LogRecord]
) -> None:
    def app(environ: Environ, start_response: Any) -> Any:
        start_response("200 OK", TEXT + fields)
        return body()

    async with serving(app, engine=engine) as server:
        client = await Client.connect(server.port)
        for _ in range(3):
            await client.send()
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert b"200 OK" in head
            assert b"close" not in head.lower()
            assert await client.reader.readexactly(5 if fields else 15) == (
                b"hello" if fields else b"5\r\nhello\r\n0\r\n\r\n"
            )
        await until(lambda: sum(record.exc_info is not None for record in logged) == 3)


def test_what_was_written_comes_before_what_is_returned() -> None:
    def app(environ: Environ, start_response: Any) -> Iterator[bytes] | list[bytes]:
        write = start_response("200 OK", [*TEXT, ("Content-Length", "5")])
        write(b"one")
        write(b"")
        return [b"-2"] if environ["PATH_INFO"] == "/more" else []

    (_, _, body), (_, _, short) = responses(app, ["GET /more"], ["GET /"])
    assert (body, short) == (b"one-2", b"one")


def test_response_is_streamed_and_closed() -> None:
    closed, go = threading.Event(), threading.Event()

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"first"
            assert go.wait(30)
            yield b"second"

        def close(self) -> None:
            closed.set()

    def app(environ: Environ, start_response: Any) -> Body:
        start_response("200 OK", TEXT)
        return Body()

    async def ask() -> bytes:
        async with serving(app) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            await reader.readuntil(b"first")
            go.set()
            rest = await reader.read()
            writer.close()
            await until(closed.is_set)
            return rest

    assert b"second" in FAST.run(ask())


@contextlib.asynccontextmanager
async def connection(server: Served, request: bytes) -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    try:
        yield reader
    finally:
        writer.close()


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.loop(run=FAST.run)
async def test_endless_response_ends_when_its_client_leaves() -> None:
    closed = threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        try:
            while True:
                yield b"tick\n" * 1000
        finally:
            closed.set()

    async with serving(app, threads=1) as server:
        for _ in range(2):
            closed.clear()
            async with connection(server, GET) as reader:
                await reader.readuntil(b"tick")
            await until(closed.is_set)


@pytest.mark.loop(run=FAST.run)
async def test_request_whose_client_left_while_it_waited_for_a_thread_is_not_made() -> None:
    entered, go, paths = threading.Event(), threading.Event(), []

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        paths.append(environ["PATH_INFO"])
        entered.set()
        assert go.wait(30)
        start_response("200 OK", [*TEXT, ("Content-Length", "0")])
        return []

    async with serving(app, threads=1) as server:
        async with connection(server, GET) as first:
            await until(entered.is_set)
            async with connection(server, GET.replace(b"/ ", b"/waiting ")):
                await until(lambda: len(server.server.server_state.tasks) == 2)
            await until(lambda: len(server.server.server_state.connections) == 1)
            await turns()
            go.set()
            await first.readuntil(b"\r\n\r\n")
        await until(lambda: not server.server.server_state.tasks)
    assert paths == ["/"]


@pytest.mark.loop(run=FAST.run)
async def test_upload_that_breaks_off_is_an_error_in_the_application(middleware: str) -> None:
    found: list[BaseException | bytes] = []

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        try:
            found.append(environ["wsgi.input"].read())
        except OSError as error:
            found.append(error)
        start_response("200 OK", TEXT)
        return []

    async with serving(app) as server:
        head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        async with connection(server, head + b"4\r\nhalf\r\n"):
            await until(lambda: server.server.server_state.tasks)
            await turns()
        await until(lambda: not server.server.server_state.tasks)
    if middleware == "a2wsgi":
        assert [type(each) for each in found] == [ConnectionResetError]
    else:
        assert found == [], "it reads the whole request before it calls the application"


def test_as_many_requests_at_once_as_there_are_threads() -> None:
    running, most, lock, go = 0, 0, threading.Lock(), threading.Event()

    def app(environ: Environ, start_response: Any) -> list[bytes]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        assert go.wait(30)
        with lock:
            running -= 1
        start_response("200 OK", TEXT)
        return [b"ok"]

    async def ask() -> list[Any]:
        async with serving(app, threads=3) as server:
            asked = [asyncio.ensure_future(exchange(server.port, "GET /")) for _ in range(5)]
            await until(lambda: len(server.server.server_state.tasks) == 5 and running == 3)
            await turns()
            go.set()
            return [each[0] for each in await asyncio.gather(*asked)]

    assert FAST.run(ask()) == ["200"] * 5
    assert most == 3


def test_drain_waits_for_the_request_and_a_stop_cuts_it_with_503() -> None:
    def blocking(go: threading.Event, entered: threading.Event) -> Callable[..., list[bytes]]:
        def app(environ: Environ, start_response: Any) -> list[bytes]:
            entered.set()
            assert go.wait(30)
            start_response("200 OK", [*TEXT, ("Content-Length", "2")])
            return [b"ok"]

        return app

    async def drained() -> bytes:
        go, entered = threading.Event(), threading.Event()
        async with serving(blocking(go, entered)) as server, connection(server, GET) as reader:
            await until(entered.is_set)
            server.server.drain()
            await turns()
            assert not server.running.done()
            go.set()
            answer = await reader.read()
            await server.running
            return answer

    async def cut() -> bytes:
        go, entered = threading.Event(), threading.Event()
        async with (
            serving(blocking(go, entered), stop_seconds=0.01) as server,
            connection(server, GET) as reader,
        ):
            await until(entered.is_set)
            server.server.stop()
            answer = await reader.readuntil(b"Unavailable")
            await server.running
            go.set()
            return answer

    assert FAST.run(drained()).endswith(b"ok")
    assert FAST.run(cut()).startswith(b"HTTP/1.1 503")


@pytest.mark.loop(run=FAST.run)
async def test_cancelled_request_lets_its_thread_go_although_its_client_reads_nothing() -> None:
    began, ended = threading.Event(), threading.Event()

    def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", TEXT)
        began.set()
        try:
            while True:
                yield bytes(2**20)
        finally:
            ended.set()

    async with serving(app, stop_seconds=0.01) as server:
        with socket.create_connection(("127.0.0.1", server.port), 30) as client:
            client.sendall(GET)
            await until(began.is_set)
            await turns()
            server.server.stop()
            await server.running
        await until(ended.is_set)


def test_threads_end_with_their_executor() -> None:
    threads = RequestThreads(3)
    used = {threads.submit(threading.current_thread).result() for _ in range(3)}
    assert all(each.daemon for each in used)
    del threads
    gc.collect()
    for each in used:
        each.join(30)
        assert not each.is_alive()


def test_call_without_any_thread_fails_and_later_ones_use_the_threads_there_are() -> None:
    threads = RequestThreads(2)
    with no_more_threads(), pytest.raises(RuntimeError):
        threads.submit(int)
    go = threading.Event()
    threads.submit(go.wait, 30)
    with no_more_threads():
        waiting = threads.submit(int)
    go.set()
    assert waiting.result(30) == 0
    both = threading.Barrier(2)
    calls = [threads.submit(both.wait, 5) for _ in range(2)]  # the second thread can be created again
    assert {each.result(30) for each in calls} == {0, 1}


def test_lack_of_a2wsgi_is_one_warning_that_says_how_to_install_it(
    middleware: str, logged: list[logging.LogRecord], recwarn: pytest.WarningsRecorder
) -> None:
    WsgiApp(Seen(), 1)
    told = [each.getMessage() for each in logged]
    assert (len(told), len(recwarn)) == (0 if middleware == "a2wsgi" else 1, 0)
    assert all(f"{sys.executable} -m pip install a2wsgi" in each for each in told)
