"""Numbers and bars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.features.top._table import (
    BARS,
    format_count,
    format_percent,
    format_seconds,
    format_size,
    sparkline,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0"), (4.23, "4.2"), (7, "7"), (847.4, "847"), (999.6, "1.0k"), (12_345, "12.3k"),
     (1_200_000, "1.2M"), (0.25, "0.25"), (31.0, "31")],
)  # fmt: skip
def test_counts(number: float | None, text: str) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.00085, "850µs"),
        (0.0042, "4.2ms"),
        (0.32, "320ms"),
        (1.24, "1.2s"),
        (95, "95s"),
    ],
)
def test_times(number: float | None, text: str) -> None:
    assert format_seconds(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, "-"), (0, "0K"), (640 * 1024, "640K"), (23.4 * 2**20, "23.4M"), (2**30, "1G")],
)
def test_sizes(number: float | None, text: str) -> None:
    assert format_size(number) == text


def test_shares() -> None:
    assert [format_percent(number) for number in (None, 0, 0.42, 12.3, 143)] == [
        "-",
        "0%",
        "0.4%",
        "12%",
        "143%",
    ]


@given(st.floats(0, 9e8))
def test_every_number_fits_its_column(number: float) -> None:
    for form in (format_count, format_percent, format_size):
        if form is not format_percent or number < 9999:
            assert len(form(number)) <= 5
    if number < 9999:
        assert len(format_seconds(number)) <= 6


def test_the_newest_value_is_at_the_right_and_the_unknown_is_empty() -> None:
    assert sparkline([0, 7], 4) == "  ▁▇"
    assert sparkline([None, 1, None, 2], 4) == " ▄ ▇"
    assert sparkline([1, 2, 3, 4], 2) == "▆▇"
    assert sparkline([], 3) == "   "
    assert sparkline([1], 0) == ""


def test_memory_shows_its_change_but_no_ripple_as_a_wave() -> None:
    assert sparkline([100, 150, 200], 3, from_zero=False) == "▁▄▇"
    assert set(sparkline([1000, 1001, 1000], 3, from_zero=False)) == {"▄"}


@given(st.lists(st.none() | st.floats(0, 1e12), max_size=80), st.integers(0, 60), st.booleans())
def test_a_chart_is_as_wide_as_it_should_be(values: list[float | None], width: int, from_zero: bool) -> None:
    chart = sparkline(values, width, from_zero=from_zero)
    assert len(chart) == width
    assert set(chart) <= {*BARS, " "}
