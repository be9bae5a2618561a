"""What servers print, on its way to a terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poolctl.cli.log_rendering import JsonLines, terminal_text
from poolctl.logs.log_line import LogLine


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
    line = JsonLines().line(LogLine(text, time=TIME, name="web", pid=pid))
    assert line.count("\n") == 1
    assert line.endswith("\n")
    found: dict[str, Any] = json.loads(line)
    assert found.pop("time") == TIME
    assert found.pop("server") == "web"
    return found


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("INFO:     Application startup complete.", "info"),
        ("ERROR:root:it failed", "error"),
        ("[warn] low on coffee", "warning"),
        ("2026-11-20 08:47:34,123 CRITICAL it burns", "critical"),
        ("2026-11-20T08:47:34Z DEBUG here", "debug"),
    ],
)
def test_the_level_is_read_from_the_usual_beginnings(text: str, level: str) -> None:
    assert shown(text) == {"message": text, "level": level}


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
