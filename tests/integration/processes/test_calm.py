"""A supervisor that dies again and again: the last one does nothing by itself, and serves commands."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow  # the keeper waits between its attempts


@pytest.mark.heavy
def test_after_five_deaths_nothing_happens_by_itself_and_every_command_works(
    pool: RealPool, until: Any
) -> None:
    ports = pool.write_hello("web", "other")
    page = claim_port()
    pool.append(f'[dashboard]\nbind = "127.0.0.1:{page}"\n')
    pool.ok("start")
    assert get(page).status == 200

    def summary() -> Any:
        return pool.run("status", "-o", "json").json["summary"]

    for _ in range(5):
        assert "calm" not in summary()
        pool.replace_supervisor()
    assert summary()["calm"] is True
    status = pool.run("status")
    assert status.code == 0
    assert "serves commands only" in status.stderr
    assert pool.run("doctor", "-q").code == 1
    assert f":{page}/#token=" in pool.ok("dashboard").stdout
    assert get(page).status == 200
    assert "calm: the supervisor has died too often" in pool.ok("events", "--kind", "pool").stdout
    (pid,) = pool.items()["web"]["pids"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: not pool.items()["web"]["pids"])
    with pytest.raises(AssertionError):
        until(lambda: pool.items()["web"]["pids"], timeout_seconds=1)
    assert get(ports["other"]).status == 200
    pool.ok("start", "web")
    assert get(ports["web"]).status == 200
    before = pool.items()["other"]["pids"]
    pool.ok("restart", "other")
    assert pool.items()["other"]["pids"] != before
    pool.ok("stop")
