"""The dashboard's process as its supervisor sees it."""

from __future__ import annotations

import asyncio

from poolctl.keeper import wire
from poolctl.supervisor.observers.dashboard_process import Process


def test_one_that_is_dead_when_it_is_adopted_is_reported_to_whoever_adopts_it() -> None:
    async def scenario() -> None:
        ours, theirs = wire.pair()
        theirs.close()
        ended: list[Process] = []
        adopted = Process(ours, {"pid": 1, "start": 1}, "mark", ended.append)
        assert ended == [], "whoever adopts it does not know it yet"
        await asyncio.wait_for(adopted.up.wait(), 5)
        assert ended == [adopted]

    asyncio.run(scenario())
