"""Time-based behavior of servers: windows that keep them awake or asleep, and scheduled jobs (`every`).

Times are wall-clock times. A run is dropped if its minute has passed or the previous run has not ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache

from poolctl.clock import LOOK_SECONDS, Clock
from poolctl.runners.runner_protocol import Exit
from poolctl.time_windows import (
    NO_PERIOD,
    WindowState,
    is_frequent,
    next_time,
    parse_time_zone,
    period_at,
    until_text,
)

from .decide import ASLEEP, AWAKE
from .server_entry import RUN_FAILED, RUN_STOPPED, RUN_SUCCEEDED, Entry
from .server_state import Desired
from .servers import ServerRegistry
from .workqueue import Recorder, Workqueue, caused_by


class _EarliestTimer:
    """A timer for the earliest of several wall-clock times. It also fires every LOOK_SECONDS."""

    def __init__(self, clock: Clock, fire: Callable[[], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._handle: asyncio.TimerHandle | None = None

    def set_if_earlier(self, when: float | None) -> None:
        if when is None:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + min(max(0.0, when - self._clock.time()), LOOK_SECONDS)
        if self._handle is None or due < self._handle.when():
            if self._handle is not None:
                self._handle.cancel()
            self._handle = loop.call_at(due, self._on_timeout)

    def _on_timeout(self) -> None:
        self._handle = None
        self._fire()


class SleepWindowScheduler:
    """The awake and asleep windows of all servers. A server is queued for a decision when its window begins or ends."""

    def __init__(self, clock: Clock, queue: Workqueue) -> None:
        self._clock = clock
        self._queue = queue
        self._entries: dict[str, Entry] = {}
        self._timer = _EarliestTimer(clock, self._queue_changed_windows)
        self._period_of = lru_cache(maxsize=100)(_period_of)  # most servers share the windows of [defaults]

    def update_window(self, entry: Entry) -> None:
        """Record in `entry.observed.window` whether an awake or asleep window applies to the server, and until when."""
        scale = entry.config.scale
        if not (scale.awake or scale.asleep) or entry.removed:
            if self._entries.pop(entry.name, None) is not None:
                entry.observed.window = NO_PERIOD
            return
        self._entries[entry.name] = entry
        entry.observed.window = self._period(entry)
        self._timer.set_if_earlier(entry.observed.window.until)

    def _period(self, entry: Entry) -> WindowState:
        scale = entry.config.scale
        return self._period_of(scale.awake, scale.asleep, scale.timezone, int(self._clock.time() // 60))

    def _queue_changed_windows(self) -> None:
        for entry in list(self._entries.values()):
            if self._period(entry) != entry.observed.window:
                self._queue.touch(entry)
            else:
                self._timer.set_if_earlier(entry.observed.window.until)


def _period_of(awake: Sequence[str], asleep: Sequence[str], timezone: str, minute: int) -> WindowState:
    return period_at(((ASLEEP, asleep), (AWAKE, awake)), minute * 60.0, parse_time_zone(timezone))


def asleep_until(entry: Entry) -> float | None:
    """Return when the window that keeps the server asleep ends, in epoch seconds; 0 if the window never ends.

    Returns None if no window keeps the server asleep.
    """
    return (entry.observed.window.until or 0.0) if entry.window_demand == ASLEEP and entry.wanted else None


def window_effect_text(entry: Entry, now: float) -> str:
    """The effect of the server's window as text, such as `kept awake until 18:00`; "" without an effect."""
    if not entry.window_demand:
        return ""
    zone, until = entry.config.scale.timezone, entry.observed.window.until
    text = f"kept {entry.window_demand} {until_text(until, now, parse_time_zone(zone))}".rstrip()
    return f"{text} ({zone})" if zone and until is not None else text


# A run is due from the beginning to the end of its minute.
MINUTE_SECONDS = 60.0
# If the clock is set back further than this, past times are due again. After a smaller correction only frequent jobs
# go by the new time; no other run is repeated (cron(8) has the same limit).
_SET_BACK_SECONDS = 3 * 3600.0

_UNKNOWN_END = Exit(message="it ended while no supervisor ran, and its exit status is not known")


def reason_to_skip(entry: Entry, due: float, now: float) -> str:
    """Why a due run is skipped: its time, or the previous run; "" if neither prevents it."""
    if now >= due + MINUTE_SECONDS:
        return "its time has passed: the machine was suspended, or its clock was set"
    if entry.desired.state is Desired.RUN or entry.observed.workers:
        since = entry.schedule.run_since
        return f"the run of {moment_text(since)} has not ended" if since else "it still runs"
    return ""


def _must_replan(entry: Entry, set_back: float) -> bool:
    """Whether to reschedule the job's next run after the clock has been set back by `set_back` seconds."""
    if set_back < MINUTE_SECONDS:
        return False
    return set_back > _SET_BACK_SECONDS or (
        entry.config.every is not None and is_frequent(entry.config.every)
    )


