"""Runs the probes of all servers: selects the workers to probe, and records the results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.runners.runner_protocol import Exit, Runner
from poolctl.states import Status
from poolctl.units import format_duration

from .server_entry import Entry
from .worker import LEAVING, Worker, WorkerPhase
from .workqueue import Recorder, Workqueue

_MAX_ANSWER_SECONDS = 10.0

FLAPPING = "a worker has died within a minute of becoming ready, more than once"

if TYPE_CHECKING:
    from poolctl.probes.worker_probes import WorkerProbe, WorkerProbes


class HealthChecks:
    """Probes workers from the moment they are ready, and maintains `Worker.health`.

    Each function in `unhealthy` is called when a liveness probe fails, with the entry, the worker and the reason.
    """

    def __init__(self, runner: Runner, queue: Workqueue, recorder: Recorder) -> None:
        self.unhealthy: set[Callable[[Entry, Worker, str], None]] = set()
        self._runner = runner
        self._queue = queue
        self._recorder = recorder

    async def wait_until_probes_pass(
        self, entry: Entry, worker: Worker, ending: asyncio.Future[Exit]
    ) -> None:
        """Wait until the worker has passed its startup and readiness probes. Has no time limit of its own.

        Raises WorkerFailed if the worker ends first; `ending` is the future of its exit.
        """
        await self._replace_probes(entry, worker).wait_until_ready(ending, f"poolctl logs {entry.name}")

    async def prove(self, entry: Entry, worker: Worker) -> None:
        """Send a test request to the first worker of new code, unless a readiness probe does so.

        Raises ServerError if the request fails (see `ask_for_status`) while an old worker answers it.
        """
        config = worker.config
        path = "/" if config.restart.check is None else config.restart.check
        replaced = [ready for ready in entry.observed.ready if ready.generation < worker.generation]
        is_reachable = not config.command or config.is_proxied
        if not replaced or path is False or config.health.readiness is not None or not is_reachable:
            return
        from poolctl.probes.prober import ask_for_status

        async def ask(worker: Worker) -> tuple[str, bool | None]:
            assert worker.placement is not None
            limit_seconds = min(config.start_timeout, _MAX_ANSWER_SECONDS)
            return await ask_for_status(path, worker.config, self._runner, worker.placement, limit_seconds)

        answer, works = await ask(worker)
        if works is not False:
            return
        # The old workers are asked as well: code that is imported on the first request may fail there in the same way.
        answers = await asyncio.gather(*map(ask, replaced))
        running_answer = next((answer for answer, works in answers if works), None)
        if running_answer is None:
            return
        raise ServerError(
            f"the new code answers GET {path} with {answer}, the running code with {running_answer}: "
            "the old one stays",
            name=entry.name,
            bind=config.bind,
            hint=f'poolctl logs {entry.name}; restart = {{ check = "/PATH" }} asks for another path, false for none',
        )

    def update_probes_and_health(self, entry: Entry) -> None:
        """Start or stop probes of the entry's workers, because the entry has changed."""
        for worker in list(entry.observed.workers.values()):
            if worker.phase in LEAVING:
                self.stop_probes(worker)
            elif worker.phase is WorkerPhase.READY:
                self._update_probes(entry, worker)
        self._record_health_change(entry)

    def stop_probes(self, worker: Worker) -> None:
        """Stop the probes of the worker."""
        if worker.probes is not None:
            worker.probes.stop()
            worker.probes = None

    def worker_problem(self, worker: Worker) -> str:
        """The problem that a heartbeat or probe has found in the worker, or ""."""
        if worker.stuck:
            return _stuck_message(worker)
        return worker.probes.message if worker.probes is not None else ""

    def first_worker_problem(self, entry: Entry) -> str:
        """The first problem found in any of the server's workers, or ""."""
        messages = map(self.worker_problem, list(entry.observed.workers.values()))
        return next((message for message in messages if message), "")

    def latency_seconds(self, entry: Entry) -> float | None:
        """The longest of the last probe latencies of the server's workers; None without probes."""
        workers = list(entry.observed.workers.values())
        latencies = [worker.probes.latency_seconds for worker in workers if worker.probes is not None]
        return max((latency for latency in latencies if latency is not None), default=None)

    def _update_probes(self, entry: Entry, worker: Worker) -> None:
        probes, health = worker.probes, worker.config.health
        if probes is not None and probes.health == health:
            if not probes.started:
                # The worker has just passed its startup probes.
                worker.health = Status.OK
                probes.start(Status.OK)
        elif health.probed:
            self._replace_probes(entry, worker).start(worker.health)
        else:
            self.stop_probes(worker)
            worker.health = Status.UNKNOWN

    def _replace_probes(self, entry: Entry, worker: Worker) -> WorkerProbes:
        assert worker.placement is not None
        # Most pools have no probes, and need not import their module.
        from poolctl.probes.worker_probes import WorkerProbes

        self.stop_probes(worker)
        on_result = partial(self._on_probe_result, entry, worker)
        worker.probes = WorkerProbes(worker.config, worker.placement, self._runner, on_result)
        return worker.probes

    def _on_probe_result(
        self, entry: Entry, worker: Worker, probes: WorkerProbes, probe: WorkerProbe
    ) -> None:
        if worker.health is not probes.status:
            worker.health = probes.status
            self._record_health_change(entry, worker, probe)
            self._queue.touch(entry)
        if probe.kind == "liveness" and probe.status is Status.KO:
            for observer in list(self.unhealthy):
                observer(entry, worker, f"liveness ko: {probe.message}")

    def _record_health_change(
        self, entry: Entry, worker: Worker | None = None, probe: WorkerProbe | None = None
    ) -> None:
        """Record an event if the health of the server's workers has changed and is known.

        `worker` and `probe` are the worker and the probe with the new result, or None if another change is the cause.
        """
        after = entry.health_of_workers
        before = entry.observed.reported_health
        if after in (Status.UNKNOWN, before):
            return
        entry.observed.reported_health = after
        stuck = next((_stuck_message(ready) for ready in entry.observed.ready if ready.stuck), "")
        detail: Table = {}
        if worker is not None and worker.placement is not None:
            pid = worker.placement.pid
            detail = {"worker": worker.id} if pid is None else {"worker": worker.id, "pid": pid}
        self._recorder.record(
            "health",
            after.value,
            server=entry.name,
            bind=entry.config.key,
            message=(probe.message if probe is not None else stuck) or _status_text(entry, before, after),
            cause=f"{probe.kind} probe" if probe is not None else "",
            before=before.value,
            after=after.value,
            **detail,
        )


def _stuck_message(worker: Worker) -> str:
    return f"the event loop of {worker.id} is stuck"


def lasting_problem(entry: Entry) -> str:
    """Why a server counts as broken: its workers keep failing, or have been missing for long; else ""."""
    pause = format_duration(entry.config.restart.backoff.max)
    if entry.keeps_failing:
        return f"keeps failing, and is tried every {pause}"
    if entry.flapping:
        return FLAPPING
    if not entry.is_short_of_workers:
        return ""
    if any(slot.vacant for slot in entry.observed.slots.values()):
        return f"a worker has ended, and is not replaced; poolctl restart {entry.name} starts it again"
    return f"a worker keeps failing, and is tried every {pause}"


def _status_text(entry: Entry, before: Status, after: Status) -> str:
    if after is Status.OK:
        return "is healthy again"
    if problem := lasting_problem(entry):
        return problem
    if after is Status.WARN:
        return "is recovering" if before is Status.KO else "some of its workers are unhealthy"
    return "all of its workers are unhealthy"
