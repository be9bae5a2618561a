"""The fast lane is a shortcut, never another language: what it understands, the slow lane understands alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    near_word,
    parse,
    wants_json,
)
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.typer_app import OTHER_COMMANDS, perform_args
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


def test_options_are_accepted_before_and_after_the_targets() -> None:
    assert slow(["list", "--tag", "x", "web"]) == slow(["list", "web", "--tag", "x"])
    assert slow(["-c", "a", "--pool", "p", "show", "-c", "b"]) == slow(
        ["show", "-c", "a", "-c", "b", "--pool", "p"]
    )
    assert slow(["-q", "show"]) == slow(["show", "--quiet"])


def test_words_after_two_hyphens_are_the_users_command() -> None:
    walk = slow(["walk", "web", "--jobs", "2", "--", "ls", "--color", "--", "x"])
    assert isinstance(walk, CommandRequest)
    assert (walk.get("targets"), walk.get("command")) == (["web"], ["ls", "--color", "--", "x"])
    run = slow(["-c", "walk", "run", "--", "list"])
    assert isinstance(run, CommandRequest)
    assert (run.verb, run.get("command")) == ("run", ["list"])
    shown = slow(["show", "--", "-odd"])
    assert isinstance(shown, CommandRequest)
    assert shown.get("targets") == ["-odd"]


Complaint = Callable[[list[str]], Any]
MOVED = "options come after the command: poolctl"
IN_BACKGROUND = "poolctl start runs servers in the background, poolctl run in the foreground"


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["lst"], "no such command 'lst'", "did you mean 'list'?"),
        (["frobnicate"], "no such command 'frobnicate'", "poolctl -h"),
        (["list", "--heal"], "no such option: --heal", "did you mean --health?"),
        (["list", "--zzz"], "no such option: --zzz", "poolctl list -h"),
        (["list", "--tag"], "option '--tag' requires an argument", "poolctl list -h"),
        (["-o", "json", "validate"], "no such option: -o", f"{MOVED} validate -o json"),
        (["-c", "a b", "-n", "3", "logs", "x"], "no such option: -n", f"{MOVED} logs x -c 'a b' -n 3"),
        (["filter"], "missing argument 'FIELD'", "poolctl filter -h"),
        (["ps"], "no such command 'ps'", "here it is called: poolctl list"),
        (["help", "log"], "no such command 'log'", "here it is called: poolctl logs"),
        (["tail", "-n", "5"], "no such command 'tail'", "here it is called: poolctl logs -f"),
        (["stauts"], "no such command 'stauts'", "did you mean 'status'?"),
        (["list", "--format", "json"], "no such option: --format", "here it is called: -o FORM"),
        (["status", "--json"], "no such option: --json", "here it is called: -o json"),
        (["schema", "--json"], "no such option: --json", "poolctl schema -h"),
        (["start", "-f", "a.toml"], "no such option: -f", "here it is called: -c FILE"),
        (["run", "-d"], "no such option: -d", IN_BACKGROUND),
        (["start", "--detach"], "no such option: --detach", IN_BACKGROUND),
        (["list", "--all"], "no such option: --all", "without a selection, every server is meant"),
        (["drain", "--foo"], "no such option: --foo", "poolctl drain -h"),
        (["restart", "--no-wiat"], "no such option: --no-wiat", "did you mean --no-wait?"),
        (["version", "x"], "got unexpected extra argument(s) (x)", "poolctl version -h"),
        (["list", "--not=1"], "option '--not' does not take a value", "poolctl list -h"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_fix(args: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        perform_args(args)
    assert (caught.value.message, caught.value.hint) == (message, hint)


OF_OTHERS = ["ps", "ls", "up", "down", "describe", "delete", "rm", "kill", "tail", "log"]
OF_OTHERS += ["monit"] if "top" in COMMANDS else []


@pytest.mark.parametrize("word", OF_OTHERS)
def test_the_word_of_another_tool_is_answered_with_a_command_of_ours(word: str) -> None:
    assert word not in COMMANDS
    assert OTHER_COMMANDS[word].split()[0] in COMMANDS


@pytest.mark.parametrize("word", ["-o=json", "-ojson", "-qo=json"])
def test_a_short_option_may_have_its_value_after_an_equals_sign(word: str) -> None:
    request = slow(["list", word])
    assert isinstance(request, CommandRequest)
    assert request.output == "json"
    assert parse(["list", word]) in (request, None)
    assert wants_json(["list", word])


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [("--all", ["--health", "--tag"], ""), ("monit", ["init", "stop"], ""), ("--format", ["--not"], ""),
     ("zhs", ["bash", "zsh"], "zsh"), ("retsart", ["start", "restart"], "restart"), ("st", ["stop"], ""),
     ("sta", ["status", "start"], "start"), ("x", [], "")],
)  # fmt: skip
def test_a_guess_is_a_slip_of_the_finger_and_nothing_else(typed: str, known: list[str], meant: str) -> None:
    assert near_word(typed, known) == meant


def test_the_help_of_poolctl_reads_no_configuration_model() -> None:
    script = (
        "import sys; from poolctl.cli.main import main; main(['--help']);"
        "found = {'pydantic', 'yaml', 'asyncio', 'rich'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
