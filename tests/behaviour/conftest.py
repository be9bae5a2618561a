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
    """Expect the tests to fail that a kind of pool does not pass yet (`not_yet(kind, …)`), and say when it does."""
    for item in items:
        call = getattr(item, "callspec", None)  # of every test, not only of this directory's
        kind = call.params.get("make_pool", "") if call is not None else ""
        if kind == "daemon":
            item.add_marker("unmeasured")  # many tests of processes measure the same code
        for marker in item.iter_markers("not_yet"):
            if kind in marker.args:
                item.add_marker(pytest.mark.xfail(strict=True, reason="the Python pool has no core yet"))
