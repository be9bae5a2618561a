"""Edits of a TOML file, made by tomlkit. Imported only when a file is written."""

from __future__ import annotations

from typing import Any

import tomlkit

from poolctl.config.edit.changes import Changes, assign, list_at
from poolctl.config.edit.sheet import Sheet, in_layout_of
from poolctl.config.edit.toml_text import key_text, table_text, value_text
from poolctl.config.files.document import Document
from poolctl.config.model.problems import Path


def edited_in_parts(document: Document, text: str, servers: Path, changes: Changes) -> str | None:
    """The text with the changes made; None if the servers are in one list in brackets."""
    sheet, positions = Sheet(text), document.positions()
    parts = sheet.parts(positions, servers)
    if not parts and servers in positions:
        return None
    if not all(sheet.lines[part.first].lstrip().startswith("[[") for part in parts):
        return None
    for index, pairs in changes.pairs.items():
        own = sheet.text_of(parts[index])
        one = tomlkit.parse(own)
        assign(list_at(one, servers)[0], pairs, _value)
        sheet.replace(parts[index], in_layout_of(own, own, one.as_string()))
    for index in changes.removed:
        sheet.remove(parts[index])
    at = parts[-1].below if parts else len(sheet.lines)
    gap = "\n" if at else ""
    for table in changes.added:
        head = f"[[{'.'.join(key_text(str(key)) for key in servers)}]]"
        sheet.append(at, gap + table_text(head, table))
        gap = "\n"
    if changes.added and at < len(sheet.lines) and not sheet.is_blank(at):
        sheet.append(at, "\n")
    return sheet.text()


def rewritten(text: str, servers: Path, changes: Changes) -> str:
    """The text with the changes made in the list of its servers."""
    whole = tomlkit.parse(text)
    if whole.as_string() != text:
        raise ValueError("the tables of its servers are not together")
    changes.apply(list_at(whole, servers), _value)
    return whole.as_string()


def _value(value: Any) -> Any:
    return tomlkit.value(value_text(value))
