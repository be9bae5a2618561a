"""One server: its configuration, what is observed of it, and the record for the next supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING

from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.runners.runner_protocol import Exit
from poolctl.states import TRANSITIONAL, State, Status
from poolctl.time_windows import NO_PERIOD, WindowState

from . import decide
from .decide import ASLEEP
from .server_state import (
    ALLOWED_CHANGES,
    NO_OVERRIDES,
    Desired,
    DesiredState,
    HookState,
    ImpossibleChange,
    ListenerState,
    Overrides,
    ServerListener,
    persisted,
    transient,
)
from .worker import LEAVING, Worker, WorkerPhase

if TYPE_CHECKING:
    from poolctl.runners.stack_report import WorkerStacks

# Flapping: two workers of an index died within SHORT_LIFE_SECONDS of becoming ready, and none has been ready for
# STEADY_SECONDS since.
SHORT_LIFE_SECONDS, STEADY_SECONDS = 60.0, 300.0
# After more failed attempts in a row, connections to a server that was ready before are refused during its backoff.
MAX_ATTEMPTS_AWAITED = 2

RUN_SUCCEEDED, RUN_FAILED, RUN_STOPPED = "succeeded", "failed", "stopped"


@dataclass(slots=True)
class Slot:
    """The history of one worker index of a server, over all workers that have had it. Times are monotonic."""

    restart_times: list[float] = persisted(factory=list)  # of automatic restarts
    # Why it gets no further worker: the last one "ended" with status 0, or "failed"; "" if it is not vacant.
    vacant: str = persisted("")
    failed_attempts: int = persisted(0)  # since its last worker that was ready
    # Its restarts have reached the limit: it is retried with the longest backoff, until a worker is ready.
    spent: bool = persisted(False)
    short_lives: int = persisted(0)  # the number of workers that died soon after they were ready
    backoff: asyncio.TimerHandle | None = transient(None)  # until it elapses, no worker starts
    refuses: bool = transient(False)  # refuse connections during the backoff
    steady_timer: asyncio.TimerHandle | None = transient(None)  # until its worker counts as steady

    def note_ready(self) -> None:
        """Record that a worker with this index is ready."""
        self.failed_attempts, self.spent = 0, False

    def note_end(self, ready_seconds: float | None) -> None:
        """Record that a worker ended without an order; `ready_seconds` is how long it was ready, None if never."""
        if ready_seconds is None:
            self.failed_attempts += 1
        elif ready_seconds < SHORT_LIFE_SECONDS:
            self.short_lives += 1
        self.end_steady_timer()

    def end_steady_timer(self) -> None:
        """Cancel the timer after which its short lives are forgotten."""
        if self.steady_timer is not None:
            self.steady_timer.cancel()
        self.steady_timer = None

    def end_backoff(self) -> None:
        """Let the next worker start now."""
        if self.backoff is not None:
            self.backoff.cancel()
        self.backoff, self.refuses = None, False


@dataclass(slots=True)
class ObservedState:
    """The workers of a server, the code that they run, its traffic, and its exits and failures."""

    workers: dict[str, Worker] = transient(factory=dict)
    feasible: int = transient(0)  # the last generation that was checked: its workers can start
    checking: bool = transient(False)  # this check is in progress
    # Digests of the files that its workers have read; of the oldest worker while they differ.
    files: dict[str, str] = persisted(factory=dict)
    certificate_ends: float | None = persisted(None)  # expiry of the one in use, in seconds since the epoch
    preload_problem: str = persisted("")  # why its workers import the application themselves
    # The socket that its command uses: "pool", "program" (its own), or "tried" while a start tests this; "" if unknown.
    socket_found: str = persisted("")
    # Whether its command, on the pool's socket, can start while an older process runs: "yes", "no", "tried" while a
    # start tests this; "" if unknown.
    overlap_found: str = persisted("")
    warnings: list[str] = transient(factory=list)  # for the command in progress

    has_pending_request: bool = persisted(False)  # a request has arrived since it fell asleep
    demand: int = transient(0)  # waiting requests that have not been used to scale the server yet
    has_live_dependents: bool = transient(False)  # a server that depends on it is up
    reported_health: Status = transient(Status.OK)  # the health in its last event
    window: WindowState = transient(NO_PERIOD)  # the current period of its windows, even if it cannot sleep

    slots: dict[int, Slot] = persisted(factory=dict)  # by worker index; those without history may be missing
    sleep_timer: asyncio.TimerHandle | None = transient(None)  # after a failure, until it may sleep again
    was_up: bool = persisted(False)  # it has been ready since its start
    ended_at: float = persisted(0.0)  # when it last completed, in seconds since the epoch
    last_line: str = persisted("")  # the last line of output of the worker that completed it
    restarts: int = persisted(0)  # all restarts; one by command counts once the replacement is ready
    failures: int = transient(0)  # the number of failed starts and stops
    failure: ServerError | None = persisted(None)  # the last failed start or stop
    # When the worker that ended last was placed, in seconds since the epoch.
    failed_since: float = transient(0.0)
    failed_worker: str = transient("")  # its id; "" if no process was started
    last_exit: Exit | None = transient(None)  # of the last worker that ended by itself
    next_step: str = transient("")  # the consequence of that exit as a sentence
    stacks: WorkerStacks | None = transient(None)  # the last stacks that were read of a worker
    # The monotonic times of recoveries by worker index, and the recovery in progress.
    recoveries: dict[str, list[float]] = persisted(factory=dict)
    recovering: Table = persisted(factory=dict)

    @property
    def ready(self) -> list[Worker]:
        """The workers that are ready, in rotation or not, healthy or not."""
        return [worker for worker in self.workers.values() if worker.phase is WorkerPhase.READY]

    @property
    def staying(self) -> list[Worker]:
        """The workers that are neither draining nor stopping."""
        return [worker for worker in self.workers.values() if worker.phase not in LEAVING]


@dataclass(slots=True)
class ScheduleState:
    """The runs of a server with a schedule (see `schedules`); times are in seconds since the epoch."""

    next_run: float | None = persisted(None)
    run_since: float = persisted(0.0)  # when the current run began; 0 if no run is in progress
    last_run: Table = persisted(factory=dict)  # the last finished run (see `schedules.record_run_end`)


@dataclass(slots=True)
class Entry:
    """One server: configuration and state. Only the core changes `config` and the other values, on its event loop."""

    config: ServerConfig
    desired: DesiredState = field(default_factory=DesiredState)
    observed: ObservedState = field(default_factory=ObservedState)
    listener: ServerListener = field(default_factory=ServerListener)
    schedule: ScheduleState = field(default_factory=ScheduleState)
    hooks: HookState = field(default_factory=HookState)

    @property
    def name(self) -> str:
        """The name of the server."""
        return self.config.name

    @property
    def size(self) -> int:
        """The number of workers that the server should have."""
        if self.desired.overrides.workers is not None:
            return self.desired.overrides.workers
        if self.desired.automatic is None or not self.config.scale.is_automatic:
            return self.config.workers
        return min(max(self.desired.automatic, self.config.workers), self.config.scale.max)

    @property
    def scales(self) -> bool:
        """Whether triggers, rather than a command, control the number of workers."""
        return self.desired.overrides.workers is None and self.config.scale.is_automatic

    @property
    def may_overlap(self) -> bool:
        """Whether two generations may run at once: configurations allow it, and no earlier start has disproved it."""
        workers = self.observed.workers.values()
        if self.observed.overlap_found in ("tried", "no") and "overlap" not in self.config.model_fields_set:
            return False
        return self.config.may_overlap and all(worker.config.may_overlap for worker in workers)

    @property
    def is_disabled(self) -> bool:
        """Whether the server is disabled, by a command or else by its configuration."""
        overridden = self.desired.overrides.disabled
        return self.config.disabled if overridden is None else overridden

    @property
    def restart_policy(self) -> str:
        """The restart policy in effect: the configured one, or "no" after a `final` start (see `Core.start`)."""
        return "no" if self.desired.final else self.config.restart_policy

    @property
    def out_of_rotation(self) -> bool:
        """Whether the server is out of rotation."""
        return self.desired.overrides.out

    @property
    def added(self) -> bool:
        """Whether the server was added by a command and is not in the configuration files."""
        return self.desired.source is not None

    @property
    def wanted(self) -> bool:
        """Whether commands want the server to run. Also true if it has failed or completed."""
        return self.desired.state.wanted

    @property
    def wants_no_worker(self) -> bool:
        """Whether no worker of the server should run now."""
        return self.desired.state.wants_no_worker

    @property
    def has_or_wants_workers(self) -> bool:
        """Whether the server has workers, or should have some.

        True while it runs, sleeps, starts, stops, or waits for a dependency, a retry or its scheduled time.
        """
        return (
            bool(self.observed.workers)
            or not self.wants_no_worker
            or self.hooks.cleans_up
            or self.on_schedule
        )

    @property
    def has_worker_of_serving_generation(self) -> bool:
        """Whether the server is `wanted` and has at least one worker of the generation that should serve."""
        return self.wanted and any(map(self.is_current, self.observed.workers.values()))

    @property
    def awaits_replacement(self) -> bool:
        """Whether workers serve, and no worker of their next generation exists yet."""
        return bool(self.observed.ready) and self.view().awaits_replacement

    @property
    def is_being_replaced(self) -> bool:
        """Whether workers of a new generation are to replace older ones and are not ready yet, or a job runs."""
        if self.desired.state is not Desired.RUN or self.has_ready_generation:
            return False
        generation = self.desired.generation
        has_older = any(worker.generation < generation for worker in self.observed.ready)
        return self.config.job or self.desired.restarting == generation or has_older

    @property
    def has_new_process(self) -> bool:
        """Whether a process of the generation that should serve exists, ready or not."""
        workers = self.observed.workers.values()
        return any(worker.placement is not None and self.is_current(worker) for worker in workers)

    @property
    def completed(self) -> bool:
        """Whether the server ended by itself with status 0 and is not started again."""
        return self.desired.state is Desired.COMPLETED

    @property
    def present_failure(self) -> ServerError | None:
        """The failure that keeps the server from being ready; None for a ready one, whose last failure is past."""
        return None if self.ready else self.observed.failure

    @property
    def ended(self) -> bool:
        """Whether the server is stopped because its processes have ended by themselves with status 0."""
        return self.completed and self.state == State.STOPPED

    @property
    def on_schedule(self) -> bool:
        """Whether the server follows a schedule, so that both running and waiting are normal."""
        return self.config.every is not None and self.desired.state in (Desired.SCHEDULED, Desired.RUN)

    @property
    def failed(self) -> bool:
        """Whether the server has failed and is not retried."""
        return self.desired.state is Desired.FAILED

    @property
    def refuses(self) -> bool:
        """Whether the server refuses connections during its backoff."""
        return any(slot.refuses for slot in self.observed.slots.values())

    @property
    def removed(self) -> bool:
        """Whether the server is being removed from the pool."""
        return self.desired.state is Desired.REMOVED

    def view(
        self,
        *,
        may_start: bool = True,
        may_stop: bool = True,
        may_open: bool = True,
        may_accept: bool = True,
        may_leave: bool = True,
        abandoned: tuple[str, ...] = (),
    ) -> decide.ServerView:
        """The facts that the next actions for the server depend on. The arguments become fields of the result."""
        return decide.ServerView(
            desired=self.desired,
            listener=self.listener,
            hooks=self.hooks,
            count=self.size,
            vacant=self._vacant_slots,
            waiting={index for index, slot in self.observed.slots.items() if slot.backoff is not None},
            refuses=self.refuses,
            overlap=self.may_overlap,
            feasible=self.observed.feasible == self.desired.generation,
            checking=self.observed.checking,
            may_start=may_start,
            may_stop=may_stop,
            may_open=may_open,
            may_accept=may_accept,
            may_leave=may_leave,
            abandoned=abandoned,
            job=self.config.job,
            sleepy=self.sleepy,
            has_pending_request=self.observed.has_pending_request,
            has_live_dependents=self.observed.has_live_dependents,
            window_demand=self.window_demand,
            workers=tuple(self.observed.workers.values()),
        )

    @property
    def sleepy(self) -> bool:
        """Whether the server scales to zero: it may have no workers while it gets no requests."""
        return not self.config.scale.min and self.desired.overrides.workers is None

    @property
    def window_demand(self) -> str:
        """What the server's awake and asleep windows demand now: AWAKE, ASLEEP, or "" if they demand nothing.

        Always "" for a server that cannot sleep. ASLEEP does not apply while a running server depends on it.
        """
        state = self.observed.window.state if self.sleepy else ""
        return "" if state == ASLEEP and self.observed.has_live_dependents else state

    @property
    def should_sleep(self) -> bool:
        """Whether the server scales to zero, is not needed now, and has only draining or stopping workers, if any.

        A request at the watched listener, or a dependent that needs it, wakes a sleeping server. During an `asleep`
        window of the configuration, the server's listener is closed, and no request wakes the server.
        """
        return self.sleepy and not self.observed.staying and self.view().should_sleep

    @property
    def in_backoff(self) -> bool:
        """Whether all indexes of the server are in backoff, so that no worker serves or starts."""
        is_delayed = any(slot.backoff is not None for slot in self.observed.slots.values())
        return is_delayed and self.desired.state is Desired.RUN and self.view().in_backoff

    @property
    def _vacant_slots(self) -> set[int]:
        return {index for index, slot in self.observed.slots.items() if slot.vacant}

    @property
    def is_asleep(self) -> bool:
        """Whether the server sleeps or is falling asleep.

        The next request wakes it, unless an `asleep` window in its configuration keeps it asleep.
        """
        return (self.listener.armed is not None or self.window_demand == ASLEEP) and self.should_sleep

    @property
    def settled(self) -> bool:
        """Whether the server is asleep, or has all the ready workers that it should have."""
        return self.is_fully_ready or self.is_asleep

    @property
    def keeps_dependencies_awake(self) -> bool:
        """Whether the server runs or should run and not sleep."""
        return bool(self.observed.workers) or not (self.wants_no_worker or self.should_sleep)

    @property
    def state(self) -> State:
        """The server's state in one word (see the documentation of states)."""
        if self.desired.state.wants_no_worker:
            if self.observed.workers or self.hooks.cleans_up:
                return State.STOPPING
            if self.failed:
                return State.FAILED
            if self.completed and self.config.job:
                return State.COMPLETED
            if self.on_schedule:
                return State.SLEEPING
            return State.DISABLED if self.is_disabled else State.STOPPED
        if self.on_schedule:
            return State.RUNNING
        if self.observed.ready:
            return State.DRAINING if self.out_of_rotation else State.RUNNING
        if self.in_backoff:
            return State.BACKOFF
        if self.is_asleep:
            return State.DRAINING if self.observed.workers else State.SLEEPING
        return State.STARTING

    @property
    def is_responsive(self) -> bool:
        """Whether a ready worker, in rotation or not, is neither stuck nor failing its probes.

        Also true for a job that has exited with 0, and for any server that follows a schedule.
        """
        if self.on_schedule:
            return True
        if self.desired.state.wants_no_worker:
            return self.completed and self.config.job
        return any(not worker.unhealthy for worker in self.observed.ready)

    @property
    def ready(self) -> bool:
        """Whether the server answers and gets traffic.

        Also true for a job that has exited with 0, and for any server that follows a schedule.
        """
        return self.is_responsive and (self.desired.state.wants_no_worker or not self.out_of_rotation)

    @property
    def is_recovering(self) -> bool:
        """Whether workers that hang or are unhealthy are being replaced, or may be once their stacks are read."""
        is_examined = any(worker.reading_stacks is not None for worker in self.observed.ready)
        replaces = self.config.recovery.strategy in ("restart", "replace")
        return bool(self.observed.recovering) or (is_examined and replaces)

    @property
    def rests_until_named(self) -> bool:
        """Whether the server is at rest until a command names it or a dependent starts.

        True for an `on_demand` server that was not started, was stopped by a command, or has ended with status 0.
        """
        at_rest = self.desired.state in (Desired.IDLE, Desired.STOPPED, Desired.COMPLETED)
        return self.config.on_demand and at_rest

    @property
    def should_run(self) -> bool:
        """Whether the server should run: it is not disabled, stopped, removed, or at rest until it is named."""
        is_off = self.desired.state in (Desired.STOPPED, Desired.REMOVED)
        return not (self.is_disabled or is_off or self.rests_until_named)

    @property
    def is_missing(self) -> bool:
        """Whether the server should run but is neither ready nor asleep."""
        return self.should_run and not (self.ready or self.is_asleep)

    @property
    def health(self) -> Status:
        """The server's health: `ko` if it has failed, else the health of its workers.

        A scheduled server is `ok` or, after a failed run, `warn`, because later runs still take place.
        """
        if self.on_schedule:
            return Status.WARN if self.schedule.last_run.get("result") == RUN_FAILED else Status.OK
        return Status.KO if self.state is State.FAILED else self.health_of_workers

    @property
    def health_of_workers(self) -> Status:
        """The health that all ready workers share, else `warn`. Without probes, `ok` if ready, else `unknown`.

        Instead of `ok`, it is `warn` while the server flaps or a worker is missing for long. It is `ko` while no worker
        is ready because they keep failing.
        """
        if self.keeps_failing:
            return Status.KO
        ready = self.observed.ready
        if any(worker.stuck or worker.config.health.probed for worker in ready):
            status = Status.common_or_warn(worker.status for worker in ready) or Status.UNKNOWN
        else:
            status = Status.OK if self.ready else Status.UNKNOWN
        return Status.WARN if status is Status.OK and (self.is_short_of_workers or self.flapping) else status

    @property
    def is_short_of_workers(self) -> bool:
        """Whether workers are missing because they have ended for good or keep failing."""
        return not self.wants_no_worker and any(
            slot.vacant or slot.spent for slot in self.observed.slots.values()
        )

    @property
    def keeps_failing(self) -> bool:
        """Whether no worker is ready and restarts have reached their limit, but retries continue."""
        if self.wants_no_worker or self.should_sleep or self.observed.ready:
            return False
        return any(slot.spent for slot in self.observed.slots.values())

    @property
    def flapping(self) -> bool:
        """Whether two workers of an index died soon after they were ready, and none has been steady since."""
        return not self.wants_no_worker and any(slot.short_lives > 1 for slot in self.observed.slots.values())

    @property
    def is_fully_stopped(self) -> bool:
        """Whether no worker, hook or listener of the server is active, and none is wanted."""
        listener = self.listener
        if listener.state is not ListenerState.CLOSED or listener.previous_configs or listener.releasing:
            return False
        return self.wants_no_worker and not (
            self.on_schedule or self.observed.workers or self.hooks.cleans_up
        )

    @property
    def is_stopping(self) -> bool:
        """Whether a stop by command is in progress. False once the stop has failed to end a process."""
        if self.desired.state not in (Desired.IDLE, Desired.STOPPED) or self.is_fully_stopped:
            return False
        return not self.is_unstoppable

    @property
    def is_unstoppable(self) -> bool:
        """Whether not even SIGKILL has ended one of the server's processes, a worker or a hook."""
        hook = self.hooks.running
        return any(worker.unstoppable for worker in self.observed.workers.values()) or (
            hook is not None and hook.unstoppable
        )

    @property
    def is_fully_ready(self) -> bool:
        """Whether all workers of the serving generation are ready, and no draining worker still accepts connections."""
        if self.on_schedule:
            return True
        if self.desired.state.wants_no_worker:
            return self.completed and self.config.job
        may_accept = any(worker.may_accept for worker in self.observed.workers.values())
        return not may_accept and self.has_ready_generation

    @property
    def has_ready_generation(self) -> bool:
        """Whether all workers of the generation that should serve are ready."""
        current = {worker.index for worker in self.observed.ready if self.is_current(worker)}
        return current.issuperset(set(range(self.size)) - self._vacant_slots)

    @property
    def pids(self) -> list[int]:
        """The pids of the server's workers; those of draining and stopping workers only if there are no others."""
        workers = self.observed.staying or self.observed.workers.values()
        workers = sorted(workers, key=lambda worker: (worker.generation, worker.index))
        return [worker.placement.pid for worker in workers if worker.placement and worker.placement.pid]

    def uptime_seconds(self, now: float) -> float:
        """The seconds since the oldest of the ready workers became ready; 0 if no worker is ready."""
        since = [worker.ready_at for worker in self.observed.ready if worker.ready_at is not None]
        return now - min(since) if since else 0.0

    def dependency_facts(self) -> tuple[object, ...]:
        """Return a tuple of the facts about this server on which decisions about other servers depend.

        When the tuple changes, the core decides again on dependencies, dependents and servers at the same address.
        """
        return (
            self.desired.state,
            self.is_responsive,
            self.ready,
            bool(self.observed.workers),
            self.hooks.cleans_up,
            self.is_unstoppable,
            self.started,
            self.keeps_dependencies_awake,
        )

    @property
    def started(self) -> bool:
        """Whether the server has a process, ready or not."""
        return any(worker.placement is not None for worker in self.observed.workers.values())

    def is_current(self, worker: Worker) -> bool:
        """Whether the worker is of the generation that should serve with its index."""
        return self.desired.is_current(worker)

    def slot(self, index: int) -> Slot:
        """The history of this worker index."""
        return self.observed.slots.setdefault(index, Slot())

    def begin_generation(self) -> None:
        """Begin a new generation, to which all workers started from now on belong."""
        self.desired.newest += 1
        self.desired.generation, self.desired.renewed = self.desired.newest, {}

    def renew_worker(self, index: int) -> None:
        """Have only the worker with this index replaced."""
        self.desired.newest += 1
        self.desired.renewed[str(index)] = self.desired.newest
        self.observed.feasible = 0

    def fill_vacant_slots(self) -> None:
        """Give every worker index another chance: those that have ended for good, and those at their limit."""
        for slot in self.observed.slots.values():
            slot.vacant, slot.spent = "", False

    def forget_surplus_slots(self) -> None:
        """Forget the history of the worker indexes that the server no longer has."""
        for index in [index for index in self.observed.slots if index >= self.size]:
            slot = self.observed.slots.pop(index)
            slot.end_backoff()
            slot.end_steady_timer()

    def schedule_start_hook(self) -> None:
        """Have the start hook, if there is one, run before the next worker.

        If a worker is neither draining nor stopping, the server already runs, and only a due stop hook is cancelled.
        """
        if self.observed.staying:
            self.hooks.after_stop_due = False
        else:
            self.hooks.before_start_due = self.config.hooks is not None and bool(
                self.config.hooks.before_start
            )

    def schedule_stop_hook(self) -> None:
        """Have the stop hook, if there is one, run after the last worker.

        If the start hook is still due, the server has not been started: the start hook is cancelled, and no stop hook
        runs.
        """
        if self.wanted and not self.hooks.before_start_due and self.config.hooks is not None:
            self.hooks.after_stop_due = self.hooks.after_stop_due or bool(self.config.hooks.after_stop)
        self.hooks.before_start_due = False

    def order_restart(self, *, proves: bool = False) -> None:
        """Have the running workers replaced by a new generation. `proves`: see `HealthChecks.prove`."""
        self.begin_generation()
        self.fill_vacant_slots()
        self.desired.restarting = self.desired.generation
        self.desired.unproven = self.desired.generation if proves else 0

    def begin_generation_if_workers_leave(self) -> None:
        """Begin a new generation if workers of the current one are draining or stopping: their ids are still in use."""
        if any(
            self.is_current(worker) and worker.phase in LEAVING for worker in self.observed.workers.values()
        ):
            self.begin_generation()

    def count_restart_if_commanded(self, worker: Worker) -> None:
        """Count a restart that a command requested, if `worker` is the first ready worker of the new generation."""
        if worker.generation == self.desired.restarting:
            self.observed.restarts, self.desired.restarting = self.observed.restarts + 1, 0

    def set_desired(self, desired: Desired) -> None:
        """Set the desired state and end a backoff. Raises ImpossibleChange."""
        if desired not in ALLOWED_CHANGES[self.desired.state]:
            raise ImpossibleChange(f"{self.name}: {self.desired.state} does not become {desired}")
        for slot in self.observed.slots.values():
            slot.end_backoff()
            if desired.wants_no_worker:
                slot.end_steady_timer()
        if self.observed.sleep_timer is not None:
            self.observed.sleep_timer.cancel()
            self.observed.sleep_timer = None
        self.desired.state = desired
        self.desired.stopped_with = []


