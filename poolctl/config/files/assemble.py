"""Several files become one: settings, defaults, tables and servers, later files over earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from poolctl.config.files.document import Document
from poolctl.config.model.explain import nearest
from poolctl.config.model.interpolate import interpolate
from poolctl.config.model.normalise import merged, normalise, refuse_internal
from poolctl.config.model.problems import Finding, Path, Place, Problem, problem_of, shown
from poolctl.config.model.tables import NOT_IMPLEMENTED, TABLE_NAMES

KNOWN = ("pool", "defaults", "server", *TABLE_NAMES)


class ServerTable:
    """The merged table of one server, before it is validated, and the tables of the files that it was merged from."""

    __slots__ = ("base_dir", "name", "parts", "table")

    def __init__(self, name: str, table: dict[str, Any], document: Document, path: Path) -> None:
        self.name = name
        self.table = table
        self.base_dir = document.base_dir
        self.parts: list[tuple[Document, Path]] = [(document, path)]

    def override(self, table: dict[str, Any], document: Document, path: Path) -> None:
        """Let a later file's table win, key by key."""
        self.table = merged(self.table, table)
        self.parts.append((document, path))


class Assembly:
    """The merged tables of all files."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.documents: list[Document] = []
        self.settings: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        self.tables: dict[str, Any] = {}  # the others, by name
        self.entries: list[ServerTable] = []
        self.problems: list[Problem] = []
        self._by_name: dict[str, ServerTable] = {}

    def add(self, document: Document) -> None:
        """Lay one file over those before it."""
        self.documents.append(document)
        findings: list[Finding] = []
        data = document.data
        # Most files have neither references nor escapes, and walking them costs a third of their validation.
        if "${" in document.text or "\\" in document.text:
            data = interpolate(data, self.env, findings)
        if isinstance(data, list):
            findings += self._servers(document, data, ())
        elif isinstance(data, dict):
            for key, value in data.items():
                findings += self._table(document, key, value)
        else:
            message = f"the file holds {shown(data)}, not tables"
            findings.append(Finding((), message, "write [[server]] tables, or a list of servers"))
        self._report(document, findings)

    def _report(
        self, document: Document, findings: list[Finding], path: Path = (), entry: ServerTable | None = None
    ) -> None:
        for finding in findings:
            self.problems.append(located(finding, document.place((*path, *finding.path)), entry))

    def _table(self, document: Document, key: str, value: Any) -> Iterator[Finding]:
        """Take over one key of a file."""
        if key in NOT_IMPLEMENTED:
            message = f"{NOT_IMPLEMENTED[key]} is not available in this version of poolctl"
            yield Finding((key,), message, "remove it, or install a version that has it")
        elif key not in KNOWN:
            near = nearest(str(key), (*KNOWN, *NOT_IMPLEMENTED))
            hint = f"did you mean {near!r}?" if near else "a file has 'pool', 'defaults' and 'server'"
            yield Finding((key,), f"unknown key {str(key)[:60]!r}", hint, str(key)[:60], ", ".join(KNOWN))
        elif key in ("server", "notify"):
            if not isinstance(value, list) or (
                key == "notify" and not all(isinstance(v, dict) for v in value)
            ):
                of_tables = " of tables" if key == "notify" else ""
                hint = (
                    f"write [[{key}]], with two brackets"
                    if document.kind == "toml"
                    else f"write a list{of_tables}"
                )
                yield Finding((key,), f"{key!r} is {shown(value)}, not a list of tables", hint)
            elif key == "server":
                yield from self._servers(document, value, ("server",))
            else:
                yield from self._notify(document, value)
        elif not isinstance(value, dict):
            yield Finding((key,), f"{key!r} is {shown(value)}, not a table", f"write [{key}]")
        elif key in TABLE_NAMES:
            from poolctl.config.model.table_rules import with_absolute_paths

            table = with_absolute_paths(key, value, document.base_dir)
            self.tables[key] = merged(self.tables.get(key, {}), table)
        elif key == "defaults":
            self._defaults(document, value)
        else:
            self.settings = merged(self.settings, value)

    def _notify(self, document: Document, tables: list[dict[str, Any]]) -> Iterator[Finding]:
        from poolctl.config.model.table_rules import with_absolute_paths

        found = [with_absolute_paths("notify", each, document.base_dir) for each in tables]
        for index, table in enumerate(found):
            if "written" in table:
                yield Finding(("notify", index, "written"), "unknown key 'written'", "take it out")
            written = document.data["notify"][index].get("url")
            if isinstance(written, str) and "${" in written:
                table["written"] = written
        self.tables["notify"] = found

    def _defaults(self, document: Document, value: dict[str, Any]) -> None:
        findings: list[Finding] = []
        table = normalise(value, document.base_dir, findings)
        refuse_internal(table, findings)
        if "name" in table:
            findings.append(Finding(("name",), "a name cannot be a default", "take it out: names are unique"))
            del table["name"]
        self._report(document, findings, ("defaults",))
        self.defaults = merged(self.defaults, table)

    def _servers(self, document: Document, values: list[Any], at: Path) -> Iterator[Finding]:
        here: set[str] = set()
        for index, value in enumerate(values):
            path = (*at, index)
            if not isinstance(value, dict):
                yield Finding(path, f"a server is a table, and this is {shown(value)}", "write name = …")
                continue
            own: list[Finding] = []
            table = normalise(value, document.base_dir, own)
            refuse_internal(table, own)
            name = table.get("name")
            name = name if isinstance(name, str) else ""
            entry = self._by_name.get(name) if name else None
            if entry is not None and name not in here:
                entry.override(table, document, path)
            else:  # a new one, or a second one of its name in this file, which is a problem
                entry = ServerTable(name, table, document, path)
                self.entries.append(entry)
                if name:
                    self._by_name.setdefault(name, entry)
            here.add(name)
            if own:
                self._report(document, own, path, entry)


def located(finding: Finding, place: Place, entry: ServerTable | None = None) -> Problem:
    """A finding as a problem at its place."""
    bind = entry.table.get("bind") if entry else None
    return problem_of(
        finding, place, name=entry.name if entry else "", bind=bind if isinstance(bind, str) else ""
    )
