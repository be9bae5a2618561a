"""Records changes of servers and workers, and lost output, as events."""

from __future__ import annotations

from poolctl.clock import ReportLimit
from poolctl.control.answers import SupervisorIdentity
from poolctl.core.core import Core
from poolctl.core.decide import ASLEEP
from poolctl.core.schedules import window_effect_text
from poolctl.core.server_entry import Entry
from poolctl.core.server_state import Cause
from poolctl.core.worker import LEAVING, Worker, WorkerPhase
from poolctl.json_form import Table
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import INFO, WARNING
from poolctl.runners.runner_protocol import Exit
from poolctl.states import State

from ..statistics import Totals

_FAILING = (State.BACKOFF.value, State.FAILED.value)
_AT_REST = (State.STOPPED, State.COMPLETED, State.DISABLED, State.SLEEPING)
_COMMAND_DONE = (*(state.value for state in _AT_REST), *_FAILING)
_NO_CAUSE = Cause("")
_ENDED = "ended"  # stopped, because its program exited by itself


class _RecordedState:
    __slots__ = ("fingerprint", "last_end", "size", "state", "window_demand", "workers")

    def __init__(self, entry: Entry, state: str) -> None:
        self.fingerprint: object = None
        self.state = state
        self.size = entry.config.workers
        self.window_demand: str | None = ""  # None if unknown, because a previous supervisor ran
        self.workers: dict[str, tuple[Worker, WorkerPhase]] = {}
        self.last_end = ""


class EventRecorder:
    """Records an event for each change that `record_changes` finds in an entry.

    Each change of a server's state is also reported to `totals`.
    """

    def __init__(self, core: Core, events: EventBus, totals: Totals | None = None) -> None:
        self._core = core
        self._events = events
        self._totals = totals
        self._recorded: dict[str, _RecordedState] = {}

    def record_start_and_observe(self, adopted: int, about: SupervisorIdentity) -> None:
        """Record the start of this supervisor, described by `about`, and from now on each change of a server.

        Changes before the start are not recorded. `adopted` is the number of adopted workers.
        """
        self._events.record(
            "pool",
            "supervisor started",
            message=f"took over {adopted} worker{'s' * (adopted != 1)}" if adopted else "",
            pid=about.supervisor_pid,
            keeper_pid=about.keeper_pid,
            version=about.version,
            adopted=adopted,
        )
        for entry in self._core.entries.values():
            if entry.wanted or entry.observed.workers or entry.desired.overrides.workers is not None:
                recorded = _RecordedState(entry, _state_before_takeover(entry))
                recorded.fingerprint, recorded.size = _fingerprint(entry), entry.size
                recorded.window_demand = None
                workers = entry.observed.workers.values()
                recorded.workers = {worker.id: (worker, worker.phase) for worker in workers}
                self._recorded[entry.name] = recorded
        self._core.observers.add(self.record_changes)

    def record_changes(self, entry: Entry) -> None:
        """Record the changes of the entry since the last call."""
        recorded = self._recorded.get(entry.name)
        if recorded is None:
            recorded = _RecordedState(entry, "disabled" if entry.config.disabled else "stopped")
            self._recorded[entry.name] = recorded
        fingerprint = _fingerprint(entry)
        if fingerprint != recorded.fingerprint:
            recorded.fingerprint = fingerprint
            self._record_differences(entry, recorded)
        if entry.removed and self._core.entries.get(entry.name) is not entry:
            del self._recorded[entry.name]

    def _record_differences(self, entry: Entry, recorded: _RecordedState) -> None:
        state = _state_of(entry)
        if entry.desired.cause is not None:
            recorded.last_end = ""
        demand = "" if entry.wants_no_worker else entry.window_demand
        if demand != recorded.window_demand:
            if recorded.window_demand is not None:
                event = f"kept {demand}" if demand else "window ended"
                self._record("wake", event, entry, self._window(entry))
            recorded.window_demand = demand
        if entry.size != recorded.size:
            figures: Table = {"before": recorded.size, "after": entry.size}
            if figures.items() <= entry.desired.scaling.items():
                figures = entry.desired.scaling  # the triggers have changed the number
            self._record("scale", "workers", entry, **figures)
            recorded.size = entry.size
        is_reported = False
        for id_, (worker, _) in list(recorded.workers.items()):
            if id_ not in entry.observed.workers or entry.observed.workers[id_] is not worker:
                del recorded.workers[id_]
                is_reported |= self._record_worker_exit(entry, recorded, worker)
        for worker in entry.observed.workers.values():
            before = recorded.workers.get(worker.id, (worker, None))[1]
            recorded.workers[worker.id] = (worker, worker.phase)
            became_ready = worker.phase is WorkerPhase.READY and before is not WorkerPhase.READY
            if became_ready and state == recorded.state:
                # For the first worker the event about the server's state is enough.
                self._record_worker_event("worker ready", entry, worker, cause=recorded.last_end)
        if state != recorded.state:
            self._record_state_change(entry, recorded, state, "" if is_reported else entry.observed.next_step)
        if state in (*_COMMAND_DONE, _ENDED) or (state == State.RUNNING.value and _is_rolled_out(entry)):
            # The command is complete, and must not be named as the cause of later events.
            recorded.last_end = ""
            self._core.forget_cause(entry)

    def _record_state_change(self, entry: Entry, recorded: _RecordedState, state: str, step: str) -> None:
        before, recorded.state = recorded.state, state
        states: Table = {"before": before, "after": state}
        states = {name: State.STOPPED.value if word == _ENDED else word for name, word in states.items()}
        if self._totals is not None and states["before"] != states["after"]:
            self._totals.record_state_change(entry, states["before"], states["after"])
        # A job with a schedule sleeps until its time, not until a request arrives.
        slept = State.SLEEPING.value in (before, state) and entry.config.every is None
        kind = "wake" if slept else "lifecycle"
        failure = entry.observed.failure.message if entry.observed.failure and state in _FAILING else ""
        cause = failure or recorded.last_end
        if not cause and (slept or entry.window_demand == ASLEEP) and entry.desired.cause is None:
            asleep = "no traffic" if state == State.SLEEPING.value else "needed"
            cause = self._window(entry) or ("a request" if entry.observed.has_pending_request else asleep)
        pids = entry.pids if state == State.RUNNING.value else []
        more: Table = {"pids": pids} if pids else {}
        if step and state in _FAILING:  # a worker that could not be placed has no event of its own
            more["next"] = step
        if state == _ENDED:
            # `status` calls the pool incomplete, unless the server runs only by name.
            more["severity"] = INFO if entry.config.on_demand else WARNING
            if entry.observed.last_line:
                more["last_line"] = entry.observed.last_line
        self._record(kind, state, entry, f"{before} → {state}", cause, **states, **more)

    def _window(self, entry: Entry) -> str:
        return window_effect_text(entry, self._core.clock.time())

    def _record_worker_exit(self, entry: Entry, recorded: _RecordedState, worker: Worker) -> bool:
        """Record the exit of this worker; False if it had no process, so that no event was recorded."""
        exit_ = worker.exit or Exit()
        if worker.phase not in LEAVING:
            failure = worker.failure.message if worker.failure else ""
            recorded.last_end = failure or exit_.message
            self._core.forget_cause(entry)
        if worker.placement is None:
            return False
        more = {"next": worker.next_step} if worker.next_step else {}
        self._record_worker_event(
            "worker ended",
            entry,
            worker,
            cause=recorded.last_end if entry.desired.cause is None else "",
            message=exit_.message,
            before=worker.phase.value,
            after="ended",
            status=exit_.status,
            signal=exit_.signal,
            **more,
        )
        return True

    def _record_worker_event(
        self, event: str, entry: Entry, worker: Worker, *, message: str = "", cause: str = "", **more: object
    ) -> None:
        pid = worker.placement.pid if worker.placement else None
        self._record(
            "lifecycle",
            event,
            entry,
            message,
            cause,
            worker=worker.id,
            pid=pid,
            generation=worker.generation,
            **more,
        )

    def _record(
        self, kind: str, event: str, entry: Entry, message: str = "", cause: str = "", **more: object
    ) -> None:
        origin = _NO_CAUSE if cause else entry.desired.cause or _NO_CAUSE
        self._events.record(
            kind,
            event,
            server=entry.name,
            message=message,
            cause=cause or origin.cause,
            by=origin.by,
            bind=entry.config.key,
            **more,
        )


