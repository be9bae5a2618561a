"""As many workers are made at once as there are free descriptors, which are seldom counted."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

from poolctl.runners.local.spawn.forking import DescriptorBudget

LIMIT, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
SERVERS = 500


class Descriptors:
    """Descriptors in use of the limit, and how often they were counted."""

    def __init__(self, free: int) -> None:
        self.in_use = LIMIT - free
        self.counted = 0

    def count(self) -> int:
        self.counted += 1
        return self.in_use


def _run(descriptors: Descriptors, work: Callable[[DescriptorBudget], object]) -> None:
    async def scenario() -> None:
        await work(DescriptorBudget(descriptors.count))  # type: ignore[misc]

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_exits_between_new_workers_cause_no_count_while_there_is_room() -> None:
    descriptors = Descriptors(free=min(LIMIT, 1024))

    async def restart(budget: DescriptorBudget) -> None:
        for _ in range(SERVERS):
            await budget.enter()
            budget.ended()

    _run(descriptors, restart)
    assert descriptors.counted <= 1 + SERVERS * 16 // min(LIMIT, 1024)


def test_each_exit_causes_one_count_however_many_workers_wait_for_room() -> None:
    descriptors = Descriptors(free=0)

    async def restart(budget: DescriptorBudget) -> None:
        waiting = [asyncio.ensure_future(budget.enter()) for _ in range(SERVERS)]
        await asyncio.sleep(0)
        for _ in range(3):
            budget.ended()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        assert descriptors.counted <= 4
        descriptors.in_use = LIMIT - 100
        budget.ended()
        while sum(each.done() for each in waiting) < 6:
            await asyncio.sleep(0)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    _run(descriptors, restart)
