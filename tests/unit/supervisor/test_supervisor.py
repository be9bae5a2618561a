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
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig, __version__
from poolctl.config.model.section import Health, Probe
from poolctl.control.client import Client, read_exit
from poolctl.control.control_server import Request
from poolctl.control.protocol import PROTOCOL
from poolctl.core.core import Core
from poolctl.core.decide import Desired
from poolctl.exit_codes import INVALID_CONFIGURATION
from poolctl.keeper.keeper import Store
from poolctl.runners.runner_protocol import Adopted, AdoptedWorker, Capabilities, Exit, Placement
from poolctl.supervisor import supervisor
from poolctl.supervisor.supervisor import (
    RuntimeFiles,
    adopt,
    import_slowly,
    late_modules,
    take_in_late,
)
from poolctl.supervisor.takeover.state_store import StateStore
from tests.deadline import wait_until
from tests.manual_clock import ManualClock
from tests.real_pool import RealPool
from tests.unit.core.ordered_core import RecordedEvents, run, turns, web
from tests.unit.runners.scripted_runner import SlowRunner
from tests.virtual_loop import VirtualLoop

from .test_state_store import StoreLink


class Survivors(SlowRunner):
    """A runner whose workers may have outlived an earlier supervisor."""

    def __init__(self, *left: AdoptedWorker, found: tuple[dict[str, bool], ...] = (), **more: Any) -> None:
        super().__init__()
        self.left = Adopted(left, **more)
        self.found = [*found]
        self.searched: list[tuple[list[str], bool]] = []

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, takeover=self)

    async def adopt(
        self, servers: Mapping[str, ServerConfig], placed: Mapping[str, ServerConfig] | None = None
    ) -> Adopted:
        for each in self.left.workers:
            self.running[each.placement.id] = asyncio.get_running_loop().create_future()
        return self.left

    async def take_in(self, servers: Mapping[str, ServerConfig], *, late: bool = False) -> dict[str, bool]:
        self.searched.append((sorted(servers), late))
        return self.found.pop(0) if self.found else {}

    def exit_reported(self, report: Any) -> None:
        raise AssertionError("no keeper reports to it")


def survivor(server: ServerConfig, *, ready_at: float | None = 1.0, **more: Any) -> AdoptedWorker:
    return AdoptedWorker(Placement.of(server.name, 1, 0, pid=4711), server, ready_at, **more)


class Succession:
    """A supervisor of these servers that adopts what the runner has, without its process."""

    def __init__(self, directory: Path, runner: Survivors, *servers: ServerConfig) -> None:
        self.core = Core(servers, runner, ManualClock(), RecordedEvents())
        self.link = StoreLink(Store())
        self.store = StateStore(self.link, str(directory))
        self.servers = {each.name: each for each in servers}

    async def adopt(self, *, search: bool = True) -> int:
        return await adopt(self.core, self.store, {}, self.servers if search else None)

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
            assert worker.resting is ("resting" in reported)
            assert after.core.entries["web"].wanted is not reported.get("leaving", False)
            await after.end()

    run(work())


def test_worker_found_of_a_server_that_has_changed_is_replaced_if_the_server_is_wanted(
    tmp_path: Path,
) -> None:
    async def work() -> None:
        server = web()
        for outdated, serving in ((True, [2]), (False, [1])):
            runner = Survivors(survivor(server), found=({"web": outdated},))
            after = Succession(tmp_path, runner, server)
            assert await after.adopt() == 1
            assert runner.searched == [(["web"], False)]
            await turns(60)
            workers = after.core.entries["web"].observed.workers.values()
            assert [each.generation for each in workers] == serving
            await after.end()
        runner = Survivors(survivor(server), found=({"web": True},))
        after = Succession(tmp_path, runner, server)
        after.core.entries["web"].become(Desired.STOPPED)
        await after.adopt()
        await turns(60)
        assert (after.state(), runner.log) == ("stopped", ["stop web.1.0 10"])
        await after.end()

    run(work())


def test_workers_are_not_searched_for_while_the_files_are_wrong(tmp_path: Path) -> None:
    async def work() -> None:
        runner = Survivors(found=({"web": True},))
        after = Succession(tmp_path, runner, web())
        assert await after.adopt(search=False) == 0
        assert (runner.searched, after.state()) == ([], "stopped")
        await after.end()

    run(work())


