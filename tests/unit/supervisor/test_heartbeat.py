"""Heartbeats: which workers are asked, and when an unanswered one means stuck; no processes, no waits."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.core.decide import Phase
from poolctl.core.server_entry import Entry, Worker
from poolctl.runners.runner_protocol import Exit, Placement
from poolctl.supervisor.health.heartbeat import Heartbeat
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.supervisor.desk import Desk, Fixed


class Bodies:
    """Workers that answer at once, unless they are among the `dead`, the `deaf` (nothing can be sent) or the `old`.

    Those among the `idle` have not run since their answer.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answered: dict[str, int] = {}
        self.dead: set[str] = set()
        self.deaf: set[str] = set()
        self.old: set[str] = set()
        self.idle: set[str] = set()

    def beat(self, placement: Placement, asked_ns: int) -> bool:
        self.asked.append(placement.id)
        if placement.id in self.deaf:
            return False
        if placement.id not in self.dead:
            self.answered[placement.id] = asked_ns + 1000
        return True

    def beaten_ns(self, placement: Placement) -> int:
        return 0 if placement.id in self.old else self.answered.get(placement.id, 1)

    def idle_since_answer(self, placement: Placement) -> bool:
        return placement.id in self.idle


class HeartbeatScenario:
    """Servers under a heartbeat, and a clock that the test advances."""

    def __init__(self, *servers: ServerConfig) -> None:
        self.desk = Desk(*servers)
        self.bodies = Bodies()
        self.stuck: list[str] = []
        self.events: list[str] = []
        core = self.desk.core
        self.heartbeat = Heartbeat(self.bodies, core, self.desk.events, self, Fixed())
        core.listeners.add(self.heartbeat.look)
        self.desk.events.subscribe(
            lambda event: self.events.append(event.event) if event.kind == "health" else None
        )

    def notice(self, entry: Entry, worker: Worker, kind: str, seen: str) -> None:
        self.stuck.append(f"{worker.id}: {seen}")

    async def pass_by(self, seconds: float, *, step: float = 0.25) -> None:
        left = seconds
        while left > 0:
            self.desk.clock.advance(min(step, left))
            left -= step
            if self.desk.clock.monotonic() >= self.heartbeat._timer_at:
                self.heartbeat.tick()
        await turns()

    def wake(self) -> None:
        """Let time pass until its timer is due."""
        self.desk.clock.advance(max(0.0, self.heartbeat._timer_at - self.desk.clock.monotonic()))
        self.heartbeat.tick()

    def asked(self) -> list[str]:
        found, self.bodies.asked = self.bodies.asked, []
        return found


async def begun(*servers: ServerConfig) -> HeartbeatScenario:
    it = HeartbeatScenario(*servers)
    await it.desk.ask("start")
    await turns()
    return it


def thousand() -> HeartbeatScenario:
    """A server of a thousand ready workers."""
    it = HeartbeatScenario()
    it.heartbeat._chance = Random(1)
    entry = Entry(web(workers=1000))
    for n in range(1000):
        placement = Placement.of("web", 1, n)
        entry.observed.workers[placement.id] = Worker(placement.id, 1, n, entry.config, placement=placement)
        entry.observed.workers[placement.id].phase = Phase.READY
    it.heartbeat.look(entry)
    return it


def slow(workers: int = 1, **recovery: Any) -> ServerConfig:
    return web(workers=workers, recovery={"heartbeat": 5, "stuck_after": 15} | recovery)


def test_each_ready_worker_is_asked_once_an_interval() -> None:
    async def scenario() -> None:
        it = await begun(web("a", workers=2), web("b"), web("c", command=["sleep", "{port}"], app=None))
        await it.pass_by(51)
        asked = it.asked()
        assert sorted(set(asked)) == ["a.1.0", "a.1.1", "b.1.0"]
        assert 9 <= asked.count("b.1.0") <= 12
        assert it.stuck == []

    run(scenario())


def test_one_that_does_not_answer_is_found_and_not_asked_again() -> None:
    async def scenario() -> None:
        it = await begun(slow())
        await it.pass_by(10)
        it.bodies.dead.add("web.1.0")
        it.asked()
        await it.pass_by(15)
        assert it.stuck == [], "it may have answered a moment before"
        await it.pass_by(6)
        assert it.stuck == ["web.1.0: the event loop of worker web.1.0 (pid 1001) has been stuck for 15s"]
        await it.pass_by(600)
        assert it.asked() == ["web.1.0"], "nothing piles up"
        assert len(it.stuck) == 1
        assert it.desk.core.entries["web"].observed.workers["web.1.0"].stuck

    run(scenario())


def test_a_server_with_a_stuck_worker_is_not_well() -> None:
    async def scenario() -> None:
        it = await begun(slow(workers=2))
        entry = it.desk.core.entries["web"]
        assert (entry.health, entry.ready) == ("ok", True)
        seen: list[str] = []
        it.desk.core.listeners.add(lambda entry: seen.append(entry.health))
        for worker, health, ready in (("web.1.0", "warn", True), ("web.1.1", "ko", False)):
            it.bodies.dead.add(worker)
            await it.pass_by(30)
            assert (entry.health, entry.ready) == (health, ready)
        assert seen == ["warn", "ko"]

    run(scenario())


