"""The number of connections that a process accepts in one iteration of its loop."""

from __future__ import annotations

_PAIR = 2


class BatchSize:
    """How many connections to accept in one iteration; grows up to `most` while enough are waiting.

    An attempt that finds the queue empty costs almost as much as a connection. While connections arrive one at a time,
    the size therefore shrinks to one, and a second attempt is made less and less often.
    """

    __slots__ = ("_most", "_singles", "_tried_after", "size")

    def __init__(self, most: int) -> None:
        self.size = 1
        self._most = most
        self._singles = 0  # single connections left before a second one is tried for
        self._tried_after = 1

    def restart(self) -> None:
        """Begin again with a size of one, so that other waiting processes get their share after a pause."""
        self.size = 1

    def took(self, count: int) -> None:
        """Adapt to the `count` connections found in `size` attempts."""
        if count > 1:
            self._singles, self._tried_after = 0, 1
        if count == self.size:
            if self._singles:
                self._singles -= 1
            else:
                self.size = min(2 * self.size, self._most)
        elif count <= 1:
            if count and self.size == _PAIR:  # the second attempt found nothing
                self._singles, self._tried_after = self._tried_after, min(2 * self._tried_after, self._most)
            self.size = max(1, self.size // 2)