# The record of a server: the state that the next supervisor needs, as JSON values. A field with the value
# of a new entry is left out: most records hold little more than the desired state.

_PARTS = {
    "desired": DesiredState,
    "observed": ObservedState,
    "listener": ServerListener,
    "schedule": ScheduleState,
    "hooks": HookState,
}


def _persisted_fields() -> Iterator[tuple[str, str, object]]:
    """Each persisted field, such as ("observed", "restarts", 0): the attribute of Entry, the field, its default."""
    for part, kind in _PARTS.items():
        for attribute in fields(kind):
            if attribute.metadata["persisted"]:
                factory = attribute.default_factory
                yield part, attribute.name, attribute.default if factory is MISSING else factory()


_CONVERTED_FIELDS = ("state", "failure", "overrides", "slots")
_PLAIN_FIELDS = [persisted for persisted in _persisted_fields() if persisted[1] not in _CONVERTED_FIELDS]
_SLOT_FIELDS = [attribute.name for attribute in fields(Slot) if attribute.metadata["persisted"]]


def record_of(entry: Entry) -> Table:
    """The record of the entry for the next supervisor.

    The remaining time of a backoff is not part of it: a successor restarts the server at once.
    """
    record = {
        name: value
        for part, name, default in _PLAIN_FIELDS
        if (value := getattr(getattr(entry, part), name)) != default
    }
    state, failure, overrides = entry.desired.state, entry.observed.failure, entry.desired.overrides
    if state is not Desired.IDLE:
        # After the restart window it may sleep again: the next supervisor lets it do so at once.
        record["desired"] = (Desired.RUN if entry.observed.sleep_timer is not None else state).value
    if failure is not None and not entry.ready:
        record["failure"] = failure.to_dict()
    if overrides != NO_OVERRIDES:
        record["overrides"] = {
            attribute.name: getattr(overrides, attribute.name) for attribute in fields(overrides)
        }
    slots = {
        str(index): {name: value for name in _SLOT_FIELDS if (value := getattr(slot, name))}
        for index, slot in entry.observed.slots.items()
    }
    if slots := {index: slot for index, slot in slots.items() if slot}:
        record["slots"] = slots
    return record