def _state_of(entry: Entry) -> str:
    return _ENDED if entry.ended else entry.state


def _state_before_takeover(entry: Entry) -> str:
    """Return the state that the previous supervisor last recorded for the server."""
    # A server that slept is in STARTING until its listener is watched again.
    sleeps = entry.state == State.STARTING.value and not entry.observed.workers and entry.should_sleep
    return State.SLEEPING.value if sleeps else _state_of(entry)


def _fingerprint(entry: Entry) -> object:
    """A value that differs whenever the state, the workers or their number may have changed."""
    return (
        entry.desired.state, entry.is_disabled, entry.out_of_rotation, entry.hooks.cleans_up,
        entry.observed.has_pending_request, entry.observed.has_live_dependents,
        entry.listener.armed is None, entry.size, entry.observed.window,
        *[(id(worker), worker.phase) for worker in entry.observed.workers.values()],
    )  # fmt: skip


def _is_rolled_out(entry: Entry) -> bool:
    return all(
        worker.phase is WorkerPhase.READY and entry.is_current(worker)
        for worker in entry.observed.workers.values()
    )


class LostOutputReporter:
    """Reports output of servers that could not be written to their logs. The servers continue to run."""

    def __init__(self, core: Core, events: EventBus) -> None:
        self._core = core
        self._events = events
        self._warnings: dict[str, tuple[str, int]] = {}
        self._reported = ReportLimit()  # bytes, by server

    def report_lost_bytes(self, name: str, count: int, path: str, reason: str) -> None:
        """Report lost output of the server: `count` bytes could not be written to `path`.

        A command in progress warns of the output lost since it began; events report lost output at most once a minute.
        """
        entry = self._core.entries.get(name)
        if entry is None:
            return
        could_not = f"bytes of output could not be written to {path}{f': {reason}' if reason else ''}"
        before, lost = self._warnings.get(name, ("", 0))
        lost = lost + count if before in entry.observed.warnings else count
        warning = f"{name}: {lost} {could_not}"
        self._core.add_command_warning(entry, warning, instead_of=before)
        self._warnings[name] = warning, lost
        if lost := self._reported.count_to_report(self._core.clock.monotonic(), count, name):
            message = f"{lost} {could_not}"
            bind = entry.config.key
            self._events.record(
                "pool", "output lost", server=name, message=message, cause=reason, bind=bind, severity="error"
            )
