"""The registry finds the runner that POOLCTL_RUNNER names, and asks it only for what it has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

from poolctl.runners import runner_registry
from poolctl.runners.runner_registry import (
    RunnerContext,
    UnknownRunner,
    companions,
    find_orphans,
    has_orphans,
    make_runner,
)

SITE = cast(RunnerContext, "site")


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A runner's module that has no more than it needs."""
    made = ModuleType("a_runner_of_a_test")
    made.make = lambda site: f"the runner of {site}"  # type: ignore[attr-defined]
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


def test_variable_names_the_module_that_makes_the_runner(module: ModuleType) -> None:
    assert (
        cast(object, make_runner({runner_registry.VARIABLE: module.__name__}, SITE)) == "the runner of site"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.runner", "which cannot be imported: No module named 'no'"),
        (".relative", "which cannot be imported"),
        ("json", "which is no runner: it has no make()"),
    ],
)
def test_name_of_no_runner_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(UnknownRunner) as caught:
        make_runner({runner_registry.VARIABLE: name}, SITE)
    assert message in str(caught.value)
    with pytest.raises(UnknownRunner):
        companions({runner_registry.VARIABLE: name}, ["pool.toml"], "/run/poolctl/x", [])
    assert has_orphans({runner_registry.VARIABLE: name}, "/run/poolctl/x") is False


def test_runner_without_companions_and_orphans_has_none(module: ModuleType, tmp_path: Path) -> None:
    env = {runner_registry.VARIABLE: module.__name__}
    assert companions(env, ["pool.toml"], str(tmp_path), []) == {}
    assert has_orphans(env, str(tmp_path)) is False
    assert find_orphans(env, str(tmp_path)) == []


def test_local_runner_is_the_default_and_starts_the_logger_with_the_keeper(tmp_path: Path) -> None:
    for env in ({}, {runner_registry.VARIABLE: ""}, {runner_registry.VARIABLE: "local"}):
        assert "logger" in companions(env, [f"{tmp_path}/pool.toml"], str(tmp_path), [])
        assert has_orphans(env, str(tmp_path)) is False


def test_question_for_orphans_imports_no_event_loop(tmp_path: Path) -> None:
    code = f"from poolctl.runners.runner_registry import has_orphans as o; import sys; o({{}}, {str(tmp_path)!r});"
    done = subprocess.run(
        [sys.executable, "-c", f"{code} print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert not {"asyncio", "pydantic", "poolctl.runners.local.local_runner"} & set(done.stdout.split())
