"""What several tests of a worker's connections share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving import Pair


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()
