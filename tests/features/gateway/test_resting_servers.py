"""Routes to servers that rest, back off or hang: which requests are refused, and which wait."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import Any

import pytest

from tests.http_get import get
from tests.ports import claim_port
from tests.processes import freeze, is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow


def test_route_to_a_server_that_was_not_started_is_no_fault(real_pool: RealPool, until: Any) -> None:
    ports, gateway = real_pool.write_hello("web", "mail"), claim_port()
    text = (
        (real_pool.directory / "pool.toml")
        .read_text()
        .replace('name = "mail"', 'name = "mail"\non_demand = true')
    )
    routes = "".join(f'[[route]]\nhost = "{name}.test"\nto = ["{name}"]\n' for name in ports)
    real_pool.write("pool.toml", f'{text}[gateway]\nbind = "127.0.0.1:{gateway}"\n{routes}')

    def answer(name: str) -> int:
        return get(gateway, "/", headers={"Host": f"{name}.test"}).status

    real_pool.ok("start")
    assert [answer("web"), answer("mail")] == [200, 503]
    reports = real_pool.ok("health", "--routes", "-o", "json").json["items"]
    assert {each["name"]: each["status"] for each in reports} == {"web": "healthy", "mail": "unknown"}
    assert "route mail" not in real_pool.ok("status").stderr
    real_pool.ok("start", "mail")
    until(lambda: answer("mail") == 200)
    real_pool.ok("stop", "mail")
    until(lambda: answer("mail") == 503)
    real_pool.ok("health")
    real_pool.ok("stop", "web")
    assert real_pool.run("health").code == 3


def test_request_waits_for_a_server_in_backoff_as_at_its_own_address(real_pool: RealPool, until: Any) -> None:
    real_pool.write_hello("web", extra='restart = { backoff = { initial = "5s", jitter = 0 } }')
    gateway, path = claim_port(), real_pool.directory / "pool.toml"
    route = f'[gateway]\nbind = "127.0.0.1:{gateway}"\n[[route]]\nto = ["web"]\n'
    real_pool.write("pool.toml", f"{path.read_text()}{route}")
    real_pool.ok("start")
    for state in ("running", "backoff"):  # the first restart is at once
        (pid,) = real_pool.items()["web"]["pids"]
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: pid not in real_pool.items()["web"]["pids"])
        until(lambda state=state: real_pool.items()["web"]["state"] == state)
    assert get(gateway, "/").status == 200


SLOW = "import time\ntime.sleep(1)\nfrom hello import app\n"


def start_with_recovery(pool: RealPool, strategy: str) -> tuple[int, int]:
    """Start a server, which recovers hung workers by this strategy; returns its pid, and the port of its gateway."""
    recovery = f'recovery = {{ strategy = "{strategy}", heartbeat = "200ms", stuck_after = "3s" }}'
    pool.write_hello("web", extra=f'{recovery}\nstop_timeout = "1s"')
    pool.write("slow.py", SLOW)
    pool.replace("hello:app", "slow:app")
    gateway, path = claim_port(), pool.directory / "pool.toml"
    route = f'[gateway]\nbind = "127.0.0.1:{gateway}"\n[[route]]\nto = ["web"]\n'
    pool.write("pool.toml", f"{path.read_text()}{route}")
    pool.ok("start")
    (pid,) = pool.items()["web"]["pids"]
    return pid, gateway


@pytest.mark.parametrize("strategy", ["restart", "replace"])
def test_requests_wait_for_the_replacement_of_a_hung_worker(
    real_pool: RealPool, until: Any, strategy: str
) -> None:
    pid, gateway = start_with_recovery(real_pool, strategy)
    freeze(pid)
    with contextlib.ExitStack() as stack:
        clients: list[socket.socket] = []

        def ask() -> bool:
            client = socket.create_connection(("127.0.0.1", gateway), timeout=60)
            clients.append(stack.enter_context(client))
            client.sendall(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
            return not is_alive(pid)

        until(ask)
        answers = {client.recv(1024).partition(b"\r\n")[0] for client in clients}
    assert answers == {b"HTTP/1.1 200 OK"}


def test_requests_do_not_wait_for_a_hung_worker_that_stays(real_pool: RealPool, until: Any) -> None:
    pid, gateway = start_with_recovery(real_pool, "notify")
    freeze(pid)

    def is_refused() -> bool:
        with contextlib.suppress(TimeoutError):  # sent before HAProxy knows
            return get(gateway, "/", timeout_seconds=1).status == 503
        return False

    until(is_refused)
    os.kill(pid, signal.SIGCONT)
    until(lambda: get(gateway, "/").status == 200)
