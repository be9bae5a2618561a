"""The source distribution holds all that its README, its Makefile and its tests need."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sdist = pytest.importorskip("hatchling.builders.sdist")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="git lists the files of a repository only"),
]


@pytest.mark.heavy
def test_source_distribution_has_every_file_of_the_repository(tmp_path: Path) -> None:
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (built,) = sdist.SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in listed.split("\0") if name and (ROOT / name).exists() and name not in names]
    assert missing == []
    assert {".ci/venv", "Makefile", "examples/watch.py", "benchmarks/__main__.py"} <= names, (
        "for make demo and bench"
    )
