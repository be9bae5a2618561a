"""Contract §5: output, its streams and its forms; walk, show, config, logs, small commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.commands import names
from tests.real_pool import RealPool


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write_hello("a", "b", extra='tags = ["x", "y"]')
    return real_pool


def test_help_names_every_command_and_each_has_its_own(pool: RealPool) -> None:
    text = pool.ok("help", "--all").stdout
    assert [name for name in names() if not re.search(rf"^\W*{name}\b", text, re.MULTILINE)] == []
    # One interpreter for all, as each behaves like a command of its own.
    script = "import sys\nfrom poolctl.cli.main import main\nsys.exit(sum(main([name, '-h']) for name in sys.argv[1:]))"
    helps = subprocess.run(
        [sys.executable, "-c", script, *names()], env=pool.env, capture_output=True, text=True, timeout=60
    )
    assert helps.returncode == 0, helps.stderr
    assert [name for name in names() if f"Usage: poolctl {name} " not in helps.stdout] == []


@pytest.mark.parametrize(
    "arguments",
    ["", "--nonsense", "lst", "start --timeout soon", "start --timeout -1", "walk --jobs 0 -- true",
     "list -o", "list -o yaml", "init a b c", "wait --for christmas"],
)  # fmt: skip
def test_wrong_usage_is_2_with_a_message_on_stderr(pool: RealPool, arguments: str) -> None:
    done = pool.run(*arguments.split())
    assert done.code == 2, str(done)
    assert done.stderr or arguments == ""
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_no_colour_and_no_progress_where_there_is_no_terminal(pool: RealPool) -> None:
    for command in ("start", "list", "status", "show", "restart", "stop"):
        done = pool.ok(command)
        assert "\x1b" not in done.stdout + done.stderr, command
    done = pool.ok("--quiet", "start")
    assert done.stderr == ""
    assert pool.ok("-h").stdout == pool.ok("--help").stdout


@pytest.mark.slow
def test_walk_runs_a_command_per_server_with_its_environment(pool: RealPool) -> None:
    pool.ok("start")
    pool.ok("scale", "a", "2")
    variables = ["NAME", "BIND", "HOST", "PORT", "EXPOSE", "STATE", "PID", "PIDS", "TAGS"]
    script = f"echo {' '.join(f'$POOLCTL_{name}' for name in variables)}"
    output = pool.ok("walk", "--", "sh", "-c", script).stdout
    for name, item in pool.items().items():
        port = pool.ports[name]
        pids = ",".join(map(str, item["pids"]))
        line = (
            f"{name} 127.0.0.1:{port} 127.0.0.1 {port} {item['expose']} running {item['pids'][0]} {pids} x,y"
        )
        assert line in output


def test_show_and_config_name_the_origin_of_a_value(pool: RealPool) -> None:
    text = pool.ok("show", "a").stdout
    assert "pool.toml:3" in text
    assert "drain_timeout" in text
    item = pool.ok("show", "a", "-o", "json").json["items"][0]
    assert item["name"] == "a"
    assert "pool.toml:4" in json.dumps(item), "the origin of app"
    config = pool.ok("config").stdout
    assert "hello:app" in config


def test_logs_are_merged_named_and_limited(pool: RealPool, until: Any) -> None:
    pool.append("\nfor n in range(20): print('line', n, flush=True)\n", file="hello.py")
    pool.ok("start")
    # Output goes through the logger, so a worker may be ready before its lines are in the file.
    until(lambda: all("line 19" in pool.ok("logs", name).stdout for name in ("a", "b")))
    assert len(pool.ok("logs", "-n", "3", "a").stdout.splitlines()) == 3
    merged = pool.ok("logs").stdout
    assert re.search(r"^\W*a\b", merged, re.MULTILINE)
    assert re.search(r"^\W*b\b", merged, re.MULTILINE)
    for line in pool.ok("logs", "-o", "json", "-n", "2").stdout.splitlines():
        assert json.loads(line)["name"] in ("a", "b")
    assert pool.ok("logs", "-n", "100", "--since", "1h", "a").stdout.count("line") == 20
    pool.ok("stop")
    assert "line 19" in pool.ok("logs", "a").stdout


@pytest.mark.slow
def test_logs_follow(pool: RealPool, until: Any) -> None:
    pool.append("\nimport os; print('up', os.getpid(), flush=True)\n", file="hello.py")
    pool.ok("start")
    with open(pool.directory / "followed", "w+") as output:
        script = pool.command()
        follower = subprocess.Popen(
            [*script, "logs", "-f", "a"], cwd=pool.directory, env=pool.env, stdout=output
        )
        try:
            followed = pool.directory / "followed"
            until(lambda: "up" in followed.read_text())
            pool.ok("restart", "a")
            (pid,) = pool.items()["a"]["pids"]
            until(lambda: f"up {pid}" in followed.read_text())
            assert followed.read_text().count("a | up ") == 2
        finally:
            follower.terminate()
            follower.wait(timeout=60)


@pytest.mark.slow
def test_status_counts_servers_and_names_unready_ones(pool: RealPool) -> None:
    resting = pool.run("status", "-o", "json")
    assert (resting.code, resting.json["summary"]["supervisor_pid"]) == (3, None)
    pool.ok("start")
    assert "2 servers ready" in pool.ok("status").stdout
    running = pool.ok("status", "-o", "json").json["summary"]
    assert running["supervisor_pid"] == pool.info()["supervisor_pid"]
    assert resting.json["summary"].keys() <= running.keys(), "the same keys with and without a supervisor"


def test_init_writes_a_starter_that_is_valid_and_overwrites_nothing(pool: RealPool) -> None:
    directory = pool.directory / "fresh"
    directory.mkdir()
    pool.ok("init", cwd=directory)
    text = (directory / "pool.toml").read_text()
    assert "#" in text
    pool.ok("validate", cwd=directory)
    again = pool.run("init", cwd=directory)
    assert again.code not in (0, 1), str(again)
    assert (directory / "pool.toml").read_text() == text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(pool: RealPool, shell: str) -> None:
    pool.env["_POOLCTL_COMPLETE"] = f"source_{shell}"
    assert "poolctl" in pool.ok().stdout


def test_version_is_printed(pool: RealPool) -> None:
    assert re.search(r"\d+\.\d+\.\d+", pool.ok("--version").stdout)
