"""Builds validated servers from configuration files, or from the table of a server added at runtime."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache

from poolctl.address import Address
from poolctl.config.checks.interpreter import broken_environment, default_interpreter
from poolctl.config.configuration import Configuration, Surroundings, missing_settings
from poolctl.config.files.assemble import Assembly, Origins, ServerTable, located, read_documents
from poolctl.config.files.read_file import default_env_file
from poolctl.config.model.pool_tables import (
    NamesOfInvalidServers,
    PoolSettings,
    Tables,
    build_tables,
    rules_of,
    table_names,
)
from poolctl.config.model.section import Section, checked, refuse, validated
from poolctl.config.model.server_keys import (
    SOCKET_FILE_KEYS,
    Scale,
    ServerConfig,
    is_of_shared_address,
    normalised,
)
from poolctl.config.model.server_tables import SLEEP_KEYS
from poolctl.config.rules.conflicts import (
    ServerReferenceValues,
    conflicts,
    dependency_findings,
    reference_findings,
    table_conflicts,
    unknown_dependencies,
)
from poolctl.config.values.normalise import (
    OPENING,
    add_derived_values,
    interpolate,
    merged,
)
from poolctl.config.values.plain import placeholders, truth_if_interpolated
from poolctl.config.values.problems import Finding, KeyPath, Problem, Tree, reset_suggestions
from poolctl.errors import PoolValidateError

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]

# Problems with these words may be consequences of a file that could not be read.
PERHAPS_ELSEWHERE = (" is missing", "there is no server")


def load(
    paths: Paths,
    env: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    *,
    access_log: bool = False,
    python: str | None = None,
    env_files: bool = True,
    in_env: str = "",
    several_bind: bool = False,
) -> Configuration:
    """The configuration of these files and directories; later files override earlier files. Blocks on the disk.

    `texts` replace the contents of some files, by path. `access_log` is the default of http.access_log.
    `python` is the interpreter of servers that name none; by default, that of `default_interpreter`.
    `env` and, with `env_files`, `.env` beside a file resolve its `${VAR}`. With a format `in_env`, such as "<{}>",
    references in `env` of servers are not resolved, but written in it.
    With `several_bind`, several workers may bind the address of their server, because each has a machine of its own.

    Problems of servers are in `.problems`. Raises PoolValidateError when a file cannot be read or parsed.
    """
    env = os.environ if env is None else env
    reset_suggestions()
    named = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files = [os.path.abspath(path) for path in named]
    documents, unreadable = read_documents(files, texts)
    assembly = Assembly(env, env_files=env_files, in_env=in_env)
    if access_log:
        assembly.defaults = {"http": {"access_log": True}}  # overridden by the files
    for document in documents:
        assembly.add(document)
    config = _ConfigurationBuilder(assembly, env, python, several_bind=several_bind).build_config(files)
    if unreadable:
        others = [
            problem
            for problem in config.problems
            if isinstance(problem, Problem)
            and not any(words in problem.message for words in PERHAPS_ELSEWHERE)
        ]
        count = len(unreadable)
        message = f"{count} configuration file{'s' * (count > 1)} cannot be read"
        raise PoolValidateError(message, [*unreadable, *others])
    return config


# A server's app replaces a command in the defaults, and vice versa.
APP_KEYS = frozenset({"app", "factory", "handler_key", "tls"})
COMMAND_KEYS = frozenset(
    {"command", "socket", "stdin", "notify", "ready_line", "job", "every", "stop_signal", "stop_group"}
)

# Keys that scheduled jobs do not inherit.
NOT_FOR_SCHEDULES = frozenset({"hooks", "mandatory"})


class Defaults:
    """The keys that servers inherit. `findings` are the problems of the table [defaults] itself."""

    def __init__(self, table: dict[str, Tree], base_dir: str) -> None:
        self.findings: list[Finding] = []
        self.tls = table.get("tls") if isinstance(table.get("tls"), dict) else None
        self.raw = {key: value for key, value in table.items() if key != "tls" or value is not self.tls}
        self.ready: dict[str, Tree] = {}
        self._tls_is_invalid = False
        if table:
            self._validate_and_store(table, base_dir)

    def _validate_and_store(self, table: dict[str, Tree], base_dir: str) -> None:
        findings: list[Finding] = []
        example = {"app": "a:b", **table, "name": "defaults"}
        if "command" in example:
            example.pop("app")
        else:
            # They apply only to servers with a command.
            for key in ("stdin", "ready_line", "stop_signal", "stop_group"):
                example.pop(key, None)
        example.setdefault(
            "bind", "unix:/defaults" if example.keys() & {*SOCKET_FILE_KEYS} else "127.0.0.1:1"
        )
        for key in ("job", "every", "ready_after"):
            example.pop(key, None)
        add_derived_values(example, base_dir, findings)
        valid_part = checked(ServerConfig, example, findings)
        # Problems of triggers are left to each server, which may have its own scale.max.
        trigger_paths: set[KeyPath] = set()
        if valid_part is not None and isinstance(scale := vars(valid_part).get("scale"), Scale):
            may_overlap = truth_if_interpolated(example.get("overlap")) is not False
            scale_findings = scale.findings_in_server(
                is_command="command" in example, may_overlap=may_overlap
            )
            trigger_paths = {("scale", *finding.path) for finding in scale_findings}
        reported = (finding for finding in findings if finding.path[0] in table)
        self.findings = [finding for finding in reported if finding.path not in trigger_paths]
        invalid_keys = {finding.path[0] for finding in self.findings}
        # Servers do not inherit a bad value, which would be reported again for each of them.
        self.raw = {key: value for key, value in self.raw.items() if key not in invalid_keys}
        if "tls" in invalid_keys:
            self.tls = None
            self._tls_is_invalid = True
        self.ready = self.raw | ({} if self.tls is None else {"tls": self.tls})
        if valid_part is not None:
            # Validated once, not for each server.
            sections = {key: value for key, value in valid_part if isinstance(value, Section)}
            self.ready |= {key: sections[key] for key in self.ready.keys() & sections.keys()}
            if trigger_paths:
                self.ready["scale"] = self.raw["scale"]

    def merged_with(self, server: dict[str, Tree]) -> dict[str, Tree]:
        """A new table: the keys of `server`, and defaults for the other keys; nested tables are merged."""
        table = {**self.ready, **server}
        if self.tls is not None:
            self._apply_default_tls(table, server)
        elif self._tls_is_invalid and (
            (tls := server.get("tls")) is True or (isinstance(tls, dict) and "cert" not in tls)
        ):
            del table["tls"]  # its certificate is in the defaults, where the problem is reported
        for key, inherited in self.raw.items():
            if isinstance(inherited, dict) and isinstance(server.get(key), dict):
                table[key] = merged(inherited, server[key])
        if "command" in table and "bind" not in table:
            self._drop_settings_needing_address(table, server)
        if "scale" in self.ready and (left_out := Scale.not_inherited(table, server)):
            scale = table["scale"] if isinstance(table["scale"], dict) else self.raw["scale"]
            table["scale"] = {key: value for key, value in scale.items() if key not in left_out}
        displaced: frozenset[str] = frozenset()
        if "command" in server:
            displaced = APP_KEYS
        elif server.keys() & APP_KEYS - {"tls"}:
            displaced = COMMAND_KEYS
        if server.get("every") is not None:
            displaced |= NOT_FOR_SCHEDULES
        if any(truth_if_interpolated(table.get(key)) is True for key in ("job", "notify")):
            displaced |= {"ready_line"}
        if "ready_after" in self.raw and not _is_ready_by_running(table):
            displaced |= {"ready_after"}
        if not str(table.get("bind")).startswith("unix:"):
            displaced |= {*SOCKET_FILE_KEYS}
        for key in displaced:
            if key not in server:
                table.pop(key, None)
        return table

    def _drop_settings_needing_address(self, table: dict[str, Tree], server: dict[str, Tree]) -> None:
        """For a program without an address, remove inherited settings that need one."""
        tests = {"env": _needs_address, "health": _probes_address, "hooks": _needs_address, "scale": _sleeps}
        for key, needs_address in tests.items():
            if isinstance(inherited := self.raw.get(key), dict):
                override = server.get(key, {})
                kept = {name: value for name, value in inherited.items() if not needs_address(name, value)}
                table[key] = merged(kept, override) if isinstance(override, dict) else override

    def _apply_default_tls(self, table: dict[str, Tree], server: dict[str, Tree]) -> None:
        tls = server.get("tls", self.raw.get("tls"))
        if tls is True:
            table["tls"] = self.ready["tls"]
        elif isinstance(tls, dict) and self.tls is not None:
            # A server with its own certificate does not inherit the key of another one.
            inherited = self.tls
            if "cert" in tls:
                inherited = {k: v for k, v in inherited.items() if k not in ("cert", "key", "password_env")}
            table["tls"] = merged(inherited, tls)
        elif tls is None:
            table.pop("tls", None)


def _is_ready_by_running(table: dict[str, Tree]) -> bool:
    """Whether the only sign that the table's program is ready is that it keeps running."""
    health = table.get("health")
    health = dict(health) if isinstance(health, (dict, Section)) else {}
    shows = any(truth_if_interpolated(table.get(key)) is True for key in ("job", "notify"))
    return (
        "command" in table
        and "bind" not in table
        and not (shows or "ready_line" in table or health.get("startup") or health.get("readiness"))
    )