def test_stopped_server_of_the_record_stays_stopped_though_its_worker_still_runs(tmp_path: Path) -> None:
    async def work() -> None:
        server = web()
        before = Succession(tmp_path, Survivors(), server)
        before.core.entries["web"].become(Desired.STOPPED)
        before.store.note_changed(before.core.entries["web"])
        before.store.save(before.core.entries)
        after = Succession(tmp_path, Survivors(survivor(server)), server)
        after.store = StateStore(before.link, str(tmp_path))
        await after.adopt()
        await turns(60)
        assert (after.state(), after.core.entries["web"].wanted) == ("stopped", False)
        await after.end()
        await before.end()

    run(work())


def test_workers_that_were_busy_are_looked_for_again_for_two_minutes(tmp_path: Path) -> None:
    loop = VirtualLoop()
    runner = Survivors()
    after = Succession(tmp_path, runner, web(), web("other"))
    looking = loop.create_task(take_in_late(after.core))
    loop.pass_time(0.4)
    assert runner.searched == []
    loop.pass_time(0.2)
    assert runner.searched == [(["other", "web"], True)]
    loop.pass_time(200)
    assert looking.result() is False
    assert len(runner.searched) == 9
    assert 110 <= sum(supervisor._LATE_PAUSES_SECONDS) <= 130
    after.link.end()
    loop.close()


def test_worker_found_late_is_left_to_a_successor_and_its_server_is_wanted(tmp_path: Path) -> None:
    loop = VirtualLoop()
    runner = Survivors(found=({}, {"web": False}))
    after = Succession(tmp_path, runner, web(), web("other"))
    assert loop.run_until_complete(take_in_late(after.core)) is True
    assert len(runner.searched) == 2
    assert [each.wanted for each in after.core.entries.values()] == [True, False]
    loop.run_until_complete(after.end())
    loop.close()


def test_server_that_serves_again_is_not_looked_for(tmp_path: Path) -> None:
    loop = VirtualLoop()
    server = web()
    runner = Survivors(survivor(server))
    after = Succession(tmp_path, runner, server, web("other"))
    loop.run_until_complete(after.adopt())
    runner.searched.clear()
    looking = loop.create_task(take_in_late(after.core))
    loop.pass_time(0.6)
    assert runner.searched == [(["other"], True)]
    looking.cancel()
    loop.run_until_complete(after.end())
    loop.close()


def test_runner_without_takeover_has_nothing_to_look_for(tmp_path: Path) -> None:
    loop = VirtualLoop()
    core = Core([web()], SlowRunner(), ManualClock(), RecordedEvents())
    assert loop.run_until_complete(take_in_late(core)) is False
    assert loop.time() == 0
    loop.close()


@pytest.mark.parametrize(
    ("last", "status"),
    [(None, 1), (Exit(0), 1), (Exit(3), 3), (Exit(signal=9), 137), (Exit(signal=15), 143), (Exit(), 1)],
)
def test_status_of_a_failed_pool_is_the_one_that_a_shell_reports_and_never_0(
    last: Exit | None, status: int
) -> None:
    assert supervisor._failed_status(last) == status


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
    assert supervisor._stops_everything(Request(verb, body, pid=1, uid=0)) is everything


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
        return {each.name: os.readlink(each) for each in self.root.iterdir() if each.is_symlink()}

    def info(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "info.json").read_text())
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_published_pool_is_found_by_its_name_with_its_files_and_processes(place: Place) -> None:
    place.files.publish("shop")
    info = place.info()
    assert time.time() - 60 < info.pop("started") <= time.time()
    assert info == {
        "name": "shop", "files": ["/srv/pool.toml", "/srv/more.toml"], "keeper_pid": 4711,
        "supervisor_pid": os.getpid(), "version": __version__,
    }  # fmt: skip
    assert place.names() == {"@shop": place.key}


def test_renamed_pool_is_no_longer_found_by_its_previous_name(place: Place) -> None:
    place.files.rename("early")
    assert not (place.directory / "info.json").exists()
    place.files.publish("shop")
    written = (place.directory / "info.json").stat().st_ino
    place.files.rename("shop")
    assert (place.directory / "info.json").stat().st_ino == written
    place.files.rename("store")
    assert (place.names(), place.info()["name"]) == ({"@store": place.key}, "store")


