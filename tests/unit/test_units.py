"""Durations and sizes as people write them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("500ms", 0.5),
        ("5s", 5.0),
        ("1m30s", 90.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        (" 1m 30s ", 90.0),
        ("1.5s", 1.5),
        ("5", 5.0),
        (5, 5.0),
        (0.25, 0.25),
        (0, 0.0),
        (timedelta(minutes=2), 120.0),
    ],
)
def test_durations_are_seconds(written: Any, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    "written",
    ["", "s", "5 parsecs", "-1s", "1s1s", "30s1m", "1e3", "٣s", "inf", "5S", "1" * 200, True, None, [1], -1, -0.5,
     float("nan"), float("inf"), 10**400, timedelta(seconds=-1)],
)  # fmt: skip
def test_invalid_duration_is_reported(written: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(written)


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        ("64KiB", 65536),
        ("10MB", 10_000_000),
        ("1.5k", 1500),
        ("1 GiB", 2**30),
        ("7", 7),
        ("7b", 7),
        (7, 7),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_are_bytes(written: Any, size_bytes: int) -> None:
    assert parse_size(written) == size_bytes


@pytest.mark.parametrize("written", ["", "huge", "-1", "1XB", "1" * 200, True, 1.5, None, -1])
def test_invalid_size_is_reported(written: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(written)


@given(st.integers(0, 10**15))
def test_a_formatted_duration_reads_back(microseconds: int) -> None:
    seconds = microseconds / 1_000_000
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (75, "1m15s"), (0.5, "500ms"), (90000.0015, "1d1h1ms500us"), (-60, "-1m")],
)
def test_durations_are_written_short(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0B"),
        (1536, "1.5KiB"),
        (10 * 2**20, "10MiB"),
        (2**30, "1GiB"),
        (2**40, "1TiB"),
        (2**50, "1024TiB"),
    ],
)
def test_sizes_are_written_short(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text
