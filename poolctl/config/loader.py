"""Configuration files become servers, or problems with their places."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from poolctl.address import Address
from poolctl.config.checks.interpreter import default_interpreter
from poolctl.config.configuration import Configuration
from poolctl.config.files.assemble import Assembly, ServerTable, located
from poolctl.config.files.document import read_documents
from poolctl.config.files.origins import Origins
from poolctl.config.model.conflicts import conflicts
from poolctl.config.model.defaults import Defaults
from poolctl.config.model.dependencies import dependency_findings
from poolctl.config.model.derive import derive
from poolctl.config.model.explain import findings_of, suggest_afresh
from poolctl.config.model.problems import Finding, Problem, untold
from poolctl.config.model.settings import PoolSettings
from poolctl.config.model.tables import TABLE_NAMES, Tables
from poolctl.config.server_config import ServerConfig
from poolctl.errors import PoolValidateError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# Problems of a server that another file, which could not be read, might have fixed.
PERHAPS_ELSEWHERE = (" is missing", "there is no server")


def load(
    paths: Paths, env: Mapping[str, str] | None = None, texts: Mapping[str, str] | None = None
) -> Configuration:
    """The configuration of these files and directories, later ones over earlier ones. Blocks on the disk.

    `texts` are by path what some of the files are to say instead of what they do.

    What is wrong with servers is in `.problems`. Raises PoolValidateError when a file cannot be read or parsed.
    """
    # Nothing in here becomes garbage in circles, and looking for it takes a fifth of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _load(paths, os.environ if env is None else env, texts)
    finally:
        if collecting:
            gc.enable()


def _load(paths: Paths, env: Mapping[str, str], texts: Mapping[str, str] | None) -> Configuration:
    suggest_afresh()
    named = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files = [os.path.normpath(os.path.join(os.getcwd(), os.fspath(path))) for path in named]
    documents, unreadable = read_documents(files, texts)
    assembly = Assembly(env)
    for document in documents:
        assembly.add(document)
    config = _Loader(assembly, env).load(files)
    if unreadable:
        others = [p for p in config.problems if isinstance(p, Problem) and not _perhaps_mended(p)]
        count = len(unreadable)
        message = f"{count} configuration file{'s' * (count > 1)} cannot be read"
        raise PoolValidateError(message, [*unreadable, *others])
    return config


def _perhaps_mended(problem: Problem) -> bool:
    return any(words in problem.message for words in PERHAPS_ELSEWHERE)


class _Loader:
    def __init__(self, assembly: Assembly, env: Mapping[str, str]) -> None:
        self.assembly = assembly
        self.env = env
        self.origins = Origins(assembly.documents, assembly.entries)
        self.problems: list[Problem] = list(assembly.problems)
        # What a reference would have said is not known: nothing more is to be told of it.
        self.unresolved = {problem.place for problem in assembly.problems}
        self.interpreters: dict[str, str] = {}
        base_dir = assembly.documents[0].base_dir if assembly.documents else os.getcwd()
        self.defaults = Defaults(assembly.defaults, base_dir, ServerConfig)
        self.settings = self._settings()
        # Side by side with the entries: what they became, and the addresses that could be read.
        self.made: list[ServerConfig | None] = []
        self.addresses: list[Address | None] = []

    def load(self, files: list[str]) -> Configuration:
        for finding in self.defaults.findings:
            self._tell(None, finding)
        for entry in self.assembly.entries:
            self._server(entry)
        servers = self._cross_check()
        tables = self._tables() if self.assembly.tables else Tables()
        # What a default does to every server is told once.
        distinct: dict[object, Problem] = {}
        for problem in self.problems:
            distinct.setdefault((problem.place, problem.message), problem)
        problems = sorted(distinct.values(), key=self._order)
        return Configuration(
            servers,
            problems=problems,
            settings=self.settings,
            tables=tables,
            defaults=self.assembly.defaults,
            files=files,
            origins=self.origins,
        )

    def _settings(self) -> PoolSettings:
        table = self.assembly.settings
        while True:
            try:
                return PoolSettings.__pydantic_validator__.validate_python(table)  # type: ignore[no-any-return]
            except ValidationError as error:
                findings = findings_of(error, PoolSettings)
            for finding in findings:
                self._tell(None, finding._replace(path=("pool", *finding.path)))
            bad = {finding.path[0] for finding in findings}
            table = {key: value for key, value in table.items() if key not in bad}

    def _tables(self) -> Tables:
        from poolctl.config.model.table_rules import made, overlapping

        findings: list[Finding] = []
        tables = made(self.assembly.tables, findings)
        names = [entry.name for entry in self.assembly.entries]
        for path, other, finding in overlapping(tables, list(zip(names, self.addresses, strict=True))):
            server = next((entry for entry in self.assembly.entries if entry.name == other), None)
            where = f", {self.origins.place(server, ('bind',))}" if server else ""
            findings.append(finding._replace(path=path, message=f"{finding.message}{where}"))
        for finding in findings:
            self._tell(None, finding)
        return tables

    def _server(self, entry: ServerTable) -> None:
        findings: list[Finding] = []
        table = self.defaults.under(entry.table)
        address = derive(table, entry.base_dir, findings, from_file=True)
        table["origins"] = self.origins
        if "command" not in table:
            if "python" not in table:
                table["python"] = self._python(entry.base_dir)
            if "app" not in table and self.settings.handlers:
                table["handlers"] = self.settings.handlers
        try:
            server = ServerConfig.__pydantic_validator__.validate_python(table)
        except ValidationError as error:
            findings += untold(findings_of(error, ServerConfig), findings)
        for finding in findings:
            self._tell(entry, finding)
        self.made.append(None if findings else server)
        self.addresses.append(address)

    def _python(self, base_dir: str) -> str:
        if base_dir not in self.interpreters:
            self.interpreters[base_dir] = default_interpreter(base_dir, self.env)
        return self.interpreters[base_dir]

    def _cross_check(self) -> list[ServerConfig]:
        """The servers that get along with each other."""
        entries = self.assembly.entries
        out: set[int] = set()
        names = [entry.name for entry in entries]
        for later, earlier, finding in conflicts(list(zip(names, self.addresses, strict=True))):
            other = self.origins.place(entries[earlier], finding.path)
            self._tell(entries[later], finding._replace(message=f"{finding.message}, {other}"))
            out.add(later)
        passed = {server.name: i for i, server in enumerate(self.made) if server is not None and i not in out}
        servers = [self.made[index] for index in passed.values()]
        good = [server for server in servers if server is not None]
        failed = [name for name in names if name not in passed]
        for server, finding in dependency_findings(good, failed):
            self._tell(entries[passed[server.name]], finding)
            out.add(passed[server.name])
        return [server for i, server in enumerate(self.made) if server is not None and i not in out]

    def _tell(self, entry: ServerTable | None, finding: Finding) -> None:
        if entry is not None:
            place = self.origins.place(entry, finding.path)
            if place not in self.unresolved:
                self.problems.append(located(finding, place, entry))
            return
        path = finding.path if finding.path[0] in ("pool", *TABLE_NAMES) else ("defaults", *finding.path)
        self.problems.append(located(finding, self.origins.of_table(path)))

    def _order(self, problem: Problem) -> Any:
        files = [document.path for document in self.assembly.documents]
        index = files.index(problem.file) if problem.file in files else len(files)
        return index, problem.line, problem.column
