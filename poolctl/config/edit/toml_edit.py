"""Edits of a TOML file, made by tomlkit. Imported only when a file is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tomlkit

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
from poolctl.config.edit.toml_text import key_text, table_text, value_text
from poolctl.config.files.document import Document
from poolctl.config.model.problems import Path


def edited_in_parts(document: Document, text: str, servers: Path, changes: Sequence[Change]) -> str | None:
    """The text with the changes made; None if the servers are in one list in brackets."""
    sheet = Sheet(lines_of(text))
    parts = _parts(document, sheet.lines, servers)
    if parts is None:
        return None
    for index, pairs in pairs_of(changes).items():
        own = sheet.text_of(parts[index])
        one = tomlkit.parse(own)
        _set(one, (*servers, 0), pairs)
        sheet.replace(parts[index], in_layout_of(own, own, one.as_string()))
    for index in removed_in(changes):
        sheet.remove(parts[index])
    at = parts[-1].below if parts else len(sheet.lines)
    gap = "\n" if at else ""
    for table in added_in(changes):
        head = f"[[{'.'.join(key_text(str(key)) for key in servers)}]]"
        sheet.append(at, gap + table_text(head, table))
        gap = "\n"
    if added_in(changes) and at < len(sheet.lines) and not sheet.is_blank(at):
        sheet.append(at, "\n")
    return sheet.text()


def rewritten(document: Document, text: str, servers: Path, changes: Sequence[Change]) -> str:
    """The text with the changes made in the list of its servers."""
    whole = tomlkit.parse(text)
    if whole.as_string() != text:
        raise ValueError("the tables of its servers are not together")
    for index, pairs in pairs_of(changes).items():
        _set(whole, (*servers, index), pairs)
    found: Any = whole
    for key in servers:
        found = found[key]
    for index in removed_in(changes):
        del found[index]
    for table in added_in(changes):
        found.append(tomlkit.value(value_text(table)))
    return whole.as_string()


def _parts(document: Document, lines: list[str], servers: Path) -> list[Part] | None:
    positions = document.positions()
    found = extents(positions, servers)
    if not found:
        return None if servers in positions else []
    if not all(lines[first].lstrip().startswith("[[") for first, _, _ in found):
        return None
    return [part_of(lines, first, limit) for first, _, limit in found]


def _set(whole: Any, server: Path, pairs: Sequence[tuple[Path, Any]]) -> None:
    for path, value in pairs:
        at = whole
        for key in server:
            at = at[key]
        for number, key in enumerate(path[:-1]):
            if key not in at:
                path, value = path[: number + 1], _nested(path[number + 1 :], value)
                break
            at = at[key]
        at[path[-1]] = tomlkit.value(value_text(value))


def _nested(path: Path, value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value
