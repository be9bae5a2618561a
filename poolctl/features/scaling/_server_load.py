"""Samples of a server's load: its workers' counts, the queue at its listener, and its processor time."""

from __future__ import annotations

from poolctl.core.core import Core
from poolctl.core.decision_input import Phase
from poolctl.core.server_entry import Entry
from poolctl.platform import cpu_seconds
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ._autoscale import Load
from .keys import Triggers

# The kernel counts processor time in hundredths of a second, and reading it costs more than everything else here.
_CPU_SECONDS = 0.45
_CPU_SECONDS_WITHOUT_REQUESTS = 0.95


class ServerLoad:
    """Samples of one server with these triggers, from `now` on."""

    def __init__(self, core: Core, triggers: Triggers, now: float) -> None:
        self._counters = core.runner.capabilities.counters
        self._backlogs = core.runner.capabilities.backlogs if triggers.queue is not None else None
        self._times_responses = triggers.p50 is not None or triggers.p99 is not None
        self._processors = Processors() if triggers.cpu is not None else None
        self._seen: dict[str, Counts] = {}  # by worker id
        self._at = now

    def sample(self, entry: Entry, now: float) -> Load:
        """The load now, and since the previous sample; new workers have no figures yet."""
        seen: dict[str, Counts] = {}
        in_flight = requests = 0
        serves = False
        buckets: list[int] = []
        for worker in entry.observed.workers.values():
            if worker.phase is not Phase.READY or worker.placement is None or self._counters is None:
                continue
            serves = serves or not worker.ko
            found = self._counters.counts(worker.placement)
            if found is None:
                continue
            seen[worker.id] = counts = found[: tally.COUNTED]
            in_flight += tally.in_flight(counts)
            before = self._seen.get(worker.id)
            if before is None or before == counts:
                continue
            requests += max(0, counts[tally.STARTED] - before[tally.STARTED])
            if self._times_responses:
                buckets = buckets or [0] * (tally.COUNTED - tally.BUCKETS)
                for slot in range(len(buckets)):
                    buckets[slot] += max(0, counts[tally.BUCKETS + slot] - before[tally.BUCKETS + slot])
        self._seen = seen
        cpu = None
        if self._processors is not None:
            cpu = self._processors.cores(entry, now, is_busy=bool(requests or in_flight))
        load = Load(
            now,
            now - self._at,
            len(seen),
            serves,
            in_flight,
            self._backlogs.waiting(entry.config) if self._backlogs is not None else 0,
            0,
            requests,
            buckets,
            cpu,
        )
        self._at = now
        return load


class Processors:
    """The processor cores that the ready workers of one server use."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # by pid
        self._at = float("-inf")
        self._cores: float | None = None

    def cores(self, entry: Entry, now: float, *, is_busy: bool) -> float | None:
        """The average between the last two measurements, half a second apart if it is busy; None if unknown."""
        if now - self._at >= (_CPU_SECONDS if is_busy else _CPU_SECONDS_WITHOUT_REQUESTS):
            before, elapsed = self._seconds, now - self._at
            self._seconds = self._measured(entry)
            # Processor time used before a worker was ready belongs to its start.
            used = [spent - before[pid] for pid, spent in self._seconds.items() if pid in before]
            self._cores = max(0.0, sum(used)) / elapsed if used else None
            self._at = now
        return self._cores

    def _measured(self, entry: Entry) -> dict[int, float]:
        pids = [
            worker.placement.pid
            for worker in entry.observed.workers.values()
            if worker.phase is Phase.READY and worker.placement is not None
        ]
        found = {pid: cpu_seconds(pid) for pid in pids if pid is not None}
        return {pid: spent for pid, spent in found.items() if spent is not None}
