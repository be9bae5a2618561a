"""Configuration files with the places of their keys, merged: later files override earlier ones."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from poolctl.config.files import read_file
from poolctl.config.files.parsers import parse, positions
from poolctl.config.model.pool_tables import file_tables, header, is_listed, meant_table, model_of_table
from poolctl.config.model.section import Table, keys_of
from poolctl.config.model.server_keys import ServerConfig, normalised
from poolctl.config.values.normalise import interpolate, merged, required_variables
from poolctl.config.values.plain import ANCHOR_TABLES
from poolctl.config.values.problems import (
    Finding,
    KeyPath,
    ParseError,
    Place,
    Problem,
    Tree,
    dotted,
    problem_of,
    shown,
)
from poolctl.config.values.secrets import masked_quotes
from poolctl.config.values.toml_text import json_text

# Keys that mark a table as a server: what it runs, or where it listens.
_SERVER_KEYS = {"app", "bind", "command"}
_VARIABLE = re.compile(r"\$\{(\w+)")
# Alternative names of keys in files, by their normalised name.
SYNONYMS = {"bind": "listen", "scale": "workers"}


class Document:
    """A parsed file. `data` is the value of [tool.poolctl] in a pyproject.toml, else of the whole file."""

    def __init__(self, path: str, text: str | None = None) -> None:
        """Read and parse the file, or parse `text` in its place. Raises Problem."""
        self.path = path
        self.base_dir = os.path.dirname(path)
        self.kind = read_file.kind_of(path)
        self.text = read_file.read_text(path, is_configuration=True) if text is None else text
        try:
            data = parse(self.text, self.kind)
        except ParseError as error:
            place = Place(path, error.line, error.column)
            line = "".join(self.text.splitlines()[error.line - 1 : error.line])
            message, hint = masked_quotes(error.message, line), masked_quotes(error.hint, line)
            raise Problem(message, place=place, hint=hint) from None
        self.prefix: KeyPath = ()
        if os.path.basename(path) == read_file.PYPROJECT:
            self.prefix = read_file.SECTION
            data = read_file.pyproject_section(data)
            if data is None:
                hint = "add [tool.poolctl], or name another file"
                raise Problem("there is no [tool.poolctl]", place=Place(path), hint=hint)
        self.data: Tree = {} if data is None else data
        if self.kind == "yaml" and isinstance(data, dict):  # tables for anchors
            self.data = {key: value for key, value in data.items() if not key.startswith(ANCHOR_TABLES)}
        self._positions: dict[KeyPath, tuple[int, int]] | None = None

    def positions(self) -> dict[KeyPath, tuple[int, int]]:
        """Line and column of every key; found by a second pass over the text on first use."""
        if self._positions is None:
            self._positions = positions(self.text, self.kind)
        return self._positions

    def path_as_spelled(self, path: KeyPath) -> KeyPath | None:
        """The path from the root of the file, with keys spelled as in the file; None if the file has no value there."""
        places = self.positions()
        whole = (*self.prefix, *path)
        if whole in places:
            return whole
        for index, part in enumerate(whole):
            other = SYNONYMS.get(part) if isinstance(part, str) else None
            if other and (*whole[:index], other) in places:
                # The rest of the path belongs to the long form: it has no place of its own.
                return (*whole[:index], other)
        if "labels" in whole:
            # Dots in the name of a label may be tables of the file.
            start = whole.index("labels") + 1
            whole = (*whole[:start], *(part for name in whole[start:] for part in str(name).split(".")))
            return whole if whole in places else None
        return None

    def path_without_omitted_parts(self, path: KeyPath) -> KeyPath:
        """Return `path` without parts that the file omits, such as index 0 where `bind = ":80"` stands for a list."""
        value, parts = self.data, []
        for part in path:
            if isinstance(value, str) or (part == 0 and not isinstance(value, list)):
                continue  # the value stands alone for a list of one, or for a table with this key
            parts.append(part)
            is_container = isinstance(value, dict) or (isinstance(value, list) and isinstance(part, int))
            try:
                value = value[part] if is_container else None
            except LookupError:
                value = None
        return tuple(parts)

    def place(self, path: KeyPath) -> Place:
        """Return file, line, column and dotted key of the value at `path`.

        If the file has no such value, return the line and column of the innermost table around it in the file.
        """
        places = self.positions()
        for length in range(len(path), -1, -1):
            spelled = self.path_as_spelled(path[:length])
            if spelled is not None:
                return Place(self.path, *places[spelled], dotted((*spelled, *path[length:])))
        return Place(self.path, 1, 1, dotted((*self.prefix, *path)))


def read_documents(
    paths: list[str], texts: Mapping[str, str] | None = None
) -> tuple[list[Document], list[Problem]]:
    """The files (including files of directories) in order, and the problems of files that cannot be read or parsed.

    `texts` replace the contents of some files, by path.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            files = read_file.files_of(path)
        except Problem as problem:
            files = []
            problems.append(problem)
        for file in files:
            try:
                documents.append(Document(file, (texts or {}).get(file)))
            except Problem as problem:
                problems.append(problem)
    return documents, problems


