"""The command's last word: one line, one exit code, never a traceback."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from poolctl.cli.main import main
from poolctl.cli.report import explain
from poolctl.installation import reinstall_command
from tests.deadline import wait_until
from tests.stand_in import always, item

from .conftest import Command, Supervised

POOLCTL = [sys.executable, "-m", "poolctl"]


@pytest.mark.slow
def test_one_ctrl_c_ends_a_command_whose_reader_does_not_read(directory: Path) -> None:
    (directory / "pool.toml").write_text(
        '[[server]]\nname = "web"\nbind = "127.0.0.1:8081"\napp = "a:b"\nlog = { path = "web.log" }\n'
    )
    (directory / "web.log").write_text(
        "2026-01-01T00:00:00.000000Z a line\n" * 1000
    )  # 13 bytes each, with the name
    read, write = os.pipe()
    size = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [*POOLCTL, "logs", "-f", "-n", "1000"], stdout=write, stderr=subprocess.PIPE, text=True, env=env
    )
    os.close(write)
    wait_until(lambda: struct.unpack("i", fcntl.ioctl(read, termios.FIONREAD, bytes(4)))[0] > size - 13)
    process.send_signal(signal.SIGINT)
    try:
        assert process.communicate(timeout=60) == (None, "")
        assert process.returncode == 130
    finally:
        process.kill()
        os.close(read)


@pytest.mark.slow
def test_streams_that_are_closed_are_no_matter(directory: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m poolctl list >&- 2>&- <&-; echo $?"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "0\n"


@pytest.mark.slow
def test_words_that_no_encoding_knows_are_still_printed(directory: Path) -> None:
    done = subprocess.run(
        [*POOLCTL, "list", b"\xff\xc3\xa4"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 4
    assert b"Traceback" not in done.stderr
    assert rb"\udcff" in done.stderr


def in_a_removed_directory(directory: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    (directory / "gone").mkdir()
    command = f"cd gone; rmdir ../gone; {sys.executable} -m poolctl {arguments}"
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True)


def test_a_removed_working_directory_is_no_riddle(directory: Path) -> None:
    done = in_a_removed_directory(directory, "list")
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("named", ["../pool.toml", "$(dirname $PWD)/pool.toml"])
def test_a_file_is_read_from_a_working_directory_that_was_removed(directory: Path, named: str) -> None:
    (directory / "pool.toml").write_text('[[server]]\nname = "queue"\ncommand = ["sleep", "9"]\n')
    done = in_a_removed_directory(directory, f"-c {named} validate")
    assert (done.returncode, done.stdout) == (0, "1 server, ok\n"), done.stderr


def test_what_needs_the_working_directory_says_that_it_was_removed(directory: Path) -> None:
    done = in_a_removed_directory(directory, "init")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the working directory has been removed\n  hint: ")


def test_no_command_at_all_is_answered_with_the_help(poolctl: Command) -> None:
    said = poolctl()
    assert said.code == 2
    assert said.out == ""
    assert "Get started:" in said.err


@pytest.mark.parametrize("place", [[], ["start"], ["walk"]])
def test_help_is_a_result(poolctl: Command, place: list[str]) -> None:
    short, long = poolctl(*place, "-h"), poolctl(*place, "--help")
    assert short == long
    assert short.code == 0
    assert short.out.startswith("Usage: poolctl")


@pytest.mark.parametrize(
    "args",
    [
        ["-o", "json"],
        ["lst", "-o", "json"],
        ["list", "-ojson", "--nonsense"],
        ["list", "--output=json", "--name", "("],
        ["list", "--nonsense", "--output", "json"],
        ["filter", "-o", "json"],
        ["start", "--timeout", "soon", "-o", "json"],
    ],
)
def test_wrong_usage_is_a_document_where_json_was_asked_for(poolctl: Command, args: list[str]) -> None:
    said = poolctl(*args)
    assert said.code == 2
    assert said.json["items"] == []
    (error,) = said.json["errors"]
    assert (error["code"], error["error"]) == (2, "ErrorUsage")
    assert error["message"]


def test_json_of_the_users_own_command_is_not_ours(poolctl: Command) -> None:
    assert poolctl("walk", "nobody", "--", "x", "-o", "json").out == ""


@pytest.mark.parametrize("verb", ["start", "run", "restart"])
def test_without_linux_a_start_says_what_works_there(
    poolctl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "pool.toml").write_text('[[server]]\nname = "a"\nbind = "127.0.0.1:8081"\napp = "a:app"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "darwin")
    said = poolctl(verb)
    assert said.code == 1
    assert said.err.splitlines() == [
        "error: only Linux can run servers in processes of their own",
        "  hint: here poolctl.Pool serves in a Python process, and validate, list, filter and config work",
    ]


def test_on_windows_it_says_where_poolctl_runs(poolctl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    said = poolctl("list")
    assert (said.code, said.out) == (1, "")
    assert said.err == "error: poolctl does not run on Windows itself; it runs in WSL 2, which is a Linux\n"


REPORT = (
    "  hint: please report this to the project's issue tracker, with the output of POOLCTL_DEBUG=1 and "
    "poolctl doctor\n"
)
INSTALL = f"  hint: install it again: {reinstall_command()}; a running pool serves on\n"
INCOMPLETE = "error: this installation of poolctl is incomplete"


@pytest.mark.parametrize(
    ("error", "code", "err"),
    [
        (RuntimeError("first\nsecond"), 1, f"error: internal error (RuntimeError: first)\n{REPORT}"),
        (ModuleNotFoundError("no pydantic"), 1, f"{INCOMPLETE} (ModuleNotFoundError: no pydantic)\n{INSTALL}"),
        (SyntaxError("bad"), 1, f"{INCOMPLETE} (SyntaxError: bad)\n{INSTALL}"),
        (BrokenPipeError(), 0, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_exception_is_a_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, err: str
) -> None:
    assert (explain(error), *capsys.readouterr()) == (code, "", err)


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [(RuntimeError(), 1, "ErrorUnexpected"), (KeyboardInterrupt(), 130, "ErrorInterrupted")],
)
def test_exception_is_a_document_where_json_was_asked_for(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, name: str
) -> None:
    assert explain(error, words=["list", "-o", "json"]) == code
    assert json.loads(capsys.readouterr().out)["errors"][0]["error"] == name


def test_traceback_is_shown_for_a_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLCTL_DEBUG", "1")
    try:
        raise RuntimeError
    except RuntimeError as error:
        explain(error)
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "code"), [(["list"], 0), (["list", "nothing", "-o", "json"], 4)])
@pytest.mark.parametrize("is_full", [True, False])
def test_output_that_cannot_be_written_keeps_the_exit_code_of_a_failure(
    directory: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, is_full: bool
) -> None:
    read, write = os.pipe()
    os.close(read)
    with open("/dev/full" if is_full else write, "w") as stdout, contextlib.redirect_stdout(stdout):
        assert main(words) == (code or int(is_full))
    said = "error: cannot write the output: No space left on device\n"
    assert capsys.readouterr().err == (said if is_full else "")


def test_interrupt_while_another_one_is_reported_is_130() -> None:
    class Interrupted(io.StringIO):
        def write(self, text: str) -> int:
            raise KeyboardInterrupt

    with contextlib.redirect_stdout(Interrupted()):
        assert explain(KeyboardInterrupt(), words=["-o", "json"]) == 130


def test_changed_file_is_a_note(poolctl: Command, supervised: Supervised, directory: Path) -> None:
    changed = {"files": [f"{directory}/pool.toml"], "problem": None}
    with supervised(always(item("users"), changed=changed)):
        said = poolctl("list", "-o", "name")
    assert (said.code, said.out) == (0, "users\n")
    assert said.err.startswith("note: pool.toml has changed since the pool read it")


def test_closed_streams_are_replaced_and_unknown_characters_are_escaped(directory: Path) -> None:
    stderr = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(stderr):
        assert main(["list", "ä"]) == 4
        assert sys.stdout.name == os.devnull
        sys.stdout.close()
    stderr.flush()
    assert rb"\xe4" in stderr.buffer.getvalue()  # type: ignore[attr-defined]


CTRL_C = """\
import signal, weakref
from poolctl.cli.interrupts import install_ctrl_c, let_ctrl_c_raise

