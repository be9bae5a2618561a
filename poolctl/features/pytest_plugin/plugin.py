"""Fixtures that start pools; test reports show the logs and the unexpected exits of their servers.

pytest imports this module in every run of every project with poolctl installed, so `pools` is imported on first use.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from poolctl.features.pytest_plugin.pools import PoolFactory

_IN_USE = pytest.StashKey["dict[str, PoolFactory]"]()  # by fixture name
_SETUP_TIME = pytest.StashKey[float]()  # the time at which the test's setup began
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
    setup_time = item.stash.setdefault(_SETUP_TIME, call.start)
    has_failed = call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception)
    exits: list[str] = []
    if (in_use := item.config.stash.get(_IN_USE, None)) and (has_failed or call.when != "setup"):
        kind = _output_kind(item.config)
        for name in in_use.keys() & {*_fixtures_of(item)}:
            pools = in_use[name]
            unexpected_exits = [f"server {server} {exit_text}" for server, exit_text in pools.new_exits()]
            if unexpected_exits:
                item.add_report_section(
                    call.when, f"{kind}: Servers that ended unexpectedly", "\n".join(unexpected_exits)
                )
            if unexpected_exits or has_failed:
                for title, text in pools.sections(setup_time if name == "poolctl_session_pool" else 0.0):
                    item.add_report_section(call.when, f"{kind}: {title}", text)
            exits += unexpected_exits
        if call.when == "teardown" and "poolctl_pool" in in_use:
            in_use.pop("poolctl_pool").remove_files()
    outcome = yield
    if exits and item.config.getini(_FAIL_ON_EXIT) and (report := outcome.get_result()).passed:
        report.outcome, report.longrepr = "failed", "\n".join([*exits, f"({_FAIL_ON_EXIT} is set)"])


def _fixtures_of(item: pytest.Item) -> Iterable[str]:
    """The names of the test's fixtures, including fixtures fetched by name."""
    return getattr(getattr(item, "_request", item), "fixturenames", ())


def _output_kind(config: pytest.Config) -> str:
    """The kind of captured output that `junit_logging` selects for JUnit XML."""
    logging = config.getini("junit_logging") if config.pluginmanager.has_plugin("junitxml") else ""
    return {"log": "log", "system-err": "stderr"}.get(str(logging), "stdout")