def unset_variables(paths: Iterable[str]) -> list[str]:
    """Return the variables to which files refer without a default and that their `.env` lacks, each name once.

    A directory in `paths` stands for its files. Files that cannot be read or parsed are left out.
    """
    documents, _ = read_documents([*paths])
    unset: dict[str, None] = {}
    for document in documents:
        env_file_variables = _with_env_file(document, {}, [])
        unset |= dict.fromkeys(
            name for name in required_variables(document.text) if name not in env_file_variables
        )
    return list(unset)


def _with_env_file(document: Document, env: Mapping[str, str], findings: list[Finding]) -> Mapping[str, str]:
    """The variables for `${VAR}` in this file: the environment, and for missing ones the `.env` beside the file."""
    if {*_VARIABLE.findall(document.text)} <= env.keys():
        return env
    for path in read_file.default_env_file(document.base_dir):
        if not read_file.is_own(path, env):
            continue  # root takes no values from others
        try:
            variables, _ = read_file.read_env_file(path, env, for_another_user=False)
        except read_file.EnvFileError as problem:
            findings.append(Finding((), str(problem), "fix the file"))
        else:
            return {**variables, **env}
    return env


# A file, and the path of a table in it.
Source = tuple[Document, KeyPath]


@dataclass(slots=True)
class ServerTable:
    """The merged table of one server, before it is validated, and the tables of the files that it was merged from."""

    name: str
    table: dict[str, Tree]
    base_dir: str
    parts: list[Source]


