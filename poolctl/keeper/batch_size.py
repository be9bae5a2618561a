"""How many connections a process takes in one iteration of its loop."""

from __future__ import annotations

_PAIR = 2


class BatchSize:
    """Grows to `most` while there are that many: many in one iteration cost less than one in each.

    To find none left costs almost as much as one more connection. So while they come one at a time it shrinks to one,
    and another one is tried for more and more seldom.
    """

    __slots__ = ("_most", "_singles", "_tried_after", "size")

    def __init__(self, most: int) -> None:
        self.size = 1  # to take now
        self._most = most
        self._singles = 0  # to take before another one is tried for
        self._tried_after = 1

    def restart(self) -> None:
        """Begin with one: after a pause others that wait should get their share."""
        self.size = 1

    def took(self, count: int) -> None:
        """So many were there; no more than `size` were tried for."""
        if count > 1:
            self._singles, self._tried_after = 0, 1
        if count == self.size:
            if self._singles:
                self._singles -= 1
            else:
                self.size = min(2 * self.size, self._most)
        elif count <= 1:
            if count and self.size == _PAIR:  # it was alone
                self._singles, self._tried_after = self._tried_after, min(2 * self._tried_after, self._most)
            self.size = max(1, self.size // 2)
