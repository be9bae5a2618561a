"""The plugin's module, which pytest loads in every run where poolctl is installed."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.integration
def test_loading_the_plugin_imports_nothing_of_poolctl_but_itself() -> None:
    script = (
        "import pytest, sys; before = set(sys.modules); import poolctl.features.pytest_plugin.plugin;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == [
        "poolctl", "poolctl.feature", "poolctl.features", "poolctl.features.pytest_plugin",
        "poolctl.features.pytest_plugin.plugin",
    ]  # fmt: skip


def test_types_of_the_fixtures_are_names_of_the_package_without_pytest() -> None:
    script = (
        "import sys; sys.modules['pytest'] = None; from poolctl import *; print(PoolFactory, PoolUnderTest)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, timeout=60)
    assert "PoolFactory" in done.stdout, done.stderr
