"""Measures how long a server has been up, down, and in transition between the two."""

from __future__ import annotations

from dataclasses import dataclass, fields

from poolctl.json_form import Table
from poolctl.states import PASSING

OK, WARN, KO, UNKNOWN = "ok", "warn", "ko", "unknown"

_ABSENT = ("stopped", "completed", "disabled")


def status_of(state: str, health: str = UNKNOWN) -> str:
    """The status that follows from a server's state and probes: `ok`, `warn`, `ko`, or `unknown` while it is off."""
    if state in _ABSENT:
        return UNKNOWN
    if state in PASSING:
        return WARN
    if state == "failed":
        return KO
    return health if health in (WARN, KO) else OK


@dataclass(slots=True)
class Availability:
    """The times that a server has been up and down; time while the server is off is not counted.

    Updated by `note` at each change, with a monotonic time in seconds.
    """

    state: str = "stopped"
    health: str = UNKNOWN
    uptime: float = 0.0  # it answered, possibly with a warning
    downtime: float = 0.0
    risetime: float = 0.0  # part of both: it was coming up
    falltime: float = 0.0  # part of both: it was going down
    rise: int = 0  # how often it started to answer
    fall: int = 0  # how often it stopped answering without being turned off
    _level: str = UNKNOWN  # the last level other than warn
    _since: float = 0.0

    def note(self, now: float, *, state: str | None = None, health: str | None = None) -> None:
        """Record a new state or health, or both, at this time."""
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
        """Add the time since the last update."""
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
        """Whether the server answers requests."""
        return self.state in ("running", "sleeping") and self.health != KO

    @property
    def sli(self) -> float | None:
        """The share of the time that the server was up, from 0 to 1; None before any time was counted."""
        total = self.uptime + self.downtime
        return self.uptime / total if total else None

    def to_dict(self) -> dict[str, object]:
        """The values as a document from which `restored` creates an equal object."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restored(cls, kept: Table) -> Availability:
        """An object that continues with the values from `to_dict`, on the same monotonic clock."""
        return cls(**{each.name: kept[each.name] for each in fields(cls) if each.name in kept})
