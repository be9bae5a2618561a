"""What servers print, on its way to a terminal."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.cli.log_rendering import (
    SHORT_TIMES,
    STAMPS,
    PrefixedLineFormatter,
    json_line,
    log_paths,
    record_lines,
    terminal_text,
    with_coloured_level,
)
from poolctl.logs.log_line import LogLine, local_clock_time, parse_record


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain", "plain"),
        ("a\tb ü 漢字 👨‍👩‍👧 12\u00a0000", "a\tb ü 漢字 👨‍👩‍👧 12\u00a0000"),
        ("\x1b[32mINFO\x1b[0m ready", "\x1b[32mINFO\x1b[0m ready"),
        ("\x1b[1;38;5;9mred", "\x1b[1;38;5;9mred\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b]8;;http://x\x1b\\link", "\\x1b]8;;http://x\\x1b\\link"),
        ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("\rover\b\x00", "\\rover\\x08\\x00"),
        ("\x1bP+q544e\x1b\\", "\\x1bP+q544e\\x1b\\"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\x1b[32", "\\x1b[32"),
    ],
)  # fmt: skip
def test_colours_pass_and_other_control_characters_are_escaped(line: str, shown: str) -> None:
    assert terminal_text(line) == shown


def test_without_colours_they_are_left_out() -> None:
    assert terminal_text("\x1b[32mINFO\x1b[0m\x1b]0;t\x07", colours=False) == "INFO\\x1b]0;t\\x07"


TIME = "2026-11-20T08:47:34.123456Z"


def shown(text: str, pid: int | None = None) -> dict[str, Any]:
    line = json_line(LogLine(text, time=TIME, name="web", pid=pid))
    assert line.count("\n") == 1
    assert line.endswith("\n")
    found: dict[str, Any] = json.loads(line)
    assert found.pop("time") == TIME
    assert found.pop("server") == "web"
    return found


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("ERROR:root:it failed", "error"),
        ("[warn] low on coffee", "warning"),
        ("2026-11-20 08:47:34,123 CRITICAL it burns", "critical"),
        ("2026-11-20T08:47:34Z DEBUG here", "debug"),
    ],
)
def test_the_level_is_read_from_the_usual_beginnings(text: str, level: str) -> None:
    assert shown(text) == {"message": text, "level": level}


def test_level_is_a_member_and_no_part_of_the_message() -> None:
    assert shown("ERROR:    it failed") == {"message": "it failed", "level": "error"}


def test_line_that_continues_another_has_its_level() -> None:
    line = LogLine("  File a", time=TIME, name="web", level="error")
    assert json.loads(json_line(line))["level"] == "error"


@pytest.mark.parametrize("text", ["hello", "", "errors: none", "{not json}", "[1, 2]", '{"a": '])
def test_line_without_a_level_has_none(text: str) -> None:
    assert shown(text) == {"message": text}


def test_the_pid_is_there_when_the_log_has_it() -> None:
    assert shown("hello", 42) == {"message": "hello", "pid": 42}


def test_json_object_keeps_its_own_members_and_time() -> None:
    said = {"time": 1, "levelname": "WARN", "msg": "ü", "order": {"id": 7}, "server": "theirs"}
    assert shown(json.dumps(said)) == {
        "message": "ü", "level": "warning", "logged": 1, "levelname": "WARN", "msg": "ü", "order": {"id": 7},
    }  # fmt: skip


def prefixed(text: str, name: str = "web", **options: Any) -> str:
    return PrefixedLineFormatter(["web", "users"], **options).line(
        LogLine(text, time=TIME, name=name, pid=None)
    )


def test_prefix_is_padded_to_the_longest_name_and_an_unknown_server_has_its_own() -> None:
    assert prefixed("hello") == "web   | hello\n"
    assert prefixed("hello", "users") == "users | hello\n"
    assert prefixed("hello", "added-later") == "added-later | hello\n"


def test_time_is_the_stamp_or_the_time_of_day_of_lines_without_their_own() -> None:
    day = local_clock_time(TIME)
    assert prefixed("hello", times=STAMPS) == f"web   | {TIME} hello\n"
    assert prefixed("08:47:34 hello", times=STAMPS) == f"web   | {TIME} 08:47:34 hello\n"
    assert prefixed("hello", times=SHORT_TIMES) == f"web   | {day} hello\n"
    for own in ("08:47:34 a", "[2026-11-20 08:47:34] a", "2026/11/20T08:47:34 a"):
        assert prefixed(own, times=SHORT_TIMES) == f"web   | {own}\n"
    untimed = PrefixedLineFormatter(["web"], times=STAMPS).line(LogLine("a", time="", name="web", pid=None))
    assert untimed == "web | a\n"


def test_json_record_is_text_only_with_records_and_its_own_time_replaces_the_short_one() -> None:
    text = json.dumps({"level": "info", "message": "hello", "user": "ann"})
    assert prefixed(text) == f"web   | {text}\n"
    assert prefixed(text, records=True) == "web   | INFO  hello user=ann\n"
    timed = json.dumps({"time": "2026-11-20T08:47:34Z", "message": "hello"})
    shown_as = prefixed(timed, records=True, times=SHORT_TIMES)
    assert shown_as.startswith("web   | ")
    assert local_clock_time(TIME) not in shown_as.replace("08:47:34", "", 1)
    assert local_clock_time(TIME) in prefixed(text, records=True, times=SHORT_TIMES)


def test_request_ids_are_shown_only_of_the_servers_that_answer_them() -> None:
    access = '1.2.3.4 "GET / HTTP/1.1" 200 OK 1.5ms abc123'
    record = json.dumps({"message": "hello", "request_id": "abc123"})
    for ids, has_id in ((None, True), ({"web"}, True), ({"users"}, False), (set(), False)):
        assert ("abc123" in prefixed(access, request_ids=ids)) is has_id
        assert ("abc123" in prefixed(record, records=True, request_ids=ids)) is has_id
    assert prefixed(access, request_ids=()).endswith("1.5ms\n")


def test_record_has_its_long_members_below_it_and_quotes_what_is_ambiguous() -> None:
    record = parse_record(
        json.dumps({"level": "error", "message": "one\ntwo", "a": "x y", "b": 'q"', "c": "", "d": "e"})
    )
    assert record is not None
    first, *more = record_lines(record)
    assert first == 'ERROR one a="x y" b="q\\"" c="" d=e'
    assert more == ["    two"]
    (coloured, _) = record_lines(record, colours=True)
    assert coloured.startswith("\x1b[31mERROR\x1b[0m")
    assert "\x1b[2md=e\x1b[0m" in coloured


def test_traceback_of_a_record_is_indented_below_its_name() -> None:
    record = parse_record(json.dumps({"message": "m", "exc_info": "Traceback:\n  line\nError"}))
    assert record is not None
    assert record_lines(record) == [
        "m",
        "    exc_info:",
        "        Traceback:",
        "          line",
        "        Error",
    ]


@pytest.mark.parametrize(
    ("text", "shown_as"),
    [
        ("INFO: ready", "\x1b[32mINFO\x1b[0m: ready"),
        ("\x1b[1mINFO\x1b[0m: ready", "\x1b[1mINFO\x1b[0m: ready"),
        ("plain", "plain"),
    ],
)
def test_level_is_coloured_unless_the_line_has_colours(text: str, shown_as: str) -> None:
    assert with_coloured_level(text) == shown_as


def test_log_of_a_server_is_the_configured_file_or_one_of_the_directory() -> None:
    items: Any = [
        SimpleNamespace(name="web", config={"log": {"path": "/var/log/web"}}),
        SimpleNamespace(name="users", config={"log": {}}),
        SimpleNamespace(name="jobs", config={}),
    ]
    assert log_paths(items, "/state/logs") == {
        "web": "/var/log/web", "users": "/state/logs/users.log", "jobs": "/state/logs/jobs.log",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("levels", "colour"),
    [
        ("TRACE DEBUG", "2"), ("INFO", "32"), ("NOTICE", "36"), ("WARN WARNING", "33"), ("ERROR ERR", "31"),
        ("CRITICAL FATAL ALERT PANIC", "1;31"),
    ],
)  # fmt: skip
def test_each_level_of_a_record_has_its_colour(levels: str, colour: str) -> None:
    for level in levels.split():
        record = parse_record(f'{{"level": "{level.lower()}", "message": "one"}}')
        assert record is not None
        (line,) = record_lines(record, colours=True)
        assert line.startswith(f"\x1b[{colour}m{level}")
