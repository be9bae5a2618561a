"""Blocking work beside the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from poolctl.runners.listener_opener import in_daemon_thread
from tests.deadline import wait_until


def test_result_comes_from_another_thread_while_the_loop_runs() -> None:
    async def use() -> None:
        gate = threading.Event()
        work = asyncio.ensure_future(
            in_daemon_thread(lambda: (gate.wait(10), threading.current_thread().daemon))
        )
        for _ in range(10):
            await asyncio.sleep(0)
        assert not work.done()
        gate.set()
        assert await work == (True, True)

    asyncio.run(use())


def _exit() -> None:
    raise SystemExit(3)


def _stop() -> None:
    raise StopIteration


def _fail() -> None:
    raise LookupError("not here")


@pytest.mark.parametrize(
    ("work", "kind", "text"),
    [
        (_fail, LookupError, "not here"),
        (_exit, RuntimeError, "SystemExit"),
        (_stop, RuntimeError, "StopIter"),
    ],
)
def test_error_is_raised_where_it_is_awaited(
    work: Callable[[], None], kind: type[BaseException], text: str
) -> None:
    with pytest.raises(kind, match=text):
        asyncio.run(in_daemon_thread(work))


def test_operation_that_is_no_longer_awaited_is_undone() -> None:
    undone: list[str] = []
    gate = threading.Event()

    def work() -> str:
        gate.wait(10)
        return "made"

    async def give_up(then_leave: bool) -> None:
        task = asyncio.ensure_future(in_daemon_thread(work, undo=undone.append))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        if not then_leave:
            gate.set()
            while not undone:
                await asyncio.sleep(0)

    asyncio.run(give_up(then_leave=False))
    assert undone == ["made"]
    gate.clear()
    asyncio.run(give_up(then_leave=True))
    gate.set()
    wait_until(lambda: undone == ["made", "made"])


def test_failure_without_a_waiter_is_dropped() -> None:
    async def give_up() -> None:
        task = asyncio.ensure_future(in_daemon_thread(_fail))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        await in_daemon_thread(lambda: None)  # the failure has been handed over by now

    asyncio.run(give_up())
