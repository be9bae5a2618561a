"""Edits of a TOML text: tables under headers, dotted keys, and what stands within brackets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from poolctl.config.edit import flow_edit
from poolctl.config.edit.spans import (
    Item,
    Node,
    Path,
    Splice,
    Uneditable,
    indentation,
    is_blank,
    is_comment,
    line_end,
    line_start,
    next_line,
    with_comments_above,
    without_blanks_above,
)
from poolctl.config.edit.toml_text import key_text, table_text, value_text
from poolctl.config.files.toml_positions import Scanner

STYLE = flow_edit.Style(value_text, lambda key, value: f"{key_text(key)} = {value_text(value)}", padding=" ")


class Section:
    """A header and the pairs below it; what comes before the first header has an empty path."""

    def __init__(self, path: Path, start: int, end: int, *, array: bool) -> None:
        self.path = path
        self.start = start
        self.end = end
        self.array = array
        self.pairs: list[tuple[Path, int, Node]] = []

    @property
    def last(self) -> int:
        """Where the last of it ends."""
        return self.pairs[-1][2].end if self.pairs else self.end


class TomlText:
    """A text that can be parsed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sections = _Sections(text).read()
        # Which sections have a path, and which begin with it.
        self._of: dict[Path, list[Section]] = {}
        self._below: dict[Path, list[int]] = {}
        for at, section in enumerate(self.sections):
            self._of.setdefault(section.path, []).append(section)
            for length in range(len(section.path) + 1):
                self._below.setdefault(section.path[:length], []).append(at)

    def _above(self, path: Path) -> Iterator[Section]:
        """The sections that a path may lead through."""
        for length in range(len(path) + 1):
            yield from self._of.get(path[:length], ())

    def set(self, path: Path, value: Any) -> list[Splice]:
        """Give a key a value."""
        for section in self._above(path):
            for whole, _, node in section.pairs:
                if path[: len(whole)] == whole:
                    return flow_edit.set_within(self.text, node, path[len(whole) :], value, STYLE)
        if path in self._below:
            raise Uneditable("it is a table of its own")
        for length in range(len(path) - 1, -1, -1):
            splice = self._new_key(path, length, value)
            if splice is not None:
                return [splice]
        raise Uneditable("there is no table to put it into")

    def _new_key(self, path: Path, length: int, value: Any) -> Splice | None:
        """A line for a key whose table begins with this many parts of the path; None when no line can hold it."""
        for section in self._above(path):
            beside = [pair for pair in section.pairs if length and pair[0][:length] == path[:length]]
            if len(section.path) < length and beside:
                dotted = path[len(section.path) : length + 1]
                return self._line(section, beside[-1], dotted, flow_edit.nested(path[length + 1 :], value))
            if section.path == path[:length] and (section.path or length == 0):
                last = section.pairs[-1] if section.pairs else None
                return self._line(
                    section, last, path[length : length + 1], flow_edit.nested(path[length + 1 :], value)
                )
        return None

    def _line(self, section: Section, after: tuple[Path, int, Node] | None, key: Path, value: Any) -> Splice:
        written = f"{'.'.join(key_text(str(part)) for part in key)} = {value_text(value)}"
        if after is None and not section.path:
            return Splice(0, 0, f"{written}\n")
        place, model = (after[2].end, after[1]) if after else (section.end, section.start)
        end = line_end(self.text, place)
        return Splice(end, end, f"\n{indentation(self.text, model)}{written}")

    def unset(self, path: Path) -> list[Splice]:
        """Take a key out, with the comment behind it."""
        for section in self._above(path):
            for whole, start, node in section.pairs:
                if whole == path:
                    return [Splice(line_start(self.text, start), next_line(self.text, node.end))]
                if path[: len(whole)] == whole:
                    return flow_edit.unset_within(self.text, node, path[len(whole) :], STYLE)
        raise Uneditable("there is no such key")

    def append(self, path: Path, table: dict[str, Any]) -> list[Splice]:
        """Put a table at the end of an array of tables, which may not be there yet."""
        for section in self._above(path):
            for whole, _, node in section.pairs:
                if whole == path:
                    return flow_edit.insert(self.text, node, value_text(table), STYLE)
        last = self._below.get(path)
        end = self._end(last[-1]) if last else len(self.text)
        written = table_text(f"[[{'.'.join(key_text(str(part)) for part in path)}]]", table)
        before = self.text[:end]
        gap = "" if not before.strip() else "\n" if before.endswith("\n") else "\n\n"
        rest = "" if end == len(self.text) or is_blank(self.text, end) else "\n"
        return [Splice(end, end, gap + written + rest)]

    def remove(self, path: Path, index: int) -> list[Splice]:
        """Take a table out of an array of tables, with its own tables and its comments."""
        for section in self._above(path):
            for whole, _, node in section.pairs:
                if whole == path:
                    return flow_edit.remove(self.text, node, index, STYLE)
        mine = list(self._below.get((*path, index), ()))
        if not mine:
            raise Uneditable("there is no such table")
        found = []
        while mine:
            first = last = mine.pop(0)
            while mine and mine[0] == last + 1:
                last = mine.pop(0)
            found.append(self._region(first, last))
        return found

    def _region(self, first: int, last: int) -> Splice:
        """From the comments above a header to the end of a table, one of the gaps around it included."""
        start = with_comments_above(self.text, self.sections[first].start)
        end = self._end(last)
        if start == 0 or is_blank(self.text, line_start(self.text, start - 1)):
            while is_blank(self.text, end):
                end = next_line(self.text, end)
        if end == len(self.text):
            start = without_blanks_above(self.text, start)
        return Splice(start, end)

    def _end(self, at: int) -> int:
        """Where the line after a section begins, comments directly below it included, but not the next one's."""
        end = below = next_line(self.text, self.sections[at].last)
        while below < len(self.text) and is_comment(self.text, below):
            below = next_line(self.text, below)
        following = self.sections[at + 1].start if at + 1 < len(self.sections) else -1
        return end if below == following else below


