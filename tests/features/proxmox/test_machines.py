"""A pool whose route leads to a service in a stopped container of a Proxmox VE cluster."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.asyncio_server import listening
from tests.certificates import certificate
from tests.features.proxmox.cluster import SECRET, TOKEN, Cluster
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = pytest.mark.integration

Until = Callable[..., Any]


class Machines:
    """The stand-in in a thread of its own, and the service of its container "web", which accepts once that runs."""

    def __init__(self, directory: Path) -> None:
        self.port = claim_port()
        self.cluster: Cluster
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(directory)))
        self._thread.start()
        assert self._ready.wait(60)

    async def _serve(self, directory: Path) -> None:
        self._loop, self._started, self._over = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self.cluster = await Cluster(*certificate(directory)).start()
        self.cluster.may_start.clear()
        self._ready.set()
        await self._started.wait()
        self.cluster.may_start.set()
        async with listening(_hello, "127.0.0.1", self.port):
            await self._over.wait()
        await self.cluster.aclose()

    def start(self) -> None:
        """Let the container run, and a moment later its service."""
        self._loop.call_soon_threadsafe(self._started.set)

    def close(self) -> None:
        self.start()
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)


async def _hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has left
    finally:
        writer.close()


@pytest.fixture
def machines(real_pool: RealPool, tmp_path: Path) -> Iterator[Machines]:
    (tmp_path / "pve").mkdir()
    made = Machines(tmp_path / "pve")
    try:
        yield made
    finally:
        left = real_pool.end()
        made.close()
    assert not left, f"processes of the pool were left: {left}"


def write_route_to(machines: Machines, pool: RealPool, port: int) -> None:
    """Write a pool whose gateway at the port has a route to the container."""
    pool.write(
        "pool.toml",
        f"""
[gateway]
bind = "127.0.0.1:{port}"
[proxmox]
url = "https://localhost:{machines.cluster.port}"
verify = "{machines.cluster.cert}"
token_env = "PVE_TOKEN"
refresh = "300ms"
timeout = "30s"
[[route]]
alias = "web"
to = "http://127.0.0.1:{machines.port}"
""",
    )


@pytest.mark.capability
def test_request_starts_the_container_of_its_route_and_is_answered_by_it(
    real_pool: RealPool, machines: Machines, until: Until
) -> None:
    cluster, port = machines.cluster, claim_port()
    write_route_to(machines, real_pool, port)
    real_pool.ok("start", env={"PVE_TOKEN": TOKEN})
    (route,) = until(
        lambda: [each for each in real_pool.ok("routes", "-o", "json").json["items"] if each["machines"]]
    )
    machine = {"kind": "lxc", "node": "pve1", "vmid": 101, "name": "web", "state": "stopped"}
    assert route["machines"] == [{"to": f"http://127.0.0.1:{machines.port}", **machine}]
    real_pool.ok("reload", env={"PVE_TOKEN": TOKEN})  # returns when HAProxy has followed

    with ThreadPoolExecutor(3) as threads:
        replies = [threads.submit(get, port, "/", timeout_seconds=60) for _ in range(3)]
        until(cluster.starts)
        machines.start()
        assert [reply.result(60).body for reply in replies] == [b"hello"] * 3
    assert cluster.starts() == ["POST /nodes/pve1/lxc/101/status/start"]
    # The service may answer before the supervisor has asked whether its container runs.
    until(lambda: "the container 101 (web) on pve1 runs after" in real_pool.ok("events", "-n", "all").stdout)

    # The route stays up when the API refuses the token, and when it is unreachable.
    cluster.answers[""] = (401, "no such user")
    until(lambda: "[proxmox]: localhost answered 401 no such user" in str(real_pool.ok("status")))
    assert get(port, "/").body == b"hello"

    events = real_pool.ok("events", "-n", "all").stdout
    requested, started = (
        "has the container 101 (web) on pve1 started",
        "the container 101 (web) on pve1 runs after",
    )
    for event in ("route linked", requested, started, "proxmox unavailable"):
        assert events.count(event) == 1, events
    written = [path.read_bytes() for path in real_pool.runtime.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in each for each in (*written, events.encode()))


@pytest.mark.parametrize("is_asked", [True, False])
def test_requests_wait_for_their_container_while_the_supervisor_is_replaced(
    real_pool: RealPool, machines: Machines, until: Until, is_asked: bool
) -> None:
    cluster, port = machines.cluster, claim_port()
    write_route_to(machines, real_pool, port)
    real_pool.ok("start", env={"PVE_TOKEN": TOKEN})
    until(lambda: any(each["machines"] for each in real_pool.ok("routes", "-o", "json").json["items"]))
    real_pool.ok("reload", env={"PVE_TOKEN": TOKEN})  # returns when HAProxy has followed
    with ThreadPoolExecutor(3) as threads:
        replies = []
        if is_asked:
            replies = [threads.submit(get, port, "/", timeout_seconds=60)]
            until(cluster.starts)
        before = real_pool.info()["supervisor_pid"]
        os.kill(before, signal.SIGKILL)
        # While the next supervisor does not know the container, too.
        replies += [threads.submit(get, port, "/", timeout_seconds=60) for _ in range(2)]
        until(lambda: real_pool.info()["supervisor_pid"] != before)
        until(cluster.starts)
        machines.start()
        assert {reply.result(60).body for reply in replies} == {b"hello"}


@pytest.mark.heavy
def test_container_that_a_request_has_had_started_is_stopped_when_the_gateway_has_no_request_for_it(
    real_pool: RealPool, machines: Machines, until: Until
) -> None:
    cluster, port = machines.cluster, claim_port()
    real_pool.write(
        "pool.toml",
        f"""
[gateway]
bind = "127.0.0.1:{port}"
[proxmox]
url = "https://localhost:{cluster.port}"
verify = "{cluster.cert}"
token_env = "PVE_TOKEN"
timeout = "30s"
idle = "2s"
[[route]]
alias = "web"
to = "http://127.0.0.1:{machines.port}"
""",
    )
    real_pool.ok("start", env={"PVE_TOKEN": TOKEN})
    until(lambda: real_pool.ok("routes", "-o", "json").json["items"][0]["machines"])
    machines.start()
    assert get(port, "/", timeout_seconds=60).body == b"hello"
    supervisor = real_pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: cluster.stops() == ["POST /nodes/pve1/lxc/101/status/shutdown"])
    until(lambda: real_pool.ok("routes", "-o", "json").json["items"][0]["state"] == "napping")
    assert get(port, "/", timeout_seconds=60).body == b"hello"
    assert len(cluster.starts()) == 2
