"""Saves a supervisor's state in the keeper's store for its successor: configuration, desired state, statistics.

The desired state is also written to a file, in case the keeper is killed at the same time.

The configuration is JSON with a version number. A table is stored as in a configuration file, with only the keys that
the user has set: a poolctl version with other keys or defaults can read the table like a file. Values that files cannot
set, such as a server's parsed address, are stored as well.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from poolctl.address import Address
from poolctl.config import Finding, Marks, Section, ServerConfig, Surroundings, Tables
from poolctl.config.files.marks import Mark
from poolctl.config.model.pool_tables import model_of_table
from poolctl.config.model.section import validated
from poolctl.config.values.plain import Interpolated
from poolctl.config.values.problems import KeyPath, Tree, dotted
from poolctl.core.server_entry import Entry, record_of, restore
from poolctl.json_form import Table
from poolctl.keeper import fd_store, pool_files
from poolctl.platform import memory_file, read_file
from poolctl.runners.process_link import Link

logger = logging.getLogger("poolctl.supervisor")

SOON_SECONDS = 0.05  # the pause between a change and its save
# Maximum pause between two saves, even if a save took very long because the machine was busy or suspended.
MAX_DELAY_SECONDS = 2.0
_PAUSE_FACTOR = 9.0

# The definition of a server that was added live: its table, and the base directory of its relative paths.
Source = tuple[Mapping[str, object], str]
# Increased when the meaning or the unit of a key changes, but not for new keys or other defaults.
VERSION = 1

Kind = TypeVar("Kind", bound=Section)


@dataclass
class SavedDesiredState:
    """Each server's desired state, by name; `missing` names servers that are in the files but removed by a command."""

    servers: dict[str, Table]
    missing: list[str]

    @property
    def added_servers(self) -> dict[str, Source]:
        """The definitions of the servers that the command `add` has added, by server name."""
        return {name: record["source"] for name, record in self.servers.items() if record.get("source")}


class StateStore:
    """Saves state for the next supervisor in the keeper's store, as files in memory that only the pool can reach.

    Until `delete_files_for_good` is called, the desired state is also written to a file in `directory`, which outlives
    the keeper.
    """

    def __init__(self, keeper: Link, directory: str) -> None:
        self._keeper = keeper
        self.directory = directory
        self._stored = b""
        self._written = b""
        self._missing: list[str] = []
        self._stale = True  # the state may have changed since the last save
        self._deleted = False

    async def configuration(self) -> StoredConfiguration | None:
        """The previous supervisor's configuration; None if it stored none, or this version cannot read it."""
        content = await self.read(fd_store.CONFIGURATION)
        if content is None:
            return None
        try:
            return decoded(content)
        except NotUnderstood as problem:
            # `upgrade` refuses a version that cannot read this, unless the files agree. Another build may also start
            # without it, after a kill: then the files are the next best source. The servers continue in any case.
            logger.warning("the configuration in force is read from the files again: %s", problem)
            return None

    def save_first_configuration(self, configuration: StoredConfiguration) -> None:
        """Store the configuration of a new pool, before anything is started."""
        self._missing, self._stale = configuration.missing, True
        self.store_for_successor(fd_store.CONFIGURATION, encoded(configuration))

    async def restore_entries(self, entries: dict[str, Entry]) -> set[str]:
        """Restore the desired state of the entries that have a record; return the names of all records."""
        stored = await self.read(fd_store.WANTED)
        records: Table = self.saved_state().servers if stored is None else json.loads(stored)
        for name in records.keys() & entries.keys():
            restore(entries[name], records[name])
        return set(records)

    def note_changed(self) -> None:
        """Note that an entry may have changed: the next `save` stores the desired state."""
        self._stale = True

    def save(self, entries: Mapping[str, Entry], configuration: StoredConfiguration | None = None) -> None:
        """Store the desired state of `entries` if it has changed; then store `configuration` unless it is None.

        If the supervisor is killed between the two, its successor has the old configuration, and sees that the files
        have changed. In the opposite order, the successor could not know which servers were being replaced.
        """
        if configuration is not None:
            self._missing, self._stale = configuration.missing, True
        if self._stale:
            self._save_desired(entries)
        if configuration is not None:
            self.store_for_successor(fd_store.CONFIGURATION, encoded(configuration))

    def _save_desired(self, entries: Mapping[str, Entry]) -> None:
        self._stale = False
        content = _json({name: record_of(entry) for name, entry in entries.items()})
        if content != self._stored:
            self._stored = content
            self.store_for_successor(fd_store.WANTED, content)
        state = b'{"missing": %s, "servers": %s}' % (_json(self._missing), content)
        if state != self._written and not self._deleted:
            self._written = state
            try:
                pool_files.write_left_state(self.directory, state)
            except OSError as error:
                logger.warning(
                    "if keeper and supervisor are killed together, live changes are lost: %s", error
                )

    def rewrite_file(self) -> None:
        """Make the next `save` write the file even if nothing has changed, because it may have been deleted."""
        self._written, self._stale = b"", True

    def saved_state(self) -> SavedDesiredState:
        """The content of the file: the state that a pool left when keeper and supervisor were killed together.

        Empty if there is no such file.
        """
        state = pool_files.read_left_state(self.directory)
        return SavedDesiredState(dict(state.get("servers") or {}), list(state.get("missing") or ()))

    def delete_files_for_good(self) -> None:
        """Delete the file for good, because the pool is shut down on purpose and no later pool continues it."""
        self._deleted = True
        pool_files.remove_left_states(self.directory)

    def store_for_successor(self, name: str, content: bytes) -> None:
        """Store this content under a name for the next supervisor."""
        fd = memory_file(f"poolctl-{name}", content)
        try:
            self._keeper.send({"op": "put", "name": name}, [fd])
        finally:
            os.close(fd)

    async def read(self, name: str) -> bytes | None:
        """The content stored under this name, or None."""
        _, fds = await self._keeper.call({"op": "get", "name": name})
        if not fds:
            return None
        try:
            return read_file(fds[0])
        finally:
            os.close(fds[0])


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


