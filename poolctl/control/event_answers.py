"""The answer of a supervisor to `events`."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsResult(Result):
    """Of `events`: the number of the newest event, and the journal's path."""

    seq: int
    path: str