def _needs_address(name: str, value: Tree) -> bool:
    return any(map(placeholders, value if isinstance(value, (list, tuple)) else (value,)))


def _probes_address(kind: str, probe: Tree) -> bool:
    return isinstance(probe, dict) and bool(
        probe.get("http") or probe.get("tcp") or _needs_address("exec", probe.get("exec"))
    )


def _sleeps(key: str, value: Tree) -> bool:
    return key in SLEEP_KEYS or (key == "min" and value == 0)


def _server_of(
    table: dict[str, Tree], base_dir: str, handlers: str | None, python: str | None, findings: list[Finding]
) -> tuple[ServerConfig | None, Address | None]:
    """The valid part of a server, and its address if that can be read. Problems are added to `findings`."""
    address = add_derived_values(table, base_dir, findings)
    if "env_file" not in table and (env_file := default_env_file(base_dir)):
        table["env_file"] = env_file
    if "python" not in table:
        table |= {"lacks_environment": True} if python is None else {"python": python}
    if handlers and not table.keys() & {"app", "command"}:
        table["handlers"] = handlers
    server = checked(ServerConfig, table, findings)
    invalid_paths = {finding.path for finding in findings}
    if ("bind",) in invalid_paths or (("name",) in invalid_paths and address and not address.listens):
        address = None
    return server, address


