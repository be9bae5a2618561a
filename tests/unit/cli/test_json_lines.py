"""Servers' lines as JSON objects: one a line, with the fields that can be recognised."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poolctl.cli.log_rendering import JsonLines
from poolctl.logs.log_line import LogLine

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
