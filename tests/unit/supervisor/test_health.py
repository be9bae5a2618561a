"""Recovery of unhealthy workers in a core without processes: stops, replacements and reports."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig
from poolctl.clock import Clock
from poolctl.config import Recovery, RecoveryBackoff
from poolctl.config.model.server_tables import RecoveryStrategy
from poolctl.core.server_entry import Entry
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.runners.process_usage import Usage
from poolctl.runners.runner_protocol import Exit, Placement
from poolctl.runners.stack_report import Frame, ThreadStack, WorkerStacks
from poolctl.states import Status
from poolctl.supervisor.health import HeartbeatMonitor, MemoryLimit, watch_health
from poolctl.supervisor.worker_recovery import (
    HEARTBEAT,
    LIVENESS,
    MEMORY,
    Decision,
    RecoverySituation,
    RecoveryStep,
    WorkerRecovery,
    decide,
    outcome_text,
    within,
)
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER, ScriptedUsages, SlowRunner
from tests.virtual_loop import SameThread, VirtualLoop, run_in_virtual_time

from .desk import Desk

QUICK: dict[str, Any] = {"backoff": {"initial": 10, "max": 10, "jitter": 0}, "limit": 2, "window": 100}
POLICY = Recovery(limit=3, window=100, backoff=RecoveryBackoff(initial=10, max=20, jitter=0))


@pytest.fixture(autouse=True)
def _middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chance is always in the middle."""
    monkeypatch.setattr(random, "random", lambda: 0.5)
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)


class RecoveryScenario:
    """A desk whose servers are recovered, and the reports of it."""

    def __init__(self, *servers: ServerConfig, runner: SlowRunner | None = None, **script: str) -> None:
        self.desk = Desk(*servers, runner=runner, **script)
        self.core = self.desk.core
        self.recovery = WorkerRecovery(self.core, self.desk.events)
        self.reports: list[dict[str, Any]] = []
        self.desk.events.subscribe(
            lambda event: self.reports.append(event.to_json()) if event.kind == "recovery" else None
        )

    @property
    def entry(self) -> Entry:
        return next(iter(self.core.entries.values()))

    def worker(self, name: str) -> Worker:
        return self.entry.observed.workers[name]

    async def make_unhealthy(self, *names: str, kind: str = LIVENESS) -> None:
        for name in names:
            self.recovery.report_worker_problem(self.entry, self.worker(name), kind, f"{name} is not well")
        await turns(40)

    async def pass_by(self, seconds: float) -> None:
        self.desk.clock.advance(seconds)
        self.recovery.update_recovery(self.entry)
        await turns(40)

    def outcomes(self) -> list[str]:
        self.desk.events.flush()
        return [report["outcome"] for report in self.reports]

    def placed(self) -> list[str]:
        """The placed and stopped workers since the last call."""
        log = [line.split()[:2] for line in self.desk.runner.log]
        steps = [" ".join(line) for line in log if line[0] in ("place", "stop", "drain")]
        self.desk.runner.log.clear()
        return steps


def ward(strategy: str, **keys: Any) -> RecoveryScenario:
    return RecoveryScenario(web(recovery=QUICK | {"strategy": strategy}, **keys))


async def started(scenario: RecoveryScenario) -> RecoveryScenario:
    await scenario.desk.ask("start")
    scenario.placed()
    return scenario


@pytest.mark.parametrize("kind", [LIVENESS, MEMORY])
async def test_replace_leaves_the_workers_that_have_no_problem(kind: str) -> None:
    it = await started(ward("replace", workers=3))
    await it.make_unhealthy("web.1.1", kind=kind)
    assert set(it.desk.runner.running) == {"web.1.0", "web.2.1", "web.1.2"}
    assert it.outcomes() == ["recovered"]


async def test_a_replacement_that_does_not_become_ready_leaves_the_old_one_and_is_retried() -> None:
    it = await started(ward("replace"))
    it.desk.runner.script["web"] = FAILS
    await it.make_unhealthy("web.1.0")
    assert set(it.desk.runner.running) == {"web.1.0"}
    assert it.outcomes() == ["failed"]
    assert "before it was ready" in it.reports[0]["message"]
    assert it.desk.states() == {"web": "running"}
    it.placed()
    await it.pass_by(5)
    assert it.placed() == [], "not before its time"
    del it.desk.runner.script["web"]
    await it.pass_by(6)
    assert it.outcomes() == ["failed", "recovered"]


async def test_a_stuck_worker_is_stopped_and_not_drained() -> None:
    it = await started(ward("replace"))
    it.worker("web.1.0").stuck = True
    await it.make_unhealthy("web.1.0", kind=HEARTBEAT)
    assert it.placed() == ["place web.2.0", "stop web.1.0"]


@pytest.mark.parametrize("strategy", ["restart", "replace", "disable"])
@pytest.mark.parametrize(("kind", "limit"), [(HEARTBEAT, "1"), (LIVENESS, "10")])
async def test_stuck_worker_gets_one_second_to_end_and_an_unhealthy_one_its_stop_timeout(
    strategy: str, kind: str, limit: str
) -> None:
    it = await started(ward(strategy))
    it.worker("web.1.0").stuck = kind == HEARTBEAT
    it.desk.runner.log.clear()
    await it.make_unhealthy("web.1.0", kind=kind)
    assert f"stop web.1.0 {limit}" in it.desk.runner.log


