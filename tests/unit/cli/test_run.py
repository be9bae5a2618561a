"""The pool in the foreground: its signals, its output, its events, its end, and the command around it."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from poolctl.cli.command_line import parse_simple_command_line
from poolctl.cli.commands import run as run_command
from poolctl.cli.commands.run import (
    BackgroundWriter,
    Death,
    LogPrinter,
    PoolEventFollower,
    RunSession,
    StopSignalRaiser,
    Terminated,
    command_environment,
    death_lines,
    deferred_signals,
    log_sections,
    program,
    run_to_end,
)
from poolctl.cli.main import main
from poolctl.cli.outcome import Failure, Outcome, UsageError, error
from poolctl.cli.pool_ref import PoolRef
from poolctl.control.answers import Item, Result
from poolctl.control.client import Client, write_exit
from poolctl.control.pool_paths import ACCESS_LOG_VARIABLE, pool_key, state_dir
from poolctl.errors import ControlError
from poolctl.json_form import from_json
from poolctl.logs.log_line import LogLine
from poolctl.logs.log_tail import tail
from poolctl.monitor.journal import MOST_LINES, JournalEvent
from poolctl.runners.worker_spec import NO_ACCESS_LOG_VARIABLE
from tests.deadline import wait_until
from tests.notify_socket import NotifySocket
from tests.real_pool import RealPool
from tests.stand_in import Send, always, result, stand_in
from tests.stand_in import item as item_of

from .conftest import Supervised


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
    died = {
        "a": [Death("", "killed by SIGKILL")],
        "b": [Death("", "exited with status 1"), Death("", "exited with status 7: Error: no disk")],
    }
    assert [*death_lines(died, "pytest", {})] == [
        "a died while pytest ran: killed by SIGKILL",
        "b died 2 times while pytest ran: exited with status 7: Error: no disk",
    ]
    logs = {"a": [LogLine("SIGKILL", time="", name="a")], "b": [LogLine("Error: no disk", time="", name="b")]}
    assert [*death_lines(died, "pytest", logs)] == [
        "a died while pytest ran: killed by SIGKILL",
        "b died 2 times while pytest ran: exited with status 7",
    ], "the log below says the rest"


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
    since = "2026-11-20T08:47:07.500000Z"
    logs = {name: tail(path, 20, since=since, name=name) for name, path in paths.items()}
    found = log_sections(logs, env, objects=False)
    assert found == f"{before}a | one\na | ::error::two\n{after}"
    objects = [json.loads(line) for line in log_sections(logs, env, objects=True).splitlines()]
    assert [(each["server"], each["message"]) for each in objects] == [
        ("a", "one"),
        ("a", "::error::two\x1b[31m"),
    ]


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
    with open(write, "w", closefd=False) as stderr, BackgroundWriter(stderr) as stream:
        for text in ("one\n", "two\n"):
            assert stream.write(text) == len(text)
            assert select.select([read], [], [], 0)[0] == [read]
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
        with BackgroundWriter(stderr) as stream:
            for _ in range(60):
                stream.write(LINE)
            assert time.monotonic() - begun < 10, "twenty delays are ten seconds"
            stderr.flush()  # its lock is free
            reader = threading.Thread(target=os.read, args=(read, 4096))
            reader.start()
        reader.join()
        assert len(os.read(read, 4096)) == 20 * len(LINE)


def test_reader_that_reads_again_is_waited_for_again(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = pipe

    def receive(size: int) -> None:
        while size:
            size -= len(os.read(read, size))

    with open(write, "w", closefd=False) as stderr, BackgroundWriter(stderr) as stream:
        monkeypatch.setattr(run_command, "PATIENCE_SECONDS", 0.0)
        for _ in range(60):
            stream.write(LINE)
        monkeypatch.setattr(run_command, "PATIENCE_SECONDS", 600.0)
        receive(60 * len(LINE))

        def is_waited_for() -> bool:
            begun = threading.Event()

            def begin() -> None:
                begun.set()
                receive(5000)

            reader = threading.Timer(0.05, begin)
            reader.start()
            stream.write("x" * 5000)  # more than the pipe takes
            had_begun = begun.is_set()
            reader.join()
            return had_begun

        wait_until(is_waited_for)


def test_text_for_a_reader_that_is_gone_is_dropped(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(read)
    with open(write, "w", closefd=False) as stderr, BackgroundWriter(stderr) as stream:
        assert [stream.write(LINE) for _ in range(3)] == [len(LINE)] * 3


def test_a_stream_without_a_descriptor_is_used_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with BackgroundWriter(sys.stderr) as stream:
        stream.write("one\n")
    assert capsys.readouterr().err == "one\n"


def test_a_signal_that_came_just_before_the_wait_ends_the_wait_in_the_kernel() -> None:
    reads, writes = os.pipe()
    handled: list[int] = []
    with StopSignalRaiser() as signals:
        # As if the handler had run between the last instruction and poll(2): only the pipe tells of it.
        signal.signal(signal.SIGTERM, lambda number, frame: handled.append(number))
        os.kill(os.getpid(), signal.SIGTERM)
        closing = threading.Timer(0.1, os.close, [reads])
        closing.start()
        signals.wait_for_closed_pipe(writes)
        closing.join()
        assert os.get_blocking(signals.wakeup)
    os.close(writes)
    assert handled == [signal.SIGTERM]


def wait_for_closed_pipe(signals: StopSignalRaiser, writes: int, timer: threading.Timer) -> None:
    """Wait, with the timer begun here: its signal may come before the wait on a busy machine."""
    timer.start()
    signals.wait_for_closed_pipe(writes)


def test_a_signal_during_the_wait_raises() -> None:
    reads, writes = os.pipe()
    interrupt = threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    with StopSignalRaiser() as signals:
        with pytest.raises(KeyboardInterrupt):
            wait_for_closed_pipe(signals, writes, interrupt)
        interrupt.join()
    os.close(reads)
    os.close(writes)
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_another_thread_has_taken_raises_too() -> None:
    reads, writes = os.pipe()
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    with StopSignalRaiser() as signals:
        interrupt = threading.Timer(0.1, signal.pthread_kill, [other.ident, signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            wait_for_closed_pipe(signals, writes, interrupt)
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


@pytest.mark.slow
def test_processes_that_the_command_leaves_behind_are_asked_to_end_and_waited_for(tmp_path: Path) -> None:
    child = f"trap 'sleep 0.2; touch {tmp_path}/ended; exit' TERM; touch {tmp_path}/up; while :; do sleep 0.02; done"
    script = f'sh -c "{child}" & while ! test -e {tmp_path}/up; do sleep 0.02; done; exit 3'
    assert run("sh", "-c", script) == 3
    assert (tmp_path / "ended").exists()


@pytest.mark.slow
def test_signals_are_at_their_defaults_in_the_command() -> None:
    assert run("sh", "-c", "grep -q 'SigBlk:.0*$' /proc/self/status") == 0
    assert run("sh", "-c", "grep 'SigIgn:' /proc/self/status | grep -q '0000$'") == 0


@pytest.mark.slow
def test_output_may_go_elsewhere(tmp_path: Path) -> None:
    with open(tmp_path / "out", "w") as out:
        assert run("echo", "hi", stdout=out.fileno()) == 0
    assert (tmp_path / "out").read_text() == "hi\n"


@pytest.mark.slow
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


INIT = """
import os, signal, sys, time
from poolctl.cli.commands.run import continue_in_child
continue_in_child({limit})
{child}
"""


def as_first_process(child: str, *, limit: float = 30.0) -> subprocess.Popen[str]:
    """A process that behaves as PID 1 of a container does, around this child."""
    script = INIT.format(limit=limit, child=child)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("child", "code"), [("sys.exit(0)", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)]
)
def test_first_process_of_a_container_exits_as_its_child_does(child: str, code: int) -> None:
    with as_first_process(child) as first:
        assert first.wait(60) == code


@pytest.mark.slow
def test_first_process_passes_on_what_it_is_sent_and_reaps_meanwhile() -> None:
    child = """
