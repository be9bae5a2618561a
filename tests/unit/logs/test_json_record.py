"""Lines in JSON, as the common libraries write them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.cli.log_lines import record_lines
from poolctl.logs.log_line import parse_record


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def rendered(**fields: Any) -> list[str]:
    record = parse_record(json.dumps(fields))
    assert record is not None
    return record_lines(record)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"level": "info", "time": "2026-01-31T12:00:00.5Z", "message": "hi"}, "INFO  12:00:00.500 hi"),
        ({"event": "hi", "level": "error", "timestamp": "2026-01-31T12:00:00Z", "n": 1},
         "ERROR 12:00:00.000 hi n=1"),
        ({"level": 30, "time": 1769860800123, "pid": 7, "hostname": "h", "msg": "hi"},
         "INFO  12:00:00.123 hi pid=7 hostname=h"),
        ({"levelname": "WARNING", "asctime": "x", "message": "hi"}, "WARNING hi asctime=x"),
        ({"levelno": 20, "level": 20, "ts": 1769860800.25, "msg": "hi"}, "INFO  12:00:00.250 hi levelno=20"),
        ({"severity": "NOTICE", "message": "", "ok": True, "none": None, "deep": {"a": [1]}},
         'NOTICE ok=true none="" deep="{\\"a\\": [1]}"'),
        ({"msg": "no level", "time": "noon"}, "noon no level"),
    ],
    ids=["plain", "structlog", "pino", "logging", "numbered", "nested", "unknown time"],
)  # fmt: skip
def test_a_record_is_level_time_message_and_the_rest(fields: dict[str, Any], line: str) -> None:
    assert rendered(**fields) == [line]


def test_a_traceback_stands_below_its_message() -> None:
    assert rendered(level="error", message="it\nbroke", exc_info="Traceback:\n  File\nValueError\n") == [
        "ERROR it",
        "    broke",
        "    exc_info:",
        "        Traceback:",
        "          File",
        "        ValueError",
    ]


def test_what_a_server_logs_does_not_drive_the_terminal() -> None:
    lines = rendered(level="\x1b[2J", message="a\x1b[31m\rb", key="\x07", **{"\x1bk": 1})
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"a": 1}', '["message"]', "{message}", '{"message": 1} x'])
def test_other_lines_are_no_records(text: str) -> None:
    assert parse_record(text) is None


ODD = [
    None,
    True,
    0,
    -1,
    1e400,
    10**400,
    float("nan"),
    "",
    "\n",
    "2026-13-31T99:00:00Z",
    "9" * 40,
    [],
    {"a": "\n"},
]


@given(
    st.dictionaries(st.sampled_from(["time", "level", "msg", "x", "pid"]), st.sampled_from(ODD), min_size=1)
)
def test_whatever_the_members_are_it_is_shown(fields: dict[str, Any]) -> None:
    record = parse_record(json.dumps(fields))
    if record is not None:
        assert "\n" not in "".join(record_lines(record))
