"""Starting from shells and scripts, at once and in numbers; nothing hangs and nothing is started twice."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shlex
import signal
import subprocess
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


def test_a_command_substitution_returns(pool: RealPool) -> None:
    port = pool.write_hello()["web"]
    command = shlex.join(pool.command())
    script = f'exec 9>lock; flock 9; x=$({command} start 2>&1); echo "said: $x"'
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=pool.directory, env=pool.env, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert "said: " in done.stdout
    assert get(port).status == 200
    # Nobody holds the script's lock any more.
    subprocess.run(["flock", "-n", "lock", "true"], cwd=pool.directory, check=True, timeout=60)


def test_two_starts_at_once_make_one_pool(pool: RealPool) -> None:
    ports = pool.write_hello("a", "b", "c")
    starting = [pool.spawn("start", "-o", "json") for _ in range(4)]
    for each in starting:
        stdout, stderr = each.communicate(timeout=60)
        assert each.returncode == 0, stderr
        assert {item["ready"] for item in json.loads(stdout)["items"]} == {True}
    assert len(keepers(pool)) == 1
    assert [get(port).status for port in ports.values()] == [200] * 3


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


@pytest.mark.heavy
def test_a_stop_then_a_start_again_and_again(pool: RealPool) -> None:
    port = pool.write_hello()["web"]
    for _ in range(4):
        pool.ok("start")
        assert get(port).status == 200
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


@pytest.mark.heavy
def test_run_ends_with_its_terminal_and_with_its_process(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP):
        running = pool.spawn("run")
        until(lambda: bool(keepers(pool)) and pool.items()["web"]["ready"])
        assert get(port).status == 200
        os.kill(running.pid, number)
        running.communicate(timeout=60)
        until(lambda: not pool.processes())


def test_a_file_that_breaks_after_the_start_keeps_nothing_from_working(pool: RealPool) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    pool.write("pool.toml", "this is [ no toml")
    assert pool.items()["web"]["ready"]
    pool.ok("status")
    assert "and is not valid: pool.toml:1:" in pool.ok("restart").stderr
    assert get(port).status == 200
    pool.ok("stop")
    assert pool.run("start").code == 5
    assert keepers(pool) == []
    events = pool.ok("events").stdout
    assert [events.count(f"supervisor {each}") for each in ("started", "ended")] == [1, 1]
