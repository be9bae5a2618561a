"""Workers of an earlier supervisor, as its successor takes them over."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any, cast

import pytest

from poolctl.keeper import wire
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.helper_process import Helpers
from poolctl.runners.local import takeover
from poolctl.runners.local.forking import RunnerContext
from poolctl.runners.local.local_runner import LocalRunner
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.local.takeover import (
    WorkerAdoption,
    wait_briefly_for_reports,
)
from tests.unit.runners.real_runner import fetch, kept, placed, served
from tests.virtual_loop import run_in_virtual_time


def test_sockets_of_systemd_are_known_by_their_numbers_and_names() -> None:
    class Keeper:
        async def call(self, message: wire.Message) -> tuple[wire.Message, list[int]]:
            return {"meta": ["web", "", "web"]}, [11, 12, 13]

    found = asyncio.run(takeover.systemd_sockets(cast(Any, Keeper())))
    assert found == {"3": [11], "4": [12], "5": [13], "web": [11, 13]}


@pytest.mark.slow
async def test_successor_adopts_workers_hooks_and_listeners_and_ends_what_belongs_to_no_server(
    runner: ProcessRunner, tmp_path: Path
) -> None:
    server = served(hooks={"before_start": ["sleep", "600"]})
    gone, silent = served(name="gone"), served(name="silent")
    placement = await placed(runner, server, 3, 1)
    hook = await runner.begin_hook(server, "before_start")
    other = await placed(runner, gone)
    await runner.open(silent)
    for worker in runner._workers.values():
        if worker.control is not None:
            worker.control.close()  # its messages are the successor's
    logs = tmp_path / "logs"
    logs.mkdir()
    site = RunnerContext(
        keeper=runner.keeper,
        keeper_pid=runner.children.keeper_pid,
        helpers=Helpers(runner.keeper, str(tmp_path)),
        open_files=(1024, 4096),
        directory=str(tmp_path),
        logs_directory=str(logs),
        environments={},
    )
    successor = LocalRunner(site)
    try:
        adopted = await successor.adopt_workers_and_end_others({"web": server, "silent": silent})
        (found,) = adopted.workers
        assert (found.placement.id, found.placement.pid) == ("web.3.1", placement.pid)
        assert (found.placement.generation, found.placement.index) == (3, 1)
        assert (found.server, found.leaving) == (server, False)
        assert found.ready_at is not None
        assert {name: (kind, each.pid) for name, (kind, each) in adopted.hooks.items()} == {
            "web": ("before_start", hook.pid)
        }
        assert adopted.endpoints == {
            server.key: (server.bind,), silent.key: (silent.bind,),
        }  # fmt: skip
        assert (await runner.wait_for_exit(other)).signal in (None, signal.SIGTERM)
        assert not [name for name in await kept(runner) if "gone" in name and "output" not in name]
        with pytest.raises(ConnectionRefusedError):
            await fetch(gone)
        await successor.wait_until_ready(found.placement)
        assert await fetch(server, "/pid") == str(placement.pid)
        (worker,) = [each for each in (await kept(runner)).items() if each[0] == "worker:web.3.1"]
        assert worker[1]["ready_at"] == found.ready_at
        pids = {each.pid for each in runner.zygotes.processes}
        assert {each.pid for each in successor.zygotes.processes} == pids
    finally:
        await _leave(successor)


async def _leave(successor: LocalRunner) -> None:
    """Close what a successor has adopted; the processes are ended by the runner, to which their exits are reported."""
    successor._next_check.cancel()
    for worker in successor._workers.values():
        for each in (worker.control, worker.tally):
            if each is not None:
                each.close()
    await successor._close_parts()


@pytest.mark.slow
async def test_worker_whose_server_was_changed_is_adopted_at_its_own_address(runner: ProcessRunner) -> None:
    before = served()
    after = served(tags=["new"])
    await placed(runner, before)
    found: list[LocalWorker] = []
    adoption = WorkerAdoption(runner.keeper, runner.children, runner, {"web": after}, {})
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
