"""Recovers workers that are hung, unhealthy or above their memory limit, according to the table `recovery`."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from typing import NamedTuple

from poolctl.config import Recovery
from poolctl.core.core import Core
from poolctl.core.explain import last_lines
from poolctl.core.server_entry import Entry
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.core.workqueue import caused_by
from poolctl.json_form import Table, to_json
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.stack_report import WorkerStacks
from poolctl.states import Status

LAST_LINES = 10
_MAX_STACKS = 3  # the number of stacks in the report about workers recovered together
LIVENESS, HEARTBEAT, MEMORY = "liveness", "heartbeat", "memory"


class RecoveryStep(StrEnum):
    """The recovery action to take now."""

    NOTHING = "nothing"
    NOTIFY = "notify"
    RESTART = "restart"  # stop the unhealthy workers and start replacements
    REPLACE = "replace"  # start replacements, and stop each unhealthy worker once its replacement is ready
    DISABLE = "disable"
    WAIT = "wait"
    GIVE_UP = "give up"  # no action until earlier recoveries leave the window


class RecoverySituation(NamedTuple):
    """The state of one server with unhealthy workers, from which `decide` chooses the next action.

    `histories` holds, for each unhealthy worker, the times at which it or its predecessor was recovered, oldest first,
    in seconds on the clock of `now`. `jitter` is a random number from -1 to 1.
    """

    strategy: str
    histories: Sequence[Sequence[float]]
    ready: int  # ready workers, including unhealthy ones
    size: int  # the number of workers it should have
    overlaps: bool  # whether two generations may run at once
    under_way: bool  # whether a recovery is still running
    now: float
    jitter: float


class Decision(NamedTuple):
    """The next action, `step`, and the workers it is for: `chosen` has indexes of `RecoverySituation.histories`.

    `again_seconds` is the time until the next decision; 0 means that none is due until the situation changes.
    """

    step: RecoveryStep
    chosen: Sequence[int] = ()
    again_seconds: float = 0.0


def decide(policy: Recovery, situation: RecoverySituation) -> Decision:
    """Decide the next action for the unhealthy workers.

    A restart always leaves one ready worker of a server with several workers, even if that worker is unhealthy: it may
    still serve some requests, and its replacement may be unhealthy, too.
    """
    everyone = range(len(situation.histories))
    if not everyone or situation.strategy == "none":
        return Decision(RecoveryStep.NOTHING)
    if situation.strategy in ("notify", "disable"):
        return Decision(RecoveryStep(situation.strategy), everyone)
    assert situation.strategy in ("restart", "replace"), f"unknown strategy: {situation.strategy!r}"
    if situation.under_way:
        return Decision(RecoveryStep.WAIT)
    delays = [_recovery_delay_seconds(policy, situation, history) for history in situation.histories]
    due = [index for index in everyone if delays[index] == 0]
    again = min((delay for delay in delays if 0 < delay < math.inf), default=0.0)
    if not due:
        spent = all(
            len(within(history, policy.window, situation.now)) >= policy.limit
            for history in situation.histories
        )
        return Decision(
            RecoveryStep.GIVE_UP if spent else RecoveryStep.WAIT, everyone if spent else (), again
        )
    if situation.strategy == "replace" and situation.overlaps:
        return Decision(RecoveryStep.REPLACE, due, again)
    chosen = due if situation.size == 1 else due[: max(0, situation.ready - 1)]
    return Decision(RecoveryStep.RESTART if chosen else RecoveryStep.WAIT, chosen, again)


def within(times: Sequence[float], window_seconds: float, now: float) -> list[float]:
    """The times that are less than `window_seconds` before `now`."""
    return [time for time in times if now - time < window_seconds]


def _recovery_delay_seconds(
    policy: Recovery, situation: RecoverySituation, history: Sequence[float]
) -> float:
    """Return the seconds until a worker with this `history` may be recovered: 0 means at once, and infinity never."""
    recent = within(history, policy.window, situation.now)
    if len(recent) >= policy.limit:
        return max(0.001, recent[-policy.limit] + policy.window - situation.now) if policy.limit else math.inf
    if not recent:
        return 0.0
    delay = policy.backoff.delay_seconds(len(recent), situation.jitter)
    return max(0.0, recent[-1] + delay - situation.now)


_DONE = {
    RecoveryStep.RESTART: "restarted",
    RecoveryStep.REPLACE: "replaced",
    RecoveryStep.DISABLE: "disabled",
    RecoveryStep.NOTIFY: "told",
    RecoveryStep.GIVE_UP: "left as it is",
}


class WorkerProblem(NamedTuple):
    """A worker's problem, of the `kind` LIVENESS, HEARTBEAT or MEMORY, with a `description` for people.

    `since` is when it began, in seconds since the epoch, and `stacks` are the worker's stacks at that time, if known.
    """

    worker: Worker
    kind: str
    description: str
    since: float
    stacks: WorkerStacks | None = None

    @property
    def sentence(self) -> str:
        """The problem in words, with the place where the event loop hangs if it is known."""
        place = self.stacks.place if self.stacks is not None and self.kind == HEARTBEAT else ""
        return f"{self.description}, in {place}" if place else self.description


class RecoveryState:
    """The recovery state of a server with unhealthy workers."""

    def __init__(self, jitter: float) -> None:
        self.problems: dict[str, WorkerProblem] = {}
        self.notified: set[str] = set()
        self.jitter = jitter
        self.timer: asyncio.TimerHandle | None = None

    def cancel_timer(self) -> None:
        """Cancel the next decision, if one is due at a time."""
        if self.timer is not None:
            self.timer.cancel()


class WorkerRecovery:
    """Recovers workers whose liveness probe fails, and workers that are reported to `report_worker_problem`."""

    def __init__(self, core: Core, events: EventBus) -> None:
        self._core = core
        self._events = events
        self._states: dict[str, RecoveryState] = {}
        self._reading_lines: dict[int, asyncio.Task[list[str]]] = {}  # by the report's id
        core.health.unhealthy.add(
            lambda entry, worker, reason: self.report_worker_problem(entry, worker, LIVENESS, reason)
        )
        core.observers.add(self.update_recovery)

    def report_worker_problem(self, entry: Entry, worker: Worker, kind: str, description: str) -> None:
        """Recover a worker with this problem (see WorkerProblem), as its server's policy says.

        The worker's stacks are read first, if possible. A further problem of the same worker is ignored.
        """
        state = self._states.setdefault(entry.name, RecoveryState(random.uniform(-1, 1)))
        earlier = state.problems.get(worker.id)
        if earlier is None or earlier.worker is not worker:
            state.problems[worker.id] = WorkerProblem(worker, kind, description, self._core.clock.time())
            if kind != MEMORY and entry.config.recovery.strategy != "none":
                reading = self._core.read_stacks(entry, worker)
                reading.add_done_callback(partial(self._on_stacks_read, entry, worker))
        self.update_recovery(entry)

    def _on_stacks_read(
        self, entry: Entry, worker: Worker, reading: asyncio.Task[WorkerStacks | None]
    ) -> None:
        """Begin the recovery of the worker, now that its stacks have been read."""
        problems = self._states[entry.name].problems if entry.name in self._states else {}
        problem = problems.get(worker.id)
        if problem is not None and problem.worker is worker and not reading.cancelled():
            problems[worker.id] = problem._replace(stacks=reading.result())
        self.update_recovery(entry)

    def resume(self, entries: Iterable[Entry]) -> None:
        """Continue the recoveries that the previous supervisor had begun."""
        for entry in entries:
            for name, pid in entry.observed.recovering.get("workers", {}).items():
                worker = entry.observed.workers.get(name)
                if worker is None or worker.placement is None or worker.placement.pid != pid:
                    continue
                self._core.mark_stuck(entry, worker, entry.observed.recovering["stuck"])
                self._core.health.update_probes_and_health(entry)
                if (
                    entry.observed.recovering["step"] == RecoveryStep.RESTART
                    and worker.phase is WorkerPhase.READY
                ):
                    self._core.drain_then_replace(entry, worker)

    def update_recovery(self, entry: Entry) -> None:
        """Handle a change of the server: a recovery may be over, or a new one due."""
        state = self._states.get(entry.name)
        if state is None and not entry.observed.recovering:
            return
        if (report := entry.observed.recovering) and (outcome := _recovery_outcome(entry)) is not None:
            self._core.note_recovery_ended(entry)
            self._record(entry, report, *outcome)
        if state is not None:
            self._forget_resolved_problems(entry, state)
            self._decide_and_recover(entry, state)

    def _forget_resolved_problems(self, entry: Entry, state: RecoveryState) -> None:
        """Forget workers that have exited or recovered."""
        problems = state.problems.items()
        state.problems = {name: problem for name, problem in problems if _is_unresolved(entry, problem)}
        state.notified &= state.problems.keys()
        if not state.problems:
            state.cancel_timer()
            del self._states[entry.name]

    def _decide_and_recover(self, entry: Entry, state: RecoveryState) -> None:
        current = [
            problem
            for problem in state.problems.values()
            if entry.is_current(problem.worker) and problem.worker.reading_stacks is None
        ]
        if not entry.wanted or entry.removed:
            return
        policy = entry.config.recovery
        delays: list[float] = []
        for strategy, problems in (
            (policy.strategy, [problem for problem in current if problem.kind != MEMORY]),
            ("replace", [problem for problem in current if problem.kind == MEMORY]),
        ):
            situation = RecoverySituation(
                strategy,
                histories=[
                    entry.observed.recoveries.get(str(problem.worker.index), []) for problem in problems
                ],
                ready=len(entry.observed.ready),
                size=entry.size,
                overlaps=entry.may_overlap,
                under_way=bool(entry.observed.recovering),
                now=self._core.clock.monotonic(),
                jitter=state.jitter,
            )
            step, chosen, again = decide(policy, situation)
            if step in (RecoveryStep.NOTIFY, RecoveryStep.GIVE_UP):
                self._notify_once(entry, state, step, problems)
            elif step in (RecoveryStep.RESTART, RecoveryStep.REPLACE, RecoveryStep.DISABLE):
                self._begin(entry, step, [problems[index] for index in chosen])
            delays.append(again)
        state.cancel_timer()
        if again := min(filter(None, delays), default=0.0):
            state.timer = asyncio.get_running_loop().call_later(again, self.update_recovery, entry)

    def _notify_once(
        self, entry: Entry, state: RecoveryState, step: RecoveryStep, problems: list[WorkerProblem]
    ) -> None:
        news = [problem for problem in problems if problem.worker.id not in state.notified]
        if news:
            state.notified |= {problem.worker.id for problem in news}
            report = self._begin_recovery_report(entry, step, news)
            self._record(entry, report, "notified" if step is RecoveryStep.NOTIFY else "given up")

    def _begin(self, entry: Entry, step: RecoveryStep, problems: list[WorkerProblem]) -> None:
        acts = step is not RecoveryStep.DISABLE
        now = self._core.clock.monotonic()
        times = _recovery_times(entry, problems, now) if acts else entry.observed.recoveries
        counts = acts and any(problem.kind != MEMORY for problem in problems)
        self._core.note_recovery_begun(
            entry, self._begin_recovery_report(entry, step, problems), times, counts=counts
        )
        with caused_by("recovery: " + "; ".join(problem.description for problem in problems)):
            self._act(entry, step, problems)

    def _act(self, entry: Entry, step: RecoveryStep, problems: list[WorkerProblem]) -> None:
        core = self._core
        if step is RecoveryStep.RESTART:
            for problem in problems:
                core.drain_then_replace(entry, problem.worker)
        elif step is RecoveryStep.REPLACE:
            for problem in problems:
                core.replace_worker(entry, problem.worker.id)
        else:
            for dependent in core.servers.closure([entry], core.servers.dependents):
                if dependent is not entry:
                    core.stop(dependent)
            core.replace_overrides(entry, replace(entry.desired.overrides, disabled=True))

    def _begin_recovery_report(
        self, entry: Entry, step: RecoveryStep, problems: list[WorkerProblem]
    ) -> Table:
        """Describe a recovery that is beginning, as JSON for its event. The workers' last log lines are added later."""
        workers = [problem.worker for problem in problems]
        placed_at = min(worker.placed_at for worker in workers)
        report: Table = {
            "step": step.value,
            "seen": [problem.description for problem in problems],
            "kinds": sorted({problem.kind for problem in problems}),
            "since": min(problem.since for problem in problems),
            "workers": {
                worker.id: worker.placement.pid for worker in workers if worker.placement is not None
            },
            "stuck": any(worker.stuck for worker in workers),
            "pids": entry.pids,
            "lines": [],
        }
        if stacks := [to_json(problem.stacks) for problem in problems if problem.stacks is not None]:
            report["stacks"] = stacks[:_MAX_STACKS]
            report["sentences"] = [problem.sentence for problem in problems]
        # The event of the recovery is recorded once the lines have been read.
        reading = asyncio.ensure_future(last_lines(self._core.runner, entry.name, LAST_LINES, placed_at))
        self._reading_lines[id(report)] = reading

        def take_lines(reading: asyncio.Task[list[str]]) -> None:
            del self._reading_lines[id(report)]
            report["lines"] = [] if reading.cancelled() else reading.result()
            self._core.touch(entry)  # the recoveries are part of the entry's record

        reading.add_done_callback(take_lines)
        return report

    def _record(self, entry: Entry, report: Table, outcome: str, why: str = "") -> None:
        duration = max(0.0, self._core.clock.time() - report["since"])
        done = _DONE[RecoveryStep(report["step"])]
        seen = "; ".join(report.get("sentences") or report["seen"])
        detail = {
            "server": entry.name,
            "bind": entry.config.key,
            "message": ": ".join(filter(None, (seen, outcome_text(outcome, done, duration), why))),
            "cause": ", ".join(report["kinds"]),
            "before": {"pids": report["pids"]},
            "after": {"pids": entry.pids, "state": entry.state},
            "strategy": report["step"],
            "seen": report["seen"],
            "done": done,
            "outcome": outcome,
            "duration_seconds": round(duration, 3),
            "workers": report["workers"],
            **({"stacks": report["stacks"]} if "stacks" in report else {}),
        }

        def write(_: object = None) -> None:
            self._events.record("recovery", outcome, **detail, lines=report["lines"])

        if reading := self._reading_lines.get(id(report)):
            reading.add_done_callback(write)
        else:
            write()


