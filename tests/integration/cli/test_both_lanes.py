"""The installed command prints the same bytes in both lanes, with a supervisor and without."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from poolctl.cli.command_line import parse_simple_command_line
from tests.real_pool import Done, RealPool

pytestmark = pytest.mark.slow

# One of each command, and one of each kind of error: that both lanes make the same request of every spelling is shown
# without processes (tests/unit/cli/test_command_line.py).
COMMANDS = [
    "list", "list -o jsonl", "list -o tags", "list usres", "list --name ( -o json", "list --pool nobody -o json",
    "status", "show users", "show users -o json", "wait --for stopped --timeout 0.1", "walk -- echo {name}",
    "logs -n 1", "start --timeout soon", "run nobody -- true", "reload --dry-run", "scale users 1 -o json",
    "enable users", "remove nobody",
]  # fmt: skip
FROM_THE_FILES = [
    "list -o json", "list --name (", "list -c gone.toml", "status -o json", "show users", "wait --timeout 0.1",
    "walk -- echo {name}", "logs -n 1", "reload --dry-run", "scale users",
]  # fmt: skip
NO_FAST_LANE = "import poolctl.cli.command_line as fast\nfast.parse_simple_command_line = lambda args: None\n"


@pytest.fixture
def pool(real_pool: RealPool) -> RealPool:
    real_pool.write_hello("users", "orders", extra='tags = ["api", "v1"]')
    real_pool.write("slow/sitecustomize.py", NO_FAST_LANE)
    return real_pool


def slow_lane(pool: RealPool) -> dict[str, str]:
    return {"PYTHONPATH": str(pool.directory / "slow")}


def without_uptime(done: Done) -> tuple[int, str, str]:
    uptime = r'(?<="uptime_seconds": )[0-9.]+|\s*\b(?:\d+m)?[0-9.]+s\b'
    return done.code, re.sub(uptime, "", done.stdout), done.stderr


def assert_same(pool: RealPool, command: str) -> None:
    args = command.split()
    assert parse_simple_command_line(args) is not None, "the fast lane takes it"
    assert without_uptime(pool.run(*args)) == without_uptime(pool.run(*args, env=slow_lane(pool)))


@pytest.mark.heavy_variants
@pytest.mark.parametrize("command", FROM_THE_FILES)
def test_without_a_supervisor(pool: RealPool, command: str) -> None:
    assert_same(pool, command)


@pytest.mark.heavy
@pytest.mark.timeout(180)
def test_with_a_supervisor(pool: RealPool) -> None:
    pool.ok("start")
    for command in COMMANDS:
        assert_same(pool, command)


def test_commands_that_other_tests_fork_run_as_processes(pool: RealPool) -> None:
    assert pool.ok("init", "--help").stdout
    pool.ok("start")
    for command in ("health", "filter name users", "stacks", "drain users", "undrain users"):
        assert pool.ok(*command.split()).stdout, command


def test_the_slow_lane_is_really_taken_here(pool: RealPool) -> None:
    script = "import sys; from poolctl.cli.main import main; main(['list']); print('typer' in sys.modules)"
    for env, taken in ((slow_lane(pool), "True"), ({}, "False")):
        done = subprocess.run(
            [sys.executable, "-c", script], env=pool.env | env, cwd=pool.directory,
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.split()[-1] == taken
