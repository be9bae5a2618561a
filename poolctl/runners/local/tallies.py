"""The pages on which workers count requests, kept until their counts have been added up."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from poolctl.keeper import fd_store
from poolctl.worker.tally import (
    BEAT_ASKED_NS,
    BEAT_AT_NS,
    BEAT_CPU_NS,
    COUNTED,
    Counts,
    clear_stacks,
    completed,
    new_page,
    read_page,
    read_slot,
    read_stacks,
    why_impossible,
    writes_stacks,
)

from ..process_link import Link, Message
from ..runner_protocol import Placement

_SLOT_BYTES = 8


class Tally:
    """The page on which one worker counts its requests. This object owns its descriptor.

    The application can write the page too. Once it shows impossible counts it is no longer trusted, and the counts stay
    as last read, as if the worker had ended. `since` is when the page was empty, by the system's monotonic clock; for a
    page of an earlier supervisor it is the machine's start.
    """

    def __init__(self, fd: int, since: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self.fd = fd
        self.refused = ""  # why it is not believed
        self._legible = False  # its layout is known to be ours
        self._now = now
        self._believed: Counts = [0] * COUNTED
        self._at = since

    @classmethod
    def new(cls) -> Tally:
        """A new page, with all counts zero."""
        return cls(new_page(), time.monotonic())

    def fileno(self) -> int:
        """The page's descriptor; -1 once it is closed."""
        return self.fd

    def counts(self) -> Counts | None:
        """The worker's counts so far; None if the page has another layout, or is closed."""
        counts = read_page(self.fd) if self.fd >= 0 else None
        if counts is None:
            return None
        if not self.refused:
            counted = counts[:COUNTED]
            if counted != self._believed:
                now = self._now()
                self.refused = why_impossible(counted, self._believed, now - self._at)
                if not self.refused:
                    self._believed, self._at = counted, now
        return [*completed(self._believed), *counts[COUNTED:]] if self.refused else counts

    def ask(self, asked_ns: int) -> None:
        """Record the time at which the worker is asked for a heartbeat."""
        if self.fd >= 0:
            os.pwrite(self.fd, asked_ns.to_bytes(_SLOT_BYTES, sys.byteorder), BEAT_ASKED_NS * _SLOT_BYTES)

    def beaten_ns(self) -> int:
        """The time of the worker's last heartbeat; 0 for a worker without heartbeats."""
        if not self._legible:
            self._legible = self.counts() is not None
            if not self._legible:
                return 0
        return self._slot(BEAT_AT_NS)

    def beat_cpu_ns(self) -> int:
        """The processor time that the worker had used at its last heartbeat; 0 if unknown."""
        return self._slot(BEAT_CPU_NS) if self._legible else 0

    def _slot(self, slot: int) -> int:
        # That one only: it is read every few seconds for every worker.
        return read_slot(self.fd, slot)

    @property
    def has_stacks(self) -> bool:
        """Whether the worker can write its stacks to the page when it is signalled."""
        return self.fd >= 0 and writes_stacks(self.fd)

    def clear_stacks(self) -> None:
        """Clear the stacks on the page, so that the worker can write new ones."""
        if self.fd >= 0:
            clear_stacks(self.fd)

    def stacks(self) -> bytes:
        """The stacks that the worker has written; empty if it has written none."""
        return read_stacks(self.fd) if self.fd >= 0 else b""

    def close(self) -> None:
        """Close the page."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._legible = False


class Counting(Protocol):
    """A worker that may have a page of counts."""

    tally: Tally | None


class Tallies:
    """The counts of `workers`, by id, and of workers that have exited (see Counters).

    The keeper holds the page of an exited worker until `settled`, so that a successor can add up the rest. `on_refused`
    is called once with the server and the name of a worker whose page is no longer trusted, and the reason.
    """

    def __init__(
        self, keeper: Link, workers: Mapping[str, Counting], on_refused: Callable[[str, str, str], None]
    ) -> None:
        self._keeper = keeper
        self._workers = workers
        self._on_refused = on_refused
        self.add_up: Callable[[str, str, Counts], None] | None = None
        self._open: set[str] = set()

    def counts(self, placement: Placement) -> Counts | None:
        """See Counters. None for a command, and for a worker that has exited."""
        worker = self._workers.get(placement.id)
        tally = worker.tally if worker is not None else None
        if tally is None:
            return None
        believed = not tally.refused
        counts = tally.counts()
        if believed and tally.refused:
            self._on_refused(placement.server, placement.id, tally.refused)
        return counts

    def ended(self, server: str, name: str, tally: Tally) -> None:
        """Add up the final counts of a worker that has exited."""
        believed = not tally.refused
        counts = tally.counts()
        if believed and tally.refused:
            self._on_refused(server, name, tally.refused)
        if counts is not None and self.add_up is not None:
            left = completed(counts)
            if any(left):
                self._keeper.send(
                    {"op": "put", "name": f"{fd_store.TALLY}{name}", "meta": {"server": server}}, [tally.fd]
                )
                self._open.add(name)
                self.add_up(name, server, left)
        tally.close()

    def adopt(self, name: str, meta: Message, fds: list[int]) -> list[Tally]:
        """Adopt the page of a worker that exited before this process started."""
        tally = Tally(fds[0])
        counts = tally.counts()
        tally.close()
        self._open.add(name)
        if counts is not None and self.add_up is not None:
            self.add_up(name, meta["server"], completed(counts))
        return []

    def settled(self) -> None:
        """Release the pages of exited workers whose counts have been saved."""
        for name in self._open:
            self._keeper.send({"op": "drop", "name": f"{fd_store.TALLY}{name}"})
        self._open.clear()

    @property
    def unsettled(self) -> list[str]:
        """The names of the workers whose counts were reported, but not saved yet."""
        return sorted(self._open)