def test_one_that_answers_late_is_well_again() -> None:
    async def scenario() -> None:
        it = await begun(slow())
        it.bodies.dead.add("web.1.0")
        await it.pass_by(30)
        it.bodies.answered["web.1.0"] = int(it.desk.clock.monotonic() * 1e9)
        it.bodies.dead.clear()
        await it.pass_by(6)
        it.desk.events.flush()
        assert it.events == ["heartbeat lost", "ko", "heartbeat back", "ok"]
        assert not it.desk.core.entries["web"].observed.workers["web.1.0"].stuck

    run(scenario())


def test_a_worker_that_knows_of_no_heartbeat_is_not_stuck() -> None:
    async def scenario() -> None:
        it = await begun(slow())
        it.bodies.old.add("web.1.0")
        it.bodies.dead.add("web.1.0")
        await it.pass_by(600)
        assert (it.asked(), it.stuck) == ([], [])

    run(scenario())


def test_a_full_socket_is_no_question() -> None:
    async def scenario() -> None:
        it = await begun(slow())
        it.bodies.deaf.add("web.1.0")
        await it.pass_by(100)
        assert len(it.asked()) >= 19, "it is tried again"
        assert it.stuck == []

    run(scenario())


def test_pause_of_the_supervisor_is_no_silence_of_workers() -> None:
    async def scenario() -> None:
        it = await begun(slow())
        await it.pass_by(10)
        it.bodies.dead.add("web.1.0")
        await it.pass_by(6)
        await it.pass_by(3600, step=3600)
        assert it.stuck == []
        await it.pass_by(16)
        assert len(it.stuck) == 1, "but then it has had its time"

    run(scenario())


def test_without_an_interval_no_worker_is_probed_until_a_reload_sets_one() -> None:
    async def scenario() -> None:
        it = await begun(slow(heartbeat=0))
        await it.pass_by(60)
        assert it.asked() == []
        for interval, some in ((5, True), (0, False)):
            it.desk.files.written = [slow(heartbeat=interval)]
            assert (await it.desk.ask("reload"))["exit_code"] == 0
            await it.pass_by(6)
            it.asked()
            await it.pass_by(60)
            assert bool(it.asked()) is some

    run(scenario())


def test_worker_that_has_ended_is_probed_no_more() -> None:
    async def scenario() -> None:
        it = await begun(web())
        await it.pass_by(10)
        await it.desk.ask("restart")
        await it.pass_by(6)
        it.asked()
        await it.pass_by(30)
        assert set(it.asked()) == {"web.2.0"}
        await it.desk.ask("stop", "web")
        await it.pass_by(30)
        assert it.asked() == []
        assert it.heartbeat._timer is None, "nothing ticks"

    run(scenario())


def test_one_that_has_come_in_the_place_of_another_is_asked_as_well() -> None:
    async def scenario() -> None:
        it = await begun(web(restart="on-failure"))
        await it.pass_by(10)
        it.desk.runner.end("web.1.0", Exit.from_signal(9))
        await turns(40)
        it.asked()
        await it.pass_by(12)
        assert len(it.asked()) >= 2

    run(scenario())


def test_idle_worker_is_not_asked_until_it_runs_again() -> None:
    async def scenario() -> None:
        it = await begun(slow())
        await it.pass_by(10)
        it.bodies.idle.add("web.1.0")
        it.asked()
        await it.pass_by(600)
        assert (it.asked(), it.stuck) == ([], [])
        it.bodies.idle.clear()
        await it.pass_by(6)
        assert it.asked(), "it has work again"

    run(scenario())


def test_worker_that_hangs_after_it_was_idle_is_found_in_time() -> None:
    async def scenario() -> None:
        it = await begun(slow())
        it.bodies.idle.add("web.1.0")
        await it.pass_by(60)
        it.bodies.idle.clear()
        it.bodies.dead.add("web.1.0")
        await it.pass_by(5 + 15 + 1)
        assert len(it.stuck) == 1

    run(scenario())


def test_idle_look_of_an_unanswered_worker_counts_for_nothing() -> None:
    async def scenario() -> None:
        it = await begun(slow())
        await it.pass_by(10)
        it.bodies.dead.add("web.1.0")
        await it.pass_by(6)
        it.bodies.idle.add("web.1.0")
        await it.pass_by(21)
        assert len(it.stuck) == 1, (
            "a question that it does not read is a hung loop, wherever the kernel sees it"
        )

    run(scenario())


def test_idle_workers_are_checked_in_one_waking_an_interval() -> None:
    async def scenario() -> None:
        it = thousand()
        it.bodies.idle.update(Placement.of("web", 1, n).id for n in range(1000))
        for _ in range(50):
            it.wake()
        at = it.desk.clock.monotonic()
        for _ in range(20):
            it.wake()
        assert it.desk.clock.monotonic() - at == pytest.approx(20 * 5)

    run(scenario())


def test_workers_that_have_work_again_at_one_moment_are_spread() -> None:
    async def scenario() -> None:
        it = thousand()
        it.bodies.idle.update(Placement.of("web", 1, n).id for n in range(1000))
        for _ in range(50):
            it.wake()
        it.bodies.idle.clear()
        it.asked()
        it.wake()
        assert len(it.asked()) == 1000
        most = 0
        for _ in range(100):
            it.wake()
            most = max(most, len(it.asked()))
        assert most < 300

    run(scenario())


def test_a_thousand_are_asked_in_a_few_wakings_a_second() -> None:
    async def scenario() -> None:
        it = thousand()
        wakings = 0
        for _ in range(200):
            it.wake()
            wakings += 1
            if it.desk.clock.monotonic() > 25:
                break
        assert len(it.asked()) >= 4000
        assert wakings <= 25 * 4 + 4

    run(scenario())
