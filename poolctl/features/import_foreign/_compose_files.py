"""Reads a compose file, its overrides, and the files that it names in `include` and `extends`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from poolctl.config import Document, read_text
from poolctl.config.files.yaml_parser import parse_yaml
from poolctl.config.values.problems import KeyPath, Problem, Tree

from ._foreign_pool import Remarked, SourceLine
from ._settings import text_of

# Lists that another file replaces, tables that may be lists of NAME=VALUE, and names that may be a table.
_REPLACED_LISTS = ("command", "entrypoint", "test")
_PAIR_KEYS = ("environment", "labels", "args", "extra_hosts", "sysctls", "annotations")
_NAME_KEYS = ("depends_on", "networks")
_OVERRIDES = {
    "compose.yaml": "compose.override", "compose.yml": "compose.override",
    "docker-compose.yaml": "docker-compose.override", "docker-compose.yml": "docker-compose.override",
}  # fmt: skip
_mark = re.compile(r"(?<=:)[ \t]+!(reset|override)(?![\w-])")


def document_of_compose(path: str) -> Document:
    """Read the YAML file without compose's own tags `!reset` and `!override`. Raises Problem."""
    text = read_text(path)
    untagged = _mark.sub(lambda match: " " * len(match[0]), text)
    return Document(path) if untagged == text else Document(path, untagged)


