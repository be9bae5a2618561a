"""Edits of a YAML file, made by ruamel.yaml. Imported only when a file is written."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from poolctl.config.edit.changes import Changes, assign, list_at
from poolctl.config.edit.sheet import Sheet, in_layout_of, lines_of
from poolctl.config.files.document import Document
from poolctl.config.files.yaml_file import plain
from poolctl.config.model.problems import Path

# Indentation of tables and lists, and of the dash within a list's.
LAYOUTS = ((2, 2, 0), (2, 4, 2), (4, 4, 2), (4, 2, 0))
_word = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")


def edited_in_parts(document: Document, text: str, servers: Path, changes: Changes) -> str | None:
    """The text with the changes made; None if the servers are not a list of lines that begin with a dash."""
    sheet, positions = Sheet(text), document.positions()
    starts = [sheet.lines[part.first][: part.column].rstrip(" ") for part in sheet.parts(positions, servers)]
    if any(start.lstrip(" ") != "-" or start != starts[0] for start in starts):
        return None
    if len(changes.removed) == len(starts) > 0:
        return None
    indent = len(starts[0]) - 1 if starts else 2
    parts = sheet.parts(positions, servers, indent)
    for index, pairs in changes.pairs.items():
        # The server becomes a document of its own.
        column, lines = parts[index].column, lines_of(sheet.text_of(parts[index]))
        own = [line[min(column, len(line) - len(line.lstrip(" "))) :] for line in lines]
        own[0] = lines[0][column:]
        new = _edited("".join(own).rstrip("\n") + "\n", partial(assign, pairs=pairs, convert=_value))
        sheet.replace(parts[index], lines[0][:column] + _indented(new, " " * column)[column:])
    for index in changes.removed:
        sheet.remove(parts[index], gap_below=index == 0)
    added = "".join(map(_element, changes.added))
    if added and parts:
        gap = "\n" if len(parts) > 1 and sheet.is_blank(parts[-1].above - 1) else ""
        sheet.append(parts[-1].below, gap + _indented(added, " " * indent))
    elif added:
        if servers in positions or not servers:
            return None
        sheet.append(len(sheet.lines), f"{servers[-1]}:\n{_indented(added, '  ')}")
    return sheet.text()


def rewritten(text: str, servers: Path, changes: Changes) -> str:
    """The text with the changes made, in its own layout as far as possible."""
    return _edited(text, lambda data: changes.apply(list_at(data, servers, CommentedSeq), _value))


def _edited(text: str, act: Callable[[Any], None]) -> str:
    """The text after `act` has changed its value, in the layout that is most like its own."""
    found: list[tuple[int, str]] = []
    for layout in LAYOUTS:
        before, after = _dumped(text, layout), _dumped(text, layout, act)
        same = sum(one == other for one, other in zip(lines_of(text), lines_of(before), strict=False))
        found.append((same, in_layout_of(text, before, after)))
    return max(found, key=lambda each: each[0])[1]


def _dumped(text: str, layout: tuple[int, int, int], act: Callable[[Any], None] | None = None) -> str:
    yaml = _writer()
    yaml.preserve_quotes = True
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
    """A table as an element of a list: one key a line, inner tables and lists in brackets."""
    stream = io.StringIO()
    _writer().dump([CommentedMap((_text(key), _value(value)) for key, value in table.items())], stream)
    return stream.getvalue()


def _writer() -> YAML:
    yaml = YAML()
    yaml.width = 1_000_000
    return yaml


def _value(value: Any) -> Any:
    """A value as it is written into brackets."""
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, (dict, list, tuple)):
        return value
    if isinstance(value, dict):
        found: Any = CommentedMap((_text(key), _value(each)) for key, each in value.items())
    else:
        found = CommentedSeq(map(_value, value))
    found.fa.set_flow_style()
    return found


def _text(text: str) -> str:
    return text if _word.fullmatch(text) and plain(text) == text else DoubleQuotedScalarString(text)


def _indented(text: str, indent: str) -> str:
    return "".join(line if not line.strip() else indent + line for line in lines_of(text))