def came(number, frame):
    os.write(1, f"{signal.Signals(number).name}\\n".encode())
    if number == signal.SIGTERM:
        sys.exit(9)
for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, came)
if not os.fork():
    os._exit(0)
os.wait()
print("up", flush=True)
while True:
    time.sleep(0.01)
"""
    with as_first_process(child) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "up\n"
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
            first.send_signal(number)
            assert first.stdout.readline() == f"{number.name}\n"
        assert first.wait(60) == 9


@pytest.mark.slow
def test_first_process_leaves_a_child_that_does_not_end_after_the_limit() -> None:
    child = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(60)"
    with as_first_process(child, limit=0.2) as first:
        assert first.stdout is not None
        pid = int(first.stdout.readline())
        begun = time.monotonic()
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 137
        assert time.monotonic() - begun < 30
        os.kill(pid, signal.SIGKILL)


def raised(*numbers: int) -> list[str]:
    """What these signals raise, one after the other, while a pool runs in the foreground."""
    found = []
    for number in numbers:
        try:
            os.kill(os.getpid(), number)
            time.sleep(0)
            found.append("")
        except (KeyboardInterrupt, Terminated) as ended:
            found.append(type(ended).__name__)
    return found


def test_each_signal_that_ends_it_raises_again_and_afterwards_all_are_as_before() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGIO)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignalRaiser() as signals:
        assert raised(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGINT) == [
            "KeyboardInterrupt", "Terminated", "Terminated", "Terminated", "KeyboardInterrupt",
        ]  # fmt: skip
        assert not signals.interrupted
    assert [signal.getsignal(number) for number in numbers] == before


class Finalized:
    """Gets a signal while it is freed, where Python discards every exception."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated), (signal.SIGIO, Terminated)],
)
def test_signal_whose_exception_is_discarded_raises_again(number: int, expected: type[BaseException]) -> None:
    reads, writes = os.pipe()
    closing = threading.Timer(10, os.close, [reads])
    closing.start()

    def wait_with_discarded_signal(signals: StopSignalRaiser) -> None:
        Finalized(number)
        signals.wait_for_closed_pipe(writes)

    with StopSignalRaiser() as signals:
        with pytest.raises(expected):
            wait_with_discarded_signal(signals)
        closing.cancel()
    os.close(reads)
    os.close(writes)


