"""The answers of the verbs `dashboard` and `history`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poolctl.control.answers import Result
from poolctl.json_form import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardLoginLink:
    """The address of the dashboard, and the token to log in with."""

    url: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DashboardLinkResult(Result):
    PRINTED: ClassVar[tuple[str, ...]] = ("dashboard",)

    dashboard: DashboardLoginLink | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryResult(Result):
    """The answer of `history`: `series` has each figure's values in past time slots, oldest first; None if unknown.

    A slot lasts `slot_seconds`. There are `slots` slots including the current one, which has no values yet.
    """

    slot_seconds: float
    slots: int
    series: Table
