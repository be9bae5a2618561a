"""How long a server has been ready and not, on its way up and down, and how often that changed."""

from __future__ import annotations

from poolctl.clock import Clock


class Record:
    """Counted from the first start. Durations are seconds."""

    __slots__ = (
        "_changed", "_clock", "_down", "_fall", "_falling", "_ready", "_rise", "_rising", "_since", "_up", "falls",
        "rises",
    )  # fmt: skip

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = self._since = clock.monotonic()
        self._ready = self._rising = self._falling = False
        self._up = self._down = self._rise = self._fall = 0.0
        self.rises = 0
        self.falls = 0

    def note(self, ready: bool, *, anew: bool = False, rising: bool = False, falling: bool = False) -> None:
        """It is ready or not from now on, on its way up or down or neither.

        `anew` begins another uptime although it was ready before.
        """
        self._add_up()
        if ready and (anew or not self._ready):
            self._since = self._changed
        self.rises += ready and not self._ready
        self.falls += self._ready and not ready
        self._ready, self._rising, self._falling = ready, rising, falling

    def _add_up(self) -> None:
        now = self._clock.monotonic()
        passed, self._changed = now - self._changed, now
        if self._ready:
            self._up += passed
        else:
            self._down += passed
        if self._rising:
            self._rise += passed
        if self._falling:
            self._fall += passed

    @property
    def uptime_seconds(self) -> float:
        """How long this instance has been ready; 0 while there is none."""
        return self._clock.monotonic() - self._since if self._ready else 0.0

    @property
    def up_seconds(self) -> float:
        """How long it has been ready, all in all."""
        return self._up + self._since_change(self._ready)

    @property
    def down_seconds(self) -> float:
        """How long it has not been ready since it was first started."""
        return self._down + self._since_change(not self._ready)

    @property
    def rise_seconds(self) -> float:
        """How long it has been on its way up, all in all."""
        return self._rise + self._since_change(self._rising)

    @property
    def fall_seconds(self) -> float:
        """How long it has been on its way down, all in all."""
        return self._fall + self._since_change(self._falling)

    def _since_change(self, counts: bool) -> float:
        return self._clock.monotonic() - self._changed if counts else 0.0
