"""The descriptors of the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

from tests.deadline import wait_until

# Names of threads of earlier tests that end by themselves.
ENDING = ("poolctl-aside", "poolctl-engine")


def open_descriptors() -> dict[str, str]:
    """The open descriptors with the files behind them, without the one that lists them."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Fails the test when what is done inside leaves a descriptor open, or closes one that was open before.

    What earlier tests have left is closed first: their garbage, and their threads, as the search for the process that
    holds an address.
    """
    gc.collect()
    for thread in threading.enumerate():
        if thread.name in ENDING:
            thread.join(10)
    before = open_descriptors()
    yield
    wait_until(
        lambda: open_descriptors() == before,
        timeout_seconds=60,
        what=lambda: f"the descriptors of before, {before}; there are {open_descriptors()}",
    )


@contextlib.contextmanager
def free_descriptors(count: int) -> Iterator[None]:
    """Let this process open only `count` more files."""
    lowest = [os.dup(0) for _ in range(count + 1)]
    for fd in lowest:
        os.close(fd)
    with descriptor_limit(lowest[-1]):
        yield


@contextlib.contextmanager
def descriptor_limit(limit: int) -> Iterator[None]:
    """Let this process open only descriptors below `limit`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def run(work: Coroutine[Any, Any, None], timeout_seconds: float = 60.0) -> None:
    """Run this on an event loop; fails the test when it takes longer, or leaves a descriptor open."""
    with no_descriptor_left():
        asyncio.run(asyncio.wait_for(work, timeout_seconds))
