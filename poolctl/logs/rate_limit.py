"""A rate limit: a bucket of tokens that fills up again with time."""

from __future__ import annotations


class RateLimit:
    """Lets `burst` through at once and `per_second` in the long run. Times are those of one monotonic clock."""

    __slots__ = ("_at", "_burst", "_left", "_per_second")

    def __init__(self, burst: float, per_second: float) -> None:
        self._burst = self._left = burst
        self._per_second = per_second
        self._at = 0.0

    def take(self, amount: float, now: float) -> bool:
        """Whether `amount` is allowed now; if so, it is used up."""
        self._left = min(self._burst, self._left + max(0.0, now - self._at) * self._per_second)
        self._at = now
        if amount > self._left:
            return False
        self._left -= amount
        return True
