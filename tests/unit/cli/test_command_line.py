from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.cli.command_line import (
    COMMON,
    DEFAULT_LINES,
    GOALS,
    HEALTH,
    STATES,
    Command,
    CommandRequest,
    Option,
    check_line_format,
    command_named,
    edit_distance,
    help_as_option,
    json_form,
    names,
    nearest_word,
    parse_simple_command_line,
    should_save,
    split_off_user_command,
    validate_choice,
    verb_of,
)
from poolctl.cli.outcome import UsageError
from poolctl.selection.selector import SelectorError
from poolctl.states import State, Status
from tests.examples import examples
from tests.unit.cli.typer_lane import slow


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
    assert request.verb_options() == {
        "timeout": 5,
        "wait": False,
        "deps": True,
        "env": dict(os.environ),
    }
    assert CommandRequest("wait", {"goal": "healthy"}).verb_options() == {
        "timeout": None,
        "for": "healthy",
    }
    with pytest.raises(UsageError, match="--for"):
        CommandRequest("wait", {"goal": "christmas"}).verb_options()


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
    assert validate_choice("--x", "bind", ("name", "bind")) == "bind"
    with pytest.raises(UsageError) as caught:
        validate_choice("--x", "nmae", ("name", "bind"))
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
    assert CommandRequest("logs", values).line_limit() == lines


def test_number_of_lines_has_nine_digits_at_most() -> None:
    assert CommandRequest("logs", {"lines": "9" * 9}).line_limit() == 999_999_999
    for wrong in ("9" * 10, "-1", "1.5", "many", "", "\u0663"):
        with pytest.raises(UsageError) as caught:
            CommandRequest("logs", {"lines": wrong}).line_limit()
        assert caught.value.hint == 'a number, or "all"'


def test_moment_is_a_time_or_a_duration_before_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.0)
    assert CommandRequest("logs", {}).log_timestamp("since") == ""
    assert CommandRequest("logs", {"since": "10m"}).log_timestamp("since") == "2023-11-14T22:03:20.000000Z"
    assert (
        CommandRequest("logs", {"until": "2026-01-31T13:00:00+01:00"})
        .log_timestamp("until")
        .startswith("2026-01-31T12:00:00")
    )
    for wrong in ("2026-13-01", "2026-", "yesterday"):
        with pytest.raises(UsageError, match=f"--since: '{wrong}' is not a time"):
            CommandRequest("logs", {"since": wrong}).log_timestamp("since")


def test_plain_command_line_is_parsed() -> None:
    request = parse_simple_command_line(
        ["-c", "a.toml", "list", "web", "db", "--tag=api", "--tag", "new", "-ojson", "-q"]
    )
    assert request is not None
    assert (request.verb, request.values["targets"]) == ("list", ["web", "db"])
    assert (request.values["tag"], request.output, request.quiet) == (["api", "new"], "json", True)
    assert request.values["config"] == ["a.toml"]
    assert request.values["invert"] is False
    assert request.values["name"] == []


def test_arguments_are_taken_in_their_order() -> None:
    request = parse_simple_command_line(["scale", "web", "4"])
    assert request is not None
    assert request.values["targets"] == ["web", "4"]
    command = parse_simple_command_line(["run", "-t", "5s", "--", "pytest", "-x", "--", "more"])
    assert command is None or command.values["command"] == ["pytest", "-x", "--", "more"]
    without = parse_simple_command_line(["run"])
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
        ["pools", "more"],
        ["init", "one", "two"],
    ],
)
def test_other_command_lines_are_left_to_typer(other: list[str]) -> None:
    assert parse_simple_command_line(other) is None


def test_command_after_two_hyphens_is_the_users() -> None:
    assert split_off_user_command(["run", "-o=json", "--", "ls", "-o=json"]) == (
        ["run", "-ojson"],
        {"command": ["ls", "-o=json"]},
    )
    assert split_off_user_command(["run"]) == (["run"], {"command": []})
    assert split_off_user_command(["list", "--", "-x"]) == (["list", "--", "-x"], {})


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
    assert split_off_user_command(["list", word]) == (["list", replaced], {})


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
    assert help_as_option(words) == replaced


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


@pytest.mark.parametrize("form", ["json", "jsonl"])
@pytest.mark.parametrize(
    "args", [["-o", "FORM"], ["--output", "FORM"], ["--output=FORM"], ["-oFORM"], ["-qo=FORM"]]
)
def test_json_is_asked_for(args: list[str], form: str) -> None:
    args = [word.replace("FORM", form) for word in args]
    assert json_form(["list", *args]) == form
    assert json_form([*args, "nonsense", "--", "x"]) == form
    assert json_form(["run", "--", *args]) == ""


