"""The pages on which workers count, from their first request until somebody has added up what they had counted."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from poolctl.keeper import store_keys
from poolctl.worker.tally import BEAT_ASKED_NS, BEAT_AT_NS, Counts, completed, new_page, read_page

from ...link import Link

_SLOT_BYTES = 8


class Tally:
    """One worker's page. The descriptor is ours."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._legible = False  # known to have our layout

    @classmethod
    def new(cls) -> Tally:
        """A page on which nothing is counted yet."""
        return cls(new_page())

    def fileno(self) -> int:
        """The page's descriptor; -1 once it has been let go of."""
        return self.fd

    def counts(self) -> Counts | None:
        """What its worker has counted so far; None if it has another layout, or has been closed."""
        return read_page(self.fd) if self.fd >= 0 else None

    def ask(self, asked_ns: int) -> None:
        """Note when its worker is asked for a heartbeat."""
        if self.fd >= 0:
            os.pwrite(self.fd, asked_ns.to_bytes(_SLOT_BYTES, sys.byteorder), BEAT_ASKED_NS * _SLOT_BYTES)

    def beaten_ns(self) -> int:
        """When its worker last answered a heartbeat; 0 if it knows of none."""
        if not self._legible:
            self._legible = self.counts() is not None
            if not self._legible:
                return 0
        # That one slot only: it is looked at every few seconds, of every worker.
        return int.from_bytes(os.pread(self.fd, _SLOT_BYTES, BEAT_AT_NS * _SLOT_BYTES), sys.byteorder)

    def close(self) -> None:
        """Let go of the page."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self._legible = False


class Tallies:
    """What workers had counted that have ended. `add_up` is told of each, by a name that no other has, and its server.

    The keeper holds the page until `settled`: whoever comes after us adds up what we did not.
    """

    def __init__(self, keeper: Link) -> None:
        self._keeper = keeper
        self.add_up: Callable[[str, str, Counts], None] | None = None
        self._open: set[str] = set()

    def ended(self, server: str, name: str, tally: Tally) -> None:
        """A worker has ended: its page says no more than now."""
        counts = tally.counts()
        if counts is not None and self.add_up is not None:
            left = completed(counts)
            if any(left):
                self._keeper.send(
                    {"op": "put", "name": f"{store_keys.TALLY}{name}", "meta": {"server": server}}, [tally.fd]
                )
                self._open.add(name)
                self.add_up(name, server, left)
        tally.close()

    def adopt(self, server: str, name: str, fd: int) -> None:
        """Take over the page of a worker that ended before us."""
        tally = Tally(fd)
        counts = tally.counts()
        tally.close()
        self._open.add(name)
        if counts is not None and self.add_up is not None:
            self.add_up(name, server, completed(counts))

    def settled(self) -> None:
        """What was told has been added up where it outlives us."""
        for name in self._open:
            self._keeper.send({"op": "drop", "name": f"{store_keys.TALLY}{name}"})
        self._open.clear()

    @property
    def unsettled(self) -> list[str]:
        """The names of those that were told, and not settled."""
        return sorted(self._open)