async def test_the_last_ready_worker_stays_while_none_can_take_its_place() -> None:
    it = await started(ward("restart", workers=3, restart="on-failure"))
    it.desk.runner.script["web"] = NEVER
    await it.make_unhealthy("web.1.0", "web.1.1", "web.1.2")
    assert it.desk.states() == {"web": "running"}
    ready = [worker.id for worker in it.entry.observed.workers.values() if worker.phase == "ready"]
    for _ in range(5):
        await it.pass_by(60)
    assert ready
    assert set(ready) <= set(it.desk.runner.running)


async def test_a_replacement_that_dies_again_and_again_does_not_make_the_others_fail() -> None:
    policy = {"policy": "on-failure", "limit": 1, "backoff": {"initial": 0, "max": 0, "jitter": 0}}
    it = await started(ward("restart", workers=2, restart=policy))
    it.desk.runner.script["web.1.0"] = NEVER
    await it.make_unhealthy("web.1.0")
    for _ in range(4):
        assert "web.1.0" in it.desk.runner.running
        it.desk.runner.end("web.1.0", Exit.from_returncode(1))
        await turns(40)
    assert it.desk.states() == {"web": "running"}
    assert "web.1.1" in it.desk.runner.running


async def test_each_worker_has_a_limit_of_its_own() -> None:
    it = await started(ward("restart", workers=4))
    for name in ("web.1.0", "web.1.1", "web.1.2", "web.1.3"):
        await it.make_unhealthy(name)
    assert it.outcomes() == ["recovered"] * 4, "none of them had been recovered before"
    await it.make_unhealthy("web.1.0")
    assert it.outcomes() == ["recovered"] * 4, "this one was, a moment ago"
    assert set(it.entry.observed.recoveries) == {"0", "1", "2", "3"}
    await it.pass_by(11)
    assert it.outcomes() == ["recovered"] * 5
    await it.pass_by(200)
    await it.make_unhealthy("web.1.1")
    assert set(it.entry.observed.recoveries) == {"1"}, "what counts no more is forgotten"


async def test_failing_workers_are_taken_out_together_except_one() -> None:
    it = await started(ward("restart", workers=4))
    it.desk.runner.may_end.clear()
    await it.make_unhealthy("web.1.3")
    await it.make_unhealthy("web.1.0", "web.1.1", "web.1.2")
    workers = it.entry.observed.workers.values()
    assert [worker.id for worker in workers if worker.phase == "stopping"] == ["web.1.3"]
    it.desk.runner.script["web.1.3"] = NEVER
    it.desk.runner.may_end.set()
    await turns(40)
    ready = [worker.id for worker in it.entry.observed.workers.values() if worker.phase == "ready"]
    assert ready == ["web.1.0", "web.1.1", "web.1.2"], (
        "while the first has not come back, they serve as they can"
    )


async def test_disable_stops_it_and_what_depends_on_it() -> None:
    it = RecoveryScenario(web("db", recovery="disable"), web("api", depends_on=["db"]))
    await it.desk.ask("start")
    await it.make_unhealthy("db.1.0")
    assert it.desk.states() == {"db": "disabled", "api": "stopped"}
    assert it.outcomes() == ["disabled"]
    assert (await it.desk.ask("enable", "db"))["exit_code"] == 0
    assert it.desk.states()["db"] == "running"


@pytest.mark.parametrize(("strategy", "outcomes"), [("notify", ["notified"]), ("none", [])])
async def test_recovery_by_notification_or_none_replaces_no_worker(
    strategy: str, outcomes: list[str]
) -> None:
    it = await started(ward(strategy))
    await it.make_unhealthy("web.1.0")
    await it.make_unhealthy("web.1.0")
    assert (it.placed(), it.outcomes()) == ([], outcomes)


async def test_a_worker_that_is_too_large_is_replaced_whatever_the_strategy() -> None:
    it = await started(ward("none"))
    await it.make_unhealthy("web.1.0", kind=MEMORY)
    assert it.placed()[0] == "place web.2.0"
    assert it.outcomes() == ["recovered"]
    assert it.entry.observed.restarts == 0, "no failure"


async def test_a_worker_that_is_well_again_is_left_alone() -> None:
    it = await started(ward("restart"))
    it.entry.observed.recoveries = {"0": [it.desk.clock.monotonic()]}
    it.worker("web.1.0").stuck = True
    await it.make_unhealthy("web.1.0", kind=HEARTBEAT)
    assert it.placed() == [], "it waits for its turn"
    it.worker("web.1.0").stuck = False
    await it.pass_by(60)
    assert (it.placed(), it.outcomes()) == ([], [])


async def test_a_server_that_is_stopped_meanwhile_is_recovered_no_further() -> None:
    it = await started(ward("restart"))
    it.desk.runner.may_end.clear()
    await it.make_unhealthy("web.1.0")
    stopping = it.desk.begin("stop", "web")
    await turns()
    it.desk.runner.may_end.set()
    await stopping
    assert it.outcomes() == ["interrupted"]
    assert it.desk.states() == {"web": "stopped"}


STACKS = WorkerStacks(
    name="web",
    worker="web.1.0",
    pid=7,
    source="python",
    place="pay (shop.py:1)",
    threads=(
        ThreadStack(name="MainThread", main=True, frames=(Frame(function="f", file="f.py", line=1),) * 99),
    ),
)


