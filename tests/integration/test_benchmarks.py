"""The benchmarks run, print a table, store JSON, and leave no process behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.processes import marked_with

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A directory with a copy of the benchmarks, so that results of tests are not among the real ones."""
    ignored = shutil.ignore_patterns("results", "__pycache__")
    shutil.copytree(ROOT / "benchmarks", tmp_path / "benchmarks", ignore=ignored)
    return tmp_path


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.timeout(320)
def test_one_command_measures_everything(copy: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick"],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=300,  # a quarter of it on a machine that does nothing else
        # Figures under a tracer are worth nothing, and take three times as long.
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")}
        # For the load generator, and to tell the pools of this run from those of another one.
        | {"PYTHONPATH": str(ROOT), "BENCHMARKS_OF": str(copy)},
    )
    assert done.returncode == 0, done.stderr
    (stored,) = (copy / "benchmarks" / "results").glob("*.json")
    rows = {row["what"]: row for row in json.loads(stored.read_text())["rows"]}
    for what in rows:
        assert what in done.stdout
    for what in ("start 3, until all answered", "stop 3", "PSS of a worker, of 3", "list of 3 running"):
        assert rows[what]["median"] > 0
        assert rows[what]["ratio"] > 0
    assert rows["PSS of keeper, supervisor and zygote together"]["median"] > 5
    assert marked_with(f"BENCHMARKS_OF={copy}") == {}
