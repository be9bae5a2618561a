"""The supervisor's process: its files, what it adopts, what it answers, and what no start needs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, closing, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig, __version__, bootstrap
from poolctl.config import Tables
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.config.model.server_tables import Health, Probe
from poolctl.control.answers import ErrorEntry, Result
from poolctl.control.client import Client, SupervisorEnded, messages_async, read_exit
from poolctl.control.control_server import Request
from poolctl.control.pool_lock import PoolLocks
from poolctl.control.protocol import PROTOCOL
from poolctl.core.core import Core
from poolctl.core.decide import Desired, ListenerState
from poolctl.exit_codes import INVALID_CONFIGURATION
from poolctl.feature import features
from poolctl.keeper import fd_store, pool_files, wire
from poolctl.keeper.store import Store
from poolctl.runners.local.takeover import AdoptionResult
from poolctl.runners.process_link import KeeperLink
from poolctl.runners.runner_protocol import Exit, Placement
from poolctl.supervisor import configuration_reader, feature_parts, supervisor
from poolctl.supervisor.supervisor import (
    HeldLock,
    RuntimeFiles,
    import_slowly,
    restore_and_adopt_workers,
)
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.verbs.verb import Call
from tests.deadline import wait_until
from tests.manual_clock import ManualClock
from tests.notify_socket import NotifySocket
from tests.real_pool import RealPool
from tests.unit.core.ordered_core import RecordedEvents, run, turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER, SlowRunner

from .test_state_store import StoreLink
from .whole_supervisor import KEEPER_PID, Reader, RecordingPart, WholeSupervisor, own_limits


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


def survivor(server: ServerConfig, *, ready_at: float | None = 1.0, **more: Any) -> Any:
    fields: dict[str, Any] = {"leaving": False, "idle": False, "resting": "", "expired": False, **more}
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


def test_worker_that_runs_without_a_record_is_adopted_and_wanted(tmp_path: Path) -> None:
    async def work() -> None:
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

    run(work())


def test_worker_in_the_state_that_it_reports_is_adopted_in_it(tmp_path: Path) -> None:
    async def work() -> None:
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

    run(work())


def test_stopped_server_of_the_record_stays_stopped_though_its_worker_still_runs(tmp_path: Path) -> None:
    async def work() -> None:
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

    run(work())


@pytest.mark.parametrize(
    ("last", "status"),
    [(None, 1), (Exit(0), 1), (Exit(3), 3), (Exit(signal=9), 137), (Exit(signal=15), 143), (Exit(), 1)],
)
def test_status_of_a_failed_pool_is_the_one_that_a_shell_reports_and_never_0(
    last: Exit | None, status: int
) -> None:
    assert supervisor.failed_status(last) == status


@pytest.mark.parametrize(
    ("verb", "body", "everything"),
    [
        ("stop", {}, True),
        ("stop", {"selector": None}, True),
        ("stop", {"selector": {"targets": [], "name": []}}, True),
        ("stop", {"selector": {"targets": ["web"]}}, False),
        ("stop", {"selector": ["web"]}, False),
        ("start", {}, False),
    ],
)  # fmt: skip
def test_only_a_stop_without_a_selection_stops_everything(
    verb: str, body: dict[str, Any], everything: bool
) -> None:
    assert supervisor.stops_everything(Request(verb, body, pid=1, uid=0)) is everything


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


async def appears(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Return when this is in the log."""
    async with asyncio.timeout(30):
        while text not in caplog.text:
            await asyncio.sleep(0.001)


async def with_lock(place: Place, work: Callable[[HeldLock], Coroutine[Any, Any, None]]) -> None:
    """Do the work with the lock of a supervisor whose keeper does not answer."""
    ours, theirs = wire.pair()
    keeper = KeeperLink(ours)
    with theirs, closing(keeper):
        await work(HeldLock(keeper, str(place.directory), PoolLocks([str(place.root / "locks")])))


