"""One rollout: a canary of a server is started, compared with the other workers, and promoted or withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from poolctl.config import ServerConfig
from poolctl.core.core import Core
from poolctl.core.decide import WorkerPhase
from poolctl.core.server_entry import Canary, Entry, Worker
from poolctl.core.servers import caused_by
from poolctl.json_form import to_json
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.metrics import worker_pids
from poolctl.runners.runner_protocol import Runner
from poolctl.supervisor.statistics import errors, latency_seconds
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ._verdict import AbortCondition, GenerationFigures, RolloutReport, Verdict, verdict

JUDGE_SECONDS = 1.0
STARTING, RUNNING, PAUSED, PROMOTING = "starting", "running", "paused", "promoting"
PROMOTED, WITHDRAWN = "promoted", "withdrawn"


class RolloutPlan(NamedTuple):
    """A requested rollout: `canaries` workers of `config`, promoted after at least `seconds` and `min_requests`.

    If the gateway can divide requests, `apart` is the configuration of the canaries with an address of their own, and
    they get exactly `share` of the requests. Otherwise `apart` is None, a canary gets as much traffic as any other
    worker, and `why` is the reason. `why` is "" if no route leads to the server.
    """

    config: ServerConfig
    what: str
    share: float
    canaries: int
    seconds: float
    min_requests: int
    conditions: Sequence[AbortCondition]
    is_paused: bool
    apart: ServerConfig | None = None  # the configuration with their own address
    why: str = ""


class CanaryRollout:
    """Manages one canary until `is_over`. `begun` is set once the canary is ready, or the rollout is over."""

    def __init__(self, core: Core, events: EventBus, entry: Entry, plan: RolloutPlan) -> None:
        self.begun, self.over = asyncio.Event(), asyncio.Event()
        self.entry = entry
        self.plan = plan
        self.reason = ""
        self._core = core
        self._events = events
        self._workers = entry.size
        self._state = STARTING
        self.is_paused = plan.is_paused  # it is not promoted automatically, but may still be withdrawn
        self._began_at = core.clock.monotonic()
        self._final: RolloutReport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._judging: asyncio.Task[None] | None = None
        # The generation of the other workers, and of their replacements.
        self._base = self._target = entry.desired.generation
        self._figures: tuple[WorkerMeter, WorkerMeter] | None = None
        share = 0.0 if plan.apart is None else plan.share
        self._canary: Canary = core.begin_canary(
            entry, plan.config, plan.canaries, share=share, apart=plan.apart
        )
        core.observers.add(self._continue_or_withdraw)
        self._record("rollout started", f"{self.share_in_words}, {plan.what}")

    @property
    def state(self) -> str:
        """The rollout's state: starting, running, paused, promoting, promoted or withdrawn."""
        return PAUSED if self._state == RUNNING and self.is_paused else self._state

    @property
    def generation(self) -> int:
        """The generation of the canary's workers."""
        return self._canary.generation

    @property
    def is_over(self) -> bool:
        """Whether the canary was promoted or withdrawn."""
        return self.over.is_set()

    @property
    def share(self) -> float:
        """The canary's share of the traffic; without a gateway, assuming that all workers get equal shares."""
        if self.plan.apart is not None:
            return self.plan.share
        return self.plan.canaries / (self.plan.canaries + self._workers)

    @property
    def share_in_words(self) -> str:
        """The share of the traffic as text, in percent and in workers."""
        count, all_of_them = self.plan.canaries, self.plan.canaries + self._workers
        asked = f"{round(100 * self.plan.share, 2):g}"
        if self.plan.apart is not None:
            return f"{asked} % of the requests through the gateway, {count} of {all_of_them} workers"
        found = f"{count} of {all_of_them} workers, {100 * self.share:.3g} % ({asked} % asked)"
        return f"{self.plan.why}: {found}" if self.plan.why else found

    def report(self) -> RolloutReport:
        """The current state and figures; after the end of the rollout, the final ones."""
        if self._final is not None:
            return self._final
        plan, now = self.plan, self._core.clock.monotonic()
        canary, before = self._measure()
        return RolloutReport(
            name=self.entry.name,
            state=self.state,
            reason=self.reason or self._wait_reason(canary),
            what=plan.what,
            generation=self.generation,
            share_asked=plan.share,
            share=round(self.share, 4),
            for_seconds=plan.seconds,
            elapsed_seconds=round(now - self._began_at, 3),
            min_requests=plan.min_requests,
            abort_on=tuple(each.text for each in plan.conditions),
            canary=canary,
            before=before,
        )

    def _wait_reason(self, canary: GenerationFigures) -> str:
        is_due = self._core.clock.monotonic() - self._began_at >= self.plan.seconds
        if self.state != RUNNING or not is_due or canary.requests >= self.plan.min_requests:
            return ""
        return f"waits until its workers have had {self.plan.min_requests} requests"

    def begin_promotion(self, reason: str) -> None:
        """Begin to replace the other workers by the new generation, unless the rollout is over or being promoted."""
        if self._state in (STARTING, RUNNING):
            self._start_measuring()
            self._state, self.reason = PROMOTING, reason
            with caused_by(f"rollout: {reason}"):
                self._core.promote_canary(self.entry)
            self._target = self.entry.desired.generation

    def withdraw(self, reason: str) -> None:
        """End the canary, unless the rollout is over or being promoted; the other workers keep serving."""
        if self._state in (STARTING, RUNNING):
            self._start_measuring()
            with caused_by(f"rollout: {reason}"):
                self._core.withdraw_canary(self.entry)
            self._conclude(WITHDRAWN, reason)

    def _continue_or_withdraw(self, entry: Entry) -> None:
        """Continue or withdraw the rollout, depending on the server's new state. Called on each change of a server."""
        if entry is not self.entry or self.is_over:
            return
        if self._state == PROMOTING:
            self._conclude_promotion_if_over()
        elif entry.desired.canary is not self._canary:
            self._conclude(WITHDRAWN, "another command, or the end of the server, replaced it")
        elif self._canary.failure:
            self.withdraw(f"a worker {self._canary.failure}")
        else:
            self._begin_or_withdraw()

    def _conclude_promotion_if_over(self) -> None:
        entry = self.entry
        if entry.desired.generation != self._target or entry.wants_no_worker:
            why = (
                entry.observed.failure.message
                if entry.observed.failure is not None
                else "another command replaced it"
            )
            self._end_canary()
            self._conclude(WITHDRAWN, f"its other workers were not replaced: {why}")
        elif entry.is_fully_ready and not any(
            not (entry.is_current(each) or self._is_of_canary(each)) for each in entry.observed.staying
        ):
            self._end_canary()
            self._conclude(PROMOTED, self.reason)

    def _end_canary(self) -> None:
        if self.entry.desired.canary is self._canary:
            with caused_by(f"rollout: {self.reason}"):
                self._core.withdraw_canary(self.entry)

    def _begin_or_withdraw(self) -> None:
        workers = [
            each
            for each in self.entry.observed.workers.values()
            if each.generation == self._canary.generation
        ]
        for worker in workers:
            if worker.phase is WorkerPhase.READY and worker.ko:
                found = self._core.health.worker_problem(self.entry, worker)
                self.withdraw(f"{worker.id} is unhealthy: {found}")
                return
        ready = sum(worker.phase is WorkerPhase.READY for worker in workers)
        if self._state == STARTING and ready == self.plan.canaries:
            self._state = RUNNING
            self._start_measuring()
            self._began_at = self._core.clock.monotonic()
            self._schedule()
            self.begun.set()

    def _schedule(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(JUDGE_SECONDS, self._begin_judging)

    def _begin_judging(self) -> None:
        if self._state == RUNNING:
            self._schedule()
            self._judging = asyncio.ensure_future(self.judge())

    async def judge(self) -> None:
        """Withdraw, promote or continue the canary, depending on the measurements so far. Called periodically."""
        await self.measure_memory()
        if self._state == RUNNING:
            self._apply_verdict()

    async def measure_memory(self) -> None:
        """Measure the memory that `report` states, unless it was measured in the last second."""
        pids = worker_pids([self.entry])
        await self._core.runner.usages.measure(pids, max_age_seconds=JUDGE_SECONDS)

    def _apply_verdict(self) -> None:
        if self.plan.apart is not None and self._core.split_obstacle(self.entry.name) != "":
            self.withdraw("requests for the server do not come through the gateway any more")
            return
        canary, before = self._measure()
        is_over = self._core.clock.monotonic() - self._began_at >= self.plan.seconds and not self.is_paused
        found, reason = verdict(
            self.plan.conditions, canary, before, min_requests=self.plan.min_requests, is_over=is_over
        )
        if found is Verdict.WITHDRAW:
            self.withdraw(reason)
        elif found is Verdict.PROMOTE:
            self.begin_promotion(reason)

    def _start_measuring(self) -> None:
        """Start measuring the canary's generation and that of the other workers, unless they are measured already."""
        if self._figures is None:
            self._figures = (
                WorkerMeter(self.entry, self._is_of_canary, self._core.runner),
                WorkerMeter(self.entry, self._is_of_others, self._core.runner),
            )

    def _is_of_canary(self, worker: Worker) -> bool:
        return worker.generation == self._canary.generation

    def _is_of_others(self, worker: Worker) -> bool:
        """Whether the worker serves as before the rollout, also if it has replaced another worker meanwhile."""
        replaces = self._target != self._base and worker.generation == self._target
        return not (replaces or self._is_of_canary(worker))

    def _measure(self) -> tuple[GenerationFigures, GenerationFigures]:
        if self._figures is None:
            return GenerationFigures(), GenerationFigures()
        canary, before = self._figures
        return canary.measure(), before.measure()

    def _conclude(self, state: str, reason: str) -> None:
        self._state, self.reason = state, reason
        self._final = self.report()
        self._core.observers.discard(self._continue_or_withdraw)
        if self._timer is not None:
            self._timer.cancel()
        self.begun.set()
        self.over.set()
        severity = "info" if state == PROMOTED else "warning"
        self._record(f"rollout {state}", f"{self.share_in_words}, {self.plan.what}", reason, severity)

    def _record(self, kind: str, message: str, cause: str = "", severity: str = "info") -> None:
        report = self.report()
        figures = {"canary": to_json(report.canary), "others": to_json(report.before)}
        self._events.record(
            "config", kind, server=self.entry.name, message=message, cause=cause, severity=severity,
            generation=self._canary.generation, **figures,
        )  # fmt: skip


class WorkerMeter:
    """Measures the workers for which `is_measured` is true, from the creation of this object on, by request counters.

    Their memory is the one that was measured last. Workers that have ended stay counted with their figures from the
    last `measure`.
    """

    def __init__(self, entry: Entry, is_measured: Callable[[Worker], bool], runner: Runner) -> None:
        self._entry = entry
        self._is_measured = is_measured
        self._runner = runner
        self._began: dict[str, Counts] = {}
        for worker in self._workers():
            if (counts := self._counts(worker)) is not None:
                self._began[worker.id] = counts
        self._now = dict(self._began)

    def measure(self) -> GenerationFigures:
        """Return the requests, errors and latencies since the measuring began, and the memory that is in use."""
        workers = list(self._workers())
        for worker in workers:
            if (counts := self._counts(worker)) is not None:
                self._now[worker.id] = counts
        began, now = _sum(self._began.values()), _sum(self._now.values())
        pids = [worker.placement.pid for worker in workers if worker.placement is not None]
        found = [self._runner.usages.of(pid).memory_bytes for pid in pids]
        return GenerationFigures(
            workers=len(workers),
            requests=now[tally.STARTED] - began[tally.STARTED],
            errors=errors(now) - errors(began),
            latency_p50_seconds=latency_seconds(now, began, 0.5),
            latency_p99_seconds=latency_seconds(now, began, 0.99),
            memory_bytes=max((each for each in found if each is not None), default=None),
        )

    def _workers(self) -> Iterable[Worker]:
        return filter(self._is_measured, self._entry.observed.workers.values())

    def _counts(self, worker: Worker) -> Counts | None:
        return None if worker.placement is None else self._runner.counts(worker.placement)


def _sum(pages: Iterable[Counts]) -> Counts:
    total = [0] * tally.COUNTED
    for counts in pages:
        tally.add(total, counts)
    return total
