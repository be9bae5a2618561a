"""A server with triggers in a supervisor: its decisions are made, reported, overridden and handed to a successor."""

from __future__ import annotations

import os
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.control.answers import SupervisorIdentity
from poolctl.core.server_entry import Entry, record_of, restore
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.features.scaling._triggers import Part
from poolctl.features.scaling.autoscaler import INTERVAL_SECONDS, Autoscaler, LoadSampler
from poolctl.json_form import from_json
from poolctl.monitor.journal import JournalEvent
from poolctl.runners.local.tallies import Tallies
from poolctl.runners.local.tally_page import Tally
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEventHandler
from poolctl.supervisor.observers.event_recorder import EventRecorder
from poolctl.worker import tally
from tests.unit.core.ordered_core import turns, web
from tests.unit.supervisor.desk import Desk, part_context


class Load:
    """What the workers count together; all of it is spread evenly."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.in_flight = self.backlog = self.samples = 0
        desk.runner.counts, desk.runner.queued_connections = self.counts, self.queued_connections

    def counts(self, placement: Placement) -> tally.Counts:
        self.samples += 1
        mine = [each for each in sorted(self._desk.runner.running) if each.startswith(f"{placement.server}.")]
        share, rest = divmod(self.in_flight, len(mine))
        counts = [0] * tally.COUNTED
        counts[tally.STARTED] = share + (mine.index(placement.id) < rest)
        return counts

    def queued_connections(self, server: ServerConfig) -> int:
        return self.backlog


class Stage:
    def __init__(self, *servers: ServerConfig) -> None:
        self.desk = Desk(*servers)
        self.load = Load(self.desk)
        self.events: list[JournalEvent] = []
        self.desk.events.subscribe(self.events.append)
        EventRecorder(self.desk.core, self.desk.events).record_start_and_observe(
            0, from_json(SupervisorIdentity, {"keeper_pid": 1})
        )
        self.scaling = autoscaler(self.desk)
        self.web = self.desk.core.entries["web"]

    async def pass_time(
        self, seconds: float, in_flight: int | None = None, backlog: int | None = None
    ) -> None:
        """Let time pass with this load, sample by sample."""
        self.load.in_flight = self.load.in_flight if in_flight is None else in_flight
        self.load.backlog = self.load.backlog if backlog is None else backlog
        for _ in range(int(seconds / INTERVAL_SECONDS)):
            self.desk.clock.advance(INTERVAL_SECONDS)
            self.scaling.tick()
            await turns(8)

    def recorded(self, event: str = "workers") -> list[JournalEvent]:
        self.desk.events.flush()
        return [each for each in self.events if each.kind == "scale" and each.event == event]


def autoscaler(desk: Desk) -> Autoscaler:
    return Autoscaler(part_context(desk.core, desk.events))


@asynccontextmanager
async def stage(*servers: ServerConfig) -> AsyncIterator[Stage]:
    found = Stage(*servers)
    try:
        yield found
    finally:
        await found.scaling.aclose()


def scaled(name: str = "web", **keys: Any) -> ServerConfig:
    scale = {"max": 4, "triggers": {"in_flight": 10}, "cooldown": {"up": 5, "down": 20}} | keys
    return web(name, scale=scale)


async def test_load_changes_the_number_of_workers_and_each_decision_is_an_event() -> None:
    async with stage(scaled()) as the:
        await the.desk.ask("start")
        await the.pass_time(2, in_flight=25)
        assert (the.web.size, len(the.desk.runner.running)) == (3, 3)
        (event,) = the.recorded()
        assert (event.before, event.after, event.cause) == (
            1,
            3,
            "in_flight is 25 for each worker, above 10",
        )
        assert event.detail["trigger"] == "in_flight"
        assert (event.detail["value"], event.detail["target"], event.detail["window_seconds"]) == (
            25,
            10,
            1,
        )
        assert event.by is None
        await the.pass_time(60, in_flight=0)
        assert the.web.size == 1
        assert [(each.before, each.after) for each in the.recorded()] == [(1, 3), (3, 2), (2, 1)]
        assert the.recorded()[1].cause.endswith(" for each worker, under 10")


async def test_autoscaler_that_is_closed_takes_no_samples() -> None:
    async with stage(scaled()) as the:
        await the.desk.ask("start")
        await the.pass_time(1)
        samples = the.load.samples
        assert samples > 0
        await the.scaling.aclose()
        await the.desk.ask("restart")
        await the.pass_time(2, in_flight=25)
        assert (the.web.size, the.recorded(), the.load.samples) == (1, [], samples)


async def test_servers_beyond_the_first_batch_are_scaled_too() -> None:
    names = ["web", *("a" * length for length in range(1, 65))]
    async with stage(*(scaled(name) for name in names)) as the:
        await the.desk.ask("start")
        await the.pass_time(2, in_flight=25)
        assert {the.desk.core.entries[name].size for name in names} == {3}


async def test_the_largest_number_is_kept_and_reported_once() -> None:
    async with stage(scaled()) as the:
        await the.desk.ask("start")
        await the.pass_time(40, in_flight=500)
        assert the.web.size == 4
        (event,) = the.recorded("at maximum")
        assert (event.before, event.after, event.detail["severity"]) == (4, 4, "warning")


async def test_more_workers_than_open_files_allow_are_refused_once_until_the_limit_is_higher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with stage(scaled()) as the:
        await the.desk.ask("start")
        limits = [1]
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[0], limits[0]))
        await the.pass_time(30, in_flight=25)
        (event,) = the.recorded("refused")
        assert (the.web.size, event.before, event.after, event.detail["severity"]) == (1, 1, 3, "warning")
        assert "open files" in event.message
        assert (event.server, event.detail["bind"], event.detail["trigger"]) == (
            "web",
            the.web.config.key,
            "in_flight",
        )
        limits[0] = 1_000_000
        await the.pass_time(10, in_flight=25)
        assert the.web.size == 3
        limits[0] = 1
        await the.pass_time(30, in_flight=200)
        assert (the.web.size, len(the.recorded("refused"))) == (3, 2)


async def test_scale_overrides_the_triggers_until_auto_gives_the_number_back() -> None:
    async with stage(scaled()) as the:
        await the.desk.ask("start")
        await the.desk.ask("scale", "web", workers=1)
        await the.pass_time(10, in_flight=25)
        assert (the.web.size, the.web.scales) == (1, False)
        await the.desk.ask("scale", "web", workers=2)
        answer = await the.desk.ask("scale", "web", auto=True)
        assert (answer["exit_code"], answer["items"][0]["workers"]) == (0, 2)
        await the.pass_time(2)
        assert the.web.size == 3


async def test_auto_for_a_server_without_triggers_is_refused() -> None:
    desk = Desk(web())
    await desk.ask("start")
    await desk.ask("scale", "web", workers=2)
    answer = await desk.ask("scale", "web", auto=True)
    assert (answer["exit_code"], answer["items"]) == (1, [])
    assert "has no triggers" in answer["errors"][0]["message"]
    assert desk.core.entries["web"].size == 2


async def test_reload_keeps_the_number_within_the_new_bounds() -> None:
    async with stage(scaled()) as the:
        await the.desk.ask("start")
        await the.pass_time(2, in_flight=25)
        the.desk.files.written = [scaled(max=2)]
        await the.desk.ask("reload")
        assert the.web.size == 2
        the.desk.files.written = [scaled(min=4, max=8)]
        await the.desk.ask("reload")
        assert the.web.size == 4
        # A number that a command had set is where the triggers continue.
        await the.desk.ask("scale", "web", workers=6)
        answer = await the.desk.ask("reload")
        assert answer["changes"][0]["message"] == "workers: 6 by scale, triggers in the file"
        assert the.web.size == 6
        the.desk.files.written = [web()]
        await the.desk.ask("reload")
        assert the.web.size == 1


async def test_the_next_supervisor_continues_with_the_number() -> None:
    async with stage(scaled()) as the:
        await the.desk.ask("start")
        await the.pass_time(2, in_flight=25)
        successor = Desk(scaled()).core.entries["web"]
        restore(successor, record_of(the.web))
        assert successor.size == 3
        await the.desk.ask("stop", "web")
        assert the.web.size == 1


async def test_a_server_in_backoff_gets_no_more_workers() -> None:
    async with stage(scaled().replace(restart={"policy": "always", "backoff": {"initial": 60}})) as the:
        await the.desk.ask("start")
        await the.pass_time(5, in_flight=5)
        for _ in range(2):
            for worker in list(the.desk.runner.running):
                the.desk.runner.end(worker, Exit.from_returncode(1))
            await turns()
        assert the.web.state == "backoff"
        await the.pass_time(5, in_flight=100, backlog=100)
        assert the.web.size == 1


async def test_demand_wakes_a_sleeping_server_and_counts_as_its_queue() -> None:
    async with stage(scaled(min=0, triggers={"queue": 5})) as the:
        await the.desk.ask("start")
        await turns()
        assert the.web.state == "sleeping"
        assert the.desk.core.wake_for_requests("web", 15) == 1
        await turns()
        assert the.web.state == "running"
        await the.pass_time(3)
        assert the.web.size == 3
        await the.desk.ask("stop", "web")
        assert the.desk.core.wake_for_requests("web", 15) == 0


async def test_demand_of_a_server_without_triggers_only_wakes_it() -> None:
    async with stage(web(scale={"min": 0})) as the:
        await the.desk.ask("start")
        assert the.desk.core.wake_for_requests("web", 15) == 1
        await turns()
        assert (the.web.state, the.web.observed.demand) == ("running", 0)


class Pages:
    """Workers of one server, each with a page that the test writes."""

    def __init__(self) -> None:
        self.entry = Entry(web())
        self.workers: dict[str, Any] = {}
        self.written: dict[str, memoryview] = {}
        keeper: Any = None
        tallies = Tallies(keeper, self.workers, RunnerEventHandler)
        self.runner: Any = SimpleNamespace(counts=tallies.counts)

    def add(self, phase: WorkerPhase = WorkerPhase.READY) -> str:
        placement = Placement.of("web", 1, len(self.workers), pid=os.getpid())
        page = Tally.new()
        self.workers[placement.id] = SimpleNamespace(tally=page)
        self.written[placement.id] = tally.map_page(page.fileno())
        config = self.entry.config
        self.entry.observed.workers[placement.id] = Worker(
            placement.id, 1, placement.index, config, phase=phase, placement=placement
        )
        return placement.id

    def count(self, worker: str, started: int, answered: int, bucket: int = 3) -> None:
        self.written[worker][tally.STARTED] += started
        self.written[worker][tally.BUCKETS + bucket] += answered


@pytest.fixture
def pages() -> Iterator[Pages]:
    found = Pages()
    yield found
    for worker in found.workers.values():
        worker.tally.close()


def test_a_sample_has_the_requests_since_the_one_before_over_all_ready_workers(pages: Pages) -> None:
    first, second, starting = pages.add(), pages.add(), pages.add(WorkerPhase.STARTING)
    load = LoadSampler(pages.runner, ["in_flight", "requests_per_second", "p99"], 10.0)
    # An adopted worker has counted before: those are no new requests.
    pages.count(first, started=1000, answered=995)
    sample = load.sample(pages.entry, 10.25)
    assert (sample.ready, sample.serves) == (2, True)
    assert sample.figures == {"in_flight": Part(5), "requests_per_second": Part(0, 0.25), "p99": ()}
    pages.count(first, started=4, answered=6)
    pages.count(second, started=2, answered=1, bucket=7)
    pages.count(starting, started=9, answered=9)
    sample = load.sample(pages.entry, 10.75)
    responses = sample.figures["p99"]
    assert (sample.figures["in_flight"], sample.figures["requests_per_second"]) == (Part(4), Part(6, 0.5))
    assert (responses[3], responses[7], sum(responses)) == (6, 1, 7)
    del pages.entry.observed.workers[first]
    sample = load.sample(pages.entry, 11.0)
    assert (sample.ready, sample.figures["in_flight"]) == (1, Part(1))
    assert sample.figures["requests_per_second"] == Part(0, 0.25)


def test_unhealthy_workers_serve_nothing(pages: Pages) -> None:
    pages.entry.observed.workers[pages.add()].stuck = True
    assert not LoadSampler(pages.runner, ["in_flight"], 0.0).sample(pages.entry, 1.0).serves
