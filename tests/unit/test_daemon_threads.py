"""The threads of a supervisor: there from the beginning, whatever the machine refuses later."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from poolctl.daemon_threads import NAME, THREADS, DaemonThreads, in_daemon_thread
from tests.deadline import wait_until
from tests.threads import no_more_threads


def of_thread() -> tuple[str, bool]:
    thread = threading.current_thread()
    return thread.name, thread.daemon


def test_calls_use_the_threads_that_were_created_at_first() -> None:
    async def use(threads: DaemonThreads) -> None:
        asyncio.get_running_loop().set_default_executor(threads)
        calls = [asyncio.to_thread(of_thread) for _ in range(3 * THREADS)]
        assert set(await asyncio.gather(*calls)) == {(NAME, True)}
        with pytest.raises(LookupError, match="not here"):
            await asyncio.to_thread({"here": 1}.pop, "not here")

    def count() -> int:
        return sum(each.name == NAME for each in threading.enumerate())

    before = count()
    threads = DaemonThreads()
    loop = asyncio.new_event_loop()
    try:
        with no_more_threads():
            loop.run_until_complete(asyncio.wait_for(use(threads), 30))
    finally:
        loop.close()
    assert count() == before + THREADS


def test_threads_that_were_refused_are_created_by_a_later_call() -> None:
    with no_more_threads():
        threads = DaemonThreads()
        assert threads.submit(threading.current_thread).result() is threading.current_thread()
    assert threads.submit(of_thread).result() == (NAME, True)


def test_call_that_was_cancelled_before_its_turn_is_not_made() -> None:
    threads, gate, calls = DaemonThreads(1), threading.Event(), []
    threads.submit(gate.wait, 30)
    waiting = threads.submit(calls.append, "late")
    assert waiting.cancel()
    gate.set()
    assert threads.submit(calls.copy).result() == []


async def test_result_comes_from_another_thread_while_the_loop_runs() -> None:
    gate = threading.Event()
    work = asyncio.ensure_future(in_daemon_thread(lambda: (gate.wait(10), threading.current_thread().daemon)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not work.done()
    gate.set()
    assert await work == (True, True)


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


async def test_failure_without_a_waiter_is_dropped() -> None:
    task = asyncio.ensure_future(in_daemon_thread(_fail))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    await in_daemon_thread(lambda: None)  # the failure has been handed over by now


_PROCESS = """
import asyncio, threading
from poolctl.daemon_threads import create_pool, run_in_daemon_thread
from poolctl.daemon_threads import in_daemon_thread

async def use():
    assert await in_daemon_thread(threading.current_thread) in threads
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang():
        loop.call_soon_threadsafe(begun.set)
        threading.Event().wait()

    asyncio.get_running_loop().run_in_executor(pool, hang)
    await begun.wait()
    print("hangs")

pool = create_pool()
threads = threading.enumerate()
asyncio.run(use())
"""


def test_process_with_a_pool_uses_its_threads_and_exits_although_one_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", _PROCESS], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hangs\n", "")