@pytest.mark.parametrize(
    "lost", ["directory", *(pytest.param(file, marks=pytest.mark.slow) for file in ("socket", "info"))]
)
def test_runtime_files_that_vanish_are_restored(
    place: Place, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    listener = place.listen()
    place.files.try_publish("shop")

    async def work(lock: HeldLock) -> None:
        restored = place.files.restore_when_removed(lock)
        waiting = asyncio.ensure_future(anext(restored))
        await turns(50)
        assert not waiting.done()
        if lost == "directory":
            shutil.rmtree(place.directory)
        else:
            (place.directory / {"socket": "control.sock", "info": "info.json"}[lost]).unlink()
        new_listener = await asyncio.wait_for(waiting, 30)
        assert (new_listener is None) is (lost == "info")
        assert place.info()["name"] == "shop"
        assert place.directory.stat().st_mode & 0o777 == 0o700
        if new_listener is not None:
            assert new_listener.getsockname() == str(place.directory / "control.sock")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(new_listener.getsockname())
            new_listener.close()
        again = asyncio.ensure_future(anext(restored, "over"))
        await appears(caplog, "had vanished, at least in part, and was restored")
        place.files.withdraw()
        assert await asyncio.wait_for(again, 30) == "over"

    run(with_lock(place, work))
    listener.close()


def test_directory_that_cannot_be_restored_is_reported_once_for_each_cause(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    listener = place.listen()
    place.files.try_publish("shop")

    async def work(lock: HeldLock) -> None:
        restored = asyncio.ensure_future(anext(place.files.restore_when_removed(lock)))
        shutil.rmtree(place.directory)
        place.directory.write_text("a file in its place")
        await appears(caplog, "cannot be restored")
        assert not restored.done()
        place.directory.unlink()
        new_listener = await asyncio.wait_for(restored, 30)
        assert new_listener is not None
        new_listener.close()
        assert caplog.text.count("cannot be restored") == 1

    run(with_lock(place, work))
    listener.close()


@pytest.fixture
def whole(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WholeSupervisor]:
    """A supervisor in this process that has not begun; its files have one server."""
    with own_limits():
        pool = WholeSupervisor(short_path, monkeypatch, Survivors())
        pool.reader = Reader(web(), name="shop")
        yield pool
        pool.close()


def test_first_supervisor_of_a_pool_reads_its_files_and_makes_its_parts(whole: WholeSupervisor) -> None:
    whole.directory.chmod(0o755)
    whole.begin()
    assert whole.reader.asked == [(["/srv/pool.toml"], None, False)]
    (site,) = whole.sites
    assert (site.keeper_pid, site.open_files, site.environments) == (KEEPER_PID, (100, 200), {})
    assert (site.directory, site.logs_directory) == (str(whole.directory), str(whole.state / "logs"))
    assert [path.stat().st_mode & 0o777 for path in (whole.directory, whole.state / "logs")] == [0o700] * 2
    assert whole.runner.events is whole.supervisor
    assert whole.keeper.orders == [
        {"op": "get", "name": "lock"}, {"op": "get", "name": "control"},
        {"op": "get", "name": "configuration"},
        {"op": "put", "name": "configuration"}, {"op": "get", "name": "totals"},
        *({"op": "get", "name": feature.entry} for feature in features() if feature.entry),
        {"op": "get", "name": "recording"},
        {"op": "get", "name": "wanted"}, {"op": "get", "name": "web listener metrics"},
        {"op": "list", "after": ""}, {"op": "get", "name": "control"}, {"op": "get", "name": "recording"},
        {"op": "list", "after": "recording"}, {"op": "adopted"},
    ]  # fmt: skip
    assert [pid for pid, _ in whole.hangs] == [KEEPER_PID]
    assert json.loads((whole.directory / "info.json").read_text())["keeper_pid"] == KEEPER_PID
    assert os.readlink(whole.directory.parent / "@shop") == whole.directory.name
    assert whole.parts == ["take over process", "apply tables []"]
    assert whole.events() == [("supervisor started", "info", "")]
    whole.keeper.orders.clear()
    whole.keeper.send("ping")
    whole.pass_time()
    assert whole.keeper.orders == [{"op": "pong"}]
    assert whole.end() == 0
    assert whole.problems == []


def test_keeper_that_was_started_without_a_lock_gets_one(whole: WholeSupervisor) -> None:
    whole.keeper.keeper.store.drop(fd_store.LOCK)
    assert not whole.locks.is_held(str(whole.directory))
    whole.begin()
    assert whole.keeper.keeper.store.get(fd_store.LOCK) is not None
    assert whole.locks.is_held(str(whole.directory))
    assert whole.end() == 0


def test_lock_whose_file_was_removed_is_acquired_again(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.pass_time()
    shutil.rmtree(whole.locks.directories[0])
    assert not whole.locks.is_held(str(whole.directory))
    whole.path.unlink()
    whole.pass_time(1.5)
    assert whole.locks.is_held(str(whole.directory))
    assert whole.end() == 0


def test_pool_without_a_place_for_its_lock_runs_and_logs_that_once(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    whole.locks = PoolLocks(["/proc/none"])
    whole.keeper.keeper.store.drop(fd_store.LOCK)
    whole.begin()
    whole.pass_time()
    whole.path.unlink()
    whole.pass_time(1.5)
    assert caplog.text.count("the pool has no lock: ") == 1
    assert whole.path.exists()
    assert whole.end() == 0


def test_successor_takes_the_configuration_over_and_its_workers(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "poolctl.supervisor")
    server = web()
    whole.runner = Survivors(survivor(server))
    whole.took_over(server, web("other"))
    whole.begin()
    assert whole.reader.asked == []
    assert whole.keeper.did("put") == []
    assert "adopted 1 workers" in caplog.text
    whole.pass_time(0.1)
    wanted = whole.stored("wanted")
    assert (wanted["web"]["desired"], wanted["other"]) == ("run", {})
    assert {item["name"]: item["state"] for item in whole.ask("list")["items"]} == {
        "web": "running", "other": "stopped",
    }  # fmt: skip
    assert whole.end() == 0


def test_successor_uses_the_directory_of_logs_that_is_there(whole: WholeSupervisor) -> None:
    (whole.state / "logs").mkdir(parents=True)
    whole.begin()
    assert [site.logs_directory for site in whole.sites] == [str(whole.state / "logs")]
    assert whole.end() == 0


def test_state_is_kept_next_to_the_socket_where_its_own_directory_cannot_be_made(
    whole: WholeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POOLCTL_STATE_DIR", str(whole.path))
    whole.begin()
    assert [site.logs_directory for site in whole.sites] == [str(whole.directory / "state" / "logs")]
    assert whole.end() == 0


def test_pool_without_workers_to_adopt_says_nothing_of_them(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "poolctl.supervisor")
    whole.begin()
    assert "adopted" not in caplog.text


def test_supervisor_answers_a_ping_while_it_reads_the_files_and_other_requests_afterwards(
    whole: WholeSupervisor,
) -> None:
    whole.reader.may_read = asyncio.Event()
    whole.begin()
    about = whole.ask("ping")
    assert (about["reading"], about["name"], about["files"]) == (True, "srv", ["/srv/pool.toml"])
    assert not (whole.directory / "info.json").exists()
    asking = whole.loop.create_task(whole.asking("list"))
    whole.pass_time(3)
    assert not asking.done()
    whole.reader.may_read.set()
    whole.pass_time()
    assert [item["name"] for item in asking.result()[-1]["result"]["items"]] == ["web"]
    about = whole.ask("ping")
    assert {key: about[key] for key in about if key not in ("schema", "items", "errors", "warnings")} == {
        "name": "shop", "files": ["/srv/pool.toml"], "version": __version__, "protocol": PROTOCOL,
        "python": sys.version.split()[0], "supervisor_pid": os.getpid(), "keeper_pid": KEEPER_PID,
        "build": "", "exit_code": 0,
    }  # fmt: skip
    assert whole.end() == 0


def test_stop_of_everything_ends_the_reading(whole: WholeSupervisor) -> None:
    whole.reader.may_read = asyncio.Event()
    whole.begin()
    partial = whole.loop.create_task(whole.asking("stop", {"selector": {"targets": ["web"]}}))
    whole.pass_time(1)
    assert not partial.done()
    partial.cancel()
    stopping = whole.loop.create_task(whole.asking("stop"))
    whole.pass_time(0.1)
    result = stopping.result()[-1]["result"]
    assert (result["ended"], result["keeper_pid"], result["errors"]) == (True, KEEPER_PID, [])
    whole.pass_time(0.1)
    assert whole.running.result() == 0
    assert "supervisor ended" not in [event for event, *_ in whole.events()]


@pytest.mark.parametrize(("verb", "done"), [("start", True), ("list", False)])
def test_change_ordered_while_the_files_are_read_is_made_though_its_client_has_left(
    whole: WholeSupervisor, verb: str, done: bool, caplog: pytest.LogCaptureFixture
) -> None:
    whole.reader.may_read = asyncio.Event()
    whole.begin()
    asking = whole.loop.create_task(whole.asking(verb))
    whole.pass_time(1)
    asking.cancel()
    whole.pass_time(1)
    whole.reader.may_read.set()
    whole.pass_time(1)
    assert [entry.state for entry in whole.supervisor.core.entries.values()] == [
        "running" if done else "stopped"
    ]
    assert [event for event, *_ in whole.events("audit")] == (["start", "start done"] if done else [])
    assert "could not be answered" not in caplog.text
    assert whole.end() == 0


WRONG = ErrorEntry(code=3, error="ErrorValidate", message="port 99999 is too large", hint="choose another")


@pytest.mark.parametrize("verb", ["start", "stop", "list"])
def test_supervisor_of_wrong_files_answers_one_request_with_the_problems_and_ends(
    whole: WholeSupervisor, verb: str
) -> None:
    whole.reader.reading.problems.append(WRONG)
    pool_files.write_left_state(str(whole.directory), b'{"servers": {"web": {"desired": "run"}}}')
    whole.begin()
    assert whole.parts == []
    result = whole.ask(verb)
    assert (result["ended"], result["keeper_pid"]) == (True, KEEPER_PID)
    problems = [(error["message"], error["hint"]) for error in result["errors"]]
    assert (problems, result["exit_code"]) == (
        ([], 0) if verb == "stop" else ([(WRONG.message, WRONG.hint)], INVALID_CONFIGURATION)
    )
    assert not whole.running.done()
    assert not (whole.directory / "info.json").exists()
    whole.pass_time(0.02)
    whole.pass_time()
    assert whole.running.result() == 0
    assert [order["op"] for order in whole.keeper.did("last", "end")] == ["last", "end"]
    assert pool_files.read_left_state(str(whole.directory))["servers"] == {"web": {"desired": "run"}}
    assert whole.events() == []


def open_files() -> list[str]:
    """The names of the files that this process has open."""
    paths = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
    return paths


def test_parts_of_a_pool_end_in_order_when_it_is_stopped(whole: WholeSupervisor) -> None:
    closes = whole.runner.aclose

    async def close() -> None:
        whole.parts.append("runner closed")
        await closes()

    whole.runner.aclose = close
    whole.begin()
    whole.ask("start")
    whole.pass_time(1)
    whole.parts.clear()
    whole.keeper.orders.clear()
    assert [name for name in open_files() if name == str(whole.state / "events.jsonl")]
    result = whole.ask("stop")
    assert (result["ended"], result["keeper_pid"]) == (True, KEEPER_PID)
    assert whole.parts == ["finish", "extend stop"]
    assert whole.runner.log[-3:] == ["stop web.1.0 10", "close 127.0.0.1:9318", "end left groups"]
    assert [*whole.directory.parent.glob("@*")] == [*whole.directory.glob("*.sock")] == []
    assert pool_files.read_left_state(str(whole.directory)) == {}
    with pytest.raises(FileNotFoundError), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(whole.path))
    whole.pass_time(1)
    assert whole.running.result() == 0
    assert whole.parts[2:] == [
        "stop serving True", "runner closed", "supervisor ended", "close part",
    ]  # fmt: skip
    assert not asyncio.all_tasks(whole.loop)
    assert not [name for name in open_files() if name.startswith(str(whole.state))]
    assert [order["op"] for order in whole.keeper.orders if order["op"] not in ("put", "ping")] == [
        "last", "end",
    ]  # fmt: skip
    assert [event for event, *_ in whole.events()] == ["supervisor started", "supervisor ended"]


def test_supervisor_waits_for_the_keeper_to_hear_of_its_end_for_fifteen_seconds(
    whole: WholeSupervisor,
) -> None:
    whole.begin()
    whole.keeper.hang()
    whole.ask("stop")
    whole.pass_time(14.9)
    assert not whole.running.done()
    whole.pass_time(0.3)
    assert whole.running.result() == 0


def test_pool_without_servers_ends_after_a_minute(whole: WholeSupervisor) -> None:
    whole.reader = Reader()
    whole.begin()
    whole.pass_time(59.9)
    assert not whole.running.done()
    assert whole.keeper.did("last") == []
    whole.pass_time(0.2)
    assert whole.running.result() == 0
    assert whole.keeper.did("last") == [{"op": "last"}]


@pytest.mark.parametrize("use", ["server", "request", "part"])
def test_pool_that_is_used_does_not_end_after_a_minute(whole: WholeSupervisor, use: str) -> None:
    if use == "server":
        whole.runner = Survivors(survivor(web()))
        whole.took_over(web())
    else:
        whole.reader = Reader()
    whole.begin()
    whole.part.alone = use == "part"
    if use == "request":
        whole.ask("list")
    whole.pass_time(100)
    assert not whole.running.done()
    assert whole.end() == 0


def test_supervisor_does_after_its_start_what_the_start_does_not_need(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.pass_time(0.9)
    assert whole.ask("ping")["build"] == ""
    whole.pass_time(0.2)
    assert whole.ask("ping")["build"] == bootstrap.installed_build()
    whole.pass_time(100)
    assert {*configuration_reader.modules(), *feature_parts.modules()} <= sys.modules.keys()
    assert whole.end() == 0


def test_calm_supervisor_serves_commands_only_and_gives_way_after_five_minutes(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    server = web("web", mandatory=True)
    whole.runner = Survivors(survivor(server))
    whole.took_over(server, web("other"))
    whole.begin(calm=True)
    assert whole.ask("ping")["calm"] is True
    assert whole.events()[-1] == (
        "calm", "error", "the supervisor has died too often: for 5m it serves commands only",
    )  # fmt: skip
    assert "taking no action for 300 s: the supervisor has died too often" in caplog.text
    whole.pass_time(299)
    assert not whole.running.done()
    whole.parts.clear()
    assert whole.exits(2) == 0
    assert whole.late == [("exit 0", 300.0)]
    assert whole.parts == ["flush"]
    assert whole.keeper.did("last", "end") == []


def test_pool_that_is_to_terminate_stops_its_servers_once_and_says_how_long_that_may_take(
    whole: WholeSupervisor,
) -> None:
    whole.reader = Reader(web(stop_timeout=20, drain_timeout=7), web("other", stop_timeout=3))
    whole.begin()
    whole.ask("start")
    whole.keeper.orders.clear()
    whole.runner.may_end.clear()
    for _ in range(2):
        whole.keeper.send("terminate")
        whole.pass_time(0.1)
    assert whole.keeper.did("terminating", "last") == [{"op": "terminating", "seconds": 38.0}] * 2
    assert "finish" not in whole.parts
    whole.runner.may_end.set()
    whole.pass_time(1)
    assert whole.running.result() == 0
    assert [order["op"] for order in whole.keeper.did("last", "end")] == ["last", "end"]
    assert whole.events()[1:] == [("stopping", "info", ""), ("supervisor ended", "info", "")]
    assert [event.cause for event in whole.recorded("stopping")] == ["asked to terminate"] * 3


def test_pool_that_is_to_terminate_while_it_reads_its_files_ends(whole: WholeSupervisor) -> None:
    whole.reader.may_read = asyncio.Event()
    whole.begin()
    whole.keeper.send("terminate")
    whole.pass_time(1)
    assert whole.running.result() == 0
    assert whole.keeper.did("terminating", "last", "end") == [
        {"op": "terminating"}, {"op": "terminating", "seconds": 5.0}, {"op": "last"}, {"op": "end"},
    ]  # fmt: skip
    assert whole.events() == []


def test_pool_that_is_to_terminate_before_its_supervisor_has_begun_ends(whole: WholeSupervisor) -> None:
    whole.begin(hello=False)
    whole.keeper.send("terminate")
    whole.keeper.send("hello", pid=KEEPER_PID, open_files=[100, 200])
    whole.pass_time(1)
    assert whole.running.result() == 0
    assert [order["op"] for order in whole.keeper.did("terminating", "last", "end")] == [
        "terminating", "terminating", "last", "end",
    ]  # fmt: skip


def test_exits_that_the_keeper_reports_reach_the_runner_in_order(whole: WholeSupervisor) -> None:
    reported: list[int] = []
    whole.runner.handle_exit_report = lambda report: reported.append(report["pid"])
    whole.begin(hello=False)
    whole.keeper.send("exit", pid=1)
    whole.keeper.send("hello", pid=KEEPER_PID, open_files=[100, 200])
    whole.keeper.send("exit", pid=2)
    whole.pass_time()
    whole.keeper.send("exit", pid=3)
    whole.pass_time()
    assert reported == [1, 2, 3]
    assert whole.end() == 0


def failed_exit(whole: WholeSupervisor) -> dict[str, Any]:
    return read_exit(str(whole.directory))


def test_failed_mandatory_server_ends_the_pool_with_its_status(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    whole.reader = Reader(web(), web("main", mandatory=True), web("first"), web("second", mandatory=True))
    whole.runner.script.update({"main": NEVER, "first": FAILS, "second": NEVER})
    whole.begin()
    whole.ask("start", "web", "first")
    asking = [
        whole.loop.create_task(whole.asking("start", {"selector": {"targets": [name]}}))
        for name in ("main", "second")
    ]
    whole.pass_time(1)
    assert (failed_exit(whole), whole.running.done()) == ({}, False)
    for name in ("main", "second"):
        whole.runner.end(f"{name}.1.0", Exit.from_returncode(3))
    whole.pass_time(1)
    reason = "main has failed, and it is mandatory: exited with status 3"
    assert failed_exit(whole) == {"status": 3, "reason": reason, "keeper_pid": KEEPER_PID}
    assert caplog.text.count("the pool ends: ") == 1
    assert f"the pool ends: {reason}" in caplog.text
    assert whole.running.result() == 0
    assert [request.done() for request in asking] == [True, True]
    (stopping,) = [event for event in whole.recorded("stopping") if event.kind == "pool"]
    assert (stopping.cause, stopping.detail["severity"]) == (reason, "error")


def test_mandatory_server_that_keeps_failing_after_it_was_ready_ends_the_pool(whole: WholeSupervisor) -> None:
    backoff = {"backoff": {"initial": 0, "max": 60}}
    whole.reader = Reader(web(), web("main", mandatory=True, restart=backoff))
    whole.begin()
    whole.ask("start")
    whole.runner.script["main"] = FAILS
    whole.runner.end("main.1.0", Exit.from_returncode(3))
    whole.pass_time(1)
    assert failed_exit(whole)["reason"].startswith("main keeps failing, and it is mandatory: ")


def test_supervisor_without_its_keeper_gives_everything_to_a_new_one(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    whole.begin()
    whole.ask("start")
    whole.parts.clear()
    assert whole.lose_keeper() == 0
    (new,) = whole.new_keepers.started()
    command = bootstrap.command(sys.executable, "supervisor", str(whole.directory), "/srv/pool.toml")
    assert (new["directory"], new["plan"]["supervisor"]) == (str(whole.directory), command)
    held = {message["name"]: message["descriptors"] for message in new["messages"] if message["op"] == "put"}
    assert {"control", "lock", "configuration", "wanted"} <= held.keys()
    assert held == dict.fromkeys(held, 1) | {"recording": 0}
    assert "terminate" not in [message["op"] for message in new["messages"]]
    assert "the keeper is gone; another one is started" in caplog.text
    assert "not everything is known" not in caplog.text
    assert whole.parts == ["flush"]
    assert whole.late == [("exit 0", 0.0)]
    assert whole.events()[1:] == [("keeper lost", "error", "another one is started")]


def test_supervisor_that_loses_its_keeper_before_it_knows_everything_exits(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    whole.reader.may_read = asyncio.Event()
    whole.begin()
    assert (whole.lose_keeper(), whole.new_keepers.started()) == (1, [])
    assert "the keeper is gone, and not everything is known here that it held" in caplog.text
    assert "another one is started" not in caplog.text


def test_new_keeper_ends_a_pool_that_was_to_terminate(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.ask("start")
    whole.runner.may_end.clear()
    whole.keeper.send("terminate")
    whole.pass_time(0.1)
    assert whole.lose_keeper() == 0
    (new,) = whole.new_keepers.started()
    assert [message["op"] for message in new["messages"]][-2:] == ["terminate", "whole"]


def test_supervisor_that_hung_while_its_keeper_ended_replaces_it_once_and_says_where(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    whole.begin()
    ((_, replace_keeper),) = whole.hangs
    with pytest.raises(SystemExit) as ended:
        replace_keeper(sys._getframe())
    assert (ended.value.code, len(whole.new_keepers.started())) == (0, 1)
    assert "the keeper ended while this process hung here:\n" in caplog.text
    assert "in test_supervisor_that_hung_while_its_keeper_ended_replaces_it_once" in caplog.text
    replace_keeper(None)
    assert len(whole.new_keepers.started()) == 1


def test_supervisor_whose_files_are_withdrawn_ends_with_its_keeper(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.ask("stop")
    whole.keeper.link.close()
    whole.pass_time(1)
    ((_, replace_keeper),) = whole.hangs
    replace_keeper(None)
    assert (whole.running.result(), whole.new_keepers.started()) == (0, [])


def test_another_version_takes_over_after_the_answer_in_progress(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "poolctl.supervisor")
    whole.begin()
    whole.ask("start")
    whole.parts.clear()

    async def hand_over() -> None:
        whole.supervisor.hand_over(["new", "keeper"], ["new", "supervisor"])

    whole.loop.run_until_complete(hand_over())
    whole.pass_time()
    whole.keeper.orders.clear()
    with pytest.raises(SupervisorEnded):
        whole.ask("list")
    assert whole.exits(1) == 0
    assert whole.late == [("exit 0", 0.02)]
    assert whole.parts == ["flush"]
    assert [order for order in whole.keeper.orders if order["op"] != "put"] == [
        {
            "op": "upgrade", "argv": ["new", "keeper", str(whole.directory)],
            "supervisor": ["new", "supervisor", str(whole.directory), "/srv/pool.toml"],
        },
    ]  # fmt: skip
    assert "another version takes over: ['new', 'supervisor']" in caplog.text
    assert (whole.directory / "info.json").exists()


def test_metrics_and_health_are_answered_for_the_selected_servers(whole: WholeSupervisor) -> None:
    whole.reader = Reader(web(), web("other"))
    whole.begin()
    whole.ask("start", "web")
    plain = whole.ask("metrics")["text"]
    assert 'poolctl_server_ready{server="web"} 1' in plain
    assert 'poolctl_server_ready{server="other"} 0' in plain
    assert "# EOF" not in plain
    one = whole.ask("metrics", "web", openmetrics=True)["text"]
    assert one.endswith("# EOF\n")
    assert 'server="other"' not in one
    assert [(item["name"], item["kind"]) for item in whole.ask("health")["items"]] == [
        ("web", "server"), ("other", "server"),
    ]  # fmt: skip
    assert [item["name"] for item in whole.ask("stats")["items"]] == ["web", "other"]
    assert [item["name"] for item in whole.ask("monitor")["items"]] == ["web", "other"]
    assert whole.end() == 0


def test_what_is_not_served_is_part_of_the_answers_to_a_ping_and_a_start(whole: WholeSupervisor) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        whole.reader = Reader(web(), tables=Tables(metrics=MetricsTable(bind=f"127.0.0.1:{port}")))
        (whole.state / "events.jsonl").mkdir(parents=True)
        whole.begin()
        whole.part.wrong = ("[gateway]: no port",)
        whole.pass_time(1)
        # Who has the port is found in a thread.
        wait_until(lambda: whole.pass_time() or len(whole.ask("ping")["not_served"]) == 3)
        gateway, metrics, events = whole.ask("ping")["not_served"]
        assert gateway == "[gateway]: no port"
        assert metrics.startswith(f"[metrics]: metrics cannot be served: port {port} is in use"), metrics
        assert re.match(
            rf"\[events]: \d+ events? could not be written to {whole.state}/events.jsonl: ", events
        )
        for verb in ("start", "restart"):
            assert whole.ask(verb)["warnings"] == [f"extended {verb}", gateway, metrics]
        assert whole.ask("reload", dry_run=True)["warnings"] == ["extended reload"]
    whole.reader.reading = replace(whole.reader.reading, tables=Tables())
    whole.ask("reload")
    assert whole.ask("ping")["not_served"][0] == gateway
    assert metrics not in whole.ask("ping")["not_served"]
    assert whole.end() == 0


def test_problems_of_workers_become_events(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.supervisor.record_impossible_counts_event("web", "web.1.0", "requests went back")
    whole.supervisor.record_impossible_counts_event("gone", "gone.1.0", "requests went back")
    whole.supervisor.output_lost("web", 12, "/var/log/web.log", "disk full")
    message = "worker web.1.0 shows impossible figures, which stay as they were: requests went back"
    assert whole.events("health") == [("figures refused", "warning", message)]
    message = "12 bytes of output could not be written to /var/log/web.log: disk full"
    assert whole.events()[1:] == [("output lost", "error", message)]
    recorded = [json.loads(line) for line in (whole.state / "events.jsonl").read_text().splitlines()]
    (refused,) = [event for event in recorded if event["event"] == "figures refused"]
    assert (refused["server"], refused["bind"], refused["worker"]) == ("web", "127.0.0.1:9318", "web.1.0")


def test_pool_is_found_by_its_new_name_as_soon_as_a_reload_is_answered(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.reader.reading = replace(whole.reader.reading, name="store")
    whole.ask("reload")
    assert [path.name for path in whole.directory.parent.glob("@*")] == ["@store"]
    assert whole.parts[1:] == ["apply tables []", "apply tables []", "extend reload", "conclude reload"]
    assert whole.ask("ping")["name"] == "store"
    assert whole.end() == 0


def test_state_is_saved_before_a_command_is_answered(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.keeper.orders.clear()

    async def saved() -> list[Any]:
        async with aclosing(messages_async(str(whole.path), "start", {})) as messages:
            results = [message["result"] async for message in messages if "result" in message]
            names = [order["name"] for order in whole.keeper.did("put")]
        return [results[0]["items"][0]["state"], *names]

    assert whole.loop.run_until_complete(saved())[:2] == ["running", "wanted"]
    wanted = whole.stored("wanted")
    assert wanted["web"]["desired"] == "run"
    assert whole.parts[-2:] == ["extend start", "conclude start"]
    whole.ask("list")
    assert whole.parts[-1] == "extend list"
    assert whole.end() == 0


def test_state_is_saved_before_features_apply_a_change(whole: WholeSupervisor) -> None:
    class Slow(RecordingPart):
        async def wait_for_effect(self, verb: str, call: Call, result: Result) -> Result:
            await asyncio.sleep(0.01)
            self.note(f"saved {[order['name'] for order in whole.keeper.did('put')]}")
            return await super().wait_for_effect(verb, call, result)

    whole.part_class = Slow
    whole.begin()
    whole.keeper.orders.clear()
    whole.ask("start")
    assert whole.parts[-3:] == ["extend start", "saved ['wanted', 'totals']", "conclude start"]
    assert whole.end() == 0


def test_change_by_a_verb_of_a_feature_is_saved_before_it_is_answered(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.ask("scale-web")
    assert whole.stored("wanted")["web"]["overrides"]["workers"] == 2
    assert whole.end() == 0


def test_change_of_a_server_is_saved_though_no_command_made_it(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.ask("start")
    whole.pass_time(5)
    whole.keeper.orders.clear()
    whole.runner.end("web.1.0", Exit.from_returncode(3))
    whole.pass_time(0.04)
    assert whole.keeper.did("put") == []
    whole.pass_time(1)
    assert whole.keeper.did("put")[0] == {"op": "put", "name": "wanted"}
    wanted = whole.stored("wanted")
    assert wanted["web"]["failure"]["message"].startswith("exited with status 3")
    assert whole.end() == 0


def test_control_socket_that_vanishes_is_replaced_in_the_keeper_too(
    whole: WholeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    whole.begin()
    whole.ask("start")
    whole.pass_time()
    whole.keeper.orders.clear()
    pool_files.remove_left_states(str(whole.directory))
    whole.path.unlink()
    whole.pass_time(1.5)
    assert [message["name"] for message in whole.keeper.did("put")] == ["control"]
    assert whole.ask("list")["items"][0]["state"] == "running"
    assert pool_files.read_left_state(str(whole.directory))["servers"]["web"]["desired"] == "run"
    assert "had vanished, at least in part, and was restored" in caplog.text
    whole.keeper.orders.clear()
    pool_files.remove_left_states(str(whole.directory))
    (whole.directory / "info.json").unlink()
    whole.pass_time(1.5)
    assert [message["name"] for message in whole.keeper.did("put")] == []
    assert (whole.directory / "info.json").exists()
    assert pool_files.read_left_state(str(whole.directory))["servers"]["web"]["desired"] == "run"
    assert whole.end() == 0


def test_program_that_opens_its_socket_itself_is_remembered(whole: WholeSupervisor) -> None:
    whole.reader = Reader(web(app=None, command=["x"]))
    whole.begin()
    whole.supervisor.core.entries["web"].observed.socket_found = "program"
    whole.ask("start")
    whole.pass_time(1)
    assert [*json.loads((whole.state / "programs.json").read_text())] == ["web"]
    assert whole.end() == 0


def test_program_that_cannot_overlap_is_remembered_and_recognised(whole: WholeSupervisor) -> None:
    whole.state.mkdir(parents=True, exist_ok=True)
    command = ["x"]
    digest = sha256(json.dumps(command).encode()).hexdigest()
    (whole.state / "no-overlap.json").write_text(json.dumps({"web": digest}))
    whole.reader = Reader(web(app=None, command=command), web(name="api", app=None, command=command))
    whole.begin()
    api = whole.supervisor.core.entries["api"].observed
    api.overlap_found = "no"
    whole.ask("start")
    whole.pass_time(1)
    assert not whole.supervisor.core.entries["web"].may_overlap
    assert [*json.loads((whole.state / "no-overlap.json").read_text())] == ["web", "api"]
    assert whole.end() == 0


def test_totals_are_saved_for_a_successor(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.ask("start")
    whole.pass_time(1)
    assert "web" in whole.stored("totals")["availability"]
    assert whole.end() == 0


def test_client_is_notified_of_a_keeper_that_does_not_answer(whole: WholeSupervisor) -> None:
    whole.begin()
    whole.keeper.hang()
    whole.pass_time(30)
    problem = whole.ask("ping")["keeper_problem"]
    assert problem == f"the keeper (pid {KEEPER_PID}) does not answer: it was killed, but has not exited yet"
    notice, result = whole.messages("list")
    assert notice["notice"] == problem
    assert result["result"]["exit_code"] == 0
    assert [(event, severity) for event, severity, _ in whole.events()][1:] == [
        ("keeper silent", "warning"), ("keeper silent", "error"),
    ]  # fmt: skip
    whole.keeper.go_on()
    whole.pass_time(10)
    assert "keeper_problem" not in whole.ask("ping")
    assert whole.end() == 0


def test_systemd_is_not_notified_of_wrong_files(
    whole: WholeSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole.reader.reading.problems.append(WRONG)
    with closing(NotifySocket(whole.directory.parent)) as notified:
        monkeypatch.setenv("NOTIFY_SOCKET", notified.path)
        whole.begin()
        whole.pass_time(5)
        whole.ask("start")
        whole.pass_time(5)
        assert notified.lines == []


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
    assert (about.calm, about.keeper_problem, about.not_served) == (None, None, None)
    names = ["other", "web"]
    for verb in ("list", "stats", "monitor"):
        assert sorted(item["name"] for item in client.call(verb)["items"]) == names, verb
    assert sorted(item["name"] for item in client.call("health")["items"]) == names
    plain = client.call("metrics")["text"]
    assert 'poolctl_server_ready{server="web"} 1' in plain
    assert "# EOF" not in plain
    assert client.call("metrics", {"options": {"openmetrics": True}})["text"].endswith("# EOF\n")

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
def test_mandatory_server_that_fails_ends_the_pool_with_its_status_and_reason(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    command = '["sh", "-c", "while [ ! -e fail ]; do sleep 0.05; done; exit 42"]'
    with (real_pool.directory / "pool.toml").open("a") as file:
        file.write(f'[[server]]\nname = "main"\ncommand = {command}\nmandatory = true\nrestart = "no"\n')
    real_pool.ok("start")
    (place,) = [path.parent for path in real_pool.runtime.glob("*/info.json") if path.parent.name[0] != "@"]
    keeper = real_pool.info()["keeper_pid"]
    (real_pool.directory / "fail").touch()
    wait_until(lambda: not real_pool.processes())
    left = read_exit(str(place))
    assert (left["status"], left["keeper_pid"]) == (42, keeper)
    assert left["reason"].startswith("main has failed, and it is mandatory: ")
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


def test_modules_are_imported_with_other_work_between_them_and_one_that_is_missing_is_passed_over() -> None:
    async def scenario() -> None:
        names = ["poolctl.nowhere", "poolctl.states", "poolctl.units"]
        work = asyncio.ensure_future(import_slowly(names))
        turns = 0
        async with asyncio.timeout(60):
            while not work.done():
                await asyncio.sleep(supervisor._BETWEEN_IMPORTS_SECONDS / 4)
                turns += 1
        assert turns >= len(names)
        await work

    asyncio.run(scenario())


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


def test_listener_and_hook_of_an_earlier_supervisor_are_adopted(tmp_path: Path) -> None:
    async def scenario() -> None:
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

    run(scenario())


@pytest.mark.parametrize("lives", [True, False])
def test_listener_that_a_program_binds_itself_is_open_while_the_program_lives(
    tmp_path: Path, lives: bool
) -> None:
    async def scenario() -> None:
        server = web(app=None, command=["program", "{port}"])
        after = Succession(tmp_path, Survivors(*([survivor(server)] if lives else [])), server)
        await after.adopt()
        (entry,) = after.core.entries.values()
        assert entry.listener.state is (ListenerState.OPEN if lives else ListenerState.CLOSED)
        assert after.core.endpoints(server) == ()
        await after.end()

    run(scenario())
