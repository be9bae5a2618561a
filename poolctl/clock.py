"""Time as a parameter, so that an hour of backoff tests in a millisecond; a rate limit."""

from __future__ import annotations

import time


class Clock:
    """The system's time. Both methods give seconds."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970 (UTC); may jump when the machine's time is set."""
        return time.time()


SystemClock = Clock


class ManualClock(Clock):
    """A clock that moves only by `advance`."""

    def __init__(self, monotonic_seconds: float = 0.0, time_seconds: float = 1_700_000_000.0) -> None:
        self._monotonic_seconds = monotonic_seconds
        self._time_seconds = time_seconds

    def monotonic(self) -> float:
        """The initial value plus all seconds passed to `advance`."""
        return self._monotonic_seconds

    def time(self) -> float:
        """Likewise, since 1970 (UTC)."""
        return self._time_seconds

    def advance(self, seconds: float) -> None:
        """Move both times forward. Raises ValueError for a negative number: monotonic time does not go back."""
        if seconds < 0:
            raise ValueError(f"time does not go back: advance({seconds})")
        self._monotonic_seconds += seconds
        self._time_seconds += seconds


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
