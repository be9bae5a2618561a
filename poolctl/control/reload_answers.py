"""The answer of a supervisor to `reload`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poolctl.control.answers import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """A line of a reload's plan; `change` is a Kind of core.configuration_diff."""

    name: str
    bind: str
    change: str
    keys: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadResult(Result):
    """Of `reload`; files with problems have no plan."""

    PRINTED: ClassVar[tuple[str, ...]] = ("changes",)

    changes: tuple[PlannedChange, ...] | None = None
