"""Whatever process of the pool is killed: servers serve, nothing printed is lost, and the process is replaced."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.http_get import asked_all_the_time, get
from tests.processes import children, command_line, freeze, is_alive
from tests.real_pool import RealPool


def helper(pool: RealPool, role: str) -> int:
    """The pid of the zygote or the logger, once it runs: one that was killed may not have its successor yet."""

    def found() -> list[int]:
        workers = {pid for item in pool.items().values() for pid in item["pids"]}
        return [
            pid
            for pid in children(pool.info()["keeper_pid"])
            if pid not in workers and is_alive(pid) and f" {role}" in command_line(pid)
        ]

    (pid,) = wait_until(lambda: pids if len(pids := found()) == 1 else None)  # a worker may be ending
    return pid


@pytest.mark.capability
def test_a_killed_worker_is_replaced_and_connections_wait(pool: RealPool, until: Any) -> None:
    ports = pool.write_hello("a", "b")
    pool.ok("start")
    before = pool.items()
    os.kill(before["a"]["pids"][0], signal.SIGKILL)
    # The listener is the pool's: nothing is refused at any moment.
    assert get(ports["a"]).status == 200
    until(lambda: pool.items()["a"]["ready"])
    after = pool.items()
    assert after["a"]["restarts"] == 1
    assert after["a"]["pids"] != before["a"]["pids"]
    assert after["b"] | {"uptime_seconds": 0} == before["b"] | {"uptime_seconds": 0}


@pytest.mark.heavy
def test_hanging_zygote_is_replaced_and_killed_also_by_a_supervisor_that_found_it(
    pool: RealPool, until: Any
) -> None:
    pool.write_hello("web")
    pool.ok("start")
    zygote, supervisor = helper(pool, "zygote"), pool.info()["supervisor_pid"]
    freeze(zygote)
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: pool.info()["supervisor_pid"] != supervisor)
    (before,) = pool.items()["web"]["pids"]
    pool.ok("restart", "--timeout", "45s")
    (after,) = pool.items()["web"]["pids"]
    assert after != before
    until(lambda: not is_alive(zygote))


@pytest.mark.heavy
def test_a_zygote_that_is_killed_while_workers_are_asked_for_delays_them_only(
    pool: RealPool, until: Any
) -> None:
    names = [f"s{number}" for number in range(12)]
    pool.write_hello(*names)
    pool.ok("start", "s0")
    zygote = helper(pool, "zygote")
    starting = pool.spawn("start", "-o", "json")
    until(lambda: any(item["state"] == "running" and name != "s0" for name, item in pool.items().items()))
    os.kill(zygote, signal.SIGKILL)
    stdout, stderr = starting.communicate(timeout=60)
    assert starting.returncode == 0, stderr
    assert {item["ready"] for item in json.loads(stdout)["items"]} == {True}


@pytest.mark.capability
def test_a_killed_supervisor_is_replaced_and_adopts_everything(pool: RealPool, until: Any) -> None:
    ports = pool.write_hello("a", "b", "c")
    pool.ok("start", "a", "b")
    pool.ok("stop", "b")
    before = pool.items()
    with asked_all_the_time(ports["a"]) as answers:
        pool.replace_supervisor()
        after = pool.items()
    assert {*answers} == {f"hello from {ports['a']}"}
    for name in before:
        assert after[name] | {"uptime_seconds": 0} == before[name] | {"uptime_seconds": 0}
    assert after["a"]["uptime_seconds"] >= before["a"]["uptime_seconds"]
    assert pool.run("status").code == 3  # c never ran
    # The successor can do all that the first could.
    pool.ok("restart", "a")
    pool.ok("start", "b")
    os.kill(pool.items()["a"]["pids"][0], signal.SIGKILL)
    until(lambda: pool.items()["a"]["ready"] and pool.items()["a"]["restarts"] > after["a"]["restarts"])
    pool.ok("stop")


def test_a_supervisor_that_is_killed_in_the_middle_of_a_restart_leaves_one_generation(
    pool: RealPool, until: Any
) -> None:
    ports = pool.write_hello("a", "b", "c")
    pool.ok("start")
    keeper = pool.info()["keeper_pid"]
    for _ in range(3):
        restarting = pool.spawn("restart")
        until(lambda: any(item["restarts"] for item in pool.items().values()))
        pool.replace_supervisor()
        restarting.communicate(timeout=60)
        until(lambda: all(item["ready"] for item in pool.items().values()))

    def workers_only() -> bool:
        known = {pid for item in pool.items().values() for pid in item["pids"]}
        alive = {pid for pid in children(keeper) if is_alive(pid)}
        return len(known) == 3 and len(alive - known) == 3  # supervisor, zygote, logger

    until(workers_only)
    for port in ports.values():
        assert get(port).status == 200


def test_terminating_the_keeper_stops_everything(pool: RealPool, until: Any) -> None:
    pool.write_hello("a", "b")
    for number in (signal.SIGTERM, signal.SIGINT):
        pool.ok("start")
        os.kill(pool.info()["keeper_pid"], number)
        until(lambda: not pool.processes())
        assert list(pool.runtime.glob("*/control.sock")) == []


@pytest.mark.heavy
def test_terminating_the_keeper_in_the_middle_of_a_start_stops_everything(pool: RealPool, until: Any) -> None:
    names = [f"s{number}" for number in range(8)]
    pool.write_hello(*names)
    starting = pool.spawn("start", "--no-wait")
    keeper = until(
        lambda: [pid for pid, line in pool.processes().items() if " keeper " in line and is_alive(pid)]
    )[0]
    os.kill(keeper, signal.SIGTERM)
    starting.kill()
    starting.communicate()
    until(lambda: not pool.processes())
