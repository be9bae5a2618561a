"""The apps that servers of these tests import."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.config.importable_apps import APPS


@pytest.fixture
def apps(tmp_path: Path) -> Path:
    for name, text in APPS.items():
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path
