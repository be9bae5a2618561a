"""Rollouts with real workers under load: what is worse than before is withdrawn, what is as good is promoted."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from poolctl.control.client import Client
from poolctl.control.pool_client import PoolClient
from poolctl.errors import ControlError
from tests.deadline import wait_until
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = pytest.mark.integration
APP = """
import asyncio, itertools, os

NUMBER = itertools.count(1)
KEPT = []

async def app(scope, receive, send):
    if scope["type"] != "http":
        while scope["type"] == "lifespan":
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                break
        return
    number, status = next(NUMBER), 200
    await asyncio.sleep(0.002)  # so that another worker accepts meanwhile
    BEHAVIOUR
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""
WORSE = {
    "errors": (
        "status = 500 if number % 33 == 0 else 200",
        "errors > before + 1%",
        "errors > before + 1%: ",
    ),
    "crash": ("if number == 40: os._exit(7)", "errors > 1%", "a worker exited with status 7"),
    "slow": ("await asyncio.sleep(0.5)", "p99 > 2 × before", "p99 > 2 × before: "),
    "leak": ("KEPT.append(bytearray(b'x' * 2_000_000))", "memory > 2 × before", "memory > 2 × before: "),
}
CLIENTS = 6
ROUTES = """
[gateway]
bind = "127.0.0.1:{gateway}"
[[route]]
host = "web.test"
to = "web"
"""


class Load:
    """Clients that ask again and again, each time on a new connection. `pids` counts who has answered."""

    def __init__(self, port: int, host: str = "a", clients: int = CLIENTS) -> None:
        self.port = port
        self.request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        self.statuses: dict[str, int] = {}
        self.lost = 0
        self.pids: Counter[str] = Counter()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(clients)]

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def _ask_on(self) -> None:
        while not self._over.wait(0.005):
            with socket.create_connection(("127.0.0.1", self.port), timeout=60) as sock:
                sock.sendall(self.request)
                data = b""
                try:
                    while more := sock.recv(4096):
                        data += more
                except ConnectionError:
                    pass
            status, body = data[9:12].decode(), data.rpartition(b"\r\n")[2].decode()
            with self._lock:
                self.lost += not data
                self.statuses[status] = self.statuses.get(status, 0) + 1
                self.pids[body] += 1


def write(pool: RealPool, port: int, behaviour: str = "pass", routes: str = "") -> None:
    pool.write("rolled.py", APP.replace("BEHAVIOUR", behaviour))
    server = f'[[server]]\nname = "web"\nbind = "127.0.0.1:{port}"\napp = "rolled:app"\nworkers = 2\n'
    pool.write("pool.toml", routes + server)


@pytest.mark.parametrize(
    "kind", ["crash", *(pytest.param(each, marks=pytest.mark.heavy) for each in ("errors", "slow", "leak"))]
)
def test_canary_that_is_worse_is_withdrawn_and_the_others_lose_nothing(pool: RealPool, kind: str) -> None:
    behaviour, condition, reason = WORSE[kind]
    port = claim_port()
    write(pool, port)
    pool.ok("start")
    before = pool.items()["web"]["pids"]
    write(pool, port, behaviour)
    with Load(port).running() as load:
        done = pool.run(
            "rollout", "web", "--canary", "34%", "--promote-after", "10m", "--min-requests", "60",
            "--abort-on", condition, "-o", "json",
        )  # fmt: skip
    assert done.code == 1, done
    (item,) = done.json["items"]
    assert item["state"] == "withdrawn"
    assert item["reason"].startswith(reason), item
    assert pool.items()["web"]["pids"] == before
    assert set(load.statuses) <= {"200", "500", ""}
    # Only the requests that the canary itself failed; those of a crash are the ones in its hands.
    assert load.lost <= (CLIENTS if kind == "crash" else 0)
    by_canary = load.pids.total() - sum(load.pids[str(pid)] for pid in before)
    assert load.statuses.get("500", 0) <= by_canary // 30 + 1
    pool.ok("stop")


@pytest.mark.capability
def test_canary_as_good_as_the_others_is_promoted_and_no_request_fails(pool: RealPool) -> None:
    port = claim_port()
    write(pool, port)
    pool.ok("start")
    before = pool.items()["web"]["pids"]
    write(pool, port, "body = None")
    (path,) = pool.runtime.glob("[!@]*/control.sock")
    client = PoolClient(Client(str(path)))
    with Load(port).running() as load:
        outcome = client.rollout("web", canary=0.34, seconds="1s", min_requests=20, abort_on=["errors > 1%"])
    assert [each["state"] for each in outcome["items"]] == ["promoted"]
    assert client.rollouts()["items"] == outcome["items"]
    with pytest.raises(ControlError, match="no rollout of web is under way"):
        client.abort_rollout("web")
    after = pool.items()["web"]["pids"]
    assert len(after) == 2
    assert not set(after) & set(before)
    assert set(load.statuses) == {"200"}
    assert not load.lost
    said = [
        each for each in pool.ok("events", "-o", "jsonl").stdout.splitlines() if "rollout promoted" in each
    ]
    assert json.loads(said[0])["canary"]["requests"] >= 20
    pool.ok("stop")


def test_behind_a_gateway_the_share_is_that_of_requests_and_nothing_is_lost(pool: RealPool) -> None:
    port, gateway = claim_port(), claim_port()
    routes = ROUTES.format(gateway=gateway)
    write(pool, port, routes=routes)
    pool.ok("start")
    others = {str(pid) for pid in pool.items()["web"]["pids"]}
    load = Load(gateway, "web.test")
    with load.running():
        pool.ok("rollout", "web", "--canary", "20%", "--promote-after", "10m", "--no-wait")
        (first,) = {str(pid) for pid in pool.items()["web"]["pids"]} - others
        wait_until(lambda: load.pids[first] >= 5, what="the canary has requests")
        before, before_first = load.pids.total(), load.pids[first]
        wait_until(lambda: load.pids.total() >= before + 1000, what="both have many")
        share = (load.pids[first] - before_first) / (load.pids.total() - before)
        assert 0.1 < share < 0.3  # eight standard deviations
        os.kill(pool.info()["supervisor_pid"], signal.SIGKILL)
        pool.ok("rollout", "status")  # which the next one answers, and has its verbs for
        wait_until(
            lambda: {str(pid) for pid in pool.items()["web"]["pids"]} == others, what="it is withdrawn"
        )
        write(pool, port, WORSE["errors"][0], routes)
        done = pool.run(
            "rollout", "web", "--canary", "20%", "--promote-after", "10m", "--min-requests", "40",
            "--abort-on", "errors > 1%", "-o", "json",
        )  # fmt: skip
    assert done.code == 1, done
    (item,) = done.json["items"]
    assert item["reason"].startswith("errors > 1%: "), item
    assert item["share"] == 0.2
    assert {str(pid) for pid in pool.items()["web"]["pids"]} == others
    assert not load.lost
    assert set(load.statuses) <= {"200", "500"}
    withdrawn = [
        each for each in pool.ok("events", "-o", "jsonl").stdout.splitlines() if "rollout withdrawn" in each
    ]
    assert json.loads(withdrawn[0])["cause"] == "the supervisor was replaced"
    pool.ok("stop")
