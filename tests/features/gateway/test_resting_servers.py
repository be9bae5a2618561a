"""Routes to servers that start on demand: refused while they rest, which is no fault of the pool."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.http_get import get
from tests.ports import claim_port
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
