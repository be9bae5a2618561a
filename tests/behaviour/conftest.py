"""The three kinds of pool that every behaviour is tested with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.runners.process import ProcessRunner
from tests.real_pool import RealPool

from .pools import AnyPool, DaemonPool, PythonPool, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(params=["in this process", "in processes", "daemon"])
def make_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., AnyPool]]:
    """`make_pool(table, …)` gives the pool of these servers, not started; each test is run with every kind."""
    made: list[AnyPool] = []

    def make(*tables: dict[str, Any], programs: bool = False) -> AnyPool:
        if programs and request.param == "in this process":
            pytest.skip("programs need processes")
        pool: AnyPool
        if request.param == "daemon":
            real: RealPool = request.getfixturevalue("real_pool")
            pool = DaemonPool(list(tables), real)
        else:
            pool = PythonPool(list(tables), ProcessRunner() if request.param == "in processes" else None)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.end()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the daemon out of measurements: many tests of processes measure the same code."""
    for item in items:
        call = getattr(item, "callspec", None)  # of every test, not only of this directory's
        if call is not None and call.params.get("make_pool") == "daemon":
            item.add_marker("unmeasured")
