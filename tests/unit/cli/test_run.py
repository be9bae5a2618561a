"""What `run -- CMD…` tells its command, and what it says of its failure."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.commands import run as run_command
from poolctl.cli.commands.run import (
    BackgroundStream,
    StopSignals,
    command_environment,
    deaths_of,
    last_lines,
    program,
    run_to_end,
    stream_of_its_own,
)
from poolctl.cli.outcome import Failure
from poolctl.cli.pool_ref import PoolRef
from poolctl.control.answers import Item
from tests.deadline import wait_until


def item(name: str, bind: str, expose: str, **more: Any) -> Item:
    plain: dict[str, Any] = {
        "state": "running", "ready": True, "health": "ok", "pids": (1,), "workers": 1, "uptime_seconds": 1.0,
        "restarts": 0, "tags": (),
    }  # fmt: skip
    return Item(name=name, bind=bind, expose=expose, **(plain | more))


def test_environment_has_the_pool_and_the_addresses_of_its_servers() -> None:
    items = [
        item("users-v1.a", "0.0.0.0:8081", "http://localhost:8081"),
        item("sock", "unix:/run/a.sock", "unix:/run/a.sock"),
        item("queue", "process:queue", ""),
        item("given", "fd:3", "fd:3", address="127.0.0.1:90"),
        item("off", "127.0.0.1:1", "http://127.0.0.1:1", state="disabled"),
    ]
    found = command_environment(PoolRef(["/a/pool.toml", "/a/dev.toml"], "/run/a"), items, {"HOME": "/root"})
    assert found == {
        "HOME": "/root",
        "POOLCTL_CONFIG": "/a/pool.toml",
        "POOLCTL_URL_USERS_V1_A": "http://localhost:8081",
        "POOLCTL_PORT_USERS_V1_A": "8081",
        "POOLCTL_URL_SOCK": "unix:/run/a.sock",
        "POOLCTL_URL_GIVEN": "http://127.0.0.1:90",
        "POOLCTL_PORT_GIVEN": "90",
    }


def test_two_names_of_one_variable_are_a_problem_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(
        '[[server]]\nname = "a-b"\nbind = ":1"\napp = "a:b"\n[[server]]\nname = "a_B"\nbind = ":2"\napp = "a:b"\n'
    )
    items = [item("a-b", "0.0.0.0:1", "http://localhost:1"), item("a_B", "0.0.0.0:2", "http://localhost:2")]
    with pytest.raises(Failure) as failed:
        command_environment(PoolRef([str(file)], str(tmp_path)), items)
    (problem,) = failed.value.outcome.errors
    assert (problem.file, problem.line, failed.value.outcome.exit_code) == (str(file), 6, 5)
    assert problem.message == "POOLCTL_URL_A_B of the command would be the address of 'a-b' and of 'a_B'"
    assert problem.hint == "rename one of them"


def test_deaths_are_counted() -> None:
    died = {"a": ["killed by SIGKILL"], "b": ["exited with status 1", "exited with status 7"]}
    assert [*deaths_of(died, "pytest")] == [
        "a died while pytest ran: killed by SIGKILL",
        "b died 2 times while pytest ran: exited with status 7",
    ]


@pytest.mark.parametrize(
    ("env", "before", "after"),
    [
        ({}, "last 2 lines of a:\n", ""),
        ({"GITHUB_ACTIONS": "false"}, "last 2 lines of a:\n", ""),
        ({"GITHUB_ACTIONS": "true"}, "::group::last 2 lines of a\n", "::endgroup::\n"),
        (
            {"GITLAB_CI": "true"},
            "\x1b[0Ksection_start:99:poolctl_a[collapsed=true]\r\x1b[0Klast 2 lines of a\n",
            "\x1b[0Ksection_end:99:poolctl_a\r\x1b[0K\n",
        ),
    ],
)
def test_last_lines_are_folded_where_logs_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], before: str, after: str
) -> None:
    monkeypatch.setattr("poolctl.cli.commands.run.time", lambda: 99.5)
    log = tmp_path / "a.log"
    lines = [(7, "too early"), (8, "one"), (9, "::error::two\x1b[31m")]
    log.write_text("".join(f"2026-11-20T08:47:0{at}.000000Z {text}\n" for at, text in lines))
    (tmp_path / "empty.log").write_text("")
    paths = {"a": str(log), "b": str(tmp_path / "empty.log"), "c": str(tmp_path / "none.log")}
    found = last_lines(paths, "2026-11-20T08:47:07.500000Z", env)
    assert found == f"{before}a | one\na | ::error::two\n{after}"


LINE = "x" * 99 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes 40 lines; its ends may be closed by the test."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    yield read, write
    for end in (read, write):
        try:
            os.close(end)
        except OSError:
            continue


def test_a_text_has_been_written_when_write_returns(pipe: tuple[int, int]) -> None:
    read, write = pipe
    with open(write, "w", closefd=False) as stderr, BackgroundStream(stderr) as stream:
        for text in ("one\n", "two\n"):
            assert stream.write(text) == len(text)
            assert os.read(read, 100) == text.encode()
        assert stream.fileno() == write


def test_a_stuck_reader_delays_once_and_gets_everything_in_the_end(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_command, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(run_command, "END_SECONDS", 30.0)
    read, write = pipe
    with open(write, "w", closefd=False) as stderr:
        begun = time.monotonic()
        with BackgroundStream(stderr) as stream:
            for _ in range(60):
                stream.write(LINE)
            assert time.monotonic() - begun < 10, "twenty delays are ten seconds"
            stderr.flush()  # its lock is free
            reader = threading.Thread(target=os.read, args=(read, 4096))
            reader.start()
        reader.join()
        assert len(os.read(read, 4096)) == 20 * len(LINE)


def test_text_for_a_reader_that_is_gone_is_dropped(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(read)
    with open(write, "w", closefd=False) as stderr, BackgroundStream(stderr) as stream:
        assert [stream.write(LINE) for _ in range(3)] == [len(LINE)] * 3


def test_a_stream_without_a_descriptor_is_used_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with stream_of_its_own(sys.stderr) as own:
        assert own is sys.stderr
    with BackgroundStream(sys.stderr) as stream:
        stream.write("one\n")
    assert capsys.readouterr().err == "one\n"


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
    "import os, sys; from poolctl.cli.commands.run import run_to_end, program;"
    "sys.exit(run_to_end(program(sys.argv[1:], os.environ), sys.argv[1:], os.environ, stdout={}))"
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
        run_to_end(str(broken), [str(broken)], {})
    assert caught.value.outcome.exit_code == 126
