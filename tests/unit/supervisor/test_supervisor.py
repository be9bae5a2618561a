"""The supervisor's process: its files, what it adopts, what it answers, and what no start needs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig, __version__
from poolctl.config.model.server_tables import Health, Probe
from poolctl.control.client import Client, read_exit
from poolctl.control.pool_lock import PoolLocks
from poolctl.control.protocol import PROTOCOL
from poolctl.core.core import Core
from poolctl.core.server_state import Desired, ListenerState
from poolctl.exit_codes import INVALID_CONFIGURATION
from poolctl.keeper import wire
from poolctl.keeper.store import Store
from poolctl.runners.local.takeover import AdoptionResult
from poolctl.runners.process_link import KeeperLink
from poolctl.runners.runner_protocol import Exit, Placement
from poolctl.supervisor import feature_parts, supervisor
from poolctl.supervisor.supervisor import (
    HeldLock,
    RuntimeFiles,
    restore_and_adopt_workers,
)
from poolctl.supervisor.takeover.state_store import StateStore
from tests.deadline import wait_until
from tests.manual_clock import ManualClock
from tests.real_pool import RealPool
from tests.unit.core.ordered_core import RecordedEvents, turns, web
from tests.unit.runners.scripted_runner import SlowRunner

from .test_state_store import StoreLink


class Survivors(SlowRunner):
    """A runner whose workers may have outlived an earlier supervisor."""

    def __init__(self, *left: Any, **more: Any) -> None:
        super().__init__()
        self.left = AdoptionResult(left, **more)

    async def adopt_workers_and_end_others(
        self, servers: Mapping[str, ServerConfig], placed: Mapping[str, ServerConfig] | None = None
    ) -> AdoptionResult:
        for worker in self.left.workers:
            self.running[worker.placement.id] = asyncio.get_running_loop().create_future()
        return self.left

    @property
    def pids(self) -> set[int | None]:
        return {worker.placement.pid for worker in self.left.workers}


def survivor(
    server: ServerConfig, *, ready_at: float | None = 1.0, leaving: bool = False, **more: Any
) -> Any:
    left = SimpleNamespace(done=lambda: leaving)
    fields: dict[str, Any] = {"left": left, "idle": False, "resting": "", "expired": False, **more}
    placement = Placement.of(server.name, 1, 0, pid=4711)
    return SimpleNamespace(placement=placement, config=server, ready_at=ready_at, **fields)


class Succession:
    """A supervisor of these servers that adopts what the runner has, without its process."""

    def __init__(self, directory: Path, runner: Survivors, *servers: ServerConfig) -> None:
        self.runner: Any = runner
        self.core = Core(servers, runner, ManualClock(), RecordedEvents())
        self.link = StoreLink(Store())
        self.store = StateStore(self.link, str(directory))
        self.known: list[set[int | None]] = []  # the pids that were no other processes, at each adoption

    async def adopt(self) -> int:
        async def end_others(own_pids: set[int | None]) -> None:
            assert self.core.runner.log == []
            self.known.append(own_pids)

        return await restore_and_adopt_workers(self.core, self.runner, self.store, {}, end_others)

    def state(self, name: str = "web") -> str:
        return self.core.entries[name].state

    async def end(self) -> None:
        await self.core.runner.aclose()
        await turns()
        self.link.end()


async def test_worker_that_runs_without_a_record_is_adopted_and_wanted(tmp_path: Path) -> None:
    server = web()
    after = Succession(tmp_path, Survivors(survivor(server)), server, web("other"))
    assert await after.adopt() == 1
    await turns()
    entry = after.core.entries["web"]
    assert (after.state(), entry.ready, entry.wanted, [*entry.observed.workers]) == (
        "running", True, True, ["web.1.0"],
    )  # fmt: skip
    assert (after.state("other"), after.core.entries["other"].wanted) == ("stopped", False)
    assert after.core.runner.log == ["open web"]
    assert after.known == [{4711}]
    await after.end()


async def test_worker_in_the_state_that_it_reports_is_adopted_in_it(tmp_path: Path) -> None:
    gated = {"health": Health(readiness=Probe(http="/"))}
    cases: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
        ({}, {}, "ready", "unknown"),
        ({}, {"ready_at": None}, "starting", "unknown"),
        ({}, {"resting": "new"}, "ready", "unknown"),
        (gated, {"resting": "new"}, "starting", "unknown"),
        (gated, {"resting": "told"}, "ready", "ko"),
        (gated, {}, "ready", "unknown"),
        ({}, {"leaving": True}, "draining", "unknown"),
        ({}, {"leaving": True, "ready_at": None}, "draining", "unknown"),
    ]
    for keys, reported, phase, health in cases:
        server = web(**keys)
        after = Succession(tmp_path, Survivors(survivor(server, **reported)), server)
        await after.adopt()
        (worker,) = after.core.entries["web"].observed.workers.values()
        assert (worker.phase.value, worker.health.value) == (phase, health), (keys, reported)
        assert worker.resting is ("resting" in reported or phase == "starting")
        assert after.core.entries["web"].wanted is not reported.get("leaving", False)
        await after.end()


async def test_stopped_server_of_the_record_stays_stopped_though_its_worker_still_runs(
    tmp_path: Path,
) -> None:
    server = web()
    before = Succession(tmp_path, Survivors(), server)
    before.core.entries["web"].set_desired(Desired.STOPPED)
    before.store.note_changed()
    before.store.save(before.core.entries)
    after = Succession(tmp_path, Survivors(survivor(server)), server)
    after.store = StateStore(before.link, str(tmp_path))
    await after.adopt()
    await turns(60)
    assert (after.state(), after.core.entries["web"].wanted) == ("stopped", False)
    await after.end()
    await before.end()


@pytest.mark.parametrize(
    ("last", "status"),
    [(None, 1), (Exit(0), 1), (Exit(3), 3), (Exit(signal=9), 137), (Exit(signal=15), 143), (Exit(), 1)],
)
def test_status_of_a_failed_pool_is_the_one_that_a_shell_reports_and_never_0(
    last: Exit | None, status: int
) -> None:
    assert supervisor.failed_status(last) == status


class Place:
    """The runtime directory of a pool that has these files, next to those of others."""

    def __init__(self, root: Path, key: str = "0123abcd") -> None:
        self.root, self.key = root, key
        self.directory = root / key
        self.directory.mkdir(mode=0o700)
        self.files = RuntimeFiles(str(self.directory), ["/srv/pool.toml", "/srv/more.toml"])
        self.files.keeper_pid = 4711

    def listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.directory / "control.sock"))
        return listener

    def names(self) -> dict[str, str]:
        return {path.name: os.readlink(path) for path in self.root.iterdir() if path.is_symlink()}

    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = json.loads((self.directory / "info.json").read_text())
        return info


@pytest.fixture
def place(short_path: Path) -> Place:
    return Place(short_path)


def test_published_pool_is_found_by_its_name_with_its_files_and_processes(place: Place) -> None:
    place.files.try_publish("shop")
    info = place.info()
    assert time.time() - 60 < info.pop("started") <= time.time()
    assert info == {
        "name": "shop", "files": ["/srv/pool.toml", "/srv/more.toml"], "keeper_pid": 4711,
        "supervisor_pid": os.getpid(), "version": __version__,
    }  # fmt: skip
    assert place.names() == {"@shop": place.key}


def test_renamed_pool_is_no_longer_found_by_its_previous_name(place: Place) -> None:
    place.files.republish_as("early")
    assert not (place.directory / "info.json").exists()
    place.files.try_publish("shop")
    written = (place.directory / "info.json").stat().st_ino
    place.files.republish_as("shop")
    assert (place.directory / "info.json").stat().st_ino == written
    place.files.republish_as("store")
    assert (place.names(), place.info()["name"]) == ({"@store": place.key}, "store")


def test_name_of_a_running_pool_stays_its_own_and_that_of_a_dead_one_is_taken(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    other = Place(place.root, "feedbeef")
    other.files.try_publish("shop")
    with other.listen():
        place.files.try_publish("shop")
    assert place.names() == {"@shop": other.key}
    assert "the name 'shop' is not available" in caplog.text
    place.files.withdraw()
    assert place.names() == {"@shop": other.key}
    caplog.clear()
    (other.directory / "control.sock").unlink()
    third = Place(place.root, "00000001")
    third.files.try_publish("shop")
    third.files.try_publish("shop")
    assert (place.names(), caplog.text) == ({"@shop": third.key}, "")


def test_withdrawn_files_are_gone_and_those_of_a_later_supervisor_stay(place: Place) -> None:
    with place.listen():
        place.files.try_publish("shop")
        place.files.withdraw()
    assert place.files.withdrawn
    assert (place.names(), [path.name for path in place.directory.glob("*")]) == ({}, [])
    place.files.try_publish("shop")
    assert not (place.directory / "info.json").exists()
    later = RuntimeFiles(str(place.directory), [])
    later.try_publish("shop")
    place.files.withdraw()
    assert (place.names(), place.info()["files"]) == ({"@shop": place.key}, [])


def test_files_that_cannot_be_written_are_reported_once_and_written_later(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = place.directory / "info.json"
    blocked.mkdir()
    for _ in range(2):
        place.files.try_publish("shop")
    assert caplog.text.count("cannot write the pool's runtime files") == 1
    blocked.rmdir()
    place.files.try_publish("shop")
    assert place.info()["name"] == "shop"
    blocked.unlink()
    blocked.mkdir()
    place.files.try_publish("shop")
    assert caplog.text.count("cannot write the pool's runtime files") == 2


async def test_lock_is_acquired_again_once_its_file_was_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    locks = PoolLocks([str(tmp_path / "locks")])
    ours, theirs = wire.pair()
    with theirs, closing(KeeperLink(ours)) as keeper:
        lock = HeldLock(keeper, str(tmp_path / "0123abcd"), locks)
        lock.acquire_if_lost()
        assert locks.is_held(str(tmp_path / "0123abcd"))
        shutil.rmtree(tmp_path / "locks")
        (tmp_path / "locks").touch()
        for _ in range(2):
            lock.acquire_if_lost()
        assert caplog.text.count("the pool has no lock: ") == 1
        (tmp_path / "locks").unlink()
        lock.acquire_if_lost()
        assert locks.is_held(str(tmp_path / "0123abcd"))


def control(pool: RealPool) -> Client:
    (path,) = [path for path in pool.runtime.glob("*/control.sock") if not path.parent.name.startswith("@")]
    return Client(str(path))


def events(pool: RealPool) -> list[dict[str, Any]]:
    return [json.loads(line) for line in pool.ok("events", "-n", "all", "-o", "json").stdout.splitlines()]


@pytest.mark.slow
def test_supervisor_says_who_it_is_answers_all_and_leaves_nothing_when_it_is_stopped(
    real_pool: RealPool,
) -> None:
    real_pool.write_hello("web", "other")
    file = real_pool.directory / "pool.toml"
    file.write_text('[pool]\nname = "shop"\n' + file.read_text())
    real_pool.ok("start")
    client, info = control(real_pool), real_pool.info()
    about = client.ping()
    assert (about.name, list(about.files), about.version, about.protocol) == (
        "shop", [str(file)], __version__, PROTOCOL,
    )  # fmt: skip
    assert (about.python, about.supervisor_pid, about.keeper_pid) == (
        sys.version.split()[0], info["supervisor_pid"], info["keeper_pid"],
    )  # fmt: skip
    assert (about.calm, about.not_served) == (None, None)
    names = ["other", "web"]
    for verb in ("list", "stats", "monitor"):
        assert sorted(item["name"] for item in client.call(verb)["items"]) == names, verb
    assert sorted(item["name"] for item in client.call("health")["items"]) == names
    assert 'poolctl_server_ready{server="web"} 1' in client.call("metrics")["text"]

    # A worker of a supervisor that dies is adopted by the next one, and a file that vanishes is written again.
    before = {name: item["pids"] for name, item in real_pool.items().items()}
    os.kill(info["supervisor_pid"], signal.SIGKILL)
    wait_until(lambda: real_pool.info()["supervisor_pid"] != info["supervisor_pid"])
    assert {name: item["pids"] for name, item in real_pool.items().items()} == before
    (place,) = [path.parent for path in real_pool.runtime.glob("*/info.json") if path.parent.name[0] != "@"]
    (place / "info.json").unlink()
    wait_until((place / "info.json").exists)

    file.write_text(file.read_text().replace('"shop"', '"store"'))
    real_pool.ok("reload")
    assert [path.name for path in real_pool.runtime.glob("@*")] == ["@store"]
    real_pool.ok("stop")
    assert not [*real_pool.runtime.glob("@*"), *place.glob("*.sock"), *place.glob("info.json")]
    wait_until(lambda: not real_pool.processes())
    ended = events(real_pool)[-1]
    assert (ended["kind"], ended["event"]) == ("pool", "supervisor ended")


@pytest.mark.slow
def test_terminated_keeper_ends_the_pool_in_order_and_the_events_say_why(real_pool: RealPool) -> None:
    real_pool.write_hello()
    real_pool.ok("start")
    os.kill(real_pool.info()["keeper_pid"], signal.SIGTERM)
    wait_until(lambda: not real_pool.processes())
    recorded = [event for event in events(real_pool) if event["kind"] == "pool"]
    stopping = next(line for line in recorded if line["event"] == "stopping")
    assert (stopping["cause"], stopping["severity"]) == ("asked to terminate", "info")
    assert recorded[-1]["event"] == "supervisor ended"


@pytest.mark.slow
def test_mandatory_server_that_keeps_failing_ends_the_pool_with_its_status_and_reason(
    real_pool: RealPool,
) -> None:
    real_pool.write_hello("web")
    command = '["sh", "-c", "while [ ! -e fail ]; do sleep 0.05; done; exit 42"]'
    with (real_pool.directory / "pool.toml").open("a") as file:
        file.write(f'[[server]]\nname = "main"\ncommand = {command}\nmandatory = true\n')
        file.write("restart = { backoff = { max = 60 } }\n")
    real_pool.ok("start")
    (place,) = [path.parent for path in real_pool.runtime.glob("*/info.json") if path.parent.name[0] != "@"]
    keeper = real_pool.info()["keeper_pid"]
    (real_pool.directory / "fail").touch()
    wait_until(lambda: not real_pool.processes())
    left = read_exit(str(place))
    assert (left["status"], left["keeper_pid"]) == (42, keeper)
    assert left["reason"].startswith("main keeps failing, and it is mandatory: ")
    stopping = next(event for event in events(real_pool) if event["event"] == "stopping")
    assert (stopping["cause"], stopping["severity"]) == (left["reason"], "error")


@pytest.mark.slow
def test_supervisor_of_wrong_files_answers_what_is_wrong_and_ends(real_pool: RealPool) -> None:
    real_pool.write("pool.toml", '[[server]]\nname = "web"\nbind = "127.0.0.1:99999"\napp = "hello:app"\n')
    done = real_pool.run("start", "-o", "json")
    assert done.code == INVALID_CONFIGURATION
    (error,) = done.json["errors"]
    assert "pool.toml" in error["message"] + str(error.get("place")) + str(error)
    assert "99999" in str(error)
    wait_until(lambda: not real_pool.processes())
    assert not [*real_pool.runtime.glob("*/control.sock")]


@pytest.mark.slow
def test_start_imports_none_of_them_and_afterwards_all_of_them_are_there() -> None:
    names = feature_parts.modules()
    look = f"""
