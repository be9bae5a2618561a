"""Contract §5: shells, second commands, broken files and other people's processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.real_pool import RealPool


@pytest.mark.slow
def test_start_in_a_command_substitution_returns(real_pool: RealPool) -> None:
    real_pool.write_hello()
    script = Path(sys.executable).with_name("poolctl")
    done = subprocess.run(
        ["bash", "-c", f'exec 9>lock; flock -n 9; x=$("{script}" start 2>&1); echo "ended with $?"'],
        cwd=real_pool.directory, env=real_pool.env, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert "ended with 0" in done.stdout, done.stderr
    again = subprocess.run(["flock", "-n", "lock", "true"], cwd=real_pool.directory, timeout=60)
    assert again.returncode == 0


@pytest.mark.capability
def test_a_project_in_a_directory_whose_name_is_not_utf_8_runs(real_pool: RealPool, http_get: Any) -> None:
    real_pool.directory = Path(os.fsdecode(os.fsencode(real_pool.directory) + b"/caf\xe9"))
    port = real_pool.write_hello(extra='log = { path = "logs/web.log" }\nwatch = { include = ["*.html"] }')[
        "web"
    ]
    real_pool.append('[[server]]\nname = "uds"\nbind = "unix:./a.sock"\napp = "hello:app"\n')
    real_pool.ok("start")
    assert http_get(port).status == 200
    bind = f"unix:{real_pool.directory}/a.sock"
    assert real_pool.ok("list", "uds", "-o", "json").json["items"][0]["bind"] == bind
    assert real_pool.ok("list", bind, "-o", "name").stdout == "uds\n"
    assert "caf\\udce9/a.sock" in real_pool.ok("list").stdout
    real_pool.ok("restart")
    done = real_pool.run("-c", "gone.toml", "-c", f"{real_pool.directory}/none.toml", "list")
    assert (done.code, "Traceback" in done.stderr) == (5, False)
    assert (real_pool.directory / "logs" / "web.log").stat().st_size


@pytest.mark.slow
def test_two_starts_at_once_make_one_pool(real_pool: RealPool, http_get: Any) -> None:
    ports = real_pool.write_hello("a", "b", "c")
    for process in [real_pool.spawn("start", "-o", "json") for _ in range(4)]:
        stdout, stderr = process.communicate(timeout=100)
        assert process.returncode == 0, stderr
        assert {item["ready"] for item in json.loads(stdout)["items"]} == {True}
    assert {http_get(port).status for port in ports.values()} == {200}
    assert {len(item["pids"]) for item in real_pool.items().values()} == {1}
    assert sum(" keeper " in line for line in real_pool.processes().values()) == 1
    sockets = list(real_pool.runtime.glob("[!@]*/control.sock"))
    assert len(sockets) == 1


@pytest.mark.capability
def test_commands_find_a_pool_whose_socket_was_removed(real_pool: RealPool) -> None:
    real_pool.write_hello()
    real_pool.ok("start")
    before, info = real_pool.items()["web"]["pids"], real_pool.info()
    (socket,) = real_pool.runtime.glob("[!@]*/control.sock")
    assert (socket.stat().st_mode & 0o777, socket.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    # Of the commands that ask a supervisor, and nothing else, one: it is restored within a second each time.
    for line, code in (("start", 0), ("list", 0), ("run", 8), ("upgrade", 0), ("wait --timeout 20", 0)):
        socket.unlink()
        assert real_pool.run(*line.split()).code == code, line
    assert real_pool.items()["web"]["pids"] == before
    assert real_pool.info()["supervisor_pid"] == info["supervisor_pid"]
    socket.unlink()
    real_pool.ok("restart")
    assert real_pool.items()["web"]["pids"] != before
    shutil.rmtree(socket.parent)
    assert "1 server stopped" in real_pool.ok("stop").stdout
    assert real_pool.processes() == {}


@pytest.mark.slow
def test_broken_or_missing_file_does_not_prevent_a_stop(real_pool: RealPool) -> None:
    real_pool.write_hello()
    real_pool.ok("start")
    real_pool.write("pool.toml", "this is [ not toml")
    real_pool.ok("status")
    real_pool.ok("logs", "web")
    assert "and is not valid: pool.toml:1:" in real_pool.ok("restart").stderr
    assert real_pool.items()["web"]["ready"]
    real_pool.ok("stop")
    assert real_pool.run("start").code == 5
    events = real_pool.ok("events").stdout
    assert [events.count(f"supervisor {each}") for each in ("started", "ended")] == [1, 1]
    real_pool.write_hello()
    real_pool.ok("start")
    (real_pool.directory / "pool.toml").unlink()
    real_pool.ok("-c", "pool.toml", "status")
    real_pool.ok("-c", "pool.toml", "stop")
    assert real_pool.processes() == {}


def test_everything_works_on_a_pool_by_its_name(
    real_pool: RealPool, until: Any, tmp_path_factory: Any
) -> None:
    real_pool.write_hello("users", "orders")
    text = (real_pool.directory / "pool.toml").read_text()
    real_pool.write("pool.toml", '[pool]\nname = "shop"\n' + text)
    real_pool.ok("start")
    anywhere = {"cwd": tmp_path_factory.mktemp("elsewhere")}
    assert real_pool.ok("--pool", "shop", "list", "-o", "name", **anywhere).stdout == "users\norders\n"
    until(lambda: "startup complete" in real_pool.ok("--pool", "shop", "logs", "users", **anywhere).stdout)
    assert real_pool.ok("show", "--pool", "shop", "users", **anywhere).stdout.startswith("users\n")
    assert "hello:app" in real_pool.ok("config", "--pool", "shop", **anywhere).stdout
    for command in ("status", "restart", "stop"):
        real_pool.ok(command, "--pool", "shop", **anywhere)
    for command in ("start", "run"):
        assert real_pool.run(command, "--pool", "shop", **anywhere).code == 6
    assert real_pool.run("--pool", "nobody", "stop", **anywhere).code == 6


@pytest.mark.slow
def test_waiting_without_a_supervisor_keeps_trying_until_the_timeout(real_pool: RealPool) -> None:
    real_pool.write_hello()
    began = time.monotonic()
    assert real_pool.run("wait", "--timeout", "0.7").code == 124
    assert time.monotonic() - began >= 0.7
    real_pool.ok("wait", "--for", "stopped")
    waiting = real_pool.spawn("wait", "--timeout", "100")
    real_pool.ok("start")
    assert waiting.wait(timeout=60) == 0
