"""Edits within brackets: `[a, b]` and `{ key = value }`, on one line or on several, in every format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolctl.config.edit.spans import (
    Node,
    Path,
    Splice,
    Uneditable,
    begins_line,
    indentation,
    line_end,
    line_start,
    next_line,
    with_comments_above,
)


class Style:
    """How a format writes within brackets: a value, a pair of key and value, and whether it has comments."""

    def __init__(
        self,
        value: Callable[[Any], str],
        pair: Callable[[str, Any], str],
        *,
        comments: bool = True,
        padding: str = "",
    ) -> None:
        self.value = value
        self.pair = pair
        self.comments = comments
        self.padding = padding


def nested(path: Path, value: Any) -> Any:
    """The value within a table for each key of the path."""
    for key in reversed(path):
        value = {key: value}
    return value


def insert(text: str, node: Node, written: str, style: Style) -> list[Splice]:
    """Put a written element at the end of a collection in brackets."""
    if not node.items:
        return [_into_empty(text, node, written, style)]
    last = node.items[-1]
    comma = _comma(text, last.node.end, style)
    after = last.node.end if comma < 0 else comma + 1
    if not begins_line(text, last.start):
        return [Splice(after, after, f" {written}" if comma >= 0 else f", {written}")]
    lines = "\n" + indentation(text, last.start) + written
    end = line_end(text, after)
    if end >= node.end:  # the closing bracket is in this line
        return [Splice(after, after, lines if comma >= 0 else f",{lines}")]
    found = [] if comma >= 0 else [Splice(after, after, ",")]
    return [*found, Splice(end, end, lines + ("," if comma >= 0 else ""))]


def _into_empty(text: str, node: Node, written: str, style: Style) -> Splice:
    inside = text[node.start + 1 : node.end - 1]
    if inside.strip():  # a comment
        return Splice(node.end - 1, node.end - 1, f"{written}\n{indentation(text, node.end - 1)}")
    padding = style.padding if node.kind == "table" else ""
    return Splice(node.start + 1, node.end - 1, f"{padding}{written}{padding}")


def remove(text: str, node: Node, index: int, style: Style) -> list[Splice]:
    """Take an element out of a collection in brackets, with its comments and its comma."""
    item = node.items[index]
    comma = _comma(text, item.node.end, style)
    end = item.node.end if comma < 0 else comma + 1
    if begins_line(text, item.start) and line_end(text, end) < node.end and _only_comment(text, end, style):
        start = with_comments_above(text, item.start) if style.comments else line_start(text, item.start)
        found = [Splice(max(start, node.start + 1), next_line(text, end))]
        if comma < 0 and index and not style.comments:
            before = _comma(text, node.items[index - 1].node.end, style)
            found.append(Splice(before, before + 1))
        return found
    if index + 1 < len(node.items):
        return [Splice(item.start, node.items[index + 1].start)]
    if index:
        return [Splice(node.items[index - 1].node.end, item.node.end)]
    return [Splice(node.start + 1, node.end - 1)]


def _only_comment(text: str, at: int, style: Style) -> bool:
    rest = text[at : line_end(text, at)].strip()
    return not rest or (style.comments and rest.startswith("#"))


def _comma(text: str, at: int, style: Style) -> int:
    """Where the comma after an element is, -1 when none follows."""
    while at < len(text):
        if text[at] == ",":
            return at
        if text[at] == "#" and style.comments:
            at = line_end(text, at)
        elif text[at].isspace():
            at += 1
        else:
            return -1
    return -1


def set_within(text: str, node: Node, path: Path, value: Any, style: Style) -> list[Splice]:
    """Set what the path leads to from a collection in brackets."""
    for number, key in enumerate(path):
        child = node.child(key)
        if child is None:
            if node.kind != "table":
                raise Uneditable("there is no table to put it into")
            return insert(text, node, style.pair(str(key), nested(path[number + 1 :], value)), style)
        node = child
    return [Splice(node.start, node.end, style.value(value))]


def unset_within(text: str, node: Node, path: Path, style: Style) -> list[Splice]:
    """Take out what the path leads to from a collection in brackets."""
    around = node.find(path[:-1])
    for index, item in enumerate(around.items if around is not None else ()):
        if around is not None and item.key == path[-1]:
            return remove(text, around, index, style)
    raise Uneditable("there is no such key")
