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
from poolctl.runners.runner_protocol import Exit
from tests.unit.runners.real_runner import placed, served
from tests.unit.runners.test_local_worker import worker
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
    (adopted,) = found
    assert (adopted.server.key, adopted.server.tags) == (before.key, ("new",))
    assert adoption.workers == found
    _, owners = runner.keeper.entries["worker:web.1.0"]  # for the keeper's successor
    assert owners[-1] is adopted.tally
    assert adopted.control is not None
    adopted.control.close()
    assert adopted.tally is not None
    adopted.tally.close()


@pytest.mark.loop(run=run_in_virtual_time)
async def test_reports_are_awaited_briefly_and_those_of_programs_that_have_exited_not_at_all() -> None:
    loop = asyncio.get_running_loop()
    links = [wire.pair() for _ in range(3)]
    exited, first, silent = controlled = [worker(control=ours, adopted=True) for ours, _ in links]
    ready, second = worker(command=["a"]), worker(command=["b"])
    exited.record_exit(Exit())
    ready.mark_ready()
    await wait_briefly_for_reports([])
    await wait_briefly_for_reports([exited, ready])
    assert loop.time() == 0
    loop.call_later(0.05, first.received, {"event": "ready"})
    loop.call_later(0.1, second.mark_ready)
    await wait_briefly_for_reports([exited, ready, first, second])
    assert loop.time() == pytest.approx(0.1)
    await wait_briefly_for_reports([silent, first])
    assert loop.time() == pytest.approx(0.3)
    for each, (_, theirs) in zip(controlled, links, strict=True):
        each.record_exit(Exit())
        theirs.close()
