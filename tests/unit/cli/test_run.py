"""The command `run`: what it checks, and what it launches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poolctl.cli.commands.run import program, supervisor_environment
from poolctl.cli.main import main
from poolctl.cli.outcome import Failure
from poolctl.control.pool_paths import ACCESS_LOG_VARIABLE
from poolctl.runners.worker_spec import NO_ACCESS_LOG_VARIABLE
from tests.terminal import Screen


def test_requests_are_logged_in_a_terminal_unless_they_are_not_wanted() -> None:
    def added(*, no_access_log: bool = False, prints_logs: bool = True) -> dict[str, str]:
        found = supervisor_environment(no_access_log=no_access_log, prints_logs=prints_logs)
        return {name: value for name, value in found.items() if os.environ.get(name) != value}

    assert added() == {}
    assert added(no_access_log=True) == {NO_ACCESS_LOG_VARIABLE: "1"}
    with Screen():
        assert added() == {ACCESS_LOG_VARIABLE: "1"}
        assert added(no_access_log=True) == {NO_ACCESS_LOG_VARIABLE: "1"}
        assert added(prints_logs=False) == {}


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
