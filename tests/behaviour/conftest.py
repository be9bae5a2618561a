"""The four kinds of pool that every behaviour is tested with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.runner_registry import VARIABLE
from tests.deadline import wait_until
from tests.real_pool import RealPool

from .host_runner import HOST
from .pools import AnyPool, DaemonPool, PythonPool, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


REPOSITORY = Path(__file__).parents[2]
WITHOUT_PROGRAMS = ("in this process", "daemon over a host")


@pytest.fixture
def host(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A running host of servers (see host_runner); the value is the environment that makes a supervisor use it."""
    path = tmp_path / "host"
    argv = [sys.executable, "-m", "tests.behaviour.host_runner", str(path)]
    process = subprocess.Popen(argv, cwd=REPOSITORY)
    try:
        wait_until(path.exists)
        variables = {VARIABLE: "tests.behaviour.host_runner", HOST: str(path), "PYTHONPATH": str(REPOSITORY)}
        yield variables
    finally:
        process.kill()
        process.wait()


# The last one replaces the daemon's runner: test_runner_capabilities.py tries most of its commands with it.
OVER_A_HOST = pytest.param("daemon over a host", marks=pytest.mark.heavy)


# With the daemon they are slow: the contract starts it hundreds of times for the same behaviour.
@pytest.fixture(
    params=["in this process", "in processes", pytest.param("daemon", marks=pytest.mark.slow), OVER_A_HOST]
)
def make_pool(request: pytest.FixtureRequest) -> Iterator[Callable[..., AnyPool]]:
    """`make_pool(table, …)` creates a pool of these servers without starting it; each test runs with every kind."""
    made: list[AnyPool] = []

    def make(
        *tables: dict[str, Any], programs: bool = False, processes: bool = False, sleep: bool = False
    ) -> AnyPool:
        if sleep and request.param == "daemon over a host":
            pytest.skip("its runner cannot let servers sleep")
        if programs and request.param in WITHOUT_PROGRAMS:
            pytest.skip("programs need processes")
        if processes and request.param in WITHOUT_PROGRAMS:
            pytest.skip("several workers need processes")
        pool: AnyPool
        if request.param.startswith("daemon"):
            # Created first, so that the host ends after the pool.
            variables = request.getfixturevalue("host") if request.param == "daemon over a host" else {}
            real: RealPool = request.getfixturevalue("real_pool")
            real.env |= variables
            pool = DaemonPool(list(tables), real)
        else:
            pool = PythonPool(list(tables), ProcessRunner() if request.param == "in processes" else None)
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.end()