class ComposeFile(Remarked):
    """The tables of a file, with the services that they extend. `line` finds lines in all files that were read.

    `marks` are the paths with `!reset` and `!override`.
    """

    def __init__(
        self,
        document: Document,
        resolved: Callable[[str], str],
        *,
        overrides: Sequence[str] | None = None,
        main: str = "",
        by_path: dict[str, ComposeFile] | None = None,
    ) -> None:
        super().__init__()
        self.path, self.resolved = document.path, resolved
        self.directory = os.path.dirname(self.path)
        self.main = main or self.path
        self._overrides = overrides
        self._by_path = {} if by_path is None else by_path
        self._by_path[self.path] = self
        data = document.data
        if document.kind == "yaml":
            data = parse_yaml(document.text, truth_values=("true", "false"))
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}
        file = "" if self.path == self.main else os.path.relpath(self.path, os.path.dirname(self.main))
        self._places: dict[KeyPath, int] = {
            path: SourceLine(line, file) for path, (line, _) in document.positions().items()
        }
        self.marks = dict(self._marks(document))
        self._extending: list[str] = []

    @property
    def files(self) -> list[str]:
        """The other files that were read."""
        return [path for path in self._by_path if path != self.main]

    def line(self, *path: str | int) -> int:
        """The line of the value at the path, or of the innermost table around it."""
        return next(
            (self._places[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._places), 1
        )

    def read(self) -> None:
        """Resolve `extends` and `include`, and merge the overrides."""
        for name in self._services():
            self._extend(name)
        self._add_included()
        if self.path == self.main:
            overrides = self._overrides
            if overrides is None:
                stem = _OVERRIDES.get(os.path.basename(self.path))
                names = [f"{stem}.yml", f"{stem}.yaml"] if stem else []
                overrides = [name for name in names if os.path.isfile(os.path.join(self.directory, name))][:1]
            for override in overrides:
                other = self._other(override)
                other.read()
                self._merge(other)
                self.remarks += other.remarks
            for path, mark in self.marks.items():
                if mark == "reset":
                    _remove(self.data, path)

    def _marks(self, document: Document) -> Iterator[tuple[KeyPath, str]]:
        places = document.positions()
        for number, row in enumerate(read_text(self.path).splitlines(), 1):
            for tag in _mark.finditer(row):
                before = {column: path for path, (line, column) in places.items() if line == number}
                if columns := [column for column in before if column <= tag.start()]:
                    yield before[max(columns)], tag[1]

    def _services(self) -> dict[str, Any]:
        services = self.data.get("services")
        return services if isinstance(services, dict) else {}

    def _other(self, path: str) -> ComposeFile:
        """The file, relative to this one, read once. Raises Problem."""
        path = os.path.normpath(os.path.join(self.directory, self.resolved(path)))
        return self._by_path.get(path) or ComposeFile(
            document_of_compose(path), self.resolved, main=self.main, by_path=self._by_path
        )

    def _extend(self, name: str) -> None:
        """Merge the service into the service that it extends. If that is impossible, a remark says why."""
        service = self._services()[name]
        reference = service.get("extends") if isinstance(service, dict) else None
        if not reference:
            return
        line = self.line("services", name, "extends")
        if not isinstance(reference, dict):
            reference = {"service": reference}
        base, path = text_of(reference.get("service")), reference.get("file")
        what = f"extends: {path}: {base}" if path else f"extends: {base}"
        service = {key: value for key, value in service.items() if key != "extends"}
        self._services()[name] = service
        self._extending.append(name)
        try:
            other = self._other(path) if path else self
            if base in other._extending:
                raise Problem("it extends itself")
            if base not in other._services():
                raise Problem("there is no such service")
            other._extend(base)
        except Problem as problem:
            self.remark(f"{what}: {_reason(problem)}", line)
            return
        finally:
            self._extending.remove(name)
        self.remarks += [remark for remark in other.remarks if remark not in self.remarks]
        inherited = other._relocated(other._services()[base], self.directory)
        self._services()[name] = merged(inherited, service, ("services", name), self.marks)
        for place, found_line in [*other._places.items()]:
            if place[:2] == ("services", base) and len(place) > 2:
                self._places.setdefault(("services", name, *place[2:]), found_line)

    def _add_included(self) -> None:
        entries = self.data.pop("include", None) or []
        for index, entry in enumerate(entries if isinstance(entries, list) else [entries]):
            line = self.line("include", index)
            table = entry if isinstance(entry, dict) else {"path": entry}
            paths = table.get("path")
            for key in table.keys() - {"path"}:
                self.remark(f"include: {key}: {table[key]}: no equivalent", line)
            for path in paths if isinstance(paths, list) else [paths]:
                try:
                    other = self._other(text_of(path))
                    other.read()
                except Problem as problem:
                    self.remark(f"include: {path}: {_reason(problem)}", line)
                    continue
                self.remarks += [remark for remark in other.remarks if remark not in self.remarks]
                services = {
                    name: other._relocated(data, self.directory) for name, data in other._services().items()
                }
                self._merge(other, {**other.data, "services": services})

    def _merge(self, other: ComposeFile, data: dict[str, Any] | None = None) -> None:
        self.data = merged(self.data, other.data if data is None else data, (), other.marks)
        tables = {path[:-1] for path in self._places if isinstance(path[-1], str)}
        self._places |= {path: line for path, line in other._places.items() if path not in tables}

    def _relocated(self, service: Any, directory: str) -> Any:
        """The service with its relative paths rewritten for a file in `directory`."""
        if directory == self.directory or not isinstance(service, dict):
            return service
        prefix = os.path.relpath(self.directory, directory)

        def path_of(value: Any) -> Any:
            if isinstance(value, dict):
                return {
                    key: path_of(item) if key in ("path", "context") else item for key, item in value.items()
                }
            if isinstance(value, list):
                return [path_of(item) for item in value]
            is_elsewhere = not isinstance(value, str) or value.startswith(("/", "~", "$")) or "://" in value
            return value if is_elsewhere else os.path.normpath(os.path.join(prefix, value))

        return {key: path_of(item) if key in ("build", "env_file") else item for key, item in service.items()}


def _reason(problem: Problem) -> str:
    """The problem of another file, with its line there."""
    return f"line {problem.line}: {problem.message}" if problem.line else problem.message


def _remove(data: Any, path: KeyPath) -> None:
    *tables, last = path
    for key in tables:
        data = data.get(key) if isinstance(data, dict) else None
    if isinstance(data, dict):
        data.pop(last, None)


def merged(base: Tree, other: Tree, path: KeyPath, marks: Mapping[KeyPath, str]) -> Tree:
    """Merge the value `other` of another file into `base`, by the rules of compose (compose-spec, 13-merge.md)."""
    key = path[-1] if path else ""
    base, other = alike(key, base), alike(key, other)
    if key in _NAME_KEYS and isinstance(base, dict) != isinstance(other, dict):
        base, other = (
            {text_of(name): {} for name in names} if isinstance(names, list) else names
            for names in (base, other)
        )
    if marks.get(path) == "override" or other is None:
        return other if path in marks else base
    if isinstance(base, dict) and isinstance(other, dict):
        result = dict(base)
        for name, value in other.items():
            inner = (*path, name)
            if marks.get(inner) == "reset":
                result.pop(name, None)
            else:
                result[name] = merged(result[name], value, inner, marks) if name in result else value
        return result
    if isinstance(base, list) and isinstance(other, list) and key not in _REPLACED_LISTS:
        return base + [item for item in other if item not in base]
    return other


def alike(key: str | int, value: Tree) -> Tree:
    """The value in the form in which it can be merged."""
    if key in _PAIR_KEYS and isinstance(value, list):
        pairs = (text_of(pair).partition("=") for pair in value)
        return {name: text if sign else None for name, sign, text in pairs}
    if key == "build" and isinstance(value, str):
        return {"context": value}
    return [value] if key == "env_file" and isinstance(value, str) else value
