"""What docs/architecture.md and CONTRIBUTING.md name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.test_floors import FLOORS

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("text", [ARCHITECTURE, CONTRIBUTING], ids=["architecture", "contributing"])
def test_paths_are_there(text: str) -> None:
    paths = set(re.findall(r"`((?:poolctl|tests|benchmarks|docs|\.ci)/[\w./-]+)`", text))
    assert paths
    assert not [path for path in sorted(paths) if not (ROOT / path).exists()]


def test_names_are_in_the_modules_that_are_given_for_them() -> None:
    named = re.findall(r"`([\w.]+)`\s+(?:of|in)\s+`(poolctl/[\w/]+\.py)`", ARCHITECTURE)
    assert named
    for name, path in named:
        word = name.rpartition(".")[2]
        assert re.search(rf"\b{word}\b", (ROOT / path).read_text()), f"{path} has no {word}"


@pytest.mark.parametrize("text", [ARCHITECTURE, CONTRIBUTING], ids=["architecture", "contributing"])
def test_make_targets_are_there(text: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = {word for line in re.findall(r"\bmake ([a-z ]+?)(?: +#|`|\n)", text) for word in line.split()}
    assert not [name for name in sorted(named) if not re.search(rf"^{name}:", makefile, re.MULTILINE)]


def test_floors_are_those_that_are_checked() -> None:
    rows = re.findall(r"^\| (\d) \| (.+?) \|", ARCHITECTURE, re.MULTILINE)
    found = {name: int(floor) for floor, names in rows for name in re.findall(r"`(\w+)`", names)}
    # The last two are the package itself.
    assert found == {name: floor for name, floor in FLOORS.items() if name not in ("__main__", "__init__")}


def test_glossary_names_nothing_twice() -> None:
    words = re.findall(r"^\| ([a-z ]+) \|", ARCHITECTURE.partition("## Glossary")[2], re.MULTILINE)[1:]
    assert words
    assert len(words) == len(set(words))
