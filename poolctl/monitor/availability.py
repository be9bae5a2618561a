"""How long a server has been up and down, and on its way from the one to the other."""

from __future__ import annotations

from typing import Any

from poolctl.states import PASSING

OK, WARN, KO, UNKNOWN = "ok", "warn", "ko", "unknown"

_ABSENT = ("stopped", "disabled")


def status_of(state: str, health: str = UNKNOWN) -> str:
    """What state and probes of a server come to: `ok`, `warn`, `ko`; `unknown` of one that is off."""
    if state in _ABSENT:
        return UNKNOWN
    if state in PASSING:
        return WARN
    if state == "failed":
        return KO
    return health if health in (WARN, KO) else OK


class Availability:
    """Told of each change by `note`, at a monotonic time in seconds; while a server is off no time is counted."""

    __slots__ = (
        "_level",
        "_since",
        "downtime",
        "fall",
        "falltime",
        "health",
        "rise",
        "risetime",
        "state",
        "uptime",
    )

    def __init__(self) -> None:
        self.state = "stopped"
        self.health = UNKNOWN
        self.uptime = 0.0  # it answered, be it with a warning
        self.downtime = 0.0
        self.risetime = 0.0  # of both: it was on its way up
        self.falltime = 0.0  # of both: it was on its way down
        self.rise = 0  # how often it began to answer
        self.fall = 0  # how often it ceased to, though it was not turned off
        self._level = UNKNOWN  # the last one that was no warning
        self._since = 0.0

    def note(self, now: float, *, state: str | None = None, health: str | None = None) -> None:
        """It is so from now on."""
        self.settle(now)
        was_up, was_off = self.is_up, self.status == UNKNOWN
        self.state = self.state if state is None else state
        self.health = self.health if health is None else health
        status = self.status
        if status != WARN:
            self._level = status
        self.rise += self.is_up and not was_up
        self.fall += was_up and not self.is_up and status != UNKNOWN and not was_off

    def settle(self, now: float) -> None:
        """Count the time up to now."""
        passed, self._since = max(0.0, now - self._since), now
        status = self.status
        if status == UNKNOWN:
            return
        if self.is_up:
            self.uptime += passed
        else:
            self.downtime += passed
        if status == WARN and self._level == OK:
            self.falltime += passed
        elif status == WARN:
            self.risetime += passed

    @property
    def status(self) -> str:
        """See `status_of`."""
        return status_of(self.state, self.health)

    @property
    def is_up(self) -> bool:
        """Whoever asks it is answered."""
        return self.state in ("running", "sleeping") and self.health != KO

    @property
    def sli(self) -> float | None:
        """The share of the time that it was up, from 0 to 1; None before there was any."""
        total = self.uptime + self.downtime
        return self.uptime / total if total else None

    def to_dict(self) -> dict[str, Any]:
        """What `restored` makes another one of."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restored(cls, kept: dict[str, Any]) -> Availability:
        """One that goes on where the other was; the monotonic clock must be the same."""
        made = cls()
        for name in made.__slots__:
            if name in kept:
                setattr(made, name, kept[name])
        return made
