"""A server that the pool cannot be without: when it has failed, all is stopped, and `run` ends with its status."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.ports import claim_port
from tests.real_pool import RealPool

FILE = """
[[server]]
name = "web"
bind = "127.0.0.1:{web}"
app = "hello:app"
[[server]]
name = "main"
bind = "127.0.0.1:{main}"
command = {command}
mandatory = true
restart = "no"
"""


def write(pool: RealPool, script: str) -> None:
    pool.write_hello("web")
    pool.write("main.py", script)
    command = '["python3", "main.py"]'
    pool.write("pool.toml", FILE.format(web=pool.ports["web"], main=claim_port(), command=command))


SERVES = """
import os, signal, socket, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(42))
listener = socket.socket(fileno=3)
while True:
    listener.accept()[0].close()
"""


def main_pid(pool: RealPool) -> int:
    (pid,) = pool.items()["main"]["pids"]
    return int(pid)


def test_run_ends_with_the_status_of_a_mandatory_server_that_fails(
    pool: RealPool, until: Callable[..., Any]
) -> None:
    write(pool, SERVES)
    running = pool.spawn("run")
    until(pool.is_ready)
    os.kill(main_pid(pool), signal.SIGUSR1)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 42, stderr
    assert "main has failed" in stderr
    assert "mandatory" in stderr
    assert not pool.processes()
    # The next one knows nothing of it.
    again = pool.run("run", "--", "true")
    assert again.code == 0, str(again)


def test_the_users_command_is_asked_to_end_and_the_status_is_the_servers(
    pool: RealPool, until: Callable[..., Any]
) -> None:
    write(pool, SERVES)
    running = pool.spawn("run", "--", "sleep", "60")
    until(pool.is_ready)
    os.kill(main_pid(pool), signal.SIGKILL)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGKILL, stderr
    assert not pool.processes()


@pytest.mark.heavy
def test_a_mandatory_server_that_never_becomes_ready_ends_the_pool_that_start_has_begun(
    pool: RealPool,
) -> None:
    write(pool, "raise SystemExit(7)\n")
    started = pool.run("start", "-o", "json")
    assert started.code == 1, str(started)
    messages = {error["name"]: error["message"] for error in started.json["errors"]}
    assert "7" in messages["main"]
    assert "mandatory" in messages.get("web", "mandatory")
    assert pool.run("list").code == 0
    ran = pool.run("run")
    assert ran.code == 7, str(ran)


@pytest.mark.heavy
def test_a_server_that_is_not_mandatory_ends_nothing(pool: RealPool, until: Callable[..., Any]) -> None:
    write(pool, SERVES)
    pool.replace("mandatory = true", "")
    pool.ok("start")
    os.kill(main_pid(pool), signal.SIGKILL)
    until(lambda: pool.items()["main"]["state"] == "failed")
    assert pool.items()["web"]["state"] == "running"
