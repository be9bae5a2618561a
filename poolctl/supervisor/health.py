"""Watches workers: whether their event loops answer, and how much memory they use.

Memory is measured only for servers with `limits.memory`.

A worker is hung if its event loop does not run although its port still accepts. One timer sends heartbeats to all
workers in turn. A worker answers by writing into a shared page of memory, not by a message. A worker that
has not answered gets no further heartbeat, so that heartbeats do not pile up. A worker that has been idle since its
last answer gets no heartbeat; one wake-up per interval checks whether the idle workers are still idle.
"""

from __future__ import annotations

import asyncio
import random
from heapq import heappop, heappush
from typing import Any

from poolctl.clock import next_aligned_time
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.local.local_runner import LocalRunner
from poolctl.runners.local.tallies import WorkerHeartbeats
from poolctl.runners.process_usage import USAGE_SECONDS, ProcessUsages
from poolctl.units import format_duration, format_size

from .worker_recovery import HEARTBEAT, MEMORY, WorkerRecovery

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
        for check in checks:
            check(entry)


class MemoryLimit:
    """Measures the memory of ready workers whose servers have a memory limit; reports those above it to `recovery`.

    All workers are measured together, for the first time soon after one of them is ready.
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
        self._limited = {name: pair for name, pair in self._limited.items() if _has_memory_limit(*pair)}
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
                usage = f"worker {worker.id} (pid {pid}) uses {format_size(size)}"
                problem = f"{usage}, and limits.memory is {format_size(limit)}"
                self._recovery.report_worker_problem(entry, worker, MEMORY, problem)


def _is_ready(entry: Entry, worker: Worker) -> bool:
    return entry.observed.workers.get(worker.id) is worker and worker.phase is WorkerPhase.READY


def _has_memory_limit(entry: Entry, worker: Worker) -> bool:
    is_placed = _is_ready(entry, worker) and worker.placement is not None
    return is_placed and entry.config.limits.memory is not None


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
    ) -> None:
        self._beats = beats
        self._core = core
        self._events = events
        self._clock = core.clock
        self._recovery = recovery
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
                state = self._states.get(worker.id)
                if state is None or state.worker is not worker:
                    state = self._states[worker.id] = HeartbeatState(entry, worker)
                    # Spread at random, so that workers that became ready together are not always asked together.
                    self._schedule(state, self._clock.monotonic() + interval * random.random())

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
        rescheduled = []
        while self._due and self._due[0][0] <= now + TOGETHER_SECONDS:
            state = heappop(self._due)[2]
            when = self._exchange_heartbeat(state, now)
            if when is not None:
                rescheduled.append((state, when))
        # Added after the loop, because the next heartbeat of a worker may already be due again.
        for state, when in rescheduled:
            self._schedule(state, when)
        self._set_timer()

    def _exchange_heartbeat(self, state: HeartbeatState, now: float) -> float | None:
        """Send a worker a heartbeat, or check its answer. Return the time of the next call; None to stop."""
        entry, worker = state.entry, state.worker
        policy = entry.config.recovery
        placement = worker.placement
        is_ready = _is_ready(entry, worker)
        if not is_ready or not policy.heartbeat or placement is None:
            if self._states.get(worker.id) is state:
                del self._states[worker.id]
            if worker.stuck and not (is_ready and policy.heartbeat):
                self._core.mark_stuck(entry, worker, False)
            return None
        if state.asked_at is not None and self._beats.last_beat_ns(placement) >= int(state.asked_at * _NS):
            state.asked_at = None
            if worker.stuck:
                self._core.mark_stuck(entry, worker, False)
                answers = f"worker {_worker_name(worker)} answers its heartbeat again"
                self._record(entry, worker, "heartbeat back", answers)
        interval = policy.heartbeat
        if state.asked_at is None:
            if self._beats.idle_since_answer(placement):
                state.is_idle = True
                return next_aligned_time(now, interval)
            if state.is_idle:
                # Not at the aligned time: many workers that become busy together would be asked together.
                interval *= random.random()
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
        problem = (
            f"the event loop of worker {_worker_name(worker)} has been stuck for {format_duration(seconds)}"
        )
        self._record(entry, worker, "heartbeat lost", problem, severity="error")
        # Before the recovery, because a worker that is being stopped no longer counts for its server's health.
        self._core.health.update_probes_and_health(entry)
        self._recovery.report_worker_problem(entry, worker, HEARTBEAT, problem)

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
