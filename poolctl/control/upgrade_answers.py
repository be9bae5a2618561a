"""The answer of a supervisor to `upgrade`."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeResult(Result):
    """Of `upgrade`: the pid of the supervisor that is replaced, None if it is of this build already."""

    upgraded_from: int | None = None
