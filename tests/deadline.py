"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


def wait_until(
    condition: Callable[[], Any], *, timeout_seconds: float = 60.0, what: str | Callable[[], str] = ""
) -> Any:
    """The first true value of `condition()`; fails the test when there is none within the deadline.

    `what` says what was awaited; a function of it is called when the deadline has passed. A condition that takes long,
    as one that runs a command does, is asked half of the time at most.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        asked = time.monotonic()
        value = condition()
        if value:
            return value
        now = time.monotonic()
        if now >= deadline:
            awaited = what() if callable(what) else what
            raise AssertionError(f"not within {timeout_seconds} s: {awaited or condition}")
        time.sleep(min(max(0.01, now - asked), 0.2))


async def until(condition: Callable[[], Any], timeout_seconds: float = 60.0) -> None:
    """Wait on the event loop until the condition holds; fails the test when it does not within the deadline."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():
            await asyncio.sleep(0.002)
