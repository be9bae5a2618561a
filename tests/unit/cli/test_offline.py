"""A pool without a supervisor: its files, the selection of its servers, and the limit of regular expressions."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from .conftest import Command


def test_an_invalid_file_is_5_with_every_problem(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text('[[server]]\nname = "a"\nbinf = "x"\nworkers = -1\n')
    for command in ("list", "show", "config", "walk", "logs", "validate"):
        said = poolctl(command, "-o", "json")
        assert said.code == 5, command
        assert len(said.json["errors"]) >= 2, command
        assert {error["code"] for error in said.json["errors"]} == {1322}, command
    text = poolctl("list")
    assert "pool.toml:3" in text.err
    assert text.out == ""


def test_no_server_at_all_is_a_problem_unless_allowed(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text('[pool]\nname = "x"\n')
    said = poolctl("validate")
    assert (said.code, "no server" in said.out) == (5, True)
    assert poolctl("validate", "--allow-empty").out == "0 servers, ok\n"
    assert poolctl("list").code == 5
    nothing = poolctl("list", "--allow-empty")
    assert nothing == (0, "", "note: the pool has no servers\n")
    assert poolctl("list", "--allow-empty", "--tag", "x").err == "note: no server matches\n"
    assert poolctl("list", "--allow-empty", "-q").err == ""


SLOW = "^(a+)+$"
POOL = f'[[server]]\nname = "{"a" * 34}b"\nbind = "127.0.0.1:8081"\ncommand = ["sleep", "60"]\n'


@pytest.mark.parametrize(
    "line",
    [["list", "--name", SLOW], ["filter", "name", "--regex", SLOW], ["remove", "--name", SLOW, "--save"]],
    ids=" ".join,
)  # fmt: skip
def test_an_expression_that_takes_too_long_is_a_usage_error(
    poolctl: Command, directory: Path, line: list[str]
) -> None:
    (directory / "pool.toml").write_text(POOL)
    before = signal.getsignal(signal.SIGVTALRM)
    said = poolctl(*line)
    assert (said.code, said.out) == (2, "")
    assert "a regular expression takes more than" in said.err
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert poolctl("list", "--name", "^a+b$").code == 0


def test_search_in_logs_is_bounded_in_each_line_and_not_in_all(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text(POOL + 'log = { path = "own.log" }\n')
    (directory / "own.log").write_text("short\n" * 2000 + f"{'a' * 40}b\n")
    before = signal.getsignal(signal.SIGVTALRM)
    said = poolctl("logs", "--grep", SLOW)
    assert (said.code, said.out) == (2, "")
    assert "--grep: the regular expression takes more than" in said.err
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGVTALRM) == before
    assert poolctl("logs", "--grep", "^a+b$").out.endswith("ab\n")
