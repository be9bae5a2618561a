"""What is counted of a server never falls, whichever process dies; requests under way and memory are those of now."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from poolctl.control.client import Client
from tests.deadline import wait_until
from tests.http_get import get
from tests.processes import freeze
from tests.real_pool import RealPool

APP = """
import os
async def app(scope, receive, send):
    assert scope["type"] == "http"
    status = int(scope["path"].strip("/") or 200)
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def stats(pool: RealPool, name: str = "web", **options: Any) -> dict[str, Any]:
    """The figures of a server, as the control socket gives them."""
    (path,) = [each for each in pool.runtime.glob("*/control.sock") if not each.parent.name.startswith("@")]
    result = Client(str(path)).call("stats", {"selector": {}, "options": options})
    (found,) = [item["stats"] for item in result["items"] if item["name"] == name]
    return dict(found)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def ready_anew(pool: RealPool, before: list[int]) -> bool:
    item = pool.items()["web"]
    return bool(item["ready"]) and len(item["pids"]) == len(before) and not set(item["pids"]) & set(before)


@pytest.mark.capability
def test_totals_outlive_workers_restarts_and_the_supervisor(pool: RealPool) -> None:
    port = pool.write_hello("web", extra="workers = 2")["web"]
    pool.write("hello.py", APP)
    pool.ok("start")
    for path in ("/", "/", "/404", "/503"):
        get(port, path)
    # The client has its answer a moment before that is counted, by another process.
    wait_until(lambda: (now := stats(pool))["requests_total"] == 4 and now["in_flight"] == 0)
    seen = stats(pool)
    assert seen["responses_total"] == {"1xx": 0, "2xx": 2, "3xx": 0, "4xx": 1, "5xx": 1}
    assert (seen["requests_total"], seen["errors_total"]) == (4, 1)
    assert "errors_per_second" not in seen
    assert stats(pool, errors=True)["errors_per_second"] >= 0
    assert len(seen["workers"]) == 2
    assert sum(worker["requests_total"] for worker in seen["workers"]) == 4
    assert 0 < seen["latency_p50_seconds"] <= seen["latency_p99_seconds"] < 60
    assert seen["memory_bytes"] > 1_000_000

    pool.ok("restart")
    get(port)
    wait_until(lambda: stats(pool)["requests_total"] == 5)  # a worker writes its counts every 10 ms

    before = pool.items()["web"]["pids"]
    for pid in before:
        kill(pid)
    wait_until(lambda: ready_anew(pool, before))
    assert stats(pool)["requests_total"] == 5
    assert stats(pool)["restarts_total"] == 3

    supervisor = pool.info()["supervisor_pid"]
    kill(supervisor)
    get(port)
    wait_until(lambda: pool.info()["supervisor_pid"] != supervisor)
    wait_until(lambda: stats(pool)["requests_total"] == 6)
    assert stats(pool)["responses_total"]["2xx"] == 4

    pool.ok("scale", "web", "1")
    assert stats(pool)["requests_total"] == 6


def test_workers_that_die_with_their_supervisor_are_added_up_by_the_next_one(pool: RealPool) -> None:
    port = pool.write_hello("web")["web"]
    pool.write("hello.py", APP)
    pool.ok("start")
    for _ in range(3):
        get(port)
    wait_until(lambda: stats(pool)["requests_total"] == 3)  # a worker writes its counts every 10 ms
    supervisor, (worker,) = pool.info()["supervisor_pid"], pool.items()["web"]["pids"]
    freeze(supervisor)
    kill(worker)
    kill(supervisor)
    wait_until(lambda: pool.info()["supervisor_pid"] != supervisor)
    wait_until(lambda: ready_anew(pool, [worker]))
    assert stats(pool)["requests_total"] == 3
