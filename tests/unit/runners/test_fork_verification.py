"""Processes that a zygote names are accepted only when it can have forked them."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from poolctl.keeper import wire
from poolctl.platform import process_start
from poolctl.runners.local import fork_verification as module
from poolctl.runners.local.fork_verification import Children, Forged, Process
from poolctl.runners.process_link import Link
from poolctl.runners.runner_protocol import Exit


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


class Keeper:
    """A keeper that answers every call; `before` is done first, as exits are reported in order."""

    def __init__(self) -> None:
        ours, self._sock = wire.pair()
        self.link = Link(ours)
        self.children = Children(self.link, os.getpid())
        self.before: Any = lambda: None
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._answer)

    def _answer(self) -> None:
        received = wire.receive(self._sock)
        assert received is not None
        self.before()
        wire.send(self._sock, {"id": received[0]["id"]})

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        self.link.close()


@pytest.fixture
def child() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("pid", [-1, 0, 1, 2**40, "word", None, True, 5.0, [], {}, "9" * 100])
def test_invalid_pid_is_refused(pid: object) -> None:
    async def scenario() -> None:
        keeper = Keeper()
        with pytest.raises(Forged, match="an invalid 'pid'"):
            await keeper.children.verify({"pid": pid}, None, None)
        keeper.close()

    run(scenario())


def test_new_process_of_the_user_is_taken_with_its_start_time(child: int) -> None:
    async def scenario() -> None:
        keeper = Keeper()
        found = await keeper.children.verify({"pid": child}, os.geteuid(), process_start(os.getpid()))
        assert found == (child, process_start(child))
        keeper.close()

    run(scenario())


@pytest.mark.parametrize(
    "case", ["another of the pool", "another user's", "older than the zygote", "not there"]
)
def test_process_that_the_zygote_cannot_have_forked_is_refused(child: int, case: str) -> None:
    async def scenario() -> None:
        keeper = Keeper()
        uid, not_before, pid = os.geteuid(), 0, child
        if case == "another of the pool":
            keeper.children.add(child)
        elif case == "another user's":
            uid += 1
        elif case == "older than the zygote":
            not_before = (process_start(child) or 0) + 1
        else:
            pid = (1 << 22) - 1
        with pytest.raises(Forged, match=f"pid {pid} as a new process"):
            await keeper.children.verify({"pid": pid}, uid, not_before)
        keeper.close()

    run(scenario())


def test_process_that_exited_before_the_check_is_known_by_its_report() -> None:
    async def scenario() -> None:
        keeper = Keeper()
        pid = (1 << 22) - 1
        keeper.before = lambda: keeper.children.early.update({pid: Exit.from_status(3)})
        assert await keeper.children.verify({"pid": pid}, 0, 0) == (pid, None)
        assert keeper.children.add(pid) == Exit.from_status(3)
        keeper.close()

    run(scenario())


def test_process_that_does_not_become_a_child_of_the_keeper_is_reported_once(
    child: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LAST_LOOK_SECONDS", 0.05)

    async def scenario() -> None:
        keeper = Keeper()
        deeds: list[str] = []
        keeper.children.confirm(Process(child, process_start(child)), deeds.append)
        parent = os.getppid()
        keeper.children.confirm(Process(parent, process_start(parent)), deeds.append)
        while not deeds:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert deeds == [f"named pid {parent} as a new process, but it is not a process of the pool"]
        keeper.close()

    run(scenario())