def test_other_discarded_errors_are_reported_as_before() -> None:
    class Failing:
        def __del__(self) -> None:
            raise ValueError("discarded")

    seen: list[object] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda unraisable: seen.append(unraisable.exc_type)
    try:
        with StopSignalRaiser():
            Failing()
    finally:
        sys.unraisablehook = before
    assert seen == [ValueError]


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignalRaiser():
            assert raised(signal.SIGHUP) == [""]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "interrupted"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_reader_that_is_gone_stops_it_and_the_first_signal_after_that_does_no_more(
    number: int, interrupted: bool
) -> None:
    with StopSignalRaiser() as signals:
        assert raised(signal.SIGIO) == ["Terminated"]
        assert raised(signal.SIGIO) == [""]
        assert raised(number) == [""]
        assert signals.interrupted is interrupted
        assert raised(signal.SIGTERM, signal.SIGINT) == ["Terminated", "KeyboardInterrupt"]
    with StopSignalRaiser() as signals:
        assert raised(signal.SIGINT, signal.SIGIO) == ["KeyboardInterrupt", ""]
    with StopSignalRaiser():
        assert raised(signal.SIGIO) == ["Terminated"]
        assert raised(signal.SIGALRM) == ["Terminated"]


def test_lost_output_is_reported_from_any_thread() -> None:
    reads, writes = os.pipe()
    with StopSignalRaiser() as signals:
        printer = threading.Timer(0.05, StopSignalRaiser.stop_for_lost_output)
        with pytest.raises(Terminated):
            wait_for_closed_pipe(signals, writes, printer)
        printer.join()
    os.close(reads)
    os.close(writes)


def test_first_signal_waits_for_the_end_of_a_deferring_block_and_the_second_does_not() -> None:
    seen: list[str] = []

    def whole() -> None:
        with deferred_signals():
            assert raised(signal.SIGTERM) == [""]
            seen.append("whole")

    def broken_off() -> None:
        with deferred_signals():
            assert raised(signal.SIGTERM, signal.SIGINT) == ["", "KeyboardInterrupt"]
            seen.append("broken off")

    with StopSignalRaiser():
        for block in (whole, broken_off):
            with pytest.raises(Terminated):
                block()
        with deferred_signals():
            seen.append("without")
        assert raised(signal.SIGTERM) == ["Terminated"]
    assert seen == ["whole", "broken off", "without"]


def journal(seq: int, kind: str = "lifecycle", server: str = "web", **more: Any) -> dict[str, Any]:
    members = {"event": "worker ended", "time": "2026-01-31T12:00:00Z", "message": "", "severity": "info"}
    return {"seq": seq, "kind": kind, "server": server, **members, **more}