class AskedRunner(SlowRunner):
    """Gives the stacks of its workers when `may_answer` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()
        self.fails = False

    async def stacks(self, worker: str, seconds: float) -> WorkerStacks:
        self.log.append(f"stacks {worker}")
        await self.may_answer.wait()
        if self.fails:
            raise OSError("no")
        return replace(STACKS, worker=worker)


async def asked() -> tuple[RecoveryScenario, AskedRunner]:
    runner = AskedRunner()
    config = web(recovery=QUICK | {"strategy": "restart"})
    return await started(RecoveryScenario(config, runner=runner)), runner


async def test_stacks_are_taken_before_a_hung_worker_is_ended_and_are_in_its_report() -> None:
    it, runner = await asked()
    it.entry.observed.workers["web.1.0"].stuck = True
    await it.make_unhealthy("web.1.0", kind=HEARTBEAT)
    assert runner.log == ["stacks web.1.0"], "it is not ended before they are there"
    runner.may_answer.set()
    await turns(40)
    assert it.placed() == ["stop web.1.0", "place web.1.0"]
    assert it.outcomes() == ["recovered"]
    (report,) = it.reports
    assert report["message"].startswith("web.1.0 is not well, in pay (shop.py:1): restarted")
    assert report["seen"] == ["web.1.0 is not well"]
    (stacks,) = report["stacks"]
    assert len(stacks["threads"][0]["frames"]) == 20, "it is bounded"
    (shown,) = (await it.desk.ask("show", "web"))["items"]
    assert shown["stacks"] == stacks


async def test_hung_worker_is_recovered_without_stacks_if_there_are_none_in_time() -> None:
    it, runner = await asked()
    await it.make_unhealthy("web.1.0")
    while not it.reports:
        await asyncio.sleep(0.001)
        it.desk.events.flush()
    runner.fails = True
    runner.may_answer.set()
    await it.pass_by(50)
    await it.make_unhealthy("web.1.0")
    assert it.outcomes() == ["recovered", "recovered"]
    assert all("stacks" not in report for report in it.reports)


async def test_worker_that_answers_again_while_its_stacks_are_taken_is_left_alone() -> None:
    it, runner = await asked()
    it.entry.observed.workers["web.1.0"].stuck = True
    await it.make_unhealthy("web.1.0", kind=HEARTBEAT)
    it.entry.observed.workers["web.1.0"].stuck = False
    runner.may_answer.set()
    await turns(40)
    assert (it.placed(), it.outcomes()) == ([], [])


async def test_worker_that_hangs_again_while_its_stacks_are_taken_is_recovered() -> None:
    it, runner = await asked()
    worker = it.entry.observed.workers["web.1.0"]
    for stuck in (True, False, True):
        worker.stuck = stuck
        if stuck:
            await it.make_unhealthy("web.1.0", kind=HEARTBEAT)
        else:
            it.recovery.update_recovery(it.entry)
    assert runner.log == ["stacks web.1.0"] * 2
    runner.may_answer.set()
    await turns(40)
    assert (it.placed(), it.outcomes()) == (["stop web.1.0", "place web.1.0"], ["recovered"])


async def test_worker_that_is_not_ready_in_time_leaves_its_stacks() -> None:
    runner = AskedRunner()
    runner.script["web"] = NEVER
    runner.may_answer.set()
    it = Desk(web(start_timeout="10ms"), runner=runner)
    events: list[Any] = []
    it.events.subscribe(lambda event: events.append(event) if event.event == "start timed out" else None)
    (error,) = (await it.ask("start"))["errors"]
    assert error["message"].startswith("was not ready within 10ms, in pay (shop.py:1)")
    it.events.flush()
    (event,) = events
    assert event.sentence == "worker web.1.0 was not ready within 10ms, in pay (shop.py:1)"
    assert event.detail["stacks"][0]["worker"] == "web.1.0"
    assert runner.log.index("stacks web.1.0") < runner.log.index("stop web.1.0 0")


MIB = 1024 * 1024


class MemoryScenario:
    """Servers with memory limits, whose workers' memory is in `usages`."""

    def __init__(self, **keys: Any) -> None:
        self.desk = Desk(web(**keys), web("other"))
        self.usages = ScriptedUsages()
        self.reported: list[str] = []
        self.limit = MemoryLimit(self.usages, self)  # type: ignore[arg-type]
        self.desk.core.observers.add(self.limit.entry_changed)

    def report_worker_problem(self, entry: Entry, worker: Worker, kind: str, description: str) -> None:
        self.reported.append(f"{kind}: {description}")

    async def measure(self, size: int | None) -> list[str]:
        """Measure workers that use this much memory; return what is reported."""
        self.usages.figures = {1001: Usage(size)}
        self.reported.clear()
        await self.limit.measure_and_report()
        return self.reported


async def begun(**keys: Any) -> MemoryScenario:
    it = MemoryScenario(**keys)
    await it.desk.ask("start")
    await turns()
    return it


async def test_worker_above_its_memory_limit_is_reported_and_one_of_unknown_memory_is_not() -> None:
    it = await begun(limits={"memory": "100MiB"})
    assert await it.measure(100 * MIB) == []
    assert await it.measure(None) == []
    assert await it.measure(101 * MIB) == [
        "memory: worker web.1.0 (pid 1001) uses 101MiB, and limits.memory is 100MiB"
    ]
    assert it.usages.requested == [[1001]] * 3


async def test_worker_that_has_ended_when_its_memory_is_known_is_not_reported() -> None:
    it = await begun(limits={"memory": 1})
    await it.desk.ask("stop", "web")
    assert await it.measure(MIB) == []