def added_server(
    surroundings: Surroundings, table: Mapping[str, Tree], base_dir: str, env: Mapping[str, str]
) -> ServerConfig:
    """The server of this table, with the files' defaults; paths are relative to `base_dir`.

    `env` resolves `${VAR}`. Raises PoolValidateError with every problem.
    """
    reset_suggestions()
    findings: list[Finding] = []
    server_keys = normalised(interpolate(dict(table), env, findings), base_dir, findings)
    table_with_defaults = Defaults(surroundings.defaults, surroundings.base_dir).merged_with(server_keys)
    python = default_interpreter(base_dir, env)
    if python and "python" not in table_with_defaults and (broken := broken_environment(python)):
        findings.append(Finding(("python",), *broken, python))
    server, _ = _server_of(table_with_defaults, base_dir, surroundings.handlers, python, findings)
    findings += missing_settings(server) if server and not findings else ()
    if findings or server is None:
        name, bind = server_keys.get("name"), server_keys.get("bind")
        name = name if isinstance(name, str) else ""
        refuse(name[:60] or "the server", findings, name, bind if isinstance(bind, str) else "")
    return server


class _ConfigurationBuilder:
    def __init__(
        self, assembly: Assembly, env: Mapping[str, str], python: str | None, *, several_bind: bool = False
    ) -> None:
        self.assembly = assembly
        self.several_bind = several_bind
        self.env = env
        self.python = python
        self.origins = Origins(assembly.documents, assembly.entries, assembly.parts)
        self.problems: list[Problem] = list(assembly.problems)
        # Places with an unresolved reference: skip further problems of the unknown value.
        self.unresolved = {problem.place for problem in assembly.problems}
        base_dir = assembly.documents[0].base_dir if assembly.documents else os.getcwd()
        self.defaults = Defaults(assembly.defaults, base_dir)
        self.settings = self._validate_settings()
        # By the index of the entry: the server if it is valid, and its address if it could be read.
        self.servers: list[ServerConfig | None] = []
        self.addresses: list[tuple[str, Address | None]] = []

    def build_config(self, files: list[str]) -> Configuration:
        for finding in self.defaults.findings:
            self._report(None, finding)
        interpreter = cache(self._interpreter)  # not an attribute: that would be a reference cycle
        for entry in self.assembly.entries:
            findings: list[Finding] = []
            table, handlers = self.defaults.merged_with(entry.table), self.settings.handlers
            python = "" if "python" in table else interpreter(entry.base_dir)
            server, address = _server_of(table, entry.base_dir, handlers, python, findings)
            if self.several_bind:
                findings = [finding for finding in findings if not is_of_shared_address(finding)]
            for finding in findings:
                self._report(entry, finding)
            server = None if findings else server
            self.servers.append(server)
            self.addresses.append((entry.name, address))
        excluded = self._report_conflicting_servers()
        if any(OPENING in document.text for document in self.assembly.documents):
            self._check_address_references()
        needs_tables = self.assembly.tables or any(server and server.is_proxied for server in self.servers)
        tables = self._tables() if needs_tables else None
        if tables is not None:
            self._check_tables(tables)
        valid = (server for index, server in enumerate(self.servers) if server and index not in excluded)
        config = Configuration(valid, tables)
        config._excluded = [server for index in sorted(excluded) if (server := self.servers[index])]
        # A problem of a default is reported once, not for each server that inherits it.
        distinct: dict[object, Problem] = {}
        for problem in self.problems:
            distinct.setdefault((problem.place, problem.message), problem)
        at = {document.path: index for index, document in enumerate(self.assembly.documents)}
        problems = sorted(
            distinct.values(),
            key=lambda problem: (at.get(problem.file, len(at)), problem.line, problem.column),
        )
        config._problems = [*problems]
        config.settings, config.defaults = self.settings, self.assembly.defaults
        config.files, config._origins = files, self.origins
        return config

    def _interpreter(self, base_dir: str) -> str | None:
        """The interpreter for servers of this directory's files that name none. Reports it if it is broken."""
        python = self.python or default_interpreter(base_dir, self.env)
        if python and (broken := broken_environment(python)):
            self._report(None, Finding(("python",), *broken, python))
        return python

    def _validate_settings(self) -> PoolSettings:
        table = self.assembly.settings
        while True:
            findings: list[Finding] = []
            settings = validated(PoolSettings, table, findings)
            if settings is not None:
                return settings
            for finding in findings:
                self._report(None, finding._replace(path=("pool", *finding.path)))
            bad = {finding.path[0] for finding in findings}
            table = {key: value for key, value in table.items() if key not in bad}

    def _tables(self) -> Tables:
        findings: list[Finding] = []
        servers = [server for server in self.servers if server is not None]
        tables = build_tables(self.assembly.tables, findings, servers)
        for path, other, finding in table_conflicts(tables, self.addresses):
            server = next((entry for entry in self.assembly.entries if entry.name == other), None)
            where = f", {self.origins.place(server, ('bind',))}" if server else ""
            findings.append(finding._replace(path=path, message=f"{finding.message}{where}"))
        for finding in findings:
            self._report(None, finding)
        return tables

    def _check_tables(self, tables: Tables) -> None:
        if not (rules := [*rules_of(tables.by_name())]):
            return
        entries: dict[str, ServerTable] = {}
        broken: list[ServerTable] = []
        for entry, server in zip(self.assembly.entries, self.servers, strict=True):
            if server is None:
                broken.append(entry)
            else:
                entries.setdefault(server.name, entry)
        tags = [entry.table.get("tags", ()) for entry in broken]
        tags += [self.defaults.raw.get("tags", ())] if broken else []
        unfinished = NamesOfInvalidServers(
            {entry.name for entry in broken},
            {
                tag
                for words in tags
                if isinstance(words, (list, tuple))
                for tag in words
                if isinstance(tag, str)
            },
            {
                name
                for name, raw in self.assembly.tables.items()
                if isinstance(raw, list)
                and not (isinstance(valid := tables.by_name().get(name), tuple) and len(valid) == len(raw))
            },
        )
        servers = [server for server in self.servers if server is not None]
        for rule in rules:
            for owner, finding in rule.problems(servers, tables, unfinished):
                self._report(entries[owner.name] if owner else None, finding)

    def _report_conflicting_servers(self) -> set[int]:
        """Report conflicting names or addresses and wrong dependencies; return the indexes of servers to exclude."""
        entries = self.assembly.entries
        excluded: set[int] = set()
        for second, first, finding in conflicts(self.addresses):
            other = self.origins.place(entries[first], finding.path)
            self._report(entries[second], finding._replace(message=f"{finding.message}, {other}"))
            excluded.add(second)
        valid = [(index, server) for index, server in enumerate(self.servers) if server]
        if any(server.depends_on for _, server in valid):
            # If two servers have the same name, dependencies refer to the first.
            indexes = {server.name: index for index, server in reversed(valid)}
            servers = [server for index, server in valid if indexes[server.name] == index]
            broken = [name for name, _ in self.addresses if name not in indexes]
            for dependent, finding in dependency_findings(servers, broken):
                self._report(entries[indexes[dependent.name]], finding)
                excluded.add(indexes[dependent.name])
        names = dict.fromkeys(name for name, _ in self.addresses)
        for entry, server in zip(entries, self.servers, strict=True):
            if server is None:
                written = entry.table.get("depends_on", self.defaults.raw.get("depends_on"))
                for finding in unknown_dependencies(written, names):
                    self._report(entry, finding)
        return excluded

    def _check_address_references(self) -> None:
        entries = self.assembly.entries
        named = {
            entry.name: ServerReferenceValues(address, entry.table.get("expose"))
            for entry, (_, address) in zip(entries, self.addresses, strict=True)
        }
        for entry in entries:
            for finding in reference_findings(self.defaults.merged_with(entry.table), named):
                self._report(entry, finding)

    def _report(self, entry: ServerTable | None, finding: Finding) -> None:
        if entry is not None:
            place = self.origins.place(entry, finding.path)
            if place not in self.unresolved:
                self.problems.append(located(finding, place, entry))
            return
        path = finding.path if finding.path[0] in ("pool", *table_names()) else ("defaults", *finding.path)
        self.problems.append(located(finding, self.origins.place_in_table(path)))
