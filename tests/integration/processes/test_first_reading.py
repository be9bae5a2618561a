"""A start whose files take long to be read: it waits, and can be stopped; other commands wait as well."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from poolctl.control.answers import PingResult
from poolctl.control.client import Client
from poolctl.errors import ControlError
from tests.deadline import wait_until
from tests.integration.processes.test_both_killed import kill_both
from tests.processes import descriptors, stat
from tests.real_pool import RealPool

# The disk of the first supervisor answers when a file appears.
SLOW = """
import os, sys, threading, time

def slow(path, *given, **options):
    while threading.current_thread().name == "poolctl-reader" and not os.path.exists({gate!r}):
        time.sleep(0.01)
    return opens(path, *given, **options)

if "supervisor" in sys.orig_argv:
    opens, os.open = os.open, slow
"""


class SlowPool:
    """A pool whose files are not read before `open`."""

    def __init__(self, pool: RealPool, directory: Path) -> None:
        self.pool = pool
        pool.warm = False  # a supervisor that is forked runs no such hook
        self._gate = directory / "gate"
        hook = directory / "hook"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(SLOW.format(gate=str(self._gate)))
        self._env = {"PYTHONPATH": str(hook)}

    def open(self) -> None:
        self._gate.touch()

    def spawn(self, *args: str) -> subprocess.Popen[str]:
        """The command that starts the pool, and waits."""
        process = self.pool.spawn(*args, env=self._env)
        wait_until(self.about, what="the supervisor answers a ping while the files are read")
        wait_until(lambda: awaits_answer(process.pid), what="it has sent its request")
        return process

    def about(self) -> PingResult | None:
        """What the supervisor answers to a ping while the files are read."""
        for path in self.pool.runtime.glob("*/control.sock"):
            try:
                found = Client(str(path)).ping()
            except ControlError:
                continue
            return found if found.reading else None
        return None

    def supervisor(self) -> int:
        about = self.about()
        assert about is not None
        return about.supervisor_pid

    def spawn_waiting(self, *args: str) -> subprocess.Popen[str]:
        """A command that the supervisor has accepted, and does not answer yet."""
        supervisor = self.supervisor()
        before = set(descriptors(supervisor).values())
        process = self.pool.spawn(*args)
        wait_until(lambda: set(descriptors(supervisor).values()) - before, what="its connection is accepted")
        assert self.about() is not None
        return process


def awaits_answer(pid: int) -> bool:
    """Whether the process sleeps, and has a connection to a Unix socket (St is 03 in /proc/net/unix)."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    connected = {f"socket:[{row[6]}]" for row in rows if row[5] == "03"}
    return not connected.isdisjoint(descriptors(pid).values()) and stat(pid).state == "S"


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and what it has printed."""
    stdout, stderr = process.communicate(timeout=80)
    return process.returncode, stdout + stderr


@pytest.fixture
def slow(pool: RealPool, tmp_path: Path) -> SlowPool:
    pool.write_hello("web")
    return SlowPool(pool, tmp_path)


def test_commands_wait_until_the_files_are_read_while_a_ping_is_answered(slow: SlowPool) -> None:
    starting = slow.spawn("start")
    about = slow.about()
    assert about is not None
    assert about.files == (str(slow.pool.directory / "pool.toml"),)
    listing = slow.spawn_waiting("list", "-o", "name")
    assert "the supervisor is still reading the files" in slow.pool.run("doctor").stdout
    slow.open()
    assert ended(starting)[0] == 0
    assert ended(listing) == (0, "web\n")
    assert Client(str(next(slow.pool.runtime.glob("*/control.sock")))).ping().reading is None


def test_stop_ends_a_start_whose_files_are_being_read_and_leaves_nothing(slow: SlowPool) -> None:
    starting = slow.spawn("start")
    assert "the supervisor has ended" in slow.pool.ok("stop").stdout
    code, said = ended(starting)
    assert (code, "the pool was stopped while its files were being read" in said) == (1, True), said
    wait_until(lambda: not slow.pool.processes())
    assert not [*slow.pool.runtime.glob("*/control.sock")]


def test_stop_of_one_server_does_not_end_the_start(slow: SlowPool) -> None:
    slow.pool.write_hello("web", "other")
    starting = slow.spawn("start", "web")
    stopping = slow.spawn_waiting("stop", "other")
    slow.open()
    assert ended(starting)[0] == 0
    assert ended(stopping)[0] == 0
    assert {name: item["state"] for name, item in slow.pool.items().items()} == {
        "web": "running",
        "other": "stopped",
    }


@pytest.mark.heavy
def test_stop_ends_servers_of_a_killed_pool_whose_files_are_being_read_again(slow: SlowPool) -> None:
    slow.pool.ok("start")
    kill_both(slow.pool, wait_until)
    starting = slow.spawn("start")
    stopping = slow.spawn_waiting("stop")
    slow.open()
    assert ended(stopping)[0] == 0
    ended(starting)
    wait_until(lambda: not slow.pool.processes())


def test_interrupted_start_goes_on_when_the_files_are_read(slow: SlowPool) -> None:
    starting = slow.spawn("start")
    starting.send_signal(signal.SIGINT)
    code, said = ended(starting)
    assert (code, "the start continues in the background" in said) == (130, True), said
    slow.open()
    slow.pool.ok("wait", "--timeout", "40")


@pytest.mark.heavy
def test_run_is_stopped_at_once_while_the_files_are_being_read(slow: SlowPool) -> None:
    running = slow.spawn("run")
    running.send_signal(signal.SIGTERM)
    code, said = ended(running)
    assert code == 0, said
    assert not slow.pool.processes()


def test_pool_ends_with_its_terminal_while_the_files_are_being_read(slow: SlowPool) -> None:
    running = slow.spawn("run")
    running.kill()
    # The keeper alone would end it after 30 s.
    wait_until(lambda: not slow.pool.processes(), timeout_seconds=25)
    running.communicate()


def test_start_whose_supervisor_is_killed_during_the_reading_fails_and_leaves_nothing(slow: SlowPool) -> None:
    starting = slow.spawn("start")
    os.kill(slow.supervisor(), signal.SIGKILL)
    code, said = ended(starting)
    assert (code, "the supervisor ended before it answered" in said) == (8, True), said
    wait_until(lambda: not slow.pool.processes())
    assert not [*slow.pool.runtime.glob("*/control.sock")]