def restore(entry: Entry, record: Table) -> None:
    """Restore the entry from its record."""
    for part, name, _ in _PLAIN_FIELDS:
        if name in record:
            setattr(getattr(entry, part), name, record[name])
    entry.observed.failure = ServerError(**record["failure"]) if "failure" in record else None
    entry.desired.state = Desired(record.get("desired", Desired.IDLE))
    entry.desired.overrides = Overrides(**record.get("overrides", {}))
    entry.observed.slots = {
        int(index): Slot(**{name: slot[name] for name in _SLOT_FIELDS if name in slot})
        for index, slot in record.get("slots", {}).items()
    }


@dataclass(slots=True)
class Availability:
    """How long a server has been up and down; time while the server is off is not counted.

    Updated by `note` at each change, with a monotonic time in seconds.
    """

    state: str = "stopped"
    health: str = Status.UNKNOWN
    uptime: float = 0.0  # the server answered, possibly with a warning
    downtime: float = 0.0
    risetime: float = 0.0  # part of uptime and downtime: the server was coming up
    falltime: float = 0.0  # part of uptime and downtime: the server was going down
    rise: int = 0  # how often it started to answer
    fall: int = 0  # how often it stopped answering without being turned off
    _level: str = Status.UNKNOWN  # the last level other than warn
    _since: float = 0.0

    def note(self, now: float, *, state: str | None = None, health: str | None = None) -> None:
        """Record a new state or health, or both, at this time."""
        self.add_elapsed(now)
        was_up = self.is_up
        self.state = self.state if state is None else state
        self.health = self.health if health is None else health
        status = self.status
        if status != Status.WARN:
            self._level = status
        self.rise += self.is_up and not was_up
        self.fall += was_up and not self.is_up and status != Status.UNKNOWN

    def add_elapsed(self, now: float) -> None:
        """Add the time since the last update to `uptime` or `downtime`, unless the server is off."""
        passed, self._since = max(0.0, now - self._since), now
        status = self.status
        if status == Status.UNKNOWN:
            return
        if self.is_up:
            self.uptime += passed
        else:
            self.downtime += passed
        if status == Status.WARN and self._level == Status.OK:
            self.falltime += passed
        elif status == Status.WARN:
            self.risetime += passed

    @property
    def status(self) -> str:
        """The status derived from state and probes: `ok`, `warn`, `ko`, or `unknown` while the server is off."""
        if self.state in ("stopped", "completed", "disabled"):
            return Status.UNKNOWN
        if self.state == "failed" or (self.health == Status.KO and self.state in TRANSITIONAL):
            return Status.KO
        if self.state in TRANSITIONAL:
            return Status.WARN
        return self.health if self.health in (Status.WARN, Status.KO) else Status.OK

    @property
    def is_up(self) -> bool:
        """Whether the server answers requests."""
        return self.state in ("running", "sleeping") and self.health != Status.KO

    @property
    def sli(self) -> float | None:
        """The share of the time that the server was up, from 0 to 1; None before any time was counted."""
        total = self.uptime + self.downtime
        return self.uptime / total if total else None
