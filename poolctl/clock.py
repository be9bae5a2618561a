"""The system's clock, which tests can replace; rate limits for events and reports; a watchdog for hung processes."""

from __future__ import annotations

import time

# Interval at which schedules read the clock: an event loop does not notice a suspended machine or a changed clock.
LOOK_SECONDS = 30.0


class Clock:
    """The system's time in seconds: `monotonic` for measuring durations, `time` for the date and time of day."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary fixed time; never goes back."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970 (UTC); may jump when the machine's time is set."""
        return time.time()


class RateLimit:
    """A token bucket: allows `burst` at once, and `per_second` on average. All times are on one monotonic clock."""

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


class ReportLimit:
    """Counts events by key, and allows a report of each key at most once a minute. Times are monotonic."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._next: dict[str, float] = {}

    def count_to_report(self, now: float, count: int = 1, key: str = "") -> int:
        """Count events; returns the key's count since its last report if it may be reported now, otherwise 0."""
        total = self._counts.pop(key, 0) + count
        if not total or now < self._next.get(key, now):
            self._counts[key] = total
            return 0
        self._next[key] = now + 60.0
        return total


def next_aligned_time(now: float, interval_seconds: float) -> float:
    """The first multiple of the interval that is at least a tenth of the interval after `now`.

    Periodic tasks aligned in this way to the system's monotonic clock share one wake-up.
    """
    return -(-(now + interval_seconds / 10) // interval_seconds) * interval_seconds


PING_SECONDS = 5.0
SILENT_SECONDS = 10.0
# A process imports its modules before its first message, which is slow on a busy machine.
FIRST_MESSAGE_SECONDS = 60.0
# Checks per time limit.
_CHECKS = 10
_LATE_CHECKS = 2


class HungProcessDetector:
    """A detector of a hung process, which the caller pings periodically.

    The caller pings the process when `mark_ping_sent_if_due` returns True, and calls `received` after each message from
    the process. After a ping, a message must come within `silent_seconds`. The first message must come without a ping,
    within 60 seconds or `silent_seconds`, whichever is longer. Time in which the watching process did not run, such as
    a pause of the machine, does not count. All times are on one monotonic clock.
    """

    def __init__(
        self, now: float, ping_seconds: float = PING_SECONDS, silent_seconds: float = SILENT_SECONDS
    ) -> None:
        self._ping_seconds = ping_seconds
        self._silent_seconds = silent_seconds
        self._check_seconds = silent_seconds / _CHECKS
        self._limit_seconds = max(FIRST_MESSAGE_SECONDS, silent_seconds)
        self._ping_at = now
        self._awaits_message = True
        self._checked_at = now
        self.waited_seconds = 0.0  # time spent waiting for the expected answer

    def received(self, now: float) -> None:
        """Note that the watched process has sent a message, so that none is awaited until the next ping."""
        self._awaits_message, self._limit_seconds = False, self._silent_seconds
        self._ping_at = next_aligned_time(now, self._ping_seconds)
        self.waited_seconds = 0.0

    @property
    def due(self) -> float:
        """The time at which to call `check_for_hang` and `mark_ping_sent_if_due` again."""
        if not self._awaits_message:
            return self._ping_at
        return self._checked_at + min(self._check_seconds, self._limit_seconds - self.waited_seconds)

    def check_for_hang(self, now: float) -> bool:
        """Return whether the watched process hangs: the expected message has not come in time.

        Must be called at each time `due`. A much later call does not count the time since the previous call.
        """
        if not self._awaits_message:
            return False
        passed, self._checked_at = now - self._checked_at, now
        if passed <= 2 * self._check_seconds:
            # A longer gap means that this process was paused, and perhaps the watched process too.
            self.waited_seconds += min(passed, self._check_seconds)
        return self.waited_seconds >= self._limit_seconds

    @property
    def may_be_stopped(self) -> bool:
        """Whether a fifth of the time limit has passed without the expected answer: an early sign of a hung process."""
        return self.waited_seconds >= _LATE_CHECKS * self._check_seconds

    def mark_ping_sent_if_due(self, now: float, *, early: bool = False) -> bool:
        """Return True if the caller must ping now; `check_for_hang` awaits the answer. `early` skips the interval."""
        if self._awaits_message or (now < self._ping_at and not early):
            return False
        self._awaits_message, self._checked_at = True, now
        return True
