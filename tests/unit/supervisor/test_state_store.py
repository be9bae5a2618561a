"""What a supervisor leaves is the record of every server, whenever it dies and whatever it has changed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import ServerConfig
from poolctl.core.decision_input import Desired, Overrides
from poolctl.core.server_entry import Entry
from poolctl.keeper import fd_store, pool_files
from poolctl.keeper.fd_store import Store
from poolctl.keeper.keeper import Keeper
from poolctl.platform import sealed_file
from poolctl.runners.process_link import Link
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.takeover.stored_configuration import StoredConfiguration

NAMES = ("a", "b", "c", "d")
CHANGES: dict[str, Any] = {
    "desired.state": (Desired.IDLE, Desired.RUN, Desired.STOPPED),
    "desired.overrides": (Overrides(), Overrides(workers=3, out=True), Overrides(disabled=False)),
    "desired.generation": (1, 2, 7),
    "observed.restarts": (0, 5),
    "desired.restarting": (0, 7),
    "observed.recoveries": ({}, {"0": [1.5]}),
    "observed.files": ({}, {"app": "12ab"}),
}


class StoreLink(Link):
    """The link to a keeper whose store is in this process, and that may be another one's by the next supervisor."""

    def __init__(self, store: Store) -> None:
        self._keeper = Keeper("/nowhere", [], (0, 0))
        self._keeper.store = store

    def send(self, message: dict[str, Any], fds: Any = ()) -> None:
        self._keeper.answer(message, [os.dup(fd) for fd in fds])

    async def call(self, message: dict[str, Any], fds: Any = (), **more: Any) -> Any:
        reply, found = self._keeper.answer(message, [*fds])
        return reply, [os.dup(fd) for fd in found]

    def end(self) -> None:
        self._keeper.reaper.watcher.close()


class History:
    """Supervisors one after the other, of which only `last` knows what the one before has left."""

    def __init__(self, seed: int, directory: str) -> None:
        self.chance = random.Random(seed)
        self.directory = directory
        self.store = Store()
        self.wanted: dict[str, dict[str, Any]] = {name: {} for name in NAMES}  # what was ordered last of each

    async def begin(self) -> tuple[StateStore, dict[str, Entry], StoreLink]:
        """A supervisor that has all of it back."""
        link = StoreLink(self.store)
        store = StateStore(link, self.directory)
        entries = {name: Entry(ServerConfig(name=name, bind=":1", app="a:b")) for name in NAMES}
        await store.restore(entries)
        for name, values in self.wanted.items():
            for key, value in values.items():
                value_name, field = key.split(".")
                assert getattr(getattr(entries[name], value_name), field) == value, (name, key)
        return store, entries, link

    async def live(self) -> None:
        """Change some of it, one write each, and die; perhaps with the keeper, so that only the file is left."""
        store, entries, link = await self.begin()
        for _ in range(self.chance.randrange(4)):
            changed = self.chance.sample(NAMES, self.chance.randint(1, 2))
            for name in changed:
                key = self.chance.choice(list(CHANGES))
                value = self.chance.choice(CHANGES[key])
                value_name, field = key.split(".")
                setattr(getattr(entries[name], value_name), field, value)
                self.wanted[name][key] = value
            store.note_changed(*(entries[name] for name in changed))
            store.save(entries)
            assert set(pool_files.read_desired(self.directory)["servers"]) >= set(changed)
        link.end()
        if self.chance.random() < 0.3:
            self.store.drop(fd_store.WANTED)


@pytest.mark.parametrize("seed", range(20))
def test_a_successor_knows_what_was_ordered_last_of_every_server(seed: int) -> None:
    async def scenario(directory: str) -> None:
        history = History(seed, directory)
        for _ in range(12):
            await history.live()
        (await history.begin())[2].end()
        history.store.clear()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(scenario(directory))


def test_successor_that_knows_the_files_knows_what_is_replaced_for_them(tmp_path: Path) -> None:
    class Killed(StoreLink):
        """A supervisor that is killed after its first message."""

        def send(self, message: dict[str, Any], fds: Any = ()) -> None:
            super().send(message, fds)
            raise KeyboardInterrupt

    async def scenario() -> None:
        kept = Store()
        link = StoreLink(kept)
        before = ServerConfig(name="a", bind=":1", app="a:b")
        entry = Entry(before)
        StateStore(link, str(tmp_path)).save_first_configuration(StoredConfiguration("pool", [before]))
        entry.config, entry.desired.generation = ServerConfig(name="a", bind=":1", app="a:c"), 7
        last = Killed(kept)
        killed = StateStore(last, str(tmp_path))
        killed.note_changed(entry)
        with pytest.raises(KeyboardInterrupt):
            killed.save({"a": entry}, StoredConfiguration("pool", [entry.config]))
        successor, found = StateStore(link, str(tmp_path)), Entry(before)
        configuration = await successor.configuration()
        await successor.restore({"a": found})
        assert found.desired.generation == 7
        assert configuration is not None
        assert configuration.servers[0].app == "a:b"
        last.end()
        link.end()

    asyncio.run(scenario())


def test_record_of_the_previous_supervisor_is_restored_into_new_entries() -> None:
    async def scenario() -> None:
        link = StoreLink(Store())
        left = {
            "a": {"desired": "run", "overrides": {"workers": 2}},
            "b": {"desired": "stopped"},
            "gone": {"desired": "run"},
        }
        fd = sealed_file("wanted", json.dumps(left).encode())
        link.send({"op": "put", "name": fd_store.WANTED}, [fd])
        os.close(fd)
        entries = {name: Entry(ServerConfig(name=name, bind=":1", app="a:b")) for name in NAMES}
        assert await StateStore(link, "/nowhere").restore(entries) == {"a", "b", "gone"}
        link.end()
        assert (entries["a"].desired.state, entries["a"].size) == (Desired.RUN, 2)
        assert [entries[name].desired.state for name in "bcd"] == [
            Desired.STOPPED,
            Desired.IDLE,
            Desired.IDLE,
        ]

    asyncio.run(scenario())
