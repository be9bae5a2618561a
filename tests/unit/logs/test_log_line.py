"""Lines of a log in both forms, and lines in JSON as the common libraries write them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.cli.log_rendering import record_lines
from poolctl.logs.log_line import (
    as_json,
    local_clock_time,
    parse_line,
    parse_record,
    stamp,
    with_timestamp_prefix,
)

NOW = "2026-11-20T08:47:34.123456Z"


def test_a_moment_is_written_in_utc_with_microseconds() -> None:
    assert stamp(1795164454.5) == "2026-11-20T08:47:34.500000Z"
    assert len(stamp(0)) == len(NOW)


@given(st.lists(st.floats(0, 4e9), min_size=2, max_size=10))
def test_moments_sort_as_text(moments: list[float]) -> None:
    stamps = [stamp(moment) for moment in sorted(moments)]
    assert stamps == sorted(stamps)


@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b" ")), min_size=1, max_size=5))
def test_every_line_comes_back_from_the_text_form(lines: list[bytes]) -> None:
    block = with_timestamp_prefix(b"".join(line + b"\n" for line in lines), NOW)
    parsed = [parse_line(raw, "web") for raw in block[:-1].split(b"\n")]
    assert [line.text for line in parsed] == [line.decode("utf-8", "backslashreplace") for line in lines]
    assert {line.time for line in parsed} == {NOW}
    assert {line.name for line in parsed} == {"web"}


@given(st.lists(st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b" ")), min_size=1, max_size=5))
def test_every_line_comes_back_from_the_json_form(lines: list[bytes]) -> None:
    block = as_json(b"".join(line + b"\n" for line in lines), NOW, "web", 42)
    raws = block[:-1].split(b"\n")
    parsed = [parse_line(raw) for raw in raws]
    assert [line.text for line in parsed] == [line.decode("utf-8", "backslashreplace") for line in lines]
    assert {(line.time, line.name, line.pid) for line in parsed} == {(NOW, "web", 42)}
    assert set(json.loads(raws[0])) == {"time", "name", "pid", "line"}


def test_line_without_a_time_is_all_text() -> None:
    for raw in (
        b"plain",
        b'{"time": broken',
        b'{"time": "x"}',
        b"",
        b"2026",
        b"abcd-xxxxxTyyyyyyyyyyyyyyyZ ",
        b"2026-99-99T99:99:99.000000Z x",
        b"2026-11-20 08:47:34.123456Z x",
        b"2026-11-20T08:47:34.123456Z",
        b'{"time": "noon", "name": "a", "pid": 1, "line": "x"}',
        b'{"time": "2026-11-20T08:47:34.123456Z", "name": "a.views", "pid": 1, "message": "x", "line": 12}',
        b'{"time": ' + b"[" * 10_000,
    ):
        line = parse_line(raw, "web")
        assert (line.time, line.text) == ("", raw.decode())


def test_a_line_reads_as_an_operator_expects() -> None:
    assert repr(parse_line(NOW.encode() + b" hello", "web")) == f"{NOW} web | hello"


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
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
        ({"levelname": "WARNING", "asctime": "x", "message": "hi"}, "WARNING x hi"),
        ({"levelno": 20, "level": 20, "ts": 1769860800.25, "msg": "hi"}, "INFO  12:00:00.250 hi levelno=20"),
        ({"severity": "NOTICE", "message": "", "ok": True, "none": None, "deep": {"a": [1]}},
         'NOTICE ok=true none="" deep="{\\"a\\": [1]}"'),
        ({"msg": "no level", "time": "noon"}, "noon no level"),
    ],
    ids=["plain", "structlog", "pino", "logging", "numbered", "nested", "unknown time"],
)  # fmt: skip
def test_a_record_is_level_time_message_and_the_rest(fields: dict[str, Any], line: str) -> None:
    assert rendered(**fields) == [line]


@pytest.mark.parametrize("pino", [False, True])
def test_number_of_a_level_means_what_its_library_means(pino: bool) -> None:
    signs = {"pid": 7, "hostname": "h"} if pino else {}
    numbers = (5, 10, 20, 25, 30, 40, 50, 60)
    records = [parse_record(json.dumps({"level": number, "msg": "x", **signs})) for number in numbers]
    assert [record.level for record in records if record is not None] == (
        ["5", "TRACE", "DEBUG", "25", "INFO", "WARN", "ERROR", "FATAL"]
        if pino
        else ["5", "DEBUG", "INFO", "INFO", "WARNING", "ERROR", "CRITICAL", "CRITICAL"]
    )


@pytest.mark.parametrize("unit", [1, 1000, 1_000_000, 1_000_000_000])
def test_time_of_a_record_may_be_in_any_unit_since_the_epoch(unit: int) -> None:
    assert rendered(time=1769860800 * unit, msg="hi") == ["12:00:00.000 hi"]


def test_a_traceback_stands_below_its_message() -> None:
    assert rendered(level="error", message="it\nbroke", exc_info="Traceback:\n  File\nValueError\n") == [
        "ERROR it",
        "    broke",
        "    exc_info:",
        "        Traceback:",
        "          File",
        "        ValueError",
    ]


def test_control_characters_in_a_record_do_not_drive_the_terminal() -> None:
    lines = rendered(level="\x1b[2J", message="a\x1b[31m\rb", key="\x07", **{"\x1bk": 1})
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{}",
        '{"a": 1}',
        '["message"]',
        "{message}",
        '{"message": 1} x',
        '{"msg": "x", "severityNumber": 1e999}',
    ],
)
def test_line_that_is_no_json_record_is_left_as_it_is(text: str) -> None:
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
    st.dictionaries(
        st.sampled_from(["time", "level", "msg", "x", "pid", "hostname"]), st.sampled_from(ODD), min_size=1
    )
)
def test_record_with_any_members_is_shown(fields: dict[str, Any]) -> None:
    record = parse_record(json.dumps(fields))
    if record is not None:
        assert "\n" not in "".join(record_lines(record))


def test_record_that_is_nested_too_deeply_to_be_written_is_no_record() -> None:
    """The deepest that can be read is a few levels deeper than what can be written."""
    deep = [f'{{"msg": "", "x": {"[" * depth}{"]" * depth}}}' for depth in range(800, 1100)]
    found = [parse_record(text) is not None for text in deep]
    assert found == sorted(found, reverse=True)


def test_clock_time_has_the_date_unless_it_is_today() -> None:
    shown = local_clock_time(NOW.replace("2026", "2020"))
    assert (len(shown), shown[-4:]) == (len("2020-11-20 08:47:34.123"), ".123")
    assert local_clock_time(NOW.replace("2026", "2020"), with_millis=False) == shown[11:19]
    for _ in range(2):  # midnight may pass meanwhile
        now = time.time()
        today = local_clock_time(stamp(now))
        if time.localtime(now).tm_yday == time.localtime().tm_yday:
            break
    assert today[:8] == time.strftime("%H:%M:%S", time.localtime(now))
    assert len(today) == len("08:47:34.123")
