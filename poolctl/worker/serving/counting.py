"""Requests and connections, counted where they begin and end; the price of it is measured (`--only counting`)."""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections.abc import Callable, Hashable
from typing import Any

from ..tally import (
    BOUNDS_NS,
    BROKEN,
    BUCKETS,
    CONNECTIONS,
    DISCONNECTED,
    LATENCY_NS,
    OPEN_CONNECTIONS,
    OPEN_WEBSOCKETS,
    STARTED,
    STATUS,
    WEBSOCKETS,
)
from .server_state import Watched
from .uvicorn_parts import STATUS_TABLES

SOON_SECONDS = 0.01
MANY = 16
_FOREVER_NS = 2**63


class Batch:
    """What was counted in the last few milliseconds, and is not on the page yet.

    The page is written once for many requests: each look at it costs as much as three additions here. Nothing ticks:
    there is a `timer` when there is something to be written. Two looks at the clock are half the price of a request's
    count: after MANY requests in one batch (1,600 a second) one in four is timed, and stands for the others.
    """

    __slots__ = ("_last", "complete", "latencies_ns", "slots", "started", "tally", "timer")

    def __init__(self, tally: memoryview) -> None:
        self.tally = tally
        self.started = 0
        self.complete = 0
        self.latencies_ns: list[int] = []
        self.slots: list[int] = []
        self.timer: asyncio.TimerHandle | None = None
        self._last = [int(SOON_SECONDS * 1e9)]

    def soon(self) -> None:
        """Write what is counted from now on, in a moment."""
        self.timer = asyncio.get_running_loop().call_later(SOON_SECONDS, self.write)

    def write(self) -> None:
        """Write it now."""
        tally, latencies_ns, slots = self.tally, self.latencies_ns, self.slots
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        for slot in set(slots):
            tally[slot] += slots.count(slot)
        slots.clear()
        tally[STARTED] += self.started
        self.started = 0
        if latencies_ns:
            self._last = sorted(latencies_ns)
            latencies_ns.clear()
        if self.complete:
            # Those that were not timed may be complete after those that were: as they were, so were these.
            self._spread(self._last)
            self.complete = 0

    def _spread(self, latencies_ns: list[int]) -> None:
        """Write the latencies of all that is complete, of which these were timed; they are sorted."""
        tally, timed, complete = self.tally, len(latencies_ns), self.complete
        tally[LATENCY_NS] += sum(latencies_ns) * complete // timed
        below = written = 0
        for slot, bound in enumerate((*BOUNDS_NS, _FOREVER_NS), BUCKETS):
            below = bisect_right(latencies_ns, bound, below)
            # Rounded, and whole in the end.
            up_to = below * complete // timed
            if up_to != written:
                tally[slot] += up_to - written
                written = up_to


class Count:
    """What is known of the requests of one connection.

    It is counted in the protocol's own methods, because each call of a function is a part of a request's price; and the
    numbers are not the protocol's own, because with more than thirty attributes all of an object's become slower.
    """

    __slots__ = ("batch", "begun_ns", "newest", "took")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.took = batch.latencies_ns.append
        self.newest: Any = None  # the request whose headers came last
        self.begun_ns = 0  # when the oldest one that is being answered began; 0 if it is not timed

    def lost(self, connection: Any) -> None:
        """The connection is gone: what has no response will have none."""
        newest, self.newest = self.newest, None
        if newest is None or newest.response_complete:
            return
        # When the application has ended, uvicorn takes this back.
        awaited = getattr(newest.on_response, "__self__", None) is connection
        kind = DISCONNECTED if awaited or newest.disconnected else BROKEN
        self.batch.write()
        self.batch.tally[kind] += 1 + len(getattr(connection, "pipeline", ()))


class Statuses:
    """In the place of uvicorn's table of first lines: each look into it is a response that begins."""

    __slots__ = ("count", "rows", "table")

    def __init__(self, table: dict[int, Any], batch: Batch) -> None:
        self.table = table
        self.rows = {status: (line, STATUS + status // 100) for status, line in table.items()}
        self.count = batch.slots.append

    def __getitem__(self, status: int) -> Any:
        line, slot = self.rows[status]
        self.count(slot)
        return line


def count_statuses(protocol: Any, batch: Batch | None) -> bool:
    """Count all responses of uvicorn's HTTP protocol class by their status; None: no more. Whether that is possible.

    One batch for a process: the table is that of all servers in it.
    """
    module = sys.modules.get(getattr(protocol, "__module__", ""))
    able = False
    for name in STATUS_TABLES:
        table = getattr(module, name, None)
        if type(table) is Statuses:
            able = True
            if batch is None:
                setattr(module, name, table.table)
            else:
                table.count = batch.slots.append
        elif type(table) is dict:
            able = True
            if batch is not None:
                setattr(module, name, Statuses(table, batch))
    return able


class Counted:
    """An application whose responses are counted by their status: for protocol classes without such a table."""

    def __init__(self, app: Any, batch: Batch) -> None:
        self.inner = app
        self._batch = batch

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        begun = False

        async def answer(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._batch.slots.append(STATUS + message["status"] // 100)
            await send(message)

        try:
            await self.inner(scope, receive, answer)
        finally:
            if not begun:
                self._batch.slots.append(STATUS + 5)  # uvicorn's own answer


def uncounted(app: Any, batch: Batch) -> Any:
    """The application, with responses that are taken back from those counted by their status."""

    def take_back(status: int) -> None:
        slot = STATUS + status // 100
        if slot in batch.slots:
            batch.slots.remove(slot)
        else:
            batch.tally[slot] -= 1

    async def ask(scope: Any, receive: Any, send: Any) -> None:
        started = False

        async def answer(message: Any) -> None:
            nonlocal started
            await send(message)
            if message["type"] == "http.response.start":
                started = True
                take_back(message["status"])

        try:
            await app(scope, receive, answer)
        except BaseException:
            if not started:
                # uvicorn says so in its own words, at once.
                asyncio.get_running_loop().call_soon(take_back, 500)
            raise

    return ask


class Connections(Watched):
    """The connections of a worker, counted; those that are of no `http` class any more are WebSockets."""

    def __init__(
        self,
        tally: memoryview,
        http: tuple[type[Any], ...],
        on_empty: Callable[[], None],
        on_add: Callable[[], None],
    ) -> None:
        super().__init__(on_empty, on_add)
        self._tally = tally
        self._http = http

    def add(self, element: Hashable) -> None:
        super().add(element)
        tally = self._tally
        if isinstance(element, self._http):
            tally[CONNECTIONS] += 1
        else:
            tally[WEBSOCKETS] += 1
            tally[OPEN_WEBSOCKETS] += 1
        tally[OPEN_CONNECTIONS] = len(self)

    def discard(self, element: Hashable) -> None:
        if element in self:
            if not isinstance(element, self._http):
                self._tally[OPEN_WEBSOCKETS] -= 1
            super().discard(element)
            self._tally[OPEN_CONNECTIONS] = len(self)

    def remove(self, element: Hashable) -> None:
        self.discard(element)
