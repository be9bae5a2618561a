"""Fixtures with running pools, and their servers' logs and unexpected ends in the reports of tests.

pytest imports this module in every run of every project with poolctl installed, so `pools` is imported on first use.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from poolctl.features.pytest_plugin.pools import PoolFactory

_IN_USE = pytest.StashKey["dict[str, PoolFactory]"]()  # by fixture name
_BEGUN = pytest.StashKey[float]()  # when the test's setup began
_FAIL_ON_EXIT = "poolctl_fail_on_exit"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the plugin's setting."""
    parser.addini(
        _FAIL_ON_EXIT,
        type="bool",
        default=False,
        help="fail tests during which a server of a pool ended by itself",
    )


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
        pools.stop()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the files of pools that were in use until the end."""
    for pools in config.stash.get(_IN_USE, {}).values():
        pools.remove_files()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Add the server logs of a failed test, and unexpected exits of servers in any test."""
    begun = item.stash.setdefault(_BEGUN, call.start)
    raised = call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception)
    exits: list[str] = []
    if (in_use := item.config.stash.get(_IN_USE, None)) and (raised or call.when != "setup"):
        kind = _captured_as(item.config)
        for name in in_use.keys() & {*_fixtures_of(item)}:
            pools = in_use[name]
            ended = [f"server {server} {how}" for server, how in pools.new_exits()]
            if ended:
                item.add_report_section(
                    call.when, f"{kind}: Servers that ended unexpectedly", "\n".join(ended)
                )
            if ended or raised:
                for title, text in pools.sections(begun if name == "poolctl_session_pool" else 0.0):
                    item.add_report_section(call.when, f"{kind}: {title}", text)
            exits += ended
        if call.when == "teardown" and "poolctl_pool" in in_use:
            in_use.pop("poolctl_pool").remove_files()
    outcome = yield
    if exits and item.config.getini(_FAIL_ON_EXIT) and (report := outcome.get_result()).passed:
        report.outcome, report.longrepr = "failed", "\n".join([*exits, f"({_FAIL_ON_EXIT} is set)"])


def _fixtures_of(item: pytest.Item) -> Iterable[str]:
    """The names of the test's fixtures, including fixtures fetched by name."""
    return getattr(getattr(item, "_request", item), "fixturenames", ())


def _captured_as(config: pytest.Config) -> str:
    """The kind of captured output that `junit_logging` selects for JUnit XML."""
    logging = config.getini("junit_logging") if config.pluginmanager.has_plugin("junitxml") else ""
    return {"log": "log", "system-err": "stderr"}.get(str(logging), "stdout")
