"""How long a server has been up and down, and in transition between the two."""

from __future__ import annotations

from dataclasses import dataclass, fields

from poolctl.json_form import Table
from poolctl.states import PASSING

OK, WARN, KO, UNKNOWN = "ok", "warn", "ko", "unknown"

_ABSENT = ("stopped", "completed", "disabled")


def status_of(state: str, health: str = UNKNOWN) -> str:
    """The status that follows from state and probes of a server: `ok`, `warn`, `ko`; `unknown` while it is off."""
    if state in _ABSENT:
        return UNKNOWN
    if state in PASSING:
        return WARN
    if state == "failed":
        return KO
    return health if health in (WARN, KO) else OK


@dataclass(slots=True)
class Availability:
    """Updated by `note` at each change, with a monotonic time in seconds; time while a server is off is not counted."""

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
        """Set state or health, or both, from now on."""
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
        """Whether it answers requests."""
        return self.state in ("running", "sleeping") and self.health != KO

    @property
    def sli(self) -> float | None:
        """The share of the time that it was up, from 0 to 1; None before there was any."""
        total = self.uptime + self.downtime
        return self.uptime / total if total else None

    def to_dict(self) -> dict[str, object]:
        """A document from which `restored` makes an equal one."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def restored(cls, kept: Table) -> Availability:
        """One that continues where the other stopped; the monotonic clock must be the same."""
        return cls(**{each.name: kept[each.name] for each in fields(cls) if each.name in kept})
