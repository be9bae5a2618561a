"""A result is whole or a failure, wherever it is written; and output that cannot be written stops no server."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import get
from tests.processes import is_alive
from tests.real_pool import RealPool

COMMANDS = [
    ["list", "-o", "json"], ["list"], ["list", "-o", "jsonl"], ["show", "-o", "json"], ["config"],
    ["config", "--schema"], ["validate", "-o", "json"], ["help", "--all"], ["--version"],
    ["--help"], ["run", "--help"], ["walk", "--", "echo", "x" * 200],
]  # fmt: skip
# All of them print in one way: in an environment that changes it, some.
ENVIRONMENTS = pytest.mark.parametrize(
    ("env", "commands"), [({}, COMMANDS), ({"PYTHONUNBUFFERED": "1"}, COMMANDS[::3])], ids=["", "unbuffered"]
)
pytestmark = pytest.mark.timeout(600)  # dozens of commands with large results
FULL = Path("/dev/full")
Commands = list[list[str]]


@pytest.fixture
def many(real_pool: RealPool) -> RealPool:
    """A pool of several hundred servers that do not run: each result about them is larger than a pipe."""
    tables = [
        server(f"web-{number}", bind=f"127.0.0.1:{20000 + number}", app="app:app") for number in range(400)
    ]
    real_pool.write("pool.toml", "".join(tables))
    return real_pool


def start(pool: RealPool, args: list[str], env: dict[str, str], stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*pool.command(), *args],
        cwd=pool.directory,
        env=pool.env | env,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@ENVIRONMENTS
def test_result_in_a_pipe_that_does_not_block_is_whole(
    many: RealPool, env: dict[str, str], commands: list[list[str]]
) -> None:
    for args in commands:
        expected = subprocess.run(
            [*many.command(), *args], cwd=many.directory, env=many.env | env, capture_output=True
        )
        read, write = os.pipe()
        os.set_blocking(write, False)
        process = start(many, args, env, write)
        os.close(write)
        with open(read, "rb") as pipe, process:
            found = pipe.read()
            assert process.wait(60) == expected.returncode, args
        assert len(found) == len(expected.stdout), args


@ENVIRONMENTS
def test_result_on_a_full_disk_is_a_failure_with_one_line(
    many: RealPool, env: dict[str, str], commands: list[list[str]]
) -> None:
    for args in commands:
        with FULL.open("wb") as full, start(many, args, env, full.fileno()) as process:
            errors = process.communicate(timeout=60)[1].decode()
            assert process.returncode == 1, args
        assert errors.splitlines()[-1] == "error: cannot write the output: No space left on device", args
        assert "Traceback" not in errors, args


@ENVIRONMENTS
def test_result_for_a_reader_that_is_gone_is_no_failure(
    many: RealPool, env: dict[str, str], commands: list[list[str]]
) -> None:
    for args in commands:
        read, write = os.pipe()
        os.close(read)
        with start(many, args, env, write) as process:
            os.close(write)
            errors = process.communicate(timeout=60)[1].decode()
        assert (process.returncode, errors) == (0, ""), args


@pytest.mark.capability
def test_run_serves_on_while_its_output_file_cannot_grow(real_pool: RealPool) -> None:
    port = real_pool.write_hello("web")["web"]
    with (
        FULL.open("wb") as full,
        start(real_pool, ["run"], {}, full.fileno()) as process,
    ):
        wait_until(lambda: real_pool.items()["web"]["ready"])
        for _ in range(3):
            assert get(port).status == 200
        real_pool.ok("restart")
        assert process.poll() is None
        process.terminate()
        errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, errors


@pytest.mark.parametrize("killed", [True, False])
def test_run_fails_if_its_pool_was_killed_and_not_if_it_was_stopped(
    real_pool: RealPool, killed: bool
) -> None:
    real_pool.write_hello("web")
    with start(real_pool, ["run"], {}, subprocess.DEVNULL) as process:
        wait_until(lambda: real_pool.items()["web"]["ready"])
        if killed:
            info = real_pool.info()
            pids = [info[name] for name in ("keeper_pid", "supervisor_pid")]
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not any(map(is_alive, pids)))
        else:
            real_pool.ok("stop")
        errors = process.communicate(timeout=60)[1].decode()
    assert (process.returncode, "was killed" in errors) == (int(killed), killed), errors
    real_pool.ok("stop")
    assert not real_pool.processes()
