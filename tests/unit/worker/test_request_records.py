"""Requests are counted by latency and status, get IDs, and have lines in the log."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.client import connect

from poolctl.worker import tally
from poolctl.worker.serving.request_records import (
    AccessLogMiddleware,
    FailedRequestLog,
    RequestCounts,
)
from tests.asgi_apps import lifespan
from tests.serving import App, Client, Engine, blank_page, served, until


@pytest.fixture
def page() -> memoryview:
    return blank_page()


def in_flight(page: memoryview) -> int:
    return tally.in_flight(page.tolist())


async def scripted(scope: Any, receive: Any, send: Any) -> None:
    """Answers `/404` with that status; fails at `/fails` before the answer and at `/breaks` within it."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    what = scope["path"].strip("/")
    if what == "fails":
        raise RuntimeError("on purpose")
    status = int(what) if what.isdigit() else 200
    length = b"9" if what in ("breaks", "waits") else b"2"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]})
    if what == "breaks":
        raise RuntimeError("on purpose")
    if what == "waits":
        await receive()
        await receive()
        return
    await send({"type": "http.response.body", "body": b"ok"})


async def test_responses_are_counted_by_status_and_by_latency(any_engine: Engine, page: memoryview) -> None:
    async with served(any_engine, scripted, tally=page) as (_, _app, port, _running):
        client = await Client.connect(port)
        for path in ("/200", "/201", "/302", "/404", "/404", "/503"):
            assert (await client.get(path))[0] == int(path[1:])
        await until(lambda: tally.responses(page.tolist()) == 6)
        assert page[tally.STATUS : tally.STATUS + 6].tolist() == [0, 0, 2, 1, 2, 1]
        assert page[tally.STARTED] == 6
        assert 0 < page[tally.LATENCY_NS] < 60_000_000_000
        assert in_flight(page) == 0
        client.close()


async def test_request_is_in_flight_until_its_response_is_complete_and_then_counted_by_its_latency(
    any_engine: Engine, page: memoryview
) -> None:
    async with served(any_engine, tally=page) as (_, app, port, _running):
        client = await Client.connect(port)
        await client.send("/slow")
        await until(lambda: in_flight(page) == 1)
        await asyncio.sleep(0.02)
        app.release.set()
        await client.answer()
        await until(lambda: in_flight(page) == 0)
        (bucket,) = [at for at, count in enumerate(page[tally.BUCKETS : tally.COUNTED]) if count]
        bounds = [0, *tally.BOUNDS_NS, inf]
        assert max(20_000_000, bounds[bucket]) < page[tally.LATENCY_NS] <= bounds[bucket + 1]
        client.close()


@pytest.mark.parametrize(
    ("is_awaited", "is_disconnected", "slot"),
    [(True, False, tally.DISCONNECTED), (False, True, tally.DISCONNECTED), (False, False, tally.BROKEN)],
)
def test_requests_of_a_closed_connection_are_counted_with_those_sent_ahead(
    page: memoryview, is_awaited: bool, is_disconnected: bool, slot: int
) -> None:
    class Connection:
        pipeline = (1, 2)

        def complete(self) -> None:
            """As uvicorn's: called when the response is complete."""

    connection, other = Connection(), Connection()
    newest = SimpleNamespace(
        on_response=(connection if is_awaited else other).complete, disconnected=is_disconnected
    )
    RequestCounts(page).count_unanswered(connection, newest)
    assert page[slot] == 3
    assert sum(page[each] for each in (tally.DISCONNECTED, tally.BROKEN)) == 3


async def test_requests_that_were_sent_ahead_are_counted_one_by_one(
    any_engine: Engine, page: memoryview
) -> None:
    async with served(any_engine, tally=page) as (_, app, port, _running):
        client = await Client.connect(port)
        for path in ("/slow", "/", "/"):
            await client.send(path)
        await app.under_way.wait()
        app.release.set()
        for _ in range(3):
            assert (await client.answer())[0] == 200
        await until(lambda: (page[tally.STARTED], tally.responses(page.tolist())) == (3, 3))
        assert in_flight(page) == 0
        client.close()


async def test_client_that_goes_away_is_distinguished_from_an_application_that_fails(
    any_engine: Engine, page: memoryview
) -> None:
    async with served(any_engine, scripted, tally=page) as (_, _app, port, _running):
        leaving = await Client.connect(port)
        await leaving.send("/waits")
        await until(lambda: in_flight(page) == 1)
        leaving.close()
        await until(lambda: page[tally.DISCONNECTED] == 1)
        broken = await Client.connect(port)
        await broken.send("/breaks")
        await until(lambda: page[tally.BROKEN] == 1)
        assert (page[tally.DISCONNECTED], in_flight(page)) == (1, 0)
        failing = await Client.connect(port)
        await failing.send("/fails")
        assert (await failing.answer())[0] == 500
        await until(lambda: page[tally.STATUS + 5] == 1)
        assert page[tally.BROKEN] == 1
        assert in_flight(page) == 0


