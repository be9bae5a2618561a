"""Edits of a YAML file, made by ruamel.yaml. Imported only when a file is written."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from poolctl.config.edit.parts import (
    Change,
    Part,
    Sheet,
    added_in,
    extents,
    in_layout_of,
    lines_of,
    pairs_of,
    part_of,
    removed_in,
)
from poolctl.config.files.document import Document
from poolctl.config.files.positions import ParseError
from poolctl.config.files.yaml_file import parse_yaml, plain
from poolctl.config.model.problems import Path

# Indentation of tables and lists, and of the dash within a list's.
LAYOUTS = ((2, 2, 0), (2, 4, 2), (4, 4, 2), (4, 2, 0))
_word = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")


def edited_in_parts(document: Document, text: str, servers: Path, changes: Sequence[Change]) -> str | None:
    """The text with the changes made; None if the servers are not a list of lines that begin with a dash."""
    sheet = Sheet(lines_of(text))
    found = extents(document.positions(), servers)
    dashes = [sheet.lines[first][:column].rstrip(" ") for first, column, _ in found]
    removed = removed_in(changes)
    if any(dash.lstrip(" ") != "-" or dash != dashes[0] for dash in dashes) or len(removed) == len(found) > 0:
        return None
    indent = len(dashes[0]) - 1 if dashes else 2
    parts = [part_of(sheet.lines, first, limit, indent) for first, _, limit in found]
    for index, pairs in pairs_of(changes).items():
        _set_in(sheet, parts[index], found[index][1], pairs)
    for index in removed:
        sheet.remove(parts[index], gap_below=index == 0)
    new = "".join(map(_element, added_in(changes)))
    if new and parts:
        gap = "\n" if len(parts) > 1 and sheet.is_blank(parts[-1].above - 1) else ""
        sheet.append(parts[-1].below, gap + _indented(new, " " * indent))
    elif new:
        if servers in document.positions() or not servers:
            return None
        sheet.append(len(sheet.lines), f"{servers[-1]}:\n{_indented(new, '  ')}")
    return sheet.text()


def rewritten(document: Document, text: str, servers: Path, changes: Sequence[Change]) -> str:
    """The text with the changes made, in its own layout as far as possible."""

    def act(data: Any) -> None:
        for key in servers[:-1]:
            data = data[key]
        if servers:
            if data.get(servers[-1]) is None:
                data[servers[-1]] = CommentedSeq()
            data = data[servers[-1]]
        for index, pairs in pairs_of(changes).items():
            _set(data[index], pairs)
        for index in removed_in(changes):
            del data[index]
        for table in added_in(changes):
            data.append(_value(table))

    return _edited(text, act)


def _set_in(sheet: Sheet, part: Part, column: int, pairs: Sequence[tuple[Path, Any]]) -> None:
    """Set keys of a server, which is edited as a document of its own."""
    lines = lines_of(sheet.text_of(part))
    dash = lines[0][:column]
    own = [lines[0][column:], *(line[min(column, len(line) - len(line.lstrip(" "))) :] for line in lines[1:])]
    text = _edited("".join(own).rstrip("\n") + "\n", lambda data: _set(data, pairs))
    sheet.replace(part, dash + _indented(text, " " * column)[column:])


def _set(table: Any, pairs: Sequence[tuple[Path, Any]]) -> None:
    for path, value in pairs:
        at = table
        for number, key in enumerate(path[:-1]):
            if at.get(key) is None:
                for outer in reversed(path[number + 1 :]):
                    value = {outer: value}
                path = path[: number + 1]
                break
            at = at[key]
        at[path[-1]] = _value(value)


def _edited(text: str, act: Callable[[Any], None]) -> str:
    """The text after `act` has changed what it says, in the layout that is most like its own."""
    found: list[tuple[int, str, str]] = []
    for layout in LAYOUTS:
        before, after = _dumped(text, layout), _dumped(text, layout, act)
        same = sum(one == other for one, other in zip(lines_of(text), lines_of(before), strict=False))
        found.append((same, in_layout_of(text, before, after), after))
    _, kept, written = max(found, key=lambda each: each[0])
    try:
        return kept if parse_yaml(kept) == parse_yaml(written) else written
    except ParseError:
        return written


def _dumped(text: str, layout: tuple[int, int, int], act: Callable[[Any], None] | None = None) -> str:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 1_000_000
    yaml.brace_single_entry_mapping_in_flow_sequence = True
    mapping, sequence, offset = layout
    yaml.indent(mapping=mapping, sequence=sequence, offset=offset)
    stream = io.StringIO()
    try:
        data = yaml.load(text)
        if act is not None:
            act(data)
        yaml.dump(data, stream)
    except (YAMLError, AttributeError, TypeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
    return stream.getvalue()


def _element(table: dict[str, Any]) -> str:
    """A table as an element of a list: one key a line, what is within it in brackets."""
    whole = CommentedMap((_word_or_quoted(key), _value(value)) for key, value in table.items())
    stream = io.StringIO()
    yaml = YAML()
    yaml.width = 1_000_000
    yaml.dump([whole], stream)
    return stream.getvalue()


def _value(value: Any) -> Any:
    """A value as it is written into brackets."""
    if isinstance(value, str):
        return _word_or_quoted(value)
    if isinstance(value, dict):
        table = CommentedMap((_word_or_quoted(key), _value(each)) for key, each in value.items())
        table.fa.set_flow_style()
        return table
    if isinstance(value, (list, tuple)):
        found = CommentedSeq(map(_value, value))
        found.fa.set_flow_style()
        return found
    return value


def _word_or_quoted(text: str) -> str:
    return text if _word.fullmatch(text) and plain(text) == text else DoubleQuotedScalarString(text)


def _indented(text: str, indent: str) -> str:
    return "".join(line if not line.strip() else indent + line for line in lines_of(text))
