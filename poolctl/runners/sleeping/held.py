"""Limits how many connections the supervisor holds for all sleeping servers together."""

from __future__ import annotations

import os
import resource
import time

from .bell import Visitor

# Whatever the limit of open files: each costs memory.
MOST = 8192
# However many descriptors are in use: a client that is slow to ask is not to be sent away at once.
LEAST = 16
_MOST_AT_ONCE = 64
_LOOK_SECONDS = 0.1


class Held:
    """Those that are held. They leave a quarter of this process's descriptors to the rest of its work.

    The keeper holds each as well, and has the same limit.
    """

    def __init__(self) -> None:
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # What arrives in one turn of the loop has to find room as well.
        self.most_at_once = max(1, min(_MOST_AT_ONCE, self._limit // 16))
        self._held: set[Visitor] = set()
        self._most = 0
        self._looked_at = 0.0

    def add(self, visitor: Visitor) -> None:
        """Count one more."""
        self._held.add(visitor)

    def remove(self, visitor: Visitor) -> None:
        """Count one less."""
        self._held.discard(visitor)

    @property
    def too_many(self) -> bool:
        """Whether one must be closed to keep the newest."""
        count = len(self._held)
        if count <= LEAST:
            return False
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            # What the rest of the work has now; to count it takes too long for doing it with each connection.
            others = len(os.listdir("/proc/self/fd")) - count
            self._most = min(MOST, max(LEAST, self._limit - self._limit // 4 - others))
            self._looked_at = time.monotonic()
        return count > self._most
