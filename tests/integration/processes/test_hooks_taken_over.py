"""Supervisor, or supervisor and keeper, are killed while a command of `hooks` runs."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.integration.processes.test_both_killed import kill_both
from tests.processes import freeze, is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

# Ends when the test lets it.
HOOK = """
import os, signal, sys, time
if "slow" in sys.argv:  # so that it is there still when the supervisor is not
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("notes", "a") as notes:
    notes.write(f"{sys.argv[1]} {os.getpid()}\\n")
while not os.path.exists(f"{sys.argv[1]}-may-end"):
    time.sleep(0.02)
print("the end of", sys.argv[1])
sys.exit(len(sys.argv) - 2)
"""


def write(pool: RealPool, hooks: str, more: str = "") -> None:
    pool.write("hook.py", HOOK)
    pool.write_hello(extra=f"hooks = {{ {hooks} }}\n{more}")


def hook(name: str, argument: str, *more: str) -> str:
    return f"{name} = {[sys.executable, 'hook.py', argument, *more]}"


def pids(pool: RealPool) -> list[int]:
    """Those of the hooks so far."""
    path = pool.directory / "notes"
    return [int(line.split()[1]) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.heavy
def test_next_supervisor_waits_for_a_before_start_that_runs(pool: RealPool, until: Any) -> None:
    write(pool, hook("before_start", "before"))
    pool.ok("start", "--no-wait")
    until(lambda: pids(pool))
    pool.replace_supervisor()
    until(lambda: pool.items()["web"]["state"] == "starting")
    assert pool.items()["web"]["pids"] == []
    (pool.directory / "before-may-end").touch()
    until(lambda: pool.items()["web"]["ready"])
    assert len(pids(pool)) == 1, "it was not run again"
    until(lambda: "the end of before" in pool.ok("logs", "web").stdout)


@pytest.mark.heavy
def test_next_supervisor_learns_that_a_before_start_has_failed(pool: RealPool, until: Any) -> None:
    write(pool, hook("before_start", "before", "status-1"))
    pool.ok("start", "--no-wait")
    until(lambda: pids(pool))
    pool.replace_supervisor()
    (pool.directory / "before-may-end").touch()
    until(lambda: pool.items()["web"]["state"] == "failed")
    assert len(pids(pool)) == 1


@pytest.mark.heavy
def test_next_supervisor_completes_a_stop_whose_hook_runs(pool: RealPool, until: Any) -> None:
    write(pool, hook("after_stop", "after"))
    pool.ok("start")
    pool.ok("stop", "web", "--no-wait")
    until(lambda: pids(pool))
    pool.replace_supervisor()
    until(lambda: pool.items()["web"]["state"] == "stopping")
    (pool.directory / "after-may-end").touch()
    until(lambda: pool.items()["web"]["state"] == "stopped")
    assert len(pids(pool)) == 1


def test_next_supervisor_ends_a_before_start_whose_server_was_stopped(pool: RealPool, until: Any) -> None:
    hooks = f"{hook('before_start', 'before', 'slow')}, {hook('after_stop', 'after')}"
    write(pool, hooks, "stop_timeout = '1s'")
    pool.ok("start", "--no-wait")
    (running,) = until(lambda: pids(pool))
    pool.ok("stop", "web", "--no-wait")
    pool.replace_supervisor()
    until(lambda: pool.items()["web"]["state"] == "stopped")
    assert not is_alive(running)
    assert pids(pool) == [running]


@pytest.mark.heavy
def test_start_after_the_end_of_keeper_and_supervisor_runs_the_hook_that_was_interrupted_again(
    pool: RealPool, until: Any
) -> None:
    write(pool, hook("before_start", "before"))
    pool.ok("start", "--no-wait")
    (first,) = until(lambda: pids(pool))
    kill_both(pool, until)
    (pool.directory / "before-may-end").touch()
    freeze(first)  # so that it cannot end by itself
    pool.ok("start")
    assert not is_alive(first)
    assert len(pids(pool)) == 2