@pytest.mark.parametrize(
    "args", [["-o", "wide"], ["-o"], ["json"], ["--ojson"], ["ojson"], ["-o", "name", "json"]]
)
def test_json_is_not_asked_for(args: list[str]) -> None:
    assert json_form(["list", *args]) == ""


def test_dry_run_of_a_live_change_needs_save() -> None:
    assert should_save(CommandRequest("scale", {"dry_run": True, "save": True})) is True
    assert should_save(CommandRequest("scale", {"save": False})) is False
    with pytest.raises(UsageError) as caught:
        should_save(CommandRequest("scale", {"dry_run": True}))
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
    assert nearest_word("sta", ("status", "start", "stop")) == "start"
    assert nearest_word("st", ("status",)) == ""
    assert nearest_word("stopp", ("stop",)) == "stop"
    assert nearest_word("stxxp", ("stoap",)) == ""
    assert nearest_word("restxxt", ("restart",)) == "restart"
    assert nearest_word("--tga", ("--tag",)) == "--tag"
    assert nearest_word("list", ()) == ""


@pytest.mark.parametrize(
    ("typed", "known", "meant"),
    [("--all", ["--health", "--tag"], ""), ("monit", ["init", "stop"], ""), ("--format", ["--not"], ""),
     ("zhs", ["bash", "zsh"], "zsh"), ("retsart", ["start", "restart"], "restart"), ("st", ["stop"], ""),
     ("sta", ["status", "start"], "start"), ("x", [], "")],
)  # fmt: skip
def test_a_guess_is_a_slip_of_the_finger_and_nothing_else(typed: str, known: list[str], meant: str) -> None:
    assert nearest_word(typed, known) == meant


# The fast lane is a shortcut, never another language: what it understands, the slow lane understands alike.

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


@pytest.mark.slow
@given(command_lines())
@examples(200)
def test_both_lanes_make_the_same_request_of_a_command_line(args: list[str]) -> None:
    fast = parse_simple_command_line(args)
    if fast is not None:
        assert slow(args) == fast


@pytest.mark.parametrize("verb", names())
def test_every_option_is_understood_in_the_fast_lane(verb: str) -> None:
    command = COMMANDS[verb]
    words = ["web" for argument in command.arguments if argument.required or argument.kind == "list"]
    rounds: list[list[str]] = []  # the slow lane is asked about one spelling of every option at a time
    for spelling, option in by_spelling(command.options).items():
        given = [spelling] if option.kind == "flag" else [spelling, "x"]
        fast = parse_simple_command_line([verb, *words, *given])
        assert fast is not None, spelling
        assert fast.values[option.key] == {"flag": True, "value": "x", "list": ["x"]}[option.kind]
        number = option.spellings.index(spelling)
        rounds += [[]] * (number + 1 - len(rounds))
        rounds[number] = [*rounds[number], *given]
    for given in rounds:
        args = [verb, *words, *given]
        fast = parse_simple_command_line(args)
        assert fast is not None, args
        assert slow(args) == fast


@pytest.mark.parametrize(
    "args",
    [[], ["-h"], ["list", "-h"], ["list", "--help"], ["lst"], ["list", "--", "web"], ["list", "-qv"],
     ["filter"], ["pools", "x"], ["init", "a", "b"],
     ["list", "--stat", "x"], ["list", "-o"], ["list", ""], ["list", "-o", "-x"], ["--version"], ["-o", "json", "list"],
     ["list", "--not=1"], ["-"], ["wait", "--timeout", "-1"]],
)  # fmt: skip
def test_unusual_spelling_is_left_to_the_slow_lane(args: list[str]) -> None:
    assert parse_simple_command_line(args) is None


def test_requests_do_not_share_their_lists() -> None:
    first = parse_simple_command_line(["list"])
    assert first is not None
    first.values["tag"].append("x")
    assert parse_simple_command_line(["list"]) != first


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
    assert parse_simple_command_line(["list", word]) in (request, None)
    assert json_form(["list", word]) == "json"


@pytest.mark.slow
def test_the_help_of_poolctl_reads_no_configuration_model() -> None:
    script = (
        "import sys; from poolctl.cli.main import main; main(['--help']);"
        "found = {'pydantic', 'yaml', 'asyncio', 'rich'} & set(sys.modules); assert not found, found"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
