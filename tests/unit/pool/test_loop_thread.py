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

from poolctl import Field, Pool, PoolContext, ServerConfig, State
from poolctl.pool import loop_thread
from tests.deadline import wait_until
from tests.own_process import run_in_own_process
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
    assert repr(loop_thread._current) == "<LoopThread 1 tasks>"
    loop_thread._current.loop.call_soon_threadsafe(over.set)  # type: ignore[union-attr]
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
    wait_until(lambda: loop_thread._current is None)
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


def test_filter_sees_the_pool_as_it_was_while_an_expression_is_matched() -> None:
    pool = Pool(
        [ServerConfig(name=name, bind=bind, app="m:app") for name, bind in (("a", ":1"), ("b", ":2"))]
    )
    names = iter(["c", "d", "e"])

    class Changing(str):
        """Changes the pool whenever it is looked at."""

        def casefold(self) -> str:
            pool.store_new(ServerConfig(name=next(names), bind=f":{len(pool) + 1}", app="m:app"))
            return str(self)

    for server in pool.values():
        server._name = Changing(server.name)
    assert [server.name for server in pool.filter(Field.NAME, pattern="x", regex="^[ab]$").values()] == [
        "a",
        "b",
    ]
    assert len(pool) == 4


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


def test_a_pool_has_neither_thread_nor_core_before_its_first_start_and_no_entry_at_rest() -> None:
    runner = ScriptedRunner()
    pool = Pool([ServerConfig(name="a", bind=":1", app="m:app")], runner=runner)
    (server,) = pool.values()
    assert (pool.is_running, server.state, len(pool.filter("name", "a"))) == (False, State.STOPPED, 1)
    pool.stop_sync()
    wait_until(lambda: loop_thread._current is None)
    assert server._handle is None
    pool.start_sync()
    handle = server._handle
    assert handle is not None
    assert handle.entry is not None
    pool.stop_sync()
    assert (handle.entry, handle.host) == (None, None)
    assert server._handle is handle, "how long it was up is remembered"


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
    runner = ScriptedRunner()
    pool = Pool([ServerConfig(name=f"s{n}", bind=f":{n}", app="m:app") for n in (1, 2)], runner=runner)
    pool.start_sync()
    current = loop_thread.get_or_start()
    try:
        loop_thread._finish_current()
        assert not current.thread.is_alive()
        assert (runner.running, runner.opened) == ({}, set())
    finally:
        loop_thread._current = None
    loop_thread._finish_current()


def test_thread_ends_at_exit_without_a_server() -> None:
    current = loop_thread.get_or_start()
    current.hold()
    try:
        loop_thread._finish_current()
        assert not current.thread.is_alive()
    finally:
        loop_thread._current = None


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
