"""Edits of a YAML text: tables and lists by indentation, and what stands within brackets."""

from __future__ import annotations

import json
import re
from typing import Any

from poolctl.config.edit import flow_edit
from poolctl.config.edit.spans import (
    Node,
    Path,
    Splice,
    Uneditable,
    begins_line,
    indentation,
    is_blank,
    is_comment,
    line_end,
    line_start,
    next_line,
    with_comments_above,
    without_blanks_above,
)
from poolctl.config.edit.yaml_spans import read
from poolctl.config.files.yaml_file import plain

_word = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")


def value_text(value: Any) -> str:
    """One value, what is within it in brackets."""
    if isinstance(value, str):
        bare = _word.fullmatch(value) and plain(value) == value
        return value if bare else json.dumps(value, ensure_ascii=False).replace("\x7f", "\\x7f")
    if isinstance(value, dict):
        inner = ", ".join(pair_text(str(key), each) for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(value_text, value))}]"
    return json.dumps(value)


def pair_text(key: str, value: Any) -> str:
    """A key with its value."""
    return f"{key if _word.fullmatch(key) else json.dumps(key, ensure_ascii=False)}: {value_text(value)}"


STYLE = flow_edit.Style(value_text, pair_text, padding=" ")


class YamlText:
    """A text that can be parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        root = read(text)
        self.root = root if root is not None else Node("null", len(text), len(text))

    def set(self, path: Path, value: Any) -> list[Splice]:
        """Give a key a value."""
        node = self.root
        for number, key in enumerate(path):
            rest = path[number:]
            if node.kind == "null":
                return self._replace(path[:number], node, flow_edit.nested(rest, value))
            if node.flow and node.kind in ("table", "list"):
                return flow_edit.set_within(self.text, node, rest, value, STYLE)
            child = node.child(key)
            if child is None:
                if node.kind != "table" or not node.items:
                    raise Uneditable("there is no table to put it into")
                return [self._new_key(node, pair_text(str(key), flow_edit.nested(rest[1:], value)))]
            node = child
        return self._replace(path, node, value)

    def _new_key(self, node: Node, written: str) -> Splice:
        end = line_end(self.text, node.end)
        return Splice(end, end, f"\n{' ' * self._column(node.items[0].start)}{written}")

    def _column(self, at: int) -> int:
        return at - line_start(self.text, at)

    def _replace(self, path: Path, node: Node, value: Any) -> list[Splice]:
        written = value_text(value)
        if node.kind == "alias":
            raise Uneditable("it is an alias of what stands elsewhere")
        if not path and node.kind == "null":
            before = "" if not self.text or self.text.endswith("\n") else "\n"
            lines = [pair_text(str(k), v) for k, v in value.items()] if isinstance(value, dict) else [written]
            return [Splice(len(self.text), len(self.text), before + "\n".join(lines) + "\n")]
        if node.start == node.end:
            return [Splice(node.start, node.end, f" {written}")]
        if node.flow:
            return [Splice(node.start, node.end, written)]
        if not path:
            return [Splice(node.start, node.end, written)]
        colon = self._colon(path)
        end = line_end(self.text, colon)
        if node.start < end:  # a list's `- - a`, a table behind an anchor
            return [Splice(node.start, node.end, written)]
        return [Splice(colon, colon, f" {written}"), Splice(end, line_end(self.text, node.end))]

    def _colon(self, path: Path) -> int:
        """After the colon (or the dash) before the value at the end of a path."""
        around = self.root.find(path[:-1])
        for item in around.items if around is not None else ():
            if item.key == path[-1]:
                sign = "-" if isinstance(item.key, int) else ":"
                quote = self.text[item.start] if self.text[item.start] in "\"'" else ""
                at = self.text.index(quote, item.start + 1) + 1 if quote else item.start
                return self.text.index(sign, at) + 1
        raise Uneditable("there is no such key")

    def unset(self, path: Path) -> list[Splice]:
        """Take a key out, with the comment behind it."""
        around = self.root.find(path[:-1])
        if around is None or around.child(path[-1]) is None:
            raise Uneditable("there is no such key")
        if around.flow:
            return flow_edit.unset_within(self.text, around, path[-1:], STYLE)
        at = next(number for number, item in enumerate(around.items) if item.key == path[-1])
        item = around.items[at]
        if len(around.items) == 1:
            return self._replace(path[:-1], around, {})
        if begins_line(self.text, item.start):
            return [Splice(line_start(self.text, item.start), next_line(self.text, item.node.end))]
        if at + 1 < len(around.items):  # the first of `- a: 1`
            return [Splice(item.start, around.items[at + 1].start)]
        raise Uneditable("it shares its line")

    def append(self, path: Path, table: dict[str, Any]) -> list[Splice]:
        """Put a table at the end of a list, which may not be there yet."""
        node = self.root.find(path)
        if node is None or node.kind == "null":
            if node is None and self.root.kind == "table" and not self.root.flow:
                end = line_end(self.text, self.root.end)
                return [Splice(end, end, f"\n{path[-1]}:{self._element('  ', table)}")]
            return self.set(path, [table])
        if node.kind != "list":
            raise Uneditable("this is no list")
        if node.flow:
            return flow_edit.insert(self.text, node, value_text(table), STYLE)
        end = line_end(self.text, self._end(node, len(node.items) - 1) - 1)
        apart = len(node.items) > 1 and is_blank(
            self.text, without_blanks_above(self.text, self._begin(node, len(node.items) - 1))
        )
        written = self._element(" " * self._column(node.start), table)
        return [Splice(end, end, ("\n" if apart else "") + written)]

    def _element(self, indent: str, table: dict[str, Any]) -> str:
        lines = [pair_text(key, value) for key, value in table.items()] or ["{}"]
        return f"\n{indent}- " + f"\n{indent}  ".join(lines)

    def remove(self, path: Path, index: int) -> list[Splice]:
        """Take an element out of a list, with its comments."""
        node = self.root.find(path)
        if node is None or index >= len(node.items):
            raise Uneditable("there is no such element")
        if node.flow:
            return flow_edit.remove(self.text, node, index, STYLE)
        if len(node.items) == 1:
            return self._replace(path, node, [])
        start = self._begin(node, index)
        end = self._end(node, index)
        if not begins_line(self.text, node.items[index].start):
            raise Uneditable("it shares its line")
        if index == 0 or is_blank(self.text, line_start(self.text, start - 1)):
            while is_blank(self.text, end):
                end = next_line(self.text, end)
        if end == len(self.text):
            start = without_blanks_above(self.text, start)
        return [Splice(start, end)]

    def _begin(self, node: Node, index: int) -> int:
        """Where an element begins, comments of its own above it included."""
        start = node.items[index].start
        return with_comments_above(self.text, start, self._column(start))

    def _end(self, node: Node, index: int) -> int:
        """Where the line after an element begins, comments of its own below it included."""
        column = self._column(node.items[index].start)
        end = below = next_line(self.text, node.items[index].node.end)
        while is_comment(self.text, below) and len(indentation(self.text, below)) >= column:
            below = next_line(self.text, below)
            if len(indentation(self.text, line_start(self.text, below - 1))) > column:
                end = below  # further in than the element: it is about what is in it
        following = self._begin(node, index + 1) if index + 1 < len(node.items) else -1
        return end if 0 <= following <= below else below
