"""The page of memory on which a worker counts requests and answers heartbeats, as the supervisor reads it."""

from __future__ import annotations

import os
import sys

from poolctl.platform import process_cpu_ns, waits_for_events
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ..process_link import Descriptor

_SLOT_BYTES = 8
# Processor time that a worker needs to go to sleep after an answer; if it used more, it did other work.
_AFTER_ANSWER_NS = 1_000_000


class Tally(Descriptor):
    """The page of memory on which one worker counts its requests, and writes its stacks.

    The application can write to the page too: its figures are its own affair, but none is larger than `tally.MAX`.
    """

    @classmethod
    def new(cls) -> Tally:
        """Create a tally with a new memory page, on which all counts are zero."""
        return cls(tally.create_tally_page())

    def counts(self) -> Counts | None:
        """Return the worker's counts so far; None for a page in another poolctl version's layout."""
        return tally.read_tally_page(self._fd)

    def ask(self, asked_ns: int) -> None:
        """Record the time at which the worker is asked for a heartbeat."""
        os.pwrite(self._fd, asked_ns.to_bytes(_SLOT_BYTES, sys.byteorder), tally.BEAT_ASKED_NS * _SLOT_BYTES)

    def last_beat_ns(self) -> int:
        """The time of the last `ask` that the worker has answered; 0 if it answers none, or `counts` returns None."""
        return self._slot(tally.BEAT_ANSWERED_NS)

    def beat_cpu_ns(self) -> int:
        """The processor time that the worker had used at its last heartbeat; 0 if unknown."""
        return self._slot(tally.BEAT_CPU_NS)

    def _slot(self, slot: int) -> int:
        page = tally.read_tally_page(self._fd)
        return 0 if page is None else page[slot]


class EventLoopIdleDetector:
    """Detects whether a worker's event loop is idle, without sending it a message.

    A worker is found idle when its main thread waits for events in the loop, and the process has used hardly any
    processor time since its last heartbeat. It then counts as idle for as long as its processor time does not change,
    because a process that has not run is still waiting. Once its processor time changes, the worker does not count as
    idle until its next heartbeat: it may have handled a request, or a thread may have taken Python's lock.
    """

    __slots__ = ("_answered_at_ns", "_idle_at_ns")

    def __init__(self) -> None:
        self._answered_at_ns = 0
        self._idle_at_ns: int | None = None

    def is_idle(self, pid: int, tally: Tally) -> bool:
        """Whether the process `pid` is idle; False if the kernel does not report its processor time. Does not block.

        `tally` has the processor time that the worker had used at its last heartbeat.
        """
        used_ns = process_cpu_ns(pid)
        if used_ns is None or used_ns == self._idle_at_ns:
            return used_ns is not None
        self._idle_at_ns = None
        before_ns, self._answered_at_ns = self._answered_at_ns, tally.beat_cpu_ns()
        if (
            self._answered_at_ns != before_ns
            and used_ns - self._answered_at_ns <= _AFTER_ANSWER_NS
            and waits_for_events(pid)
            # The process has not run meanwhile, so the observation before is still valid.
            and process_cpu_ns(pid) == used_ns
        ):
            self._idle_at_ns = used_ns
        return self._idle_at_ns is not None
