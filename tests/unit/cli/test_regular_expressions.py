"""Regular expressions of a command line, matched against the files: bounded in time, and explained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .conftest import Command

HAS_END_OF_TEXT = pytest.mark.skipif(sys.version_info >= (3, 14), reason=r"this Python has \z")
POOL = f'[[server]]\nname = "{"a" * 34}b"\nbind = "127.0.0.1:8081"\ncommand = ["sleep", "60"]\n'


@pytest.mark.parametrize(
    ("expression", "fix"),
    [("[[:alpha:]]", "[A-Za-z]"), ("a[[:^digit:]]", "[^0-9]"), ("(?<x>a)", "(?P<name>"),
     (r"\p{Greek}", r"\w"), ("a(", "a(\n         ^"),
     pytest.param(r"users\z", r"\Z", marks=HAS_END_OF_TEXT)],
)  # fmt: skip
@pytest.mark.parametrize(
    "line", [["list", "--name"], ["filter", "name", "--regex"], ["logs", "--grep"]], ids=" ".join
)
def test_syntax_of_other_regex_dialects_is_explained(
    poolctl: Command, line: list[str], expression: str, fix: str
) -> None:
    said = poolctl(*line, expression)
    assert said.code == 2
    assert "invalid regular expression" in said.err
    assert fix in said.err


def test_an_escaped_bracket_is_no_class(poolctl: Command) -> None:
    assert poolctl("list", "--name", r"\[:alpha:]", "--allow-empty").code == 0


def test_many_asterisks_match_fast(poolctl: Command, directory: Path) -> None:
    (directory / "pool.toml").write_text(POOL)
    assert poolctl("list", "*a" * 12 + "*c").code == 4
    assert poolctl("list", "*a" * 12 + "*b").code == 0
