"""Several files become one: settings, defaults, tables and servers, later files over earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
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
            self._servers(document, data, (), findings)
        elif isinstance(data, dict):
            self._tables(document, data, findings)
        else:
            message = f"the file holds {shown(data)}, not tables"
            findings.append(Finding((), message, "write [[server]] tables, or a list of servers"))
        self.told(document, findings)

    def told(
        self, document: Document, findings: list[Finding], path: Path = (), entry: ServerTable | None = None
    ) -> None:
        """Note findings at their places in a file."""
        for finding in findings:
            self.problems.append(located(finding, document.place((*path, *finding.path)), entry))

    def _tables(self, document: Document, data: dict[str, Any], findings: list[Finding]) -> None:
        for key, value in data.items():
            if key in NOT_IMPLEMENTED:
                what = f"{NOT_IMPLEMENTED[key]} is not available in this version of poolctl"
                hint = "remove it, or install a version that has it"
                findings.append(Finding((key,), what, hint))
            elif key not in KNOWN:
                near = nearest(str(key), (*KNOWN, *NOT_IMPLEMENTED))
                hint = f"did you mean {near!r}?" if near else "a file has 'pool', 'defaults' and 'server'"
                findings.append(
                    Finding((key,), f"unknown key {str(key)[:60]!r}", hint, str(key)[:60], ", ".join(KNOWN))
                )
            elif key == "server":
                if isinstance(value, list):
                    self._servers(document, value, ("server",), findings)
                else:
                    hint = (
                        "write [[server]], with two brackets" if document.kind == "toml" else "write a list"
                    )
                    findings.append(
                        Finding((key,), f"'server' is {shown(value)}, not a list of tables", hint)
                    )
            elif key == "notify":
                self._notify(document, value, findings)
            elif not isinstance(value, dict):
                findings.append(Finding((key,), f"{key!r} is {shown(value)}, not a table", f"write [{key}]"))
            elif key in TABLE_NAMES:
                from poolctl.config.model.table_rules import with_absolute_paths

                table = with_absolute_paths(key, value, document.base_dir)
                self.tables[key] = merged(self.tables.get(key, {}), table)
            elif key == "defaults":
                self._defaults(document, value)
            else:
                self.settings = merged(self.settings, value)

    def _notify(self, document: Document, value: Any, findings: list[Finding]) -> None:
        from poolctl.config.model.table_rules import with_absolute_paths

        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            hint = (
                "write [[notify]], with two brackets" if document.kind == "toml" else "write a list of tables"
            )
            findings.append(Finding(("notify",), f"'notify' is {shown(value)}, not a list of tables", hint))
            return
        found = [with_absolute_paths("notify", each, document.base_dir) for each in value]
        for index, table in enumerate(found):
            if "written" in table:
                findings.append(Finding(("notify", index, "written"), "unknown key 'written'", "take it out"))
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
        self.told(document, findings, ("defaults",))
        self.defaults = merged(self.defaults, table)

    def _servers(self, document: Document, values: list[Any], at: Path, findings: list[Finding]) -> None:
        here: dict[str, Path] = {}
        for index, value in enumerate(values):
            path = (*at, index)
            if not isinstance(value, dict):
                findings.append(
                    Finding(path, f"a server is a table, and this is {shown(value)}", "write name = …")
                )
                continue
            own: list[Finding] = []
            table = normalise(value, document.base_dir, own)
            refuse_internal(table, own)
            name = table.get("name")
            entry = self._entry(document, table, path, name if isinstance(name, str) else "", here)
            if own:
                self.told(document, own, path, entry)

    def _entry(
        self, document: Document, table: dict[str, Any], path: Path, name: str, here: dict[str, Path]
    ) -> ServerTable:
        before = self._by_name.get(name) if name else None
        if before is not None and name not in here:
            before.override(table, document, path)
            here[name] = path
            return before
        entry = ServerTable(name, table, document, path)
        self.entries.append(entry)
        if name and before is None:
            self._by_name[name] = entry
        here.setdefault(name, path)
        return entry


def located(finding: Finding, place: Place, entry: ServerTable | None = None) -> Problem:
    """A finding that has found its place."""
    bind = entry.table.get("bind") if entry else None
    return problem_of(
        finding, place, name=entry.name if entry else "", bind=bind if isinstance(bind, str) else ""
    )
