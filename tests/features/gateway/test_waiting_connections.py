"""Connections for which the gateway waits: they cost little, and end in time."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from poolctl.features.gateway.process import waiting_connections
from poolctl.features.gateway.process.waiting_connections import WaitingConnections
from tests.features.gateway.passing_stage import DEADLINE, HEAD, Stage, play, until


class Counted(WaitingConnections):
    """Counts how often the loop has found something for them to do."""

    events = 0

    def _on_events(self) -> None:
        self.events += 1
        super()._on_events()


def test_waiting_connections_take_less_than_a_kilobyte_each_and_no_time() -> None:
    async def scene(stage: Stage) -> None:
        waiting = stage.edge.passing.waiting = Counted()
        stage.route_to("users", host="elsewhere")
        await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting == 1)
        tracemalloc.start()
        for number in range(200):
            await stage.connect(HEAD[:20] if number % 2 else b"")
        await until(lambda: stage.waiting == 201 and len(waiting._silent) == 100)
        size_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # The clients' ends are in this process too.
        assert size_bytes < 200 * (1024 + 512), size_bytes / 200
        events = waiting.events
        assert events
        for _ in range(50):
            await asyncio.sleep(0)
        assert waiting.events <= events + 1  # one that was under way
        waiting.close()

    play(scene)


def test_oldest_silent_connection_is_closed_when_too_many_wait() -> None:
    async def scene(stage: Stage) -> None:
        stage.edge.passing.waiting = WaitingConnections(most=3)
        pair = stage.server("users")
        stage.route_to("users")
        begun = await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting == 1)
        silent = []
        for count in (2, 3, 3):
            silent.append(await stage.connect())
            await until(lambda count=count: stage.waiting == count)
        assert await stage.read(silent[0]) == b""
        await stage.edge.loop.sock_sendall(begun, HEAD[20:])
        (await pair.take()).close()
        stage.edge.passing.waiting.close()

    play(scene)


def test_drain_serves_heads_that_have_begun_and_closes_silent_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting_connections, "QUIET_SECONDS", 0.05)

    async def scene(stage: Stage) -> None:
        pair = stage.server("users")
        stage.route_to("users")
        begun, silent = await stage.connect(HEAD[:20]), await stage.connect()
        await until(lambda: stage.waiting == 2)
        drained = asyncio.ensure_future(stage.edge.passing.waiting.drain(DEADLINE))
        assert await stage.read(silent) == b""
        assert not drained.done()
        await stage.edge.loop.sock_sendall(begun, HEAD[20:])
        (await pair.take()).close()
        await drained
        begun = await stage.connect(HEAD[:20])
        await until(lambda: stage.waiting)
        await stage.edge.passing.waiting.drain(0.1)
        assert not stage.waiting

    play(scene)
