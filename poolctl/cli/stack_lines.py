"""The stacks of a worker that hung, as `show` and `status --verbose` print them."""

from __future__ import annotations

from itertools import islice

from poolctl.cli.render import printable
from poolctl.frozen_value import Table
from poolctl.runners.stack_report import WorkerStacks

_MOST_LINES = 20


def stack_lines(document: Table) -> list[str]:
    """The worker, and the first lines of its stacks, the main thread's innermost call first."""
    stacks = WorkerStacks.from_json(document)
    head = f"worker {stacks.worker} (pid {stacks.pid})"
    return [*map(printable, [head, *islice(stacks.lines(), _MOST_LINES)])]
