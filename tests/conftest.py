"""Fixtures for every test: free ports, a deadline instead of a sleep, an HTTP client, and one real pool."""

from __future__ import annotations

import gc
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.http_get import Reply, get
from tests.ports import claim_port
from tests.real_pool import RealPool

# Tests with processes of code that the others and the unit tests measure already: with coverage they take twice the
# processor's time (8 s become 15 s in test_family.py).
UNMEASURED = {
    f"test_{name}.py"
    for name in (
        "bounded_logs", "company", "container", "descriptors", "ends", "family", "forked_children",
        "hostile_environment", "hostile_sockets", "hostile_workers", "no_supervisor", "open_files", "places",
        "real_programs", "slow_clients", "starting", "surroundings", "taken_ports", "unfit_interpreter",
        "without_proc",
    )
}  # fmt: skip


def pytest_configure() -> None:
    """Let Ctrl-C reach what tests start: a shell's background job ignores SIGINT, and so do all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "contract" in item.path.parts:
            item.add_marker("contract")
        if item.path.parent.name == "processes" and item.path.name in UNMEASURED:
            item.add_marker("unmeasured")
        if "browser" in item.path.parts:
            item.add_marker("slow")  # once, and without coverage


def pytest_collection_finish() -> None:
    """What is there by now stays: looking through it at every collection took a fifth of the unit tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def free_port() -> Callable[..., int]:
    return claim_port


@pytest.fixture
def http_get() -> Callable[..., Reply]:
    return get


@pytest.fixture
def until() -> Callable[..., Any]:
    """`until(condition, timeout_seconds=10)`: waits for a condition with a deadline."""
    return wait_until


@pytest.fixture
def real_pool(tmp_path: Path) -> Iterator[RealPool]:
    """A pool directory of its own; at the end the pool is stopped and nothing of it may be left."""
    runtime = Path(tempfile.mkdtemp(prefix="pc-", dir="/tmp"))  # short: Unix socket paths hold 108 bytes
    pool = RealPool(tmp_path, runtime)
    try:
        yield pool
        left = pool.end()
    finally:
        pool.end()
        shutil.rmtree(runtime, ignore_errors=True)
        if pool.directory != tmp_path:
            shutil.rmtree(pool.directory, ignore_errors=True)
    assert not left, f"processes of the pool were left: {left}"
