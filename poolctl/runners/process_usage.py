"""Measures the memory and processor time of workers, each with all of its processes.

A program is often several processes: a shell and its command, npm and node, a master and its workers. All processes of
the worker's session are counted, and processes that they have started in other sessions.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from poolctl import platform
from poolctl.clock import Clock

# Figures are measured again after this time.
USAGE_SECONDS = 8.0
# A share of a core is computed over at least this time.
_MIN_SHARE_SECONDS = 1.0
# The memory of more than so many workers is read again after this time only: each small process takes 0.4 ms.
_MANY_WORKERS, _MANY_SECONDS = 250, 30.0

# Maximum time that a request waits: the kernel waits for the lock on a process's memory, which a thread may hold for as
# long as the file system of a mapped file hangs.
_PATIENCE_SECONDS = 5.0

_ProcessId = tuple[int, int]  # a pid and the start of the process


class Usage(NamedTuple):
    """What a worker uses of memory and processor, with all of its processes; None for a figure that is unknown.

    `memory_bytes` is PSS: shared pages are divided among the processes that share them. `cpu_seconds` is the processor
    time since its start, measured at the monotonic time `measured_at`, and `cpu_percent` the recent share of a core.
    """

    memory_bytes: int | None = None
    cpu_seconds: float | None = None
    cpu_percent: float | None = None
    measured_at: float = -math.inf


class ProcessFigures(NamedTuple):
    """The processor time of a process. `waited_seconds` is that of reaped children and their children."""

    own_seconds: float
    waited_seconds: float


_NEW = ProcessFigures(0.0, 0.0)


def processor_seconds_between(
    before: Mapping[_ProcessId, ProcessFigures], now: Mapping[_ProcessId, ProcessFigures]
) -> float:
    """The processor time that a worker's processes have used between two measurements; never negative.

    The time of an ended process moves to the process that reaps it, and counts once. If no process reaps it, for
    example because SIGCHLD is ignored, its last measured time counts.
    """
    own_seconds = waited_seconds = 0.0
    for process, figures in now.items():
        earlier = before.get(process, _NEW)
        own_seconds += figures.own_seconds - earlier.own_seconds
        waited_seconds += figures.waited_seconds - earlier.waited_seconds
    ended = sum(past.own_seconds + past.waited_seconds for key, past in before.items() if key not in now)
    return own_seconds + max(0.0, waited_seconds - ended)


class _MeasuredWorker:
    """A worker and its processes when last measured. `began_at` is the monotonic time of its start."""

    def __init__(self, began_at: float) -> None:
        self.usage = Usage()
        self.memory_at = -math.inf  # when its memory was measured
        self.processes: dict[_ProcessId, ProcessFigures] = {}
        self._spent_seconds = 0.0
        # As in ps(1), the first share of a core is the average since the start.
        self._share_since = began_at, 0.0

    def note_figures(self, processes: dict[_ProcessId, ProcessFigures], now: float) -> None:
        """Note the processes that the worker has at the time `now`."""
        self._spent_seconds += processor_seconds_between(self.processes, processes)
        self.processes = processes
        percent, (at, spent_seconds) = self.usage.cpu_percent, self._share_since
        if percent is None or now - at >= _MIN_SHARE_SECONDS:
            percent = 100 * (self._spent_seconds - spent_seconds) / (now - at) if now > at else 0.0
            self._share_since = now, self._spent_seconds
        self.usage = Usage(self.usage.memory_bytes, round(self._spent_seconds, 3), percent, now)


class _Request(NamedTuple):
    """A request for figures of a worker that were measured after `since`, and memory after `memory_since`."""

    since: float
    memory_since: float

    def merged_with(self, other: _Request) -> _Request:
        return _Request(max(self.since, other.since), max(self.memory_since, other.memory_since))

    def is_met_by(self, worker: _MeasuredWorker) -> bool:
        return self.since < worker.usage.measured_at and not self.needs_memory_of(worker)

    def needs_memory_of(self, worker: _MeasuredWorker) -> bool:
        return worker.memory_at < self.memory_since


class ProcessUsages:
    """Measures workers that are processes of this machine, each the leader of a session. A pid that is None is ignored.

    Requests made at the same time are served by one pass over /proc, in a thread.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._workers: dict[int, _MeasuredWorker] = {}  # by pid
        self._requests: dict[int, _Request] = {}
        self._next_pass: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._measuring = threading.Lock()

    def of(self, pid: int | None) -> Usage:
        """The newest measured figures of a worker; all are None if it was not measured. Does not block."""
        worker = self._workers.get(pid) if pid is not None else None
        return Usage() if worker is None else worker.usage

    async def measure(
        self, pids: Iterable[int | None], *, memory: bool = True, max_age_seconds: float = USAGE_SECONDS
    ) -> None:
        """Return when no figure of these workers is older than `max_age_seconds`; measure them if necessary.

        Without `memory`, only processor time, which costs much less. The memory of many workers may be older. If the
        kernel does not answer, returns after some seconds without having measured.
        """
        due = self._due(self._new_requests(pids, max_age_seconds, memory=memory))
        if not due:
            return
        for pid, request in due.items():
            self._requests[pid] = request.merged_with(self._requests.get(pid, request))
        if self._next_pass is None:
            self._next_pass = asyncio.ensure_future(self._measure_in_turn())
        await asyncio.wait([self._next_pass], timeout=_PATIENCE_SECONDS)

    def measure_now(self, pids: Iterable[int | None]) -> None:
        """Do the same as `measure` with its defaults, but block meanwhile. Called from any thread."""
        self._measure(self._new_requests(pids, USAGE_SECONDS, memory=True))

    def _new_requests(
        self, pids: Iterable[int | None], max_age_seconds: float, *, memory: bool
    ) -> dict[int, _Request]:
        now, known = self._clock.monotonic(), [pid for pid in pids if pid is not None]
        memory_age = max(max_age_seconds, _MANY_SECONDS) if len(known) > _MANY_WORKERS else max_age_seconds
        return dict.fromkeys(
            known, _Request(now - max_age_seconds, now - memory_age if memory else -math.inf)
        )

    async def _measure_in_turn(self) -> None:
        async with self._turn:  # also measures what is requested while it waits
            requests, self._requests, self._next_pass = self._requests, {}, None
            await asyncio.to_thread(self._measure, requests)

    def _due(self, requests: Mapping[int, _Request]) -> dict[int, _Request]:
        """The requests that are not met by figures measured earlier."""
        workers = self._workers
        return {
            pid: request
            for pid, request in requests.items()
            if pid not in workers or not request.is_met_by(workers[pid])
        }

    def _measure(self, requests: Mapping[int, _Request]) -> None:
        with self._measuring:
            requests = self._due(requests)
            if not requests:
                return
            members = platform.processes_by_leader(self._workers.keys() | requests.keys())
            self._workers = {pid: worker for pid, worker in self._workers.items() if members[pid]}
            for pid in requests:
                if members[pid]:
                    self._read_figures(pid, members[pid])
            for pid, request in requests.items():
                if (
                    members[pid]
                    and request.needs_memory_of(worker := self._workers[pid])
                    and worker.processes
                ):
                    self._read_memory(worker)

    def _read_figures(self, pid: int, members: Iterable[int]) -> None:
        """Read the processor time of the worker with this pid and the processes `members`."""
        now = self._clock.monotonic()
        processes = {}
        try:
            for member in members:
                if (figures := platform.process_figures(member)) is not None:
                    start, own_seconds, waited_seconds = figures
                    processes[member, start] = ProcessFigures(own_seconds, waited_seconds)
        except PermissionError:
            hidden = self._workers[pid] = _MeasuredWorker(now)
            hidden.usage, hidden.memory_at = Usage(measured_at=now), now
            return
        worker = self._workers.get(pid)
        leader = next((process for process in processes if process[0] == pid), None)
        if worker is None or (leader is not None and leader not in worker.processes):
            worker = self._workers[pid] = _MeasuredWorker(now - platform.age_seconds(pid))
        worker.note_figures(processes, now)

    def _read_memory(self, worker: _MeasuredWorker) -> None:
        total: int | None = 0
        for pid, start in worker.processes:
            size = platform.memory_bytes(pid)
            if size is None and platform.process_start(pid) != start:
                size = 0  # it has ended meanwhile
            total = None if size is None or total is None else total + size
        worker.usage = worker.usage._replace(memory_bytes=total)
        worker.memory_at = self._clock.monotonic()
