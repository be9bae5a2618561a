"""What a supervisor does after minutes: the clock of its loop is put forward, as after a pause of the machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from poolctl.supervisor.launch import launch
from tests.deadline import wait_until
from tests.processes import is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

# The file holds the seconds by which loops of supervisors are ahead.
AHEAD = """
import asyncio, os, sys, time

def ahead(loop):
    with open({file!r}) as file:
        return time.monotonic() + float(file.read())

if "supervisor" in sys.orig_argv:
    asyncio.BaseEventLoop.time = ahead
"""


class HurriedPool:
    """A pool whose supervisor's loop can be put forward."""

    def __init__(self, pool: RealPool, directory: Path) -> None:
        self.pool = pool
        pool.warm = False  # a supervisor that is forked runs no such hook
        self._ahead = directory / "ahead"
        self._ahead.write_text("0")
        (directory / "hook").mkdir()
        (directory / "hook" / "sitecustomize.py").write_text(AHEAD.format(file=str(self._ahead)))
        pool.env["PYTHONPATH"] = str(directory / "hook")

    def put_forward(self, seconds: float) -> None:
        new = self._ahead.with_suffix(".new")
        new.write_text(str(seconds))
        new.rename(self._ahead)


@pytest.fixture
def hurried(pool: RealPool, tmp_path: Path) -> HurriedPool:
    return HurriedPool(pool, tmp_path)


@pytest.mark.parametrize("used", [False, True])
def test_pool_without_servers_ends_after_a_minute_unless_a_command_has_come(
    hurried: HurriedPool, used: bool
) -> None:
    pool = hurried.pool
    keeper = launch([str(pool.write("pool.toml", ""))], pool.env).keeper_pid
    wait_until(lambda: [*pool.runtime.glob("*/info.json")])
    if used:
        pool.run("list")
    hurried.put_forward(58)
    wait_until(lambda: pool.info()["keeper_pid"] == keeper)
    assert is_alive(keeper)
    hurried.put_forward(100)
    if used:
        with pytest.raises(AssertionError):
            wait_until(lambda: not is_alive(keeper), timeout_seconds=8)
        pool.ok("stop")
    wait_until(lambda: not is_alive(keeper))


@pytest.mark.heavy
def test_calm_supervisor_gives_way_to_another_after_five_minutes(hurried: HurriedPool) -> None:
    pool = hurried.pool
    pool.write_hello()
    pool.ok("start")
    for _ in range(5):
        pool.replace_supervisor()
    assert pool.run("status", "-o", "json").json["summary"]["calm"] is True
    before = pool.items()["web"]["pids"]
    calm = pool.info()["supervisor_pid"]
    hurried.put_forward(295)
    pool.ok("list")
    assert pool.info()["supervisor_pid"] == calm
    hurried.put_forward(400)
    wait_until(lambda: pool.info()["supervisor_pid"] != calm)
    assert pool.items()["web"]["pids"] == before
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: pool.items()["web"]["ready"] and pool.items()["web"]["pids"] != before)
