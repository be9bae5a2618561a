"""The benchmarks compare what is installed: bytecode and all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.bytecode import keep_bytecode

pytestmark = pytest.mark.unmeasured


def test_a_package_is_compiled_before_it_is_measured_and_what_it_runs_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "module.py").write_text("")
    keep_bytecode(tmp_path)
    assert list(tmp_path.glob("__pycache__/module.*.pyc"))
    assert "PYTHONDONTWRITEBYTECODE" not in os.environ
