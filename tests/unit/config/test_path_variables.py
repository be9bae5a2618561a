"""Relative paths in environment variables that an interpreter reads at its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl.config.values.path_variables import with_absolute_paths


def test_relative_paths_become_absolute_and_nothing_else_changes() -> None:
    env = {
        "PYTHONPATH": "src:/opt/lib::../shared", "COVERAGE_PROCESS_START": ".coveragerc", "PYTHONPYCACHEPREFIX": "a:b",
        "LD_LIBRARY_PATH": "", "PATH": "bin:/bin", "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    assert with_absolute_paths(env, "/srv/app") == env | {
        "PYTHONPATH": "/srv/app/src:/opt/lib:/srv/app:/srv/app/../shared",
        "COVERAGE_PROCESS_START": "/srv/app/.coveragerc",
        "PYTHONPYCACHEPREFIX": "/srv/app/a:b",
    }


def test_the_current_directory_is_the_default_and_may_be_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    assert with_absolute_paths({"PYTHONPATH": "src"}) == {"PYTHONPATH": f"{place}/src"}
    place.rmdir()
    assert with_absolute_paths({"PYTHONPATH": "src"}) == {"PYTHONPATH": "src"}