async def test_invalid_request_is_counted_as_such(any_engine: Engine, page: memoryview) -> None:
    async with served(any_engine, scripted, tally=page) as (_, _app, port, _running):
        client = await Client.connect(port)
        client.writer.write(b"this is no HTTP\r\n\r\n")
        assert (await client.answer())[0] == 400
        assert (page[tally.MALFORMED], page[tally.STARTED], in_flight(page)) == (1, 0, 0)
        assert page[tally.STATUS + 4] == 1
        assert page[tally.STATUS : tally.STATUS + 6].tolist() == [0, 0, 0, 0, 1, 0]


async def test_status_that_does_not_exist_is_not_counted(any_engine: Engine, page: memoryview) -> None:
    async with served(any_engine, scripted, tally=page) as (_, _app, port, _running):
        client = await Client.connect(port)
        await client.send("/700")
        assert await client.at_end()
        await until(lambda: page[tally.BROKEN] == 1)
        assert sum(page[tally.STATUS : tally.COUNTED]) == 0


async def test_connections_and_websockets_are_counted_while_they_are_open(
    any_engine: Engine, page: memoryview
) -> None:
    async with served(any_engine, tally=page) as (_, app, port, _running):
        client = await Client.connect(port)
        await client.get()
        async with connect(f"ws://127.0.0.1:{port}/") as _socket:
            await app.under_way.wait()
            assert (page[tally.CONNECTIONS], page[tally.OPEN_CONNECTIONS]) == (2, 2)
            assert (page[tally.WEBSOCKETS], page[tally.OPEN_WEBSOCKETS]) == (1, 1)
            assert in_flight(page) == 0
        client.close()
        await until(lambda: page[tally.OPEN_CONNECTIONS] == 0)
        assert page[tally.OPEN_WEBSOCKETS] == 0


MADE = re.compile(r"[0-9a-f]{32}")


class Told:
    """Tells what it finds of the name; fails at `/fails`, waits for the client's end at `/waits`."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        headers = [value for name, value in scope["headers"] if name == b"x-request-id"]
        self.found.append((scope["state"].get("request_id"), headers))
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await receive()
            return
        if scope["path"] == "/fails":
            raise RuntimeError("on purpose")
        if scope["path"] == "/waits":
            while (await receive())["type"] != "http.disconnect":
                continue
            return
        started = {"type": "http.response.start", "status": 202}
        await send({**started, "headers": [(b"content-length", b"2"), (b"X-Request-ID", b"the app's")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def lines(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Returns the lines that the worker has printed."""
    printed: list[str] = []

    def read() -> list[str]:
        printed.extend(capfd.readouterr().out.splitlines())
        return printed

    return read


async def test_request_id_is_taken_or_made_and_found_by_application_and_client(
    engine: Engine, lines: Callable[[], list[str]]
) -> None:
    app = Told()
    inner = AccessLogMiddleware(app, log="text", answer=True)
    async with served(engine, inner, **quiet()) as (_, _app, port, _running):
        client = await Client.connect(port)
        status, headers, _ = await client.get("/a?b=c", "X-Request-ID: theirs-1")
        assert (status, headers["x-request-id"]) == (202, "theirs-1")
        assert app.found[-1] == ("theirs-1", [b"theirs-1"])
        for bad in (
            "X-Request-ID: with space",
            "X-Request-ID: " + "a" * 129,
            'X-Request-ID: a"b',
            "Other: 1",
        ):
            _, headers, _ = await client.get("/", bad)
            made = headers["x-request-id"]
            assert MADE.fullmatch(made)
            assert app.found[-1] == (made, [made.encode()])
        assert re.fullmatch(
            r'INFO:     127\.0\.0\.1:\d+ - "GET /a\?b=c HTTP/1\.1" 202 Accepted \d+\.\d+ms theirs-1',
            lines()[0],
        )
        assert len(lines()) == 5
        client.close()


async def test_line_gives_the_status_even_of_a_request_without_a_response(
    engine: Engine, lines: Callable[[], list[str]]
) -> None:
    begun, inner = time.monotonic(), AccessLogMiddleware(Told(), log="json")
    async with served(engine, inner, **quiet()) as (_, _app, port, _running):
        client = await Client.connect(port)
        status, headers, _ = await client.get("/fails")
        assert (status, headers.get("x-request-id")) == (500, None)
        leaving = await Client.connect(port)
        await leaving.send("/waits")
        leaving.close()
        await until(lambda: len(lines()) >= 2)
        async with connect(f"ws://127.0.0.1:{port}/ws"):
            pass
        await until(lambda: len(lines()) >= 3)
        found = [json.loads(line) for line in lines()]
        assert [(each["method"], each["target"], each["status"]) for each in found] == [
            ("GET", "/fails", 500), ("GET", "/waits", 499), ("WebSocket", "/ws", 101),
        ]  # fmt: skip
        assert found[0]["level"] == "INFO"
        assert MADE.fullmatch(found[0]["request_id"])
        for each in found:
            assert 0 <= each["duration_seconds"] <= time.monotonic() - begun + 0.001
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found[0]["time"])


