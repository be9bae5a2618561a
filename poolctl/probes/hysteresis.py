"""Turns single results of a probe into a status that does not flap: pure, without time or I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolctl.states import Status

if TYPE_CHECKING:
    from poolctl.config import Probe


class Hysteresis:
    """A status that moves one step at a time, ok – warn – ko and back, each after a number of equal results in a row.

    `fall_count_warn` failures lead from ok to warn, and `fall_count_ko` further ones to ko; `rise_count_ko`
    successes lead from ko to warn, and `rise_count_warn` further ones to ok. Unknown falls like ok, and rises like
    warn.
    """

    __slots__ = ("_count", "_probe", "_succeeded", "status")

    def __init__(self, probe: Probe, status: Status = Status.UNKNOWN) -> None:
        self._probe = probe
        self.status = status
        self._succeeded: bool | None = None  # the last result
        self._count = 0  # equal results in a row since the last step

    def __repr__(self) -> str:
        return f"<Hysteresis {self.status} {'-' if self.falling else '+'}{self._count}>"

    def record(self, succeeded: bool) -> Status:
        """The status after one more result."""
        if succeeded is not self._succeeded:
            self._succeeded, self._count = succeeded, 0
        if self.status is (Status.OK if succeeded else Status.KO):
            return self.status
        self._count += 1
        needed, status = self._step(succeeded)
        if self._count >= needed:
            self.status, self._count = status, 0
        return self.status

    def reset(self) -> None:
        """Return to unknown."""
        self.status, self._succeeded, self._count = Status.UNKNOWN, None, 0

    @property
    def falling(self) -> bool:
        """Whether the last result was a failure, and the status is not ko yet."""
        return self._succeeded is False and self.status is not Status.KO

    @property
    def rising(self) -> bool:
        """Whether the last result was a success, and the status is not ok yet."""
        return self._succeeded is True and self.status is not Status.OK

    @property
    def interval_seconds(self) -> float:
        """The time between the starts of two probes, in seconds."""
        probe = self._probe
        now = probe.interval_fall if self.falling else probe.interval_rise if self.rising else None
        return now or probe.interval

    def _step(self, succeeded: bool) -> tuple[int, Status]:
        """The number of results in a row that a step takes, and the status it leads to."""
        probe = self._probe
        if succeeded:
            if self.status is Status.KO:
                return probe.rise_count_ko, Status.WARN
            return probe.rise_count_warn, Status.OK
        if self.status is Status.WARN:
            return probe.fall_count_ko, Status.KO
        return probe.fall_count_warn, Status.WARN
