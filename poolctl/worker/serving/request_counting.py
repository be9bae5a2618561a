"""Counts requests by latency and status, at a cost that is measured (`python -m benchmarks --only counting`)."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
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


class Batch:
    """The counts of the last few milliseconds, which are not on the page yet.

    The page is written once for many requests: each access to it costs as much as three additions here. There is a
    `timer` only while there is something to write. `passed` are the requests that came through a gateway, by their
    routes, `failed` the errors among them. `on_write` is called whenever the counts are written.
    """

    __slots__ = (
        "_route_slots",
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
        self.latencies_ns: list[int] = []
        self.slots: list[int] = []
        self.passed: dict[str, int] = {}
        self.failed: dict[str, int] = {}
        self._route_slots: dict[str, int] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.on_write: Callable[[], None] | None = None

    def soon(self) -> None:
        """Schedule the writing of the counts."""
        self.timer = asyncio.get_running_loop().call_later(SOON_SECONDS, self.write)

    def write(self) -> None:
        """Write the counts to the page now."""
        tally, latencies_ns, slots = self.tally, self.latencies_ns, self.slots
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        tally[LATENCY_NS] += sum(latencies_ns)
        slots += [BUCKETS + bisect_left(BOUNDS_NS, each) for each in latencies_ns]
        latencies_ns.clear()
        for slot in set(slots):
            tally[slot] += slots.count(slot)
        slots.clear()
        tally[STARTED] += self.started
        self.started = 0
        if self.passed:
            self._write_passed()
        if self.failed:
            self._write_failed()
        if self.on_write is not None:
            self.on_write()

    def unanswered(self, connection: object, newest: Any) -> None:
        """Count the requests of a closed connection that stay unanswered: the newest and those in the pipeline."""
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


class Counts(Protocol):
    """A connection that counts its responses or, without a batch, only logs failed requests."""

    batch: Batch | None

    def log_failure(self, cycle: Any, status: int) -> None:
        """Log a request that is being answered with this status."""


def send_counted(connection: Counts, cycle: Any, message: Message) -> Awaitable[None]:
    """Call `send` of uvicorn's object for a request, and count the response by status when it begins."""
    if not cycle.response_started and message["type"] == "http.response.start" and not cycle.disconnected:
        del cycle.send  # this function, which refers to the object: only the garbage collector would end that
        status = message["status"]
        if 100 <= status < 600:  # uvicorn raises an error for any other
            if connection.batch is not None:
                connection.batch.slots.append(STATUS + status // 100)
            if status >= LEAST_FAILURE:
                connection.log_failure(cycle, status)
    return type(cycle).send(cycle, message)  # type: ignore[no-any-return]