class Assembly:
    """The merged tables of all files. With `env_files`, `${VAR}` is also looked up in `.env` beside a file.

    With a format `in_env`, references in `env` are written in that format instead of being resolved.
    """

    def __init__(self, env: Mapping[str, str], *, env_files: bool = True, in_env: str = "") -> None:
        self.env = env
        self._in_env = in_env
        self._reads_env_files = env_files
        self.documents: list[Document] = []
        self.settings: dict[str, Tree] = {}
        self.defaults: dict[str, Tree] = {}
        self.tables: dict[str, Tree] = {}  # the others, by name
        self.parts: dict[KeyPath, list[Source]] = {}  # the files from which tables that are lists were merged
        self.entries: list[ServerTable] = []
        self.problems: list[Problem] = []
        self._by_name: dict[str, ServerTable] = {}

    def add(self, document: Document) -> None:
        """Merge one file over the files before it; its problems are added to `problems`."""
        self.documents.append(document)
        findings: list[Finding] = []
        data = document.data
        # Skip interpolation for the many files without references: it costs a third of their validation.
        if "${" in document.text or "\\" in document.text:
            variables = _with_env_file(document, self.env, findings) if self._reads_env_files else self.env
            data = interpolate(data, variables, findings, in_env=self._in_env)
        if isinstance(data, list):
            findings += self._merge_servers(document, data, ())
        elif isinstance(data, dict) and (foreign := read_file.foreign_format(document.path, data)):
            message = f"this is {foreign}, not a pool's file"
            findings.append(Finding((), message, read_file.foreign_file_hint(document.path, foreign)))
        elif isinstance(data, dict):
            for key, value in data.items():
                findings += self._merge_table(document, key, value)
        else:
            message = f"the file holds {shown(data)}, not tables"
            findings.append(Finding((), message, "write [[server]] tables, or a list of servers"))
        self._report(document, findings)

    def _report(
        self,
        document: Document,
        findings: list[Finding],
        path: KeyPath = (),
        entry: ServerTable | None = None,
    ) -> None:
        for finding in findings:
            self.problems.append(located(finding, document.place((*path, *finding.path)), entry))

    def _merge_table(self, document: Document, key: str, value: Tree) -> Iterator[Finding]:
        names = file_tables()
        if key not in names:
            hint = _unknown_table_hint(document, str(key), value)
            yield Finding((key,), f"unknown key {str(key)[:60]!r}", hint, str(key)[:60], ", ".join(names))
            return
        model = model_of_table(key)
        if key == "server" or (model is not None and model.listed):
            if not isinstance(value, list) or (model and not all(isinstance(table, dict) for table in value)):
                hint = _header_hint(document, key, value)
                yield Finding((key,), f"{key!r} is {shown(value)}, not a list of tables", hint)
            elif model is None:
                yield from self._merge_servers(document, value, ("server",))
            elif model.merged_by:
                self._merge(model, document, value)
            else:
                yield from self._replace_table_list(model, document, value)
        elif not isinstance(value, dict):
            yield Finding(
                (key,), f"{key!r} is {shown(value)}, not a table", _header_hint(document, key, value)
            )
        elif model is not None:
            table = model.in_long_form(value, document.data[key], document.base_dir)
            self.tables[key] = merged(self.tables.get(key, {}), table)
        elif key == "defaults":
            self._merge_into_defaults(document, value)
        else:
            self.settings = merged(self.settings, value)

    def _replace_table_list(
        self, model: type[Table], document: Document, tables: list[dict[str, Tree]]
    ) -> Iterator[Finding]:
        name = model.table_name
        written = document.data[name]
        for index, table in enumerate(tables):
            for key in (table.keys() & model.model_fields.keys()) - {*keys_of(model)}:
                yield Finding((name, index, key), f"unknown key {key!r}", "take it out")
        base_dir = document.base_dir
        self.tables[name] = [
            model.in_long_form(table, as_is, base_dir) for table, as_is in zip(tables, written, strict=True)
        ]

    def _merge(self, model: type[Table], document: Document, tables: list[dict[str, Tree]]) -> None:
        """Add a file's tables of the class `model` to those of earlier files; tables with the same name are merged."""
        name, written = model.table_name, document.data[model.table_name]
        existing = self.tables.setdefault(name, [])
        labels = [table.get(model.merged_by) for table in existing]
        earlier = {label: at for at, label in enumerate(labels) if isinstance(label, str)}
        for index, table in enumerate(tables):
            entry = model.in_long_form(table, written[index], document.base_dir)
            label = entry.get(model.merged_by)
            at = earlier.pop(label, None) if isinstance(label, str) else None
            if at is None:
                at = len(existing)
                existing.append(entry)
            else:
                existing[at] = merged(existing[at], entry)
            self.parts.setdefault((name, at), []).append((document, (name, index)))

    def _merge_into_defaults(self, document: Document, value: dict[str, Tree]) -> None:
        findings: list[Finding] = []
        table = normalised(value, document.base_dir, findings)
        if "name" in table:
            findings.append(Finding(("name",), "a name cannot be a default", "take it out: names are unique"))
            del table["name"]
        self._report(document, findings, ("defaults",))
        self.defaults = merged(self.defaults, table)

    def _merge_servers(self, document: Document, values: list[Tree], at: KeyPath) -> Iterator[Finding]:
        names_in_file: set[str] = set()
        for index, value in enumerate(values):
            path = (*at, index)
            if not isinstance(value, dict):
                yield Finding(path, f"a server is a table, and this is {shown(value)}", "write name = …")
                continue
            findings: list[Finding] = []
            table = normalised(value, document.base_dir, findings)
            name = table.get("name")
            name = name if isinstance(name, str) else ""
            entry = self._by_name.get(name) if name else None
            if entry is not None and name not in names_in_file:
                # A later file overrides single keys.
                entry.table = merged(entry.table, table)
                entry.parts.append((document, path))
            else:  # a new server, or a second one with its name in this file, which is a problem
                entry = ServerTable(name, table, document.base_dir, [(document, path)])
                self.entries.append(entry)
                if name:
                    self._by_name.setdefault(name, entry)
            names_in_file.add(name)
            if findings:
                self._report(document, findings, path, entry)


