"""`poolctl import` in the process of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from poolctl.cli.main import main

Said = tuple[int, str, str]


@pytest.fixture
def poolctl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """Exit code, output and errors of a command. Its directory is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POOLCTL_CONFIG", raising=False)
    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(tmp_path / "run"))

    def run(*args: str) -> Said:
        capsys.readouterr()
        return (main(args), *capsys.readouterr())

    return run
