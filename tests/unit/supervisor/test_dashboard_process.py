"""The dashboard's process as its supervisor sees it."""

from __future__ import annotations

import asyncio

from poolctl.keeper import wire
from poolctl.supervisor.observers.dashboard_process import DashboardProcess


def test_adopting_a_dead_dashboard_reports_its_exit() -> None:
    async def scenario() -> None:
        ours, theirs = wire.pair()
        theirs.close()
        adopted = DashboardProcess(ours, {"pid": 1, "start": 1}, "mark")
        assert not adopted.exited.done(), "the caller does not have it yet"
        await asyncio.wait_for(adopted.exited, 5)
        assert adopted.up.is_set()

    asyncio.run(scenario())
