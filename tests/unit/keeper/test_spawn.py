"""What a program is started with, and rotating a file that running processes append to."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from poolctl.keeper.spawn import (
    MAX_SIZE_BYTES,
    CompanionSpec,
    copytruncate_if_large,
    spawn,
    start_detached,
    start_with_companions,
)
from tests.deadline import wait_until
from tests.descriptors import open_descriptors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "helpers.log"


def test_small_output_file_is_not_rotated(path: Path) -> None:
    path.write_bytes(b"x" * MAX_SIZE_BYTES)
    copytruncate_if_large(str(path))
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.slow
def test_reader_that_has_the_output_file_open_continues_in_it(path: Path) -> None:
    with path.open("ab", buffering=0) as before:
        for _ in range(3):
            before.write(b"".join(b"line %d\n" % number for number in range(150_000)))
            copytruncate_if_large(str(path))
        before.write(b"the last\n")
    assert path.read_bytes() == b"the last\n"
    old = Path(f"{path}.1")
    assert old.stat().st_size <= MAX_SIZE_BYTES + 100
    assert oct(old.stat().st_mode)[-3:] == "600"
    first, second, *_, last = old.read_text().splitlines()
    assert first.startswith("(")
    assert first.endswith(" bytes before this were left out)")
    assert second.startswith("line ")
    assert last == "line 149999"


def test_output_that_cannot_be_kept_is_dropped(path: Path) -> None:
    path.write_bytes(b"x" * (MAX_SIZE_BYTES + 1))
    Path(f"{path}.1").mkdir()
    copytruncate_if_large(str(path))
    assert path.stat().st_size == 0


def test_path_that_is_no_file_is_left_alone() -> None:
    copytruncate_if_large(os.devnull)


@pytest.fixture
def child(path: Path) -> Callable[..., dict[str, Any]]:
    """Starts a program that prints what it finds, with a line on its stderr too; returns both."""

    def start(*, session: bool = True, fds: Sequence[int] = (), **keys: Any) -> dict[str, Any]:
        pid = spawn(
            [sys.executable, "-c", FOUND], keys.pop("env", None), fds, str(path), session=session, **keys
        )
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, path.read_text()
        printed, error = path.read_text().splitlines()
        assert error == "on stderr"
        return {**json.loads(printed), "started": pid}

    return start


# Descriptors are found by trying each: a listing would show its own.
FOUND = """
import json, os, signal, sys
def opened(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
ignored = [n for n in (signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "input": os.readlink("/proc/self/fd/0"),
    "fds": [fd for fd in range(3, 64) if opened(fd)], "directory": os.getcwd(), "arguments": sys.argv[1:],
    "environment": dict(os.environ), "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "third": os.read(3, 100).decode() if opened(3) else None, "ignored": [int(n) for n in ignored],
}), flush=True)
print("on stderr", file=sys.stderr)
"""


def file_with(text: bytes) -> int:
    fd = os.memfd_create("given")
    os.pwrite(fd, text, 0)
    return fd


def test_program_appends_its_output_and_errors_to_its_file_and_reads_nothing(
    child: Callable[..., dict[str, Any]], path: Path
) -> None:
    assert child()["input"] == "/dev/null"
    assert oct(path.stat().st_mode)[-3:] == "600"
    before = path.read_text()
    pid = spawn(["/bin/sh", "-c", "echo more"], None, [], str(path), session=False)
    os.waitpid(pid, 0)
    assert path.read_text() == before + "more\n"


def test_program_may_print_to_a_descriptor() -> None:
    read, write = os.pipe()
    given = file_with(b"given")
    os.lseek(given, 0, os.SEEK_SET)
    pid = spawn(["/bin/sh", "-c", "cat <&3; echo error >&2"], None, [given], write, session=False)
    os.close(write)
    os.close(given)
    assert os.waitpid(pid, 0)[1] == 0
    with open(read, "rb") as printed:
        assert printed.read() == b"givenerror\n", "and no other copy of the pipe is left"


def test_program_has_the_given_descriptors_and_variables_only(child: Callable[..., dict[str, Any]]) -> None:
    given = [file_with(b"the first"), file_with(b"the second")]
    env = {"KEPT": "1", "SECRET": "2", "PATH": os.environ["PATH"]}
    try:
        found = child(fds=given, env=env, without=["SECRET"])
    finally:
        for fd in given:
            os.close(fd)
    others = [fd for fd in map(int, open_descriptors()) if 4 < fd < 64 and os.get_inheritable(fd)]
    assert (found["fds"], found["third"]) == ([3, 4, *sorted(others)], "the first")
    assert (found["environment"]["KEPT"], "SECRET" in found["environment"]) == ("1", False)


def test_descriptors_may_be_given_in_an_order_other_than_that_of_their_numbers(path: Path) -> None:
    one, other = sorted([file_with(b"low"), file_with(b"high")])
    try:
        # As many as needed that the numbers which they get are among those that they have.
        fds = [other, *[one] * other]
        assert spawn_and_read(path, fds) == "high"
    finally:
        os.close(one)
        os.close(other)


def spawn_and_read(path: Path, fds: list[int]) -> str:
    os.lseek(fds[0], 0, os.SEEK_SET)
    os.waitpid(spawn(["/bin/cat", "/dev/fd/3"], None, fds, str(path), session=True), 0)
    return path.read_text()


@pytest.mark.parametrize("session", [True, False])
def test_program_leads_a_session_only_when_it_should(
    child: Callable[..., dict[str, Any]], *, session: bool
) -> None:
    found = child(session=session)
    assert found["session"] == (found["started"] if session else os.getsid(0))


def test_program_starts_with_every_signal_at_its_default(child: Callable[..., dict[str, Any]]) -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        found = child()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in before.items():
            signal.signal(number, handler)
    # The interpreter itself ignores a broken pipe.
    assert (found["ignored"], found["blocked"]) == ([int(signal.SIGPIPE)], [])


def test_detached_program_is_no_child_and_may_be_started_beside_threads(tmp_path: Path) -> None:
    result = tmp_path / "result"
    saved = os.open(result, os.O_RDWR | os.O_CREAT)
    leaked = os.dup(saved)
    os.set_inheritable(leaked, True)
    code = f"import os; os.dup2(3, 1)\n{FOUND}"
    over = threading.Event()
    beside = threading.Thread(target=over.wait)
    beside.start()
    try:
        start_detached([sys.executable, "-c", code, "argument"], {"KEPT": "1"}, [saved])
    finally:
        over.set()
        beside.join()
        os.close(saved)
        os.close(leaked)
    found = json.loads(wait_until(lambda: result.read_text().endswith("\n") and result.read_text()))
    with pytest.raises(ChildProcessError):
        os.waitpid(found["pid"], 0)
    assert (found["directory"], found["fds"], found["arguments"]) == ("/", [3], ["argument"])
    assert found["environment"]["KEPT"] == "1"
    assert found["session"] not in (os.getsid(0), found["pid"])


def test_program_in_the_background_is_no_child_and_knows_its_companions(tmp_path: Path) -> None:
    result, output = tmp_path / "result", tmp_path / "companion.log"
    given = file_with(b"given")
    os.lseek(given, 0, os.SEEK_SET)
    saved = os.open(result, os.O_WRONLY | os.O_CREAT)
    companions = [
        CompanionSpec([sys.executable, "-c", FOUND], str(output), session=True, fds=[given]),
        CompanionSpec(["/does/not/exist"], str(tmp_path / "other.log"), session=True),
    ]
    code = f"import os; os.dup2(4, 1)\n{FOUND}"
    try:
        pid = start_with_companions(
            [sys.executable, "-c", code], dict(os.environ), [given, saved], companions
        )
    finally:
        os.close(given)
        os.close(saved)
    found = json.loads(wait_until(lambda: result.read_text().endswith("\n") and result.read_text()))
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, 0)
    assert (found["pid"], found["directory"], found["fds"]) == (pid, "/", [3, 4])
    assert found["session"] not in (os.getsid(0), pid), (
        "of a process that has ended: it never gets a terminal"
    )
    (argument,) = map(json.loads, found["arguments"])
    begun, failed = argument["pids"]
    assert failed == 0
    assert len(argument["open_files"]) == 2
    lines = wait_until(lambda: len(output.read_text().splitlines()) == 3 and output.read_text().splitlines())
    assert lines.count("on stderr") == 2, "the program's own errors are in its first companion's file"
    (described,) = (json.loads(line) for line in lines if line.startswith("{"))
    assert (described["pid"], described["session"], described["fds"]) == (begun, begun, [3])
    assert "/does/not/exist" in (tmp_path / "other.log").read_text()
