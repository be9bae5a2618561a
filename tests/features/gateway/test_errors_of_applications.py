"""An application's error behind a complete response fails no request of another client."""

from __future__ import annotations

import http.client
import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = [pytest.mark.slow, pytest.mark.integration]

APP = """
import asyncio
async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError
    error = scope["path"] != "/"
    while (await receive()).get("more_body"):
        pass
    status = 204 if scope["path"] == "/204" else 500 if error else 200
    fields = [(b"content-length", b"2")] if status != 204 else []
    await send({"type": "http.response.start", "status": status, "headers": fields})
    more = scope["path"] == "/open"
    await send({"type": "http.response.body", "body": b"ok", "more_body": more})
    if scope["path"] == "/later":
        await asyncio.sleep(0.005)
    if scope["path"] == "/twice":
        await send({"type": "http.response.start", "status": 200, "headers": []})
    if error:
        raise RuntimeError("an error of the application")
"""
POOL = """
[gateway]
bind = "127.0.0.1:{front}"
[[route]]
to = "web"
[[server]]
name = "web"
bind = "127.0.0.1:{web}"
app = "failing:app"
http = {{ implementation = "{parser}" }}
"""
REQUESTS = 200


def statuses(port: int, method: str, *paths: str) -> set[int]:
    """The statuses of requests for these paths in turn, all on one connection."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seen = set()
    try:
        client.connect()
        client.auto_open = 0  # a connection that closes without an announcement is an error
        for path in itertools.islice(itertools.cycle(paths), REQUESTS):
            client.request(method, path, body=b"x" if method == "POST" else None)
            response = client.getresponse()
            response.read()
            seen.add(response.status)
    finally:
        client.close()
    return seen


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_errors_behind_complete_responses_fail_nobody_elses_requests(
    real_pool: RealPool, parser: str
) -> None:
    front, web = claim_port(), claim_port()
    real_pool.write("failing.py", APP)
    real_pool.write("pool.toml", POOL.format(front=front, web=web, parser=parser))
    real_pool.ok("start")
    broken = ("/page", "/later", "/twice", "/open", "/204")
    with ThreadPoolExecutor(6) as clients:
        errors = [clients.submit(statuses, port, "GET", *broken) for port in (front, front, web)]
        others = [clients.submit(statuses, port, "POST", "/") for port in (front, front, web)]
        assert [each.result() for each in others] == [{200}] * 3
        assert [each.result() for each in errors] == [{500, 204}] * 3
