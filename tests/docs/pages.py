"""The blocks of code of README and documentation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted(ROOT.glob("docs/*.md")))


class Block(NamedTuple):
    page: str
    section: str
    language: str
    text: str


def blocks(path: Path) -> Iterator[Block]:
    section = language = ""
    lines: list[str] | None = None
    for line in path.read_text().splitlines(keepends=True):
        if line.startswith("```"):
            if lines is None:
                language, lines = line[3:].strip(), []
            else:
                yield Block(path.stem, section, language, "".join(lines))
                lines = None
        elif lines is not None:
            lines.append(line)
        elif line.startswith("## "):
            section = line[3:].strip()


def some(page: str, section: str, language: str) -> list[str]:
    wanted = page, section, language
    found = [each.text for path in PAGES for each in blocks(path) if each[:3] == wanted]
    assert found, f"no {language} block in section {section!r} of {page}"
    return found


def block_with(text: str) -> str:
    """The only block of the pages that has this text, whatever its page is called."""
    found = [each.text for path in PAGES for each in blocks(path) if text in each.text]
    assert len(found) == 1, f"{len(found)} blocks have {text!r}"
    return found[0]
