"""run --watch with real servers: new code is served, broken code is told and the old serves on."""

from __future__ import annotations

import signal
import subprocess
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.real_pool import HELLO_APP, RealPool


def read_until(running: subprocess.Popen[str], words: str) -> str:
    """What the command says on standard error, up to the line with these words."""
    assert running.stderr is not None
    said = ""
    while words not in said:
        line = running.stderr.readline()
        assert line, said
        said += line
    return said


def stop(running: subprocess.Popen[str]) -> None:
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 0


@pytest.mark.capability
def test_new_code_is_served_and_broken_code_is_reported(
    real_pool: RealPool, http_get: Callable[..., Any]
) -> None:
    port = real_pool.write_hello()["web"]
    running = real_pool.spawn("run", "--watch")
    read_until(running, "Ctrl-C to stop")
    real_pool.write("hello.py", HELLO_APP.replace("hello from", "a warm welcome to"))
    wait_until(lambda: http_get(port).text == f"a warm welcome to {port}")
    real_pool.write("hello.py", "raise RuntimeError('broken release')\n")
    said = read_until(running, "broken release")
    assert "web: hello.py changed, restarting\n" in said
    assert "~ web: code" in said
    assert http_get(port).text == f"a warm welcome to {port}"
    real_pool.write("hello.py", HELLO_APP)
    wait_until(lambda: http_get(port).text == f"hello from {port}")
    text = (real_pool.directory / "pool.toml").read_text()
    real_pool.write("pool.toml", text.replace('name = "web"', 'name = "renamed"'))
    read_until(running, "1 added, 1 removed")
    assert real_pool.items().keys() == {"renamed"}
    assert http_get(port).text == f"hello from {port}"
    stop(running)


@pytest.mark.capability
@pytest.mark.parametrize("watch", ["", 'watch = { poll = "100ms" }'], ids=["inotify", "polled"])
def test_release_that_a_link_is_switched_to_is_served(
    real_pool: RealPool, http_get: Callable[..., Any], watch: str
) -> None:
    port = real_pool.write_hello(extra=f'app_dir = "current"\n{watch}')["web"]
    (real_pool.directory / "hello.py").unlink()
    for number in (1, 2):
        real_pool.write(
            f"releases/{number}/hello.py", HELLO_APP.replace("hello from", f"release {number} at")
        )
    (real_pool.directory / "current").symlink_to("releases/1")
    running = real_pool.spawn("run", "--watch")
    read_until(running, "Ctrl-C to stop")
    assert http_get(port).text == f"release 1 at {port}"
    (real_pool.directory / "new").symlink_to("releases/2")
    (real_pool.directory / "new").rename(real_pool.directory / "current")
    assert "web: current changed, restarting\n" in read_until(running, "changed, restarting")
    wait_until(lambda: http_get(port).text == f"release 2 at {port}")
    stop(running)


def test_code_saved_while_its_server_starts_is_served(
    real_pool: RealPool, http_get: Callable[..., Any]
) -> None:
    port = real_pool.write_hello()["web"]
    waiting = """
        import os, time
        open("imported", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
        """
    real_pool.write("hello.py", textwrap.dedent(waiting) + HELLO_APP)
    running = real_pool.spawn("run", "--watch")
    wait_until((real_pool.directory / "imported").exists)
    real_pool.write("hello.py", HELLO_APP.replace("hello from", "a warm welcome to"))
    (real_pool.directory / "go").touch()
    said = read_until(running, "changed, restarting")
    assert said.endswith("web: hello.py changed, restarting\n")
    wait_until(lambda: http_get(port).text == f"a warm welcome to {port}")
    stop(running)


def test_program_without_a_port_is_restarted_with_its_new_code(real_pool: RealPool) -> None:
    program = "import time\nprint({!r}, flush=True)\ntime.sleep(60)\n"
    real_pool.write("queue_worker.py", program.format("first version"))
    table = 'name = "queue"\ncommand = ["python3", "queue_worker.py"]\nstop_timeout = "2s"\n'
    real_pool.write("pool.toml", f"[[server]]\n{table}")
    running = real_pool.spawn("run", "--watch")
    read_until(running, "Ctrl-C to stop")
    wait_until(lambda: "first version" in real_pool.ok("logs", "queue").stdout)
    real_pool.write("queue_worker.py", program.format("second version"))
    read_until(running, "~ queue: code")
    wait_until(lambda: "second version" in real_pool.ok("logs", "queue").stdout)
    stop(running)


def test_program_that_has_ended_is_started_again_when_its_code_changes(real_pool: RealPool) -> None:
    servers = [
        server(name, command=["sh", f"{name}.sh"], ready_after="1h", on_demand=name == "tool")
        for name in ("task", "tool")
    ]
    for name in ("task", "tool"):
        real_pool.write(f"{name}.sh", "exit 0")
    real_pool.write("pool.toml", "".join([*servers, server("other", command=["sleep", "60"])]))
    running = real_pool.spawn("run", "--watch")
    read_until(running, "1 of 2 servers ready")
    assert real_pool.run("start", "tool").code == 1
    for name in ("tool", "task"):
        real_pool.write(f"{name}.sh", "echo begun\nexec sleep 60")
    assert read_until(running, "restarting").endswith("task: task.sh changed, restarting\n")
    wait_until(lambda: "begun" in real_pool.ok("logs", "task").stdout)
    items = real_pool.run("list", "-o", "json").json["items"]
    assert [(item.get("ended") or {}).get("status") for item in items] == [None, 0, None]
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=60)


def test_a_pool_around_a_command_is_watched_too(real_pool: RealPool, http_get: Callable[..., Any]) -> None:
    port = real_pool.write_hello()["web"]
    running = real_pool.spawn("run", "--watch", "--", "sh", "-c", "echo up; read line")
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    real_pool.write("hello.py", HELLO_APP.replace("hello from", "a warm welcome to"))
    wait_until(lambda: http_get(port).text == f"a warm welcome to {port}")
    running.communicate("\n", timeout=60)
    assert running.returncode == 0
