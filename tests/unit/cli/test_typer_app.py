"""Typer's part of the command line: the help, the requests that it makes, and wrong command lines with their fix."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from poolctl.cli.command_line import (
    Command,
    CommandRequest,
    command_named,
    help_as_option,
    names,
    split_off_user_command,
)
from poolctl.cli.outcome import Outcome, UsageError
from poolctl.cli.typer_app import (
    FIRST_COMMANDS,
    FIRST_STEPS,
    OTHER_COMMANDS,
    OTHER_OPTIONS,
    build,
    perform_args,
)
from tests.unit.cli.typer_lane import slow

REQUESTS: list[CommandRequest] = []


def note(request: CommandRequest) -> Outcome:
    REQUESTS.append(request)
    return Outcome()


APPLICATION: Any = build(note)  # made once: it takes a tenth of a second
COMMANDS: dict[str, Command] = {name: command for name in names() if (command := command_named(name))}
LINES = [*FIRST_STEPS, *(line for command in COMMANDS.values() for line in command.examples)]


@pytest.mark.parametrize(
    ("words", "option"),
    [(["help"], ["--help"]), (["help", "start"], ["start", "--help"]),
     (["-c", "help", "help"], ["-c", "help", "--help"]),
     (["list", "help"], ["list", "help"]), (["--", "help"], ["--", "help"]), ([], []), (["-c"], ["-c"])],
)  # fmt: skip
def test_help_command_equals_the_help_option(words: list[str], option: list[str]) -> None:
    assert help_as_option(words) == option


@pytest.mark.parametrize("verb", ["", *COMMANDS])
def test_the_help_fits_and_is_cut_nowhere(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    APPLICATION.main([*verb.split(), "--help"], prog_name="poolctl", standalone_mode=False)
    text = capsys.readouterr().out
    assert text
    for line in text.splitlines():
        assert len(line) <= 80
        assert "..." not in line.replace("TARGET...", "") or line.startswith("Usage: ")
        assert "<" not in line.replace("<name>", "")
    for line in COMMANDS[verb].examples if verb else FIRST_STEPS:
        assert f"    {line}\n" in text


@pytest.mark.parametrize("line", LINES)
def test_an_example_is_a_command_line(line: str) -> None:
    program, *typed = shlex.split(re.split(r"\s{2,}| && | >>? ", line)[0])
    words, own_command = split_off_user_command(typed)
    REQUESTS.clear()
    APPLICATION.main(words, prog_name="poolctl", standalone_mode=False, obj=own_command)
    assert program == "poolctl"
    (request,) = REQUESTS
    assert request.verb == next(word for word in words if word in COMMANDS)
    assert "--" not in typed or request.get("command")
    request.selector()
    request.verb_options()


def test_every_command_is_listed_under_one_heading(capsys: pytest.CaptureFixture[str]) -> None:
    APPLICATION.main(help_as_option(["help", "--all"]), prog_name="poolctl", standalone_mode=False)
    text = capsys.readouterr().out
    headings = [line for line in text.splitlines() if re.fullmatch(r"\S.*:", line)]
    assert headings == [
        "Get started:",
        "Lifecycle:",
        "Look:",
        "Change:",
        "Files:",
        "Machine:",
        "Global options:",
    ]
    assert all(len(re.findall(rf"^  {name} ", text, re.MULTILINE)) == 1 for name in COMMANDS)


def test_the_first_page_lists_what_a_newcomer_needs(capsys: pytest.CaptureFixture[str]) -> None:
    APPLICATION.main(help_as_option(["help"]), prog_name="poolctl", standalone_mode=False)
    text = capsys.readouterr().out
    assert {name for name in COMMANDS if re.search(rf"^  {name} ", text, re.MULTILINE)} == {
        *COMMANDS
    } & FIRST_COMMANDS
    assert "Machine:" not in text
    assert "help --all" in text


def test_the_own_options_of_a_command_come_before_those_of_the_selection(
    capsys: pytest.CaptureFixture[str],
) -> None:
    APPLICATION.main(["scale", "--help"], prog_name="poolctl", standalone_mode=False)
    text = capsys.readouterr().out
    assert text.startswith("Usage: poolctl scale [OPTIONS] [TARGET... N]\n")
    order = ["Arguments:", "Options:", "--save ", "Selection:", "--tag ", "--all ", "Global options:"]
    places = [text.index(f"\n{each}" if each[0] != "-" else f"\n  {each}") for each in order]
    assert places == sorted(places)


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
        (["help", "log"], "no such command 'log'", "here it is called: poolctl logs"),
        (["tail", "-n", "5"], "no such command 'tail'", "here it is called: poolctl logs -f"),
        (["stauts"], "no such command 'stauts'", "did you mean 'status'?"),
        (["pools", "--format", "x"], "no such option: --format", "here it is called: -o FORM"),
        (["run", "-d"], "no such option: -d", IN_BACKGROUND),
        (["start", "--detach"], "no such option: --detach", IN_BACKGROUND),
        (["list", "--all"], "no such option: --all", "without a selection, every server is meant"),
        (["drain", "--foo"], "no such option: --foo", "poolctl drain -h"),
        (["restart", "--no-wiat"], "no such option: --no-wiat", "did you mean --no-wait?"),
        (["pools", "x"], "got unexpected extra argument(s) (x)", "poolctl pools -h"),
        (["list", "--not=1"], "option '--not' does not take a value", "poolctl list -h"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_the_fix(args: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        perform_args(args)
    assert (caught.value.message, caught.value.hint) == (message, hint)


OF_OTHERS = [
    *(
        (word, f"poolctl {ours}")
        for word, ours in OTHER_COMMANDS.items()
        if ours != "top" or ours in COMMANDS
    ),
    *(
        (f"{'run' if ours == '--watch' else 'list'} {word}", ours)
        for word, (_, ours) in OTHER_OPTIONS.items()
    ),
]


@pytest.mark.parametrize(("words", "ours"), OF_OTHERS)
def test_word_of_another_tool_says_what_it_is_called_here(words: str, ours: str) -> None:
    with pytest.raises(UsageError) as caught:
        perform_args(words.split())
    assert caught.value.hint == f"here it is called: {ours}"


def test_without_words_the_first_page_goes_to_stderr_as_for_a_usage_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    REQUESTS.clear()
    outcome = perform_args([], note)
    out, err = capsys.readouterr()
    assert (outcome.exit_code, out, REQUESTS) == (2, "", [])
    assert err.startswith("Usage: poolctl [OPTIONS] COMMAND")
    assert all(line in err for line in FIRST_STEPS)


def test_request_has_no_values_of_options_that_only_print() -> None:
    request = slow(["list", "--quiet"])
    assert isinstance(request, CommandRequest)
    assert request.values.keys() & {"version", "help_all"} == set()
    assert request.quiet
