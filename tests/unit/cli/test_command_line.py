from __future__ import annotations

import os
from typing import Any

import pytest

from poolctl.cli.command_line import (
    DEFAULT_LINES,
    GOALS,
    HEALTH,
    STATES,
    CommandRequest,
    as_help,
    check_line_format,
    command_named,
    current_spellings,
    edit_distance,
    names,
    near_word,
    one_of,
    parse,
    saves,
    split,
    verb_of,
    wants_json,
)
from poolctl.cli.outcome import UsageError
from poolctl.selection.selector import SelectorError
from poolctl.states import State, Status


def test_the_words_are_those_of_the_states() -> None:
    assert set(STATES) == {str(state) for state in State}
    assert set(HEALTH) == {str(status) for status in Status}
    assert {*STATES, "ready", "healthy"} == set(GOALS)


@pytest.mark.parametrize(
    ("values", "output"),
    [
        ({}, ""),
        ({"output": "wide"}, "wide"),
        ({"output": "name, bind"}, "name,bind"),
        ({"field": "tags"}, "tags"),
    ],
)
def test_the_form_of_the_output(values: dict[str, Any], output: str) -> None:
    assert CommandRequest("list", values).output == output


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"output": "jso"}, "did you mean 'json'?"),
        ({"output": "name,colour"}, "one of: table"),
        ({"output": "name,table"}, "one of: table"),
        ({"field": "bindd"}, "did you mean 'bind'?"),
        ({"field": "name", "output": "json"}, "-o name"),
        ({"output": "toml"}, "one of: table"),
    ],
)
def test_a_form_that_does_not_exist_is_a_usage_error(values: dict[str, Any], hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        _ = CommandRequest("list", values).output
    assert caught.value.hint.startswith(hint)


def test_only_configuration_is_printed_as_toml() -> None:
    assert CommandRequest("config", {"output": "toml"}).output == "toml"


def test_durations_are_seconds_and_a_wrong_one_is_reported_with_its_option() -> None:
    assert CommandRequest("start", {"timeout": "1m30s"}).seconds("timeout") == 90
    assert CommandRequest("start", {"timeout": 0.25}).seconds("timeout") == 0.25
    assert CommandRequest("start", {}).seconds("timeout") is None
    for wrong in ("soon", "-1", "", "1e9999"):
        with pytest.raises(UsageError, match="--timeout"):
            CommandRequest("start", {"timeout": wrong}).seconds("timeout")


def test_the_supervisor_gets_the_options_of_the_command_line() -> None:
    request = CommandRequest("restart", {"timeout": "5s", "no_wait": True, "no_deps": False, "env": True})
    assert request.options() == {"timeout": 5, "wait": False, "deps": True, "env": dict(os.environ)}
    assert CommandRequest("wait", {"goal": "healthy"}).options() == {"timeout": None, "for": "healthy"}
    with pytest.raises(UsageError, match="--for"):
        CommandRequest("wait", {"goal": "christmas"}).options()


def test_the_selection_is_checked_before_anything_is_asked() -> None:
    selector = CommandRequest("list", {"targets": ["web"], "tag": ["a"], "invert": True}).selector()
    assert selector.to_dict()["targets"] == ["web"]
    assert selector.invert
    with pytest.raises(SelectorError):
        CommandRequest("list", {"name": ["("]}).selector()


def test_repr_of_a_request_shows_given_values() -> None:
    assert repr(CommandRequest("list", {"tag": ["a"], "quiet": False})) == "<Request list tag=['a']>"
    assert CommandRequest("list", {}) != CommandRequest("stop", {})


def test_near_words_are_suggested() -> None:
    assert one_of("--x", "bind", ("name", "bind")) == "bind"
    with pytest.raises(UsageError) as caught:
        one_of("--x", "nmae", ("name", "bind"))
    assert caught.value.hint == "did you mean 'name'?"


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({}, DEFAULT_LINES),
        ({"since": "5m"}, None),
        ({"lines": "all"}, None),
        ({"lines": "7", "since": "5m"}, 7),
    ],
)
def test_number_of_lines(values: dict[str, Any], lines: int | None) -> None:
    assert CommandRequest("logs", values).lines() == lines


