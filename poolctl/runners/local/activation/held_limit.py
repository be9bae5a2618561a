"""Limits how many connections the supervisor holds for all sleeping servers together."""

from __future__ import annotations

import os
import resource
import time

from .sleeping_listener import HeldConnection

# Independent of the limit of open files: each costs memory.
MOST = 8192
# Even if most descriptors are in use: a client that is slow to send its request is not closed at once.
LEAST = 16
_MOST_AT_ONCE = 64
_LOOK_SECONDS = 0.1


class HeldLimit:
    """Counts held connections, and leaves a quarter of this process's descriptors to the rest of its work.

    The keeper holds each as well, and has the same limit.
    """

    def __init__(self) -> None:
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The arrivals of one turn of the loop must fit as well.
        self.most_at_once = max(1, min(_MOST_AT_ONCE, self._limit // 16))
        self._connections: set[HeldConnection] = set()
        self._most = 0
        self._looked_at = 0.0

    def add(self, held: HeldConnection) -> None:
        """Count one more."""
        self._connections.add(held)

    def remove(self, held: HeldConnection) -> None:
        """Count one fewer."""
        self._connections.discard(held)

    @property
    def too_many(self) -> bool:
        """Whether one must be closed to keep the newest."""
        count = len(self._connections)
        if count <= LEAST:
            return False
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            # The descriptors of the rest of the work; counting them takes too long to do it for each connection.
            others = len(os.listdir("/proc/self/fd")) - count
            self._most = min(MOST, max(LEAST, self._limit - self._limit // 4 - others))
            self._looked_at = time.monotonic()
        return count > self._most
