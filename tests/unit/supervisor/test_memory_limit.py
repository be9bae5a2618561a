"""Workers that are weighed: only where there is a limit, oftener when they come near it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from poolctl.clock import Clock
from poolctl.core.server_entry import Entry, Worker
from poolctl.platform import memory_bytes
from poolctl.supervisor.health.recovery import FIRST_SECONDS, INTERVAL_SECONDS, NEAR_SECONDS, MemoryLimit
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.supervisor.desk import Desk

MIB = 1024 * 1024


class Measured(MemoryLimit):
    def __init__(self, clock: Clock, scenario: MemoryScenario) -> None:
        super().__init__(clock, scenario)
        self._scenario = scenario

    def measure(self, pids: Iterable[int]) -> dict[int, int | None]:
        return self._scenario.measure(pids)


class MemoryScenario:
    """Servers whose workers all weigh `size`; `weighed` has the pids of each look."""

    def __init__(self, **keys: Any) -> None:
        self.desk = Desk(web(**keys), web("other"))
        self.size: int | None = 10 * MIB
        self.weighed: list[list[int]] = []
        self.reported: list[str] = []
        self.limit = Measured(self.desk.clock, self)
        self.desk.core.listeners.add(self.limit.look)

    def notice(self, entry: Entry, worker: Worker, kind: str, seen: str) -> None:
        self.reported.append(f"{kind}: {seen}")

    def measure(self, pids: Iterable[int]) -> dict[int, int | None]:
        self.weighed.append(list(pids))
        return dict.fromkeys(self.weighed[-1], self.size)

    async def pass_by(self, seconds: float) -> int:
        """How many were weighed when so much time had passed."""
        self.weighed.clear()
        self.desk.clock.advance(seconds)
        await self.limit.measure_due()
        return sum(map(len, self.weighed))


async def begun(**keys: Any) -> MemoryScenario:
    it = MemoryScenario(**keys)
    await it.desk.ask("start")
    await turns()
    return it


def test_server_without_a_memory_limit_is_not_measured() -> None:
    async def scenario() -> None:
        it = await begun()
        assert await it.pass_by(1000) == 0
        assert it.limit._timer is None, "nothing ticks"

    run(scenario())


def test_worker_is_measured_soon_after_its_start_then_seldom_and_near_its_limit_often() -> None:
    async def scenario() -> None:
        it = await begun(limits={"memory": "100MiB"})
        assert await it.pass_by(FIRST_SECONDS / 2) == 0
        assert await it.pass_by(FIRST_SECONDS) == 1
        assert await it.pass_by(NEAR_SECONDS) == 0
        it.size = 80 * MIB
        assert await it.pass_by(INTERVAL_SECONDS) == 1
        assert await it.pass_by(NEAR_SECONDS) == 1
        assert it.reported == []
        it.size = 101 * MIB
        assert await it.pass_by(NEAR_SECONDS) == 1
        assert it.reported == ["memory: worker web.1.0 (pid 1001) uses 101MiB, and limits.memory is 100MiB"]

    run(scenario())


def test_worker_that_is_gone_when_measured_is_no_error() -> None:
    async def scenario() -> None:
        it = await begun(limits={"memory": 1})
        it.size = None
        assert await it.pass_by(FIRST_SECONDS) == 1
        await it.desk.ask("stop", "web")
        assert await it.pass_by(INTERVAL_SECONDS) == 0
        assert it.reported == []

    run(scenario())


def test_a_reload_brings_a_limit_and_takes_it_away() -> None:
    async def scenario() -> None:
        it = await begun()
        for limits, count in (({"memory": "1GiB"}, 1), ({}, 0)):
            it.desk.files.written = [web(limits=limits), web("other")]
            assert (await it.desk.ask("reload"))["exit_code"] == 0
            assert await it.pass_by(INTERVAL_SECONDS + FIRST_SECONDS) == count

    run(scenario())


def test_the_memory_of_a_process_is_known_while_it_is_there() -> None:
    size = memory_bytes(os.getpid())
    assert size is not None
    assert size > MIB
    assert memory_bytes(2**22 + 1) is None
