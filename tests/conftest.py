"""Fixtures for every test: free ports, a deadline instead of a sleep, an HTTP client, and one real pool."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from tests.deadline import wait_until
from tests.http_get import Reply, get
from tests.ports import claim_port
from tests.real_pool import TREE, RealPool, pool_in

# Files and directories whose tests get a second try in CI, a line each: those with thousands of real processes on a
# machine that others use too. The list may only get shorter: a test that is not reliable is repaired, not added.
SECOND_TRY = Path(__file__).with_name("second_try.txt")

# Marks of all tests in a directory.
MARKS = {
    "contract": pytest.mark.unmeasured,
    "docs": pytest.mark.unmeasured,
    "integration": pytest.mark.integration,
}


def pytest_configure() -> None:
    """Let signals reach what tests start: a shell's background job and all that it starts ignore two, nohup's one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if other_tree_is_installed():
        os.environ["PYTHONPATH"] = str(TREE)


def other_tree_is_installed() -> bool:
    """Whether processes that tests start would import another poolctl than the tests: those of a copied tree do."""
    others = [path for path in sys.path if path not in ("", str(TREE))]
    return (TREE / "poolctl").exists() and PathFinder.find_spec("poolctl", others) is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if mark := MARKS.get(item.path.relative_to(here).parts[0]):
            item.add_marker(mark)
    if os.environ.get("CI"):
        listed = {config.rootpath / line for line in SECOND_TRY.read_text().split()}
        for item in items:
            if not listed.isdisjoint({item.path, *item.path.parents}):
                item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Nothing is garbage while tests are collected: looking for it took a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


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
    """`until(condition, timeout_seconds=20)`: waits for a condition with a deadline."""
    return wait_until


@pytest.fixture
def real_pool(tmp_path: Path) -> Iterator[RealPool]:
    """A pool directory of its own; at the end the pool is stopped and nothing of it may be left."""
    with pool_in(tmp_path) as pool:
        yield pool
