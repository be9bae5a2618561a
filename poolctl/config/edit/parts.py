"""A text cut into the servers that it defines, each with its lines and the comments that belong to it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from poolctl.config.model.problems import Path

_line = re.compile(r"[^\n]*\n|[^\n]+\Z")


class Change(NamedTuple):
    """One change of a file: a key of its server gets a value; without a path that server is removed.

    Without a server the value is the table of one to add.
    """

    server: int | None
    path: Path = ()
    value: Any = None


def pairs_of(changes: Sequence[Change]) -> dict[int, list[tuple[Path, Any]]]:
    """The keys and values to set, by server."""
    found: dict[int, list[tuple[Path, Any]]] = {}
    for server, path, value in changes:
        if server is not None and path:
            found.setdefault(server, []).append((path, value))
    return found


def removed_in(changes: Sequence[Change]) -> list[int]:
    """The servers to remove, the last one first."""
    return sorted(
        (each.server for each in changes if each.server is not None and not each.path), reverse=True
    )


def added_in(changes: Sequence[Change]) -> list[dict[str, Any]]:
    """The servers to add."""
    return [each.value for each in changes if each.server is None]


def extents(positions: dict[Path, tuple[int, int]], servers: Path) -> list[tuple[int, int, int]]:
    """First line (from 0) and column of each server, and the line at which something else begins."""
    found: list[tuple[int, int, int]] = []
    limits: dict[int, int] = {}
    current = -1
    for line, owner in sorted((line, _owner(path, servers)) for path, (line, _) in positions.items()):
        if owner != current:
            limits.setdefault(current, line - 1)
            current = owner
    while (place := positions.get((*servers, len(found)))) is not None:
        found.append((place[0] - 1, place[1] - 1, limits.get(len(found), -1)))
    return found


def _owner(path: Path, servers: Path) -> int:
    """The server that a path leads to or into; -1 for none."""
    size = len(servers)
    return int(path[size]) if len(path) > size and path[:size] == servers else -1


class Part(NamedTuple):
    """The lines of a server: [first, end) are its own, [above, below) include the comments that belong to it."""

    first: int
    end: int
    above: int
    below: int


def lines_of(text: str) -> list[str]:
    """The lines of a text with their ends; only a line feed ends a line."""
    return _line.findall(text)


def part_of(lines: list[str], first: int, limit: int, column: int | None = None) -> Part:
    """The server that begins in line `first`, where something else begins in line `limit` (-1: nothing does).

    A comment directly above a server belongs to it, unless the file begins with it; so does one directly below, unless
    it is directly above the next thing. With a `column` comments belong to what is indented as they are.
    """
    end = limit = len(lines) if limit < 0 else limit
    while end > first + 1 and _is_filler(lines[end - 1]):
        end -= 1
    below, following = end, end
    while following < limit and _is_comment(lines[following]) and _indent(lines[following]) >= (column or 0):
        following += 1
        if column is not None and _indent(lines[following - 1]) > column:
            below = following
    of_next = limit < len(lines) and (column is None or _indent(lines[limit]) == column)
    if following < limit or not of_next:
        below = following
    above = first
    while above > 0 and _is_comment(lines[above - 1]) and not _is_directive(lines[above - 1]):
        if column is not None and _indent(lines[above - 1]) > column:
            break
        above -= 1
    return Part(first, end, first if above == 0 else above, below)


class Sheet:
    """The lines of a text, in which parts are replaced and removed, and lines inserted."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self._kept = [True] * len(lines)
        self._inserted: dict[int, str] = {}

    def text_of(self, part: Part) -> str:
        """The text of a server without the comments around it."""
        return "".join(self.lines[part.first : part.end])

    def replace(self, part: Part, text: str) -> None:
        """Put another text in the place of a server's own lines."""
        self._kept[part.first : part.end] = [False] * (part.end - part.first)
        ends = self.lines[part.end - 1].endswith("\n")
        self._insert(part.first, text if ends else text.rstrip("\n"))

    def remove(self, part: Part, *, gap_below: bool = False) -> None:
        """Take out a server, its comments, and one of the gaps around it: the one below if there is another above."""
        start, end = part.above, part.below
        if gap_below or start == 0 or self.is_blank(start - 1):
            while self.is_blank(end):
                end += 1
        if end == len(self.lines):
            while self.is_blank(start - 1):
                start -= 1
        self._kept[start:end] = [False] * (end - start)

    def append(self, at: int, text: str) -> None:
        """Insert whole lines before line `at`."""
        if at == len(self.lines) and self.lines and not self.lines[-1].endswith("\n"):
            text = f"\n{text}"
        self._insert(at, text)

    def is_blank(self, at: int) -> bool:
        """Whether there is a line `at`, and it is empty."""
        return 0 <= at < len(self.lines) and not self.lines[at].strip()

    def text(self) -> str:
        """The text as it is now."""
        found = []
        for at, line in enumerate([*self.lines, ""]):
            found.append(self._inserted.get(at, ""))
            if at < len(self.lines) and self._kept[at]:
                found.append(line)
        return "".join(found)

    def _insert(self, at: int, text: str) -> None:
        self._inserted[at] = self._inserted.get(at, "") + text


def in_layout_of(text: str, written: str, changed: str) -> str:
    """The text with what differs between `written`, the same as a library writes it, and `changed`.

    Empty lines that the library adds are left out. If it also breaks lines differently, the text is `changed` itself.
    """
    lines, before, after = lines_of(text), lines_of(written), lines_of(changed)
    if len(lines) != len(before):
        return changed
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, start, end, new_start, new_end in reversed(matcher.get_opcodes()):
        if tag != "equal":
            lines[start:end] = [line for line in after[new_start:new_end] if line.strip()]
    return "".join(lines)


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _is_directive(line: str) -> bool:
    return line.strip().startswith(("#:", "#!"))


def _is_filler(line: str) -> bool:
    return not line.strip() or _is_comment(line)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))
