"""What a supervisor leaves is the record of every server, whenever it dies and whatever it has changed."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl.config import ServerConfig, Surroundings, added_server, load, marks_of
from poolctl.config.files.marks import Mark
from poolctl.config.model.server_tables import Log
from poolctl.core.server_entry import Entry
from poolctl.core.server_state import Desired, Overrides
from poolctl.feature import FEATURES
from poolctl.keeper import fd_store, pool_files
from poolctl.keeper.keeper import Keeper
from poolctl.keeper.store import Store
from poolctl.platform import memory_file
from poolctl.runners.process_link import Link
from poolctl.supervisor.statistics import Totals
from poolctl.supervisor.takeover.state_store import (
    MAX_DELAY_SECONDS,
    SOON_SECONDS,
    NotUnderstood,
    SaveTimer,
    StateStore,
    StoredConfiguration,
    decoded,
    encoded,
)
from poolctl.worker import tally
from tests.virtual_loop import VirtualLoop

from .desk import Desk

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
EXAMPLES = Path(__file__).parents[3] / "examples"
RECORDINGS = Path(__file__).parents[2] / "recordings"
RECORDED_FILE = "/srv/shop/pool.toml"
RECORDED_FEATURES = {"dashboard", "gateway", "notify", "operator", "proxmox", "registration", "scaling"}
DEFAULTS = """[defaults]
workers = "${WORKERS}"
preload = "${PRELOAD}"
env_file = ["a.env"]
tags = ["${TAG}", "b"]
http = { trusted_proxies = ["10.0.0.0/8"] }
"""


class StoreLink(Link):
    """The link to a keeper whose store is in this process, and that may be another one's by the next supervisor."""

    def __init__(self, store: Store) -> None:
        self._keeper = Keeper("/nowhere", [], (0, 0))
        self._keeper.store = store

    def send(self, message: dict[str, Any], fds: Any = ()) -> None:
        owned = [os.dup(fd if isinstance(fd, int) else fd.fileno()) for fd in fds]
        self._keeper.answer(message, owned)

    async def call(self, message: dict[str, Any], fds: Any = (), **more: Any) -> Any:
        reply, received = self._keeper.answer(message, [*fds])
        return reply, [os.dup(fd) for fd in received]

    def end(self) -> None:
        self._keeper.reaper.close()


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
        await store.restore_entries(entries)
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
            store.note_changed()
            store.save(entries)
            assert set(pool_files.read_left_state(self.directory)["servers"]) >= set(changed)
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


async def test_successor_that_knows_the_files_knows_what_is_replaced_for_them(tmp_path: Path) -> None:
    class Killed(StoreLink):
        """A supervisor that is killed after its first message."""

        def send(self, message: dict[str, Any], fds: Any = ()) -> None:
            super().send(message, fds)
            raise KeyboardInterrupt

    kept = Store()
    link = StoreLink(kept)
    before = ServerConfig(name="a", bind=":1", app="a:b")
    entry = Entry(before)
    StateStore(link, str(tmp_path)).save_first_configuration(StoredConfiguration("pool", [before]))
    entry.config, entry.desired.generation = ServerConfig(name="a", bind=":1", app="a:c"), 7
    last = Killed(kept)
    killed = StateStore(last, str(tmp_path))
    killed.note_changed()
    with pytest.raises(KeyboardInterrupt):
        killed.save({"a": entry}, StoredConfiguration("pool", [entry.config]))
    successor, restored = StateStore(link, str(tmp_path)), Entry(before)
    configuration = await successor.configuration()
    await successor.restore_entries({"a": restored})
    assert restored.desired.generation == 7
    assert configuration is not None
    assert configuration.servers[0].app == "a:b"
    last.end()
    link.end()


async def test_record_of_the_previous_supervisor_is_restored_into_new_entries() -> None:
    link = StoreLink(Store())
    left = {
        "a": {"desired": "run", "overrides": {"workers": 2}},
        "b": {"desired": "stopped"},
        "gone": {"desired": "run"},
    }
    fd = memory_file("wanted", json.dumps(left).encode())
    link.send({"op": "put", "name": fd_store.WANTED}, [fd])
    os.close(fd)
    entries = {name: Entry(ServerConfig(name=name, bind=":1", app="a:b")) for name in NAMES}
    assert await StateStore(link, "/nowhere").restore_entries(entries) == {
        "a",
        "b",
        "gone",
    }
    link.end()
    assert (entries["a"].desired.state, entries["a"].size) == (Desired.RUN, 2)
    assert [entries[name].desired.state for name in "bcd"] == [
        Desired.STOPPED,
        Desired.IDLE,
        Desired.IDLE,
    ]


