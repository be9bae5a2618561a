"""What the caller of a command has left behind in its process decides nothing about the pool."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.configuration import server
from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port
from tests.real_pool import HELLO_APP, RealPool

ALL_BLOCKED = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
ALL_IGNORED = (
    "[signal.signal(n, signal.SIG_IGN) for n in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}]"
)


class CalledPool(RealPool):
    """A pool whose commands are executed by a program that has run `before` in its process."""

    before = "pass"

    def command(self) -> list[str]:
        run = f"import os, signal, sys; {self.before}; os.execv(sys.argv[1], sys.argv[1:])"
        return [sys.executable, "-c", run, *super().command()]


@pytest.fixture
def called(pool: RealPool) -> RealPool:
    pool.__class__ = CalledPool
    pool.warm = False
    return pool


def ignored(status: str) -> set[int]:
    """The signals that /proc/PID/status names as ignored."""
    signals = int(status.partition("SigIgn:")[2].split()[0], 16)
    return {number for number in signal.valid_signals() if signals >> (number - 1) & 1}


def ignored_by_command(pool: RealPool, *verb: str) -> set[int]:
    """The signals that CMD of this verb, `run` or `walk`, ignores."""
    return ignored(pool.ok(*verb, "--", "sh", "-c", "grep SigIgn /proc/self/status").stdout)


@pytest.mark.parametrize("before", [ALL_BLOCKED, ALL_IGNORED])
def test_no_signal_that_the_caller_blocks_or_ignores_changes_the_pool(
    called: CalledPool, before: str
) -> None:
    called.before = before
    port = called.write_hello("web", extra='hooks = { before_start = ["touch", "hooked"] }')["web"]
    with Path(called.directory, "pool.toml").open("a") as file:
        file.write(server("program", command=["sleep", "600"]))
    called.ok("start")
    assert Path(called.directory, "hooked").exists()
    first = called.items()["program"]["pids"][0]
    for pid in (first, called.items()["web"]["pids"][0]):
        status = Path(f"/proc/{pid}/status").read_text()
        assert "SigBlk:\t0000000000000000" in status
        assert ignored(status) <= {signal.SIGPIPE, signal.SIGXFSZ}, pid  # as Python does
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: called.items()["program"]["pids"] not in ([], [first]))
    called.ok("restart")
    assert get(port).status == 200
    assert called.run("walk", "web", "--", "false").code == 1
    called.ok("doctor")
    called.ok("stop")
    assert not called.processes()
    assert called.run("run", "--", "sh", "-c", "exit 5").code == 5
    assert ignored_by_command(called, "run") <= {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT}


def test_a_command_ignores_what_its_caller_ignores_as_under_nohup(called: CalledPool) -> None:
    called.before = (
        "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)]"
    )
    called.write_hello("web")
    for args in (("run",), ("walk", "-q")):
        assert ignored_by_command(called, *args) == {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT}, args


@pytest.mark.capability
def test_relative_paths_in_variables_are_those_of_where_they_were_set(called: CalledPool) -> None:
    called.write("of_server/one.py", HELLO_APP)
    called.write("elsewhere/of_caller/other.py", HELLO_APP)
    one, other = claim_port(), claim_port()
    called.write(
        "pool.toml",
        server("one", bind=f"127.0.0.1:{one}", app="one:app", env={"PYTHONPATH": "of_server"})
        + server("other", bind=f"127.0.0.1:{other}", app="other:app"),
    )
    caller = {
        "env": {"PYTHONPATH": f"of_caller:{called.env.get('PYTHONPATH', '')}"},
        "cwd": called.directory / "elsewhere",
    }
    file = ("-c", "../pool.toml")
    called.ok(*file, "validate", "--import", **caller)
    called.ok(*file, "start", **caller)
    assert get(one).status == get(other).status == 200
    called.ok(*file, "restart", "--env", **caller)
    called.ok(*file, "stop", **caller)
    called.ok(*file, "run", "--", "true", **caller)


def test_serve_gives_its_program_the_absolute_paths_of_the_caller(called: CalledPool) -> None:
    called.write("pool.toml", server("program", command=["sh", "-c", 'echo "<$PYTHONPATH>"']))
    elsewhere = called.directory / "elsewhere"
    elsewhere.mkdir()
    done = called.run("-c", "../pool.toml", "serve", "program", cwd=elsewhere, env={"PYTHONPATH": "lib:"})
    assert f"<{elsewhere}/lib:{elsewhere}>" in done.stdout, str(done)