class Value: pass

def press(_=None): signal.raise_signal(signal.SIGINT)
def fail(_): raise ValueError("other error")

install_ctrl_c()
"""


@pytest.mark.parametrize(
    ("script", "out", "err"),
    [
        ("press()", "", ""),
        ("let_ctrl_c_raise()\ntry: press()\nexcept KeyboardInterrupt: print('cleaned up', flush=True)\npress()",
         "cleaned up\n", ""),
        ("let_ctrl_c_raise()\ntry: import interrupted_module\nfinally: print('raised', flush=True)", "", ""),
        ("let_ctrl_c_raise()\nvalue = Value()\nref = weakref.ref(value, press)\ndel value", "", ""),
        ("value = Value()\nref = weakref.ref(value, fail)\ndel value\npress()", "", "ValueError: other error\n"),
    ],
    ids=["at once", "the second one", "during an import", "where it cannot be raised", "after another error"],
)  # fmt: skip
def test_ctrl_c_ends_the_process_unless_a_command_cleans_up(
    directory: Path, script: str, out: str, err: str
) -> None:
    (directory / "interrupted_module.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    words = [sys.executable, "-c", f"{CTRL_C}{script}\nprint('goes on')"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, out)
    assert done.stderr.endswith(err) if err else not done.stderr
