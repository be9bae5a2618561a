"""The runtime directory is removed under a running pool: the pool is found again, and loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.http_get import get
from tests.integration.processes.test_both_killed import kill_both
from tests.processes import is_alive
from tests.real_pool import RealPool


def directory_of(pool: RealPool) -> Path:
    (found,) = [path for path in pool.runtime.iterdir() if path.is_dir() and not path.is_symlink()]
    return found


def test_a_directory_that_is_removed_is_made_again(pool: RealPool, until: Any) -> None:
    port = pool.write_hello()["web"]
    pool.ok("start")
    before, info = pool.items(), pool.info()
    directory = directory_of(pool)
    shutil.rmtree(directory)
    # As a process leaves it that writes there before.
    (directory / "state" / "logs").mkdir(parents=True)
    (pool.runtime / f"@{info['name']}").unlink()
    until((directory / "info.json").exists)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "control.sock").stat().st_mode & 0o777 == 0o600
    assert pool.items()["web"]["pids"] == before["web"]["pids"]
    assert [each["name"] for each in pool.ok("pools", "-o", "json").json["items"]] == [info["name"]]
    assert pool.info()["supervisor_pid"] == info["supervisor_pid"]
    pool.ok("restart")
    assert get(port).status == 200
    until(lambda: pool.ok("logs", "web").stdout)
    # Whoever dies now: its successor has the new socket.
    os.kill(info["supervisor_pid"], signal.SIGKILL)
    until(lambda: not is_alive(info["supervisor_pid"]))
    assert pool.items()["web"]["ready"]
    pool.ok("stop")
    until(lambda: not pool.processes())


@pytest.mark.heavy
@pytest.mark.slow
def test_desired_state_is_written_again_after_its_file_has_vanished(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.ok("start")
    pool.ok("scale", "web", "2")
    before, directory = pool.items(), directory_of(pool)
    shutil.rmtree(directory)
    until((directory / "wanted.json").exists)
    kill_both(pool, until)
    pool.ok("start")
    assert pool.items()["web"]["pids"] == before["web"]["pids"]


@pytest.mark.heavy
def test_a_directory_that_cannot_be_made_is_tried_again(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.ok("start")
    directory, log = directory_of(pool), Path(f"/proc/{pool.info()['supervisor_pid']}/fd/2")
    shutil.rmtree(directory)
    directory.write_text("in the way")
    until(lambda: "cannot be restored" in log.read_text())
    assert pool.run("status").code != 0
    directory.unlink()
    until(lambda: pool.run("status").code == 0)


def test_supervisor_that_cannot_write_its_info_file_still_serves(pool: RealPool, until: Any) -> None:
    pool.write_hello()
    pool.ok("start")
    before, info, directory = pool.items(), pool.info(), directory_of(pool)
    # In the way of what is written, as a full disk would be.
    (directory / "info.json").unlink()
    (directory / "info.json").mkdir()
    os.kill(info["supervisor_pid"], signal.SIGKILL)
    until(lambda: not is_alive(info["supervisor_pid"]))
    pool.ok("restart")
    assert pool.items()["web"]["pids"] != before["web"]["pids"]
    assert (directory / "info.json").is_dir()
    (directory / "info.json").rmdir()
    until((directory / "info.json").exists)
    assert pool.info()["supervisor_pid"] != info["supervisor_pid"]
    assert is_alive(pool.info()["supervisor_pid"])