async def test_a_reload_brings_a_memory_limit_and_takes_it_away() -> None:
    it = await begun()
    for limits, count in (({"memory": "1GiB"}, 0), ({"memory": "1MiB"}, 1), ({}, 0)):
        it.desk.files.written = [web(limits=limits), web("other")]
        assert (await it.desk.ask("reload"))["exit_code"] == 0
        assert len(await it.measure(2 * MIB)) == count


@pytest.mark.parametrize(
    ("outcome", "seconds", "said"),
    [
        ("recovered", 2.04, "restarted within 2.0 s"),
        ("recovered", 1.0, "restarted within 1.0 s"),
        ("recovered", 0.9994, "restarted within 999 ms"),
        ("notified", 1.0, ""),
        ("disabled", 1.0, "restarted"),
        ("given up", 1.0, "recovered too often, left as it is"),
        ("failed", 1.0, "could not be restarted"),
        ("overtaken", 1.0, "was being restarted"),
    ],
)
def test_outcome_of_a_recovery_is_a_sentence(outcome: str, seconds: float, said: str) -> None:
    assert outcome_text(outcome, "restarted", seconds) == said


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

    def request_beat(self, placement: Placement, asked_ns: int) -> bool:
        self.asked.append(placement.id)
        if placement.id in self.deaf:
            return False
        if placement.id not in self.dead:
            self.answered[placement.id] = asked_ns + 1000
        return True

    def last_beat_ns(self, placement: Placement) -> int:
        return 0 if placement.id in self.old else self.answered.get(placement.id, 1)

    def idle_since_answer(self, placement: Placement) -> bool:
        return placement.id in self.idle


