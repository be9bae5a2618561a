"""Changing the files of a pool: in memory, checked, then written; all other text stays as it is.

Every change is made in the file that defines the key or server.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from poolctl.config.configuration import Configuration
from poolctl.config.edit.changes import Changes
from poolctl.config.edit.proof import edited
from poolctl.config.edit.replace_file import replace
from poolctl.config.files.assemble import Assembly, ServerTable
from poolctl.config.files.document import Document, read_documents
from poolctl.config.loader import load
from poolctl.config.model.problems import Path
from poolctl.config.model.secrets import masked_file
from poolctl.errors import PoolValidateError


class Draft:
    """The files of a pool with changes that are not written yet. Blocks on the disk.

    Raises PoolValidateError when a file cannot be read or parsed, or cannot be changed in this way.
    """

    def __init__(self, files: Sequence[str], env: Mapping[str, str]) -> None:
        self.files = list(files)
        self.env = env
        self.documents, unreadable = read_documents(self.files)
        if unreadable:
            raise PoolValidateError("a configuration file cannot be read", unreadable)
        assembly = Assembly(env)
        for document in self.documents:
            assembly.add(document)
        self._entries = {entry.name.casefold(): entry for entry in reversed(assembly.entries)}
        self._changes: dict[str, Changes] = {}
        self._texts: dict[str, str] | None = None
        self.written: list[str] = []
        self._asked: list[tuple[str, tuple[Any, ...]]] = []

    def entry(self, name: str) -> ServerTable | None:
        """The server of that name, as the files have it."""
        return self._entries.get(name.casefold())

    def set(self, name: str, path: Path, value: Any) -> None:
        """Give a key of a server a value, in the last file that has it."""
        self._asked.append(("set", (name, path, value)))
        document, table = self._home(self._known(name), path)
        own = _own_path(document, table, path) or path
        self._of(document).set(_index(table), own, value)

    def scale(self, name: str, workers: int) -> None:
        """Give a server a number of workers; one that may sleep, or grow, keeps that."""
        self._asked.append(("scale", (name, workers)))
        document, table = self._home(self._known(name), ("scale",))
        own = _own_path(document, table, ("scale",))
        written = document.data
        for key in () if own is None else (*table, *own):
            written = written[key]
        changes, index = self._of(document), _index(table)
        if own is None or not isinstance(written, dict):
            changes.set(index, own or ("workers",), workers)
            return
        if written.get("min") != 0:
            changes.set(index, (*own, "min"), workers)
        changes.set(index, (*own, "max"), workers)

    def remove(self, name: str) -> None:
        """Remove a server from every file that has it."""
        self._asked.append(("remove", (name,)))
        for document, table in self._known(name).parts:
            self._of(document).removed.add(_index(table))

    def add(self, table: dict[str, Any]) -> None:
        """Put a server behind the others, in the last file that has some."""
        self._asked.append(("add", (table,)))
        self._of(self.home_of_new()).added.append(table)

    def home_of_new(self) -> Document:
        """The file that add() writes to."""
        homes = [document for document in self.documents if _servers_path(document) is not None]
        return (homes or self.documents)[-1]

    def again(self) -> Draft:
        """The same changes, to the files as they are now. Raises KeyError for a server that is gone."""
        draft = Draft(self.files, self.env)
        draft.written = self.written
        for verb, arguments in self._asked:
            getattr(draft, verb)(*arguments)
        return draft

    def texts(self) -> dict[str, str]:
        """The new text of each file that changes."""
        if self._texts is not None:
            return self._texts
        found = self._texts = {}
        for document in self.documents:
            changes = self._changes.get(document.path)
            if changes:
                servers = _servers_path(document)
                path = (*document.prefix, *(("server",) if servers is None else servers))
                text = edited(document, path, changes)
                if text != document.text:
                    found[document.path] = text
        return found

    def check(self) -> Configuration:
        """The configuration as it will be. PoolValidateError with every problem of it."""
        config = load(self.files, self.env, self.texts())
        if config.problems:
            raise PoolValidateError("the changed configuration is invalid", config.problems)
        return config

    def difference(self) -> str:
        """What changes, as a unified diff for people, its secrets masked."""
        lines: list[str] = []
        for document in self.documents:
            after = self.texts().get(document.path)
            if after is not None:
                before = document.text.splitlines(keepends=True)
                lines += difflib.unified_diff(
                    before, after.splitlines(keepends=True), document.path, document.path
                )
        return masked_file("".join(lines))

    def write(self) -> list[str]:
        """Write the changed files; their paths. FileChanged for a file that is not as it was read."""
        texts = self.texts()
        for document in self.documents:
            if document.path in texts:
                replace(document.path, document.text, texts[document.path])
                self.written = list(dict.fromkeys([*self.written, document.path]))
        return self.written

    def _known(self, name: str) -> ServerTable:
        entry = self.entry(name)
        if entry is None:
            raise KeyError(name)
        return entry

    def _home(self, entry: ServerTable, path: Path) -> tuple[Document, Path]:
        """The last file that has the key, else that has the table around it, else that has the server."""
        for length in range(len(path), 0, -1):
            for document, table in reversed(entry.parts):
                if document.exact((*table, *path[:length])) is not None:
                    return document, table
        return entry.parts[-1]

    def _of(self, document: Document) -> Changes:
        """The changes of a file, to which one is added."""
        self._texts = None
        return self._changes.setdefault(document.path, Changes())


def _own_path(document: Document, table: Path, path: Path) -> Path | None:
    """The path of a key within its server, as the file spells it; None if the file does not have it."""
    whole = document.exact((*table, *path))
    return None if whole is None else whole[len(document.prefix) + len(table) :]


def _index(table: Path) -> int:
    """Which server of its file a table is."""
    return int(table[-1])


def _servers_path(document: Document) -> Path | None:
    """Where a file has its servers; None where it has none."""
    if isinstance(document.data, list):
        return ()
    return ("server",) if isinstance(document.data, dict) and "server" in document.data else None
