"""Quantiles of what only buckets are known of."""

from __future__ import annotations

import pytest

from poolctl.supervisor.observers.statistics import quantile

BOUNDS = (1.0, 2.0, 4.0)


def test_quantile_lies_within_the_bucket_of_its_rank() -> None:
    assert quantile(BOUNDS, (0, 10, 0, 0), 0.5) == pytest.approx(1.5)
    assert quantile(BOUNDS, (5, 0, 5, 0), 0.99) == pytest.approx(2 + 2 * 4.9 / 5)
    assert quantile(BOUNDS, (5, 0, 5, 0), 0.5) == pytest.approx(1.0)


def test_quantile_above_the_last_bound_is_that_bound_and_none_without_values() -> None:
    assert quantile(BOUNDS, (0, 0, 0, 3), 0.5) == 4.0
    assert quantile(BOUNDS, (0, 0, 0, 0), 0.5) is None
