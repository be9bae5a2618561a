"""Changes to the servers of one file: in its parsed value, and in its text cut into servers with their comments."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from poolctl.config.values.problems import Path, Tree

Pairs = list[tuple[Path, Tree]]

_line = re.compile(r"[^\n]*\n|[^\n]+\Z")


# The value of a key that is taken out.
REMOVED = object()


def _same(value: Tree) -> Tree:
    return value


class Changes:
    """New values of keys by the index of their server, servers to remove, and tables to add as servers."""

    def __init__(self) -> None:
        self.pairs: dict[int, Pairs] = {}
        self.removed: set[int] = set()
        self.added: list[dict[str, Tree]] = []

    def apply(self, servers: Tree, convert: Callable[[Tree], Tree] = _same) -> None:
        """Change the servers of a parsed file; `convert` turns a plain value into its library's representation."""
        for index, pairs in self.pairs.items():
            assign(servers[index], pairs, convert)
        for index in sorted(self.removed, reverse=True):
            del servers[index]
        for table in self.added:
            servers.append(convert(table))

    def first(self) -> Path:
        """The path of one of them, in the list of servers."""
        for index, pairs in self.pairs.items():
            return (index, *pairs[0][0])
        return tuple(sorted(self.removed)[:1])


def assign(table: Tree, pairs: Pairs, convert: Callable[[Tree], Tree] = _same) -> None:
    """Give keys of a table their values, REMOVED for none; tables on the way are made."""
    for path, value in pairs:
        at = table
        for number, key in enumerate(path[:-1], 1):
            if at.get(key) is None:
                for inner in reversed(path[number:]):
                    value = {inner: value}
                path = path[:number]
                break
            at = at[key]
        if value is REMOVED:
            del at[path[-1]]
        else:
            at[path[-1]] = convert(value)


def list_at(data: Tree, servers: Path) -> Tree:
    """The list of servers of a parsed file; an empty list is inserted if there is no list."""
    for number, key in enumerate(servers, 1):
        if data.get(key) is None:
            data[key] = [] if number == len(servers) else {}
        data = data[key]
    return data


class Part(NamedTuple):
    """The lines of a server: [first, end) are its own, [above, below) include the comments that belong to it."""

    first: int
    end: int
    above: int
    below: int


class Parts:
    """The lines of a text, cut into the servers that it defines.

    ValueError for a text whose servers are not tables with heads of their own, one below the other.
    """

    def __init__(self, text: str, positions: dict[Path, tuple[int, int]], servers: Path) -> None:
        self.lines = _lines_of(text)
        self._new = [*self.lines, ""]
        starts: list[int] = []
        while (place := positions.get((*servers, len(starts)))) is not None:
            starts.append(place[0] - 1)
        if servers in positions and not starts:
            raise ValueError("its servers are not one below the other")
        if not all(self.lines[first].lstrip().startswith("[[") for first in starts):
            raise ValueError("its servers are not tables with heads of their own")
        limits: dict[int, int] = {}
        current = -1
        for path, (line, _) in sorted(positions.items(), key=lambda item: item[1][0]):
            own = path[len(servers) :] if path[: len(servers)] == servers else ()
            owner = int(own[0]) if own else -1
            if owner != current:
                limits.setdefault(current, line - 1)
                current = owner
        self.servers = [
            self._part(first, limits.get(number, len(self.lines))) for number, first in enumerate(starts)
        ]

    def _part(self, first: int, limit: int) -> Part:
        """The server that begins in line `first`, where something else begins in line `limit`.

        A comment directly above a server belongs to it, unless the file begins with it; so does one directly below,
        unless it is directly above the next thing.
        """
        end = limit
        while end > first + 1 and (self._is_blank(end - 1) or self._is_comment(end - 1)):
            end -= 1
        following = end
        while following < limit and self._is_comment(following):
            following += 1
        below = following if following < limit or limit == len(self.lines) else end
        above = first
        while above > 0 and self._is_comment(above - 1):
            if self.lines[above - 1].lstrip().startswith(("#:", "#!")):
                break  # a directive, such as #:schema
            above -= 1
        return Part(first, end, above or first, below)

    def _is_blank(self, at: int) -> bool:
        """Whether there is a line `at`, and it is empty."""
        return 0 <= at < len(self.lines) and not self.lines[at].strip()

    def _is_comment(self, at: int) -> bool:
        return self.lines[at].lstrip().startswith("#")

    def change(self, changes: Changes, edit: Callable[[str, Pairs], str], added: str) -> str:
        """The text with the changes made: `edit` gives the new text of a server, `added` are the new servers."""
        for index, pairs in changes.pairs.items():
            part = self.servers[index]
            text = edit("".join(self.lines[part.first : part.end]), pairs)
            ends = self.lines[part.end - 1].endswith("\n")
            self._replace(part.first, part.end, text if ends else text.rstrip("\n"))
        for index in changes.removed:
            self._remove(self.servers[index])
        if added:
            self._append(added)
        return "".join(self._new)

    def _replace(self, start: int, end: int, text: str = "") -> None:
        self._new[start:end] = [text] + [""] * (end - start - 1)

    def _remove(self, part: Part) -> None:
        """Take out a server, its comments, and a gap next to it: the gap below if there is also one above."""
        start, end = part.above, part.below
        if start == 0 or self._is_blank(start - 1):
            while self._is_blank(end):
                end += 1
        if end == len(self.lines):
            while self._is_blank(start - 1):
                start -= 1
        self._replace(start, end)

    def _append(self, text: str) -> None:
        """Insert whole lines behind the last server."""
        at = self.servers[-1].below if self.servers else len(self.lines)
        unended = at == len(self.lines) > 0 and not self.lines[-1].endswith("\n")
        follows = at < len(self.lines) and not self._is_blank(at)
        self._new[at] = "\n" * unended + "\n" * bool(at) + text + "\n" * follows + self._new[at]


def _lines_of(text: str) -> list[str]:
    """The lines of a text with their ends; only a line feed ends a line."""
    return _line.findall(text)


def in_layout_of(text: str, changed: str) -> str:
    """The changed text without the empty lines that tomlkit adds."""
    lines, after = _lines_of(text), _lines_of(changed)
    matcher = difflib.SequenceMatcher(None, lines, after, autojunk=False)
    for tag, start, end, new_start, new_end in reversed(matcher.get_opcodes()):
        if tag != "equal":
            lines[start:end] = [line for line in after[new_start:new_end] if line.strip()]
    return "".join(lines)
