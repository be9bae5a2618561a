"""Runs the probes of all servers: decides which workers are probed, and applies the results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from poolctl.json_form import Table
from poolctl.runners.runner_protocol import Exit, Runner
from poolctl.states import Status

from .decide import LEAVING
from .server_entry import Entry, Worker
from .servers import Recorder, Workqueue

if TYPE_CHECKING:
    from poolctl.probes.worker_probes import WorkerProbe, WorkerProbes


class HealthChecks:
    """Probes workers from the moment they are ready, and maintains `Worker.health`.

    `unhealthy` is called with each worker whose liveness probe fails, and the reason.
    """

    def __init__(self, runner: Runner, queue: Workqueue, recorder: Recorder) -> None:
        self.unhealthy: set[Callable[[Entry, Worker, str], None]] = set()
        self._runner = runner
        self._queue = queue
        self._recorder = recorder
        self._probes: dict[str, dict[str, WorkerProbes]] = {}  # by server and worker
        self._known: dict[str, Status] = {}  # the last reported status of each server that was not ok

    async def admit(self, entry: Entry, worker: Worker, ending: asyncio.Future[Exit]) -> None:
        """Return when the worker has passed its startup and readiness probes. The caller cancels this after a timeout.

        Raises WorkerFailed if the worker ends before.
        """
        await self._make(entry, worker).wait_until_ready(ending, f"poolctl logs {entry.name}")

    def look(self, entry: Entry) -> None:
        """Start or stop the probes of the entry's workers after the entry has changed."""
        probed = self._probes.get(entry.name, {})
        if not probed and not entry.config.health.probed:
            if entry.name in self._known or any(worker.stuck for worker in entry.observed.workers.values()):
                self._note(entry)
            return
        for worker_id, probes in list(probed.items()):
            there = entry.observed.workers.get(worker_id)
            # A worker that takes the place of one that has died has the same name.
            if there is None or there.phase in LEAVING or there.placement is not probes.placement:
                probes.stop()
                self._drop(entry, worker_id)
        for worker in entry.observed.ready:
            self._attend_to(entry, worker)
        self._note(entry)

    def message(self, entry: Entry, worker: Worker) -> str:
        """The problem that a heartbeat or probe has found in the worker, or ""."""
        if worker.stuck:
            return _is_stuck(worker)
        probes = self.probes(entry, worker)
        return probes.message if probes is not None else ""

    def complaint(self, entry: Entry) -> str:
        """The first problem found in any of the server's workers, or ""."""
        found = (self.message(entry, worker) for worker in list(entry.observed.workers.values()))
        return next((message for message in found if message), "")

    def probes(self, entry: Entry, worker: Worker) -> WorkerProbes | None:
        """The probes of the worker; None while it is not probed."""
        return self._probes.get(entry.name, {}).get(worker.id)

    def latency_seconds(self, entry: Entry) -> float | None:
        """The longest of the last probe latencies of the server's workers; None without probes."""
        probes = [self.probes(entry, worker) for worker in list(entry.observed.workers.values())]
        found = [each.latency_seconds for each in probes if each is not None]
        return max((each for each in found if each is not None), default=None)

    def _attend_to(self, entry: Entry, worker: Worker) -> None:
        probes = self.probes(entry, worker)
        if probes is None or probes.health != worker.config.health:
            if not worker.config.health.probed:
                if probes is not None:
                    probes.stop()
                self._drop(entry, worker.id)
                worker.health = Status.UNKNOWN
                return
            probes = self._make(entry, worker)
            probes.start(worker.health)
        elif not probes.started:
            # It has just passed.
            worker.health = Status.OK
            probes.start(Status.OK)

    def _make(self, entry: Entry, worker: Worker) -> WorkerProbes:
        assert worker.placement is not None
        # Most pools have no probes, and need not import their module.
        from poolctl.probes.worker_probes import WorkerProbes

        probed = partial(self._probed, entry, worker)
        probes = WorkerProbes(worker.config, worker.placement, self._runner, probed)
        if (former := self.probes(entry, worker)) is not None:
            former.stop()
        self._probes.setdefault(entry.name, {})[worker.id] = probes
        return probes

    def _drop(self, entry: Entry, worker_id: str) -> None:
        probes = self._probes.get(entry.name, {})
        probes.pop(worker_id, None)
        if not probes:
            self._probes.pop(entry.name, None)

    def _probed(self, entry: Entry, worker: Worker, probes: WorkerProbes, probe: WorkerProbe) -> None:
        """Apply a new result of a probe of the worker."""
        if worker.health is not probes.status:
            worker.health = probes.status
            self._note(entry, worker, probe)
            self._queue.touch(entry)
        if probe.kind == "liveness" and probe.status is Status.KO:
            for listener in list(self.unhealthy):
                listener(entry, worker, f"liveness ko: {probe.message}")

    def _note(self, entry: Entry, worker: Worker | None = None, probe: WorkerProbe | None = None) -> None:
        """Record the server's health if it differs from the last report."""
        after = entry.health_of_workers
        before = self._known.get(entry.name, Status.OK)
        if after in (Status.UNKNOWN, before):
            return
        if after is Status.OK:
            del self._known[entry.name]
        else:
            self._known[entry.name] = after
        detail: Table = {}
        if worker is not None and worker.placement is not None:
            pid = worker.placement.pid
            detail = {"worker": worker.id} if pid is None else {"worker": worker.id, "pid": pid}
        self._recorder.record(
            "health",
            after.value,
            server=entry.name,
            bind=entry.config.key,
            message=(probe.message if probe is not None else _stuck_message(entry))
            or _status_text(before, after),
            cause=f"{probe.kind} probe" if probe is not None else "",
            before=before.value,
            after=after.value,
            **detail,
        )


def _stuck_message(entry: Entry) -> str:
    return next((_is_stuck(worker) for worker in entry.observed.ready if worker.stuck), "")


def _is_stuck(worker: Worker) -> str:
    return f"the event loop of {worker.id} is stuck"


def _status_text(before: Status, after: Status) -> str:
    if after is Status.OK:
        return "is healthy again"
    if after is Status.WARN:
        return "is recovering" if before is Status.KO else "some of its workers are unhealthy"
    return "all of its workers are unhealthy"
