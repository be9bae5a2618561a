"""Workers of an earlier supervisor, as its successor takes them over."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from poolctl.keeper import wire
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.local import takeover
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.local.takeover import (
    WorkerAdoption,
    wait_briefly_for_reports,
)
from tests.unit.runners.real_runner import placed, served
from tests.virtual_loop import run_in_virtual_time


def test_sockets_of_systemd_are_known_by_their_numbers_and_names() -> None:
    class Keeper:
        async def call(self, message: wire.Message) -> tuple[wire.Message, list[int]]:
            return {"meta": ["web", "", "web"]}, [11, 12, 13]

    found = asyncio.run(takeover.systemd_sockets(cast(Any, Keeper())))
    assert found == {"3": [11], "4": [12], "5": [13], "web": [11, 13]}


@pytest.mark.slow
async def test_worker_whose_server_was_changed_is_adopted_at_its_own_address(runner: ProcessRunner) -> None:
    before = served()
    after = served(tags=["new"])
    await placed(runner, before)
    found: list[LocalWorker] = []
    adoption = WorkerAdoption(runner.keeper, runner.children, runner.events, {"web": after}, {})
    reply, fds = await runner.keeper.call({"op": "get", "name": "worker:web.1.0"})
    adoption.adopt_or_stop(found.append, "web.1.0", reply["meta"], fds)
    (worker,) = found
    assert (worker.server.key, worker.server.tags) == (before.key, ("new",))
    assert adoption.workers == found
    _, owners = runner.keeper.entries["worker:web.1.0"]  # for the keeper's successor
    assert owners[-1] is worker.tally
    assert worker.control is not None
    worker.control.close()
    assert worker.tally is not None
    worker.tally.close()


class Reporting:
    """A worker of which only its reports are awaited."""

    def __init__(self, *, control: bool = True) -> None:
        loop = asyncio.get_running_loop()
        self.control = object() if control else None
        self.exited: asyncio.Future[None] = loop.create_future()
        self.answered: asyncio.Future[None] = loop.create_future()
        self.reported: asyncio.Future[None] = loop.create_future()


@pytest.mark.loop(run=run_in_virtual_time)
async def test_reports_are_awaited_briefly_and_those_of_programs_that_have_exited_not_at_all() -> None:
    loop = asyncio.get_running_loop()
    exited, ready, first, second = (
        Reporting(),
        Reporting(control=False),
        Reporting(),
        Reporting(control=False),
    )
    exited.exited.set_result(None)
    ready.answered.set_result(None)
    await wait_briefly_for_reports([])
    await wait_briefly_for_reports(cast(Any, [exited, ready]))
    assert loop.time() == 0
    loop.call_later(0.05, first.reported.set_result, None)
    loop.call_later(0.1, second.answered.set_result, None)
    await wait_briefly_for_reports(cast(Any, [exited, ready, first, second]))
    assert loop.time() == pytest.approx(0.1)
    await wait_briefly_for_reports(cast(Any, [Reporting(), first]))
    assert loop.time() == pytest.approx(0.3)
