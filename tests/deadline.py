"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait_until(condition: Callable[[], Any], *, timeout_seconds: float = 20.0, what: str = "") -> Any:
    """The first true value of `condition()`; fails the test when there is none within the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_seconds} s: {what or condition}")
        time.sleep(0.01)
