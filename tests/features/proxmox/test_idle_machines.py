"""Machines that requests have had started are stopped when no request comes any more, and no others are."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.features.gateway.process.settings import MachineState
from poolctl.features.gateway.supervision.outside_targets import Activity
from poolctl.features.proxmox import _machine_starter
from poolctl.features.proxmox.inventory import ProxmoxInventory
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import JournalEvent
from poolctl.routing.route import Route, Target
from tests.certificates import certificate
from tests.features.proxmox.cluster import ENVIRONMENT, Cluster, play_with

WEB, DB = "http://web.lan:8080", "http://db.lan:8080"
IDLE_SECONDS = 0.1


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("pve"))


class Stage:
    """An inventory with routes to the containers "web", which is stopped, and "db", which runs."""

    def __init__(self, cluster: Cluster, state_directory: Path) -> None:
        self.cluster = cluster
        self.events = Events(Clock())
        self.recorded: list[JournalEvent] = []
        self.events.subscribe(self.recorded.append)
        self.activities: dict[str, Activity] | None = {}
        self.looks = 0
        self.state_directory = state_directory
        self.inventory = self.make()

    def make(self) -> ProxmoxInventory:
        made = ProxmoxInventory(
            self.events,
            lambda: None,
            activities=self._ask,
            state_directory=str(self.state_directory),
        )
        made.follow_routes([Route(alias=url, to=(Target(url=url),)) for url in (WEB, DB)])
        return made

    async def _ask(self) -> Mapping[str, Activity] | None:
        self.looks += 1
        return self.activities

    async def begin(self, **keys: Any) -> None:
        table = self.cluster.table(refresh=3600.0, **{"idle": IDLE_SECONDS, **keys})
        self.inventory.follow(table, ENVIRONMENT)
        await until(lambda: bool(self.inventory.links))

    async def wake(self) -> MachineState:
        """The answer to a wake."""
        starter = self.inventory.starter
        answers = starter.states[WEB].answers
        starter.ask(WEB)
        await until(lambda: starter.states[WEB].answers != answers)
        return starter.states[WEB]

    async def stopped(self) -> None:
        """Return when it is stopped, and nothing is under way."""
        starter = self.inventory.starter
        await until(lambda: self.status == "stopped" and not starter.started)
        await self.settled()

    async def settled(self) -> None:
        """Return when no request to the API is under way: the loop must not end with its connection."""
        await until(lambda: all(each.work is None for each in self.inventory.starter._cases.values()))

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


Play = Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    monkeypatch.setattr(_machine_starter, "_POLL_SECONDS", 0.001)

    def play(steps: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
        play_with(pair, lambda cluster: Stage(cluster, tmp_path), steps)

    return play


def test_machine_that_a_request_has_had_started_is_stopped_when_it_is_idle(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin()
        assert (await stage.wake()).state == "running"
        await stage.stopped()
        assert stage.cluster.stops() == ["POST /nodes/pve1/lxc/101/status/shutdown"]
        assert stage.inventory.starter.states[WEB].state == "stopped"
        # The next request starts it at once: it has not stopped by itself.
        assert (await stage.wake()).state == "running"
        await stage.stopped()
        starting, stopping = (
            ["machine start requested", "machine started"],
            ["machine stop requested", "machine stopped"],
        )
        await until(lambda: len(stage.happened()) == 8)
        assert stage.happened() == [*starting, *stopping] * 2
        assert stage.cluster.guests[102]["status"] == "running", "nobody has had that one started"

    play(steps)


def test_requests_in_progress_and_new_ones_keep_it_running(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin()
        await stage.wake()
        stage.activities = {WEB: Activity(1, 1)}
        await stage.looked()
        for number in range(8):
            stage.activities = {WEB: Activity(2 + number)}
            await stage.looked(2)
        stage.activities = None  # the gateway does not answer
        await stage.looked()
        assert (stage.status, stage.cluster.stops()) == ("running", [])
        stage.activities = {WEB: Activity(9), DB: Activity(7, 7)}
        await stage.stopped()

    play(steps)


def test_request_at_the_last_moment_keeps_it_running_and_one_after_it_has_it_started_again(
    play: Play,
) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin(idle=3600.0)
        await stage.wake()
        starter = stage.inventory.starter
        states: list[str] = []

        def answering(idle: bool) -> Callable[[], Coroutine[Any, Any, bool]]:
            async def is_idle() -> bool:
                states.append(starter.states[WEB].state)
                return idle

            return is_idle

        answers = starter.states[WEB].answers
        starter.stop(101, answering(False))
        await until(lambda: starter.states[WEB].answers != answers)
        assert (states, starter.states[WEB].state, stage.cluster.stops()) == (["stopped"], "running", [])
        # Requests wait while it is being stopped.
        stage.cluster.may_stop.clear()
        starter.stop(101, answering(True))
        await until(lambda: stage.cluster.stops() != [])
        assert starter.states[WEB].state == "stopped"
        asked = asyncio.ensure_future(stage.wake())
        await asyncio.sleep(0)
        stage.cluster.may_stop.set()
        assert (await asked).state == "running"
        assert len(stage.cluster.starts()) == 2

    play(steps)


def test_next_supervisor_stops_it_and_one_that_was_started_by_others_since_is_left_alone(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin(idle=0.0)
        await stage.wake()
        stage.inventory.close()
        (saved,) = stage.state_directory.iterdir()
        started = json.loads(saved.read_text())
        assert list(started) == ["101"]
        # It was started an hour ago, and is up for ten minutes.
        saved.write_text(json.dumps({"101": time.time() - 3600}))
        stage.cluster.guests[101]["uptime"] = 600
        stage.inventory = stage.make()
        await stage.begin()
        await until(lambda: not stage.inventory.starter.started)
        await stage.settled()
        assert (stage.status, stage.cluster.stops()) == ("running", [])
        stage.inventory.close()
        saved.write_text(json.dumps({"101": time.time() - 3600, "102": "x"}))
        stage.cluster.guests[101]["uptime"] = 3590
        assert stage.make().starter.started == {}, "a file that is not understood"
        saved.write_text(json.dumps({"101": time.time() - 3600}))
        stage.inventory = stage.make()
        await stage.begin()
        await stage.stopped()

    play(steps)


def test_machine_that_others_have_stopped_is_not_ours_any_more(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin(idle=3600.0)
        await stage.wake()
        stage.cluster.guests[101]["status"] = "stopped"
        stage.inventory._due.set()
        await until(lambda: not stage.inventory.starter.started)
        stage.cluster.guests[101]["status"] = "running"
        stage.inventory.starter.stop(101, lambda: asyncio.sleep(0, True))
        assert stage.cluster.stops() == []

    play(steps)


def test_stop_that_fails_is_recorded_and_tried_again_after_the_idle_time(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin()
        await stage.wake()
        stage.cluster.fails = "VM is locked (backup)"
        await until(lambda: stage.happened().count("machine stop failed") == 2)
        assert len(stage.cluster.stops()) == 2
        assert stage.status == "running"
        failed = next(each for each in stage.recorded if each.event == "machine stop failed")
        assert failed.message == "the container 101 (web) on pve1 could not be stopped: VM is locked (backup)"
        stage.cluster.fails = ""
        await stage.stopped()

    play(steps)


def test_without_idle_none_is_stopped(play: Play) -> None:
    async def steps(stage: Stage) -> None:
        await stage.begin(idle=0.0)
        await stage.wake()
        assert stage.inventory.starter._watching is None
        # A reload that names it holds for those that run.
        await stage.begin()
        await stage.stopped()
        await until(lambda: stage.inventory.starter._watching is None)
        assert _machine_starter._LOOKS > 1

    play(steps)
