"""Jobs that run at certain times, with real processes: the wall clock of the supervisor is the test's."""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import tests.moved_clock
from tests.processes import freeze
from tests.real_pool import RealPool

BEGIN = datetime(2024, 1, 8, 2, 0, tzinfo=UTC).timestamp()
HOUR, DAY = 3600, 86400
JOB = """
[[server]]
name = "backup"
job = true
command = ["{python}", "backup.py"]
every = "0 3 * * *"
"""
# A run lasts until the test says how it ends.
BACKUP = """
import os, sys, time
with open("runs", "a") as file:
    file.write(f"{os.getpid()}\\n")
print("copying", flush=True)
while not os.path.exists("end"):
    time.sleep(0.01)
status = int(open("end").read())
os.unlink("end")
print("no space left" if status else "copied", flush=True)
sys.exit(status)
"""


class Night:
    """A pool with one job, whose clock the test sets."""

    def __init__(self, pool: RealPool, until: Any) -> None:
        self.pool = pool
        self.until = until
        pool.env |= {
            "PYTHONPATH": str(Path(tests.moved_clock.__path__[0])),
            "POOLCTL_MOVED_CLOCK": str(pool.directory / "clock"),
            "TZ": "UTC",
        }
        pool.write("backup.py", BACKUP)
        pool.write("pool.toml", JOB.format(python=sys.executable))
        self.set_clock(BEGIN + HOUR - 0.2)

    def set_clock(self, seconds: float) -> None:
        """The supervisor looks again soon, if its clock showed the end of the last minute before."""
        new = self.pool.directory / "clock.new"
        new.write_text(str(seconds))
        new.rename(self.pool.directory / "clock")

    @property
    def job(self) -> dict[str, Any]:
        return self.pool.items()["backup"]

    @property
    def runs(self) -> list[int]:
        file = self.pool.directory / "runs"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def await_run(self, number: int) -> None:
        self.until(lambda: len(self.runs) == number)

    def end(self, status: int) -> None:
        """The run under way ends."""
        new = self.pool.directory / "end.new"
        new.write_text(str(status))
        new.rename(self.pool.directory / "end")
        self.until(lambda: self.job["state"] == "sleeping")


@pytest.fixture
def night(pool: RealPool, until: Any) -> Night:
    return Night(pool, until)


@pytest.mark.capability
def test_job_runs_at_its_time_and_a_failed_run_is_reported(night: Night) -> None:
    pool = night.pool
    assert pool.ok("start").stdout.startswith("1 server ready")
    pool.ok("status")
    pool.ok("wait")
    assert (night.job["state"], night.job["next_run_at"]) == ("sleeping", "2024-01-08T03:00:00Z")
    assert (night.runs, "last_run" in night.job) == ([], False)
    night.set_clock(BEGIN + HOUR)
    night.await_run(1)
    night.until(lambda: night.job["pids"] == night.runs)
    assert (night.job["state"], night.job["next_run_at"]) == ("running", "2024-01-09T03:00:00Z")
    pool.ok("status")
    pool.ok("start")
    night.end(3)
    assert night.job["health"] == "warn"
    failed = {
        "result": "failed",
        "status": 3,
        "signal": None,
        "message": "exited with status 3: no space left",
    }
    assert failed.items() <= night.job["last_run"].items()
    status = pool.ok("status")
    assert "backup: its last run failed (2024-01-08 03:00 UTC): exited with status 3" in status.stderr
    assert "last run   failed: exited with status 3" in pool.ok("show", "backup").stdout
    event = pool.ok("events", "--kind", "health", "-o", "json").json
    assert (event["event"], event["severity"]) == ("run failed", "error")
    assert event["output"] == ["copying", "no space left"]
    assert "no space left" in pool.ok("logs", "backup").stdout
    night.set_clock(BEGIN + HOUR + DAY - 0.2)
    pool.ok("stop", "backup")
    assert pool.ok("list", "--state", "stopped", "-o", "name").stdout == "backup\n"
    pool.ok("start", "backup")
    night.set_clock(BEGIN + HOUR + DAY)
    night.await_run(2)
    night.end(0)
    assert night.job["health"] == "ok"


def test_restart_by_name_runs_it_at_once_and_reports_how_it_ended(night: Night) -> None:
    pool = night.pool
    pool.ok("start")
    assert "left alone: poolctl restart NAME runs one" in pool.ok("restart").stdout
    assert night.runs == []
    command = pool.spawn("restart", "backup")
    night.await_run(1)
    again = pool.run("restart", "backup")
    assert (again.code, "does not run twice at once" in again.stderr) == (1, True)
    night.end(0)
    out, _ = command.communicate(timeout=60)
    assert (command.returncode, out.partition(" after")[0]) == (0, "backup: succeeded")
    command = pool.spawn("restart", "backup")
    night.await_run(2)
    night.end(4)
    _, err = command.communicate(timeout=60)
    assert (command.returncode, "no space left" in err) == (1, True)


@pytest.mark.heavy
def test_supervisor_that_is_killed_during_a_run_leaves_one_run(night: Night) -> None:
    pool = night.pool
    pool.ok("start")
    night.set_clock(BEGIN + HOUR)
    night.await_run(1)
    pool.replace_supervisor()
    night.until(lambda: night.job["pids"] == night.runs)
    assert night.job["state"] == "running"
    night.end(3)
    # The minute of that run is not over, and there is a supervisor without a memory of it.
    pool.replace_supervisor()
    assert (night.job["state"], night.job["health"]) == ("sleeping", "warn")
    assert night.job["next_run_at"] == "2024-01-09T03:00:00Z"
    night.set_clock(BEGIN + HOUR + DAY - 0.2)
    pool.ok("stop", "backup")
    pool.ok("start", "backup")
    night.set_clock(BEGIN + HOUR + DAY)
    night.await_run(2)
    pool.ok("upgrade")
    night.until(lambda: night.job["pids"] == night.runs[1:])
    night.end(0)
    assert len(night.runs) == 2


@pytest.mark.heavy
def test_run_that_ends_while_there_is_no_supervisor_is_not_repeated(night: Night) -> None:
    pool = night.pool
    pool.ok("start")
    night.set_clock(BEGIN + HOUR)
    night.await_run(1)
    supervisor = pool.info()["supervisor_pid"]
    freeze(supervisor)
    (pool.directory / "end").write_text("0")
    night.until(lambda: not (pool.directory / "end").exists())
    os.kill(supervisor, signal.SIGKILL)
    night.until(lambda: pool.info().get("supervisor_pid", supervisor) != supervisor)
    night.until(lambda: night.job["state"] == "sleeping")
    assert (len(night.runs), night.job["last_run"]["result"]) == (1, "succeeded")
