"""The new text of a changed file, and the proof that it says what was meant and nothing else.

A file is cut into its servers, and only the text of a server that changes is given to the library of its format: the
rest stays as it is, byte by byte. A file that cannot be cut, such as one list in brackets, is given to it as a whole.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from poolctl.config.edit.changes import Changes, list_at
from poolctl.config.files.document import Document
from poolctl.config.files.parsers import parse
from poolctl.config.files.positions import ParseError
from poolctl.config.model.problems import Path, Problem
from poolctl.errors import PoolValidateError


class Editor(Protocol):
    """How the files of one format are edited. Raises ValueError or LookupError if that cannot be done."""

    def edited_in_parts(self, document: Document, text: str, servers: Path, changes: Changes) -> str | None:
        """The text with the changes made; None if the text cannot be cut into servers."""

    def rewritten(self, text: str, servers: Path, changes: Changes) -> str:
        """The text with the changes made, as the library of the format writes it."""


def edited(document: Document, servers: Path, changes: Changes) -> str:
    """The text of a file, whose list of servers is at the path `servers`, with the changes made.

    Raises PoolValidateError if that cannot be done without changing something else.
    """
    text, editor = document.text, _editor(document.kind)
    crlf = 0 < text.count("\r\n") == text.count("\n")
    text = text.replace("\r\n", "\n") if crlf else text
    meant = _tree(parse(text, document.kind) or {})
    changes.apply(list_at(meant, servers))
    reason = "something else would change as well"
    in_parts = partial(editor.edited_in_parts, document, text, servers, changes)
    for edit in (in_parts, partial(editor.rewritten, text, servers, changes)):
        try:
            found = edit()
            if found is not None and _without_empty(parse(found, document.kind)) == _without_empty(meant):
                return found.replace("\n", "\r\n") if crlf else found
        except (ValueError, LookupError, ParseError) as error:
            reason = str(error)
    place = document.place((*servers[len(document.prefix) :], *changes.first()))
    message = f"this cannot be changed without touching more: {reason}"
    problem = Problem(message, place=place, hint="change it by hand, then poolctl reload")
    raise PoolValidateError("the file cannot be changed", [problem])


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


def _tree(data: Any) -> Any:
    """A copy in which nothing is shared: a table that YAML's aliases repeat is changed in one place only."""
    if isinstance(data, dict):
        return {key: _tree(value) for key, value in data.items()}
    return [_tree(value) for value in data] if isinstance(data, list) else data


def _without_empty(data: Any) -> Any:
    """The same without empty tables and lists: with the last server the list of them may go, too."""
    if isinstance(data, dict):
        kept = {key: _without_empty(value) for key, value in data.items()}
        return {key: value for key, value in kept.items() if value not in ({}, [])}
    return [_without_empty(value) for value in data] if isinstance(data, list) else data
