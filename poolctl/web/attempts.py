"""How often somebody may try a wrong token."""

from __future__ import annotations

from collections import deque

from poolctl.clock import Clock

MOST = 10
WINDOW_SECONDS = 60.0


class Attempts:
    """Counts wrong tokens, whoever sent them: behind a proxy everybody has one address."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._wrong: deque[float] = deque(maxlen=MOST)

    def wait_seconds(self) -> float:
        """How long nobody may try any more; 0 when one may."""
        if len(self._wrong) < MOST:
            return 0.0
        return max(0.0, self._wrong[0] + WINDOW_SECONDS - self._clock.monotonic())

    def failed(self) -> None:
        """Note a wrong one."""
        self._wrong.append(self._clock.monotonic())