def _recovery_times(entry: Entry, problems: list[WorkerProblem], now: float) -> dict[str, list[float]]:
    """Return the server's recent recovery times by worker index, with `now` added for the recovery that begins.

    Times before the server's `recovery.window` are left out.
    """
    recent = {
        index: within(times, entry.config.recovery.window, now)
        for index, times in entry.observed.recoveries.items()
    }
    for index in {str(problem.worker.index) for problem in problems}:
        recent[index] = [*recent.get(index, ()), now]
    return {index: times for index, times in recent.items() if times}


def _recovery_outcome(entry: Entry) -> tuple[str, str] | None:
    """The outcome of the recovery (recovered, failed …) and the reason or ""; None while it is in progress."""
    step = entry.observed.recovering["step"]
    if step == RecoveryStep.DISABLE:
        if entry.is_disabled:
            return ("disabled", "") if entry.is_fully_stopped else None
        return "interrupted", "it was enabled again"
    if entry.removed or not entry.wanted:
        return "interrupted", "it was stopped meanwhile"
    failure = entry.observed.failure.message if entry.observed.failure else ""
    if entry.failed or entry.completed:
        return "failed", failure
    if step == RecoveryStep.REPLACE and any(
        worker.id in entry.observed.recovering["workers"] and entry.is_current(worker)
        for worker in entry.observed.staying
    ):
        return "failed", failure or "its replacement did not become ready"
    return ("recovered", "") if entry.settled else None


def outcome_text(outcome: str, done: str, duration_seconds: float) -> str:
    """What an event says of the outcome of a recovery; "" if it was only reported."""
    match outcome:
        case "recovered":
            long = duration_seconds >= 1
            return f"{done} within " + (
                f"{duration_seconds:.1f} s" if long else f"{duration_seconds * 1000:.0f} ms"
            )
        case "notified":
            return ""
        case "disabled":
            return done
        case "given up":
            return "recovered too often, left as it is"
    return f"could not be {done}" if outcome == "failed" else f"was being {done}"


def _is_unresolved(entry: Entry, problem: WorkerProblem) -> bool:
    worker = problem.worker
    if entry.observed.workers.get(worker.id) is not worker or worker.phase is not WorkerPhase.READY:
        return False
    if problem.kind == HEARTBEAT:
        return worker.stuck
    return problem.kind == MEMORY or worker.health not in (Status.OK, Status.WARN)
