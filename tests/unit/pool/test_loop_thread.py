"""The one thread with the one loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import gc
import os
import threading
from typing import Any

import pytest

from poolctl import Pool, PoolContext, ServerConfig, State
from poolctl.pool import loop_thread
from tests.deadline import wait_until
from tests.own_process import run_in_own_process
from tests.unit.pool.conftest import engines
from tests.unit.runners.scripted_runner import ScriptedRunner


async def _thread() -> threading.Thread:
    return threading.current_thread()


def test_work_is_done_on_one_thread_that_is_not_the_callers() -> None:
    async def hold(until: asyncio.Event) -> threading.Thread:
        await until.wait()
        return threading.current_thread()

    over = asyncio.Event()
    held = loop_thread.submit(hold(over))
    here = loop_thread.run_sync(_thread())
    there = asyncio.run(loop_thread.run(_thread()))
    assert here is there is not threading.current_thread()
    assert here.daemon
    current = loop_thread.get_or_start()
    assert repr(current) == "<LoopThread 1 tasks>"
    current.loop.call_soon_threadsafe(over.set)
    assert held.result(60) is here
    wait_until(lambda: not here.is_alive())


def test_a_new_thread_is_begun_when_the_last_one_has_ended() -> None:
    first = loop_thread.run_sync(_thread())
    wait_until(lambda: not first.is_alive())
    assert loop_thread.run_sync(_thread()) is not first


def test_errors_and_cancellation_reach_the_caller() -> None:
    async def fail() -> None:
        raise LookupError("not here")

    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(LookupError):
        loop_thread.run_sync(fail())
    with pytest.raises(LookupError):
        asyncio.run(loop_thread.run(fail()))
    with pytest.raises(concurrent.futures.CancelledError):
        loop_thread.run_sync(give_up())


def test_cancelling_the_future_cancels_the_work_and_its_cleaning_up_is_awaited() -> None:
    begun, cleaned = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    future = loop_thread.submit(work())
    assert begun.wait(60)
    assert future.cancel()
    assert cleaned.wait(60)


def test_work_that_is_cancelled_before_it_began_leaves_nothing() -> None:
    ran: list[Any] = []

    async def work() -> None:
        ran.append(1)

    async def order_and_cancel() -> None:
        loop_thread.submit(work()).cancel()

    loop_thread.run_sync(order_and_cancel())
    wait_until(lambda: not engines())
    assert ran == []


def test_context_variables_stay_with_the_caller() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    variable.set(1)

    async def read() -> int:
        return variable.get()

    assert loop_thread.run_sync(read()) == 0


def test_blocking_on_its_own_thread_is_refused() -> None:
    async def nested() -> None:
        loop_thread.run_sync(_thread())

    with pytest.raises(RuntimeError, match="would block"):
        loop_thread.run_sync(nested())


def test_a_context_that_is_cancelled_while_a_server_starts_ends_it() -> None:
    context = PoolContext()
    runner = ScriptedRunner()
    pool = Pool([ServerConfig(name="a", bind=":1", app="m:app")], runner=runner, context=context)
    place = runner.place

    async def place_and_cancel(*arguments: Any, **options: Any) -> Any:
        placement = await place(*arguments, **options)
        context.stop.set()
        return placement

    runner.place = place_and_cancel  # type: ignore[method-assign]
    pool.start_sync()
    wait_until(lambda: not pool.is_running)
    pool.join_sync()
    asyncio.run(pool.join())
    assert runner.running == {}


def test_join_of_many_is_awaited_in_any_loop() -> None:
    runner = ScriptedRunner()
    pool = Pool([ServerConfig(name=f"s{n}", bind=f":{n}", app="m:app") for n in range(1, 6)], runner=runner)
    pool.start_sync()
    pool.clean()
    asyncio.run(pool.join())
    assert runner.running == {}


def test_a_pool_has_no_thread_before_its_first_start() -> None:
    runner = ScriptedRunner()
    pool = Pool([ServerConfig(name="a", bind=":1", app="m:app")], runner=runner)
    (server,) = pool.values()
    assert (pool.is_running, server.state, len(pool.filter("name", "a"))) == (False, State.STOPPED, 1)
    pool.stop_sync()
    wait_until(lambda: not engines())


def test_call_is_made_on_the_loop_thread_if_there_is_one() -> None:
    here = threading.current_thread()
    assert loop_thread.call(threading.current_thread) is here
    assert not loop_thread.is_own_thread()
    current = loop_thread.get_or_start()
    current.hold()

    async def within() -> bool:
        return loop_thread.is_own_thread() and loop_thread.call(threading.current_thread) is current.thread

    try:
        assert loop_thread.call(threading.current_thread) is current.thread
        assert loop_thread.run_sync(within())
        assert not loop_thread.is_own_thread()
    finally:
        current.release()


def test_servers_that_run_when_the_process_exits_are_stopped_before_the_thread_ends() -> None:
    run_in_own_process("""
import atexit, os
from poolctl import Pool, ServerConfig
from tests.unit.pool.conftest import engines
from tests.unit.pool.conftest import engines
from tests.unit.runners.scripted_runner import ScriptedRunner
runner = ScriptedRunner()
pool = Pool([ServerConfig(name=f"s{n}", bind=f":{n}", app="m:app") for n in (1, 2)], runner=runner)
pool.start_sync()
assert len(runner.running) == 2
# After the threads have ended.
atexit.register(lambda: os._exit(len(engines()) + len(runner.running) + len(runner.opened)))
""")


def test_thread_ends_at_exit_without_a_server() -> None:
    run_in_own_process("""
import atexit, os
from poolctl.pool import loop_thread
from tests.unit.pool.conftest import engines
loop_thread.get_or_start().hold()
assert len(engines()) == 1
atexit.register(lambda: os._exit(len(engines())))
""")


def test_finalizer_releases_the_loop_thread_while_another_thread_holds_the_lock() -> None:
    current = loop_thread.get_or_start()
    current.hold()
    with loop_thread.LOCK:
        finalizer = threading.Thread(target=current.release)
        finalizer.start()
        finalizer.join(10)
        waits = finalizer.is_alive()
    assert not waits
    current.thread.join(60)
    assert not current.thread.is_alive()


def test_child_of_a_fork_leaves_the_loop_of_its_parent_alone() -> None:
    loop_thread.get_or_start().hold()
    if (child := os.fork()) == 0:
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    current = loop_thread.get_or_start()
    assert loop_thread.submit(_thread()).result(10) is current.thread
    current.release()


def test_loop_for_which_no_descriptor_is_free_is_an_error_and_the_next_one_works() -> None:
    run_in_own_process("""
import errno
from poolctl.pool import loop_thread
from tests.descriptors import free_descriptors
try:
    with free_descriptors(0):
        loop_thread.get_or_start()
except OSError as error:
    assert error.errno == errno.EMFILE
else:
    raise AssertionError("it has begun")
async def work():
    return 7
assert loop_thread.run_sync(work()) == 7
""")
