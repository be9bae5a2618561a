"""The benchmarks' table: medians, ratios and verdicts."""

from __future__ import annotations

import pytest

from benchmarks.report import Row, table

pytestmark = pytest.mark.unmeasured


def test_figure_is_its_median_next_to_the_one_it_is_compared_with() -> None:
    row = Row("start", "s", [3.0, 1.0, 2.0], "loop", [20.0, 10.0], most_ratio=0.2)
    assert (row.median, row.ratio, row.reached) == (2.0, 2.0 / 15, True)
    assert row.as_json() | {"min": 1.0, "max": 3.0, "reached": True} == row.as_json()


def test_ratio_of_pairs_is_the_median_of_their_ratios() -> None:
    # The machine became slower from one pair to the next, for both sides alike.
    row = Row("request", "µs", [9.0, 20.0, 40.0], "stock", [10.0, 25.0, 20.0], most_ratio=0.95, paired=True)
    assert (row.ratio, row.reached) == (0.9, True)


def test_a_missed_target_is_said() -> None:
    rows = [
        Row("stop", "s", [0.5], most=0.4),
        Row("list", "ms", [31.0], "python", [10.0], most=50, most_ratio=3),
    ]
    assert [row.reached for row in rows] == [False, False]
    assert table(rows).count("MISSED") == 2


def test_without_a_target_or_a_comparison_there_is_no_verdict() -> None:
    assert Row("pss", "MiB", [4.0]).reached is None
    assert Row("start", "s", [4.0], "loop", [], most_ratio=0.1, note="no room").ratio is None
    assert "start (no room)" in table([Row("start", "s", [4.0], note="no room")])
    assert Row("idle", "%", [0.1], "uvicorn", [0.0]).ratio is None
