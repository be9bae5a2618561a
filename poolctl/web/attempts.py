"""Limits how often a wrong token may be tried."""

from __future__ import annotations

from collections import deque

from poolctl.clock import Clock

MOST = 10
WINDOW_SECONDS = 60.0


class Attempts:
    """Counts wrong tokens of all clients together: behind a proxy they share one address."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wrong: deque[float] = deque(maxlen=MOST)

    def wait_seconds(self) -> float:
        """Seconds until the next attempt is allowed; 0 if it is allowed now."""
        if len(self._wrong) < MOST:
            return 0.0
        return max(0.0, self._wrong[0] + WINDOW_SECONDS - self._clock.monotonic())

    def failed(self) -> None:
        """Count a wrong token."""
        self._wrong.append(self._clock.monotonic())
