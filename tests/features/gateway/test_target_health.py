"""The health of a target outside the pool, as its probe and its requests show it, in real processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.features.gateway.conftest import GatewayPool
from tests.http_get import get
from tests.ports import claim_port

pytestmark = pytest.mark.integration

PROBE = 'health = { http = "/up", interval = 0.1, timeout = 60, fall_count_warn = 1, fall_count_ko = 1 }'


class Service(BaseHTTPRequestHandler):
    """Answers with the status of its server."""

    server: ServiceServer

    def do_GET(self) -> None:
        self.server.asked_at.append(time.monotonic())
        self.server.may_answer.wait(60)
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:
        """Nothing is logged."""


class ServiceServer(ThreadingHTTPServer):
    """A service outside the pool."""

    status = 200

    def __init__(self, address: tuple[str, int], handler: type[Service]) -> None:
        super().__init__(address, handler)
        self.asked_at: list[float] = []
        self.may_answer = threading.Event()
        self.may_answer.set()


@pytest.fixture
def service() -> Iterator[ServiceServer]:
    with ServiceServer(("127.0.0.1", claim_port()), Service) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def state(gateway: GatewayPool) -> tuple[int, str]:
    """What `health` exits with, and the status of the route."""
    found = gateway.pool.run("health", "--routes", "-o", "json")
    return found.code, found.json["items"][0]["status"]


def test_probe_decides_about_a_target_outside_the_pool_without_any_request(
    gateway: GatewayPool, service: ServiceServer
) -> None:
    url = f"http://127.0.0.1:{service.server_port}"
    route = f'[[route]]\nalias = "out"\nto = "{url}"\n{PROBE}\n'
    gateway.write(route)
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
    pid = gateway.until(gateway.process)
    gateway.kill(pid)
    gateway.until(lambda: gateway.process() not in (None, pid))
    gateway.until(lambda: state(gateway) == (3, "unhealthy"))
    service.status = 200
    gateway.until(lambda: state(gateway) == (0, "healthy"))
    assert gateway.get("/").status == 200


def test_target_that_cannot_be_reached_is_unhealthy_for_a_stated_reason_until_it_answers(
    gateway: GatewayPool, service: ServiceServer
) -> None:
    service.shutdown()
    service.server_close()
    url = f"http://127.0.0.1:{service.server_port}"
    gateway.start(f'[[route]]\nalias = "out"\nto = "{url}"\n')
    assert state(gateway) == (3, "unknown")

    def backend() -> dict[str, Any]:
        (item,) = gateway.pool.ok("backends", "-o", "json").json["items"]
        return dict(item)

    # Of a HAProxy that is just being replaced, no failure counts.
    gateway.until(lambda: gateway.get("/").status == 503 and backend()["breaker"] != "closed")
    assert state(gateway) == (3, "unhealthy")
    gateway.until(lambda: "no connection can be made: Connection refused" in backend()["why"])
    assert backend()["available"], "nothing else could take its requests"
    assert "Connection refused" in gateway.pool.ok("events").stdout
    with ServiceServer(("127.0.0.1", service.server_port), Service) as again:
        thread = threading.Thread(target=again.serve_forever)
        thread.start()
        assert gateway.get("/").status == 200, "it is tried although its breaker is open"
        gateway.until(lambda: state(gateway) == (0, "healthy"))
        again.shutdown()
        thread.join()


def test_failing_target_gets_no_requests_while_another_one_serves(
    gateway: GatewayPool, service: ServiceServer
) -> None:
    with ServiceServer(("127.0.0.1", 0), Service) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        urls = [f"http://127.0.0.1:{each.server_port}" for each in (service, other)]
        breaker = 'breaker = { failures = 3, open_for = "1s", statuses = [500] }'
        gateway.start(f'[[route]]\nalias = "out"\nto = {urls}\n{breaker}\n')
        service.status = 500

        def breaker_state() -> str:
            items = gateway.pool.ok("backends", "-o", "json").json["items"]
            return str(next(each["breaker"] for each in items if each["host"] == urls[0]))

        gateway.until(lambda: (gateway.get("/"), breaker_state())[1] == "open")
        # HAProxy is told a moment later; until then it takes the targets in turn.
        gateway.until(lambda: [gateway.get("/").status for _ in range(4)] == [200] * 4)
        *_, last = service.asked_at
        found = list[int]()
        gateway.until(lambda: found.append(gateway.get("/").status) or service.asked_at[-1] != last)
        assert service.asked_at[-1] - last >= 0.5, "the breaker was open for a second"
        assert found == [200] * (len(found) - 1) + [500], "one request tries the target"
        gateway.until(lambda: breaker_state() == "half-open")
        service.status = 200
        gateway.until(lambda: (gateway.get("/"), breaker_state())[1] == "closed")
        events = gateway.pool.ok("events").stdout
        assert "breaker opened" in events
        assert "breaker closed" in events
        other.shutdown()
        thread.join()


SEVERAL = """
[[route]]
alias = "all"
to = ["one", "two", "asleep", "broken", "http://no-such-host.invalid:80"]
[[server]]
name = "asleep"
bind = "127.0.0.1:{asleep}"
app = "tests.load.apps:app"
scale = {{ min = 0, idle = "1h", asleep = ["* * * * *"] }}
[[server]]
name = "broken"
bind = "127.0.0.1:{broken}"
app = "tests.load.no_such_module:app"
restart = {{ limit = 1, backoff = {{ initial = "10ms" }} }}
"""


def test_all_commands_and_metrics_say_alike_why_a_target_gets_no_requests(gateway: GatewayPool) -> None:
    gateway.write(SEVERAL.format(asleep=claim_port(), broken=claim_port()))
    gateway.pool.run("start")
    gateway.until(lambda: gateway.pool.items()["broken"]["state"] == "failed")
    gateway.pool.ok("stop", "two")
    url, why = "http://no-such-host.invalid:80", "kept asleep"
    expected = {
        "one": (True, "healthy", ""),
        "two": (False, "unknown", "the server is stopped"),
        "asleep": (False, "unknown", why),
        "broken": (False, "error", "the server is failed"),
        url: (False, "unhealthy", "no address is found for no-such-host.invalid"),
    }

    def backends() -> dict[str, tuple[bool, str, str]]:
        items = gateway.pool.ok("backends", "-o", "json").json["items"]
        return {each["host"]: (each["available"], each["health"], each["why"]) for each in items}

    gateway.until(lambda: backends() == expected, what=lambda: str(backends()))
    explained = gateway.pool.ok("routes", "explain", "/", "-o", "json").json["unavailable"]
    assert explained == {key: reason for key, (*_, reason) in expected.items() if reason}
    assert (
        f"leads to one, two (the server is stopped), asleep ({why})"
        in gateway.pool.ok("routes", "explain", "/").stdout
    )
    metrics = gateway.pool.ok("metrics").stdout
    for key, (is_available, health, _) in expected.items():
        assert f'poolctl_host_available{{host="{key}"}} {int(is_available)}' in metrics
        assert f'poolctl_host_health{{host="{key}",status="{health}"}} 1' in metrics
    assert [gateway.get("/").status for _ in range(5)] == [200] * 5


@pytest.mark.capability
def test_stream_leaves_out_a_target_that_cannot_be_reached(
    gateway: GatewayPool, service: ServiceServer
) -> None:
    front, dead = claim_port(), claim_port()
    urls = [f"127.0.0.1:{dead}", f"127.0.0.1:{service.server_port}"]
    gateway.start(f'[[stream]]\nalias = "db"\nbind = "127.0.0.1:{front}"\nto = {urls}\n')
    assert [get(front, "/").status for _ in range(4)] == [200] * 4

    def breakers() -> list[tuple[str, bool]]:
        items = gateway.pool.ok("backends", "-o", "json").json["items"]
        return [(each["breaker"], each["available"]) for each in items]

    gateway.until(lambda: breakers() == [("open", False), ("closed", True)])
    assert [get(front, "/").status for _ in range(2)] == [200] * 2


def test_queue_that_is_full_opens_no_breaker(gateway: GatewayPool, service: ServiceServer) -> None:
    url = f"http://127.0.0.1:{service.server_port}"
    limit = 'backend_limit = { concurrency = 1, queue = 1, queue_timeout = "100ms" }'
    gateway.start(f'[[route]]\nalias = "out"\nto = "{url}"\nbreaker = {{ failures = 1 }}\n{limit}\n')
    service.may_answer.clear()
    with ThreadPoolExecutor(4) as threads:
        replies = [threads.submit(gateway.get, "/") for _ in range(4)]
        gateway.until(lambda: sum(each.done() for each in replies) == 3)
        (host,) = gateway.pool.ok("backends", "-o", "json").json["items"]
        service.may_answer.set()
        assert sorted(each.result(60).status for each in replies) == [200, 503, 503, 503]
    assert (host["breaker"], host["in_flight"]) == ("closed", 1)
    assert gateway.get("/").status == 200
