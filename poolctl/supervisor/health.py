"""Recovers workers that are hung, unhealthy or above their memory limit, according to the table `recovery`.

Memory is measured only for servers with `limits.memory`.

A worker is hung if its event loop does not run although its port still accepts. One timer sends heartbeats to all
workers in turn. A worker answers by writing into a shared page of memory, not by a message. A worker that
has not answered gets no further heartbeat, so that heartbeats do not pile up. A worker that has been idle since its
last answer gets no heartbeat; one wake-up per interval checks whether the idle workers are still idle.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from poolctl.clock import next_aligned_time
from poolctl.core.core import Core
from poolctl.core.decide import WorkerPhase
from poolctl.core.explain import last_lines
from poolctl.core.server_entry import Entry, Worker
from poolctl.core.workqueue import caused_by
from poolctl.json_form import Table, to_json
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.local.local_runner import LocalRunner
from poolctl.runners.local.tallies import WorkerHeartbeats
from poolctl.runners.process_usage import USAGE_SECONDS, ProcessUsages
from poolctl.runners.stack_report import WorkerStacks
from poolctl.states import Status
from poolctl.units import format_duration, format_size

if TYPE_CHECKING:
    from poolctl.config import Recovery

LAST_LINES = 10
_MAX_STACKS = 3  # the number of stacks in the report about workers recovered together
LIVENESS, HEARTBEAT, MEMORY = "liveness", "heartbeat", "memory"
FIRST_SECONDS = 2.0
# Workers due within this time get their heartbeats together, because a wake-up costs more than a heartbeat.
TOGETHER_SECONDS = 0.5
# A timer that fires later than this shows that this process, or the machine, was paused.
_PAUSED_SECONDS = 1.0
_NS = 1_000_000_000


def watch_health(core: Core, runner: LocalRunner, events: EventBus) -> None:
    """From now on, check the core's workers and recover them; continue the recoveries of the previous supervisor."""
    recovery = WorkerRecovery(core, events)
    recovery.resume(core.entries.values())
    checks = (
        MemoryLimit(runner.usages, recovery).entry_changed,
        HeartbeatMonitor(runner.heartbeats, core, events, recovery).entry_changed,
    )
    core.observers |= set(checks)
    for entry in core.entries.values():
        for look in checks:
            look(entry)


class RecoveryStep(StrEnum):
    """The recovery action to take now."""

    NOTHING = "nothing"
    NOTIFY = "notify"
    RESTART = "restart"  # stop the unhealthy workers and start replacements
    REPLACE = "replace"  # start replacements, and stop each unhealthy worker once its replacement is ready
    DISABLE = "disable"
    WAIT = "wait"
    GIVE_UP = "give up"  # no action until earlier recoveries leave the window


