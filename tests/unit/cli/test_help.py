"""The help of poolctl and of its commands: whole sentences, within eighty columns, with examples that are commands."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from poolctl.cli.command_line import Command, CommandRequest, as_help, command_named, names, split
from poolctl.cli.outcome import Outcome
from poolctl.cli.typer_app import FIRST_COMMANDS, FIRST_STEPS, build

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
    assert as_help(words) == option


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
    words, own_command = split(typed)
    REQUESTS.clear()
    APPLICATION.main(words, prog_name="poolctl", standalone_mode=False, obj=own_command)
    assert program == "poolctl"
    (request,) = REQUESTS
    assert request.verb == next(word for word in words if word in COMMANDS)
    assert "--" not in typed or request.get("command")
    request.selector()
    request.options()


def test_every_command_is_listed_under_one_heading(capsys: pytest.CaptureFixture[str]) -> None:
    APPLICATION.main(as_help(["help", "--all"]), prog_name="poolctl", standalone_mode=False)
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
    APPLICATION.main(as_help(["help"]), prog_name="poolctl", standalone_mode=False)
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
