"""The answer of a supervisor to `stacks`."""

from __future__ import annotations

from dataclasses import dataclass

from poolctl.control.answers import Result
from poolctl.runners.stack_report import WorkerStacks


@dataclass(frozen=True, slots=True, kw_only=True)
class StacksResult(Result):
    """Of `stacks`: one item for each worker of the selected servers."""

    items: tuple[WorkerStacks, ...] = ()  # type: ignore[assignment]
