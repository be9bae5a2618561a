"""A clock for tests, which need not wait."""

from __future__ import annotations

from poolctl.clock import Clock


class ManualClock(Clock):
    """A clock that moves only by `advance`."""

    def __init__(self, monotonic_seconds: float = 0.0, time_seconds: float = 1_700_000_000.0) -> None:
        self._monotonic_seconds = monotonic_seconds
        self._time_seconds = time_seconds

    def monotonic(self) -> float:
        """The initial value plus all seconds passed to `advance`."""
        return self._monotonic_seconds

    def time(self) -> float:
        """The initial Unix time plus all seconds passed to `advance`."""
        return self._time_seconds

    def advance(self, seconds: float) -> None:
        """Move both times forward. Raises ValueError for a negative number: monotonic time does not go back."""
        if seconds < 0:
            raise ValueError(f"time does not go back: advance({seconds})")
        self._monotonic_seconds += seconds
        self._time_seconds += seconds

    def set_time_of_day(self, seconds: float) -> None:
        """Move only the time of day, forward or back, as when the machine's time is set."""
        self._time_seconds += seconds
