"""Blocking work in a thread that does not keep the process from ending."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(work: Callable[[], T], *, undo: Callable[[T], object] = lambda _: None) -> T:
    """What `work` returns; `undo` gets it when the caller was cancelled meanwhile.

    Its thread is a daemon: an import that hangs keeps no interpreter from ending.
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
            usual = isinstance(error, Exception) and not isinstance(error, StopIteration)
            result.set_exception(error if usual else RuntimeError(repr(error)))

    def do() -> None:
        try:
            value = work()
        except BaseException as error:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(hand_over, value)
        except RuntimeError:  # the loop is gone
            undo(value)

    threading.Thread(target=do, name="poolctl-aside", daemon=True).start()
    return await result
