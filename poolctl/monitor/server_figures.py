"""The current figures of a server and of each of its workers: requests, processor time and memory."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence

from poolctl.core.server_entry import Entry, Worker
from poolctl.platform import age_seconds, cpu_seconds, memory_bytes
from poolctl.runners.runner_protocol import Counters
from poolctl.worker import tally
from poolctl.worker.tally import Counts

INTERVAL_SECONDS = 2.0
BOUNDS_SECONDS = tuple(bound / 1e9 for bound in tally.BOUNDS_NS)
_MEMORY_SECONDS = 8.0  # rarely, because the kernel walks through the process's memory

Figure = float | None


class Usage:
    """CPU and memory that one process uses."""

    __slots__ = ("_memory_at", "_seen_at", "_spent", "cpu_percent", "memory_bytes")

    def __init__(self) -> None:
        self.cpu_percent = 0.0
        self.memory_bytes = 0
        self._memory_at = float("-inf")
        self._seen_at = float("-inf")
        self._spent = 0.0

    def look(self, pid: int, now: float, *, memory: bool = True) -> None:
        """Update the measurement unless it is recent. `memory` is expensive to measure."""
        if now - self._seen_at >= INTERVAL_SECONDS / 2:
            spent = cpu_seconds(pid) or 0.0
            # At first, the average since the start of the process, as in ps(1).
            is_first = self._seen_at == float("-inf")
            seconds = age_seconds(pid) if is_first else now - self._seen_at
            self.cpu_percent = max(0.0, 100 * (spent - self._spent) / seconds) if seconds > 0 else 0.0
            self._seen_at, self._spent = now, spent
        if memory and now - self._memory_at >= _MEMORY_SECONDS:
            self.memory_bytes, self._memory_at = memory_bytes(pid) or 0, now


WorkerUsage = tuple[Worker, Counts | None, Usage | None]


class ServerSnapshot:
    """The counts of a server's workers, in total and for each; the usage of a worker without a pid is unknown."""

    def __init__(self, entry: Entry, total: Counts, workers: list[WorkerUsage], *, counts: bool) -> None:
        self.entry = entry
        self.total = total
        self.counted = counts and not entry.config.command
        self.workers = workers
        usages = [usage for _, _, usage in workers if usage is not None]
        known = len(usages) == len(workers)
        self.memory_bytes = sum(usage.memory_bytes for usage in usages) if known else None
        self.cpu_percent = round(sum(usage.cpu_percent for usage in usages), 2) if known else None
        self.loop_lag_seconds = max(
            (lag for _, counts, _ in workers if (lag := loop_lag_seconds(counts)) is not None), default=None
        )


# Gets each sample of all servers, with the time at which it was taken.
TakeSample = Callable[[float, Sequence[ServerSnapshot]], None]
# Has each sample given to this function from now on; None: no longer.
GiveSamples = Callable[[TakeSample | None], None]


def snapshot(
    entry: Entry,
    ended: Counts,
    counters: Counters | None,
    usages: MutableMapping[int, Usage],
    now: float,
    *,
    memory: bool = True,
    own_pid: int | None = None,
) -> ServerSnapshot:
    """The server's figures at `now`, in monotonic seconds; without `memory` its memory may be some seconds old.

    `ended` holds the counts of exited workers, and is updated to the total. `usages`, by pid, is kept by the caller
    between calls. Workers within the process `own_pid` have no usage of their own.
    """
    workers: list[WorkerUsage] = []
    for worker in entry.observed.workers.values():
        placement = worker.placement
        if placement is None:
            continue
        counts = counters.counts(placement) if counters is not None else None
        if counts is not None:
            tally.add(ended, counts)
        usage = None
        if placement.pid is not None and placement.pid != own_pid:
            usage = usages.setdefault(placement.pid, Usage())
            usage.look(placement.pid, now, memory=memory)
        workers.append((worker, counts, usage))
    return ServerSnapshot(entry, ended, workers, counts=counters is not None)


def loop_lag_seconds(counts: Counts | None) -> Figure:
    """The delay of the worker's loop at its last heartbeat; None without one."""
    if counts is None or not counts[tally.BEAT_AT_NS]:
        return None
    return round(counts[tally.BEAT_LAG_NS] / 1e9, 6)
