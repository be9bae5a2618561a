"""Counts requests by latency and status; the cost is measured (`python -m benchmarks --only counting`)."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

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
from .access_log import LEAST_FAILURE
from .uvicorn_parts import Message

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
            # Untimed requests may complete after timed ones; they get the same distribution.
            self._spread(self._last)
            self.complete = 0
        if self.on_write is not None:
            self.on_write()

    def unanswered(self, connection: object, newest: Any) -> None:
        """The connection is closed: its newest request, and the requests before it in the pipeline, get no response."""
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
        """Write the latencies of all complete requests, in proportion to the timed latencies, which are sorted."""
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


class Counts(Protocol):
    """A connection that counts its responses; without a batch it only logs failures."""

    batch: Batch | None

    def log_failure(self, cycle: Any, status: int) -> None:
        """Log a request that is being answered with this status."""


def send_counted(connection: Counts, cycle: Any, message: Message) -> Awaitable[None]:
    """`send` of uvicorn's object for a request; the connection counts the response by its status when it begins."""
    if not cycle.response_started and message["type"] == "http.response.start" and not cycle.disconnected:
        del cycle.send  # this function, which refers to the object: only the garbage collector would end that
        status = message["status"]
        if 100 <= status < 600:  # uvicorn raises an error for any other
            if connection.batch is not None:
                connection.batch.slots.append(STATUS + status // 100)
            if status >= LEAST_FAILURE:
                connection.log_failure(cycle, status)
    return type(cycle).send(cycle, message)  # type: ignore[no-any-return]
