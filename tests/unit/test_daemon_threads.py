"""The threads of a supervisor: there from the beginning, whatever the machine refuses later."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from poolctl.daemon_threads import NAME, THREADS, DaemonThreads
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


_PROCESS = """
import asyncio, threading
from poolctl.daemon_threads import create_pool, run_in_daemon_thread
from poolctl.runners.listener_opener import in_daemon_thread

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
