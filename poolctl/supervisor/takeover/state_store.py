"""State that a supervisor saves in the keeper's store for its successor: configuration, desired state, totals, figures.

The desired state is written into a file as well, for a pool whose keeper is killed at the same time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from poolctl.clock import Clock
from poolctl.core.server_entry import Entry, record_of, restore
from poolctl.json_form import Table
from poolctl.keeper import fd_store, pool_files
from poolctl.platform import read_file, sealed_file
from poolctl.runners.process_link import Link

from .configuration_json import decoded, encoded
from .stored_configuration import NotUnderstood, StoredConfiguration

logger = logging.getLogger("poolctl.supervisor")

SOON_SECONDS = 0.05  # between a change and the save of it
# The longest pause between two saves, even if one took very long, because the machine was busy or asleep.
LATEST_SECONDS = 2.0
_TIMES_ITS_COST = 9.0

# The definition of a server that was added live: its table, and the base directory of its relative paths.
Source = tuple[Mapping[str, object], str]


@dataclass
class SavedState:
    """The desired state of the servers by their names, and the names of servers that were removed live."""

    servers: dict[str, Table]
    missing: list[str]

    @property
    def sources(self) -> dict[str, Source]:
        """The definitions of the servers that were added live."""
        found = {name: values.get("source") for name, values in self.servers.items()}
        return {name: source for name, source in found.items() if source}


class EncodedTable:
    """A JSON object whose members are encoded when they change, not each time that all of it is written."""

    def __init__(self) -> None:
        self._members: dict[str, bytes] = {}

    def put(self, name: str, value: object) -> None:
        """Set a member."""
        self._members[name] = b"%s:%s" % (_json(name), _json(value))

    def remove(self, name: str) -> None:
        """Remove a member, if it exists."""
        self._members.pop(name, None)

    def content(self, names: Iterable[str] | None = None) -> bytes:
        """The object as JSON; with `names` in their order, as far as it has them."""
        members = self._members.values() if names is None else filter(None, map(self._members.get, names))
        return b"{%s}" % b",".join(members)


class StateStore:
    """Entries of the keeper's store: files in memory that only this pool's processes can reach.

    The file in `directory` outlives the keeper too; it is no longer written after `delete_file`.
    """

    def __init__(self, keeper: Link, directory: str) -> None:
        self._keeper = keeper
        self.directory = directory
        self._stored = b""
        self._written = b""
        self._missing: list[str] = []
        self._stale = True  # the file is out of date, whether or not a server has changed
        self._deleted = False
        self._records = EncodedTable()
        self._changed: dict[str, Entry] = {}

    async def configuration(self) -> StoredConfiguration | None:
        """The configuration in force under the previous supervisor; None if there was no previous supervisor."""
        content = await self.read(fd_store.CONFIGURATION)
        if content is None:
            return None
        try:
            return decoded(content)
        except NotUnderstood as problem:
            # An upgrade would have been refused if the files did not say the same. Another build's supervisor may have
            # been killed: the files are the next best source, and the servers continue in any case.
            logger.warning("the configuration in force is read from the files again: %s", problem)
            return None

    def save_first_configuration(self, configuration: StoredConfiguration) -> None:
        """Store the configuration with which the pool begins, of which nothing has been started."""
        self._missing, self._stale = configuration.missing, True
        self.write(fd_store.CONFIGURATION, encoded(configuration))

    async def restore(self, entries: dict[str, Entry]) -> set[str]:
        """Restore the entries' desired state; returns the names of entries with a recorded state.

        All of it stays part of the record, so a change of one entry does not lose the state of the others.
        """
        stored = await self.read(fd_store.WANTED)
        records: Table = self.saved_state().servers if stored is None else json.loads(stored)
        for name in records.keys() & entries.keys():
            restore(entries[name], records[name])
            self._records.put(name, record_of(entries[name]))
        return set(records)

    def note_changed(self, *entries: Entry) -> None:
        """Have the next `save` look at these entries."""
        self._changed.update((entry.name, entry) for entry in entries)

    def save(self, entries: Iterable[str], configuration: StoredConfiguration | None = None) -> None:
        """Store the desired state of the entries of these names, and after it the configuration if it has changed.

        A supervisor that is killed between leaves one who finds that the files have changed; the other way round, one
        who knows them, but not which servers were being replaced for them.
        """
        if configuration is not None:
            self._missing, self._stale = configuration.missing, True
        if self._changed or self._stale:
            self._save_desired(entries)
        if configuration is not None:
            self.write(fd_store.CONFIGURATION, encoded(configuration))

    def _save_desired(self, entries: Iterable[str]) -> None:
        """Only changed entries are serialised."""
        for name, entry in self._changed.items():
            self._records.put(name, record_of(entry))
        self._changed.clear()
        self._stale = False
        content = self._records.content(entries)
        if content != self._stored:
            self._stored = content
            self.write(fd_store.WANTED, content)
        state = b'{"missing": %s, "servers": %s}' % (_json(self._missing), content)
        if state != self._written and not self._deleted:
            self._written = state
            try:
                pool_files.write_desired(self.directory, state)
            except OSError as error:
                logger.warning(
                    "if keeper and supervisor are killed together, live changes are lost: %s", error
                )

    def rewrite_file(self) -> None:
        """Have the next `save` write the file even if nothing has changed: it may be gone."""
        self._written, self._stale = b"", True

    def saved_state(self) -> SavedState:
        """The content of the file: the state of a pool whose keeper was killed with its supervisor."""
        found = pool_files.read_desired(self.directory)
        return SavedState(dict(found.get("servers") or {}), list(found.get("missing") or ()))

    def delete_file(self) -> None:
        """Delete the file for good: the pool ends on purpose, and no later pool continues it."""
        self._deleted = True
        pool_files.remove_desired(self.directory)

    async def totals(self) -> Table:
        """The totals that the previous supervisor had counted."""
        found: Table = json.loads(await self.read(fd_store.TOTALS) or b"{}")
        return found

    def save_totals(self, totals: bytes) -> None:
        """Store the counts, a JSON object."""
        self.write(fd_store.TOTALS, totals)

    def write(self, name: str, content: bytes) -> None:
        """Store this content under a name for the next supervisor."""
        fd = sealed_file(f"poolctl-{name}", content)
        try:
            self._keeper.send({"op": "put", "name": name}, [fd])
        finally:
            os.close(fd)

    async def read(self, name: str) -> bytes | None:
        """The content of this name; None without any."""
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
    """Calls `save` soon after a change, and for at most a tenth of the loop's time: a long call delays the next call.

    Until then a successor knows less than this process. State that an answer reports is saved before the answer, by
    `save_now`.
    """

    def __init__(self, save: Callable[[], None], clock: Clock | None = None) -> None:
        self._save = save
        self._clock = clock or Clock()
        self._timer: asyncio.TimerHandle | None = None
        self.pause_seconds = SOON_SECONDS

    def note_change(self) -> None:
        """Have the change saved soon."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.pause_seconds, self.save_now)

    def save_now(self) -> None:
        """Save before this returns."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        begun = self._clock.monotonic()
        self._save()
        cost = self._clock.monotonic() - begun
        # A call that saved nothing does not predict the cost of the next call.
        due = max(SOON_SECONDS, _TIMES_ITS_COST * cost, self.pause_seconds / 2)
        self.pause_seconds = min(due, LATEST_SECONDS)
