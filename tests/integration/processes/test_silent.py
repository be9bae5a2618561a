"""A supervisor that says nothing, and a pool that is told to end without one."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from poolctl.keeper.shutdown import ALONE_SECONDS, ANSWER_SECONDS
from tests.http_get import get
from tests.processes import freeze, is_alive
from tests.real_pool import RealPool


@pytest.mark.slow
def test_a_supervisor_that_is_silent_is_replaced(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    before = pool.items()
    supervisor = pool.info()["supervisor_pid"]
    freeze(supervisor)
    assert get(port).status == 200
    until(lambda: not is_alive(supervisor), timeout_seconds=60)
    until(lambda: pool.info()["supervisor_pid"] != supervisor)
    assert pool.items()["web"]["pids"] == before["web"]["pids"]


@pytest.mark.heavy
def test_a_keeper_that_gets_no_answer_ends_the_pool_itself_and_in_time(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.write(
        "pool.toml",
        (pool.directory / "pool.toml").read_text()
        + '\n[[server]]\nname = "deaf"\njob = true\n'
        + 'command = ["sh", "-c", "trap \'\' TERM; while :; do sleep 1; done"]\n',
    )
    pool.ok("start", "--no-wait")
    pool.ok("wait", "web")
    until(lambda: pool.items()["deaf"]["pids"])
    info = pool.info()
    freeze(info["supervisor_pid"])
    began = time.monotonic()
    os.kill(info["keeper_pid"], signal.SIGTERM)
    until(lambda: not pool.processes(), timeout_seconds=ANSWER_SECONDS + ALONE_SECONDS + 50)
    assert time.monotonic() - began >= ANSWER_SECONDS
