"""Supervisors die one after the other without any client: every server keeps running, also those that crash."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from tests.http_get import get
from tests.processes import children, command_line, is_alive
from tests.real_pool import RealPool


def supervisor_of(keeper: int) -> int:
    """The supervisor that this keeper has started, by the kernel's account; 0 if there is none."""
    found = [pid for pid in children(keeper) if is_alive(pid) and " supervisor " in command_line(pid)]
    return found[0] if found else 0


def kill_supervisor(pool: RealPool, until: Any, keeper: int) -> None:
    """Return when another one has adopted everything: it has written down who it is."""
    before = until(lambda: supervisor_of(keeper))
    os.kill(before, signal.SIGKILL)
    until(lambda: (now := supervisor_of(keeper)) not in (before, 0) and pool.info()["supervisor_pid"] == now)


def kill_keeper(pool: RealPool, until: Any, keeper: int) -> int:
    """The keeper that has taken its place."""
    os.kill(keeper, signal.SIGKILL)
    until(lambda: (now := pool.info()["keeper_pid"]) != keeper and supervisor_of(now))
    return int(pool.info()["keeper_pid"])


@pytest.mark.heavy
@pytest.mark.slow
@pytest.mark.parametrize("first", ["supervisor", "keeper"])
def test_all_servers_run_on_when_a_worker_crashes_between_two_deaths(
    pool: RealPool, until: Any, first: str
) -> None:
    ports = pool.write_hello("a", "b", "c")
    pool.ok("start")
    info, before = pool.info(), pool.items()
    keeper = info["keeper_pid"]
    if first == "keeper":
        keeper = kill_keeper(pool, until, keeper)
    else:
        kill_supervisor(pool, until, keeper)
    (worker,) = before["a"]["pids"]
    os.kill(worker, signal.SIGKILL)
    assert get(ports["a"]).status == 200  # by the worker that has taken its place
    (left,) = pool.runtime.glob("[!@]*/wanted.json")
    until(lambda: json.loads(left.read_text())["left"]["servers"].get("a", {}).get("restarts") == 1)
    kill_supervisor(pool, until, keeper)
    assert [get(port).status for port in ports.values()] == [200, 200, 200]
    after = pool.items()
    assert {name: item["state"] for name, item in after.items()} == dict.fromkeys(ports, "running")
    assert after["b"]["pids"] == before["b"]["pids"]
    assert after["c"]["pids"] == before["c"]["pids"]
