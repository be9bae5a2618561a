"""The command's last word: one line, one exit code, never a traceback."""

from __future__ import annotations

import fcntl
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
from tests.deadline import wait_until

from .conftest import Command

POOLCTL = [sys.executable, "-m", "poolctl"]


def break_listing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(request: object) -> None:
        raise error

    monkeypatch.setattr("poolctl.cli.commands.list.perform", fail)


def test_an_unexpected_error_is_one_line_that_says_where_to_report_it(
    poolctl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_listing(monkeypatch, RuntimeError("first\nsecond"))
    said = poolctl("list")
    assert said.code == 1
    assert said.err.splitlines()[0] == "error: internal error (RuntimeError: first)"
    assert "POOLCTL_DEBUG=1" in said.err
    assert "Traceback" not in said.err
    assert poolctl("list", "-o", "json").json["errors"][0]["error"] == "ErrorUnexpected"
    monkeypatch.setenv("POOLCTL_DEBUG", "1")
    assert "Traceback" in poolctl("list").err


def test_missing_part_of_the_installation_is_named_with_the_way_to_repair_it(
    poolctl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_listing(monkeypatch, ModuleNotFoundError("No module named 'pydantic'"))
    said = poolctl("list")
    assert said.code == 1
    assert (
        "installation of poolctl is incomplete (ModuleNotFoundError: No module named 'pydantic')" in said.err
    )
    assert "pip install --force-reinstall poolctl" in said.err
    assert "report this" not in said.err


def test_an_interrupt_is_130_without_words(poolctl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    break_listing(monkeypatch, KeyboardInterrupt())
    assert poolctl("list") == (130, "", "")
    document = poolctl("list", "--output=json")
    assert document.code == 130
    assert document.json["errors"][0]["error"] == "ErrorInterrupted"


def test_a_reader_that_has_gone_is_no_failure(directory: Path) -> None:
    for command in (["list"], ["schema"], ["show"], ["walk", "--", "seq", "100000"], ["completion", "fish"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [*POOLCTL, *command], stdout=write, stderr=subprocess.PIPE, text=True, timeout=30
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, ""), command


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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_reported(directory: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*POOLCTL, "schema"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=30
        )
    assert done.returncode == 1
    assert done.stderr == "error: cannot write the output: No space left on device\n"


def test_streams_that_are_closed_are_no_matter(directory: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m poolctl list >&- 2>&- <&-; echo $?"],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "0\n"


def test_words_that_no_encoding_knows_are_still_printed(directory: Path) -> None:
    done = subprocess.run(
        [*POOLCTL, "list", b"\xff\xc3\xa4"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 4
    assert b"Traceback" not in done.stderr
    assert rb"\udcff" in done.stderr


def test_a_removed_working_directory_is_no_riddle(directory: Path) -> None:
    (directory / "gone").mkdir()
    done = subprocess.run(
        ["sh", "-c", f"cd gone; rmdir ../gone; {sys.executable} -m poolctl list"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr


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


def test_the_module_is_the_command(directory: Path) -> None:
    done = subprocess.run([*POOLCTL, "list", "-o", "json"], capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["items"]) == 2
    assert main(["list", "-o", "nonsense"]) == 2


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
        "  hint: here poolctl.Pool serves in a Python process, and validate, list, filter, config and schema work",
    ]


def test_on_windows_it_says_where_poolctl_runs(poolctl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    said = poolctl("list")
    assert (said.code, said.out) == (1, "")
    assert said.err == "error: poolctl does not run on Windows itself; it runs in WSL 2, which is a Linux\n"
