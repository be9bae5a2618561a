"""Finds workers that use more memory than `limits.memory`; measures only those of servers with a limit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from poolctl.clock import Clock
from poolctl.core.state import Entry, Worker
from poolctl.core.view import Phase
from poolctl.platform import memory_bytes
from poolctl.units import format_size

from .recovery import MEMORY, Recovers

FIRST_SECONDS = 2.0
INTERVAL_SECONDS = 30.0
# A worker near its limit is measured more often.
NEAR_SECONDS = 5.0
_NEAR = 0.75


class MemoryLimit:
    """Measures the workers of every server that `look` has seen, and reports those that are too large to `recovery`."""

    def __init__(self, clock: Clock, recovery: Recovers) -> None:
        self._clock = clock
        self._recovery = recovery
        self._due: dict[str, tuple[float, Entry, Worker]] = {}  # by worker id
        self._timer: asyncio.TimerHandle | None = None
        self._measuring: asyncio.Task[None] | None = None

    def look(self, entry: Entry) -> None:
        """Measure the server's workers from now on, if there is a limit for them."""
        if entry.config.limits.memory is None:
            return
        for worker in entry.workers.values():
            known = self._due.get(worker.id)
            if worker.phase is Phase.READY and (known is None or known[2] is not worker):
                self._due[worker.id] = (self._clock.monotonic() + FIRST_SECONDS, entry, worker)
                self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and self._measuring is None:
            delay = min(due for due, _, _ in self._due.values()) - self._clock.monotonic()
            self._timer = asyncio.get_running_loop().call_later(max(0.0, delay), self._begin)

    def _begin(self) -> None:
        self._measuring = asyncio.ensure_future(self.measure_due())
        self._measuring.add_done_callback(self._measured)

    def _measured(self, task: asyncio.Task[None]) -> None:
        self._measuring = None
        self._set_timer()

    async def measure_due(self) -> None:
        """Measure all that are due, in a thread: the kernel walks through the whole memory of each."""
        now = self._clock.monotonic()
        self._due = {name: each for name, each in self._due.items() if _counts(each[1], each[2])}
        pids = {
            name: worker.placement.pid
            for name, (due, _, worker) in self._due.items()
            if due <= now and worker.placement is not None and worker.placement.pid is not None
        }
        found = await asyncio.to_thread(self.measure, list(pids.values()))
        for name, pid in pids.items():
            _, entry, worker = self._due[name]
            if worker.placement is None or worker.placement.pid != pid:
                continue
            limit, size = entry.config.limits.memory, found[pid]
            near = limit is not None and size is not None and size >= limit * _NEAR
            self._due[name] = (now + (NEAR_SECONDS if near else INTERVAL_SECONDS), entry, worker)
            if limit is not None and size is not None and size > limit and _counts(entry, worker):
                seen = f"worker {name} (pid {pid}) uses {format_size(size)}, and limits.memory is {format_size(limit)}"
                self._recovery.notice(entry, worker, MEMORY, seen)

    def measure(self, pids: Iterable[int]) -> dict[int, int | None]:
        """The memory of each process in bytes, None for one that has ended. Blocks."""
        return {pid: memory_bytes(pid) for pid in pids}


def _counts(entry: Entry, worker: Worker) -> bool:
    there = entry.workers.get(worker.id) is worker and worker.phase is Phase.READY
    return there and entry.config.limits.memory is not None and worker.placement is not None
