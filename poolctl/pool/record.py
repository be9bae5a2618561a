"""How long a server has been ready and not, and how often that changed."""

from __future__ import annotations

from poolctl.clock import Clock


class Record:
    """Counted from the first start. Durations are seconds."""

    __slots__ = ("_changed", "_clock", "_down", "_ready", "_since", "_up", "fall", "rise")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = self._since = clock.monotonic()
        self._ready = False
        self._up = 0.0
        self._down = 0.0
        self.rise = 0
        self.fall = 0

    def note(self, ready: bool, *, anew: bool = False) -> None:
        """It is ready or not from now on; `anew` begins another uptime although it was ready before."""
        now = self._clock.monotonic()
        if self._ready:
            self._up += now - self._changed
        else:
            self._down += now - self._changed
        self._changed = now
        if ready and (anew or not self._ready):
            self._since = now
        self.rise += ready and not self._ready
        self.fall += self._ready and not ready
        self._ready = ready

    @property
    def uptime_seconds(self) -> float:
        """How long this instance has been ready; 0 while there is none."""
        return self._clock.monotonic() - self._since if self._ready else 0.0

    @property
    def up_seconds(self) -> float:
        """How long it has been ready, all in all."""
        return self._up + (self._clock.monotonic() - self._changed if self._ready else 0.0)

    @property
    def down_seconds(self) -> float:
        """How long it has not been ready since it was first started."""
        return self._down + (0.0 if self._ready else self._clock.monotonic() - self._changed)
