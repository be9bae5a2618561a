"""Fixtures with running pools, and their servers' logs in the reports of failed tests.

pytest imports this module in every run of every project with poolctl installed, so `pools` is imported on first use.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from poolctl.features.pytest_plugin.pools import PoolFactory

_IN_USE = pytest.StashKey["dict[str, PoolFactory]"]()  # by fixture name


@pytest.fixture
def poolctl_pool(request: pytest.FixtureRequest) -> Iterator[PoolFactory]:
    """Starts pools: `poolctl_pool(users="shop.users:app").url("users")`. They are stopped after the test."""
    yield from _pools(request, "poolctl_pool")


@pytest.fixture(scope="session")
def poolctl_session_pool(request: pytest.FixtureRequest) -> Iterator[PoolFactory]:
    """Starts pools as `poolctl_pool` does. They are stopped after the last test."""
    yield from _pools(request, "poolctl_session_pool")


def _pools(request: pytest.FixtureRequest, name: str) -> Iterator[PoolFactory]:
    from poolctl.features.pytest_plugin.pools import PoolFactory

    in_use = request.config.stash.setdefault(_IN_USE, {})
    pools = in_use[name] = PoolFactory(str(request.config.rootpath))
    try:
        yield pools
    finally:
        del in_use[name]
        pools.stop()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Add the logs of the servers that a failed test uses."""
    outcome = yield
    in_use = item.config.stash.get(_IN_USE, None)
    if in_use and call.excinfo is not None and (report := outcome.get_result()).failed:
        for name, pools in in_use.items():
            if name in getattr(item, "fixturenames", ()):
                report.sections += pools.sections(call.start if name == "poolctl_session_pool" else 0.0)
