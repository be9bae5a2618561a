"""A real program that listens nowhere lives as servers do: its death, its recovery, its supervisor's death, its end."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.integration.processes.test_both_killed import kill_both
from tests.processes import descriptors, is_alive
from tests.real_pool import RealPool

pytestmark = pytest.mark.slow

QUEUE = """
import os, signal, socket, sys

def note(what):
    with open("notes", "a") as notes:
        notes.write(f"{what} {os.getpid()}\\n")
    print(what, "by the queue", flush=True)

def end(number, frame):
    if os.path.exists("ill"):  # before a successor can be asked
        os.remove("ill")
    note("ends")
    sys.exit(0)

signal.signal(signal.SIGTERM, end)
note("begins")
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
    ready.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
while True:
    signal.pause()
"""
POOL = """
[[server]]
name = "queue"
command = ["python3", "queue.py"]
notify = true
overlap = false
health.liveness = { exec = ["test", "!", "-e", "ill"], interval = "100ms", timeout = "20s", fall_count_ko = 1 }
"""


def notes(pool: RealPool) -> list[str]:
    return (pool.directory / "notes").read_text().splitlines()


def replaced(pool: RealPool, before: int, until: Any) -> int:
    """The pid of the ready program that has taken the place of that one."""
    until(lambda: (item := pool.items()["queue"])["ready"] and item["pids"] != [before])
    assert not is_alive(before)
    (pid,) = pool.items()["queue"]["pids"]
    return int(pid)


def test_program_without_a_port_is_kept_running(pool: RealPool, until: Any) -> None:
    pool.write("queue.py", QUEUE)
    pool.write("pool.toml", POOL)
    pool.ok("start")
    item = pool.items()["queue"]
    assert (item["bind"], item["expose"], item["ready"]) == ("process:queue", None, True)
    (pid,) = item["pids"]
    until(lambda: set(descriptors(pid)) == {0, 1, 2})
    until(lambda: "begins by the queue" in pool.ok("logs", "queue").stdout)

    os.kill(pid, signal.SIGKILL)
    pid = replaced(pool, pid, until)

    (pool.directory / "ill").touch()
    until(lambda: f"ends {pid}" in notes(pool))
    pid = replaced(pool, pid, until)
    until(lambda: "liveness" in pool.ok("events", "--kind", "recovery").stdout)

    pool.ok("restart")
    old, pid = pid, replaced(pool, pid, until)
    assert notes(pool)[-2:] == [f"ends {old}", f"begins {pid}"]

    supervisor = pool.info()["supervisor_pid"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: pool.run("status").code == 0 and pool.info()["supervisor_pid"] != supervisor)
    assert pool.items()["queue"]["pids"] == [pid]

    pool.ok("stop")
    assert notes(pool)[-1] == f"ends {pid}"
    assert not is_alive(pid)


def test_program_is_asked_to_end_by_its_stop_signal(pool: RealPool, until: Any) -> None:
    # By its supervisor, and by the command when supervisor and keeper are gone.
    pool.write("queue.py", QUEUE.replace("SIGTERM", "SIGINT"))
    pool.write("pool.toml", f'{POOL}stop_signal = "SIGINT"\nstop_timeout = "60s"\n')
    pool.ok("start")
    (pid,) = pool.items()["queue"]["pids"]
    pool.ok("stop")
    assert notes(pool)[-1] == f"ends {pid}"

    pool.ok("start")
    (pid,) = pool.items()["queue"]["pids"]
    kill_both(pool, until)
    assert is_alive(pid)
    pool.ok("stop")
    until(lambda: notes(pool)[-1] == f"ends {pid}")
