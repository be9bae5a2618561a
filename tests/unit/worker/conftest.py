"""What several tests of a worker's connections share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving import ENGINES, TWO_ENGINES, Engine, Pair


@pytest.fixture(params=TWO_ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each loop and each parser; the test runs on this loop."""
    chosen: Engine = request.param
    return chosen


@pytest.fixture(params=ENGINES, ids="-".join)
def any_engine(request: pytest.FixtureRequest) -> Engine:
    """Each loop with each parser; the test runs on this loop."""
    chosen: Engine = request.param
    return chosen


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()
