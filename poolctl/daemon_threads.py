"""Threads for calls that may block, such as a read from a file system that does not respond.

They are daemons: a call that hangs cannot keep the interpreter from exiting. A supervisor creates its threads when it
starts, because the machine may refuse another one later (RLIMIT_NPROC, pids.max).
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    T = TypeVar("T")

NAME = "poolctl-calls"
# Few, because threads count towards process limits (RLIMIT_NPROC, pids.max). Further calls wait.
THREADS = 6

_pool: DaemonThreads | None = None


class DaemonThreads(ThreadPoolExecutor):
    """An executor that creates its threads at once; they end with the process.

    `submit` tries again to create missing threads. While there are none at all, it runs calls in the caller's thread.
    """

    def __init__(self, count: int = THREADS) -> None:
        super().__init__(count)
        self._missing = count
        self._count = count
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._create_missing()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        call = partial(complete, future, partial(fn, *args, **kwargs))
        self._create_missing()
        if self._missing < self._count:
            self._calls.put(call)
        else:
            call()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: waiting would hang with a hung call."""

    def _create_missing(self) -> None:
        while self._missing:
            try:
                threading.Thread(target=self._perform_calls, name=NAME, daemon=True).start()
            except RuntimeError:  # the machine refuses another thread
                return
            self._missing -= 1

    def _perform_calls(self) -> None:
        while True:
            self._calls.get()()


def complete(future: Future[T], call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def create_pool() -> DaemonThreads:
    """Create the threads that `run_in_daemon_thread` uses in this process from now on; returns their executor."""
    global _pool
    _pool = DaemonThreads()
    return _pool


def run_in_daemon_thread(work: Callable[[], object]) -> None:
    """Run `work` in a thread of this process's pool or, without a pool, in a new one. Does not wait.

    Raises RuntimeError if there is no pool and the machine refuses a thread.
    """
    if _pool is not None:
        _pool.submit(work)
    else:
        threading.Thread(target=work, name="poolctl-aside", daemon=True).start()


async def in_daemon_thread(work: Callable[[], T], *, undo: Callable[[T], object] = lambda _: None) -> T:
    """Run `work` in a thread and return its result; if the caller is cancelled, `undo` gets the result instead.

    Raises RuntimeError if a thread cannot be created.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def hand_over(value: T) -> None:
        if result.cancelled():
            undo(value)
        else:
            result.set_result(value)

    def fail(error: BaseException) -> None:
        if not result.cancelled():
            # A StopIteration cannot be set on a future; SystemExit would end the whole loop.
            can_be_set = isinstance(error, Exception) and not isinstance(error, StopIteration)
            result.set_exception(error if can_be_set else RuntimeError(repr(error)))

    def run_work() -> None:
        try:
            value = work()
        except BaseException as error:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(hand_over, value)
        except RuntimeError:  # the loop is gone
            undo(value)

    run_in_daemon_thread(run_work)
    return await result
