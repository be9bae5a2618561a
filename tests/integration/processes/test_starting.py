"""Starting from shells and scripts, at once and in numbers; nothing hangs and nothing is started twice."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get
from tests.real_pool import RealPool


def keepers(pool: RealPool) -> list[int]:
    return [pid for pid, line in pool.processes().items() if " keeper " in line]


def process_names(pool: RealPool) -> set[str]:
    names = set()
    for pid in pool.processes():
        with contextlib.suppress(OSError):
            names.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return names


def test_ps_shows_what_each_process_is_for(pool: RealPool, free_port: Any, until: Any) -> None:
    pool.write_hello()
    with open(pool.directory / "pool.toml", "a") as file:
        file.write(f'\n[dashboard]\nbind = "127.0.0.1:{free_port()}"\n')
    pool.ok("start")
    names = {"poolctl-keeper", "poolctl-superv.", "poolctl-logger", "poolctl-zygote", "poolctl-web", "web"}
    until(lambda: process_names(pool) == names)


def test_starts_and_stops_at_once_all_end_and_the_last_one_holds(pool: RealPool) -> None:
    pool.write_hello("a", "b", "c")
    for _ in range(2):
        commands = [
            pool.spawn(*args)
            for args in (["start"], ["stop", "a"], ["restart", "b"], ["start", "a"], ["stop"])
        ]
        for each in commands:
            _, stderr = each.communicate(timeout=60)
            assert each.returncode in (0, 1), stderr
    pool.ok("start")
    assert {item["state"] for item in pool.items().values()} == {"running"}
    pool.ok("stop")
    assert keepers(pool) == []


def test_a_start_whose_client_is_killed_goes_on(pool: RealPool, until: Any) -> None:
    pool.write_hello("a", "b", "c")
    starting = pool.spawn("start")
    until(lambda: {item["state"] for item in pool.items().values()} != {"stopped"})
    starting.kill()
    starting.communicate()
    pool.ok("wait", "--timeout", "40")


@pytest.mark.timeout(180)
def test_a_hundred_servers_start_under_a_small_limit_of_open_files(pool: RealPool) -> None:
    names = [f"s{number}" for number in range(100)]
    ports = pool.write_hello(*names, extra='start_timeout = "100s"')
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        pool.ok("start", timeout_seconds=100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    items = pool.items()
    assert {item["state"] for item in items.values()} == {"running"}
    assert len({pid for item in items.values() for pid in item["pids"]}) == 100
    assert [get(port).status for port in ports.values()] == [200] * 100
    assert resource.prlimit(items["s0"]["pids"][0], resource.RLIMIT_NOFILE) == (256, hard)
    pool.ok("stop")
