"""Queue workers of Celery and Huey as programs without a port: no job is lost over restarts and crashes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.applications.conftest import ENVIRONMENT
from tests.configuration import server
from tests.deadline import wait_until
from tests.real_pool import RealPool

CELERY = """
import os, time
from celery import Celery

for each in ("queue", "done"):
    os.makedirs(each, exist_ok=True)
app = Celery("jobs", broker="filesystem://")
app.conf.broker_transport_options = {"data_folder_in": "queue", "data_folder_out": "queue"}
app.conf.task_acks_late = True

@app.task
def job(number):
    time.sleep(0.05)
    open(f"done/{number}", "w").close()

def send():
    for number in range(40):
        job.delay(number)
"""
HUEY = """
import os, time
from huey import SqliteHuey

os.makedirs("done", exist_ok=True)
app = SqliteHuey("jobs", filename="jobs.db")

@app.task(retries=3)
def job(number):
    time.sleep(0.05)
    open(f"done/{number}", "w").close()

def send():
    for number in range(40):
        job(number)
"""
COMMANDS = {
    "celery": (CELERY, ["{bin}/celery", "-A", "jobs", "worker", "--pool", "solo", "--loglevel", "warning"]),
    "huey": (HUEY, ["{bin}/huey_consumer", "jobs.app", "--workers", "1"]),
}


def send(pool: RealPool) -> None:
    """Put forty jobs into the queue."""
    command = [ENVIRONMENT / "bin/python", "-c", "import jobs; jobs.send()"]
    subprocess.run(command, cwd=pool.directory, check=True)


@pytest.mark.parametrize("queue", COMMANDS)
def test_jobs_are_done_over_restarts_of_their_worker(real_pool: RealPool, queue: str) -> None:
    text, command = COMMANDS[queue]
    real_pool.write("jobs.py", text)
    words = [word.format(bin=ENVIRONMENT / "bin") for word in command]
    # Huey finishes its job at SIGINT, and interrupts it at SIGTERM.
    stop_signal = "SIGINT" if queue == "huey" else "SIGTERM"
    real_pool.write("pool.toml", server("queue", command=words, stop_signal=stop_signal))
    send(real_pool)
    real_pool.ok("start")
    done = real_pool.directory / "done"

    def finished(least: int) -> bool:
        return done.exists() and len(list(done.iterdir())) >= least

    for least in (5, 15):
        wait_until(lambda least=least: finished(least))
        real_pool.ok("restart", "queue")
    wait_until(lambda: finished(40))
    assert {path.name for path in done.iterdir()} == {str(number) for number in range(40)}


@pytest.mark.parametrize("queue", COMMANDS)
def test_worker_that_is_killed_is_replaced(real_pool: RealPool, queue: str) -> None:
    text, command = COMMANDS[queue]
    real_pool.write("jobs.py", text)
    words = [word.format(bin=ENVIRONMENT / "bin") for word in command]
    real_pool.write("pool.toml", server("queue", command=words))
    real_pool.ok("start")
    (pid,) = real_pool.items()["queue"]["pids"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: real_pool.items()["queue"]["pids"] not in ([], [pid]))
    send(real_pool)
    wait_until(lambda: len(list(Path(real_pool.directory, "done").iterdir())) == 40)
