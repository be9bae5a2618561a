"""The standard input of a program with `stdin = "open"`: it never ends, whatever becomes of the pool's processes."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.integration.processes.test_keeper_killed import kill_keeper, whole_again
from tests.processes import descriptors
from tests.real_pool import RealPool

POOL = f"""
[[server]]
name = "build"
command = ["{sys.executable}", "-c", "import sys; sys.stdin.read(); sys.exit('its input has ended')"]
stdin = "open"
ready_after = "100ms"
workers = 2
hooks = {{ before_start = ["cat"] }}
"""


def pids(pool: RealPool) -> list[int]:
    item = pool.items()["build"]
    assert (item["state"], item["restarts"]) == ("running", 0)
    return sorted(item["pids"])


@pytest.mark.capability
def test_input_is_a_pipe_of_each_process_alone_and_costs_no_further_descriptor(pool: RealPool) -> None:
    pool.write("pool.toml", POOL)
    pool.ok("start")  # the input of a hook ends
    found = [os.readlink(f"/proc/{pid}/fd/0") for pid in pids(pool)]
    assert all(each.startswith("pipe:") for each in found)
    assert len(set(found)) == 2
    for pid in pids(pool):
        # On a busy machine it counts as ready while its interpreter is still reading files.
        wait_until(
            lambda pid=pid: set(descriptors(pid)) == {0, 1, 2}, what=lambda pid=pid: str(descriptors(pid))
        )
        assert os.stat(f"/proc/{pid}/fd/0").st_uid == os.geteuid()
    info = pool.info()
    held = {each for key in ("keeper_pid", "supervisor_pid") for each in descriptors(info[key]).values()}
    assert held.isdisjoint(found)


def kill_supervisor(pool: RealPool, until: Any) -> None:
    pool.replace_supervisor()


def replace_keeper(pool: RealPool, until: Any) -> None:
    whole_again(pool, until, kill_keeper(pool))


def kill_keeper_of_new_supervisor(pool: RealPool, until: Any) -> None:
    killed = pool.info()["supervisor_pid"]
    os.kill(killed, signal.SIGKILL)
    # Not `until`, whose pauses are long enough for the new supervisor to learn all that the keeper holds.
    while pool.info()["supervisor_pid"] == killed:
        pass
    whole_again(pool, until, kill_keeper(pool))


def upgrade(pool: RealPool, until: Any) -> None:
    pool.ok("upgrade", "--allow-same-version")


@pytest.mark.slow
@pytest.mark.parametrize("happens", [kill_supervisor, replace_keeper, kill_keeper_of_new_supervisor, upgrade])
def test_input_outlives_the_processes_of_the_pool(pool: RealPool, until: Any, happens: Any) -> None:
    pool.write("pool.toml", POOL)
    pool.ok("start")
    before = pids(pool)
    happens(pool, until)
    assert pids(pool) == before
