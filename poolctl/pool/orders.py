"""What is asked of one server: carried out one after the other, a stop before what has not been begun."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any

from poolctl.errors import ServerError

from . import engine
from .lock import LOCK

Work = Coroutine[Any, Any, None]


class Orders:
    """On the engine's loop, except for `stop`, which is given from any thread; `error` makes the server's failures."""

    def __init__(self, error: Callable[[str], ServerError]) -> None:
        self.stops = 0  # orders to stop that are not carried out yet
        self.starts = 0  # orders to start or restart that are not carried out yet
        self.ending: set[concurrent.futures.Future[Any]] = set()  # what `Pool.join` awaits
        self._error = error
        self._attempt: asyncio.Task[None] | None = None
        self._lock: asyncio.Lock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def pending(self) -> bool:
        """Whether something has been ordered that is not carried out yet."""
        return bool(self.ending or self.starts)

    def stop(self, work: Callable[[], Work]) -> concurrent.futures.Future[None]:
        """The future of `work`, which stops the server; a start under way is cut short. Does not block."""
        with LOCK:
            self.stops += 1
            return self.to_await(self._stop(work))

    async def _stop(self, work: Callable[[], Work]) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
        try:
            async with self.turn():
                await work()
        finally:
            with LOCK:
                self.stops -= 1

    def to_await(self, work: Work) -> concurrent.futures.Future[None]:
        """The future of work that `Pool.join` awaits; from any thread, does not block."""
        with LOCK:
            future = engine.submit(work)
            self.ending.add(future)
        future.add_done_callback(self.ending.discard)
        return future

    async def start(self, work: Callable[[], Work]) -> None:
        """Carry out `work`, which makes `attempt`s, when it is its turn."""
        with LOCK:
            self.starts += 1
        try:
            # What was ordered before comes first, though it may reach its turn later.
            while self.stops:
                await self.turn_over()
            async with self.turn():
                await work()
        finally:
            with LOCK:
                self.starts -= 1

    async def attempt(self, work: Work) -> None:
        """Carry out a start or a swap, which an order to stop cuts short. Raises ServerError then."""
        if self.stops:
            work.close()
            raise self._error("was told to stop before it was ready")
        self._attempt = asyncio.get_running_loop().create_task(work)
        try:
            await self._attempt
        except asyncio.CancelledError:
            if self.stops:
                raise self._error("was told to stop before it was ready") from None
            raise
        finally:
            self._attempt = None

    def turn(self) -> asyncio.Lock:
        """Held by who changes what the server does."""
        # Engines come and go, and a lock belongs to one loop.
        loop = asyncio.get_running_loop()
        if self._lock is None or self._loop is not loop:
            self._lock, self._loop = asyncio.Lock(), loop
        return self._lock

    async def turn_over(self) -> None:
        """Return when what is under way now is over."""
        async with self.turn():
            await asyncio.sleep(0)
