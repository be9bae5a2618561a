"""The background thread whose event loop manages this process's servers. It exists only while it is needed.

Every start, stop and restart runs on that loop, and may be called from any thread and any event loop. The thread is a
daemon, and servers that still run when the main thread ends are stopped within EXIT_SECONDS, so that exiting never
hangs.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import functools
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeVar

from poolctl.runners.runner_protocol import Runner

# One lock for all pools of the process. It is held for a few dictionary operations only, so sharing it costs nothing;
# two pools that are merged into each other cannot deadlock; and it is held during a fork, so that a child never
# inherits it locked by a thread that does not exist in the child.
LOCK = threading.RLock()

T = TypeVar("T")

EXIT_SECONDS = 5.0

epoch = 0  # the number of forks between this process and the first
_current: LoopThread | None = None
_of_parents: list[LoopThread] = []


class LoopThread:
    """A thread with an event loop. It ends when each `hold` is released and all work given to `order` is done."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop
        self.on_exit: dict[object, Callable[[], Awaitable[object]]] = {}
        self.own_runner: Runner | None = None  # for pools without a runner
        self._tasks: set[asyncio.Task[object]] = set()
        self._holds = 0
        self._begun = threading.Event()
        self.thread = threading.Thread(target=self._run_loop, name="poolctl-engine", daemon=True)
        self.thread.start()
        self._begun.wait()

    def __repr__(self) -> str:
        return f"<LoopThread {len(self._tasks)} tasks>"

    def _run_loop(self) -> None:
        # There is one main task, because anyio's worker threads live as long as the main task.
        with asyncio.Runner() as runner:
            self.loop = runner.get_loop()
            self._over = asyncio.Event()
            self._begun.set()
            runner.run(self._serve())

    async def _serve(self) -> None:
        await self._over.wait()

    def order(self, work: Coroutine[None, None, T]) -> concurrent.futures.Future[T]:
        """Schedule `work` on the loop; returns its future, which can cancel it. The caller must hold LOCK.

        Work that is cancelled before the loop has taken it up does not begin.
        """
        self._holds += 1  # released when the work is done
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        # In an empty context, because the work may outlast its caller.
        self.loop.call_soon_threadsafe(self._begin, work, result, context=contextvars.Context())
        return result

    def _begin(self, work: Coroutine[None, None, T], result: concurrent.futures.Future[T]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        # Not in a `finally` of the work, which does not run if the task is cancelled before its first step.
        task.add_done_callback(functools.partial(self._end, result))

        def cancel(result: concurrent.futures.Future[T]) -> None:
            if result.cancelled():
                self.loop.call_soon_threadsafe(task.cancel)

        if result.cancelled():
            task.cancel()
        else:
            result.add_done_callback(cancel)

    def _end(self, result: concurrent.futures.Future[T], task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        self._release()
        if task.cancelled():
            result.cancel()
        if not result.set_running_or_notify_cancel():
            return
        if error := task.exception():
            result.set_exception(error)
        else:
            result.set_result(task.result())

    def hold(self) -> None:
        """Keep the loop thread alive until the matching `release`, for a running server or a runner in use."""
        with LOCK:
            self._holds += 1

    def release(self) -> None:
        """Undo one `hold`. May be called from any thread, even by a finalizer while another thread holds LOCK."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        global _current
        with LOCK:
            self._holds -= 1
            if self._holds:
                return
            if _current is self:
                _current = None
        self._over.set()

    def stop_servers_and_end(self) -> None:
        """Stop all servers and end the thread, within EXIT_SECONDS; blocks. Called when the process exits."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self._run_exit_callbacks_and_end()))
        self.thread.join(EXIT_SECONDS + 1)

    async def _run_exit_callbacks_and_end(self) -> None:
        endings = [asyncio.ensure_future(ending()) for ending in list(self.on_exit.values())]
        if endings:
            await asyncio.wait(endings, timeout=EXIT_SECONDS)
        self._over.set()


def get_or_start() -> LoopThread:
    """Return the one LoopThread of this process. Starts its thread if there is no LoopThread yet."""
    global _current
    with LOCK:
        if _current is None:
            _current = LoopThread()
        return _current


def submit(work: Coroutine[None, None, T]) -> concurrent.futures.Future[T]:
    """Schedule `work` on the loop thread, without waiting; returns a future of its result."""
    with LOCK:
        return get_or_start().order(work)


async def run(work: Coroutine[None, None, T]) -> T:
    """Run `work` on the loop thread and return its result, without blocking the caller's own loop."""
    return await asyncio.wrap_future(submit(work))


def run_sync(work: Coroutine[None, None, T]) -> T:
    """Run `work` on the loop thread and return its result; blocks. Raises RuntimeError on the loop thread."""
    try:
        refuse_own_thread()
    except RuntimeError:
        work.close()
        raise
    future = submit(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def call(work: Callable[[], T]) -> T:
    """Call `work` on the loop thread and return its result; blocks. Without a loop thread, call it in this thread."""
    if _current is None or is_own_thread():
        return work()

    async def called() -> T:
        return work()

    return run_sync(called())


def is_own_thread() -> bool:
    """Whether the caller runs on the loop thread."""
    return _current is not None and _current.thread is threading.current_thread()


def refuse_own_thread() -> None:
    """Raise RuntimeError if called on the loop thread, where a blocking wait for servers would never end."""
    if is_own_thread():
        raise RuntimeError(
            "this would block the loop that serves the pool; use the coroutine of the same name"
        )


def _finish_current() -> None:
    if _current is not None:
        _current.stop_servers_and_end()


def _forget_in_child() -> None:
    # The thread does not exist after a fork. Its loop must be kept, because closing it would remove the parent's
    # descriptors out of the epoll object that both share.
    global _current, epoch
    epoch += 1
    if _current is not None:
        _of_parents.append(_current)
        _current = None


os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
os.register_at_fork(after_in_child=_forget_in_child)
# Called before threads are joined, because an application's own worker threads end only with the loop.
getattr(threading, "_register_atexit", atexit.register)(_finish_current)
