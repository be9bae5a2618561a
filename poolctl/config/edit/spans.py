"""Where the values of a text begin and end, and what an edit of the text is made of.

A file is edited by cutting out and putting in, never by writing it anew: what an edit is not about stays as it is,
byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

Path = tuple[str | int, ...]


class Uneditable(Exception):
    """The edit cannot be made without touching more than it is about."""


class Splice(NamedTuple):
    """The text from `start` up to `end` becomes `text`."""

    start: int
    end: int
    text: str = ""


class Item(NamedTuple):
    """An element of a collection; `start` is where its key begins, in a list what stands before its value."""

    key: str | int
    start: int
    node: Node


class Node:
    """A value: `kind` is table, list, plain or alias; `flow` tells brackets from what is told by indentation."""

    __slots__ = ("end", "flow", "items", "kind", "start")

    def __init__(self, kind: str, start: int, end: int = -1, *, flow: bool = True) -> None:
        self.kind = kind
        self.start = start
        self.end = end
        self.flow = flow
        self.items: list[Item] = []

    def __repr__(self) -> str:
        return f"<Node {self.kind} {self.start}-{self.end}, {len(self.items)} items>"

    def child(self, key: str | int) -> Node | None:
        """The value of a key or an index."""
        if self.kind == "list" and isinstance(key, int):
            return self.items[key].node if key < len(self.items) else None
        return next((item.node for item in self.items if item.key == key), None)

    def find(self, path: Path) -> Node | None:
        """The value at the end of a path."""
        node: Node | None = self
        for key in path:
            node = node.child(key) if node is not None else None
        return node


def spliced(text: str, splices: Iterable[Splice]) -> str:
    """The text with all of them done. Uneditable for those that get into each other's way."""
    parts: list[str] = []
    here = 0
    for splice in _merged(splices):
        if splice.start < here:
            raise Uneditable("two changes of one place")
        parts += [text[here : splice.start], splice.text]
        here = splice.end
    return "".join([*parts, text[here:]])


def _merged(splices: Iterable[Splice]) -> list[Splice]:
    """In their order; what several of them take away is taken away once."""
    found: list[Splice] = []
    for splice in sorted(splices, key=lambda each: (each.start, each.end)):
        last = found[-1] if found else None
        if last is not None and splice.start < last.end and not splice.text and not last.text:
            found[-1] = Splice(last.start, max(last.end, splice.end))
        else:
            found.append(splice)
    return found


def line_start(text: str, at: int) -> int:
    """Where the line of this place begins."""
    return text.rfind("\n", 0, at) + 1


def line_end(text: str, at: int) -> int:
    """Where the line of this place ends, before its line break."""
    end = text.find("\n", at)
    end = len(text) if end < 0 else end
    return end - 1 if end > at and text[end - 1] == "\r" else end


def next_line(text: str, at: int) -> int:
    """Where the line after this place begins."""
    end = text.find("\n", at)
    return len(text) if end < 0 else end + 1


def indentation(text: str, at: int) -> str:
    """What stands before the first word of this place's line."""
    start = line_start(text, at)
    line = text[start : line_end(text, start)]
    return line[: len(line) - len(line.lstrip(" \t"))]


def begins_line(text: str, at: int) -> bool:
    """Whether nothing but space stands before this place in its line."""
    return not text[line_start(text, at) : at].strip()


def with_comments_above(text: str, at: int, column: int | None = None) -> int:
    """Where the comment lines directly above this place's line begin, else the line itself.

    What the file begins with is about the file, and so is a directive (`#:schema`). Comments that begin right of
    the column are about what stands above them.
    """
    own = start = line_start(text, at)
    while start > 0:
        above = line_start(text, start - 1)
        line = text[above:start].strip()
        if not line.startswith("#") or line.startswith(("#:", "#!")):
            return start
        if column is not None and len(indentation(text, above)) > column:
            return start
        start = above
    return own


def is_comment(text: str, at: int) -> bool:
    """Whether the line that begins here is a comment."""
    return text[at : line_end(text, at)].lstrip().startswith("#")


def is_blank(text: str, at: int) -> bool:
    """Whether a line begins here, and it is empty."""
    return at < len(text) and not text[at : next_line(text, at)].strip()


def without_blanks_above(text: str, at: int) -> int:
    """Where the empty lines above this beginning of a line begin."""
    while at > 0 and not text[line_start(text, at - 1) : at].strip():
        at = line_start(text, at - 1)
    return at
