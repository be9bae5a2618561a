"""The background thread whose event loop manages this process's servers. It exists only while needed.

Every start, stop and restart runs on that loop; callers may be on any thread and event loop. If an application blocks
the loop, callers with a limit get LoopBlocked. The thread is a daemon. When the main thread ends, running servers are
stopped within EXIT_SECONDS, so that exiting never hangs.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import functools
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import FIRST_COMPLETED
from typing import Any, NamedTuple, TypeVar

from poolctl.runners.runner_protocol import Runner
from poolctl.runners.stack_report import PYTHON, SameStackTasks, ThreadStack, find_main_thread_hang, parse
from poolctl.worker.tally import describe_stacks

# One lock for all pools of the process. It is held for a few dictionary operations only, so sharing it costs nothing;
# two pools that are merged into each other cannot deadlock; and it is held during a fork, so that a child never
# inherits it locked by a thread that does not exist in the child.
LOCK = threading.RLock()

T = TypeVar("T")

EXIT_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
ANSWER_SECONDS = 2.0

# Whether the main thread has ended, and the servers with it.
_exited = False
epoch = 0  # the number of forks between this process and the first
_current: LoopThread | None = None
_inherited: list[LoopThread] = []


class Limit(NamedTuple):
    """The maximum time to wait for work, then for the loop to answer a ping."""

    seconds: float
    answer_seconds: float = ANSWER_SECONDS


class LoopBlocked(TimeoutError):
    """The loop thread does not answer. `place` is the blocking call, or ""; the stack is added as a note."""

    def __init__(self, thread: LoopThread) -> None:
        ident = thread.thread.ident
        self.place = find_main_thread_hang(thread.stacks([os.getcwd()])[0])
        where = f"is blocked in {self.place}" if self.place else "does not answer"
        super().__init__(f"the loop of all servers in this process {where}")
        if (frame := sys._current_frames().get(ident or 0)) is not None:
            self.add_note("".join(["Stack of the loop's thread:\n", *traceback.format_stack(frame)]).rstrip())


class LoopThread:
    """A thread with an event loop. It ends once every `hold` is released and all work passed to `order` is done."""

    def __init__(self) -> None:
        # Created here, so that the caller gets the error if no descriptor is free. The factory keeps the loop from
        # becoming the current event loop of the caller's thread.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop = self._runner.get_loop()
        self.on_exit: dict[object, Callable[[], Awaitable[object]]] = {}
        self.own_runner: Runner | None = None  # for pools without a runner
        self.runners: weakref.WeakSet[Runner] = weakref.WeakSet()  # the other runners in use
        self._tasks: set[asyncio.Task[object]] = set()
        self._holds = 0
        self._over = asyncio.Event()
        self.thread = threading.Thread(target=self._run_loop, name="poolctl-engine", daemon=True)
        try:
            self.thread.start()
        except RuntimeError:
            self._runner.close()
            raise

    def __repr__(self) -> str:
        return f"<LoopThread {len(self._tasks)} tasks>"

    def _run_loop(self) -> None:
        # One main task, because anyio ends its worker threads with the task that started the loop.
        try:
            self._runner.run(self._over.wait())
        finally:
            # Python 3.12 starts no thread while it exits, not even the one that ends the loop's executor.
            with contextlib.suppress(RuntimeError):
                self._runner.close()

    def order(self, work: Coroutine[None, None, T]) -> concurrent.futures.Future[T]:
        """Schedule `work` on the loop; return a future that can cancel it. The caller must hold LOCK.

        Work cancelled before the loop begins it never runs.
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

    def stacks(self, directories: Iterable[str]) -> tuple[list[ThreadStack], list[SameStackTasks]]:
        """The stacks of this thread and of its loop's tasks; `directories` contain the applications' code."""
        lines = "\n".join(describe_stacks(None, self.thread.ident, self.loop))
        return parse(lines.encode(errors="backslashreplace"), PYTHON, directories)

    def ping(self) -> concurrent.futures.Future[None]:
        """Return a future that is done as soon as the loop answers, or has ended."""
        answer: concurrent.futures.Future[None] = concurrent.futures.Future()
        try:
            self.loop.call_soon_threadsafe(answer.set_result, None)
        except RuntimeError:
            answer.set_result(None)
        return answer

    def shut_down(self) -> None:
        """Stop all servers and end the thread, within EXIT_SECONDS; blocks. Called when the process exits."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(lambda: self.loop.create_task(self._shut_down_on_loop()))
        if not concurrent.futures.wait([self.ping()], ANSWER_SECONDS).not_done:
            self.thread.join(EXIT_SECONDS + 2 * _CLOSE_SECONDS)

    async def _shut_down_on_loop(self) -> None:
        if stopping := [
            asyncio.ensure_future(stop_servers()) for stop_servers in list(self.on_exit.values())
        ]:
            await asyncio.wait(stopping, timeout=EXIT_SECONDS)
        if closing := [asyncio.ensure_future(runner.aclose()) for runner in self.runners]:
            await asyncio.wait(closing, timeout=_CLOSE_SECONDS)
        self._over.set()


def get_or_start() -> LoopThread:
    """Return the LoopThread of this process, started if necessary."""
    global _current
    with LOCK:
        if _current is None:
            _current = LoopThread()
        return _current


def submit(work: Coroutine[None, None, T]) -> concurrent.futures.Future[T]:
    """Schedule `work` on the loop thread, without waiting; returns a future of its result."""
    with LOCK:
        return get_or_start().order(work)


async def run(work: Coroutine[None, None, T], limit: Limit | None = None, *, stands: bool = False) -> T:
    """Run `work` on the loop thread and return its result, without blocking the caller's loop.

    Raises LoopBlocked if the loop does not answer after the limit, and cancels the work unless `stands`.
    """
    future = submit(work)
    try:
        if limit is not None:
            await wait([future], limit)
        return await asyncio.wrap_future(future)
    except BaseException as error:
        if not (stands and isinstance(error, LoopBlocked)):
            future.cancel()
        raise


def run_sync(work: Coroutine[None, None, T], limit: Limit | None = None, *, stands: bool = False) -> T:
    """Like `run`, but blocks. Raises RuntimeError on the loop thread."""
    try:
        refuse_own_thread()
    except RuntimeError:
        work.close()
        raise
    future = submit(work)
    try:
        if limit is not None:
            wait_sync([future], limit)
        return future.result()
    except BaseException as error:
        if not (stands and isinstance(error, LoopBlocked)):
            future.cancel()
        raise


async def wait(futures: Iterable[concurrent.futures.Future[Any]], limit: Limit) -> None:
    """Wait for all the futures; raises LoopBlocked if the loop does not answer when the limit is over."""
    thread, seconds = _current, limit.seconds  # bound now: _current is cleared when the process exits
    pending = {asyncio.wrap_future(future) for future in futures}
    for future in pending:
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # mark it as retrieved
    while (pending := (await asyncio.wait(pending, timeout=seconds))[1]) and thread is not None:
        answers = [asyncio.wrap_future(thread.ping()), *pending]
        if not (await asyncio.wait(answers, timeout=limit.answer_seconds, return_when=FIRST_COMPLETED))[0]:
            raise LoopBlocked(thread)
        seconds = ANSWER_SECONDS


def wait_sync(futures: Iterable[concurrent.futures.Future[Any]], limit: Limit) -> None:
    """Like `wait`, but blocks."""
    thread, seconds = _current, limit.seconds
    pending = {*futures}
    while (pending := concurrent.futures.wait(pending, seconds).not_done) and thread is not None:
        answers = [thread.ping(), *pending]
        if not concurrent.futures.wait(answers, limit.answer_seconds, FIRST_COMPLETED).done:
            raise LoopBlocked(thread)
        seconds = ANSWER_SECONDS


def call(work: Callable[[], T], limit: Limit | None = None) -> T:
    """Call `work` on the loop thread and return its result; blocks. Without a loop thread, call it in this thread.

    Raises LoopBlocked.
    """
    if _current is None or is_own_thread():
        return work()

    async def coroutine() -> T:
        return work()

    return run_sync(coroutine(), limit)


def is_own_thread() -> bool:
    """Whether the caller runs on the loop thread."""
    return _current is not None and _current.thread is threading.current_thread()


def refuse_own_thread() -> None:
    """Raise RuntimeError if called on the loop thread, where a blocking wait for servers would never end."""
    if is_own_thread():
        raise RuntimeError(
            "this would block the loop that serves the pool; use the coroutine of the same name"
        )


def has_exited() -> bool:
    """Whether the servers were stopped at the end of the main thread, and none has started since."""
    return _exited and _current is None


def _finish_current() -> None:
    global _current, _exited
    if _current is not None:
        _current.shut_down()
    _current, _exited = None, True


def _forget_in_child() -> None:
    # The thread does not exist after a fork. Keep its loop: closing it would remove the parent's descriptors from the
    # epoll object that both processes share.
    global _current, epoch
    epoch += 1
    if _current is not None:
        _inherited.append(_current)
        _current = None


os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)
os.register_at_fork(after_in_child=_forget_in_child)
# Runs before threads are joined, because applications' worker threads end only with the loop.
getattr(threading, "_register_atexit", atexit.register)(_finish_current)