_DONE = {
    RecoveryStep.RESTART: "restarted",
    RecoveryStep.REPLACE: "replaced",
    RecoveryStep.DISABLE: "disabled",
    RecoveryStep.NOTIFY: "told",
    RecoveryStep.GIVE_UP: "left as it is",
}


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
    """The next action, `step`, and the workers it is for: `chosen` has their indexes in `Situation.histories`.

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
    if situation.under_way:
        return Decision(RecoveryStep.WAIT)
    pauses = [_recovery_delay_seconds(policy, situation, history) for history in situation.histories]
    willing = [place for place in everyone if pauses[place] == 0]
    again = min((pause for pause in pauses if 0 < pause < math.inf), default=0.0)
    if not willing:
        spent = all(_is_spent(policy, situation, history) for history in situation.histories)
        return Decision(
            RecoveryStep.GIVE_UP if spent else RecoveryStep.WAIT, everyone if spent else (), again
        )
    if situation.strategy == "replace" and situation.overlaps:
        return Decision(RecoveryStep.REPLACE, willing, again)
    chosen = willing if situation.size == 1 else willing[: max(0, situation.ready - 1)]
    return Decision(RecoveryStep.RESTART if chosen else RecoveryStep.WAIT, chosen, again)


def within(times: Sequence[float], window_seconds: float, now: float) -> list[float]:
    """The times that are less than `window_seconds` before `now`."""
    return [moment for moment in times if now - moment < window_seconds]


def _is_spent(policy: Recovery, situation: RecoverySituation, history: Sequence[float]) -> bool:
    return len(within(history, policy.window, situation.now)) >= policy.limit


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


class WorkerProblem(NamedTuple):
    """A worker's problem: its `kind` (LIVENESS, HEARTBEAT or MEMORY), and its description in words, `seen`.

    `since` is when it began, in seconds since the epoch, and `stacks` are the worker's stacks at that time, if known.
    """

    worker: Worker
    kind: str
    seen: str
    since: float
    stacks: WorkerStacks | None = None

    @property
    def sentence(self) -> str:
        """The problem in words, with the place where the event loop hangs if it is known."""
        place = self.stacks.place if self.stacks is not None and self.kind == HEARTBEAT else ""
        return f"{self.seen}, in {place}" if place else self.seen


class RecoveryState:
    """The recovery state of a server with unhealthy workers."""

    def __init__(self, jitter: float) -> None:
        self.problems: dict[str, WorkerProblem] = {}
        self.notified: set[str] = set()
        self.jitter = jitter
        self.timer: asyncio.TimerHandle | None = None


class WorkerRecovery:
    """Recovers workers whose liveness probe fails, and workers that are reported to `notice`."""

    def __init__(self, core: Core, events: EventBus, chance: Random | None = None) -> None:
        self._core = core
        self._events = events
        self._chance = chance or Random()
        self._states: dict[str, RecoveryState] = {}
        self._reading: dict[int, asyncio.Task[list[str]]] = {}  # reading last lines, by the report's id
        self._taking: dict[int, asyncio.Task[WorkerStacks | None]] = {}  # reading stacks, by the worker's id
        core.health.unhealthy.add(
            lambda entry, worker, reason: self.report_worker_problem(entry, worker, LIVENESS, reason)
        )
        core.observers.add(self.update_recovery)

    def report_worker_problem(self, entry: Entry, worker: Worker, kind: str, seen: str) -> None:
        """Recover a worker that has a problem, as its server's policy says. `kind` and `seen`: see WorkerProblem.

        The worker's stacks are read first, if possible. A further problem of the same worker is ignored.
        """
        state = self._states.setdefault(entry.name, RecoveryState(self._chance.uniform(-1, 1)))
        known = state.problems.get(worker.id)
        if known is None or known.worker is not worker:
            state.problems[worker.id] = WorkerProblem(worker, kind, seen, self._core.clock.time())
            if kind != MEMORY and entry.config.recovery.strategy != "none":
                taking = self._taking[id(worker)] = asyncio.ensure_future(
                    self._core.stacks.record_stacks(entry, worker)
                )
                taking.add_done_callback(partial(self._on_stacks_read, entry, worker))
        self.update_recovery(entry)

    def _on_stacks_read(self, entry: Entry, worker: Worker, taken: asyncio.Task[WorkerStacks | None]) -> None:
        """Begin the recovery of the worker, now that its stacks have been read."""
        # Otherwise it hangs again, and its stacks are being read again.
        if self._taking.get(id(worker)) is taken:
            del self._taking[id(worker)]
        problems = self._states[entry.name].problems if entry.name in self._states else {}
        problem = problems.get(worker.id)
        if problem is not None and problem.worker is worker and not taken.cancelled():
            problems[worker.id] = problem._replace(stacks=taken.result())
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
        if entry.observed.recovering:
            self._conclude_if_over(entry)
        if state is not None:
            self._forget_resolved_problems(entry, state)
            self._decide_and_recover(entry, state)

    def _forget_resolved_problems(self, entry: Entry, state: RecoveryState) -> None:
        """Forget workers that have exited or recovered."""
        state.problems = {name: each for name, each in state.problems.items() if _is_unresolved(entry, each)}
        state.notified &= state.problems.keys()
        if not state.problems:
            _cancel_timer(state)
            del self._states[entry.name]

    def _decide_and_recover(self, entry: Entry, state: RecoveryState) -> None:
        current = [
            problem
            for problem in state.problems.values()
            if entry.is_current(problem.worker) and id(problem.worker) not in self._taking
        ]
        if not entry.wanted or entry.removed:
            return
        policy = entry.config.recovery
        pauses: list[float] = []
        for strategy, problems in (
            (policy.strategy, [each for each in current if each.kind != MEMORY]),
            ("replace", [each for each in current if each.kind == MEMORY]),
        ):
            situation = RecoverySituation(
                strategy,
                histories=[_recoveries_of(entry, problem.worker) for problem in problems],
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
                self._begin(entry, step, [problems[place] for place in chosen])
            pauses.append(again)
        _cancel_timer(state)
        if again := min(filter(None, pauses), default=0.0):
            state.timer = asyncio.get_running_loop().call_later(again, self.update_recovery, entry)

    def _notify_once(
        self, entry: Entry, state: RecoveryState, step: RecoveryStep, problems: list[WorkerProblem]
    ) -> None:
        news = [problem for problem in problems if problem.worker.id not in state.notified]
        if news:
            state.notified |= {item.worker.id for item in news}
            report = self._begin_recovery_report(entry, step, news)
            self._record(entry, report, "notified" if step is RecoveryStep.NOTIFY else "given up")

    def _begin(self, entry: Entry, step: RecoveryStep, problems: list[WorkerProblem]) -> None:
        acts = step is not RecoveryStep.DISABLE
        times = (
            _recovery_times(entry, problems, self._core.clock.monotonic())
            if acts
            else entry.observed.recoveries
        )
        counts = acts and any(problem.kind != MEMORY for problem in problems)
        self._core.note_recovery_begun(
            entry, self._begin_recovery_report(entry, step, problems), times, counts=counts
        )
        with caused_by("recovery: " + "; ".join(problem.seen for problem in problems)):
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
            "seen": [problem.seen for problem in problems],
            "kinds": sorted({problem.kind for problem in problems}),
            "since": min(problem.since for problem in problems),
            "workers": {each.id: each.placement.pid for each in workers if each.placement is not None},
            "stuck": any(worker.stuck for worker in workers),
            "pids": entry.pids,
            "lines": [],
        }
        if taken := [to_json(problem.stacks) for problem in problems if problem.stacks is not None]:
            report["stacks"] = taken[:_MAX_STACKS]
            report["sentences"] = [problem.sentence for problem in problems]
        # Read during the recovery; its event is recorded once they have been read.
        reading = asyncio.ensure_future(last_lines(self._core.runner, entry.name, LAST_LINES, placed_at))
        self._reading[id(report)] = reading
        reading.add_done_callback(lambda _: self._take_lines(entry, report, reading))
        return report

    def _take_lines(self, entry: Entry, report: Table, reading: asyncio.Task[list[str]]) -> None:
        del self._reading[id(report)]
        report["lines"] = [] if reading.cancelled() else reading.result()
        self._core.touch(entry)  # the recoveries are part of the entry's record

    def _conclude_if_over(self, entry: Entry) -> None:
        found = _recovery_outcome(entry)
        if found is not None:
            report = entry.observed.recovering
            self._core.note_recovery_ended(entry)
            self._record(entry, report, *found)

    def _record(self, entry: Entry, report: Table, outcome: str, why: str = "") -> None:
        duration = max(0.0, self._core.clock.time() - report["since"])
        done = _DONE[RecoveryStep(report["step"])]
        seen = "; ".join(report.get("sentences") or report["seen"])
        detail = {
            "server": entry.name,
            "bind": entry.config.key,
            "message": ": ".join(filter(None, (seen, _sentence(outcome, done, duration), why))),
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

        if reading := self._reading.get(id(report)):
            reading.add_done_callback(write)
        else:
            write()


class MemoryLimit:
    """Measures the memory of ready workers whose servers have a memory limit; reports those above it to `recovery`.

    All are measured together, the first time soon after the first of them is ready.
    """

    def __init__(self, usages: ProcessUsages, recovery: WorkerRecovery) -> None:
        self._usages = usages
        self._recovery = recovery
        self._limited: dict[str, tuple[Entry, Worker]] = {}  # by worker id
        self._timer: asyncio.TimerHandle | None = None
        self._measuring: asyncio.Task[None] | None = None

    def entry_changed(self, entry: Entry) -> None:
        """Begin to measure the memory of the server's workers repeatedly, if the server has a memory limit."""
        if entry.config.limits.memory is None:
            return
        for worker in entry.observed.workers.values():
            if _has_memory_limit(entry, worker):
                self._limited[worker.id] = entry, worker
        if self._limited and self._timer is None and self._measuring is None:
            self._measure_after(FIRST_SECONDS)

    def _measure_after(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._begin)

    def _begin(self) -> None:
        self._timer = None
        self._limited = {name: each for name, each in self._limited.items() if _has_memory_limit(*each)}
        if self._limited:
            self._measuring = asyncio.ensure_future(self.measure_and_report())
            self._measuring.add_done_callback(self._on_measured)

    def _on_measured(self, _: asyncio.Task[None]) -> None:
        self._measuring = None
        self._measure_after(USAGE_SECONDS)

    async def measure_and_report(self) -> None:
        """Measure the memory of the workers, and report those above their limit."""
        limited = [*self._limited.values()]
        await self._usages.measure(
            worker.placement.pid for _, worker in limited if worker.placement is not None
        )
        for entry, worker in limited:
            pid = worker.placement.pid if worker.placement is not None else None
            limit, size = entry.config.limits.memory, self._usages.of(pid).memory_bytes
            if limit is not None and size is not None and size > limit and _has_memory_limit(entry, worker):
                used = f"worker {worker.id} (pid {pid}) uses {format_size(size)}"
                seen = f"{used}, and limits.memory is {format_size(limit)}"
                self._recovery.report_worker_problem(entry, worker, MEMORY, seen)


