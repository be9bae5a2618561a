"""How many connections a doorbell may hold for all its servers together."""

from __future__ import annotations

import resource

from .bell import Visitor

# Whatever the limit of open files: each costs memory.
MOST = 8192
# However many descriptors are in use: a client that is slow to ask is not to be sent away at once.
LEAST = 32
_MOST_AT_ONCE = 64


class Held:
    """Those that are held. They leave a quarter of this process's descriptors to the rest of its work.

    The keeper holds each as well, and has the same limit. Numbers of descriptors are given from the lowest on: the
    number of the newest one says how many are in use.
    """

    def __init__(self) -> None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._highest = limit - limit // 4
        # What arrives in one turn of the loop has to find room as well.
        self.most_at_once = max(1, min(_MOST_AT_ONCE, limit // 16))
        self._held: set[Visitor] = set()
        self._newest = 0

    def add(self, visitor: Visitor) -> None:
        """One more is held."""
        self._held.add(visitor)
        self._newest = visitor.sock.fileno()

    def remove(self, visitor: Visitor) -> None:
        """It is held no longer."""
        self._held.discard(visitor)

    @property
    def too_many(self) -> bool:
        """Whether one has to go for the newest."""
        return len(self._held) > (LEAST if self._newest >= self._highest else MOST)
