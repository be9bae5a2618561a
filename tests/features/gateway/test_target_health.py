"""The health of a target outside the pool, as its probe and its requests show it, in real processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.features.gateway.conftest import GatewayPool

pytestmark = pytest.mark.integration

PROBE = 'health = { http = "/up", interval = 0.1, timeout = 60, fall_count_warn = 1, fall_count_ko = 1 }'


class Service(BaseHTTPRequestHandler):
    """Answers with the status of its server."""

    server: ServiceServer

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        """Nothing is logged."""


class ServiceServer(ThreadingHTTPServer):
    """A service outside the pool."""

    status = 200


@pytest.fixture
def service() -> Iterator[ServiceServer]:
    with ServiceServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def state(gateway: GatewayPool) -> tuple[int, str]:
    """What `health` exits with, and the status of the route."""
    found = gateway.pool.run("health", "--routes", "-o", "json")
    return found.code, found.json["items"][0]["status"]


@pytest.fixture
def engine() -> str:
    """The gateway itself; features run the test with engines of theirs."""
    return "poolctl"


def test_probe_decides_about_a_target_outside_the_pool_without_any_request(
    gateway: GatewayPool, service: ServiceServer, engine: str
) -> None:
    url = f"http://127.0.0.1:{service.server_port}"
    route = f'[[route]]\nalias = "out"\nto = "{url}"\n{PROBE}\n'
    gateway.write(route, f'engine = "{engine}"')
    gateway.pool.ok("start")
    gateway.until(lambda: state(gateway) == (0, "healthy"))
    (item,) = gateway.pool.ok("health", "--routes", "-o", "json").json["items"]
    assert item["latency_seconds"] > 0
    assert gateway.get("/").status == 200
    service.status = 503
    gateway.until(lambda: state(gateway) == (3, "unhealthy"))
    (host,) = gateway.pool.ok("backends", "-o", "json").json["items"]
    assert (host["available"], host["health"], host["why"]) == (False, "unhealthy", "GET /up: status 503")
    gateway.until(lambda: gateway.get("/").headers.get("retry-after"))
    if engine == "poolctl":
        pid = gateway.until(gateway.process)
        gateway.kill(pid)
        gateway.until(lambda: gateway.process() not in (None, pid))
        gateway.until(lambda: state(gateway) == (3, "unhealthy"))
    service.status = 200
    gateway.until(lambda: state(gateway) == (0, "healthy"))
    assert gateway.get("/").status == 200


@pytest.mark.heavy
def test_address_on_which_nothing_ever_listened_is_never_healthy(
    gateway: GatewayPool, service: ServiceServer
) -> None:
    service.server_close()
    url = f"http://127.0.0.1:{service.server_port}"
    breaker = 'breaker = { failures = 1, open_for = "100ms" }'
    gateway.start(f'[[route]]\nalias = "out"\nto = "{url}"\n{breaker}\n')
    assert state(gateway) == (3, "unknown")
    assert gateway.get("/").status == 502
    for _ in range(3):
        assert state(gateway) == (3, "unhealthy")
        gateway.until(lambda: gateway.get("/").status == 502)
