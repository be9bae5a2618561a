"""Detects a hung process: it is pinged periodically, and any message within a time limit counts as an answer.

Only time in which the watching process itself ran counts: a pause of the container, or of the whole machine, does not
shorten the time for an answer.
"""

from __future__ import annotations

PING_SECONDS = 5.0
SILENT_SECONDS = 10.0
# Before its first message it imports its modules, which may take long on a busy machine.
FIRST_MESSAGE_SECONDS = 60.0
# The number of checks within the time limit.
_CHECKS = 10
_LATE_CHECKS = 2


class Watchdog:
    """All times are those of one monotonic clock, in seconds. A first message is awaited."""

    def __init__(
        self, now: float, ping_seconds: float = PING_SECONDS, silent_seconds: float = SILENT_SECONDS
    ) -> None:
        self._ping_seconds = ping_seconds
        self._silent_seconds = silent_seconds
        self._check_seconds = silent_seconds / _CHECKS
        self._patience = max(FIRST_MESSAGE_SECONDS, silent_seconds)
        self._ping_at = now
        self._awaited = True
        self._checked = now
        self.waited_seconds = 0.0  # for the awaited answer

    def received(self, now: float) -> None:
        """A message of the process was received."""
        self._awaited, self._patience = False, self._silent_seconds
        self._ping_at = now + self._ping_seconds
        self.waited_seconds = 0.0

    @property
    def due(self) -> float:
        """When to check again."""
        if not self._awaited:
            return self._ping_at
        return self._checked + min(self._check_seconds, self._patience - self.waited_seconds)

    def is_silent(self, now: float) -> bool:
        """Whether it was pinged and has not answered in time; to be called no later than `due`."""
        if not self._awaited:
            return False
        passed, self._checked = now - self._checked, now
        if passed <= 2 * self._check_seconds:
            # A longer gap means that this process did not run; the other one may not have run either.
            self.waited_seconds += min(passed, self._check_seconds)
        return self.waited_seconds >= self._patience

    @property
    def is_late(self) -> bool:
        """Whether the awaited answer is overdue."""
        return self.waited_seconds >= _LATE_CHECKS * self._check_seconds

    def should_ping(self, now: float, *, early: bool = False) -> bool:
        """Whether to ping it now; if so it counts as pinged. `early`: even after a recent message."""
        if self._awaited or (now < self._ping_at and not early):
            return False
        self._awaited, self._checked = True, now
        return True
