"""An event loop whose time passes at once: hours of timers in a millisecond."""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Never waits: it moves the loop's time forward instead."""

    moment = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("deadlock: the loop waits, and no timer runs")
        if not ready and timeout:
            self.moment += timeout
        return ready


class SameThread(ThreadPoolExecutor):
    """Runs each function at once: the loop's time would pass while another thread works."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(fn(*arguments, **named))
        except Exception as error:
            done.set_exception(error)
        return done


class VirtualLoop(asyncio.SelectorEventLoop):
    """For code without sockets, or with peers in this loop.

    `time()` is 0 at first and moves only while the loop waits for a timer.
    """

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.moment

    def pause(self, seconds: float) -> None:
        """Let time pass without running anything, as when the whole process is paused."""
        self._virtual.moment += seconds

    def pass_time(self, seconds: float = 0.0) -> None:
        """Run everything that is due within this time, and what follows from it."""
        self.run_until_complete(self._pass(seconds))

    async def getaddrinfo(self, *names: Any, **hints: Any) -> Any:
        """Look up names in this thread: the loop's time would pass during an answer from another one."""
        return socket.getaddrinfo(*names, **hints)

    def close(self) -> None:
        """Cancel what still runs first, so that no task or coroutine is left for the next test to report."""
        if not self.is_closed():
            self.run_until_complete(self._cancel())
        super().close()

    async def _cancel(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _pass(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        for _ in range(5):
            await asyncio.sleep(0)


class HurriedLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes so many times as fast, for peers of the real time: threads and processes."""

    def __init__(self, times: float) -> None:
        self._times = times
        selector = selectors.DefaultSelector()
        select = selector.select
        selector.select = lambda timeout=None: select(timeout and timeout / times)  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        return super().time() * self._times


def run_hurried(times: float, work: Coroutine[Any, Any, T]) -> T:
    """Run this to its end while the loop's time passes so many times as fast; returns its result."""
    with asyncio.Runner(loop_factory=lambda: HurriedLoop(times)) as runner:
        return runner.run(work)


class _OneThread(VirtualLoop):
    def run_in_executor(self, executor: Any, func: Callable[..., Any], *arguments: Any) -> Any:
        return asyncio.wrap_future(SameThread(1).submit(func, *arguments), loop=self)


def run_in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run this to its end on a loop of its own, which runs in one thread; returns its result."""
    with asyncio.Runner(loop_factory=_OneThread) as runner:
        return runner.run(work)
