"""The three kinds of pool that every behaviour is tested with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.runners.embedded_runner import ProcessRunner

from .pools import AnyPool, DaemonPool, PythonPool, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


# With the daemon they are slow: the contract starts it hundreds of times for the same behaviour.
@pytest.fixture(params=["in this process", "in processes", pytest.param("daemon", marks=pytest.mark.slow)])
def make_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., AnyPool]]:
    """`make_pool(table, …)` creates a pool of these servers without starting it; each test runs with every kind."""
    made: list[AnyPool] = []

    def make(*tables: dict[str, Any], programs: bool = False, processes: bool = False) -> AnyPool:
        if programs and request.param == "in this process":
            pytest.skip("programs need processes")
        if processes and request.param == "in this process":
            pytest.skip("several workers need processes")
        pool: AnyPool
        if request.param == "daemon":
            pool = DaemonPool(list(tables), request.getfixturevalue("real_pool"))
        else:
            pool = PythonPool(list(tables), ProcessRunner() if request.param == "in processes" else None)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.end()
