"""No test of the pool may leave the loop thread behind: something would still run."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from poolctl.pool import loop_thread
from tests.deadline import wait_until


def _gone() -> bool:
    if loop_thread._current is None:
        return True
    gc.collect()  # a runner created by a test keeps the loop thread alive
    return loop_thread._current is None


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    wait_until(_gone, what="what other tests left to end")
    yield
    try:
        wait_until(_gone, what="the loop thread to end")
    finally:
        loop_thread._current = None  # so that what one test leaves behind fails that test alone
