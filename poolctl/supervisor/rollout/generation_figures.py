"""What the workers of one generation of a server do, by their tally pages."""

from __future__ import annotations

from collections.abc import Iterable

from poolctl.control.rollout_answers import RolloutFigures
from poolctl.core.server_entry import Entry
from poolctl.core.worker_entry import Worker
from poolctl.platform import memory_bytes
from poolctl.runners.runner_protocol import Counters
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ..observers.statistics import errors, latency_seconds


class GenerationFigures:
    """Counts from its making on. Workers that have ended stay counted as they were at the last `look`."""

    def __init__(self, entry: Entry, generation: int, counters: Counters) -> None:
        self._entry = entry
        self._generation = generation
        self._counters = counters
        self._began: dict[str, Counts] = {}
        for worker in self._workers():
            if (counts := self._counts(worker)) is not None:
                self._began[worker.id] = counts
        self._now = dict(self._began)

    def look(self) -> RolloutFigures:
        """The figures now."""
        workers = list(self._workers())
        for worker in workers:
            if (counts := self._counts(worker)) is not None:
                self._now[worker.id] = counts
        began, now = _sum(self._began.values()), _sum(self._now.values())
        pids = [worker.placement.pid for worker in workers if worker.placement is not None]
        memory = [used for pid in pids if pid is not None and (used := memory_bytes(pid)) is not None]
        return RolloutFigures(
            workers=len(workers),
            requests=now[tally.STARTED] - began[tally.STARTED],
            errors=errors(now) - errors(began),
            latency_p50_seconds=latency_seconds(now, began, 0.5),
            latency_p99_seconds=latency_seconds(now, began, 0.99),
            memory_bytes=max(memory, default=None),
        )

    def _workers(self) -> Iterable[Worker]:
        return (each for each in self._entry.workers.values() if each.generation == self._generation)

    def _counts(self, worker: Worker) -> Counts | None:
        return None if worker.placement is None else self._counters.counts(worker.placement)


def _sum(pages: Iterable[Counts]) -> Counts:
    total = [0] * tally.COUNTED
    for counts in pages:
        tally.add(total, counts)
    return total
