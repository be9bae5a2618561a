"""The diagrams of the documentation are those of their texts, and name what there is."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.images.sequences import HERE, draw

TEXTS = sorted(HERE.glob("*.txt"))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_a_diagram_is_that_of_its_text(path: Path) -> None:
    drawn = path.with_suffix(".svg").read_text()
    assert drawn == draw(path.read_text()), "python docs/images/sequences.py"
    said = " ".join(ElementTree.fromstring(drawn).itertext())
    for word in path.read_text().replace("->", " ").replace("|", " ").split():
        assert word.strip(":,") in said or word in ("begin", "end"), word


def test_a_line_that_is_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="'a -> c: hello'"):
        draw("Title\na | b\na -> c: hello")