class SaveTimer:
    """Calls `save` soon after each change; the calls take at most a tenth of the loop's time.

    A successor does not know of unsaved changes. Therefore `save_now` saves a state before a client is told of it.
    """

    def __init__(self, save: Callable[[], None]) -> None:
        self._save = save
        self._timer: asyncio.TimerHandle | None = None
        self.pause_seconds = SOON_SECONDS

    def note_change(self) -> None:
        """Schedule a save, because the state has changed."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.pause_seconds, self.save_now)

    def save_now(self) -> None:
        """Call `save` at once, and cancel the save that `note_change` may have scheduled."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self._save()
        cost = loop.time() - begun
        # At least half of the last pause: a call that saved nothing does not predict the next.
        due = max(SOON_SECONDS, _PAUSE_FACTOR * cost, self.pause_seconds / 2)
        self.pause_seconds = min(due, MAX_DELAY_SECONDS)


class NotUnderstood(Exception):
    """The stored configuration has parts that this version does not support."""


@dataclass
class StoredConfiguration:
    """The configuration that a pool runs with, even if its files have changed; includes servers added by `add`."""

    name: str
    servers: list[ServerConfig]
    # By worker id: the configuration that an older worker was started with.
    placed: dict[str, ServerConfig] = field(default_factory=dict)
    # The names of servers that are in the files but were removed live.
    missing: list[str] = field(default_factory=list)
    surroundings: Surroundings = field(default_factory=Surroundings)
    port_range: tuple[int, int] = (0, 0)
    # The environments given by `reload --env` (for the pool) and `restart --env` (by server).
    environment: Mapping[str, str] | None = None
    environments: dict[str, Mapping[str, str]] = field(default_factory=dict)
    # The tables other than [[server]].
    tables: Tables = field(default_factory=Tables)
    # The files as they were read.
    marks: Marks | None = None


