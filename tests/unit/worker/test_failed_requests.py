"""Only failed requests have a line in the log by default, and only they cost anything."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from poolctl.worker.serving import access_log
from poolctl.worker.serving.access_log import FailedRequests
from tests.asgi_apps import lifespan
from tests.serving import ENGINES, ZTTP, Client, Engine, blank_page, served

SCOPE = {
    "type": "http", "method": "GET", "path": "/a", "raw_path": b"/a", "query_string": b"b=1", "http_version": "1.1",
    "headers": [(b"x-request-id", b"one")], "client": ("1.2.3.4", 5),
}  # fmt: skip


@pytest.fixture(params=ENGINES + ZTTP, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Any:
    return request.param


async def scripted(scope: Any, receive: Any, send: Any) -> None:
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


def test_failed_requests_have_a_line_and_others_have_none(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        async with served(engine, scripted, **quiet(), failed="text") as (_, _app, port, _run):
            client = await Client.connect(port)
            for path in ("/200", "/404", "/503?why=1", "/499", "/599"):
                assert (await client.get(path))[0] == int(path[1:4])
            assert (await client.get("/fails"))[0] == 500
            client.close()

    engine.run(scenario())
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3, lines
    for line, asked in zip(
        lines,
        ("/503?why=1 503 Service Unavailable", "/599 599", "/fails 500 Internal Server Error"),
        strict=True,
    ):
        path, _, status = asked.partition(" ")
        wanted = rf'ERROR:    127\.0\.0\.1:\d+ - "GET {re.escape(path)} HTTP/1\.1" {status} \d+\.\dms'
        assert re.fullmatch(wanted, line), line


def test_without_a_form_no_request_has_a_line(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    async def scenario() -> None:
        async with served(engine, scripted, **quiet()) as (_, _app, port, _run):
            client = await Client.connect(port)
            assert (await client.get("/503"))[0] == 503
            client.close()

    engine.run(scenario())
    assert capfd.readouterr().out == ""


def test_line_is_an_object_where_the_log_is_of_objects(capfd: pytest.CaptureFixture[str]) -> None:
    FailedRequests("json").log(SCOPE, 502, 0.0125)
    FailedRequests("json").log({**SCOPE, "headers": []}, 502)
    full, short = map(json.loads, capfd.readouterr().out.splitlines())
    assert full.pop("time").endswith("Z")
    assert full == {
        "level": "ERROR", "message": "GET /a?b=1 502", "request_id": "one", "client": "1.2.3.4:5", "method": "GET",
        "target": "/a?b=1", "http_version": "1.1", "status": 502, "duration_seconds": 0.0125,
    }  # fmt: skip
    assert full.keys() - short.keys() == {"request_id", "duration_seconds"}


def test_lines_of_one_second_are_bounded_and_the_others_counted(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 10.0
    monkeypatch.setattr(access_log, "monotonic", lambda: now)
    failed = FailedRequests("text")
    for _ in range(120):
        failed.log(SCOPE, 503)
    assert len(capfd.readouterr().out.splitlines()) == 50
    now = 11.0
    failed.log(SCOPE, 503)
    first, second = capfd.readouterr().out.splitlines()
    assert first == "ERROR:    70 more requests failed within a second"
    assert second == 'ERROR:    1.2.3.4:5 - "GET /a?b=1 HTTP/1.1" 503 Service Unavailable one'