def _recoveries_of(entry: Entry, worker: Worker) -> list[float]:
    return entry.observed.recoveries.get(str(worker.index), [])


def _recovery_times(entry: Entry, problems: list[WorkerProblem], now: float) -> dict[str, list[float]]:
    """Return the server's recent recovery times by worker index, with `now` added for the recovery that begins.

    Times before the server's `recovery.window` are left out.
    """
    whose = {str(problem.worker.index) for problem in problems}
    known = {
        key: within(times, entry.config.recovery.window, now)
        for key, times in entry.observed.recoveries.items()
    }
    known |= {key: [*known.get(key, ()), now] for key in whose}
    return {key: times for key, times in known.items() if times}


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


def _sentence(outcome: str, done: str, duration_seconds: float) -> str:
    match outcome:
        case "recovered":
            return f"{done} within {_duration_text(duration_seconds)}"
        case "notified":
            return ""
        case "disabled":
            return done
        case "given up":
            return "recovered too often, left as it is"
    return f"could not be {done}" if outcome == "failed" else f"was being {done}"


def _duration_text(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _is_unresolved(entry: Entry, problem: WorkerProblem) -> bool:
    worker = problem.worker
    if entry.observed.workers.get(worker.id) is not worker or worker.phase is not WorkerPhase.READY:
        return False
    if problem.kind == HEARTBEAT:
        return worker.stuck
    return problem.kind == MEMORY or worker.health not in (Status.OK, Status.WARN)


def _cancel_timer(state: RecoveryState) -> None:
    if state.timer is not None:
        state.timer.cancel()
        state.timer = None


def _has_memory_limit(entry: Entry, worker: Worker) -> bool:
    there = entry.observed.workers.get(worker.id) is worker and worker.phase is WorkerPhase.READY
    return there and worker.placement is not None and entry.config.limits.memory is not None


class HeartbeatState:
    """The state of the heartbeats sent to one worker."""

    __slots__ = ("asked_at", "entry", "is_idle", "worker")

    def __init__(self, entry: Entry, worker: Worker) -> None:
        self.entry = entry
        self.worker = worker
        self.asked_at: float | None = None  # the monotonic time of an unanswered heartbeat
        self.is_idle = False  # whether the last check found it idle


class HeartbeatMonitor:
    """Sends heartbeats to ready workers of each server passed to `entry_changed`; reports hung ones to `recovery`."""

    def __init__(
        self,
        beats: WorkerHeartbeats,
        core: Core,
        events: EventBus,
        recovery: WorkerRecovery,
        chance: Random | None = None,
    ) -> None:
        self._beats = beats
        self._core = core
        self._events = events
        self._clock = core.clock
        self._recovery = recovery
        self._chance = chance or Random()
        self._states: dict[str, HeartbeatState] = {}  # by worker id
        self._due: list[tuple[float, int, HeartbeatState]] = []
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._awake_since = 0.0

    def entry_changed(self, entry: Entry) -> None:
        """Begin to send heartbeats to the server's ready workers that are not sent any yet."""
        interval = entry.config.recovery.heartbeat
        if not interval or not entry.observed.workers or entry.config.command:
            return
        for worker in entry.observed.workers.values():
            if worker.phase is WorkerPhase.READY and worker.placement is not None:
                known = self._states.get(worker.id)
                if known is None or known.worker is not worker:
                    state = self._states[worker.id] = HeartbeatState(entry, worker)
                    # Spread at random, so that workers that became ready together are not always asked together.
                    self._schedule(state, self._clock.monotonic() + interval * self._chance.random())

    def _schedule(self, state: HeartbeatState, when: float) -> None:
        self._number += 1
        heappush(self._due, (when, self._number, state))
        if self._timer is None or when < self._timer_at:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            self._timer_at = self._due[0][0]
            delay = max(0.0, self._timer_at - self._clock.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self.tick)

    def tick(self) -> None:
        """Check the answers of the workers whose time has come, and send these workers the next heartbeat."""
        now = self._clock.monotonic()
        if now - self._timer_at > _PAUSED_SECONDS:
            # The pause does not count as time for an answer: the workers were probably paused too.
            self._awake_since = now
        again = []
        while self._due and self._due[0][0] <= now + TOGETHER_SECONDS:
            state = heappop(self._due)[2]
            when = self._exchange_heartbeat(state, now)
            if when is not None:
                again.append((state, when))
        # Added after the loop, because the next heartbeat of a worker may already be due again.
        for state, when in again:
            self._schedule(state, when)
        self._set_timer()

    def _exchange_heartbeat(self, state: HeartbeatState, now: float) -> float | None:
        """Send a heartbeat to a worker, or check its answer; returns the time of the next call, None if none is due."""
        entry, worker = state.entry, state.worker
        policy = entry.config.recovery
        placement = worker.placement
        there = entry.observed.workers.get(worker.id) is worker and worker.phase is WorkerPhase.READY
        if not there or not policy.heartbeat or placement is None:
            if self._states.get(worker.id) is state:
                del self._states[worker.id]
            if worker.stuck and not (there and policy.heartbeat):
                self._core.mark_stuck(entry, worker, False)
            return None
        if state.asked_at is not None and self._beats.last_beat_ns(placement) >= int(state.asked_at * _NS):
            state.asked_at = None
            if worker.stuck:
                self._handle_heartbeat_return(entry, worker)
        interval = policy.heartbeat
        if state.asked_at is None:
            if self._beats.idle_since_answer(placement):
                state.is_idle = True
                return next_aligned_time(now, interval)
            if state.is_idle:
                # Not at the common time of idle workers, so that a thousand that became busy are not asked together.
                interval *= self._chance.random()
            state.is_idle = False
            # A newly forked worker does not answer heartbeats yet, and is not considered stuck.
            asked_ns = int(now * _NS)
            if not (self._beats.last_beat_ns(placement) and self._beats.request_beat(placement, asked_ns)):
                return now + interval
            state.asked_at = now
        due = max(state.asked_at, self._awake_since) + policy.stuck_after
        if now >= due and not worker.stuck:
            self._handle_lost_heartbeat(entry, worker, policy.stuck_after)
        return now + interval if worker.stuck else min(now + interval, due)

    def _handle_lost_heartbeat(self, entry: Entry, worker: Worker, seconds: float) -> None:
        self._core.mark_stuck(entry, worker, True)
        seen = (
            f"the event loop of worker {_worker_name(worker)} has been stuck for {format_duration(seconds)}"
        )
        self._record(entry, worker, "heartbeat lost", seen, severity="error")
        # Recorded before the recovery, because a worker that is being stopped no longer counts for its server's health.
        self._core.health.update_probes_and_health(entry)
        self._recovery.report_worker_problem(entry, worker, HEARTBEAT, seen)

    def _handle_heartbeat_return(self, entry: Entry, worker: Worker) -> None:
        self._core.mark_stuck(entry, worker, False)
        self._record(
            entry, worker, "heartbeat back", f"worker {_worker_name(worker)} answers its heartbeat again"
        )

    def _record(self, entry: Entry, worker: Worker, event: str, message: str, **detail: Any) -> None:
        self._events.record(
            "health",
            event,
            server=entry.name,
            bind=entry.config.key,
            message=message,
            worker=worker.id,
            pid=worker.placement.pid if worker.placement is not None else None,
            **detail,
        )
        self._core.touch(entry)


def _worker_name(worker: Worker) -> str:
    pid = worker.placement.pid if worker.placement is not None else None
    return worker.id if pid is None else f"{worker.id} (pid {pid})"
