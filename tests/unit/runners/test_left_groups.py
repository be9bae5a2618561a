"""What programs leave in their process groups is asked to end once, and killed in time, by any supervisor."""

from __future__ import annotations

import asyncio
import signal
from typing import Any, cast

import pytest

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.runners.local.children import Children
from poolctl.runners.local.left_groups import LeftGroups
from poolctl.runners.local.local_worker import KILL_SECONDS, LocalWorker
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEventHandler
from tests.virtual_loop import run_in_virtual_time

PID = 7
ASKED, KILLED = ("signal", signal.SIGINT, True), ("signal", signal.SIGKILL, True)


class RecordingKeeper:
    """A keeper that signals whatever it is asked to signal."""

    def __init__(self) -> None:
        self.orders: list[wire.Message] = []

    def send(self, message: wire.Message, fds: Any = ()) -> None:
        self.orders.append(message)

    async def call(self, message: wire.Message) -> tuple[wire.Message, list[int]]:
        self.orders.append(message)
        return {"sent": True}, []

    def signals(self) -> list[tuple[str, int, bool]]:
        found = [each for each in self.orders if each["op"] == "signal"]
        assert all((each["pid"], each["start"]) == (PID, 5) for each in found)
        return [(each["op"], each["signal"], each["group"]) for each in found]


class Stage:
    """The left groups of a supervisor, and the worker of a program."""

    def __init__(self, **keys: Any) -> None:
        self.keeper = RecordingKeeper()
        self.children = Children(cast(Any, self.keeper), 0)
        self.groups = LeftGroups(cast(Any, self.keeper), self.children)
        keys = {"command": ["sh"], "bind": ":1", "stop_signal": "SIGINT", "stop_timeout": 3} | keys
        server = ServerConfig(name="web", **keys)
        placement = Placement.of("web", 1, 0, pid=PID)
        self.worker = LocalWorker(self.children, RunnerEventHandler(), placement, server, "web", start=5)

    def exit(self) -> None:
        self.worker.record_exit(Exit(signal=signal.SIGINT, group_left=True))
        self.groups.add(self.worker)

    def kept(self) -> wire.Message:
        (order,) = [each for each in self.keeper.orders if each["op"] == "put"]
        assert order["name"] == f"group:{PID}"
        found: wire.Message = order["meta"]
        return found


pytestmark = pytest.mark.loop(run=run_in_virtual_time)


@pytest.mark.parametrize("stop_group", ["after", "together"])
async def test_group_that_a_crash_leaves_is_asked_to_end_and_killed_after_the_stop_timeout(
    stop_group: str,
) -> None:
    stage = Stage(stop_group=stop_group)
    stage.exit()
    assert stage.keeper.signals() == [ASKED]
    await asyncio.sleep(2.9)
    assert stage.keeper.signals() == [ASKED]
    await asyncio.sleep(0.2)
    assert stage.keeper.signals() == [ASKED, KILLED]


@pytest.mark.parametrize(("stop_group", "signals"), [("after", [ASKED]), ("together", [])])
async def test_group_of_a_program_that_was_asked_to_end_has_the_time_limit_of_the_stop(
    stop_group: str, signals: list[object]
) -> None:
    stage = Stage(stop_group=stop_group)
    stage.worker.asked_to_end = True
    stage.exit()
    await asyncio.sleep(60)
    assert stage.keeper.signals() == signals
    stage.groups.handle_gone(PID)
    assert stage.keeper.orders[-1] == {"op": "drop", "name": f"group:{PID}"}
    assert PID not in stage.groups


async def test_group_of_a_leader_stays_until_all_are_ended() -> None:
    stage = Stage(stop_group="leader")
    stage.exit()
    await stage.groups.wait_until_gone(stage.worker.server.key)
    assert stage.worker.group_ended.done(), "nothing waits for it"
    assert stage.keeper.signals() == []
    ending = asyncio.ensure_future(stage.groups.end_all())
    await asyncio.sleep(1)
    assert stage.keeper.signals() == [ASKED]
    await asyncio.sleep(2.5)
    assert stage.keeper.signals() == [ASKED, KILLED]
    assert not ending.done()
    stage.groups.handle_gone(PID)
    await ending


async def test_group_that_cannot_be_killed_is_not_waited_for_without_limit() -> None:
    stage = Stage()
    stage.exit()
    loop = asyncio.get_running_loop()
    await stage.groups.wait_until_gone(":2")
    assert loop.time() == 0, "it is another server's"
    await stage.groups.wait_until_gone(stage.worker.server.key)
    assert loop.time() == pytest.approx(3 + KILL_SECONDS)
    stage.groups.kill_all()
    assert stage.keeper.signals() == [ASKED, KILLED, KILLED]


async def test_group_of_an_earlier_supervisor_is_not_asked_again_and_is_killed_in_time() -> None:
    before, stage = Stage(), Stage()
    before.exit()
    stage.groups.adopt(str(PID), before.kept(), [])
    # Its keeper may be new, too.
    assert stage.keeper.orders == [{"op": "watch", "pid": PID, "start": 5}]
    assert [leader.pid for leader in stage.groups.leaders] == [PID]
    await asyncio.sleep(4)
    assert stage.keeper.signals() == [KILLED]


async def test_group_that_was_gone_before_it_is_adopted_is_forgotten() -> None:
    before, stage = Stage(), Stage()
    before.exit()
    stage.groups.handle_gone(PID)
    stage.groups.adopt(str(PID), before.kept(), [])
    assert PID not in stage.groups
    await asyncio.sleep(60)
    assert stage.keeper.signals() == []
