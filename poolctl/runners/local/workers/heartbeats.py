"""The heartbeats of a runner's workers."""

from __future__ import annotations

from collections.abc import Mapping

from ...protocol import Placement
from .local_worker import LocalWorker


class Heartbeats:
    """Asks the workers, by their ids, and reads their answers. Nothing blocks."""

    def __init__(self, workers: Mapping[str, LocalWorker]) -> None:
        self._workers = workers

    def beat(self, placement: Placement, asked_ns: int) -> bool:
        """Ask a worker; False if it cannot be asked now."""
        worker = self._workers.get(placement.id)
        return worker is not None and worker.beat(asked_ns)

    def beaten_ns(self, placement: Placement) -> int:
        """When the worker last answered, by the system's monotonic clock; 0 for one without heartbeats."""
        worker = self._workers.get(placement.id)
        return worker.tally.beaten_ns() if worker is not None and worker.tally is not None else 0