def encoded(configuration: StoredConfiguration) -> bytes:
    """Encode the configuration, for `decoded` in this version or a later one."""
    defaults = configuration.surroundings.defaults
    marks = configuration.marks
    document = {
        "version": VERSION,
        "name": configuration.name,
        "port_range": configuration.port_range,
        "servers": configuration.servers,
        "placed": configuration.placed,
        "missing": configuration.missing,
        "defaults": {
            "values": defaults,
            # Paths of strings that came from the environment, and may stand for numbers and booleans.
            "from_environment": list(_interpolated_key_paths(defaults)),
            "base_dir": configuration.surroundings.base_dir,
            "handlers": configuration.surroundings.handlers,
        },
        "tables": configuration.tables.by_name(),
        "environment": configuration.environment,
        "environments": configuration.environments,
        "files": None if marks is None else {path: mark._asdict() for path, mark in marks.items()},
    }
    return json.dumps(document, default=_section_as_json).encode()


def decoded(content: bytes) -> StoredConfiguration:
    """Decode the configuration, with its checks: another version may have written it. Raises NotUnderstood."""
    try:
        return _configuration(json.loads(content))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NotUnderstood(f"it cannot be read: {error!r}") from error


def _configuration(document: Table) -> StoredConfiguration:
    if document["version"] != VERSION:
        raise NotUnderstood(f"version {document['version']} of its form is not known")
    defaults, marks = document["defaults"], document["files"]
    from_environment = {tuple(path) for path in defaults["from_environment"]}
    return StoredConfiguration(
        document["name"],
        [*map(_server, document["servers"])],
        {name: _server(table) for name, table in document["placed"].items()},
        document["missing"],
        Surroundings(
            _decode_defaults(defaults["values"], from_environment), defaults["base_dir"], defaults["handlers"]
        ),
        tuple(document["port_range"]),
        document["environment"],
        document["environments"],
        Tables(**{name: _tables(name, tree) for name, tree in document["tables"].items()}),
        None
        if marks is None
        else {
            path: Mark(mark["stamp"] and tuple(mark["stamp"]), mark["digest"]) for path, mark in marks.items()
        },
    )


def _section_as_json(section: Tree) -> Table:
    """A table as a JSON object: the keys that were set, and internal values that files cannot set."""
    if not isinstance(section, Section):
        raise TypeError(f"{type(section).__name__} cannot be written as JSON")
    keys = section.model_fields_set
    table = {name: value for name, value in vars(section).items() if name in keys and value is not None}
    if isinstance(section, ServerConfig):
        address, names = section.address, ("kind", "host", "port", "path", "name", "dual")
        table |= section.values_of_program
        table["address"] = {name: getattr(address, name) for name in names}
    return table


def _server(document: Table) -> ServerConfig:
    address = dict(document["address"])
    if not document.get("expose"):  # of a server without an address
        document = {key: value for key, value in document.items() if key != "expose"}
    return _table(ServerConfig, {**document, "address": Address(address.pop("kind"), **address)})


def _tables(name: str, document: Tree) -> Tree:
    """The table [name], or the list of tables [[name]]; not for [[server]]. Raises NotUnderstood."""
    model = model_of_table(name)
    if model is None:
        raise NotUnderstood(f"[{name}] is not a table of this version")
    if isinstance(document, list):
        return tuple(_table(model, table) for table in document)
    return _table(model, document)


def _table(kind: type[Kind], document: Table) -> Kind:
    findings: list[Finding] = []
    section = validated(kind, document, findings)
    if section is None:
        problems = (f"{dotted(finding.path)!r} in {kind.__name__}: {finding.message}" for finding in findings)
        raise NotUnderstood("; ".join(problems))
    return section


def _interpolated_key_paths(tree: Tree, path: KeyPath = ()) -> Iterator[KeyPath]:
    if type(tree) is Interpolated:
        yield path
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _interpolated_key_paths(value, (*path, key))
    elif isinstance(tree, (list, tuple)):
        for index, value in enumerate(tree):
            yield from _interpolated_key_paths(value, (*path, index))


def _decode_defaults(tree: Tree, from_environment: Collection[KeyPath], path: KeyPath = ()) -> Tree:
    """Convert the table [defaults] from JSON: lists become tuples.

    Strings that came from the environment, at the paths in `from_environment`, become Interpolated.
    """
    if isinstance(tree, dict):
        return {key: _decode_defaults(value, from_environment, (*path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return tuple(
            _decode_defaults(value, from_environment, (*path, index)) for index, value in enumerate(tree)
        )
    return Interpolated(tree) if path in from_environment else tree
