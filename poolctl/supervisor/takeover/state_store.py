"""What a supervisor leaves to its successor in the keeper's store: the configuration in force, and what was wanted.

What was wanted is kept in a file as well, for a pool whose keeper is killed at the same time.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from poolctl import __version__
from poolctl.config import ServerConfig, Surroundings, Tables
from poolctl.core.record import record_of, restore
from poolctl.core.state import Entry
from poolctl.keeper import desired_state_file, store_keys
from poolctl.platform import read_file, sealed_file
from poolctl.runners.link import Link

logger = logging.getLogger("poolctl.supervisor")

# What a server was made of that was added live: its table, and the directory that its relative paths begin in.
Source = tuple[Mapping[str, Any], str]


@dataclass
class Kept:
    """The configuration in force, whatever became of its files: the servers, those that were added live among them."""

    name: str
    servers: list[ServerConfig]
    # What older workers were placed with, by the ids of the workers.
    placed: dict[str, ServerConfig] = field(default_factory=dict)
    # The names of servers of the files that were removed live.
    missing: list[str] = field(default_factory=list)
    surroundings: Surroundings = field(default_factory=Surroundings)
    port_range: tuple[int, int] = (0, 0)
    # What `reload --env` and `restart --env` brought, of the pool and by server.
    environment: Mapping[str, str] | None = None
    environments: dict[str, Mapping[str, str]] = field(default_factory=dict)
    # What is configured beside the servers.
    tables: Tables = field(default_factory=Tables)


@dataclass
class Left:
    """What was wanted of the servers by their names, and the names of those that were removed live."""

    servers: dict[str, dict[str, Any]]
    missing: list[str]

    @property
    def sources(self) -> dict[str, Source]:
        """What the servers were made of that were added live."""
        found = {name: values.get("source") for name, values in self.servers.items()}
        return {name: source for name, source in found.items() if source}


class StateStore:
    """Entries of the keeper's store, as files in memory that only this pool's processes can reach.

    In `directory` is what has to outlive the keeper too; it is no longer written once it has been forgotten.
    """

    def __init__(self, keeper: Link, directory: str) -> None:
        self._keeper = keeper
        self._directory = directory
        self._last = b""
        self._last_left = b""
        self._missing: list[str] = []
        self._stale = True  # the file does not hold what it should, whatever has changed
        self._forgotten = False
        self._wanted: dict[str, bytes] = {}  # each server's record as JSON
        self._noted: dict[str, Entry] = {}

    async def configuration(self) -> Kept | None:
        """What the supervisor before had in force; None if there was none."""
        content = await self._read(store_keys.CONFIGURATION)
        if content is None:
            return None
        try:
            version, kept = pickle.loads(content)
        except Exception:
            # Of another version: the files are the next best source, and the servers live on in any case.
            logger.exception("what the supervisor before left cannot be read")
            return None
        # Of another version, and perhaps of another shape: the files say the same, or it would not be here.
        return kept if version == __version__ else None

    def keep(self, configuration: Kept) -> None:
        """Leave the configuration that is in force."""
        self._missing, self._stale = configuration.missing, True
        self._write(store_keys.CONFIGURATION, pickle.dumps((__version__, configuration)))

    async def recall(self, entries: dict[str, Entry]) -> set[str]:
        """Restore the entries' desired state; returns the names of those with a recorded state.

        All of it stays part of the record, so a change of one entry does not lose the state of the others.
        """
        kept = await self._read(store_keys.WANTED)
        recalled: dict[str, Any] = self.left().servers if kept is None else json.loads(kept)
        for name in recalled.keys() & entries.keys():
            restore(entries[name], recalled[name])
            self._wanted[name] = _json(record_of(entries[name]))
        return set(recalled)

    def note(self, *entries: Entry) -> None:
        """Something about them may have changed since they were remembered."""
        self._noted.update((entry.name, entry) for entry in entries)

    def remember(self, entries: Iterable[str]) -> None:
        """Leave what is wanted of the entries of these names; only what was noted is looked at."""
        if not (self._noted or self._stale):
            return
        for name, entry in self._noted.items():
            self._wanted[name] = _json(record_of(entry))
        self._noted.clear()
        self._stale = False
        records = [b"%s: %s" % (_json(name), self._wanted[name]) for name in entries if name in self._wanted]
        content = b"{%s}" % b", ".join(records)
        if content != self._last:
            self._last = content
            self._write(store_keys.WANTED, content)
        left = b'{"missing": %s, "servers": %s}' % (_json(self._missing), content)
        if left != self._last_left and not self._forgotten:
            self._last_left = left
            self._leave(left)

    def _leave(self, left: bytes) -> None:
        try:
            desired_state_file.write(self._directory, left)
        except OSError as error:
            logger.warning("should keeper and supervisor be killed at once, live changes are lost: %s", error)

    def leave_again(self) -> None:
        """Write the file the next time even if nothing has changed: it may be gone."""
        self._last_left, self._stale = b"", True

    def left(self) -> Left:
        """What a pool has left whose keeper was killed with its supervisor."""
        found = desired_state_file.read(self._directory)
        return Left(dict(found.get("servers") or {}), list(found.get("missing") or ()))

    def forget(self) -> None:
        """The pool ends because somebody wants it to: nothing is left to go on from."""
        self._forgotten = True
        desired_state_file.remove(self._directory)

    async def totals(self) -> dict[str, Any]:
        """What the supervisor before had counted."""
        found: dict[str, Any] = json.loads(await self._read(store_keys.TOTALS) or b"{}")
        return found

    def keep_totals(self, totals: dict[str, Any]) -> None:
        """Leave what was counted."""
        self._write(store_keys.TOTALS, json.dumps(totals).encode())

    def _write(self, name: str, content: bytes) -> None:
        fd = sealed_file(f"poolctl-{name}", content)
        try:
            self._keeper.send({"op": "put", "name": name}, [fd])
        finally:
            os.close(fd)

    async def _read(self, name: str) -> bytes | None:
        _, fds = await self._keeper.call({"op": "get", "name": name})
        if not fds:
            return None
        try:
            return read_file(fds[0])
        finally:
            os.close(fds[0])


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
