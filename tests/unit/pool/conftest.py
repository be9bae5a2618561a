"""No test of the pool may leave the loop thread behind: something would still run."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from tests.deadline import wait_until


def _gone() -> bool:
    if not engines():
        return True
    gc.collect()  # a runner created by a test keeps the loop thread alive
    return not engines()


def engines() -> list[threading.Thread]:
    """The loop threads of this process."""
    return [thread for thread in threading.enumerate() if thread.name == "poolctl-engine"]


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    wait_until(_gone, what="what other tests left to end")
    yield
    wait_until(_gone, what="the loop thread to end")