def _unknown_table_hint(document: Document, key: str, value: Tree) -> str:
    """The table that was meant, or where the key belongs, or all tables that a file may have."""
    if meant := meant_table(key):
        return _header_hint(document, meant, value)
    if key in ServerConfig.keys_in_files():
        server, defaults = (_shown_header(document, name) for name in ("server", "defaults"))
        if document.kind == "toml" and isinstance(value, dict):
            server_header, defaults_header = (f"[{head.strip('[]')}.{key}]" for head in (server, defaults))
            return f"write {server_header} below its {server}, or {defaults_header} for all servers"
        return f"write it below {server}, or below {defaults} for all servers"
    if isinstance(value, dict) and value.keys() & _SERVER_KEYS:
        return _header_hint(document, "server", {key: value})
    if key == read_file.SECTION[0]:
        return f"leave {'.'.join(read_file.SECTION)} out: it is for {read_file.PYPROJECT}"
    tables = [_shown_header(document, table) for table in file_tables()]
    return f"the tables of a file are {', '.join(tables)}"


def _header_hint(document: Document, table: str, value: Tree) -> str:
    """How to write the table of this name in the place of `value`, such as the header [[server]]."""
    shown_header = _shown_header(document, table)
    if not is_listed(table):
        return f"write {shown_header}"
    inner = value.items() if isinstance(value, dict) else ()
    names = [name for name, child in inner if isinstance(child, (dict, list))]
    if table == "server" and names and names[0] not in ServerConfig.keys_in_files():
        equals = " =" if document.kind == "toml" else ":"
        return f"write {shown_header}, and name{equals} {json_text(names[0])}"
    return f"write {shown_header}, {'with two brackets' if document.kind == 'toml' else 'a list of tables'}"


def _shown_header(document: Document, table: str) -> str:
    return header(table, document.prefix) if document.kind == "toml" else repr(table)


def located(finding: Finding, place: Place, entry: ServerTable | None = None) -> Problem:
    """Convert a finding to a problem at `place`; `entry` is its server, or None if it concerns no server."""
    name, bind = (entry.name, entry.table.get("bind")) if entry else ("", "")
    return problem_of(finding, place, name=name, bind=bind if isinstance(bind, str) else "")


LONG_FORMS = {written: key for key, written in SYNONYMS.items()}
# The keys that the short form of a table sets.
_KEYS_OF_SHORT_FORMS = {
    "health": ("health.readiness.http",),
    "recovery": ("recovery.strategy",),
    "restart": ("restart.policy",),
    "workers": ("scale.min", "scale.max"),
}


