"""Server-sent events (WHATWG HTML §9.2) with a heartbeat, so that a proxy does not close the stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

PULSE_SECONDS = 15.0


async def with_pulse(
    messages: AsyncGenerator[str], over: asyncio.Event, *, pulse_seconds: float = PULSE_SECONDS
) -> AsyncGenerator[str]:
    """The messages, and a comment after `pulse_seconds` without one. Begins with the delay before a reconnect.

    Ends when `over` is set, so that the server need not wait for viewers.
    """
    yield "retry: 1000\n\n"
    upcoming: asyncio.Future[str] | None = None
    ending = asyncio.ensure_future(over.wait())
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(messages))
            waiting: set[asyncio.Future[Any]] = {upcoming, ending}
            done, _ = await asyncio.wait(waiting, timeout=pulse_seconds, return_when=asyncio.FIRST_COMPLETED)
            if ending in done:
                return
            if not done:
                yield ": still here\n\n"
                continue
            try:
                message = upcoming.result()
            except StopAsyncIteration:
                return
            upcoming = None
            yield message
    finally:
        ending.cancel()
        if upcoming is not None:
            upcoming.cancel()
            with contextlib.suppress(asyncio.CancelledError, StopAsyncIteration):
                await upcoming
        await messages.aclose()
