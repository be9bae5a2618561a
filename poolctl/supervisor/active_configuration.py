"""The configuration that the pool runs with: read from files or taken over, and saved for the next supervisor.

Files are read, and servers validated, in a thread (configuration_reader.py).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from typing import Any, NamedTuple

from poolctl.config import (
    Finding,
    Marks,
    ServerConfig,
    Surroundings,
    Tables,
    conflicts,
    dependency_findings,
    named_addresses,
    refuse,
    secret_variable_names,
    with_resolved_references,
    wrong_references,
)
from poolctl.control.answers import ErrorEntry, failure
from poolctl.control.pool_paths import ACCESS_LOG_VARIABLE, pool_key
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.core.server_state import ListenerState
from poolctl.errors import PoolError, PoolStartError, ServerError
from poolctl.exit_codes import CONFLICT, FAILED, INVALID_CONFIGURATION
from poolctl.listeners.port_ledger import PortLedger
from poolctl.platform import read_json_object, replace_file
from poolctl.runners.helper_process import Helpers
from poolctl.runners.listener_opener import Opener
from poolctl.runners.process_link import Link
from poolctl.runners.withheld_variables import withhold_variables
from poolctl.runners.worker_spec import NO_ACCESS_LOG_VARIABLE

from .configuration_reader import ConfigurationReader, ReaderFailed, Reading
from .takeover.state_store import SavedDesiredState, StateStore, StoredConfiguration

_USUAL_NAMES = frozenset({"pool.toml", "pool.yaml", "pool.yml", "pool.json", "pyproject.toml"})

logger = logging.getLogger("poolctl.supervisor")


def default_name(file: str) -> str:
    """A pool's default name: the directory's name if the file has a usual name (pool.toml …), else the file's name."""
    directory, base = os.path.split(file)
    name = os.path.basename(directory) if base in _USUAL_NAMES else os.path.splitext(base)[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "pool"


class ActiveConfiguration:
    """The configuration that a pool runs with. The servers themselves are held by the core, as entries.

    `environments` holds, by server name, the variables that commands have set. `comes_back` tells whether the listener
    of a canonical address was kept over the restart of the pool.
    """

    def __init__(
        self,
        files: Sequence[str],
        state_directory: str,
        store: StateStore,
        environments: dict[str, Mapping[str, str]],
        comes_back: Callable[[str], bool] = lambda key: False,
    ) -> None:
        self.files = list(files)
        self.name = default_name(files[0])
        self.missing: set[str] = set()  # names of servers that were removed live but are in the files
        self.placed: dict[str, ServerConfig] = {}
        self.problems: list[ErrorEntry] = []
        self.exit_code = INVALID_CONFIGURATION  # the exit code of commands while there are `problems`
        self.environments = environments
        self.turn = asyncio.Lock()  # held during a reload: one at a time
        self.tables = Tables()
        self.marks: Marks | None = None  # the state of the files when they were read; None if unknown
        self._subscribers: list[tuple[Callable[[Tables], None], bool]] = []
        self._ledger = os.path.join(state_directory, "ports.json")
        # Servers whose command opens its socket itself, and those whose command cannot run twice at once.
        self._self_binding = ProgramsFile(os.path.join(state_directory, "programs.json"))
        self.not_overlapping = ProgramsFile(os.path.join(state_directory, "no-overlap.json"))
        self._warned = os.path.join(state_directory, "warned.json")
        self._store = store
        self._reader = ConfigurationReader()
        self._comes_back = comes_back
        self._environment: Mapping[str, str] | None = None
        self._surroundings = Surroundings()
        self._port_range = (0, 0)
        self._saved_revision = -1
        self._reading: asyncio.Future[list[ServerConfig]] | None = None  # the first reading of the files

    async def take_over(self) -> list[ServerConfig] | None:
        """Take over the previous supervisor's configuration; returns its servers, or None if none was stored."""
        stored = await self._store.configuration()
        if stored is None:
            return None
        self.name, self.placed, self.missing = stored.name, stored.placed, set(stored.missing)
        self._surroundings, self._port_range = stored.surroundings, stored.port_range
        self._environment = stored.environment
        self.tables, self.marks = stored.tables, stored.marks
        self._withhold_variables(stored.servers)
        self.environments.update(stored.environments)
        return stored.servers

    async def read_first_servers(self) -> list[ServerConfig]:
        """Read the files for the pool's start; returns their servers. If this fails, `problems` has the reasons."""
        self._reading = asyncio.ensure_future(self._read_and_activate())
        await asyncio.wait({self._reading})
        servers = []
        if self._reading.cancelled():
            message = "the pool was stopped while its files were being read"
            self.problems, self.exit_code = [failure(PoolStartError, message, "poolctl start")], FAILED
        else:
            servers = self._reading.result()
        self._store.save_first_configuration(self._snapshot(servers))
        self._saved_revision = 0
        return servers

    def cancel_first_read(self) -> None:
        """Cancel `read_first_servers`, which then returns no servers, and a problem: that the pool was stopped.

        Has no effect while the files are not being read.
        """
        if self._reading is not None:
            self._reading.cancel()

    async def _read_and_activate(self) -> list[ServerConfig]:
        saved = self._store.saved_state()
        try:
            reading = await self.read(keep=saved.added_servers)
            # Servers of a pool whose keeper and supervisor were killed together may be running.
            self.problems = reading.problems or ([] if saved.servers else reading.unreadable)
            self.activate(reading)
            if self.problems:
                return reading.servers
            return await self._with_live_changes(reading.servers, saved)
        except ReaderFailed as failed:
            self.problems, self.exit_code = list(failed.result.errors), failed.result.exit_code
            return []

    def subscribe(self, subscriber: Callable[[Tables], None], *, every_reload: bool = False) -> None:
        """Call `subscriber` with the configuration's tables, except [[server]], now and after each change.

        With `every_reload`, also call it after reloads without changes: files that the tables name may have changed.
        """
        self._subscribers.append((subscriber, every_reload))
        subscriber(self.tables)

    async def read(
        self, environment: Mapping[str, str] | None = None, *, keep: Collection[str] = ()
    ) -> Reading:
        """Read the files without activating them; return their servers, or else their problems.

        `${VAR}` refers to `environment`, by default to the pool's environment. A server named in `keep` keeps
        its `auto` port even if the files no longer contain the server. Raises ReaderFailed.
        """
        reading = await self._reader.read(
            self.files, environment or self._environment, access_log=ACCESS_LOG_VARIABLE in os.environ
        )
        name = default_name(self.files[0])
        if not reading.problems:
            try:
                servers = await asyncio.to_thread(self._with_ports, reading, keep)
            except ServerError as error:
                return Reading(name, problems=[ErrorEntry.of(error)], marks=reading.marks)
            reading = replace(reading, servers=self._self_binding.apply_to(servers))
        return replace(reading, name=reading.name or name)

    async def check_external(self, reading: Reading, names: Collection[str]) -> list[ErrorEntry]:
        """Check the files, users and programs that the servers called `names` refer to; returns the problems.

        Stores the warnings about all servers of `reading` in `reading.remarks`. Raises ReaderFailed.
        """
        if reading.configuration is None:
            return []
        problems, reading.remarks = await self._reader.check_external(reading.configuration, names)
        return problems

    async def key_origins(self, names: Sequence[str]) -> dict[str, dict[str, str] | None]:
        """Return the FILE:LINE where each key of the named servers is set, by server and key.

        Returns {} if the files have changed since the pool read them, or cannot be read.
        """
        if self.marks is None or not names:
            return {}
        try:
            return await self._reader.origins(self.files, self._environment, self.marks, names)
        except ReaderFailed as failed:
            logger.warning("%s", failed)
            return {}

    def _with_ports(self, reading: Reading, keep: Collection[str]) -> list[ServerConfig]:
        """The servers, with a port for each `auto` address. Raises ServerError if no port is free."""
        servers = reading.servers
        ledger = self._port_ledger(reading.port_range)
        automatic = {server.name for server in servers if server.address.auto}
        gone = {*keep} - {server.name for server in servers}
        vacated = [
            port for name in keep if name not in automatic and (port := ledger.stored_port(name)) is not None
        ]
        ledger.keep_only(automatic | gone)
        ports = {server.address.port for server in servers if server.address.port} | _ports(reading.tables)
        placed = []
        for server in servers:
            if server.address.auto:
                port = ledger.assign_port(server.name, server.address, avoid=ports, vacated=vacated)
                ports.add(port)
                server = server.at(server.address.with_port(port))
            placed.append(server)
        return with_resolved_references(placed)

    def keys_to_listen_on(self, servers: Iterable[ServerConfig]) -> list[str]:
        """The canonical addresses at which the pool listens while these servers, except disabled ones, run."""
        listening = (server for server in servers if server.listens and not server.binds_itself)
        keys = [server.key for server in listening if not server.disabled]
        return [*keys, *(address.key for _, address in named_addresses(self.tables) if address)]

    async def leave_ports_in_use(
        self, core: Core, entries: Iterable[Entry]
    ) -> dict[str, tuple[int | None, int | None]]:
        """Move servers at rest to a free port if another program uses their automatic port.

        Also changes the servers that refer to such a port. Returns the old and the new port, by server name.
        """
        first, last = self._port_range
        resting = [
            entry.config
            for entry in entries
            if first <= (entry.config.address.port or -1) <= last
            and entry.listener.state is ListenerState.CLOSED
            and not entry.observed.workers
        ]
        taken = {entry.config.address.port or 0 for entry in core.entries.values()}
        moved = await asyncio.to_thread(self._at_free_ports, resting, taken) if resting else {}
        if not moved:
            return {}
        ports = {
            name: (core.entries[name].config.address.port, server.address.port)
            for name, server in moved.items()
        }
        servers = [
            moved.get(name) or entry.config.before_references() for name, entry in core.entries.items()
        ]
        for server in with_resolved_references(servers):
            if server != (entry := core.entries[server.name]).config:
                core.change(entry, server, live=False)
        return ports

    def _at_free_ports(self, resting: Iterable[ServerConfig], taken: set[int]) -> dict[str, ServerConfig]:
        ledger, moved = self._port_ledger(self._port_range), {}
        for server in resting:
            address = server.address
            if self._comes_back(server.key) or ledger.stored_port(server.name) != address.port:
                continue  # the listener is the pool's own, or the port is not automatic
            avoid = (taken - {address.port}) | _ports(self.tables)
            with suppress(ServerError):  # if no port is free, the start names the program that has this one
                port = ledger.assign_port(server.name, address, avoid=avoid, at_rest=True)
                if port != address.port:
                    taken.add(port)
                    moved[server.name] = server.before_references().at(address.with_port(port))
        return moved

    def _port_ledger(self, port_range: tuple[int, int]) -> PortLedger:
        return PortLedger(self._ledger, *port_range, key=pool_key(self.files[0]))

    def activate(self, reading: Reading, environment: Mapping[str, str] | None = None) -> None:
        """Activate this configuration. `environment` is what it was read with; None keeps the current one."""
        self.name = reading.name
        self._surroundings, self._port_range = reading.surroundings, reading.port_range
        self._environment = environment or self._environment
        self.missing.clear()
        self.marks = reading.marks
        self._saved_revision = -1
        self._withhold_variables(reading.servers, reading.tables)
        changed, self.tables = reading.tables != self.tables, reading.tables
        for subscriber, every_reload in self._subscribers:
            if changed or every_reload:
                subscriber(self.tables)

    def _withhold_variables(self, servers: Iterable[ServerConfig], tables: Tables | None = None) -> None:
        """Withhold the variables that `*_env` keys name, such as tokens, from programs started from now on."""
        names = secret_variable_names(servers, tables or self.tables, self._surroundings.defaults)
        withhold_variables({*names, ACCESS_LOG_VARIABLE, NO_ACCESS_LOG_VARIABLE}, only=True)

    @property
    def runtime_directory(self) -> str:
        """The directory of the pool's control socket."""
        return self._store.directory

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that `${VAR}` refers to."""
        return os.environ if self._environment is None else self._environment

    async def _with_live_changes(
        self, servers: list[ServerConfig], saved: SavedDesiredState
    ) -> list[ServerConfig]:
        """Return `servers`, changed by the `add` and `remove` commands of a killed pool, which `saved` has recorded."""
        by_name = {server.name: server for server in servers if server.name not in saved.missing}
        self.missing = {server.name for server in servers} - by_name.keys()
        for name, (table, base_dir) in saved.added_servers.items():
            try:
                server = await self.resolve_added(table, base_dir, by_name.values())
            except (PoolError, ServerError) as error:
                logger.warning("%s, which was added live, is dropped: %s", name, error)
                continue
            if obstacles_to_adding(server, by_name.values(), self.tables):
                logger.warning("%s, which was added live, is dropped: it conflicts with the files", name)
            else:
                by_name[name] = server
        return list(by_name.values())

    async def resolve_added(
        self, table: Mapping[str, object], base_dir: str, existing: Collection[ServerConfig]
    ) -> ServerConfig:
        """Validate the `table` of the command `add`; returns the server, with a port, for a pool of `existing` servers.

        Raises PoolValidateError, ServerError when no port is free, and ReaderFailed.
        """
        server = await self._reader.server_of_table(self._surroundings, table, base_dir, self._environment)
        if server.address.auto:
            ports = {other.address.port or 0 for other in existing} | _ports(self.tables)
            ledger = self._port_ledger(self._port_range)
            port = await asyncio.to_thread(ledger.assign_port, server.name, server.address, avoid=ports)
            server = server.at(server.address.with_port(port))
        if wrong := wrong_references([server], existing):
            refuse(server.name, wrong[0], server.name, server.bind)
        (server,) = self._self_binding.apply_to(with_resolved_references([server], existing))
        withhold_variables(secret_variable_names([server], Tables()))
        return server

    def remember_findings(self, entry: Entry) -> None:
        """Remember for later starts whether the server's command binds its address itself, or must not overlap."""
        if entry.observed.socket_found == "program":
            self._self_binding.remember(entry.config)
        if entry.observed.overlap_found == "no":
            self.not_overlapping.remember(entry.config)

    async def swap_warned(self, servers: Iterable[ServerConfig]) -> set[str]:
        """Record the servers that `start` warns of; return the names recorded before, which need no second warning.

        A server is recorded if its program binds the server's address, and `socket` is not "program". A change of the
        files clears the record. If no server in `servers` has to be recorded, returns an empty set.
        """
        names = {server.name for server in servers if server.binds_itself and server.socket != "program"}
        return await asyncio.to_thread(self._swap_warned, names) if names else names

    def _swap_warned(self, names: set[str]) -> set[str]:
        digests = sorted(mark.digest for mark in (self.marks or {}).values())
        content = read_json_object(self._warned)
        before = set(content.get("names") or ()) if content.get("files") == digests else set()
        if not names <= before:
            try_write_object(self._warned, {"files": digests, "names": sorted(names | before)})
        return before

    def take_unsaved(self, core: Core) -> StoredConfiguration | None:
        """The active configuration, for a successor; None if unchanged since the last call."""
        if self._saved_revision == core.servers.revision:
            return None
        self._saved_revision = core.servers.revision
        return self.snapshot(core)

    def snapshot(self, core: Core) -> StoredConfiguration:
        """The active configuration, in the form in which it is saved for a successor."""
        entries = core.entries.values()
        placed = {
            worker.id: worker.config
            for entry in entries
            for worker in entry.observed.workers.values()
            if worker.config is not entry.config
        }
        return self._snapshot([entry.config for entry in entries], placed)

    def _snapshot(
        self, servers: list[ServerConfig], placed: Mapping[str, ServerConfig] | None = None
    ) -> StoredConfiguration:
        return StoredConfiguration(
            self.name,
            servers,
            dict(placed or {}),
            sorted(self.missing),
            self._surroundings,
            self._port_range,
            self._environment,
            dict(self.environments),
            self.tables,
            self.marks,
        )


def try_write_object(path: str, content: dict[str, Any]) -> None:
    """Write a JSON object to a file of the state directory. A failure is only logged."""
    try:
        replace_file(path, json.dumps(content).encode())
    except OSError as error:
        logger.warning("%s cannot be written: %s", path, error)


class ProgramsFile:
    """Remembers servers in a file, for later starts of the pool. A server is forgotten once its command has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._commands = read_json_object(path)

    def remember(self, server: ServerConfig) -> None:
        """Save the server with its command."""
        digest = _digest(server)
        if self._commands.get(server.name) != digest:
            self._commands[server.name] = digest
            try_write_object(self._path, self._commands)

    def has(self, server: ServerConfig) -> bool:
        """Whether `remember` has saved the server with the command that it has now."""
        return self._commands.get(server.name) == _digest(server)

    def apply_to(self, servers: Sequence[ServerConfig]) -> list[ServerConfig]:
        """The servers, with `socket = "program"` where `socket` is not set and `remember` has saved the command."""
        return [
            server.model_copy(update={"socket": "program"})
            if "socket" not in server.model_fields_set and self.has(server)
            else server
            for server in servers
        ]


def _digest(server: ServerConfig) -> str:
    return sha256(json.dumps(server.command).encode()).hexdigest()


class SupervisorContext(NamedTuple):
    """The pool's configuration, link to the keeper, directories, helpers, and opener of listeners."""

    configuration: ActiveConfiguration
    keeper: Link
    directory: str
    state_directory: str
    helpers: Helpers
    opener: Opener


def _ports(tables: Tables) -> set[int]:
    return {address.port for _, address in named_addresses(tables) if address and address.port}


def obstacles_to_adding(
    added: ServerConfig, existing: Iterable[ServerConfig], tables: Tables
) -> tuple[int, list[Finding]] | None:
    """None if the server can be added to the existing servers; else the exit code and the problems.

    Addresses in `tables`, the tables other than [[server]], count as in use.
    """
    servers = [*existing, added]
    names = [*named_addresses(tables), *((server.name, server.address) for server in servers)]
    if clashes := [finding for position, _, finding in conflicts(names) if position == len(names) - 1]:
        return CONFLICT, clashes
    problems = [finding for server, finding in dependency_findings(servers) if server is added]
    return (INVALID_CONFIGURATION, problems) if problems else None
