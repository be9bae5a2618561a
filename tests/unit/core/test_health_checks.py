"""What the answers of workers change, in an core without processes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from poolctl import ServerConfig
from poolctl.core.server_entry import Entry
from poolctl.core.worker import Worker
from poolctl.runners.runner_protocol import Exit
from tests.unit.core.ordered_core import OrderedCore, turns, web

QUICK = {"interval": 0.02, "timeout": 60.0, "jitter": 0, "fall_count_ko": 1}


class Ward:
    """A pool whose workers answer their probes with the status that the test wants of them."""

    def __init__(self, *servers: ServerConfig) -> None:
        self.pool = OrderedCore(*servers)
        self.statuses: dict[str, int] = {}
        self.answered: dict[str, int] = {}
        self.unhealthy: list[str] = []
        self.pool.core.health.unhealthy.add(self._is_unhealthy)
        self._serving: set[asyncio.Task[None]] = set()

    @property
    def entry(self) -> Entry:
        return next(iter(self.pool.core.entries.values()))

    def _is_unhealthy(self, entry: Entry, worker: Worker, reason: str) -> None:
        self.unhealthy.append(f"{worker.id}: {reason}")

    async def accept(self) -> None:
        """Answer on every connection that is made."""
        while True:
            while self.pool.runner.asked:
                worker, _, sock = self.pool.runner.asked.pop()
                self._serving.add(asyncio.ensure_future(self._serve(worker, sock)))
            await asyncio.sleep(0)

    async def _serve(self, worker: str, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        while await reader.read(10_000):
            self.answered[worker] = self.answered.get(worker, 0) + 1
            writer.write(f"HTTP/1.1 {self.statuses.get(worker, 200)} x\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.005)

    @property
    def events(self) -> list[Any]:
        return [event for event in self.pool.events if event.kind == "health"]

    def recorded(self) -> list[str]:
        return [f"{event.before} {event.after}: {event.message}" for event in self.events]


@asynccontextmanager
async def ward(health: Any, **keys: Any) -> AsyncIterator[Ward]:
    stage = Ward(web(health=health, **keys))
    accepting = asyncio.ensure_future(stage.accept())
    try:
        yield stage
    finally:
        await stage.pool.stop()
        accepting.cancel()
        await turns()


async def test_workers_accept_when_they_have_passed_and_rest_while_others_are_better() -> None:
    async with ward({"readiness": {"http": "/", **QUICK}}, workers=2) as it:
        it.statuses = {"web.1.0": 503, "web.1.1": 503}
        start = it.pool.begin(it.pool.start())
        await it.until(lambda: len(it.answered) == 2)
        assert it.pool.states() == {"web": "starting"}
        assert not any(line.startswith("work") for line in it.pool.runner.log)
        it.statuses.clear()
        assert await start == []
        assert {"work web.1.0", "work web.1.1"} <= set(it.pool.runner.log)
        assert (it.entry.health, it.entry.ready) == ("ok", True)
        it.statuses["web.1.0"] = 500
        await it.until(lambda: it.entry.health == "warn" and "rest web.1.0" in it.pool.runner.log)
        assert it.entry.ready
        it.statuses["web.1.1"] = 500
        await it.until(lambda: it.entry.health == "ko")
        await turns()
        assert "rest web.1.1" not in it.pool.runner.log
        assert not it.entry.ready
        it.statuses.clear()
        it.pool.runner.log.clear()
        await it.until(lambda: it.entry.health == "ok" and it.pool.runner.log[-1:] != ["rest web.1.1"])
        last = {line.partition(" ")[2]: line.partition(" ")[0] for line in it.pool.runner.log}
        assert last["web.1.0"] == "work"
        assert last.get("web.1.1", "work") == "work", "it rests while the other one is better already"


async def test_worker_in_the_place_of_a_dead_one_is_probed() -> None:
    async with ward({"liveness": {"http": "/", **QUICK}}, restart="always") as it:
        await it.pool.start()
        await it.until(lambda: it.entry.health == "ok" and it.answered)
        it.pool.runner.end("web.1.0", Exit.from_signal(9))
        await it.until(lambda: it.entry.observed.restarts == 1 and it.entry.ready)
        assert [*it.pool.runner.running] == ["web.1.0"]
        await it.until(lambda: it.entry.health == "ok")
        it.statuses["web.1.0"] = 500
        await it.until(lambda: it.entry.health == "ko")
        assert "web.1.0: liveness ko: GET /: status 500" in it.unhealthy


async def test_each_change_of_a_server_s_health_is_recorded_and_the_first_ok_is_none() -> None:
    async with ward({"readiness": {"http": "/", **QUICK}}) as it:
        await it.pool.start()
        await it.until(lambda: it.answered.get("web.1.0", 0) > 3)
        assert it.recorded() == []
        it.statuses["web.1.0"] = 500
        await it.until(lambda: it.entry.health == "ko")
        it.statuses.clear()
        await it.until(lambda: it.entry.health == "ok")
        assert it.recorded() == [
            "ok warn: GET /: status 500",
            "warn ko: GET /: status 500",
            "ko warn: is recovering",
            "warn ok: is healthy again",
        ]
        assert (it.events[0].cause, it.events[0].worker) == ("readiness probe", "web.1.0")


async def test_worker_that_fails_its_liveness_is_reported_until_it_has_ended_and_not_probed_afterwards() -> (
    None
):
    async with ward({"liveness": {"http": "/", **QUICK}}) as it:
        await it.pool.start()
        it.statuses["web.1.0"] = 500
        await it.until(lambda: len(it.unhealthy) >= 2)
        assert set(it.unhealthy) == {"web.1.0: liveness ko: GET /: status 500"}
        await it.pool.stop()
        count = it.answered["web.1.0"]
        await asyncio.sleep(0.1)
        assert it.answered["web.1.0"] == count
        assert it.entry.health == "unknown"


async def test_a_changed_probe_asks_another_thing_of_the_same_worker() -> None:
    async with ward({}) as it:
        await it.pool.start()
        assert it.entry.health == "ok"
        it.statuses["web.1.0"] = 500
        it.pool.runner.probed.add("web.1.0")
        it.pool.core.change(it.entry, web(health={"readiness": {"http": "/", **QUICK}}), live=True)
        await it.until(lambda: it.entry.health == "ko")
        it.pool.core.change(it.entry, web(), live=True)
        await it.until(lambda: it.entry.health == "ok")
        assert it.entry.ready
        assert set(it.pool.runner.running) == {"web.1.0"}


async def test_a_worker_that_dies_while_it_is_asked_is_a_failure_of_the_start() -> None:
    async with ward({"readiness": {"http": "/", **QUICK}}) as it:
        it.statuses["web.1.0"] = 503
        start = it.pool.begin(it.pool.start())
        await it.until(lambda: it.answered)
        it.pool.runner.end("web.1.0", Exit.from_returncode(7))
        (problem,) = await start
        assert "exited with status 7 before it was ready" in problem.message


async def test_latency_of_a_server_is_known_once_a_probe_was_answered() -> None:
    async with ward({"readiness": {"http": "/", **QUICK}}, workers=2) as it:
        assert it.pool.core.health.latency_seconds(it.entry) is None
        await it.pool.start()
        latency = it.pool.core.health.latency_seconds(it.entry)
        assert latency is not None
        assert 0 < latency < 60
