"""Changes to a YAML file, made by ruamel.yaml. Imported only when a file is written."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from poolctl.config.edit.file_changes import Changes, Pairs, Parts, assign, in_layout_of, lines_of, list_at
from poolctl.config.files.document import Document
from poolctl.config.files.yaml_parser import plain
from poolctl.config.values.problems import Path, Tree

# Indentation of tables and lists, and of the dash within a list's.
LAYOUTS = ((2, 2, 0), (2, 4, 2), (4, 4, 2), (4, 2, 0))
_word = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./+-]*")


def edited_in_parts(document: Document, text: str, servers: Path, changes: Changes) -> str:
    """The text with the changes made, all other text as it is. Raises ValueError if it cannot be cut into servers."""
    parts = Parts(text, document.positions(), servers)
    if parts.servers and (parts.indent is None or len(changes.removed) == len(parts.servers)):
        raise ValueError("its servers are not a list of lines that begin with a dash")
    column = len(parts.mark)

    def edit(own: str, pairs: Pairs) -> str:
        # The server becomes a document of its own.
        first, *others = lines_of(own)
        outdented = [line[min(column, len(line) - len(line.lstrip(" "))) :] for line in others]
        new = _edited("".join([first[column:], *outdented]).rstrip("\n") + "\n", partial(assign, pairs=pairs))
        return first[:column] + _indented(new, column)[column:]

    added = _indented("".join(map(_element, changes.added)), 2 if parts.indent is None else parts.indent)
    return parts.change(changes, edit, added, "" if parts.servers or not servers else f"{servers[-1]}:\n")


def rewritten(text: str, servers: Path, changes: Changes) -> str:
    """The text with the changes made, in its own layout as far as possible. Raises ValueError."""
    return _edited(text, lambda data, convert: changes.apply(list_at(data, servers, CommentedSeq), convert))


def _edited(text: str, act: Callable[..., None]) -> str:
    """The text after `act` has changed its value, in the layout that is most like its own."""
    found: list[tuple[int, str]] = []
    for layout in LAYOUTS:
        yaml, before, after = _writer(*layout), io.StringIO(), io.StringIO()
        try:
            data = yaml.load(text)
            yaml.dump(data, before)
            act(data, convert=_value)
            yaml.dump(data, after)
        except (YAMLError, AttributeError, TypeError) as error:
            raise ValueError(str(error).partition("\n")[0]) from error
        lines = zip(lines_of(text), lines_of(before.getvalue()), strict=False)
        same = sum(one == other for one, other in lines)
        found.append((same, in_layout_of(text, before.getvalue(), after.getvalue())))
    return max(found, key=lambda each: each[0])[1]


def _writer(mapping: int = 2, sequence: int = 2, offset: int = 0) -> YAML:
    yaml = YAML()
    yaml.width = 1_000_000
    yaml.preserve_quotes = True
    yaml.brace_single_entry_mapping_in_flow_sequence = True
    yaml.indent(mapping=mapping, sequence=sequence, offset=offset)
    return yaml


def _element(table: dict[str, Tree]) -> str:
    """A table as an element of a list: one key a line, inner tables and lists in brackets."""
    stream = io.StringIO()
    _writer().dump([CommentedMap((_text(key), _value(value)) for key, value in table.items())], stream)
    return stream.getvalue()


def _value(value: Tree) -> Tree:
    """A value as it is written into brackets."""
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, (dict, list, tuple)):
        return value
    if isinstance(value, dict):
        found: Tree = CommentedMap((_text(key), _value(each)) for key, each in value.items())
    else:
        found = CommentedSeq(map(_value, value))
    found.fa.set_flow_style()
    return found


def _text(text: str) -> str:
    return text if _word.fullmatch(text) and plain(text) == text else DoubleQuotedScalarString(text)


def _indented(text: str, columns: int) -> str:
    return "".join(line if not line.strip() else " " * columns + line for line in lines_of(text))
