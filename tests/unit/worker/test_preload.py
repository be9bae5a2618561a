"""How an import is made, and what is as before when it is over."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from poolctl.worker.preload import collecting_rarely


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def fail() -> None:
    assert gc.get_threshold()[0] > 10_000
    raise ImportError


def test_garbage_is_looked_for_seldom_and_then_as_before(thresholds: tuple[int, int, int]) -> None:
    with pytest.raises(ImportError), collecting_rarely():
        fail()
    assert gc.get_threshold() == thresholds


def test_what_the_application_wants_of_the_collector_is_kept() -> None:
    with collecting_rarely():
        gc.set_threshold(123, 4, 5)
    assert gc.get_threshold() == (123, 4, 5)
