"""Decides when the state for a successor is saved: soon after a change, and for a tenth of the loop's time at most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from poolctl.clock import Clock

SOON_SECONDS = 0.05
# Even if a call took very long, because the machine was busy or asleep.
LATEST_SECONDS = 2.0
_TIMES_ITS_COST = 9.0


class SaveTimer:
    """Calls `save` after a change. The longer the last call took, the later the next one.

    Until then a successor knows less than this process. What an answer reports is saved before it, by `save_now`.
    """

    def __init__(self, save: Callable[[], None], clock: Clock | None = None) -> None:
        self._save = save
        self._clock = clock or Clock()
        self._timer: asyncio.TimerHandle | None = None
        self.pause_seconds = SOON_SECONDS

    def note_change(self) -> None:
        """Have it saved soon."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.pause_seconds, self.save_now)

    def save_now(self) -> None:
        """Save before this returns."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        begun = self._clock.monotonic()
        self._save()
        cost = self._clock.monotonic() - begun
        # A call that had nothing to save says little about the next one.
        due = max(SOON_SECONDS, _TIMES_ITS_COST * cost, self.pause_seconds / 2)
        self.pause_seconds = min(due, LATEST_SECONDS)