import sys
import poolctl.supervisor.__main__
poolctl.supervisor.__main__.disable_pydantic_plugins()
import poolctl.supervisor.supervisor
assert "importlib.metadata" not in sys.modules, "the search for pydantic's plugins"
import poolctl.runners.local.local_runner
from poolctl.address import parse
from poolctl.listeners.open_listener import resolve_bind_targets
assert [each.host for each in resolve_bind_targets(parse("127.0.0.1:8080"))] == ["127.0.0.1"]
for name in ("tempfile", "encodings.idna"):
    assert name not in sys.modules, name
names = {names!r}
early = [name for name in names if name in sys.modules]
assert not early, early
for name in names:
    __import__(name)
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


async def test_listener_and_hook_of_an_earlier_supervisor_are_adopted(tmp_path: Path) -> None:
    server = web(hooks={"after_stop": ["true"]})
    placement = Placement.of("hook", 1, 0, pid=7)
    bound = server.key, "[::1]:80"
    runner = Survivors(endpoints={server.key: bound}, hooks={"web": ("after_stop", placement)})
    runner.opened.add(server.key)
    runner.running[placement.id] = asyncio.get_running_loop().create_future()
    after = Succession(tmp_path, runner, server, web("other"))
    assert await after.adopt() == 0
    entry, other = after.core.entries.values()
    assert entry.hooks.running is not None
    assert (entry.hooks.running.name, entry.hooks.running.placement) == ("after_stop", placement)
    assert (entry.listener.state, after.core.endpoints(entry.config)) == (ListenerState.OPEN, bound)
    assert (other.listener.state, other.hooks.running) == (ListenerState.CLOSED, None)
    runner.end(placement.id, Exit.from_returncode(0))
    await turns()
    assert entry.hooks.running is None
    await after.end()


@pytest.mark.parametrize("lives", [True, False])
async def test_listener_that_a_program_binds_itself_is_open_while_the_program_lives(
    tmp_path: Path, lives: bool
) -> None:
    server = web(app=None, command=["program", "{port}"])
    after = Succession(tmp_path, Survivors(*([survivor(server)] if lives else [])), server)
    await after.adopt()
    (entry,) = after.core.entries.values()
    assert entry.listener.state is (ListenerState.OPEN if lives else ListenerState.CLOSED)
    assert after.core.endpoints(server) == ()
    await after.end()
