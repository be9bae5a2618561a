"""Counts requests by latency and status; the cost is measured (`python -m benchmarks --only counting`)."""

from __future__ import annotations

import asyncio
import sys
from bisect import bisect_right
from collections.abc import Callable
from http import HTTPStatus
from time import monotonic_ns
from typing import Any

from ..tally import (
    BOUNDS_NS,
    BROKEN,
    BUCKETS,
    DISCONNECTED,
    LATENCY_NS,
    STARTED,
    STATUS,
    error_slot,
    route_slot,
)
from .access_log import LEAST_FAILURE, FailedRequests
from .uvicorn_parts import (
    STATUS_TABLES,
    App,
    Http1Protocol,
    Message,
    Receive,
    RequestResponseCycle,
    Scope,
    Send,
)

SOON_SECONDS = 0.01
MANY = 16
_FOREVER_NS = 2**63


class Batch:
    """The counts of the last few milliseconds, which are not on the page yet.

    The page is written once for many requests: each access to it costs as much as three additions here. There is a
    `timer` only while there is something to write. Reading the clock twice is half the cost of counting a request:
    after MANY requests in one batch (1,600 a second) one in four is timed, and stands for the others. `passed` are the
    requests that came through a gateway, by their routes, `failed` the errors among them. `on_write` is called
    whenever the counts are written.
    """

    __slots__ = (
        "_last",
        "_route_slots",
        "complete",
        "failed",
        "latencies_ns",
        "on_write",
        "passed",
        "slots",
        "started",
        "tally",
        "timer",
    )

    def __init__(self, tally: memoryview) -> None:
        self.tally = tally
        self.started = 0
        self.complete = 0
        self.latencies_ns: list[int] = []
        self.slots: list[int] = []
        self.passed: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self._route_slots: dict[str, int] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.on_write: Callable[[], None] | None = None
        self._last = [int(SOON_SECONDS * 1e9)]

    def soon(self) -> None:
        """Start the timer that writes the counts."""
        self.timer = asyncio.get_running_loop().call_later(SOON_SECONDS, self.write)

    def write(self) -> None:
        """Write the counts to the page now."""
        tally, latencies_ns, slots = self.tally, self.latencies_ns, self.slots
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        for slot in set(slots):
            tally[slot] += slots.count(slot)
        slots.clear()
        tally[STARTED] += self.started
        self.started = 0
        if self.passed:
            self._write_passed()
        if self.failed:
            self._write_failed()
        if latencies_ns:
            self._last = sorted(latencies_ns)
            latencies_ns.clear()
        if self.complete:
            # Requests that were not timed may complete after those that were, and get the same distribution.
            self._spread(self._last)
            self.complete = 0
        if self.on_write is not None:
            self.on_write()

    def unanswered(self, connection: Http1Protocol, newest: RequestResponseCycle) -> None:
        """The connection is closed: its newest request, and those before it in the pipeline, get no response."""
        # uvicorn resets this when the application has returned.
        awaited = getattr(newest.on_response, "__self__", None) is connection
        kind = DISCONNECTED if awaited or newest.disconnected else BROKEN
        self.write()
        self.tally[kind] += 1 + len(getattr(connection, "pipeline", ()))

    def _write_passed(self) -> None:
        for alias, count in self.passed.items():
            slot = self._route_slots.get(alias)
            if slot is None:
                slot = self._route_slots[alias] = route_slot(self.tally, alias)
            self.tally[slot] += count
        self.passed.clear()

    def _write_failed(self) -> None:
        for alias, count in self.failed.items():
            if (slot := error_slot(self.tally, alias)) is not None:
                self.tally[slot] += count
        self.failed.clear()

    def _spread(self, latencies_ns: list[int]) -> None:
        """Write the latencies of all complete requests, in proportion to those that were timed, which are sorted."""
        tally, timed, complete = self.tally, len(latencies_ns), self.complete
        tally[LATENCY_NS] += sum(latencies_ns) * complete // timed
        below = written = 0
        for slot, bound in enumerate((*BOUNDS_NS, _FOREVER_NS), BUCKETS):
            below = bisect_right(latencies_ns, bound, below)
            # Rounded; the sum is exact.
            up_to = below * complete // timed
            if up_to != written:
                tally[slot] += up_to - written
                written = up_to


class Statuses:
    """Replaces uvicorn's table of status lines: each lookup is a response that begins.

    Only a failed request is looked at more closely: its status is not among the `rows`.
    """

    __slots__ = ("count", "failed", "rows", "table")

    def __init__(self, table: dict[int, bytes], batch: Batch, failed: FailedRequests | None) -> None:
        self.table = table
        self.rows = {
            status: (line, STATUS + status // 100) for status, line in table.items() if status < LEAST_FAILURE
        }
        self.count = batch.slots.append
        self.failed = failed

    def __getitem__(self, status: int) -> bytes:
        try:
            line, slot = self.rows[status]
        except KeyError:
            line, slot = self.table[status], STATUS + status // 100
            if self.failed is not None:
                _log(self.failed, sys._getframe(1).f_locals.get("self"), status)
        self.count(slot)
        return line


def _log(failed: FailedRequests, cycle: Any, status: int) -> None:
    """Log the request that `cycle`, the caller of the lookup, is about to answer; not that of a health probe."""
    connection: Any = getattr(getattr(cycle, "on_response", None), "__self__", None)
    if getattr(connection, "batch", None) is not None:
        begun_ns = connection.begun_ns  # 0 where it is not timed
        failed.log(cycle.scope, status, (monotonic_ns() - begun_ns) / 1e9 if begun_ns else None)


def count_statuses(protocol: type, batch: Batch | None, failed: FailedRequests | None = None) -> bool:
    """Count all responses of uvicorn's HTTP protocol class by status, with None no more; False if that is impossible.

    There is one batch for a process, because all servers in it share the table. `failed` logs those that failed.
    """
    module = sys.modules.get(protocol.__module__)
    able = False
    for name in STATUS_TABLES:
        table = getattr(module, name, None)
        if type(table) is Statuses:
            able = True
            if batch is None:
                setattr(module, name, table.table)
            else:
                table.count, table.failed = batch.slots.append, failed
        elif type(table) is dict:
            able = True
            if batch is not None:
                setattr(module, name, Statuses(table, batch, failed))
    return able


class Counted:
    """An application whose responses are counted by status, for protocol classes without such a table.

    Those that failed are logged. Without a batch they only are.
    """

    def __init__(self, app: App, batch: Batch | None, failed: FailedRequests | None = None) -> None:
        self.inner = app
        self._batch = batch
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        begun = False

        async def answer(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._answered(scope, message["status"])
            await send(message)

        try:
            await self.inner(scope, receive, answer)
        finally:
            if not begun:
                self._answered(scope, HTTPStatus.INTERNAL_SERVER_ERROR)  # uvicorn's own response

    def _answered(self, scope: Scope, status: int) -> None:
        if self._batch is not None:
            self._batch.slots.append(STATUS + status // 100)
        if self._failed is not None and status >= LEAST_FAILURE:
            self._failed.log(scope, status)
