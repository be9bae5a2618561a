"""The copy of the tree in which `make features` tests what is left without a feature."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

from poolctl.feature import FEATURES
from tests.without_features import ROOT, WITH_LINES, take_out, with_importers


@pytest.mark.parametrize("name", FEATURES)
def test_feature_is_taken_out_of_folders_and_lists(name: str, tmp_path: Path) -> None:
    for folder in (f"poolctl/features/{name}", f"tests/features/{name}"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("poolctl/feature.py", *WITH_LINES):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    take_out(name, tmp_path)
    left = runpy.run_path(str(tmp_path / "poolctl" / "feature.py"))["FEATURES"]
    assert left == tuple(each for each in FEATURES if each != name)
    assert not [file for file in WITH_LINES if f"features.{name}" in (tmp_path / file).read_text()]
    assert [path.name for path in tmp_path.glob("*/features/*")] == []


@pytest.mark.slow
def test_features_that_import_it_go_with_it() -> None:
    assert any(with_importers(name) == [name] for name in FEATURES), "nothing imports the last of them"
    if "haproxy" in FEATURES:
        assert "haproxy" in with_importers("gateway")