class LoopClock(Clock):
    """The time of the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return 1_700_000_000.0 + self._loop.time()


virtual = pytest.mark.loop(run=run_in_virtual_time)


class HeartbeatScenario:
    """Servers under a heartbeat, on a loop whose time passes at once."""

    def __init__(self, *servers: ServerConfig) -> None:
        self.desk = Desk(*servers, clock=LoopClock())
        self.bodies = bodies = Bodies()
        self.stuck: list[str] = []
        self.events: list[str] = []
        core = self.desk.core
        self.wakings = wakings = list[int]()  # how many it asked at each

        class Watched(HeartbeatMonitor):
            def tick(self) -> None:
                before = len(bodies.asked)
                super().tick()
                wakings.append(len(bodies.asked) - before)

        self.heartbeat = Watched(self.bodies, core, self.desk.events, self)
        core.observers.add(self.heartbeat.entry_changed)
        self.desk.events.subscribe(
            lambda event: self.events.append(event.event) if event.kind == "health" else None
        )

    def report_worker_problem(self, entry: Entry, worker: Worker, kind: str, description: str) -> None:
        self.stuck.append(f"{worker.id}: {description}")

    async def pass_by(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await turns()

    def asked(self) -> list[str]:
        asked, self.bodies.asked = self.bodies.asked, []
        return asked


async def heartbeats_begun(*servers: ServerConfig) -> HeartbeatScenario:
    it = HeartbeatScenario(*servers)
    await it.desk.ask("start")
    await turns()
    return it


def thousand(monkeypatch: pytest.MonkeyPatch) -> HeartbeatScenario:
    """A server of a thousand ready workers, which are asked at moments that are spread by chance."""
    monkeypatch.setattr(random, "random", random.Random(1).random)
    it = HeartbeatScenario()
    entry = Entry(web(workers=1000))
    for n in range(1000):
        placement = Placement.of("web", 1, n)
        entry.observed.workers[placement.id] = Worker(placement.id, 1, n, entry.config, placement=placement)
        entry.observed.workers[placement.id].phase = WorkerPhase.READY
    it.heartbeat.entry_changed(entry)
    return it


def slow(workers: int = 1, **recovery: Any) -> ServerConfig:
    return web(workers=workers, recovery={"heartbeat": 5, "stuck_after": 15} | recovery)


@virtual
async def test_each_ready_worker_is_asked_once_an_interval() -> None:
    it = await heartbeats_begun(
        web("a", workers=2), web("b"), web("c", command=["sleep", "{port}"], app=None)
    )
    await it.pass_by(51)
    asked = it.asked()
    assert sorted(set(asked)) == ["a.1.0", "a.1.1", "b.1.0"]
    assert 9 <= asked.count("b.1.0") <= 12
    assert it.stuck == []


@virtual
async def test_one_that_does_not_answer_is_found_and_not_asked_again() -> None:
    it = await heartbeats_begun(slow())
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


@virtual
async def test_a_server_with_a_stuck_worker_is_not_well() -> None:
    it = await heartbeats_begun(slow(workers=2))
    entry = it.desk.core.entries["web"]
    assert (entry.health, entry.ready) == ("ok", True)
    events: list[str] = []
    it.desk.core.observers.add(lambda entry: events.append(entry.health))
    for worker, health, ready in (("web.1.0", "warn", True), ("web.1.1", "ko", False)):
        it.bodies.dead.add(worker)
        await it.pass_by(30)
        assert (entry.health, entry.ready) == (health, ready)
    assert events == ["warn", "ko"]


@virtual
async def test_a_worker_that_knows_of_no_heartbeat_is_not_stuck() -> None:
    it = await heartbeats_begun(slow())
    it.bodies.old.add("web.1.0")
    it.bodies.dead.add("web.1.0")
    await it.pass_by(600)
    assert (it.asked(), it.stuck) == ([], [])


@virtual
async def test_a_full_socket_is_no_question() -> None:
    it = await heartbeats_begun(slow())
    it.bodies.deaf.add("web.1.0")
    await it.pass_by(100)
    assert len(it.asked()) >= 19, "it is tried again"
    assert it.stuck == []


@virtual
async def test_pause_of_the_supervisor_is_no_silence_of_workers() -> None:
    loop: Any = asyncio.get_running_loop()
    it = await heartbeats_begun(slow())
    await it.pass_by(10)
    it.bodies.dead.add("web.1.0")
    await it.pass_by(6)
    loop.pause(3600)
    await turns()
    assert it.stuck == []
    await it.pass_by(16)
    assert len(it.stuck) == 1, "but then it has had its time"


@virtual
async def test_without_an_interval_no_worker_is_probed_until_a_reload_sets_one() -> None:
    it = await heartbeats_begun(slow(heartbeat=0))
    await it.pass_by(60)
    assert it.asked() == []
    for interval, some in ((5, True), (0, False)):
        it.desk.files.written = [slow(heartbeat=interval)]
        assert (await it.desk.ask("reload"))["exit_code"] == 0
        await it.pass_by(6)
        it.asked()
        await it.pass_by(60)
        assert bool(it.asked()) is some


@virtual
async def test_worker_that_has_ended_is_probed_no_more() -> None:
    it = await heartbeats_begun(web())
    await it.pass_by(10)
    await it.desk.ask("restart")
    await it.pass_by(6)
    it.asked()
    await it.pass_by(30)
    assert set(it.asked()) == {"web.2.0"}
    await it.desk.ask("stop", "web")
    await it.pass_by(30)
    assert it.asked() == []


@virtual
async def test_one_that_has_come_in_the_place_of_another_is_asked_as_well() -> None:
    it = await heartbeats_begun(web(restart="on-failure"))
    await it.pass_by(10)
    it.desk.runner.end("web.1.0", Exit.from_signal(9))
    await turns(40)
    it.asked()
    await it.pass_by(12)
    assert len(it.asked()) >= 2


@virtual
async def test_idle_worker_is_not_asked_until_it_runs_again() -> None:
    it = await heartbeats_begun(slow())
    await it.pass_by(10)
    it.bodies.idle.add("web.1.0")
    it.asked()
    await it.pass_by(600)
    assert (it.asked(), it.stuck) == ([], [])
    it.bodies.idle.clear()
    await it.pass_by(6)
    assert it.asked(), "it has work again"


@virtual
async def test_worker_that_hangs_after_it_was_idle_is_found_in_time() -> None:
    it = await heartbeats_begun(slow())
    it.bodies.idle.add("web.1.0")
    await it.pass_by(60)
    it.bodies.idle.clear()
    it.bodies.dead.add("web.1.0")
    await it.pass_by(5 + 15 + 1)
    assert len(it.stuck) == 1


@virtual
async def test_idle_look_of_an_unanswered_worker_counts_for_nothing() -> None:
    it = await heartbeats_begun(slow())
    await it.pass_by(10)
    it.bodies.dead.add("web.1.0")
    await it.pass_by(6)
    it.bodies.idle.add("web.1.0")
    await it.pass_by(21)
    assert len(it.stuck) == 1, "a question that it does not read is a hung loop, wherever the kernel sees it"


@pytest.mark.slow
@virtual
async def test_idle_workers_are_checked_in_one_waking_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    it = thousand(monkeypatch)
    it.bodies.idle.update(Placement.of("web", 1, n).id for n in range(1000))
    await it.pass_by(60)
    it.wakings.clear()
    await it.pass_by(100)
    assert len(it.wakings) == 100 / 5


@pytest.mark.slow
@virtual
async def test_workers_that_have_work_again_at_one_moment_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    it = thousand(monkeypatch)
    it.bodies.idle.update(Placement.of("web", 1, n).id for n in range(1000))
    await it.pass_by(60)
    it.bodies.idle.clear()
    it.wakings.clear()
    await it.pass_by(25)
    first, *later = it.wakings
    assert first == 1000
    assert max(later) < 300


@virtual
async def test_a_thousand_are_asked_in_a_few_wakings_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    it = thousand(monkeypatch)
    await it.pass_by(25)
    assert sum(it.wakings) >= 4000
    assert len(it.wakings) <= 25 * 4 + 4


def seen(*histories: list[float], **facts: Any) -> RecoverySituation:
    alone = {"strategy": "restart", "ready": 1, "size": 1, "overlaps": True, "under_way": False}
    return RecoverySituation(
        **{"histories": histories or ([],), "now": 1000.0, "jitter": 0.0} | alone | facts
    )


situations = st.builds(
    RecoverySituation,
    strategy=st.sampled_from(get_args(RecoveryStrategy)),
    histories=st.lists(st.lists(st.floats(0, 1000), max_size=6).map(sorted), max_size=4),
    ready=st.integers(0, 6),
    size=st.integers(1, 6),
    overlaps=st.booleans(),
    under_way=st.booleans(),
    now=st.floats(1000, 2000),
    jitter=st.floats(-1, 1),
).filter(lambda situation: len(situation.histories) <= situation.ready)


@given(situations)
def test_decision_never_stops_more_workers_than_allowed(situation: RecoverySituation) -> None:
    step, chosen, again = decide(POLICY, situation)
    assert set(chosen) <= set(range(len(situation.histories)))
    assert again >= 0
    acts = step in (RecoveryStep.RESTART, RecoveryStep.REPLACE, RecoveryStep.DISABLE)
    if not situation.histories or situation.strategy in ("none", "notify"):
        assert not acts
    if step in (RecoveryStep.RESTART, RecoveryStep.REPLACE):
        assert chosen
        assert not situation.under_way
        for place in chosen:
            assert len(within(situation.histories[place], POLICY.window, situation.now)) < POLICY.limit
    if step is RecoveryStep.RESTART and situation.size > 1:
        assert situation.ready - len(chosen) >= 1, "one that is ready stays"
    if step is RecoveryStep.REPLACE:
        assert situation.overlaps
        assert situation.strategy == "replace"


@given(
    st.floats(0, 50),
    st.integers(1, 5),
    st.floats(1, 100),
    st.lists(st.floats(-1, 1), min_size=40, max_size=40),
)
def test_permanently_unhealthy_worker_is_recovered_as_often_as_the_limit_allows(
    initial: float, limit: int, window: float, jitters: list[float]
) -> None:
    policy = Recovery(limit=limit, window=window, backoff=RecoveryBackoff(initial=initial, max=60))
    now, times = 0.0, list[float]()
    for jitter in jitters:
        decision = decide(policy, seen(times, now=now, jitter=jitter))
        if decision.step is RecoveryStep.RESTART:
            times.append(now)
            assert len(within(times, window, now)) <= limit
            now += 0.5
        else:
            assert decision.again_seconds > 0, "it is looked at again"
            now += decision.again_seconds
    assert times


class Watched:
    """A core whose health is watched, in a loop whose time passes at once and is the clock of everything."""

    def __init__(self, *servers: ServerConfig, runner: SlowRunner | None = None) -> None:
        self.loop = VirtualLoop()
        self.loop.set_default_executor(SameThread())
        self.runner = runner or SlowRunner()
        self.runner.heartbeats = self.bodies = Bodies()
        self.loop.run_until_complete(self._begin(servers))

    async def _begin(self, servers: tuple[ServerConfig, ...]) -> None:
        self.desk = Desk(*servers, runner=self.runner, clock=LoopClock())
        self.core = self.desk.core
        self.recorded: list[dict[str, Any]] = []
        self.desk.events.subscribe(
            lambda event: (
                self.recorded.append(event.to_json())
                if "recovery" in event.kind or "beat" in event.event
                else None
            )
        )

    @property
    def entry(self) -> Entry:
        return next(iter(self.core.entries.values()))

    def start(self) -> None:
        self.loop.run_until_complete(self.desk.ask("start"))
        self.loop.pass_time()

    async def watch(self) -> None:
        watch_health(self.core, self.runner, self.desk.events)  # type: ignore[arg-type]

    def begin(self) -> None:
        self.start()
        self.loop.run_until_complete(self.watch())

    def report_unhealthy(self, name: str = "web.1.0") -> None:
        async def report() -> None:
            worker = self.entry.observed.workers[name]
            worker.health = Status.KO
            for notify in list(self.core.health.unhealthy):
                notify(self.entry, worker, f"{name} is not well")

        self.loop.run_until_complete(report())

    def events(self) -> list[dict[str, Any]]:
        self.loop.pass_time(1)
        self.desk.events.flush()
        left_out = ("time", "seq", "schema")
        return [
            {key: value for key, value in event.items() if value not in (None, "") and key not in left_out}
            for event in self.recorded
        ]

    def close(self) -> None:
        self.loop.run_until_complete(self.core.runner.aclose())
        self.loop.pass_time(1)
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.pass_time()
        self.loop.close()


def test_unhealthy_worker_is_recovered_and_the_report_has_all_of_it() -> None:
    with closing(Watched(web(recovery=QUICK | {"strategy": "restart"}))) as it:
        it.begin()
        it.loop.pass_time(100)
        it.runner.may_end.clear()
        it.report_unhealthy()
        it.loop.pass_time(0.5)
        it.runner.may_end.set()
        (event,) = it.events()
        assert event == {
            "kind": "recovery", "event": "recovered", "server": "web", "bind": it.entry.config.key,
            "message": "web.1.0 is not well: restarted within 500 ms", "cause": "liveness",
            "before": {"pids": [1001]}, "after": {"pids": [1001], "state": "running"},
            "strategy": "restart", "seen": ["web.1.0 is not well"], "done": "restarted", "outcome": "recovered",
            "duration_seconds": 0.5, "workers": {"web.1.0": 1001}, "lines": [],
        }  # fmt: skip
        assert it.entry.observed.recoveries == {"0": [100.0]}


def test_recovery_is_tried_again_by_itself_after_its_pause_and_left_after_its_limit() -> None:
    with closing(Watched(web(recovery=QUICK | {"strategy": "restart"}))) as it:
        it.begin()
        it.report_unhealthy()
        it.loop.pass_time(1)
        begun = [it.loop.time()]
        placed = it.runner.log.count("place web.1.0")
        it.report_unhealthy()
        it.loop.pass_time(8.9)
        assert it.runner.log.count("place web.1.0") == placed
        it.loop.pass_time(0.2)
        assert it.runner.log.count("place web.1.0") == placed + 1
        it.report_unhealthy()
        it.loop.pass_time(50)
        assert it.runner.log.count("place web.1.0") == placed + 1, "its limit is 2"
        it.loop.pass_time(40)
        assert it.runner.log.count("place web.1.0") == placed + 2, "the first has left the window"
        assert [event["event"] for event in it.events()] == ["recovered"] * 2 + ["given up", "recovered"]
        assert begun == [1.0]


@pytest.mark.parametrize(
    ("strategy", "step", "pid", "expected"),
    [
        ("restart", "restart", 1001, ["stop web.1.0 1", "place web.1.0"]),
        ("replace", "replace", 1001, []),
        ("restart", "restart", 7, []),
    ],
)
def test_successor_continues_the_recovery_of_the_same_process(
    strategy: str, step: str, pid: int, expected: list[str]
) -> None:
    with closing(Watched(web(recovery=QUICK | {"strategy": strategy}))) as it:
        it.start()
        it.runner.log.clear()
        it.entry.observed.recovering = recovery_of_a_stuck_worker(step, {"web.1.0": pid, "web.9.9": 3})
        (worker,) = it.entry.observed.workers.values()
        it.loop.run_until_complete(it.watch())
        assert worker.stuck is (pid == 1001)
        it.loop.pass_time(1)
        assert it.runner.log == expected


def recovery_of_a_stuck_worker(step: str, workers: dict[str, int]) -> dict[str, Any]:
    """The report of a recovery that the previous supervisor has begun."""
    return {
        "step": step, "seen": ["x"], "kinds": ["heartbeat"], "since": 1_700_000_000.0, "stuck": True,
        "workers": workers, "generation": 2, "pids": [1001], "lines": [],
    }  # fmt: skip


def test_successor_that_continues_a_recovery_records_when_the_server_is_healthy_again() -> None:
    with closing(Watched(web(recovery=QUICK | {"strategy": "restart"}))) as it:
        recorded: list[tuple[str, str]] = []
        it.start()
        it.entry.observed.recovering = recovery_of_a_stuck_worker("restart", {"web.1.0": 1001})
        it.desk.events.subscribe(
            lambda event: recorded.append((event.event, event.message)) if event.kind == "health" else None
        )
        it.loop.run_until_complete(it.watch())
        assert [event["outcome"] for event in it.events()] == ["recovered"]
        assert recorded == [("ko", "the event loop of web.1.0 is stuck"), ("ok", "is healthy again")]


def test_memory_is_measured_two_seconds_after_the_start_and_then_every_eight() -> None:
    runner = SlowRunner()
    with closing(Watched(web(limits={"memory": "100MiB"}), web("other"), runner=runner)) as it:
        runner.usages.figures[1001] = Usage(100 * MIB)
        it.begin()
        it.loop.pass_time(1.9)
        assert runner.usages.requested == []
        it.loop.pass_time(0.2)
        assert runner.usages.requested == [[1001]]
        it.loop.pass_time(7.8)
        assert len(runner.usages.requested) == 1
        it.loop.pass_time(0.2)
        assert (len(runner.usages.requested), it.events()) == (2, [])
        runner.usages.figures[1001] = Usage(100 * MIB + 1)
        it.loop.pass_time(9)
        (event,) = it.events()
        assert (event["cause"], event["done"], event["seen"]) == (
            "memory", "replaced", ["worker web.1.0 (pid 1001) uses 100MiB, and limits.memory is 100MiB"],
        )  # fmt: skip


def test_measurement_that_fails_is_repeated_after_eight_seconds() -> None:
    runner = SlowRunner()

    async def fail(pids: Iterable[int | None]) -> None:
        runner.usages.measure_now(pids)
        raise RuntimeError("can't start new thread")

    with closing(Watched(web(limits={"memory": "100MiB"}), runner=runner)) as it:
        runner.usages.measure = fail  # type: ignore[method-assign, assignment]
        it.loop.set_exception_handler(lambda loop, context: None)
        it.begin()
        it.loop.pass_time(9)
        assert len(runner.usages.requested) == 1
        it.loop.pass_time(2)
        assert len(runner.usages.requested) == 2


def test_memory_is_not_measured_of_a_stopped_server() -> None:
    runner = SlowRunner()
    with closing(Watched(web(limits={"memory": "100MiB"}), runner=runner)) as it:
        it.begin()
        it.loop.pass_time(3)
        it.loop.run_until_complete(it.desk.ask("stop"))
        it.loop.pass_time(100)
        assert runner.usages.requested == [[1001]]
        it.loop.run_until_complete(it.desk.ask("start"))
        it.loop.pass_time(3)
        assert runner.usages.requested == [[1001], [1001]]


def test_hung_worker_is_recorded_recovered_and_recorded_again() -> None:
    server = web(recovery=QUICK | {"strategy": "notify", "heartbeat": 5, "stuck_after": 15})
    with closing(Watched(server)) as it:
        it.begin()
        it.loop.pass_time(20)
        assert 3 <= len(it.bodies.asked) <= 5
        it.bodies.dead.add("web.1.0")
        it.loop.pass_time(25)
        lost, report = it.events()
        assert lost == {
            "kind": "health", "event": "heartbeat lost", "server": "web", "bind": it.entry.config.key,
            "message": "the event loop of worker web.1.0 (pid 1001) has been stuck for 15s",
            "worker": "web.1.0", "pid": 1001, "severity": "error",
        }  # fmt: skip
        assert (report["event"], report["message"], report["cause"]) == (
            "notified", "the event loop of worker web.1.0 (pid 1001) has been stuck for 15s", "heartbeat",
        )  # fmt: skip
        assert it.entry.observed.workers["web.1.0"].stuck
        it.bodies.answered["web.1.0"] = int(it.loop.time() * 1e9)
        it.loop.pass_time(6)
        back = it.events()[2]
        assert back == {
            "kind": "health", "event": "heartbeat back", "server": "web", "bind": it.entry.config.key,
            "message": "worker web.1.0 (pid 1001) answers its heartbeat again",
            "worker": "web.1.0", "pid": 1001,
        }  # fmt: skip
        assert not it.entry.observed.workers["web.1.0"].stuck


STOP, REPLACE, WAIT, GIVE_UP = (
    RecoveryStep.RESTART, RecoveryStep.REPLACE, RecoveryStep.WAIT, RecoveryStep.GIVE_UP,
)  # fmt: skip
THREE = [910.0, 930.0, 960.0]
DECISIONS: dict[str, tuple[RecoverySituation, Decision]] = {
    "at once": (seen(), Decision(STOP, [0])),
    "at once by replacement": (seen(strategy="replace"), Decision(REPLACE, [0])),
    "at once by disabling": (seen(strategy="disable"), Decision(RecoveryStep.DISABLE, range(1))),
    "at once by notification": (seen(strategy="notify"), Decision(RecoveryStep.NOTIFY, range(1))),
    "never": (seen(strategy="none"), Decision(RecoveryStep.NOTHING)),
    "nobody": (seen(histories=[]), Decision(RecoveryStep.NOTHING)),
    "after a pause": (seen([995.0]), Decision(WAIT, (), 5.0)),
    "after a moment": (seen([990.001]), Decision(WAIT, (), pytest.approx(0.001))),
    "after a longer pause": (seen([980.0, 995.0]), Decision(WAIT, (), 15.0)),
    "after a pause by chance": (seen([980.0, 985.0], jitter=1.0), Decision(WAIT, (), pytest.approx(7, abs=7))),
    "pause is over": (seen([990.0]), Decision(STOP, [0])),
    "limit": (seen(THREE), Decision(GIVE_UP, range(1), 10.0)),
    "limit of a moment": (seen([900.5, 930.0, 960.0]), Decision(GIVE_UP, range(1), 0.5)),
    "limit has passed": (seen(THREE, now=1010.0), Decision(STOP, [0])),
    "limit of one, pause of another": (seen([900.5, 930.0, 960.0], [995.0], size=3, ready=3), Decision(WAIT, (), 0.5)),
    "only those whose pause is over": (seen([995.0], [], THREE, size=4, ready=4), Decision(STOP, [1], 5.0)),
    "replaced while another pauses": (
        seen([], [995.0], strategy="replace", size=2, ready=2), Decision(REPLACE, [0], 5.0),
    ),
    "no overlap": (seen(strategy="replace", overlaps=False), Decision(STOP, [0])),
    "all but the last": (seen([], [], [], size=3, ready=3), Decision(STOP, [0, 1])),
    "one of two": (seen([], [], size=2, ready=2), Decision(STOP, [0])),
    "the last of two": (seen(size=2, ready=1), Decision(WAIT, [])),
    "none is ready": (seen([], [], size=2, ready=0), Decision(WAIT, [])),
    "another is under way": (seen(under_way=True), Decision(WAIT)),
    "notified while another is under way": (
        seen(strategy="notify", under_way=True), Decision(RecoveryStep.NOTIFY, range(1)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("situation", "decision"), DECISIONS.values(), ids=DECISIONS)
def test_decision_has_its_workers_and_the_time_of_the_next(
    situation: RecoverySituation, decision: Decision
) -> None:
    assert decide(POLICY, situation) == decision


def test_recovery_that_is_never_tried_is_not_tried_again() -> None:
    assert decide(Recovery(limit=0), seen()) == Decision(GIVE_UP, range(1))


class PrintingRunner(SlowRunner):
    """Gives the last output of its workers when `may_answer` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()
        self.asked_for_lines: list[tuple[str, int, float]] = []

    async def logs(self, name: str, lines: int, since: float = 0.0, worker: str = "") -> list[str]:
        self.asked_for_lines.append((name, lines, since))
        await self.may_answer.wait()
        return [f"{name} prints"]