def test_each_problem_is_reported_once_with_its_level_and_deaths_are_kept(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "control.sock"
    sent = [
        journal(1),
        journal(2, cause="killed by SIGKILL", next="it is restarted at once"),
        journal(3, message="exited with status 7", next="it stays down: poolctl logs web"),
        journal(4, "recovery", message="restarted", severity="warning"),
        journal(5, "pool", "", message="the disk is full", severity="error"),
        journal(6, "pool", message="all is well"),
        journal(2, cause="killed by SIGKILL", next="it is restarted at once"),
    ]

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        for event in sent:
            send({"event": event})
        send({"notice": "waiting"})
        return result()

    reported: list[tuple[str, str]] = []
    with stand_in(path, answer) as requests:
        events = PoolEventFollower(
            Client(str(path)), lambda event, line, level: reported.append((line, level))
        )
        events.finish()
        events.finish()
    ((verb, body),) = requests
    assert (verb, body["options"]) == (
        "events", {"after": 0, "lines": MOST_LINES, "kind": ["lifecycle", "recovery", "pool"]},
    )  # fmt: skip
    assert reported[:2] == [
        ("web: killed by SIGKILL; it is restarted at once", "warning"),
        ("web: exited with status 7; it stays down: poolctl logs web", "error"),
    ]
    assert [(line.partition(":")[0], level) for line, level in reported[2:]] == [
        ("web", "warning"), (reported[3][0].partition(":")[0], "error"),
    ]  # fmt: skip
    assert "the disk is full" in reported[3][0]
    assert [each.reason for each in events.died["web"]] == ["killed by SIGKILL", "exited with status 7"]


def test_death_of_a_known_reason_does_not_repeat_it_where_this_is_wanted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "control.sock"
    causes = ["no disk", "no disk", "no memory"]

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        for at, cause in enumerate(causes, 1):
            send({"event": journal(at, cause=cause, next="restarting")})
        send({"event": journal(4, "pool", "", message="stopping: no memory", severity="error")})
        return result()

    lines: list[str] = []
    with stand_in(path, answer):
        events = PoolEventFollower(
            Client(str(path)), lambda event, line, level: lines.append(line), brief=True
        )
        events.finish()
    assert lines == [
        "web: no disk; restarting", "web: died again for the same reason; restarting", "web: no memory; restarting",
        "worker ended: stopping",
    ]  # fmt: skip
    assert [each.reason for each in events.died["web"]] == causes


def test_events_are_followed_again_where_they_ended_when_the_supervisor_is_replaced(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_command, "_RETRY_SECONDS", 0.001)
    path = tmp_path_factory.mktemp("s") / "control.sock"

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        send({"event": journal(len(requests), cause="x", next="y")})
        return None

    with stand_in(path, answer) as requests:
        events = PoolEventFollower(Client(str(path)), lambda event, line, level: None)
        events.start()
        wait_until(lambda: len(requests) >= 3)
        events.finish()
        asked = [body["options"] for _, body in requests]
    kinds = {"kind": ["lifecycle", "recovery", "pool"]}
    assert asked[0] == {"lines": 0, "follow": True, **kinds}
    assert asked[1] == {"after": 1, "lines": MOST_LINES, "follow": True, **kinds}
    assert asked[2]["after"] == 2


class Session:
    """A `run` of these words, whose supervisor answers what the test tells it to."""

    def __init__(self, directory: Path, *words: str, command: tuple[str, ...] = ()) -> None:
        request = parse_simple_command_line(["run", *words])
        assert request is not None
        place = directory / "run" / pool_key(str(directory / "pool.toml"))
        self.pool = PoolRef([str(directory / "pool.toml")], str(place))
        self.run = RunSession(request, self.pool, [*command], None, wakeup=-1)


STATES = [("running", True), ("disabled", False), ("sleeping", False)]


@pytest.mark.parametrize(
    ("words", "env", "objects"),
    [
        ((), "", False),
        ((), "json", True),
        (("--log-format", "text"), "json", False),
        (("--log-format", "json"), "", True),
    ],
)
def test_form_of_the_logs_is_that_of_the_option_before_that_of_the_environment(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...], env: str, objects: bool,
) -> None:  # fmt: skip
    monkeypatch.setenv("POOLCTL_LOG_FORMAT", env)
    Session(directory, *words).run.say("hello")
    said = capsys.readouterr().err
    assert (json.loads(said)["message"] if objects else said) == ("hello" if objects else "hello\n")
    Session(directory, "--quiet", *words).run.say("hello")
    assert capsys.readouterr().err == ""


def test_unknown_form_of_the_logs_is_refused(directory: Path) -> None:
    with pytest.raises(UsageError, match="--log-format: unknown value 'yaml'"):
        Session(directory, "--log-format", "yaml")


