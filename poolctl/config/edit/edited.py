"""The text of one file with changes made to it, and the proof that it says what was meant and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from poolctl.config.edit.spans import Path, Splice, Uneditable, spliced
from poolctl.config.files.document import Document
from poolctl.config.files.parse import parse
from poolctl.config.files.parse_error import Unparsable
from poolctl.config.model.problems import Problem
from poolctl.errors import PoolValidateError

Table = dict[str, Any]


class EditableText(Protocol):
    """A text of one format that can be parsed; each method hands back what is to be cut out and put in."""

    def set(self, path: Path, value: Any) -> list[Splice]: ...
    def unset(self, path: Path) -> list[Splice]: ...
    def append(self, path: Path, table: Table) -> list[Splice]: ...
    def remove(self, path: Path, index: int) -> list[Splice]: ...


class Change(NamedTuple):
    """One change of one file: `verb` is set, unset, append or remove."""

    verb: str
    path: Path
    value: Any = None


def edited(document: Document, changes: Sequence[Change]) -> str:
    """The text of a file with the changes made, all at once or else one after the other."""
    ordered = sorted(changes, key=_turn)
    try:
        return _edited(document, document.text, ordered)
    except (Uneditable, Unparsable) as first:
        failure: Exception = first
    text = document.text
    try:
        if len(ordered) == 1:
            raise failure
        for change in ordered:
            text = _edited(document, text, [change])
    except (Uneditable, Unparsable) as error:
        raise PoolValidateError(
            "the file cannot be changed", [_unchangeable(document, changes, error)]
        ) from None
    return text


def _turn(change: Change) -> tuple[int, int]:
    """Places in lists are those of the text as it was: nothing is taken out before a place was used."""
    if change.verb == "remove":
        return 1, -change.value
    return (2 if change.verb == "append" else 0), 0


def _edited(document: Document, text: str, changes: Sequence[Change]) -> str:
    editable = _editable(text, document.kind)
    splices: list[Splice] = []
    for change in changes:
        if change.verb == "set":
            splices += editable.set(change.path, change.value)
        elif change.verb == "unset":
            splices += editable.unset(change.path)
        elif change.verb == "append":
            splices += editable.append(change.path, change.value)
        else:
            splices += editable.remove(change.path, change.value)
    if "\r\n" in text:
        splices = [s._replace(text=s.text.replace("\r\n", "\n").replace("\n", "\r\n")) for s in splices]
    found = spliced(text, splices)
    meant = copy.deepcopy(parse(text, document.kind))
    for change in changes:
        meant = _meant(meant, change)
    if _told(parse(found, document.kind)) != _told(meant):
        raise Uneditable("more than that would change")
    return found


def _editable(text: str, kind: str) -> EditableText:
    if kind == "toml":
        from poolctl.config.edit.toml_edit import TomlText

        return TomlText(text)
    if kind == "json":
        from poolctl.config.edit.json_edit import JsonText

        return JsonText(text)
    from poolctl.config.edit.yaml_edit import YamlText

    return YamlText(text)


def _meant(data: Any, change: Change) -> Any:
    """What a parsed file says after the change."""
    path = change.path
    data = {} if data is None else data
    at = data
    if change.verb in ("append", "remove"):
        for key in path:
            at = _step(at, key, [] if key == path[-1] else {})
        if change.verb == "append":
            at.append(change.value)
        else:
            del at[change.value]
        return data
    for key in path[:-1]:
        at = _step(at, key, {})
    if change.verb == "set":
        at[path[-1]] = change.value
    else:
        del at[path[-1]]
    return data


def _told(data: Any) -> Any:
    """Without tables and lists that hold nothing: the last key that goes may take its table along."""
    if isinstance(data, dict):
        told = {key: _told(value) for key, value in data.items()}
        return {key: value for key, value in told.items() if value not in ({}, [])}
    if isinstance(data, list):
        return [_told(value) for value in data]
    return data


def _step(at: Any, key: str | int, missing: Any) -> Any:
    if isinstance(at, dict) and at.get(key) is None:
        at[key] = missing
    return at[key]


def _unchangeable(document: Document, changes: Sequence[Change], error: Exception) -> Problem:
    place = document.place(changes[0].path[len(document.prefix) :])
    why = f"this cannot be changed without touching more: {error}"
    return Problem(why, place=place, hint="change it by hand, then poolctl reload")
