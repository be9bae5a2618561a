"""The counts and heartbeats of all workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from poolctl.keeper import fd_store
from poolctl.worker.tally import Counts, final_counts

from ..process_link import Link, Message
from ..runner_protocol import Placement, RunnerEventHandler
from .local_worker import LocalWorker
from .tally_page import Tally


class Tallies:
    """Reads the request counts of running `workers`, and reports the final counts of exited workers.

    Each worker counts on a page of memory. The keeper holds an exited worker's page until its counts are saved, for a
    successor of this supervisor to add them up. `events` returns the receiver of the reports.
    """

    def __init__(
        self, keeper: Link, workers: Mapping[str, LocalWorker], events: Callable[[], RunnerEventHandler]
    ) -> None:
        self._keeper = keeper
        self._workers = workers
        self._events = events
        self._unsaved: set[str] = set()

    def counts(self, placement: Placement) -> Counts | None:
        """The worker's request counts; None if it has exited, or runs a command and so counts nothing."""
        worker = self._workers.get(placement.id)
        return None if worker is None or worker.tally is None else worker.tally.counts()

    def collect_final_counts(self, server: str, name: str, tally: Tally) -> None:
        """Report an exited worker's final counts; the keeper holds them until `discard_saved_counts`."""
        counts = tally.counts()
        if counts is not None and any(final := final_counts(counts)):
            entry = {"op": "put", "name": f"{fd_store.TALLY}{name}", "meta": {"server": server}}
            self._keeper.send(entry, [tally.fileno()])
            self._unsaved.add(name)
            self._events().add_up_counts(server, name, final)
        tally.close()

    def add_up_unsaved_counts(self, name: str, meta: Message, fds: list[int]) -> list[Tally]:
        """Report an exited worker's counts, which an earlier supervisor did not save. Close `fds`, and return []."""
        tally = Tally(fds[0])
        counts = tally.counts()
        tally.close()
        self._unsaved.add(name)
        if counts is not None:
            self._events().add_up_counts(meta["server"], name, final_counts(counts))
        return []

    def discard_saved_counts(self) -> None:
        """Let the keeper drop the counts of exited workers, because all that were reported so far have been saved."""
        for name in self._unsaved:
            self._keeper.send({"op": "drop", "name": f"{fd_store.TALLY}{name}"})
        self._unsaved.clear()

    @property
    def unsaved_workers(self) -> list[str]:
        """The names of exited workers whose counts are not saved yet, sorted; the next supervisor gets them again."""
        return sorted(self._unsaved)


class WorkerHeartbeats:
    """Requests heartbeats from the `workers`, by id. A worker answers while its event loop runs. Never blocks."""

    def __init__(self, workers: Mapping[str, LocalWorker]) -> None:
        self._workers = workers

    def request_beat(self, placement: Placement, asked_ns: int) -> bool:
        """Request a heartbeat from a worker at the time `asked_ns`. Returns False if it cannot be asked now."""
        worker = self._workers.get(placement.id)
        return worker is not None and worker.request_beat(asked_ns)

    def last_beat_ns(self, placement: Placement) -> int:
        """The `asked_ns` of the heartbeat that the worker answered last; 0 if it does not answer heartbeats (yet)."""
        worker = self._workers.get(placement.id)
        return worker.tally.last_beat_ns() if worker is not None and worker.tally is not None else 0

    def idle_since_answer(self, placement: Placement) -> bool:
        """Whether the worker has only waited in its event loop since its last heartbeat; False if that is unknown."""
        worker = self._workers.get(placement.id)
        if worker is None or worker.tally is None or placement.pid is None:
            return False
        return worker.idle_check.is_idle(placement.pid, worker.tally)
