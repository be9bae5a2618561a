"""Finds hung workers, whose event loop does not run although their port still accepts.

One timer asks all of them in turn. A worker answers by writing the time into the page of memory that it shares with us;
no message comes back. A worker that has not answered is not asked again, so that no requests pile up. A worker that has
not run since its answer is not asked either; all of these are checked together, in one wake-up per interval.
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from random import Random
from typing import Any

from poolctl.clock import aligned
from poolctl.core.core import Core
from poolctl.core.decide import Phase
from poolctl.core.server_entry import Entry, Worker
from poolctl.monitor.event_queue import Events
from poolctl.runners.runner_protocol import Heartbeats
from poolctl.units import format_duration

from .recovery import HEARTBEAT, WorkerRecovery

# Workers due within this are asked together: each wake-up costs more than a question.
TOGETHER_SECONDS = 0.5
# A timer that fires later than this shows that this process, or the machine, was paused.
_PAUSED_SECONDS = 1.0
_NS = 1_000_000_000


class HeartbeatState:
    """One worker that is asked."""

    __slots__ = ("asked_at", "entry", "is_idle", "worker")

    def __init__(self, entry: Entry, worker: Worker) -> None:
        self.entry = entry
        self.worker = worker
        self.asked_at: float | None = None  # monotonic; None: nothing is unanswered
        self.is_idle = False  # it was, when it was last checked


class Heartbeat:
    """Asks the ready workers of every server that `look` has seen, and reports stuck ones to `recovery`."""

    def __init__(
        self,
        beats: Heartbeats,
        core: Core,
        events: Events,
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

    def look(self, entry: Entry) -> None:
        """Ask from now on those workers of the server that are ready."""
        interval = entry.config.recovery.heartbeat
        if not interval or not entry.observed.workers or entry.config.command:
            return
        for worker in entry.observed.workers.values():
            if worker.phase is Phase.READY and worker.placement is not None:
                known = self._states.get(worker.id)
                if known is None or known.worker is not worker:
                    state = self._states[worker.id] = HeartbeatState(entry, worker)
                    # Spread, so that a thousand that became ready together are not always asked together.
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
        """Ask all workers that are due."""
        now = self._clock.monotonic()
        if now - self._timer_at > _PAUSED_SECONDS:
            # Workers asked before the pause had no more time than this process.
            self._awake_since = now
        again = []
        while self._due and self._due[0][0] <= now + TOGETHER_SECONDS:
            state = heappop(self._due)[2]
            when = self._ask(state, now)
            if when is not None:
                again.append((state, when))
        # One timer for all of them, set once.
        for state, when in again:
            self._number += 1
            heappush(self._due, (when, self._number, state))
        self._set_timer()

    def _ask(self, state: HeartbeatState, now: float) -> float | None:
        """Ask one worker, or check its answer; returns when to do so again, None for never."""
        entry, worker = state.entry, state.worker
        policy = entry.config.recovery
        placement = worker.placement
        there = entry.observed.workers.get(worker.id) is worker and worker.phase is Phase.READY
        if not there or not policy.heartbeat or placement is None:
            if self._states.get(worker.id) is state:
                del self._states[worker.id]
            if worker.stuck and not (there and policy.heartbeat):
                self._core.mark_stuck(entry, worker, False)
            return None
        if state.asked_at is not None and self._beats.beaten_ns(placement) >= int(state.asked_at * _NS):
            state.asked_at = None
            if worker.stuck:
                self._report_back(entry, worker)
        interval = policy.heartbeat
        if state.asked_at is None:
            if self._beats.idle_since_answer(placement):
                state.is_idle = True
                return aligned(now, interval)
            if state.is_idle:
                # No longer at the moment of the idle ones: a thousand that have work again are not asked together.
                interval *= self._chance.random()
            state.is_idle = False
            # A worker that has just been forked does not answer heartbeats yet, so it is not stuck.
            if not (self._beats.beaten_ns(placement) and self._beats.beat(placement, int(now * _NS))):
                return now + interval
            state.asked_at = now
        due = max(state.asked_at, self._awake_since) + policy.stuck_after
        if now >= due and not worker.stuck:
            self._report_lost(entry, worker, policy.stuck_after)
        return now + interval if worker.stuck else min(now + interval, due)

    def _report_lost(self, entry: Entry, worker: Worker, seconds: float) -> None:
        self._core.mark_stuck(entry, worker, True)
        seen = f"the event loop of worker {_called(worker)} has been stuck for {format_duration(seconds)}"
        self._record(entry, worker, "heartbeat lost", seen, severity="error")
        # Before the recovery: a worker that is being stopped no longer counts for its server's health.
        self._core.health.look(entry)
        self._recovery.notice(entry, worker, HEARTBEAT, seen)

    def _report_back(self, entry: Entry, worker: Worker) -> None:
        self._core.mark_stuck(entry, worker, False)
        self._record(entry, worker, "heartbeat back", f"worker {_called(worker)} answers its heartbeat again")

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


def _called(worker: Worker) -> str:
    pid = worker.placement.pid if worker.placement is not None else None
    return worker.id if pid is None else f"{worker.id} (pid {pid})"