def test_number_of_lines_has_nine_digits_at_most() -> None:
    assert CommandRequest("logs", {"lines": "9" * 9}).lines() == 999_999_999
    for wrong in ("9" * 10, "-1", "1.5", "many", "", "\u0663"):
        with pytest.raises(UsageError) as caught:
            CommandRequest("logs", {"lines": wrong}).lines()
        assert caught.value.hint == 'a number, or "all"'


def test_moment_is_a_time_or_a_duration_before_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    assert CommandRequest("logs", {}).moment("since") == ""
    assert CommandRequest("logs", {"since": "10m"}).moment("since") == "2023-11-14T22:03:20.000000Z"
    assert (
        CommandRequest("logs", {"until": "2026-01-31T13:00:00+01:00"})
        .moment("until")
        .startswith("2026-01-31T12:00:00")
    )
    for wrong in ("2026-13-01", "2026-", "yesterday"):
        with pytest.raises(UsageError, match=f"--since: '{wrong}' is not a time"):
            CommandRequest("logs", {"since": wrong}).moment("since")


def test_plain_command_line_is_parsed() -> None:
    request = parse(["-c", "a.toml", "list", "web", "db", "--tag=api", "--tag", "new", "-ojson", "-q"])
    assert request is not None
    assert (request.verb, request.values["targets"]) == ("list", ["web", "db"])
    assert (request.values["tag"], request.output, request.quiet) == (["api", "new"], "json", True)
    assert request.values["config"] == ["a.toml"]
    assert request.values["invert"] is False
    assert request.values["name"] == []


def test_arguments_are_taken_in_their_order() -> None:
    request = parse(["scale", "web", "4"])
    assert request is not None
    assert request.values["targets"] == ["web", "4"]
    command = parse(["run", "-t", "5s", "--", "pytest", "-x", "--", "more"])
    assert command is None or command.values["command"] == ["pytest", "-x", "--", "more"]
    without = parse(["run"])
    assert without is not None
    assert without.values["command"] == []


@pytest.mark.parametrize(
    "other",
    [
        [],
        [""],
        ["nonsense"],
        ["--help"],
        ["list", ""],
        ["list", "--unknown"],
        ["list", "--not=yes"],
        ["list", "--tag"],
        ["list", "--tag", ""],
        ["list", "--tag", "-x"],
        ["list", "--", "command"],
        ["version", "more"],
        ["init", "one", "two"],
    ],
)
def test_other_command_lines_are_left_to_typer(other: list[str]) -> None:
    assert parse(other) is None


def test_command_after_two_hyphens_is_the_users() -> None:
    assert split(["run", "-o=json", "--", "ls", "-o=json"]) == (
        ["run", "-ojson"],
        {"command": ["ls", "-o=json"]},
    )
    assert split(["run"]) == (["run"], {"command": []})
    assert split(["list", "--", "-x"]) == (["list", "--", "-x"], {})


@pytest.mark.parametrize(
    ("word", "replaced"),
    [
        ("-o=json", "-ojson"),
        ("-qo=json", "-qojson"),
        ("-o=", "-o="),
        ("-q=x", "-q=x"),
        ("--output=x", "--output=x"),
    ],
)
def test_short_option_takes_its_value_after_an_equals_sign(word: str, replaced: str) -> None:
    assert split(["list", word]) == (["list", replaced], {})


@pytest.mark.parametrize(
    ("words", "replaced"),
    [
        (["help"], ["--help"]),
        (["help", "--all"], ["--help-all"]),
        (["-q", "help", "export", "systemd"], ["-q", "export", "systemd", "--help"]),
        (["-c", "help", "list"], ["-c", "help", "list"]),
        (["list", "help"], ["list", "help"]),
        ([], []),
    ],
)
def test_help_is_an_option(words: list[str], replaced: list[str]) -> None:
    assert as_help(words) == replaced


