"""Blocking work beside the loop, on a thread that nobody has to wait for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def aside(work: Callable[[], T]) -> T:
    """What `work` returns. Its thread is a daemon: an import that hangs keeps no interpreter from ending."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def hand_over(value: T | None, error: BaseException | None) -> None:
        if result.cancelled():
            return
        if error is not None:
            # A StopIteration cannot be set on a future; SystemExit would end the loop of everybody else.
            result.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            result.set_result(value)  # type: ignore[arg-type]

    def do() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = work()
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop may be gone
            loop.call_soon_threadsafe(hand_over, value, error)

    threading.Thread(target=do, name="poolctl-aside", daemon=True).start()
    return await result
