"""The fast lane is a shortcut, never another language: what it understands, the slow lane understands alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.cli.command_line import (
    COMMON,
    Command,
    CommandRequest,
    Option,
    command_named,
    names,
    parse,
    wants_json,
)
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.typer_app import perform_args
from tests.examples import examples

WORDS = st.sampled_from(["web", "*-api", "127.0.0.1:8081", "json", "5s", "(", "ready", "a=b", "ü", "-1", "-"])
COMMANDS: dict[str, Command] = {name: command for name in names() if (command := command_named(name))}
EVERY_SPELLING = sorted(
    {spelling for command in COMMANDS.values() for each in command.options for spelling in each.spellings}
)
# Commands that people and scripts call often: they need no more than the standard library.
FREQUENT = [*({"top"} & COMMANDS.keys()),
            "list", "status", "wait", "start", "stop", "restart", "run", "walk", "show", "logs", "events",
            "config", "validate", "reload", "scale", "drain", "undrain", "enable", "disable", "remove"]  # fmt: skip


def by_spelling(options: Sequence[Option]) -> dict[str, Option]:
    return {spelling: option for option in options for spelling in option.spellings}


_taken: list[CommandRequest] = []


def _take(request: CommandRequest) -> Outcome:
    _taken.append(request)
    return Outcome()


def slow(args: list[str]) -> CommandRequest | str:
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
    verb = draw(st.sampled_from(names()))
    spellings = by_spelling(COMMANDS[verb].options)
    before: list[str] = []
    after: list[str] = []
    for spelling in draw(st.lists(st.sampled_from(EVERY_SPELLING), max_size=4)):
        place = before if spelling in by_spelling(COMMON) and draw(st.booleans()) else after
        kind = spellings[spelling].kind if spelling in spellings else "flag"
        value = draw(WORDS)
        if kind == "flag":
            place += [spelling]
        elif draw(st.booleans()):
            place += [spelling, value]
        else:
            place += [f"{spelling}={value}" if spelling.startswith("--") else f"{spelling}{value}"]
    for word in draw(st.lists(WORDS, max_size=3)):
        after.insert(draw(st.integers(0, len(after))), word)
    if draw(st.booleans()) and COMMANDS[verb].takes_command:
        after += ["--", *draw(st.lists(WORDS, max_size=2)), "--x"]
    return [*before, verb, *after]


@given(command_lines())
@examples(200)
def test_both_lanes_make_the_same_request_of_a_command_line(args: list[str]) -> None:
    fast = parse(args)
    if fast is not None:
        assert slow(args) == fast


@pytest.mark.parametrize("verb", names())
def test_every_option_is_understood_in_the_fast_lane(verb: str) -> None:
    command = COMMANDS[verb]
    words = ["web" for argument in command.arguments if argument.required or argument.kind == "list"]
    for spelling, option in by_spelling(command.options).items():
        args = [verb, *words, spelling] if option.kind == "flag" else [verb, *words, spelling, "x"]
        fast = parse(args)
        assert fast is not None, spelling
        assert fast.values[option.key] == {"flag": True, "value": "x", "list": ["x"]}[option.kind]
        assert slow(args) == fast


@pytest.mark.parametrize(
    "args",
    [[], ["-h"], ["list", "-h"], ["list", "--help"], ["lst"], ["list", "--", "web"], ["list", "-qv"],
     ["filter"], ["version", "x"], ["init", "a", "b"],
     ["list", "--stat", "x"], ["list", "-o"], ["list", ""], ["list", "-o", "-x"], ["--version"], ["-o", "json", "list"],
     ["list", "--not=1"], ["-"], ["wait", "--timeout", "-1"]],
)  # fmt: skip
def test_unusual_spelling_is_left_to_the_slow_lane(args: list[str]) -> None:
    assert parse(args) is None


def test_requests_do_not_share_their_lists() -> None:
    first = parse(["list"])
    assert first is not None
    first.values["tag"].append("x")
    assert parse(["list"]) != first


@pytest.mark.parametrize("verb", FREQUENT)
def test_the_fast_lane_needs_the_standard_library_only(verb: str, tmp_path: Path) -> None:
    script = (
        "import sys; before = set(sys.modules); from poolctl.cli.main import main;"
        f"code = main([{verb!r}, '-c', 'pool.toml', '--pool', 'x']);"  # excluding each other: a usage error
        "assert code == 2, code; heavy = {'typer', 'pydantic', 'rich', 'yaml', 'asyncio'};"
        "found = heavy & (set(sys.modules) - before); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("verb", "expected"),
    [("list", []), ("start", []), ("stop", []), ("restart", []), ("wait", []), ("validate", []),
     ("status", []), ("show", ["server_answers"]), ("reload", [])],
)  # fmt: skip
def test_a_command_imports_only_the_answers_that_it_reads(verb: str, expected: list[str]) -> None:
    script = (
        f"import sys, poolctl.cli.commands.{verb};"
        "print(*sorted(name.rpartition('.')[2] for name in sys.modules if name.endswith('_answers')))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == expected, done.stderr


def test_stop_of_a_pool_that_is_not_running_needs_no_asyncio(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text("[[server]]\nname = 'a'\napp = 'a:app'\nbind = '127.0.0.1:0'\n")
    script = (
        "import sys; from poolctl.cli.main import main; code = main(['stop']);"
        "assert (code, 'asyncio' in sys.modules) == (0, False), code"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", ["-o=json", "-ojson", "-qo=json"])
def test_a_short_option_may_have_its_value_after_an_equals_sign(word: str) -> None:
    request = slow(["list", word])
    assert isinstance(request, CommandRequest)
    assert request.output == "json"
    assert parse(["list", word]) in (request, None)
    assert wants_json(["list", word])


def test_the_help_of_poolctl_reads_no_configuration_model() -> None:
    script = (
        "import sys; from poolctl.cli.main import main; main(['--help']);"
        "found = {'pydantic', 'yaml', 'asyncio', 'rich'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
