"""A process beside the supervisor: its ends are counted, and reported when there are many."""

from __future__ import annotations

import asyncio

from poolctl.clock import Clock
from poolctl.keeper import wire
from poolctl.monitor.event_queue import Events
from poolctl.runners.process_link import Link, Receiver
from poolctl.supervisor.sidecar import SidecarManager, SidecarProcess


class PageProcess(SidecarProcess):
    """A process with a name."""

    part, label, output = "page", "the page", "page.log"


class Dying(SidecarManager):
    """Its process has always ended already."""

    label, entry = "the page", "page"

    async def _settle(self) -> None:
        if self.restarts < 3:
            ours, theirs = wire.pair()
            theirs.close()
            self._watch(PageProcess(ours, {"pid": 1, "start": 1}, "mark"))

    async def _off(self) -> None:
        pass


def test_process_that_ends_three_times_within_ten_minutes_is_reported() -> None:
    async def scenario() -> None:
        ours, theirs = wire.pair()
        keeper = Link(ours, Receiver())
        manager = Dying(keeper, Events(Clock()))
        found = [manager.instability]
        async with asyncio.timeout(60):
            for count in (1, 2, 3):
                await manager._settle_now()
                while manager.restarts < count:
                    await asyncio.sleep(0)
                found.append(manager.instability)
        await manager.aclose()
        keeper.close()
        theirs.close()
        assert found == ["", "", "", "its process has ended 3 times within 10m"]
        assert manager.problem == ""

    asyncio.run(scenario())
