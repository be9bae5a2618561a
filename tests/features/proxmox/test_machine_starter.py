"""Containers and virtual machines are started on demand and stopped when idle, by the API of the stand-in."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.features.gateway.supervision.outside_targets import Activity
from poolctl.features.gateway.target import MachineState
from poolctl.features.proxmox._api import Guest
from poolctl.features.proxmox._machine_starter import MachinePowerManager
from poolctl.features.proxmox.inventory import ProxmoxInventory
from poolctl.features.proxmox.table import ProxmoxTable
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import JournalEvent
from poolctl.routing.route import Route, Target
from tests.certificates import certificate
from tests.coroutines import staged_by
from tests.features.proxmox.cluster import ENVIRONMENT, SECRET, Cluster, no_activities, play_with
from tests.virtual_loop import VirtualLoop

WEB, ALSO_WEB, WIN, NODE = "http://web:80", "http://web:81", "http://win:80", "https://pve1:8006"
START = "POST /nodes/pve1/lxc/101/status/start"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("pve"))


class Stage:
    """An inventory with routes to the container "web", the virtual machine "win" and a node.

    `reported` are the states of WEB, each when it became another one.
    """

    def __init__(self, cluster: Cluster, state_directory: str) -> None:
        self.cluster = cluster
        self.events = EventBus(Clock())
        self.recorded: list[JournalEvent] = []
        self.events.subscribe(self.recorded.append)
        self.reported: list[MachineState] = []
        self.inventory = ProxmoxInventory(self.events, self._changed, no_activities, state_directory)
        self.starter = self.inventory.starter
        urls = (WEB, ALSO_WEB, WIN, NODE)
        self.inventory.set_routes([Route(alias=url, to=(Target(url=url),)) for url in urls])

    def _changed(self) -> None:
        state = self.starter.states_by_url.get(WEB)
        if state is not None and self.reported[-1:] != [state]:
            self.reported.append(state)

    async def begin(self, **keys: Any) -> None:
        self.inventory.apply_table(self.cluster.table(refresh=3600.0, **keys), ENVIRONMENT)
        while not self.inventory.links:
            await asyncio.sleep(0.001)

    async def ask(self, url: str = WEB) -> MachineState:
        """The answer to a wake."""
        answers = self.starter.states_by_url[url].answers
        self.starter.start_if_needed(url)
        while self.starter.states_by_url[url].answers == answers:
            await asyncio.sleep(0.001)
        return self.starter.states_by_url[url]

    def states(self) -> list[str]:
        found = [each.state for each in self.reported]
        self.reported.clear()
        return found

    def happened(self) -> list[tuple[str, str]]:
        """The events of starts since the last time."""
        self.events.flush()
        assert SECRET not in repr(self.recorded)
        found = [(each.event, each.message) for each in self.recorded if each.kind == "wake"]
        self.recorded.clear()
        return found


@pytest.fixture
def play(pair: tuple[Path, Path]) -> Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]:
    def play(steps: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        play_with(pair, Stage, steps)

    return play


Play = Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]


@staged_by("play")
async def test_stopped_container_is_started_once_for_all_that_ask(stage: Stage, /) -> None:
    await stage.begin()
    assert {url: each.state for url, each in stage.starter.states_by_url.items()} == {
        WEB: "stopped", ALSO_WEB: "stopped", WIN: "running",
    }  # fmt: skip
    stage.cluster.may_start.clear()
    asked = [asyncio.ensure_future(stage.ask(url)) for url in (WEB, WEB, ALSO_WEB)]
    while stage.cluster.starts() == []:
        await asyncio.sleep(0.001)
    assert {stage.starter.states_by_url[url].state for url in (WEB, ALSO_WEB)} == {"starting"}
    assert [stage.starter.status(url) for url in (WEB, WIN, NODE)] == ["starting", "running", ""]
    stage.cluster.may_start.set()
    assert {each.state for each in await asyncio.gather(*asked)} == {"running"}
    assert stage.cluster.starts() == [START]
    assert stage.states() == ["stopped", "starting", "running"]
    requested, started = stage.happened()
    assert requested == (
        "machine start requested",
        "a request has the container 101 (web) on pve1 started",
    )
    assert started[0] == "machine started"
    assert started[1].startswith("the container 101 (web) on pve1 runs after ")
    assert stage.starter.status(WEB) == "running"
    # It is known also when routes change before the inventory is read again.
    stage.inventory.set_routes([Route(alias=WEB, to=(Target(url=WEB),))])
    assert stage.starter.states_by_url[WEB].state == "running"


@staged_by("play")
async def test_machine_that_runs_is_not_started_and_reported_as_it_is(stage: Stage, /) -> None:
    await stage.begin()
    stage.cluster.guests[101]["status"] = "running"  # by hand
    assert (await stage.ask()).state == "running"
    assert (await stage.ask(WIN)).state == "running"
    stage.starter.start_if_needed(NODE)
    stage.starter.start_if_needed("http://unknown")
    assert (stage.cluster.starts(), stage.happened()) == ([], [])


@staged_by("play")
async def test_virtual_machine_that_was_stopped_since_the_last_reading_is_started(stage: Stage, /) -> None:
    await stage.begin()
    stage.cluster.guests[200]["status"] = "stopped"
    assert (await stage.ask(WIN)).state == "running"
    assert stage.cluster.starts() == ["POST /nodes/pve2/qemu/200/status/start"]


@pytest.mark.parametrize(
    ("fails", "answer", "why"),
    [
        ("startup for container '101' failed", None, "startup for container '101' failed"),
        ("", (403, "Permission check failed (/vms/101, VM.PowerMgmt)"), "localhost answered 403 Permission"),
        ("", (500, "CT is locked (backup)"), "localhost answered 500 CT is locked (backup)"),
    ],
)
@staged_by("play")
async def test_failed_start_is_not_tried_again_for_some_time(
    stage: Stage, /, fails: str, answer: Any, why: str
) -> None:
    await stage.begin()
    stage.cluster.fails = fails
    if answer:
        stage.cluster.answers["/nodes/pve1/lxc/101/status/start"] = answer
    state = await stage.ask()
    assert state.state == "failed"
    assert state.why.startswith(f"the container 101 (web) on pve1 could not be started: {why}")
    assert (await stage.ask()).state == "failed"
    assert stage.cluster.starts() == [START]
    assert [event for event, _ in stage.happened()] == ["machine start requested", "machine start failed"]
    # Started by hand: the next reading shows it.
    stage.cluster.guests[101]["status"] = "running"
    stage.inventory.apply_table(stage.cluster.table(refresh=3600.0), ENVIRONMENT)
    while stage.starter.states_by_url[WEB].state != "running":
        await asyncio.sleep(0.001)


@staged_by("play")
async def test_after_the_cooldown_which_doubles_it_is_tried_again(stage: Stage, /) -> None:
    await stage.begin()
    stage.cluster.fails = "no space"
    loop, pauses = asyncio.get_running_loop(), []
    for _ in range(2):
        await stage.ask()
        failed_at = loop.time()
        while stage.starter.states_by_url[WEB].state == "failed":
            await asyncio.sleep(0.1)
        pauses.append(loop.time() - failed_at)
    assert pauses == pytest.approx([30, 60], abs=1)
    assert stage.states() == ["stopped", *["starting", "failed", "stopped"] * 2]
    stage.cluster.fails = ""
    assert (await stage.ask()).state == "running"
    assert stage.cluster.starts() == [START] * 3


@staged_by("play")
async def test_failure_of_a_start_is_forgotten_when_the_inventory_is_closed(stage: Stage, /) -> None:
    await stage.begin()
    stage.cluster.fails = "no space"
    assert (await stage.ask()).state == "failed"
    stage.inventory.close()
    state = stage.starter.states_by_url[WEB]
    assert (state.state, state.why) == ("stopped", "")


@staged_by("play")
async def test_machine_that_stops_soon_after_its_start_is_left_alone_for_some_time(stage: Stage, /) -> None:
    await stage.begin()
    assert (await stage.ask()).state == "running"
    stage.cluster.guests[101]["status"] = "stopped"
    state = await stage.ask()
    assert state.state == "failed"
    assert state.why == "the container 101 (web) on pve1 has stopped soon after its start"
    assert stage.cluster.starts() == [START]


@staged_by("play")
async def test_start_that_takes_too_long_has_failed(stage: Stage, /) -> None:
    await stage.begin(start_timeout=0.1)
    stage.cluster.may_start.clear()
    state = await stage.ask()
    assert (state.state, state.start_seconds) == ("failed", 0.1)
    assert state.why.endswith("could not be started: it does not run after 100ms")


@pytest.mark.parametrize("path", ["", "/nodes/pve1/lxc/101"])
@pytest.mark.parametrize("answer", [(401, "no such user"), (500, "oops"), b"garbage"])
@staged_by("play")
async def test_api_that_is_away_refuses_no_request(stage: Stage, /, path: str, answer: Any) -> None:
    await stage.begin()
    stage.cluster.answers[path] = answer
    assert (await stage.ask()).state == "unknown"
    assert (stage.cluster.starts(), stage.happened()) == ([], [])
    stage.cluster.answers.clear()
    assert (await stage.ask()).state == "running"


@pytest.mark.slow
@staged_by("play")
async def test_api_that_goes_away_during_a_start_refuses_no_request(stage: Stage, /) -> None:
    await stage.begin(start_timeout=3.0)
    stage.cluster.may_start.clear()
    asked = asyncio.ensure_future(stage.ask())
    while stage.cluster.starts() == []:
        await asyncio.sleep(0.001)
    await stage.cluster.aclose()
    assert (await asked).state == "unknown"
    assert [event for event, _ in stage.happened()] == ["machine start requested", "machine start failed"]


@staged_by("play")
async def test_without_start_no_machine_is_reported_or_started(stage: Stage, /) -> None:
    await stage.begin(start=False)
    assert stage.starter.states_by_url == {}
    stage.starter.start_if_needed(WEB)
    while "GET /nodes/pve1/lxc/101/status/current" not in stage.cluster.asked:
        await asyncio.sleep(0.001)
    assert stage.cluster.starts() == []


WEB_LAN, DB_LAN = "http://web.lan:8080", "http://db.lan:8080"


IDLE_SECONDS = 0.1


class IdleStage:
    """An inventory with routes to the containers "web", which is stopped, and "db", which runs."""

    def __init__(self, cluster: Cluster, state_directory: str) -> None:
        self.cluster = cluster
        self.events = EventBus(Clock())
        self.recorded: list[JournalEvent] = []
        self.events.subscribe(self.recorded.append)
        self.activities: dict[str, Activity] | None = {}
        self.looks = 0
        self.state_directory = Path(state_directory)
        self.inventory = self.make()

    def make(self) -> ProxmoxInventory:
        made = ProxmoxInventory(self.events, lambda: None, self._ask, str(self.state_directory))
        made.set_routes([Route(alias=url, to=(Target(url=url),)) for url in (WEB_LAN, DB_LAN)])
        return made

    async def _ask(self) -> Mapping[str, Activity] | None:
        self.looks += 1
        return self.activities

    async def begin(self, **keys: Any) -> None:
        table = self.cluster.table(refresh=3600.0, **{"idle": IDLE_SECONDS, **keys})
        self.inventory.apply_table(table, ENVIRONMENT)
        await until(lambda: bool(self.inventory.links))

    async def wake(self) -> MachineState:
        """The answer to a wake."""
        starter = self.inventory.starter
        answers = starter.states_by_url[WEB_LAN].answers
        starter.start_if_needed(WEB_LAN)
        await until(lambda: starter.states_by_url[WEB_LAN].answers != answers)
        return starter.states_by_url[WEB_LAN]

    async def stopped(self) -> None:
        """Return when it is stopped, and nothing is under way."""
        starter = self.inventory.starter
        await until(lambda: self.status == "stopped" and not starter.started)
        await self.settled()

    async def settled(self) -> None:
        """Return when no request to the API is under way: the loop must not end with its connection."""
        await until(lambda: not self.cluster.connections)

    async def looked(self, times: int = 8) -> None:
        """Return after so many further looks, twice as many as it takes to stop what is idle."""
        wanted = self.looks + times
        await until(lambda: self.looks >= wanted)

    @property
    def status(self) -> object:
        return self.cluster.guests[101]["status"]

    def happened(self) -> list[str]:
        self.events.flush()
        return [each.event for each in self.recorded if each.kind == "wake"]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


PlayIdle = Callable[[Callable[[IdleStage], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play_idle(pair: tuple[Path, Path]) -> PlayIdle:
    def play_idle(steps: Callable[[IdleStage], Coroutine[Any, Any, None]]) -> None:
        play_with(pair, IdleStage, steps)

    return play_idle


@staged_by("play_idle")
async def test_machine_that_a_request_has_had_started_is_stopped_when_it_is_idle(idle: IdleStage, /) -> None:
    await idle.begin()
    assert (await idle.wake()).state == "running"
    await idle.stopped()
    assert idle.cluster.stops() == ["POST /nodes/pve1/lxc/101/status/shutdown"]
    assert idle.inventory.starter.states_by_url[WEB_LAN].state == "stopped"
    # The next request starts it at once: it has not stopped by itself.
    assert (await idle.wake()).state == "running"
    await idle.stopped()
    starting, stopping = (
        ["machine start requested", "machine started"],
        ["machine stop requested", "machine stopped"],
    )
    await until(lambda: len(idle.happened()) == 8)
    assert idle.happened() == [*starting, *stopping] * 2
    assert idle.cluster.guests[102]["status"] == "running", "nobody has had that one started"


@pytest.mark.parametrize(
    ("idle_seconds", "request_at", "stops"),
    [(120.0, 260.0, [135.0, 255.0, 390.0]), (8.0, 13.0, [10.0, 22.0, 30.0])],
)
def test_machine_is_stopped_when_its_whole_idle_time_has_passed_since_the_last_request(
    idle_seconds: float, request_at: float, stops: list[float]
) -> None:
    stopped: list[tuple[float, int]] = []

    class Starter(MachinePowerManager):
        def stop(self, vmid: int, is_idle: Callable[[], Awaitable[bool]]) -> None:
            stopped.append((loop.time(), vmid))

    async def activities() -> dict[str, Activity]:
        return {WEB: Activity(int(loop.time() >= request_at), 0)}

    with closing(VirtualLoop()) as loop:
        starter = Starter(EventBus(Clock()), lambda: None, activities, "")
        starter.set_guests({WEB: Guest("lxc", 101, "web", "pve1", "running")}, freshly_read=False)
        starter.started[101] = 0.0
        table = ProxmoxTable(url="https://pve", token_env="T", start=True, idle=idle_seconds)
        loop.call_soon(starter.configure, table, None)
        loop.pass_time(stops[-1])
        starter.close()
        loop.pass_time()
    assert stopped == [(at, 101) for at in stops]


@staged_by("play_idle")
async def test_requests_in_progress_and_new_ones_keep_it_running(idle: IdleStage, /) -> None:
    await idle.begin()
    await idle.wake()
    idle.activities = {WEB_LAN: Activity(1, 1)}
    await idle.looked()
    for number in range(16):
        idle.activities = {WEB_LAN: Activity(2 + number, 0)}
        await idle.looked(1)
    idle.activities = None  # the gateway does not answer
    await idle.looked()
    assert (idle.status, idle.cluster.stops()) == ("running", [])
    idle.activities = {WEB_LAN: Activity(17, 0), DB_LAN: Activity(7, 7)}
    await idle.stopped()


@staged_by("play_idle")
async def test_request_at_the_last_moment_keeps_it_running_and_one_after_it_has_it_started_again(
    idle: IdleStage, /
) -> None:
    await idle.begin(idle=3600.0)
    await idle.wake()
    starter = idle.inventory.starter
    states: list[str] = []

    def answering(idle: bool) -> Callable[[], Coroutine[Any, Any, bool]]:
        async def is_idle() -> bool:
            states.append(starter.states_by_url[WEB_LAN].state)
            return idle

        return is_idle

    answers = starter.states_by_url[WEB_LAN].answers
    starter.stop(101, answering(False))
    await until(lambda: starter.states_by_url[WEB_LAN].answers != answers)
    assert (states, starter.states_by_url[WEB_LAN].state, idle.cluster.stops()) == (
        ["stopped"],
        "running",
        [],
    )
    # Requests wait while it is being stopped.
    idle.cluster.may_stop.clear()
    starter.stop(101, answering(True))
    await until(lambda: idle.cluster.stops() != [])
    assert starter.states_by_url[WEB_LAN].state == "stopped"
    asked = asyncio.ensure_future(idle.wake())
    await asyncio.sleep(0)
    idle.cluster.may_stop.set()
    assert (await asked).state == "running"
    assert len(idle.cluster.starts()) == 2


@staged_by("play_idle")
async def test_next_supervisor_stops_it_and_one_that_was_started_by_others_since_is_left_alone(
    idle: IdleStage, /
) -> None:
    await idle.begin(idle=0.0)
    await idle.wake()
    idle.inventory.close()
    (saved,) = idle.state_directory.iterdir()
    started = json.loads(saved.read_text())
    assert list(started) == ["101"]
    # It was started an hour ago, and is up for ten minutes.
    saved.write_text(json.dumps({"101": time.time() - 3600}))
    idle.cluster.guests[101]["uptime"] = 600
    idle.inventory = idle.make()
    await idle.begin()
    await until(lambda: not idle.inventory.starter.started)
    await idle.settled()
    assert (idle.status, idle.cluster.stops()) == ("running", [])
    idle.inventory.close()
    saved.write_text(json.dumps({"101": time.time() - 3600, "102": "x"}))
    idle.cluster.guests[101]["uptime"] = 3590
    assert idle.make().starter.started == {}, "a file that is not understood"
    saved.write_text(json.dumps({"101": time.time() - 3600}))
    idle.inventory = idle.make()
    await idle.begin()
    await idle.stopped()


@pytest.mark.parametrize(("jump_seconds", "uptime", "left"), [(7200.0, 5, False), (-7200.0, 3590, True)])
@staged_by("play_idle")
async def test_clock_that_is_set_changes_nothing_about_who_has_started_it(
    idle: IdleStage, /, monkeypatch: pytest.MonkeyPatch, jump_seconds: float, uptime: int, left: bool
) -> None:
    await idle.begin(idle=3600.0)
    await idle.wake()
    starter = idle.inventory.starter
    starter.started[101] -= 7200.0 * left
    idle.cluster.guests[101]["uptime"] = uptime
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + jump_seconds)
    starter.stop(101, lambda: asyncio.sleep(0, True))
    await until(lambda: not starter.started)
    await idle.settled()
    assert idle.status == ("running" if left else "stopped")


@staged_by("play_idle")
async def test_machine_that_others_have_stopped_is_not_ours_any_more(idle: IdleStage, /) -> None:
    await idle.begin(idle=3600.0)
    await idle.wake()
    idle.cluster.guests[101]["status"] = "stopped"
    await idle.begin(idle=3600.0)
    await until(lambda: not idle.inventory.starter.started)
    idle.cluster.guests[101]["status"] = "running"
    idle.inventory.starter.stop(101, lambda: asyncio.sleep(0, True))
    await idle.settled()
    assert idle.cluster.stops() == []


@staged_by("play_idle")
async def test_stop_that_fails_is_recorded_and_tried_again_after_the_idle_time(idle: IdleStage, /) -> None:
    await idle.begin()
    await idle.wake()
    idle.cluster.fails = "VM is locked (backup)"
    await until(lambda: idle.happened().count("machine stop failed") == 2)
    assert len(idle.cluster.stops()) == 2
    assert idle.status == "running"
    failed = next(each for each in idle.recorded if each.event == "machine stop failed")
    assert failed.message == "the container 101 (web) on pve1 could not be stopped: VM is locked (backup)"
    idle.cluster.fails = ""
    await idle.stopped()


@staged_by("play_idle")
async def test_stop_that_takes_too_long_has_failed(idle: IdleStage, /) -> None:
    await idle.begin(idle=3600.0)
    await idle.wake()
    before = idle.inventory.inventory
    await idle.begin(idle=3600.0, start_timeout=0.1)
    await until(lambda: idle.inventory.inventory is not before)
    idle.cluster.may_stop.clear()
    idle.inventory.starter.stop(101, lambda: asyncio.sleep(0, True))
    await until(lambda: idle.happened()[-2:] == ["machine stop requested", "machine stop failed"])
    await idle.settled()
    assert idle.recorded[-1].message == (
        "the container 101 (web) on pve1 could not be stopped: it runs still after 100ms"
    )
    assert idle.inventory.starter.states_by_url[WEB_LAN].state == "running"


@staged_by("play_idle")
async def test_machine_is_started_and_stopped_also_when_that_cannot_be_noted(
    idle: IdleStage, /, caplog: pytest.LogCaptureFixture
) -> None:
    idle.state_directory.rmdir()
    await idle.begin()
    assert (await idle.wake()).state == "running"
    assert "which machines were started is not known to the next supervisor" in caplog.text
    await idle.stopped()


@staged_by("play_idle")
async def test_without_idle_none_is_stopped(idle: IdleStage, /) -> None:
    await idle.begin(idle=0.0)
    await idle.wake()
    await asyncio.sleep(2 * IDLE_SECONDS)
    assert (idle.looks, idle.status) == (0, "running")
    # A reload that names it holds for those that run.
    await idle.begin()
    await idle.stopped()