def record_run_end(entry: Entry, exit_: Exit, now: float, *, stopped: bool = False) -> None:
    """Record how the current run ended in `last_run`, as plain JSON. `stopped`: a command stopped it."""
    result = RUN_STOPPED if stopped else RUN_SUCCEEDED if exit_.ok else RUN_FAILED
    entry.schedule.last_run = {
        "result": result,
        "started_at": entry.schedule.run_since or now,
        "ended_at": now,
        "status": exit_.status,
        "signal": exit_.signal,
        "message": exit_.message,
    }
    entry.schedule.run_since = 0.0
    if result == RUN_SUCCEEDED:
        entry.observed.failure = None


def failed_run_message(entry: Entry) -> str:
    """A message about the failed last run of a scheduled job; "" if it did not fail."""
    run = entry.schedule.last_run
    if not entry.on_schedule or run.get("result") != RUN_FAILED:
        return ""
    return f"its last run failed ({moment_text(run['started_at'])}): {run['message']}"


def moment_text(seconds: float) -> str:
    """The date and minute of a time in seconds since the epoch, in the pool's time zone, with the zone's name."""
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M %Z}"


class ScheduledRuns:
    """Schedules job runs. With `calm`, set after repeated crashes of the supervisor, it begins no due run."""

    def __init__(
        self, clock: Clock, queue: Workqueue, servers: ServerRegistry, recorder: Recorder, *, calm: bool
    ) -> None:
        self._clock = clock
        self._queue = queue
        self._servers = servers
        self._recorder = recorder
        self._calm = calm
        self._entries: dict[str, Entry] = {}
        self._timer = _EarliestTimer(clock, self._begin_due_runs)
        self._latest = 0.0  # the latest wall-clock time so far

    def ensure_run_planned(self, entry: Entry) -> None:
        """Plan the entry's next run if none is planned; called before each decision about the entry."""
        if entry.on_schedule:
            self._entries[entry.name] = entry
            if entry.schedule.next_run is None:
                self._plan_next_run(entry)
            self._timer.set_if_earlier(entry.schedule.next_run)
        elif self._entries.pop(entry.name, None) is not None:
            entry.schedule.next_run = None

    def resume(self, entry: Entry) -> None:
        """Continue a schedule after a supervisor has been replaced. A run that was due meanwhile is skipped."""
        planned, now = entry.schedule.next_run, self._clock.time()
        if entry.config.every is None or not entry.on_schedule:
            entry.schedule.next_run = None
            return
        if entry.desired.state is Desired.RUN and not entry.observed.workers:
            entry.set_desired(Desired.SCHEDULED)
            record_run_end(entry, _UNKNOWN_END, now)
        elif planned is not None and planned <= now and not entry.observed.workers:
            self._record_skip(entry, planned, "no supervisor ran at that time")
        set_back = entry.schedule.last_run.get("started_at", 0.0) > now + _SET_BACK_SECONDS
        if planned is None or planned <= now or set_back or is_frequent(entry.config.every):
            self._plan_next_run(entry)

    def begin_run(self, entry: Entry) -> None:
        """Begin a run of the job now."""
        entry.begin_generation()
        entry.set_desired(Desired.RUN)
        entry.schedule.run_since = self._clock.time()
        self._queue.touch(entry)

    def _plan_next_run(self, entry: Entry) -> None:
        assert entry.config.every is not None
        now = self._clock.time()
        self._latest = max(self._latest, now)
        entry.schedule.next_run = next_time(entry.config.every, now)
        self._queue.note(entry)

    def _begin_due_runs(self) -> None:
        now = self._clock.time()
        set_back, self._latest = self._latest - now, now
        for entry in list(self._entries.values()):
            if not entry.on_schedule:
                continue  # its state has changed, and the next decision forgets it
            if entry.schedule.next_run is not None and entry.schedule.next_run <= now:
                due = entry.schedule.next_run
                self._plan_next_run(entry)
                if not self._calm:
                    self._begin_or_skip(entry, due, now)
            elif _must_replan(entry, set_back):
                self._plan_next_run(entry)
            self._timer.set_if_earlier(entry.schedule.next_run)

    def _begin_or_skip(self, entry: Entry, due: float, now: float) -> None:
        if reason := reason_to_skip(entry, due, now) or self._blocking_dependency_reason(entry):
            self._record_skip(entry, due, reason)
            return
        with caused_by(f"every {entry.config.every}"):
            self.begin_run(entry)

    def _blocking_dependency_reason(self, entry: Entry) -> str:
        """A sentence about a dependency that will not start, so that a run would wait forever, or ""."""
        if self._servers.may_start(entry):
            return ""
        for dependency in self._servers.dependencies(entry):
            if dependency.wants_no_worker and not dependency.is_responsive:
                return f"{dependency.name}, on which it depends, is {dependency.state}"
        return ""

    def _record_skip(self, entry: Entry, due: float, reason: str) -> None:
        message = f"the run of {moment_text(due)} is skipped: {reason}"
        self._recorder.record(
            "lifecycle", "run skipped", server=entry.name, bind=entry.config.key, message=message
        )
