"""The figures of a real gateway: those of a replaced HAProxy, too, until it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.features.gateway.conftest import GatewayPool

pytestmark = pytest.mark.integration


class Slow(BaseHTTPRequestHandler):
    """Answers when its server says so."""

    server: SlowServer

    def do_GET(self) -> None:
        self.server.asked.release()
        self.server.released.wait(60)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        """Nothing is logged."""


class SlowServer(ThreadingHTTPServer):
    """A service outside the pool."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Slow)
        self.asked = threading.Semaphore(0)
        self.released = threading.Event()


@pytest.fixture
def slow() -> Iterator[SlowServer]:
    with SlowServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def test_requests_that_a_replaced_haproxy_finishes_are_counted_and_in_progress_until_then(
    gateway: GatewayPool, slow: SlowServer
) -> None:
    url = f"http://127.0.0.1:{slow.server_port}"
    route = f'[[route]]\nalias = "out"\nto = "{url}"\n'
    gateway.start(route)

    def backend() -> dict[str, Any]:
        (found,) = gateway.pool.ok("backends", "-o", "json").json["items"]
        return dict(found)

    def stats() -> dict[str, Any]:
        return dict(gateway.pool.ok("status", "-o", "json").json["gateway"]["stats"])

    with ThreadPoolExecutor(1) as threads:
        reply = threads.submit(gateway.get, "/")
        assert slow.asked.acquire(timeout=60)
        gateway.write(f'{route}response_headers = {{ X-New = "1" }}\n')
        gateway.pool.ok("reload")
        gateway.until(lambda: len(gateway.named("haproxy")) == 2)
        assert (backend()["in_flight"], backend()["requests"]) == (1, 1)
        slow.released.set()
        assert reply.result(60).status == 200
    assert gateway.get("/").headers["x-new"] == "1"
    gateway.until(lambda: backend()["in_flight"] == 0)
    gateway.until(gateway.process)
    assert backend()["requests"] == stats()["requests_total"] == 2
    gateway.until(lambda: stats()["replaced_processes"] == 0)


def test_requests_that_a_limit_refuses_are_counted_as_refused(gateway: GatewayPool) -> None:
    limit = "limit = { per_client = { requests_per_second = 0.01, burst = 1 } }"
    gateway.start(f'[[route]]\nalias = "out"\nto = "http://127.0.0.1:1"\n{limit}\n')
    assert sorted({gateway.get("/").status for _ in range(4)}) == [429, 503]

    def counted() -> tuple[int, int, int]:
        (route,) = gateway.pool.ok("routes", "-o", "json").json["items"]
        return route["requests"], route["refused"], route["errors"]

    # HAProxy counts a request a moment after its client has the response.
    gateway.until(lambda: counted() == (4, 3, 1), what=lambda: str(counted()))
