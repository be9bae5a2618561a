"""Signals that end a `run`: none is lost, whenever it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from poolctl.cli.outcome import Failure
from poolctl.cli.run_signals import StopSignals, UserCommand, program
from tests.deadline import wait_until


def test_a_signal_that_came_just_before_the_wait_ends_the_wait_in_the_kernel() -> None:
    reads, writes = os.pipe()
    handled: list[int] = []
    with StopSignals() as signals:
        # As if the handler had run between the last instruction and poll(2): only the pipe tells of it.
        signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        closing = threading.Timer(0.1, os.close, [reads])
        closing.start()
        signals.wait_for_end(writes)
        closing.join()
        assert os.get_blocking(signals.wakeup)
    os.close(writes)
    assert handled == [signal.SIGTERM]


def test_a_signal_during_the_wait_raises() -> None:
    reads, writes = os.pipe()
    interrupt = threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    with StopSignals() as signals:
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            signals.wait_for_end(writes)
        interrupt.join()
    os.close(reads)
    os.close(writes)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_another_thread_has_taken_raises_too() -> None:
    reads, writes = os.pipe()
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    with StopSignals() as signals:
        interrupt = threading.Timer(0.1, signal.pthread_kill, [other.ident, signal.SIGINT])
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            signals.wait_for_end(writes)
        interrupt.join()
    over.set()
    other.join()
    os.close(reads)
    os.close(writes)


RUN = (
    "import os, sys; from poolctl.cli.run_signals import UserCommand, program;"
    "sys.exit(UserCommand(program(sys.argv[1:], os.environ), sys.argv[1:], os.environ).run(stdout={}))"
)


def run(*command: str, stdout: int | None = None) -> int:
    """In a process of its own: a thread of the test runner's would be given the signals that are waited for."""
    fds = () if stdout is None else (stdout,)
    return subprocess.run([sys.executable, "-c", RUN.format(stdout), *command], pass_fds=fds).returncode


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 143), ("kill -9 $$", 137)]
)
def test_the_exit_is_the_commands(script: str, code: int) -> None:
    assert run("sh", "-c", script) == code


def test_signals_are_at_their_defaults_in_the_command() -> None:
    assert run("sh", "-c", "grep -q 'SigBlk:.0*$' /proc/self/status") == 0
    assert run("sh", "-c", "grep 'SigIgn:' /proc/self/status | grep -q '0000$'") == 0


def test_output_may_go_elsewhere(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as out:
        assert run("echo", "hi", stdout=out.fileno()) == 0
    assert (tmp_path / "out").read_text() == "hi\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_sent_to_us_reaches_the_command(tmp_path: Path, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'exit 9' {name}; touch {tmp_path}/up; while :; do sleep 0.02; done"
    ours = subprocess.Popen([sys.executable, "-c", RUN.format(None), "sh", "-c", script])
    wait_until((tmp_path / "up").exists)
    ours.send_signal(number)
    assert ours.wait(60) == 9


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("no-such-command", 127, "not found"),
        ("", 127, "not found"),
        ("./plain", 126, "not executable"),
        ("plain", 126, "not executable"),
        ("/", 126, "is a directory"),
        ("./gone", 127, "not found"),
    ],
)
def test_a_command_that_cannot_run_exits_with_the_shells_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").touch()
    with pytest.raises(Failure) as caught:
        program([name], {"PATH": f"/usr/bin:{tmp_path}"})
    assert caught.value.outcome.exit_code == code
    assert words in str(caught.value)


def test_a_program_that_the_system_refuses_is_126(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("no program")
    broken.chmod(0o755)
    with pytest.raises(Failure) as caught:
        UserCommand(str(broken), [str(broken)], {}).run()
    assert caught.value.outcome.exit_code == 126
