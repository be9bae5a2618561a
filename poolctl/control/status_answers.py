"""The answer of a supervisor to `status`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poolctl.control.answers import Result
from poolctl.control.pool_identity import About


@dataclass(frozen=True, kw_only=True)
class Summary(About):
    """The pool, and the number of its servers in each state and health."""

    servers: int
    should_run: int
    ready: int
    states: dict[str, int]
    health: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusResult(Result):
    """Of `status`."""

    PRINTED: ClassVar[tuple[str, ...]] = ("summary",)

    summary: Summary | None = None