def test_requests_are_logged_in_a_terminal_unless_they_are_not_wanted(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def added(*words: str, command: tuple[str, ...] = ()) -> dict[str, str]:
        found = Session(directory, *words, command=command).run.supervisor_environment()
        return {name: value for name, value in found.items() if os.environ.get(name) != value}

    assert added() == {}
    assert added("--no-access-log") == {NO_ACCESS_LOG_VARIABLE: "1"}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert added() == {ACCESS_LOG_VARIABLE: "1"}
    assert added("--no-access-log") == {NO_ACCESS_LOG_VARIABLE: "1"}
    assert added("-o", "json") == added(command=("pytest",)) == {}


ORDERS: list[tuple[dict[str, Any], tuple[str, ...], bool, int]] = [
    ({"items": [item_of("web")]}, (), True, 0),
    ({"items": []}, (), False, 5),
    ({"items": []}, ("--allow-empty",), True, 0),
    ({"items": [], "without_servers": True}, (), True, 0),
    ({"items": [item_of("web", state="failed")], "exit_code": 1}, (), False, 1),
    ({"items": [item_of("web"), item_of("api", state="failed")], "exit_code": 1}, (), True, 1),
    ({"items": [item_of("web", state="backoff")], "exit_code": 1}, (), True, 1),
    ({"items": [item_of("web")], "exit_code": 4}, (), False, 4),
]


@pytest.mark.parametrize(("answer", "words", "stays", "code"), ORDERS)
def test_pool_stays_if_there_is_something_to_wait_for(
    directory: Path,
    supervised: Supervised,
    answer: dict[str, Any],
    words: tuple[str, ...],
    stays: bool,
    code: int,
) -> None:
    async def reply(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "start":
            send({"warning": "slow"})
        return {
            "errors": [],
            "warnings": ["slow", "old"],
            "exit_code": 0,
            **(answer if verb == "start" else {"items": []}),
        }

    with supervised(reply):
        session = Session(directory, "-o", "json", *words).run
        assert session.start_and_may_continue() is stays
        session.stop(0)
    assert session.outcome.exit_code == code
    if code != 5:
        assert session.outcome.warnings == ["slow", "old"]
    with supervised(reply):
        around = Session(directory, "-o", "json", *words, command=("true",)).run
        assert around.start_and_may_continue() is (stays and not code)
        around.stop(0)


def test_problems_are_reported_when_they_come_and_json_has_them_at_the_end(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (((), True), (("-o", "json"), False)):
        session = Session(directory, *words).run
        session.outcome = Outcome(errors=[error(1, "exited")], warnings=["slow"], exit_code=1)
        session.flush_diagnostics()
        assert ("exited" in capsys.readouterr().err) is said
        assert bool(session.outcome.errors) is bool(session.outcome.warnings) is not said
        assert session.outcome.exit_code == 1


def test_status_of_the_pool_is_that_of_a_mandatory_server_that_failed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(directory)
    assert session.run.pool_exit_status_or(3) == 3
    Path(session.pool.directory).mkdir(parents=True)
    write_exit(session.pool.directory, status=42, reason="main has failed", keeper_pid=0)
    assert session.run.pool_exit_status_or(3) == 42
    assert capsys.readouterr().err == "the pool has ended: main has failed\n"


@pytest.mark.slow
def test_pool_runs_in_the_foreground_until_it_is_interrupted(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    with (real_pool.directory / "hello.py").open("a") as file:
        file.write("print('the application is there', flush=True)\n")
    running = real_pool.spawn("run")
    assert running.stderr is not None
    assert running.stdout is not None
    lines = iter(running.stderr.readline, "")
    seen = [next(lines)]
    while "Ctrl-C to stop" not in seen[-1]:
        seen.append(next(lines))
    assert seen[-1] == "1 server ready, Ctrl-C to stop\n"
    assert any(f":{real_pool.ports['web']}" in line for line in seen)
    assert running.stdout.readline() == "web | the application is there\n"
    second = real_pool.run("run")
    assert (second.code, "a supervisor is already running for this pool" in second.stderr) == (8, True)
    assert "stop it with poolctl stop" in second.stderr
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    assert not real_pool.processes()


def test_command_that_cannot_be_run_is_named_with_the_fix(directory: Path) -> None:
    (directory / "script").write_text("#!/bin/sh\n")
    for name, code, message, hint in (
        ("no-such-command", 127, "no-such-command: command not found", "is it in $PATH?"),
        ("./no-such-file", 127, "./no-such-file: file not found", "check the path"),
        ("./script", 126, "./script: is not executable", "chmod +x ./script"),
        ("/", 126, "/: is a directory", "name a program in it"),
    ):
        with pytest.raises(Failure) as raised:
            program([name], dict(os.environ))
        (error,) = raised.value.outcome.errors
        assert (raised.value.outcome.exit_code, error.message, error.hint) == (code, message, hint)


@pytest.mark.slow
def test_command_runs_with_its_pool_and_its_failure_shows_what_the_servers_wrote_last(
    real_pool: RealPool,
) -> None:
    real_pool.write_hello("web")
    with (real_pool.directory / "hello.py").open("a") as file:
        file.write("print('the application is there', flush=True)\n")
    done = real_pool.run("run", "--", "sh", "-c", "echo $POOLCTL_PORT_WEB; exit 7")
    assert (done.code, done.stdout) == (7, f"{real_pool.ports['web']}\n")
    assert "of web:\n" in done.stderr
    assert "web | the application is there\n" in done.stderr
    done = real_pool.run("run", "-o", "json", "--", "sh", "-c", "echo hi")
    assert (done.code, [each["name"] for each in done.json["items"]]) == (0, ["web"])
    assert "hi\n" in done.stderr
    assert "web |" not in done.stderr
    done = real_pool.run("run", "--", "no-such-command")
    assert (done.code, "no-such-command: command not found" in done.stderr) == (127, True)
    assert not real_pool.processes()


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        ((), "web: killed\\x1b\n"),
        (("--quiet",), ""),
        (("--log-format", "json"), {"time": "2026-01-31T12:00:00Z", "server": "web", "message": "web: killed\x1b",
                                    "level": "warning"}),
    ],
)  # fmt: skip
def test_problem_of_a_server_is_printed_between_its_output(
    directory: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], printed: Any
) -> None:
    session = Session(directory, *words).run
    session._print_event(JournalEvent.from_json(journal(1)), "web: killed\x1b", "warning")
    said = capsys.readouterr().err
    assert (json.loads(said) if isinstance(printed, dict) else said) == printed


class Launched:
    """What `run` launches: a stand-in for the supervisor, which ends when the test or an answer ends it."""

    def __init__(self, directory: Path, answers: dict[str, Any]) -> None:
        self.place = directory / "run" / pool_key(str(directory / "pool.toml"))
        self.answers = answers
        self.launches: list[tuple[list[str], dict[str, str]]] = []
        self.error = io.StringIO()
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self._stack = ExitStack()
        self._reads = -1

    def launch(self, files: list[str], env: Any, *, lifeline: bool) -> tuple[int, int]:
        assert lifeline
        self.launches.append((files, dict(env)))
        self.place.mkdir(parents=True, mode=0o700)
        self.requests = self._stack.enter_context(stand_in(self.place / "control.sock", self._answer))
        self._reads, writes = os.pipe()
        return 0, writes

    async def _answer(self, verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        found = self.answers.get(verb, result())
        if callable(found):
            found = found(body)
        return found if isinstance(found, dict) else None

    def end(self) -> None:
        os.close(self._reads)
        self._reads = -1

    def close(self) -> None:
        if self._reads >= 0:
            self.end()
        self._stack.close()

    @property
    def orders(self) -> list[tuple[str, Any]]:
        """The verbs that change something, with their options."""
        ordered = ("start", "stop", "reload")
        return [(verb, body.get("options")) for verb, body in self.requests if verb in ordered]

    def when_ready(self, act: Callable[[], object]) -> threading.Thread:
        """Act in a thread once the pool stays."""

        def wait() -> None:
            wait_until(lambda: "Ctrl-C to stop\n" in self.error.getvalue())
            act()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread


Launching = Callable[..., Launched]


@pytest.fixture
def launching(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Launching]:
    """`launching(verb=answer, …)`: what the next `run` launches; a function of the request may answer."""
    made: list[Launched] = []

    def prepare(**answers: Any) -> Launched:
        launched = Launched(directory, answers)
        made.append(launched)
        monkeypatch.setattr("poolctl.supervisor.launch.launch", launched.launch)
        monkeypatch.setattr(sys, "stderr", launched.error)
        return launched

    yield prepare
    for each in made:
        each.close()


def interrupt(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


# A signal may raise between the opening of a connection and the block that closes it: `run` ends soon after.
closed_by_the_end = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


WEB = item_of("web")


def test_run_names_the_addresses_and_ends_with_its_pool(launching: Launching, directory: Path) -> None:
    gateway = {"state": "running", "addresses": ["http://127.0.0.1:80"], "problem": "", "routes": 1}
    launched = launching(start=result(WEB, gateway=gateway))
    thread = launched.when_ready(launched.end)
    assert main(["run"]) == 0
    thread.join()
    assert launched.error.getvalue() == (
        "web  http://127.0.0.1:8081\nthe gateway serves http://127.0.0.1:80\n1 server ready, Ctrl-C to stop\n"
    )
    ((files, env),) = launched.launches
    assert (files, env) == ([str(directory / "pool.toml")], dict(os.environ))
    assert [verb for verb, _ in launched.orders] == ["start", "stop"]
    assert launched.orders[1] == ("stop", {})
    verbs = [verb for verb, _ in launched.requests]
    assert verbs.count("events") >= 1
    assert verbs.count("show") == 1


@pytest.mark.parametrize(
    ("items", "line"),
    [
        ([WEB, item_of("off", state="disabled", ready=False), item_of("x", state="sleeping", ready=False)],
         "1 server ready, Ctrl-C to stop"),
        ([WEB, item_of("tool", state="stopped", ready=False, on_demand=True)], "1 server ready, Ctrl-C to stop"),
        ([WEB, item_of("slow", ready=False)], "1 of 2 servers ready, Ctrl-C to stop"),
    ],
)  # fmt: skip
def test_ready_line_counts_the_servers_that_should_run(
    launching: Launching, items: list[dict[str, Any]], line: str
) -> None:
    launched = launching(start=result(*items))
    thread = launched.when_ready(launched.end)
    assert main(["run", "-o", "json"]) == 0
    thread.join()
    assert launched.error.getvalue() == f"{line}\n"


def test_exit_code_is_that_of_a_pool_that_ended_itself(launching: Launching) -> None:
    launched = launching(start=result(WEB))

    def end() -> None:
        write_exit(str(launched.place), status=9, reason="web has failed", keeper_pid=0)
        launched.end()

    thread = launched.when_ready(end)
    assert main(["run"]) == 9
    thread.join()
    assert launched.error.getvalue().splitlines()[-1] == "the pool has ended: web has failed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 0)])
def test_signal_stops_the_pool(launching: Launching, number: int, code: int) -> None:
    launched = launching(start=result(WEB))
    thread = launched.when_ready(lambda: interrupt(number))
    assert main(["run"]) == code
    thread.join()
    assert launched.orders[1:] == [("stop", {})]


@closed_by_the_end
def test_second_signal_kills_the_remaining_processes(launching: Launching) -> None:
    def stop(body: dict[str, Any]) -> dict[str, Any] | None:
        if body["options"]:
            return result()
        interrupt()
        return None

    launched = launching(start=result(WEB), stop=stop)
    thread = launched.when_ready(interrupt)
    assert main(["run"]) == 130
    thread.join()
    assert launched.orders[1:] == [("stop", {}), ("stop", {"kill": True, "deps": False})]
    assert launched.error.getvalue().splitlines()[-1] == "killing the remaining processes"


@closed_by_the_end
def test_third_signal_leaves_the_rest_to_the_keeper(launching: Launching) -> None:
    def stop(body: dict[str, Any]) -> None:
        interrupt(signal.SIGTERM)

    launched = launching(start=result(WEB), stop=stop)
    thread = launched.when_ready(interrupt)
    assert main(["run"]) == 130
    thread.join()
    assert launched.orders[1:] == [("stop", {}), ("stop", {"kill": True, "deps": False})]


def test_stop_that_takes_too_long_ends_in_a_kill(launching: Launching) -> None:
    launched = launching(start=result(WEB))

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "stop" and not body["options"]:
            await asyncio.Event().wait()
        return result(WEB) if verb == "start" else result()

    launched._answer = answer  # type: ignore[method-assign]
    thread = launched.when_ready(launched.end)
    begun = time.monotonic()
    assert main(["run", "--stop-timeout", "500ms"]) == 0
    thread.join()
    assert 0.25 <= time.monotonic() - begun < 30
    assert launched.orders[1:] == [("stop", {}), ("stop", {"kill": True, "deps": False})]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_start_that_fails_is_reported_and_everything_is_stopped(launching: Launching) -> None:
    error = {"code": 1, "error": "E", "name": "web", "message": "exited with status 3"}
    launched = launching(start=result(item_of("web", state="failed"), exit_code=1, errors=[error]))
    assert main(["run"]) == 1
    assert launched.error.getvalue() == "error: web: exited with status 3\n"
    assert launched.orders[1:] == [("stop", {})]


@pytest.mark.parametrize(
    ("raised", "words", "code", "said"),
    [
        (
            ControlError("no room", exit_code=7, hint="make some"),
            (),
            7,
            "error: no room\n  hint: make some\n",
        ),
        (KeyboardInterrupt(), (), 130, ""),
        (Terminated(), (), 0, ""),
        (Terminated(), ("--", "true"), 143, ""),
    ],
)
def test_launch_that_does_not_complete_ends_it(
    launching: Launching, monkeypatch: pytest.MonkeyPatch, raised: BaseException, words: tuple[str, ...],
    code: int, said: str,
) -> None:  # fmt: skip
    launched = launching()

    def fail(*args: object, **more: object) -> None:
        raise raised

    monkeypatch.setattr("poolctl.supervisor.launch.launch", fail)
    assert main(["run", *words]) == code
    assert launched.error.getvalue() == said


def test_reason_of_a_supervisor_that_did_not_start_is_what_it_wrote(
    launching: Launching, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = launching(start=lambda body: None)

    def launch(files: list[str], env: Any, *, lifeline: bool) -> tuple[int, int]:
        found = launched.launch(files, env, lifeline=lifeline)
        (launched.place / "supervisor.log").write_text("it is broken\n")
        return found

    monkeypatch.setattr("poolctl.supervisor.launch.launch", launch)
    assert main(["run"]) == 8
    assert launched.error.getvalue().startswith("error: the supervisor could not start: it is broken\n")


def test_hangup_reloads_under_a_service_manager(
    launching: Launching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notified = NotifySocket(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", notified.path)
    change = {"name": "web", "bind": "", "change": "restart", "keys": ["app"], "message": ""}
    launched = launching(start=result(WEB), reload=result(WEB, changes=[change]))

    def hang_up() -> None:
        interrupt(signal.SIGHUP)
        notified.await_line("READY=1", times=2)
        launched.end()

    thread = launched.when_ready(hang_up)
    assert main(["run"]) == 0
    thread.join()
    assert [line.partition("=")[0] for line in notified.lines] == [
        "READY", "STATUS", "RELOADING", "MONOTONIC_USEC", "READY", "STOPPING",
    ]  # fmt: skip
    assert "STATUS=1 server ready" in notified.lines
    notified.close()
    assert [verb for verb, _ in launched.orders] == ["start", "reload", "stop"]
    assert launched.error.getvalue().splitlines()[-2:] == ["~ web: app", "1 restarted"]


def test_reload_that_cannot_be_asked_for_is_reported(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(directory).run
    session.reload()
    for thread in [each for each in threading.enumerate() if each.name == "reload"]:
        thread.join(60)
    assert capsys.readouterr().err == "error: no supervisor is running for this pool\n  hint: poolctl start\n"


class Watcher:
    """Reports one change of the code, then fails to watch."""

    def __init__(self, request: Any, pool: PoolRef, say: Callable[[str], None], since: float) -> None:
        self.say = say

    def apply_changes(self, over: Callable[[], bool]) -> Iterator[Result]:
        assert not over()
        self.say("app.py has changed")
        yield from_json(Result, result(WEB))
        raise Failure(Outcome.failed(1, "too many directories"))


@pytest.mark.parametrize("quiet", [True, False])
def test_changes_are_watched_and_printed_if_this_is_wanted(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    monkeypatch.setattr(run_command, "PoolWatcher", Watcher)
    Session(directory).run.start_watcher()
    assert not [each for each in threading.enumerate() if each.name == "watch"]
    Session(directory, "--watch", *(["-q"] if quiet else [])).run.start_watcher()
    for thread in [each for each in threading.enumerate() if each.name == "watch"]:
        thread.join(60)
    lines = "" if quiet else "app.py has changed\n~ web: code\n"
    assert capsys.readouterr().err == f"{lines}error: too many directories\n"


@pytest.mark.parametrize(
    ("code", "failed", "named"),
    [(3, [], ["web", "api"]), (0, [], []), (130, [], []), (143, [], []), (0, ["api"], ["api"])],
)  # fmt: skip
def test_failure_of_the_command_or_of_servers_shows_their_last_lines(
    directory: Path, supervised: Supervised, capsys: pytest.CaptureFixture[str], code: int, failed: list[str],
    named: list[str],
) -> None:  # fmt: skip
    later = "2999-01-01T00:00:00.000000Z"
    for name in ("web", "api", "remote"):
        (directory / f"{name}.log").write_text(f"{later} of {name}\n")
    shown = [
        item_of(name, config={"log": {"path": str(directory / f"{name}.log")}}) for name in ("web", "api")
    ]
    remote = item_of("remote", config={"log": {"path": str(directory / "remote.log")}}, log_files=False)
    errors = [{"code": 1, "error": "E", "name": name, "message": "bad"} for name in failed]

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        if verb == "start":
            return result(item_of("web"), item_of("api"), item_of("remote"), errors=errors)
        return result(*shown, remote) if verb == "show" else result()

    with supervised(answer):
        session = Session(directory, command=("/bin/pytest",)).run
        session.start_and_may_continue()
        session.stop(code)
    capsys.readouterr()
    session.print_deaths_and_failure_logs()
    expected = "".join(f"last line of {name}:\n{name} | of {name}\n" for name in named)
    assert capsys.readouterr().err == expected


def test_last_lines_of_a_pool_that_has_ended_are_those_of_its_default_files(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(directory, command=("false",)).run
    session.servers = [from_json(Item, item_of(f"s{at}")) for at in range(12)]
    logs = Path(state_dir(os.environ, session.pool.key)) / "logs"
    logs.mkdir(parents=True)
    for at in range(12):
        (logs / f"s{at}.log").write_text("2999-01-01T00:00:00.000000Z a line\n")
    session.stop(1)
    session.print_deaths_and_failure_logs()
    assert capsys.readouterr().err == "".join(f"last line of s{at}:\ns{at} | a line\n" for at in range(10))
    quiet = Session(directory, "-q", command=("false",)).run
    quiet.servers = session.servers
    quiet.stop(1)
    quiet.print_deaths_and_failure_logs()
    assert capsys.readouterr().err == ""


def test_document_has_the_servers_as_they_were_stopped(directory: Path, supervised: Supervised) -> None:
    stopped = [item_of("web", state="stopped"), item_of("other", state="stopped")]

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        return result(*stopped) if verb == "stop" else result(item_of("web")) if verb == "start" else result()

    with supervised(answer):
        session = Session(directory, "-o", "json").run
        session.start_and_may_continue()
        session.stop(0)
    assert [(each.name, each.state) for each in session.outcome.items] == [("web", "stopped")]


@pytest.mark.parametrize(
    ("times", "objects", "line"),
    [
        (False, False, "web | a line\n"),
        (True, False, "web | 2999-01-01T00:00:00.000000Z a line\n"),
        (False, True, {"time": "2999-01-01T00:00:00.000000Z", "server": "web", "message": "a line"}),
    ],
)
def test_new_lines_of_the_servers_are_printed(
    directory: Path, supervised: Supervised, capsys: pytest.CaptureFixture[str], times: bool, objects: bool,
    line: Any,
) -> None:  # fmt: skip
    log = directory / "web.log"
    log.write_text("2020-01-01T00:00:00.000000Z an old line\n2999-01-01T00:00:00.000000Z a line\n")
    session = Session(directory)
    with supervised(always(item_of("web", config={"log": {"path": str(log)}}))) as requests:
        printer = LogPrinter(session.run.client, session.pool, times=times, objects=objects)
        printer.start()
        wait_until(lambda: requests)
        printer.finish()
    out = capsys.readouterr().out
    if isinstance(line, str):
        assert out == line
    else:
        assert json.loads(out) | line == json.loads(out)


def test_pool_ends_when_the_reader_of_its_lines_is_gone(
    directory: Path, supervised: Supervised, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = directory / "web.log"
    log.write_text("2999-01-01T00:00:00.000000Z a line\n")
    session = Session(directory)
    read, write = pipe
    os.close(read)
    with (
        open(write, "w", closefd=False) as stdout,
        supervised(always(item_of("web", config={"log": {"path": str(log)}}))),
        StopSignalRaiser(),
    ):
        monkeypatch.setattr(sys, "stdout", stdout)
        printer = LogPrinter(session.run.client, session.pool, times=False, objects=False)

        def print_and_wait() -> None:
            printer.start()
            threading.Event().wait(60)

        with pytest.raises(Terminated):
            print_and_wait()
        printer.finish()


def test_lines_of_a_pool_that_does_not_answer_are_not_printed(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(directory)
    printer = LogPrinter(session.run.client, session.pool, times=False, objects=False)
    printer.start()
    printer.finish()
    assert capsys.readouterr() == ("", "")