async def test_recovery_is_reported_once_the_last_output_of_its_workers_has_been_read() -> None:
    runner = PrintingRunner()
    config = web(recovery=QUICK | {"strategy": "restart"})
    it = await started(RecoveryScenario(config, runner=runner))
    it.entry.observed.workers["web.1.0"].placed_at = placed_at = 1_700_000_000.0
    await it.make_unhealthy("web.1.0")
    assert it.placed() == ["stop web.1.0", "place web.1.0"]
    assert (it.outcomes(), runner.asked_for_lines) == ([], [("web", 10, placed_at)])
    it.core.take_changed()
    runner.may_answer.set()
    await turns(40)
    assert it.outcomes() == ["recovered"]
    assert it.reports[0]["lines"] == ["web prints"]
    assert it.core.take_changed() == [it.entry]


async def test_recovery_by_disabling_is_interrupted_when_the_server_is_enabled_again() -> None:
    it = await started(ward("disable"))
    it.desk.runner.may_end.clear()
    await it.make_unhealthy("web.1.0")
    assert (it.entry.is_disabled, it.outcomes()) == (True, [])
    enabling = it.desk.begin("enable", "web")
    await turns(40)
    assert it.outcomes() == ["interrupted"]
    assert it.reports[0]["message"].endswith(": it was enabled again")
    it.desk.runner.may_end.set()
    await enabling


@virtual
async def test_stuck_worker_is_not_called_so_once_no_heartbeat_is_configured() -> None:
    it = await heartbeats_begun(slow())
    it.bodies.dead.add("web.1.0")
    await it.pass_by(30)
    worker = it.desk.core.entries["web"].observed.workers["web.1.0"]
    assert worker.stuck
    it.desk.files.written = [slow(heartbeat=0)]
    assert (await it.desk.ask("reload"))["exit_code"] == 0
    await it.pass_by(6)
    assert not worker.stuck