class Origins:
    """Finds where the values of a pool's servers are set."""

    def __init__(
        self, documents: list[Document], entries: list[ServerTable], parts: Mapping[KeyPath, list[Source]]
    ) -> None:
        self.documents = documents
        self._parts = parts
        self._defaults: list[Source] = [(document, ("defaults",)) for document in documents]
        self._entries = {entry.name: entry for entry in reversed(entries)}

    def place(self, entry: ServerTable | str, path: KeyPath) -> Place:
        """The place of a server's key, or of the server's table if no file has the key."""
        entry = self._entries[entry] if isinstance(entry, str) else entry
        document, table = nearest_source([*self._defaults, *entry.parts], path) or entry.parts[0]
        return document.place((*table, *path))

    def place_in_table(self, path: KeyPath) -> Place:
        """Return the file and line of a key that belongs to no server. `path` begins with the key's table."""
        parts = self._parts.get(path[:2])
        sources = parts or [(document, path[:1]) for document in self.documents]
        rest = path[2:] if parts else path[1:]
        for length in range(len(rest), -1, -1):
            for document, table in reversed(sources):
                if (
                    document.path_as_spelled(document.path_without_omitted_parts((*table, *rest[:length])))
                    is not None
                ):
                    return document.place(document.path_without_omitted_parts((*table, *rest)))
        document, table = sources[0]
        return document.place((*table, *rest))

    def server_places(self) -> dict[str, Place]:
        """The place of the table in which each server is defined, by the server's name; also of invalid servers."""
        sources = {name: entry.parts[0] for name, entry in self._entries.items()}
        return {name: document.place(table) for name, (document, table) in sources.items()}

    def file_of(self, name: str) -> str:
        """The file in which the server is defined."""
        return self._entries[name].parts[0][0].path

    def of(self, name: str, *, inherited: bool = True) -> dict[str, str]:
        """`{"http.loop": "/etc/pool.toml:7", …}` for every key that files set for the server; {} for an unknown one.

        Without `inherited`, the keys of [defaults] are left out.
        """
        origin: dict[str, str] = {}
        entry = self._entries.get(name)
        if entry is None:
            return origin
        files = (document.data for document in self.documents if isinstance(document.data, dict))
        defaults = [data["defaults"] for data in files if isinstance(data.get("defaults"), dict)]
        # [defaults.tls] applies only to servers with `tls`.
        uses_default_tls = "tls" in entry.table or any(table.get("tls") is True for table in defaults)
        for document, table in [*(self._defaults if inherited else ()), *entry.parts]:
            for path, line, value in _keys_of(document, table):
                top_key, position = LONG_FORMS.get(str(path[0]), path[0]), f"{document.path}:{line}"
                if table != ("defaults",) or top_key != "tls" or uses_default_tls:
                    key = ".".join(map(str, (top_key, *path[1:])))
                    origin[key] = position
                    if value is None:
                        del origin[key]  # as if no file had it
                    elif len(path) == 1 and not isinstance(value, dict):
                        origin |= dict.fromkeys(_KEYS_OF_SHORT_FORMS.get(str(path[0]), ()), position)
        return origin


def _keys_of(document: Document, table: KeyPath) -> Iterator[tuple[KeyPath, int, Tree]]:
    """The keys of a table, and of the tables in it: their paths in the table, their lines and their values.

    A value that an alias or a merge of YAML repeats has the line of the table into which it is repeated.
    """
    places, table_value = document.positions(), document.data
    for part in table:
        try:
            table_value = table_value[part]
        except (LookupError, TypeError):
            return

    def keys_in(inner_table: Tree, path: KeyPath, line: int) -> Iterator[tuple[KeyPath, int, Tree]]:
        for key, value in inner_table.items() if isinstance(inner_table, dict) else ():
            place = places.get((*document.prefix, *table, *path, key))
            key_line = place[0] if place else line
            if place or not isinstance(value, dict):
                yield (*path, key), key_line, value
            yield from keys_in(value, (*path, key), key_line)

    yield from keys_in(table_value, (), places.get((*document.prefix, *table), (1, 1))[0])


def nearest_source(sources: Sequence[Source], path: KeyPath) -> Source | None:
    """Return the last source with a value at `path`, which is relative to the source's table.

    If no table has such a value, search again for `path` without the last key, and so on. Return None if no table has
    even the first key.
    """
    for length in range(len(path), 0, -1):
        for document, table in reversed(sources):
            if document.path_as_spelled((*table, *path[:length])) is not None:
                return document, table
    return None
