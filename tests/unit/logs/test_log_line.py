"""The two forms of a line in a file."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from poolctl.logs.log_line import as_json, as_text, parse_line, stamp

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
    block = as_text(b"".join(line + b"\n" for line in lines), NOW)
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


def test_what_has_no_time_is_all_text() -> None:
    for raw in (
        b"plain",
        b'{"time": broken',
        b'{"time": "x"}',
        b"",
        b"2026",
        b"abcd-xxxxxTyyyyyyyyyyyyyyyZ ",
    ):
        line = parse_line(raw, "web")
        assert (line.time, line.text) == ("", raw.decode())


def test_a_line_reads_as_an_operator_expects() -> None:
    assert repr(parse_line(NOW.encode() + b" hello", "web")) == f"{NOW} web | hello"
