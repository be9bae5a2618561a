"""Heartbeats of workers: questions over their control sockets, and why an idle worker needs none."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from poolctl.platform import process_cpu_ns, waits_for_events

from ..runner_protocol import Placement
from .local_worker import LocalWorker
from .tallies import Tally

# Processor time for going to sleep after the answer; more than that may have been other work.
_AFTER_ANSWER_NS = 1_000_000


class WorkerHeartbeats:
    """Asks the `workers`, by id. See Heartbeats."""

    def __init__(self, workers: Mapping[str, LocalWorker]) -> None:
        self._workers = workers
        self._checks: WeakKeyDictionary[LocalWorker, IdleCheck] = WeakKeyDictionary()

    def beat(self, placement: Placement, asked_ns: int) -> bool:
        """See Heartbeats."""
        worker = self._workers.get(placement.id)
        return worker is not None and worker.beat(asked_ns)

    def beaten_ns(self, placement: Placement) -> int:
        """See Heartbeats."""
        worker = self._workers.get(placement.id)
        return worker.tally.beaten_ns() if worker is not None and worker.tally is not None else 0

    def idle_since_answer(self, placement: Placement) -> bool:
        """See Heartbeats."""
        worker = self._workers.get(placement.id)
        if worker is None or worker.tally is None or placement.pid is None:
            return False
        if (check := self._checks.get(worker)) is None:
            check = self._checks[worker] = IdleCheck()
        return check.passes(placement.pid, worker.tally)


class IdleCheck:
    """Finds out without asking that a worker's event loop is not stuck: a heartbeat costs an idle worker 0.2 ms.

    It is idle if its main thread waits for events in its loop, and all of its threads together have used no more
    processor time since its answer than that thread needs for going to sleep. From then on the unchanged processor
    time is enough: a process that has not run is still where it was. Everything else (a request, a timer, a thread that
    takes Python's lock, SIGSTOP and the freezer of a control group, which wake it up for a moment) changes that time,
    and the worker is asked again.
    """

    __slots__ = ("_answered_at_ns", "_idle_at_ns")

    def __init__(self) -> None:
        self._answered_at_ns = 0
        self._idle_at_ns: int | None = None

    def passes(self, pid: int, tally: Tally) -> bool:
        """Whether the worker, which has answered, is idle. Does not block. False where the kernel does not say so."""
        used_ns = process_cpu_ns(pid)
        if used_ns is None or used_ns == self._idle_at_ns:
            return used_ns is not None
        self._idle_at_ns = None
        before_ns, self._answered_at_ns = self._answered_at_ns, tally.beat_cpu_ns()
        if (
            self._answered_at_ns != before_ns
            and used_ns - self._answered_at_ns <= _AFTER_ANSWER_NS
            and waits_for_events(pid)
            # It has not run meanwhile, so the earlier observation still holds.
            and process_cpu_ns(pid) == used_ns
        ):
            self._idle_at_ns = used_ns
        return self._idle_at_ns is not None