@pytest.mark.parametrize(
    ("words", "verb"),
    [
        (["list"], "list"),
        (["-c", "list", "stop"], "stop"),
        (["--config=list", "stop"], "stop"),
        (["-q", "-v", "stop"], "stop"),
        (["-q", "--", "stop"], ""),
        (["-c"], ""),
        ([], ""),
    ],
)
def test_command_is_the_first_word_that_is_no_option_and_no_value(words: list[str], verb: str) -> None:
    assert verb_of(words) == verb


@pytest.mark.parametrize(
    "args", [["-o", "json"], ["--output", "json"], ["--output=json"], ["-ojson"], ["-qo=json"]]
)
def test_json_is_asked_for(args: list[str]) -> None:
    assert wants_json(["list", *args])
    assert wants_json([*args, "nonsense", "--", "x"])
    assert not wants_json(["run", "--", *args])


@pytest.mark.parametrize(
    "args", [["-o", "jsonl"], ["-o"], ["json"], ["--ojson"], ["ojson"], ["-o", "name", "json"]]
)
def test_json_is_not_asked_for(args: list[str]) -> None:
    assert not wants_json(["list", *args])


def test_old_spellings_are_replaced_with_a_note() -> None:
    commands = {name: command for name in names() if (command := command_named(name)) is not None}
    renamed = [
        (verb, old, option) for verb, each in commands.items() for option in each.own for old in option.old
    ]
    assert renamed
    for verb, old, option in renamed:
        new = option.spellings[0]
        words, notes = current_spellings(["-q", verb, f"{old}=x", "--", old])
        assert words == ["-q", verb, f"{new}=x", "--", old]
        assert notes == [f"{verb} {old} is called {new}; the next release does not accept {old}"]
        if option.takes_value:
            assert current_spellings([verb, old, old])[0] == [verb, new, old]
    assert current_spellings(["list", "--tag", "x"]) == (["list", "--tag", "x"], [])


def test_dry_run_of_a_live_change_needs_save() -> None:
    assert saves(CommandRequest("scale", {"dry_run": True, "save": True})) is True
    assert saves(CommandRequest("scale", {"save": False})) is False
    with pytest.raises(UsageError) as caught:
        saves(CommandRequest("scale", {"dry_run": True}))
    assert caught.value.hint == "add --save"


def test_lines_that_arrive_over_time_are_no_table() -> None:
    for form in (None, "json", "jsonl"):
        check_line_format(CommandRequest("logs", {"output": form}))
    with pytest.raises(UsageError, match="logs -o: unknown form 'name'"):
        check_line_format(CommandRequest("logs", {"output": "name"}))


@pytest.mark.parametrize(
    ("typed", "word", "count"),
    [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("abc", "", 3), ("ab", "ba", 1), ("abcd", "acbd", 1),
     ("kitten", "sitting", 3), ("ca", "abc", 3)],
)  # fmt: skip
def test_slips(typed: str, word: str, count: int) -> None:
    assert edit_distance(typed, word) == edit_distance(word, typed) == count


def test_near_word_is_a_beginning_or_has_few_slips() -> None:
    assert near_word("sta", ("status", "start", "stop")) == "start"
    assert near_word("st", ("status",)) == ""
    assert near_word("stopp", ("stop",)) == "stop"
    assert near_word("stxxp", ("stoap",)) == ""
    assert near_word("restxxt", ("restart",)) == "restart"
    assert near_word("--tga", ("--tag",)) == "--tag"
    assert near_word("list", ()) == ""


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [("--all", ["--health", "--tag"], ""), ("monit", ["init", "stop"], ""), ("--format", ["--not"], ""),
     ("zhs", ["bash", "zsh"], "zsh"), ("retsart", ["start", "restart"], "restart"), ("st", ["stop"], ""),
     ("sta", ["status", "start"], "start"), ("x", [], "")],
)  # fmt: skip
def test_a_guess_is_a_slip_of_the_finger_and_nothing_else(typed: str, known: list[str], meant: str) -> None:
    assert near_word(typed, known) == meant
