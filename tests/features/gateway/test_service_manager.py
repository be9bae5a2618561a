"""A pool as the manager of its services, from end to end: what registers, degrades, hangs, recovers and grows."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from poolctl.control.client import Client
from poolctl.control.pool_client import PoolClient
from tests.features.gateway.conftest import GatewayPool
from tests.load import Load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180), pytest.mark.integration]

FILE = """
[gateway]
bind = "127.0.0.1:{port}"
[[route]]
alias = "users"
path = "/users"
register = true
retries = 1
[[route]]
to = "web"
[[server]]
name = "web"
bind = "127.0.0.1:{own}"
app = "served:app"
scale = {{ max = 3, triggers = {{ in_flight = 2 }}, window = "2s", cooldown = {{ up = "1s", down = "1s" }} }}
recovery = {{ strategy = "replace", heartbeat = "200ms", stuck_after = "6s" }}
"""
APP = """
import time
from tests.load.apps import app as application

def compute_for_too_long():
    time.sleep(600)

async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/hang":
        compute_for_too_long()
    await application(scope, receive, send)
"""
PROBE = {"http": "/health", "interval": "100ms", "timeout": "10s", "fall_count_warn": 1, "fall_count_ko": 2}


class Service:
    """A backend of another machine: it answers with its name, and its health check while it is `healthy`."""

    def __init__(self, name: str) -> None:
        self.healthy = True
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                fine = service.healthy or self.path != "/health"
                self.send_response(200 if fine else 503)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def service(name: str) -> Iterator[Service]:
    made = Service(name)
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()


def test_services_register_degrade_recover_and_scale_with_a_whole_audit_trail(gateway: GatewayPool) -> None:
    pool, until = gateway.pool, gateway.until
    pool.write("served.py", APP)
    pool.write("pool.toml", FILE.format(port=gateway.port, own=gateway.ports["one"]))
    pool.env["PYTHONPATH"] = str(Path(__file__).parents[3])
    pool.ok("start")
    (found,) = pool.runtime.rglob("control.sock")
    client = PoolClient(Client(str(found)))

    def states() -> dict[str, str]:
        (route,) = (each for each in client.routes()["items"] if each["alias"] == "users")
        return {each["url"]: each["state"] for each in route["registrations"]}

    def answers(count: int = 8) -> set[bytes]:
        replies = [gateway.get("/users") for _ in range(count)]
        assert {each.status for each in replies} <= {200, 503}
        return {each.body if each.status == 200 else b"503" for each in replies}

    def workers() -> int:
        return len(pool.items()["web"]["pids"])

    with service("one") as one, service("two") as two:
        assert answers() == {b"503"}
        # Registration: the route follows.
        for each in (one, two):
            client.register("users", each.url, ttl="10m", probe=PROBE)
        until(lambda: set(states().values()) == {"serving"})
        until(lambda: answers() == {b"one", b"two"})
        # One degrades: it is flagged, and the other one serves alone.
        one.healthy = False
        until(lambda: states()[one.url] == "failing")
        until(lambda: answers() == {b"two"})
        # It recovers.
        one.healthy = True
        until(lambda: states()[one.url] == "serving")
        until(lambda: answers() == {b"one", b"two"})
        # The other one is silent.
        client.register("users", two.url, ttl="200ms", probe=PROBE)
        until(lambda: states()[two.url] == "silent")
        until(lambda: answers() == {b"one"})
        client.unregister("users", one.url)
        assert answers() == {b"503"}
    # A server of the pool hangs: it is replaced, and the report names where it hung.
    before = pool.items()["web"]["pids"]
    with socket.create_connection(("127.0.0.1", gateway.port)) as hanging:
        hanging.sendall(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: set(pool.items()["web"]["pids"]).isdisjoint(before) and pool.items()["web"]["ready"])
        until(lambda: any(each["kind"] == "recovery" for each in client.events(lines=200)))
    # Load: it grows, and shrinks afterwards; no request fails.
    with Load([gateway.port], "stream", connections=12, chunks=20, chunk_pause=0.05) as load:
        until(lambda: workers() == 3)
    until(lambda: workers() == 1)
    assert (load.report.failed, load.report.refused) == (0, 0), load.report
    trail: list[dict[str, Any]] = list(client.events(lines=1000))
    pool.ok("stop")
    first, second = f"users {one.url}", f"users {two.url}"
    services = [(each["event"], each["message"]) for each in trail if each["event"].startswith("backend ")]
    assert sorted(services[:4]) == sorted(
        (f"backend {event}", name) for event in ("registered", "ready") for name in (first, second)
    )
    assert services[4:] == [
        ("backend flagged", first),
        ("backend recovered", first),
        ("backend changed", second),
        ("backend expired", second),
        ("backend unregistered", first),
    ]
    reports = [each for each in trail if each["kind"] == "recovery"]
    assert "compute_for_too_long" in str(reports), reports
    scaled = [(each["before"], each["after"]) for each in trail if each["event"] == "workers"]
    assert scaled[0][0] == scaled[-1][1] == 1
    assert max(after for _, after in scaled) == 3
    assert [each["event"] for each in trail if each["kind"] == "audit" and "backend" not in each["event"]][:2] == [
        "start", "start done",
    ]  # fmt: skip
