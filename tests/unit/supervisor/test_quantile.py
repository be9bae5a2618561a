"""Quantiles of what only buckets are known of."""

from __future__ import annotations

import pytest

from poolctl.supervisor.observers.statistics import quantile

BOUNDS = (1.0, 2.0, 4.0)


def test_it_lies_within_the_bucket_of_its_rank() -> None:
    assert quantile(BOUNDS, (0, 10, 0, 0), 0.5) == pytest.approx(1.5)
    assert quantile(BOUNDS, (5, 0, 5, 0), 0.99) == pytest.approx(2 + 2 * 4.9 / 5)
    assert quantile(BOUNDS, (5, 0, 5, 0), 0.5) == pytest.approx(1.0)


def test_what_is_above_the_last_bound_counts_as_that_and_nothing_is_nothing() -> None:
    assert quantile(BOUNDS, (0, 0, 0, 3), 0.5) == 4.0
    assert quantile(BOUNDS, (0, 0, 0, 0), 0.5) is None
