"""Starting containers and virtual machines on demand, by the API of the stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.features.gateway.process.settings import MachineState
from poolctl.features.proxmox import _machine_starter
from poolctl.features.proxmox.inventory import ProxmoxInventory
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import JournalEvent
from poolctl.routing.route import Route, Target
from tests.certificates import certificate
from tests.features.proxmox.cluster import ENVIRONMENT, SECRET, Cluster, play_with

WEB, ALSO_WEB, WIN, NODE = "http://web:80", "http://web:81", "http://win:80", "https://pve1:8006"
START = "POST /nodes/pve1/lxc/101/status/start"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("pve"))


class Stage:
    """An inventory with routes to the container "web", the virtual machine "win" and a node.

    `reported` are the states of WEB, each when it became another one.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.events = Events(Clock())
        self.recorded: list[JournalEvent] = []
        self.events.subscribe(self.recorded.append)
        self.reported: list[MachineState] = []
        self.inventory = ProxmoxInventory(self.events, self._changed)
        self.starter = self.inventory.starter
        urls = (WEB, ALSO_WEB, WIN, NODE)
        self.inventory.follow_routes([Route(alias=url, to=(Target(url=url),)) for url in urls])

    def _changed(self) -> None:
        state = self.starter.states.get(WEB)
        if state is not None and self.reported[-1:] != [state]:
            self.reported.append(state)

    async def begin(self, **keys: Any) -> None:
        self.inventory.follow(self.cluster.table(refresh=3600.0, **keys), ENVIRONMENT)
        while not self.inventory.links:
            await asyncio.sleep(0.001)

    async def ask(self, url: str = WEB) -> MachineState:
        """The answer to a wake."""
        answers = self.starter.states[url].answers
        self.starter.ask(url)
        while self.starter.states[url].answers == answers:
            await asyncio.sleep(0.001)
        return self.starter.states[url]

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
def play(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]:
    monkeypatch.setattr(_machine_starter, "_POLL_SECONDS", 0.001)

    def play(steps: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        play_with(pair, Stage, steps)

    return play


Play = Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]


def test_stopped_container_is_started_once_for_all_that_ask(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin()
        assert {url: each.state for url, each in stage.starter.states.items()} == {
            WEB: "stopped", ALSO_WEB: "stopped", WIN: "running",
        }  # fmt: skip
        stage.cluster.may_start.clear()
        asked = [asyncio.ensure_future(stage.ask(url)) for url in (WEB, WEB, ALSO_WEB)]
        while stage.cluster.starts() == []:
            await asyncio.sleep(0.001)
        assert {stage.starter.states[url].state for url in (WEB, ALSO_WEB)} == {"starting"}
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
        stage.inventory.follow_routes([Route(alias=WEB, to=(Target(url=WEB),))])
        assert stage.starter.states[WEB].state == "running"

    play(steps)


def test_machine_that_runs_is_not_started_and_reported_as_it_is(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin()
        stage.cluster.guests[101]["status"] = "running"  # by hand
        assert (await stage.ask()).state == "running"
        assert (await stage.ask(WIN)).state == "running"
        stage.starter.ask(NODE)
        stage.starter.ask("http://unknown")
        assert (stage.cluster.starts(), stage.happened()) == ([], [])

    play(steps)


def test_virtual_machine_that_was_stopped_since_the_last_reading_is_started(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin()
        stage.cluster.guests[200]["status"] = "stopped"
        assert (await stage.ask(WIN)).state == "running"
        assert stage.cluster.starts() == ["POST /nodes/pve2/qemu/200/status/start"]

    play(steps)


@pytest.mark.parametrize(
    ("fails", "answer", "why"),
    [
        ("startup for container '101' failed", None, "startup for container '101' failed"),
        ("", (403, "Permission check failed (/vms/101, VM.PowerMgmt)"), "localhost answered 403 Permission"),
        ("", (500, "CT is locked (backup)"), "localhost answered 500 CT is locked (backup)"),
    ],
)
def test_failed_start_is_not_tried_again_for_some_time(play: Play, fails: str, answer: Any, why: str) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin()
        stage.cluster.fails = fails
        if answer:
            stage.cluster.answers["/nodes/pve1/lxc/101/status/start"] = answer
        state = await stage.ask()
        assert (state.state, state.retry_seconds) == ("failed", 30.0)
        assert state.why.startswith(f"the container 101 (web) on pve1 could not be started: {why}")
        assert (await stage.ask()).state == "failed"
        assert stage.cluster.starts() == [START]
        assert [event for event, _ in stage.happened()] == ["machine start requested", "machine start failed"]
        # Started by hand: the next reading shows it.
        stage.cluster.guests[101]["status"] = "running"
        stage.inventory.follow(stage.cluster.table(refresh=3600.0), ENVIRONMENT)
        while stage.starter.states[WEB].state != "running":
            await asyncio.sleep(0.001)

    play(steps)


def test_after_the_cooldown_it_is_tried_again(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_machine_starter, "_COOLDOWN_SECONDS", 0.01)

    async def steps(stage: Stage) -> None:
        await stage.begin()
        stage.cluster.fails = "no space"
        await stage.ask()
        while stage.starter.states[WEB].state == "failed":
            await asyncio.sleep(0.001)
        assert stage.states() == ["stopped", "starting", "failed", "stopped"]
        stage.cluster.fails = ""
        assert (await stage.ask()).state == "running"
        assert stage.cluster.starts() == [START, START]

    play(steps)


def test_machine_that_stops_soon_after_its_start_is_left_alone_for_some_time(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin()
        assert (await stage.ask()).state == "running"
        stage.cluster.guests[101]["status"] = "stopped"
        state = await stage.ask()
        assert state.state == "failed"
        assert state.why == "the container 101 (web) on pve1 has stopped soon after its start"
        assert 0 < state.retry_seconds <= 30
        assert stage.cluster.starts() == [START]

    play(steps)


def test_start_that_takes_too_long_has_failed(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin(start_timeout=0.1)
        stage.cluster.may_start.clear()
        state = await stage.ask()
        assert (state.state, state.start_seconds) == ("failed", 0.1)
        assert state.why.endswith("could not be started: it does not run after 100ms")

    play(steps)


@pytest.mark.parametrize("path", ["", "/nodes/pve1/lxc/101"])
@pytest.mark.parametrize("answer", [(401, "no such user"), (500, "oops"), b"garbage"])
def test_api_that_is_away_refuses_no_request(play: Play, path: str, answer: Any) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin()
        stage.cluster.answers[path] = answer
        assert (await stage.ask()).state == "unknown"
        assert (stage.cluster.starts(), stage.happened()) == ([], [])
        stage.cluster.answers.clear()
        assert (await stage.ask()).state == "running"

    play(steps)


def test_api_that_goes_away_during_a_start_refuses_no_request(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin(start_timeout=0.5)
        stage.cluster.may_start.clear()
        asked = asyncio.ensure_future(stage.ask())
        while stage.cluster.starts() == []:
            await asyncio.sleep(0.001)
        stage.cluster.close()
        assert (await asked).state == "unknown"
        assert [event for event, _ in stage.happened()] == ["machine start requested", "machine start failed"]

    play(steps)


def test_without_start_no_machine_is_reported_or_started(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin(start=False)
        assert stage.starter.states == {}
        stage.starter.ask(WEB)
        while "GET /nodes/pve1/lxc/101/status/current" not in stage.cluster.asked:
            await asyncio.sleep(0.001)
        assert stage.cluster.starts() == []

    play(steps)