class _Sections(Scanner):
    """Reads the sections of a text, and the values of its pairs as nodes."""

    def read(self) -> list[Section]:
        self.sections = [Section((), 0, 0, array=False)]
        self.around: list[Node] = []
        self.scan()
        return self.sections

    def header(self, here: int) -> tuple[Path, int]:
        path, end = super().header(here)
        self.sections.append(Section(path, here, end, array=self.text.startswith("[[", here)))
        return path, end

    def pair(self, here: int, table: Path) -> int:
        parts, after = self.keys(here)
        path = (*table, *(part for part, _ in parts))
        start = self.skip(after + 1)
        around, self.around = self.around, []
        end = self.value(start, path)
        (node,) = self.around
        self.around = around
        if not around:
            self.sections[-1].pairs.append((path, here, node))
        else:
            _put(around[-1], [part for part, _ in parts], here, node)
        return end

    def value(self, here: int, path: Path) -> int:
        sign = self.text[here : here + 1]
        node = Node({"[": "list", "{": "table"}.get(sign, "plain"), here)
        around = self.around
        self.around = [node]
        node.end = super().value(here, path)
        self.around = around
        if node.kind == "plain":
            node.end = here + len(self.text[here : node.end].rstrip())
        if around and around[-1].kind == "list":
            around[-1].items.append(Item(len(around[-1].items), here, node))
        elif not around:
            self.around = [node]
        return node.end


def _put(table: Node, parts: list[str], start: int, node: Node) -> None:
    """Into an inline table, where a dotted key makes tables that have no brackets."""
    for part in parts[:-1]:
        child = table.child(part)
        if child is None:
            child = Node("dotted", start, node.end)
            table.items.append(Item(part, start, child))
        child.end = node.end
        table = child
    table.items.append(Item(parts[-1], start, node))
