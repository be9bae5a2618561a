"""The command `run`: what it checks, and what it launches."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from poolctl.cli.commands.run import program, supervisor_environment
from poolctl.cli.main import main
from poolctl.cli.outcome import Failure
from poolctl.control.pool_paths import ACCESS_LOG_VARIABLE
from poolctl.runners.worker_spec import NO_ACCESS_LOG_VARIABLE
from tests.real_pool import RealPool


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


def test_requests_are_logged_in_a_terminal_unless_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def added(*, no_access_log: bool = False, prints_logs: bool = True) -> dict[str, str]:
        found = supervisor_environment(no_access_log=no_access_log, prints_logs=prints_logs)
        return {name: value for name, value in found.items() if os.environ.get(name) != value}

    assert added() == {}
    assert added(no_access_log=True) == {NO_ACCESS_LOG_VARIABLE: "1"}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert added() == {ACCESS_LOG_VARIABLE: "1"}
    assert added(no_access_log=True) == {NO_ACCESS_LOG_VARIABLE: "1"}
    assert added(prints_logs=False) == {}


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
    assert "hint: poolctl stop ends it" in second.stderr
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


def test_launch_that_fails_is_reported(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (directory / "run").touch()
    assert main(["run"]) == 7
    path = directory / "run"
    message = f"error: {path} is not a directory\n  hint: mv {path} {path}.old\n"
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--log-format", "yaml"), "--log-format: unknown value 'yaml'"),
        (("--timeout", "soon"), "--timeout"),
        (("--name", "("), "invalid regular expression"),
    ],
)
def test_wrong_value_is_refused_before_anything_is_launched(
    directory: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    assert main(["run", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (directory / "run").exists()