def test_name_of_a_running_pool_stays_its_own_and_that_of_a_dead_one_is_taken(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    other = Place(place.root, "feedbeef")
    other.files.publish("shop")
    with other.listen():
        place.files.publish("shop")
    assert place.names() == {"@shop": other.key}
    assert "the name 'shop' is not available" in caplog.text
    place.files.withdraw()
    assert place.names() == {"@shop": other.key}
    caplog.clear()
    (other.directory / "control.sock").unlink()
    third = Place(place.root, "00000001")
    third.files.publish("shop")
    third.files.publish("shop")
    assert (place.names(), caplog.text) == ({"@shop": third.key}, "")


def test_withdrawn_files_are_gone_and_those_of_a_later_supervisor_stay(place: Place) -> None:
    with place.listen():
        place.files.publish("shop")
        place.files.withdraw()
    assert place.files.withdrawn
    assert (place.names(), [each.name for each in place.directory.glob("*")]) == ({}, [])
    place.files.publish("shop")
    assert not (place.directory / "info.json").exists()
    later = RuntimeFiles(str(place.directory), [])
    later.publish("shop")
    place.files.withdraw()
    assert (place.names(), place.info()["files"]) == ({"@shop": place.key}, [])


def test_files_that_cannot_be_written_are_reported_once_and_written_later(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = place.directory / "info.json"
    blocked.mkdir()
    for _ in range(2):
        place.files.publish("shop")
    assert caplog.text.count("cannot write the pool's runtime files") == 1
    blocked.rmdir()
    place.files.publish("shop")
    assert place.info()["name"] == "shop"
    blocked.unlink()
    blocked.mkdir()
    place.files.publish("shop")
    assert caplog.text.count("cannot write the pool's runtime files") == 2


async def appears(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Return when this is in the log."""
    async with asyncio.timeout(30):
        while text not in caplog.text:
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("lost", ["directory", "socket", "info"])
def test_runtime_files_that_vanish_are_restored(
    place: Place, lost: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_CHECK_SECONDS", 0.01)
    listener = place.listen()
    place.files.publish("shop")

    async def work() -> None:
        restored = place.files.restored()
        waiting = asyncio.ensure_future(anext(restored))
        await turns(50)
        assert not waiting.done()
        if lost == "directory":
            shutil.rmtree(place.directory)
        else:
            (place.directory / {"socket": "control.sock", "info": "info.json"}[lost]).unlink()
        found = await asyncio.wait_for(waiting, 30)
        assert (found is None) is (lost == "info")
        assert place.info()["name"] == "shop"
        assert place.directory.stat().st_mode & 0o777 == 0o700
        if found is not None:
            assert found.getsockname() == str(place.directory / "control.sock")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(found.getsockname())
            found.close()
        again = asyncio.ensure_future(anext(restored, "over"))
        await appears(caplog, "had vanished, at least in part, and was restored")
        place.files.withdraw()
        assert await asyncio.wait_for(again, 30) == "over"

    run(work())
    listener.close()


def test_directory_that_cannot_be_restored_is_reported_once_for_each_cause(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "_CHECK_SECONDS", 0.001)
    listener = place.listen()
    place.files.publish("shop")

    async def work() -> None:
        restored = asyncio.ensure_future(anext(place.files.restored()))
        shutil.rmtree(place.directory)
        place.directory.write_text("a file in its place")
        await appears(caplog, "cannot be restored")
        assert not restored.done()
        place.directory.unlink()
        found = await asyncio.wait_for(restored, 30)
        assert found is not None
        found.close()
        assert caplog.text.count("cannot be restored") == 1

    run(work())
    listener.close()


def control(pool: RealPool) -> Client:
    (path,) = [each for each in pool.runtime.glob("*/control.sock") if not each.parent.name.startswith("@")]
    return Client(str(path))


def events(pool: RealPool) -> list[dict[str, Any]]:
    return [json.loads(line) for line in pool.ok("events", "-n", "all", "-o", "json").stdout.splitlines()]


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
        assert sorted(each["name"] for each in client.call(verb)["items"]) == names, verb
    assert sorted(each["name"] for each in client.call("health")["items"]) == names
    plain = client.call("metrics")["text"]
    assert 'poolctl_server_ready{server="web"} 1' in plain
    assert "# EOF" not in plain
    assert client.call("metrics", {"options": {"openmetrics": True}})["text"].endswith("# EOF\n")

    # A worker of a supervisor that dies is adopted by the next one, and a file that vanishes is written again.
    before = {name: item["pids"] for name, item in real_pool.items().items()}
    os.kill(info["supervisor_pid"], signal.SIGKILL)
    wait_until(lambda: real_pool.info()["supervisor_pid"] != info["supervisor_pid"])
    assert {name: item["pids"] for name, item in real_pool.items().items()} == before
    (place,) = [each.parent for each in real_pool.runtime.glob("*/info.json") if each.parent.name[0] != "@"]
    (place / "info.json").unlink()
    wait_until((place / "info.json").exists)

    file.write_text(file.read_text().replace('"shop"', '"store"'))
    real_pool.ok("reload")
    assert [each.name for each in real_pool.runtime.glob("@*")] == ["@store"]
    real_pool.ok("stop")
    assert not [*real_pool.runtime.glob("@*"), *place.glob("*.sock"), *place.glob("info.json")]
    wait_until(lambda: not real_pool.processes())
    ended = events(real_pool)[-1]
    assert (ended["kind"], ended["event"]) == ("pool", "supervisor ended")


def test_terminated_keeper_ends_the_pool_in_order_and_the_events_say_why(real_pool: RealPool) -> None:
    real_pool.write_hello()
    real_pool.ok("start")
    os.kill(real_pool.info()["keeper_pid"], signal.SIGTERM)
    wait_until(lambda: not real_pool.processes())
    found = [each for each in events(real_pool) if each["kind"] == "pool"]
    stopping = next(each for each in found if each["event"] == "stopping")
    assert (stopping["cause"], stopping["severity"]) == ("asked to terminate", "info")
    assert found[-1]["event"] == "supervisor ended"


def test_mandatory_server_that_fails_ends_the_pool_with_its_status_and_reason(real_pool: RealPool) -> None:
    real_pool.write_hello("web")
    command = '["sh", "-c", "while [ ! -e fail ]; do sleep 0.05; done; exit 42"]'
    with (real_pool.directory / "pool.toml").open("a") as file:
        file.write(f'[[server]]\nname = "main"\ncommand = {command}\nmandatory = true\nrestart = "no"\n')
    real_pool.ok("start")
    (place,) = [each.parent for each in real_pool.runtime.glob("*/info.json") if each.parent.name[0] != "@"]
    keeper = real_pool.info()["keeper_pid"]
    (real_pool.directory / "fail").touch()
    wait_until(lambda: not real_pool.processes())
    left = read_exit(str(place))
    assert (left["status"], left["keeper_pid"]) == (42, keeper)
    assert left["reason"].startswith("main has failed, and it is mandatory: ")
    stopping = next(each for each in events(real_pool) if each["event"] == "stopping")
    assert (stopping["cause"], stopping["severity"]) == (left["reason"], "error")


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


def test_start_imports_none_of_them_and_afterwards_all_of_them_are_there() -> None:
    upgrade = "poolctl.supervisor.verbs.upgrade"
    assert upgrade in late_modules()
    names = [each for each in late_modules() if ".verbs." not in each or each == upgrade]
    look = f"""
import sys
import poolctl.supervisor.__main__
poolctl.supervisor.__main__.leave_out_plugins()
import poolctl.supervisor.supervisor
assert "importlib.metadata" not in sys.modules, "the search for pydantic's plugins"
import poolctl.runners.local.local_runner
from poolctl.address import parse
from poolctl.listeners.open_listener import targets
assert [each.host for each in targets(parse("127.0.0.1:8080"))] == ["127.0.0.1"]
for name in ("tempfile", "encodings.idna"):
    assert name not in sys.modules, name
names = {names!r}
early = [name for name in names if name in sys.modules]
assert not early, early
for name in names:
    __import__(name)
there = set(sys.modules)
from poolctl.supervisor.verbs import reload, upgrade
from poolctl.supervisor import health
from poolctl.supervisor.observers import metrics_server
late = set(sys.modules) - there
assert not late, late
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
