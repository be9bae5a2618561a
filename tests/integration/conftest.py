"""Pools that a program holds: of servers in its own process, and of processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from poolctl import Pool
from poolctl.pool import loop_thread
from poolctl.runners.embedded_runner import ProcessRunner


@pytest.fixture
def process_runner() -> Iterator[ProcessRunner]:
    made = ProcessRunner()
    yield made
    loop_thread.run_sync(made.aclose())


@pytest.fixture(params=["inline", "processes"])
def runner_of_any_kind(request: pytest.FixtureRequest) -> ProcessRunner | None:
    """The runner of processes, or None: a pool then has its servers in this process."""
    return request.getfixturevalue("process_runner") if request.param == "processes" else None


@pytest.fixture
def python_pool(runner_of_any_kind: ProcessRunner | None) -> Iterator[Pool]:
    """An empty pool of each kind; stopped at the end."""
    made = Pool(runner=runner_of_any_kind)
    yield made
    made.stop_sync(timeout=60)
    made.join_sync()
