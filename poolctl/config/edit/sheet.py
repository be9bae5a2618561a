"""A text as lines, cut into the servers that it defines, each with the comments that belong to it."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from poolctl.config.model.problems import Path

_line = re.compile(r"[^\n]*\n|[^\n]+\Z")


class Part(NamedTuple):
    """The lines of a server: [first, end) are its own, [above, below) include the comments that belong to it.

    `column` is where its text begins in the first line.
    """

    first: int
    end: int
    above: int
    below: int
    column: int


def lines_of(text: str) -> list[str]:
    """The lines of a text with their ends; only a line feed ends a line."""
    return _line.findall(text)


class Sheet:
    """The lines of a text, in which parts are replaced and removed, and lines inserted."""

    def __init__(self, text: str) -> None:
        self.lines = lines_of(text)
        self._kept = [True] * len(self.lines)
        self._inserted: dict[int, str] = {}

    def parts(
        self, positions: dict[Path, tuple[int, int]], servers: Path, indent: int | None = None
    ) -> list[Part]:
        """The servers of the list at that path. With an `indent`, comments belong to lines of their indentation."""
        size = len(servers)
        limits: dict[int, int] = {}
        current = -1
        owners = (
            (line, int(path[size]) if len(path) > size and path[:size] == servers else -1)
            for path, (line, _) in positions.items()
        )
        for line, owner in sorted(owners):
            if owner != current:
                limits.setdefault(current, line - 1)
                current = owner
        found: list[Part] = []
        while (place := positions.get((*servers, len(found)))) is not None:
            limit = limits.get(len(found), len(self.lines))
            found.append(self._part(place[0] - 1, place[1] - 1, limit, indent))
        return found

    def _part(self, first: int, column: int, limit: int, indent: int | None) -> Part:
        """The server that begins in line `first`, where something else begins in line `limit`.

        A comment directly above a server belongs to it, unless the file begins with it; so does one directly below,
        unless it is directly above the next thing.
        """
        lines, end = self.lines, limit
        while end > first + 1 and (not lines[end - 1].strip() or _is_comment(lines[end - 1])):
            end -= 1
        below, following = end, end
        while (
            following < limit and _is_comment(lines[following]) and _indent(lines[following]) >= (indent or 0)
        ):
            following += 1
            if indent is not None and _indent(lines[following - 1]) > indent:
                below = following
        of_next = limit < len(lines) and (indent is None or _indent(lines[limit]) == indent)
        if following < limit or not of_next:
            below = following
        above = first
        while (
            above > 0
            and _is_comment(lines[above - 1])
            and not lines[above - 1].strip().startswith(("#:", "#!"))
        ):
            if indent is not None and _indent(lines[above - 1]) > indent:
                break
            above -= 1
        return Part(first, end, first if above == 0 else above, below, column)

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
        rows = zip([*self.lines, ""], [*self._kept, True], strict=True)
        return "".join(self._inserted.get(at, "") + line * kept for at, (line, kept) in enumerate(rows))

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


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))