ONE = [*[0] * (tally.COUNTED - 1), 1]  # the counts of a worker that has answered one request, slowly


class Saved:
    """The calls of a timer, each of which takes so many seconds."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.cost = 0.0
        self.calls = 0
        self.timer = SaveTimer(self._save)

    def _save(self) -> None:
        self.calls += 1
        self.loop.pause(self.cost)

    def save(self, cost: float) -> float:
        """Save at once; returns the pause before the next save."""
        self.cost = cost
        self.loop.call_soon(self.timer.save_now)
        self.loop.pass_time()
        return self.timer.pause_seconds

    def change(self, seconds: float) -> int:
        """Note a change; returns how often has been saved when this time is over."""
        self.loop.call_soon(self.timer.note_change)
        self.loop.pass_time(seconds)
        return self.calls


@pytest.fixture
def saved() -> Iterator[Saved]:
    saved = Saved()
    yield saved
    saved.loop.close()


def test_a_save_takes_no_more_than_a_tenth_of_the_time(saved: Saved) -> None:
    assert [*map(saved.save, (0.001, 0.02, 0.2))] == pytest.approx([SOON_SECONDS, 0.18, 1.8])
    assert saved.save(3600.0) == MAX_DELAY_SECONDS == 2.0, "the machine slept"
    assert [saved.save(0.0) for _ in range(10)][-1] == SOON_SECONDS


def test_changes_are_saved_once_a_twentieth_of_a_second_after_the_first(saved: Saved) -> None:
    assert [saved.change(0.04), saved.change(0.02)] == [0, 1]
    saved.loop.pass_time(10)
    assert saved.calls == 1
    assert saved.change(0.0) == 1
    saved.save(0.0)
    assert saved.calls == 2, "an answer does not wait for it"
    saved.loop.pass_time(10)
    assert saved.calls == 2


class Kept(StateStore):
    def __init__(self, directory: Path, kept: dict[str, Any]) -> None:
        super().__init__(StoreLink(Store()), str(directory))
        self.kept = kept

    def store_for_successor(self, name: str, content: bytes) -> None:
        assert name == fd_store.TOTALS
        self.kept.clear()
        self.kept.update(json.loads(content))

    async def read(self, name: str) -> bytes | None:
        return json.dumps(self.kept).encode()


async def _resumed(desk: Desk, directory: Path, kept: dict[str, Any]) -> Totals:
    totals = Totals(desk.core, desk.runner.tallies, desk.events, Kept(directory, kept))
    await totals.resume()
    return totals


@pytest.mark.parametrize("seed", range(10))
async def test_each_successor_continues_the_totals_of_every_server(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    names = [f"s{number}" for number in range(4)]
    desk = Desk(*(ServerConfig(name=name, bind=f":{9000 + n}", app="a:b") for n, name in enumerate(names)))
    kept: dict[str, Any] = {}
    expected = dict.fromkeys(names, 0)
    for life in range(5):
        totals = await _resumed(desk, tmp_path, kept)
        for step in range(6):
            name = chance.choice(names)
            expected[name] += 1
            totals.add_up(name, f"{name}.{life}.{step}", ONE)
            totals.record_state_change(
                desk.core.entries[name], "sleeping", chance.choice(("running", "failed"))
            )
            totals.save()
            assert {
                name: totals.counts_of_ended_workers(desk.core.entries[name])[-1] for name in names
            } == expected


async def test_figures_of_a_removed_server_are_saved_no_more(tmp_path: Path) -> None:
    desk = Desk(*(ServerConfig(name=name, bind=f":{n}", app="a:b") for n, name in enumerate("ab", 9000)))
    kept: dict[str, Any] = {}
    totals = await _resumed(desk, tmp_path, kept)
    for name in "ab":
        totals.add_up(name, f"{name}.1", ONE)
    totals.save()
    assert kept["counts"].keys() == {"a", "b"}
    desk.core.forget(desk.core.entries["b"])
    # Its last worker is reported after that.
    totals.add_up("b", "b.2", ONE)
    totals.save()
    assert kept["counts"].keys() == {"a"}


def document(**keys: Any) -> dict[str, Any]:
    """The JSON of a configuration with one server."""
    server = ServerConfig(name="a", bind=":1", app="a:b", log={"keep": 3}, **keys)
    stored: dict[str, Any] = json.loads(encoded(StoredConfiguration("shop", [server])))
    return stored


def test_values_of_this_version_are_the_same_afterwards(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        '[[server]]\nname = "a"\nbind = ":8080"\napp = "a:b"\nworkers = 2\ntls = true\nhealth = "/ready"\n'
        "[server.http]\nkeep_alive = 3\n"
        '[[server]]\nname = "job"\njob = true\ncommand = ["true"]\nenv = { A = "${LEVEL}" }\n'
        '[defaults.tls]\ncert = "c.pem"\n[metrics]\n[events]\nkeep = 2\n'
    )
    files = [tmp_path / "pool.toml", *sorted(EXAMPLES.glob("*/pool.toml"))]
    assert len(files) > 5
    for file in map(str, files):
        configuration = load([file], {"LEVEL": "1"})
        stored = StoredConfiguration(
            "shop",
            list(configuration),
            {"a.1.0": configuration[0]},
            ["gone"],
            Surroundings(configuration.defaults, "/srv", "a:b"),
            (1, 9),
            {"A": "b"},
            {"a": {"B": "c"}},
            configuration.tables,
            marks_of([file]),
        )
        after = decoded(encoded(stored))
        assert encoded(after) == encoded(stored), file
        assert (after.tables, after.marks, after.port_range) == (stored.tables, stored.marks, (1, 9)), file
        for before, server in zip(configuration, after.servers, strict=True):
            assert vars(server) == vars(before), file
            assert server.as_given() == before.as_given(), file


def test_server_added_after_a_takeover_has_the_defaults_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.env").touch()
    (tmp_path / "pool.toml").write_text(DEFAULTS)
    env = {"WORKERS": "3", "PRELOAD": "true", "TAG": "new"}
    surroundings = Surroundings(load([str(tmp_path / "pool.toml")], env).defaults, str(tmp_path))
    after = decoded(encoded(StoredConfiguration("shop", [], surroundings=surroundings))).surroundings
    table = {"name": "late", "bind": ":2", "app": "a:b"}
    added = added_server(after, table, str(tmp_path), {})
    assert vars(added) == vars(added_server(surroundings, table, str(tmp_path), {}))
    assert (added.workers, added.preload, added.tags) == (3, True, ("new", "b"))
    assert added.env_file == (str(tmp_path / "a.env"),)


def test_keys_that_were_not_given_have_the_defaults_of_the_version_that_reads() -> None:
    stored = document()
    assert stored["servers"][0]["log"] == {"keep": 3}
    assert "http" not in stored["servers"][0]
    (server,) = decoded(json.dumps(stored).encode()).servers
    assert server.log == Log(keep=3)
    del stored["servers"][0]["log"]
    (server,) = decoded(json.dumps(stored).encode()).servers
    assert server.log == Log()
    assert "log" not in server.model_fields_set


def test_paths_that_are_no_text_are_the_same_afterwards() -> None:
    stored = StoredConfiguration("shop", [ServerConfig(name="a", bind="unix:/srv/\udcff", app="a:b")])
    assert decoded(encoded(stored)).servers == stored.servers


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda form: form["servers"][0].update(colour="red"), "'colour' in ServerConfig: unknown key 'colour'"),
        (lambda form: form["servers"][0]["log"].update(colour=1), "'log.colour' in ServerConfig: unknown key 'colour'"),
        (lambda form: form["servers"][0].pop("name"), "'name' in ServerConfig: 'name' is missing"),
        (lambda form: form["servers"][0].update(log={"keep": "x"}), "'log.keep' in ServerConfig: "),
        (lambda form: form["servers"][0].update(drain_timeout=-1), "'drain_timeout' in ServerConfig: "),
        (lambda form: form["tables"].update(weather={}), "[weather] is not a table of this version"),
        (lambda form: form.update(version=2), "version 2 of its form is not known"),
        (lambda form: form.pop("tables"), "it cannot be read: KeyError('tables')"),
        (lambda form: form.update(port_range=None), "it cannot be read: TypeError"),
    ],
)  # fmt: skip
def test_part_that_this_version_does_not_have_is_not_understood(change: Any, part: str) -> None:
    stored = document()
    change(stored)
    with pytest.raises(NotUnderstood) as raised:
        decoded(json.dumps(stored).encode())
    assert part in str(raised.value)


def test_anything_else_is_not_understood() -> None:
    for content in (b"", b"{", b"[]", b"\x80\x05\x95", pickle.dumps([])):
        with pytest.raises(NotUnderstood):
            decoded(content)


async def test_configuration_that_is_not_understood_is_read_from_the_files_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = StoreLink(Store())
    store = StateStore(link, str(tmp_path))
    assert (await store.configuration(), caplog.text) == (None, "")
    store.store_for_successor(fd_store.CONFIGURATION, b'{"version": 99, "defaults": {}, "files": null}')
    assert await store.configuration() is None
    said = "the configuration in force is read from the files again: version 99 of its form is not known"
    assert said in caplog.text
    link.end()


async def test_first_configuration_is_there_before_and_its_file_after_the_first_save(tmp_path: Path) -> None:
    link = StoreLink(Store())
    store = StateStore(link, str(tmp_path))
    first = StoredConfiguration("shop", [ServerConfig(name="a", bind=":1", app="a:b")], missing=["x"])
    store.save_first_configuration(first)
    assert await store.configuration() == first
    assert pool_files.read_left_state(str(tmp_path)) == {}
    store.save({})
    assert pool_files.read_left_state(str(tmp_path)) == {"missing": ["x"], "servers": {}}
    later = StoredConfiguration("store", [], missing=["y"])
    store.save({}, later)
    assert await store.configuration() == later
    assert pool_files.read_left_state(str(tmp_path)) == {"missing": ["y"], "servers": {}}
    link.end()


async def test_file_that_vanished_is_written_again_on_request_and_not_after_it_was_deleted(
    tmp_path: Path,
) -> None:
    link = StoreLink(Store())
    store = StateStore(link, str(tmp_path))
    entry = Entry(ServerConfig(name="a", bind=":1", app="a:b"))
    entry.set_desired(Desired.RUN)
    store.note_changed()
    store.save({"a": entry})
    saved = {"missing": [], "servers": {"a": {"desired": "run"}}}
    assert pool_files.read_left_state(str(tmp_path)) == saved
    pool_files.remove_left_states(str(tmp_path))
    store.save({"a": entry})
    assert pool_files.read_left_state(str(tmp_path)) == {}
    store.rewrite_file()
    store.save({"a": entry})
    assert pool_files.read_left_state(str(tmp_path)) == saved
    store.delete_files_for_good()
    entry.set_desired(Desired.STOPPED)
    store.note_changed()
    store.save({"a": entry})
    assert pool_files.read_left_state(str(tmp_path)) == {}
    assert json.loads(await store.read(fd_store.WANTED) or b"") == {"a": {"desired": "stopped"}}
    link.end()


def test_file_that_cannot_be_written_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    link = StoreLink(Store())
    StateStore(link, str(tmp_path / "gone")).save({})
    assert "if keeper and supervisor are killed together, live changes are lost: " in caplog.text
    link.end()


def test_value_that_has_no_form_in_json_is_an_error() -> None:
    environments: Any = {"a": object()}
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        encoded(StoredConfiguration("shop", [], environments=environments))


@pytest.mark.skipif(not set(FEATURES) >= RECORDED_FEATURES, reason="they have tables in the recording")
def test_recorded_configuration_in_force_is_understood_as_its_file_is_now() -> None:
    text = (RECORDINGS / "configuration-1.toml").read_text()
    config = load(RECORDED_FILE, {"PRELOAD": "true"}, {RECORDED_FILE: text})
    assert config.problems == []
    recorded = decoded((RECORDINGS / "configuration-1.json").read_bytes())
    for stored in (recorded, decoded(encoded(recorded))):
        for before, after in zip(config, stored.servers, strict=True):
            assert vars(after) == vars(before)
            assert after.as_given() == before.as_given()
        assert stored.tables == config.tables
        assert (stored.name, stored.port_range) == ("shop", (9000, 9100))
        assert {name: server.to_dict() for name, server in stored.placed.items()} == {
            "api.1.0": config[0].to_dict()
        }
        assert (stored.missing, stored.environment) == (["gone"], {"HOME": "/srv"})
        assert stored.environments == {"api": {"DEBUG": "1"}}
        assert stored.surroundings.base_dir == "/srv/shop"
    assert recorded.marks == {RECORDED_FILE: Mark((1, 2, 3, 4), "ab")}