async def test_line_of_a_request_that_a_stop_cuts_off_has_503(
    engine: Engine, lines: Callable[[], list[str]]
) -> None:
    inner = AccessLogMiddleware(App(), log="json")
    async with served(engine, inner, **quiet(), stop_seconds=0.1) as (server, _app, port, running):
        client = await Client.connect(port)
        await client.send("/slow")
        await inner.inner.under_way.wait()
        server.stop()
        assert (await client.answer())[0] == 503
        await running
        assert [json.loads(line)["status"] for line in lines()] == [503]


SCOPE = {
    "type": "http", "method": "GET", "path": "/a", "raw_path": b"/a", "query_string": b"b=1", "http_version": "1.1",
    "headers": [(b"x-request-id", b"one")], "client": ("1.2.3.4", 5),
}  # fmt: skip


async def failing(scope: Any, receive: Any, send: Any) -> None:
    """Answers `/404` with that status; fails at `/fails` before the answer."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    what = scope["path"].strip("/")
    if what == "fails":
        raise RuntimeError("on purpose")
    await send({"type": "http.response.start", "status": int(what), "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def quiet() -> dict[str, Any]:
    """As the pool runs uvicorn, whose own access log is off."""
    return {"tally": blank_page(), "config": {"access_log": False}}


async def test_failed_requests_have_a_line_and_others_have_none(
    any_engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    async with served(any_engine, failing, **quiet(), failed="text") as (_, _app, port, _run):
        client = await Client.connect(port)
        for path in ("/200", "/404", "/503?why=1", "/499", "/599"):
            assert (await client.get(path))[0] == int(path[1:4])
        assert (await client.get("/fails"))[0] == 500
        client.close()
    most_ms = (time.monotonic() - begun) * 1000 + 1
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3, lines
    for line, asked in zip(
        lines,
        ("/503?why=1 503 Service Unavailable", "/599 599", "/fails 500 Internal Server Error"),
        strict=True,
    ):
        path, _, status = asked.partition(" ")
        wanted = rf'ERROR:    127\.0\.0\.1:\d+ - "GET {re.escape(path)} HTTP/1\.1" {status} (\d+\.\d)ms'
        matched = re.fullmatch(wanted, line)
        assert matched, line
        assert float(matched[1]) <= most_ms


async def test_failed_requests_that_were_sent_at_once_have_a_line_each(
    any_engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served(any_engine, failing, **quiet(), failed="text") as (_, _app, port, _run):
        client = await Client.connect(port)
        for path in ("/501", "/200", "/502"):
            client.writer.write(f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
        assert [(await client.answer())[0] for _ in range(3)] == [501, 200, 502]
        client.close()
    first, second = capfd.readouterr().out.splitlines()
    assert "GET /501 HTTP/1.1" in first
    assert "GET /502 HTTP/1.1" in second


async def test_without_a_form_no_request_has_a_line(
    any_engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served(any_engine, failing, **quiet()) as (_, _app, port, _run):
        client = await Client.connect(port)
        assert (await client.get("/503"))[0] == 503
        client.close()
    assert capfd.readouterr().out == ""


def test_line_is_an_object_where_the_log_is_of_objects(capfd: pytest.CaptureFixture[str]) -> None:
    FailedRequestLog("json").log(SCOPE, 502, 0.0125)
    FailedRequestLog("json").log({**SCOPE, "headers": []}, 502, 0.5)
    full, short = map(json.loads, capfd.readouterr().out.splitlines())
    assert full.pop("time").endswith("Z")
    assert full == {
        "level": "ERROR", "message": "GET /a?b=1 502", "request_id": "one", "client": "1.2.3.4:5", "method": "GET",
        "target": "/a?b=1", "http_version": "1.1", "status": 502, "duration_seconds": 0.0125,
    }  # fmt: skip
    assert full.keys() - short.keys() == {"request_id"}


def test_lines_of_one_second_are_bounded_and_the_others_counted(capfd: pytest.CaptureFixture[str]) -> None:
    failed = FailedRequestLog("text", iter([7.0] * 120 + [8.0]).__next__)
    for _ in range(120):
        failed.log(SCOPE, 503, 0.25)
    assert len(capfd.readouterr().out.splitlines()) == 50
    failed.log(SCOPE, 503, 0.25)
    first, second = capfd.readouterr().out.splitlines()
    assert first == "ERROR:    70 more requests failed within a second"
    assert second == 'ERROR:    1.2.3.4:5 - "GET /a?b=1 HTTP/1.1" 503 Service Unavailable 250.0ms one'
