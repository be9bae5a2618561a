"""The fast lane is a shortcut, never another language: what it understands, the slow lane understands alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolctl.cli import table, tabulate
from poolctl.cli.app import FAST, perform_args
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.parse import parse
from poolctl.cli.request import Request

WORDS = st.sampled_from(["web", "*-api", "127.0.0.1:8081", "json", "5s", "(", "ready", "a=b", "ü", "-1", "-"])
EVERY_SPELLING = sorted(
    {*table.COMMON, *(s for options in [table.SHARED, *table.OWN.values()] for s in options)}
)


def shared(verb: str) -> dict[str, tuple[str, str]]:
    return table.SHARED if verb in table.WITH_TARGETS else {}


_taken: list[Request] = []


def _take(request: Request) -> Outcome:
    _taken.append(request)
    return Outcome()


def slow(args: list[str]) -> Request | str:
    """The request that Typer makes of a command line, or its complaint."""
    _taken.clear()
    try:
        perform_args(args, _take)
    except UsageError as wrong:
        return wrong.message
    return _taken[0]


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Command lines of the frequent commands, most of them valid, in every spelling of their options."""
    verb = draw(st.sampled_from(FAST))
    spellings = {**table.COMMON, **shared(verb), **table.OWN[verb]}
    before: list[str] = []
    after: list[str] = []
    for spelling in draw(st.lists(st.sampled_from(EVERY_SPELLING), max_size=4)):
        place = before if spelling in table.COMMON and draw(st.booleans()) else after
        _, kind = spellings.get(spelling, ("", "flag"))
        value = draw(WORDS)
        if kind == "flag":
            place += [spelling]
        elif draw(st.booleans()):
            place += [spelling, value]
        else:
            place += [f"{spelling}={value}" if spelling.startswith("--") else f"{spelling}{value}"]
    for word in draw(st.lists(WORDS, max_size=3)):
        after.insert(draw(st.integers(0, len(after))), word)
    if draw(st.booleans()) and verb in table.WITH_COMMAND:
        after += ["--", *draw(st.lists(WORDS, max_size=2)), "--x"]
    return [*before, verb, *after]


@given(command_lines())
@settings(max_examples=200, deadline=None)
def test_both_lanes_make_the_same_request_of_a_command_line(args: list[str]) -> None:
    fast = parse(args)
    if fast is not None:
        assert slow(args) == fast


@pytest.mark.parametrize("verb", FAST)
def test_every_option_is_understood_in_the_fast_lane(verb: str) -> None:
    for spelling, (key, kind) in {**table.COMMON, **shared(verb), **table.OWN[verb]}.items():
        target = ["web"] if verb in table.WITH_TARGETS else []
        args = [verb, *target, spelling] if kind == "flag" else [verb, *target, spelling, "x"]
        fast = parse(args)
        assert fast is not None, spelling
        assert fast.values[key] == {"flag": True, "value": "x", "list": ["x"]}[kind]
        assert slow(args) == fast


@pytest.mark.parametrize(
    "args",
    [[], ["-h"], ["list", "-h"], ["list", "--help"], ["lst"], ["list", "--", "web"], ["list", "-qv"],
     ["filter", "name"],
     ["list", "--stat", "x"], ["list", "-o"], ["list", ""], ["list", "-o", "-x"], ["--version"], ["-o", "json", "list"],
     ["list", "--not=1"], ["-"], ["wait", "--timeout", "-1"]],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_the_slow_lane(args: list[str]) -> None:
    assert parse(args) is None


def test_requests_do_not_share_their_lists() -> None:
    first = parse(["list"])
    assert first is not None
    first.values["tag"].append("x")
    assert parse(["list"]) != first


def test_the_table_is_the_one_that_the_application_makes() -> None:
    assert Path(str(table.__file__)).read_text() == tabulate.table(), (
        "run: python -m poolctl.cli.tabulate > table.py && mv table.py poolctl/cli/table.py"
    )


@pytest.mark.parametrize("verb", FAST)
def test_the_fast_lane_needs_the_standard_library_only(verb: str, tmp_path: Path) -> None:
    script = (
        "import sys; before = set(sys.modules); from poolctl.cli.main import main;"
        f"code = main([{verb!r}, '-c', 'pool.toml', '--pool', 'x']);"  # excluding each other: a usage error
        "assert code == 2, code; heavy = {'typer', 'pydantic', 'rich', 'yaml', 'asyncio', 'inspect', 'dataclasses'};"
        "found = heavy & (set(sys.modules) - before); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_options_are_accepted_before_and_after_the_targets() -> None:
    assert slow(["list", "--tag", "x", "web"]) == slow(["list", "web", "--tag", "x"])
    assert slow(["-c", "a", "--pool", "p", "show", "-c", "b"]) == slow(
        ["show", "-c", "a", "-c", "b", "--pool", "p"]
    )
    assert slow(["-q", "show"]) == slow(["show", "--quiet"])


def test_what_follows_two_hyphens_is_the_users_command() -> None:
    walk = slow(["walk", "web", "--jobs", "2", "--", "ls", "--color", "--", "x"])
    assert isinstance(walk, Request)
    assert (walk.get("targets"), walk.get("command")) == (["web"], ["ls", "--color", "--", "x"])
    run = slow(["-c", "walk", "run", "--", "list"])
    assert isinstance(run, Request)
    assert (run.verb, run.get("command")) == ("run", ["list"])
    shown = slow(["show", "--", "-odd"])
    assert isinstance(shown, Request)
    assert shown.get("targets") == ["-odd"]


Complaint = Callable[[list[str]], Any]


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["lst"], "no such command 'lst'", "did you mean 'list'?"),
        (["frobnicate"], "no such command 'frobnicate'", "poolctl -h"),
        (["list", "--heal"], "no such option: --heal", "did you mean --health?"),
        (["list", "--zzz"], "no such option: --zzz", "poolctl list -h"),
        (["list", "--tag"], "option '--tag' requires an argument", "poolctl list -h"),
        (["filter"], "missing argument 'FIELD'", "poolctl filter -h"),
        (["version", "x"], "got unexpected extra argument(s) (x)", "poolctl version -h"),
        (["list", "--not=1"], "option '--not' does not take a value", "poolctl list -h"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_mend(args: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        perform_args(args)
    assert (caught.value.message, caught.value.hint) == (message, hint)
