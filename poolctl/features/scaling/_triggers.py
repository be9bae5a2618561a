"""The triggers: each measures one figure of a server's load. A new trigger is a class here and a key in `keys.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from poolctl.core.server_entry import Entry
from poolctl.core.worker import WorkerPhase
from poolctl.monitor.metrics import BOUNDS_SECONDS
from poolctl.runners.local.local_runner import LocalRunner
from poolctl.runners.process_usage import Usage
from poolctl.supervisor.statistics import quantile
from poolctl.worker import tally
from poolctl.worker.tally import Counts

# Minimum interval of CPU measurements under load: reading the time, which the kernel counts in hundredths of a
# second, costs more than everything else here.
_CPU_INTERVAL_SECONDS = 0.45
_IDLE_CPU_INTERVAL_SECONDS = 0.95
# A quantile of fewer responses is meaningless.
_MIN_RESPONSES = 20


class Sample(NamedTuple):
    """Figures of a server's ready workers; `counted` is the increase of their counters in the last `seconds`."""

    entry: Entry
    now: float
    seconds: float
    in_flight: int
    counted: Counts


class Part(NamedTuple):
    """The contribution of one sample to an average: an amount (None if unknown) and its weight."""

    amount: float | None
    weight: float = 1.0


class MovingAverage:
    """The average of a server's figure, such as requests in progress, over several samples."""

    def __init__(self) -> None:
        self._amount = self._weight = 0.0
        self._unknown = 0

    def add(self, part: Part, sign: int) -> None:
        """Add the amount and weight of one sample to the average; with sign -1, take them out again."""
        self._weight += sign * part.weight
        if part.amount is None:
            self._unknown += sign
        else:
            self._amount += sign * part.amount

    @property
    def value(self) -> float | None:
        """Return the average over the added samples; None without samples, or if a sample's amount is unknown."""
        return None if self._unknown or self._weight <= 0 else self._amount / self._weight


class MovingQuantile:
    """A quantile of the latencies of all responses, in seconds, over several samples."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._responses = [0] * (len(BOUNDS_SECONDS) + 1)
        self._count = 0

    def add(self, responses: Sequence[int], sign: int) -> None:
        """Count a sample's `responses`, a number for each range of latencies; with `sign` -1, take them out again."""
        if responses:
            self._count += sign * sum(responses)
            for slot, count in enumerate(responses):
                self._responses[slot] += sign * count

    @property
    def value(self) -> float | None:
        """Return the quantile of the latencies in seconds; None if there are too few responses."""
        if self._count < _MIN_RESPONSES:
            return None
        return quantile(BOUNDS_SECONDS, self._responses, self._share)


class Trigger:
    """The base class of triggers. The average figure per worker is compared with the trigger's target."""

    is_latency: ClassVar[bool] = False  # the target is for the responses of the whole server instead
    counts_demand: ClassVar[bool] = False  # requests that wait elsewhere for the server count as well

    def __init__(self, runner: LocalRunner) -> None:
        self.runner = runner

    @classmethod
    def new_accumulator(cls) -> MovingAverage | MovingQuantile:
        """Return a new MovingAverage, which accumulates the results of `measure`."""
        return MovingAverage()

    def measure(self, sample: Sample) -> Part | Sequence[int]:
        """Return a sample's contribution to the object that `new_accumulator` returns: for a MovingAverage, a Part."""
        raise NotImplementedError


class InFlight(Trigger):
    """The number of requests in progress."""

    def measure(self, sample: Sample) -> Part:
        return Part(sample.in_flight)


class QueuedConnections(Trigger):
    """The number of connections in the backlog, which no worker has accepted yet."""

    counts_demand = True

    def measure(self, sample: Sample) -> Part:
        return Part(self.runner.queued_connections(sample.entry.config))


class RequestsPerSecond(Trigger):
    """The number of requests that begin per second."""

    def measure(self, sample: Sample) -> Part:
        return Part(sample.counted[tally.STARTED], sample.seconds)


class Cpu(Trigger):
    """The CPU cores in use, measured every half second under load, else every second.

    `measure` requests the next measurement, and returns the figure from completed measurements.
    """

    def __init__(self, runner: LocalRunner) -> None:
        super().__init__(runner)
        self._previous: dict[
            int, tuple[float, float]
        ] = {}  # by pid: when it was measured, and the processor time then
        self._newest_at = float("-inf")
        self._requested_at = float("-inf")
        self._measuring: asyncio.Task[None] | None = None
        self._cores: float | None = None

    def measure(self, sample: Sample) -> Part:
        workers = sample.entry.observed.workers.values()
        placements = [worker.placement for worker in workers if worker.phase is WorkerPhase.READY]
        pids = [
            placement.pid for placement in placements if placement is not None and placement.pid is not None
        ]
        usages = self.runner.usages
        self._update_cores({pid: usages.of(pid) for pid in pids})
        is_busy = sample.counted[tally.STARTED] or sample.in_flight
        seconds = _CPU_INTERVAL_SECONDS if is_busy else _IDLE_CPU_INTERVAL_SECONDS
        if pids and sample.now - self._requested_at >= seconds:
            self._requested_at = sample.now
            self._measuring = asyncio.ensure_future(
                usages.measure(pids, memory=False, max_age_seconds=_CPU_INTERVAL_SECONDS)
            )
        return Part(self._cores)

    def _update_cores(self, usages: Mapping[int, Usage]) -> None:
        measured = {
            pid: (usage.measured_at, usage.cpu_seconds)
            for pid, usage in usages.items()
            if usage.cpu_seconds is not None
        }
        newest_at = max((at for at, _ in measured.values()), default=float("-inf"))
        if measured and newest_at - self._newest_at < _CPU_INTERVAL_SECONDS / 2:
            return  # no new measurements yet
        # Processor time used before a worker was ready belongs to its start.
        used = [
            (spent - self._previous[pid][1]) / (at - self._previous[pid][0])
            for pid, (at, spent) in measured.items()
            if pid in self._previous and at > self._previous[pid][0]
        ]
        self._cores = max(0.0, sum(used)) if used else None
        self._previous, self._newest_at = measured, newest_at


class LatencyQuantile(Trigger):
    """Base class of the latency triggers: their target applies to the latencies of the whole server."""

    is_latency = True
    share: ClassVar[float]

    @classmethod
    def new_accumulator(cls) -> MovingQuantile:
        """Return a new MovingQuantile, which accumulates the results of `measure`."""
        return MovingQuantile(cls.share)

    def measure(self, sample: Sample) -> Sequence[int]:
        """The number of responses in each bucket of latencies; empty without responses."""
        responses = sample.counted[tally.BUCKETS : tally.COUNTED]
        return responses if any(responses) else ()


class P50(LatencyQuantile):
    """The median latency of the responses."""

    share = 0.5


class P99(LatencyQuantile):
    """The 99th percentile of the latency of the responses."""

    share = 0.99


TRIGGERS: Mapping[str, type[Trigger]] = {
    "in_flight": InFlight,
    "queue": QueuedConnections,
    "requests_per_second": RequestsPerSecond,
    "p50": P50,
    "p99": P99,
    "cpu": Cpu,
}
