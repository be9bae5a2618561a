"""Contract §5: output, its streams and its forms; walk, show, config, logs, small commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from poolctl.feature import features
from tests.real_pool import RealPool

COMMANDS = [
    "validate", "start", "stop", "restart", "run", "list", "filter", "walk", "status", "show", "wait", "logs",
    "config", "init", "help", "reload", "scale", "drain", "undrain", "enable", "disable",
    "add", "remove", "pools", "stacks", "events", "export",
]  # fmt: skip


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write_hello("a", "b", extra='tags = ["x", "y"]')
    return real_pool


def test_help_names_exactly_the_commands_of_this_version(pool: RealPool) -> None:
    text = pool.ok("help", "--all").stdout
    names = [*COMMANDS, *(name for feature in features() for name in feature.commands)]
    for name in names:
        assert re.search(rf"^\W*{name}\b", text, re.MULTILINE), name
    # One interpreter for all, as each behaves like a command of its own.
    script = "import sys\nfrom poolctl.cli.main import main\nsys.exit(sum(main([name, '-h']) for name in sys.argv[1:]))"
    helps = subprocess.run(
        [sys.executable, "-c", script, *names], env=pool.env, capture_output=True, text=True, timeout=60
    )
    assert helps.returncode == 0, helps.stderr
    assert [name for name in names if f"Usage: poolctl {name} " not in helps.stdout] == []


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
        finally:
            follower.terminate()
            follower.wait(timeout=60)


@pytest.mark.slow
def test_status_counts_servers_and_names_unready_ones(pool: RealPool) -> None:
    done = pool.run("status")
    assert done.code == 3
    assert done.stdout + done.stderr
    resting = pool.run("status", "-o", "json").json["summary"]
    assert resting["supervisor_pid"] is None
    pool.ok("start")
    assert "2" in pool.ok("status").stdout
    assert "pool.toml:3" in pool.ok("show", "a").stdout
    running = pool.ok("status", "-o", "json").json["summary"]
    assert running["supervisor_pid"]
    assert resting.keys() <= running.keys(), "a script finds the same keys with and without a supervisor"
    pool.ok("stop", "b")
    assert pool.ok("status", "-o", "json").json["summary"]


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
