"""The text of one file with changes made to it, and the proof that it says what was meant and nothing else.

A file is cut into its servers, and only the text of a server that changes is given to the library of its format: the
rest stays as it is, byte by byte. A file that cannot be cut, such as one list in brackets, is given to it as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from poolctl.config.edit.parts import Change, added_in, removed_in
from poolctl.config.files.document import Document
from poolctl.config.files.parsers import parse
from poolctl.config.files.positions import ParseError
from poolctl.config.model.problems import Path, Problem
from poolctl.errors import PoolValidateError


class Editor(Protocol):
    """How the files of one format are edited. Raises ValueError or LookupError if that cannot be done."""

    def edited_in_parts(
        self, document: Document, text: str, servers: Path, changes: Sequence[Change]
    ) -> str | None:
        """The text with the changes made; None if the text cannot be cut into servers."""

    def rewritten(self, document: Document, text: str, servers: Path, changes: Sequence[Change]) -> str:
        """The text with the changes made, as the library of the format writes it."""


def edited(document: Document, servers: Path, changes: Sequence[Change]) -> str:
    """The text of a file, whose list of servers is at the path `servers`, with the changes made.

    Raises PoolValidateError if that cannot be done without changing something else.
    """
    text, editor = document.text, _editor(document.kind)
    crlf = 0 < text.count("\r\n") == text.count("\n")
    text = text.replace("\r\n", "\n") if crlf else text
    meant = _without_empty(_meant(parse(text, document.kind), servers, changes))
    failure: Exception = ValueError("something else would change as well")
    for edit in (editor.edited_in_parts, editor.rewritten):
        try:
            found = edit(document, text, servers, changes)
            if found is not None and _without_empty(parse(found, document.kind)) == meant:
                return found.replace("\n", "\r\n") if crlf else found
        except (ValueError, LookupError, ParseError) as error:
            failure = error
    raise PoolValidateError(
        "the file cannot be changed", [_unchangeable(document, servers, changes, failure)]
    )


def _editor(kind: str) -> Editor:
    # Each is imported when a file of its format is changed: tomlkit takes 30 ms, ruamel.yaml 20 ms.
    if kind == "toml":
        from poolctl.config.edit import toml_edit

        return toml_edit
    if kind == "yaml":
        from poolctl.config.edit import yaml_edit

        return yaml_edit
    from poolctl.config.edit import json_edit

    return json_edit


def _meant(data: Any, servers: Path, changes: Sequence[Change]) -> Any:
    """What the parsed file says after the changes; what YAML's aliases repeat is changed in one place only."""
    data = _tree({} if data is None else data)
    at = data
    for number, key in enumerate(servers, 1):
        if at.get(key) is None:
            at[key] = [] if number == len(servers) else {}
        at = at[key]
    for index, path, value in changes:
        if index is not None and path:
            table = at[index]
            for key in path[:-1]:
                if table.get(key) is None:
                    table[key] = {}
                table = table[key]
            table[path[-1]] = value
    for index in removed_in(changes):
        del at[index]
    at += added_in(changes)
    return data


def _tree(data: Any) -> Any:
    """A copy in which nothing is there twice."""
    if isinstance(data, dict):
        return {key: _tree(value) for key, value in data.items()}
    return [_tree(value) for value in data] if isinstance(data, list) else data


def _without_empty(data: Any) -> Any:
    """The same without empty tables and lists: with the last server the list of them may go, too."""
    if isinstance(data, dict):
        kept = {key: _without_empty(value) for key, value in data.items()}
        return {key: value for key, value in kept.items() if value not in ({}, [])}
    return [_without_empty(value) for value in data] if isinstance(data, list) else data


def _unchangeable(document: Document, servers: Path, changes: Sequence[Change], error: Exception) -> Problem:
    index, path, _ = changes[0]
    place = document.place((*servers[len(document.prefix) :], *(() if index is None else (index,)), *path))
    why = f"this cannot be changed without touching more: {error}"
    return Problem(why, place=place, hint="change it by hand, then poolctl reload")
