"""Decides the next actions for one server, and the consequence of a worker's exit. Pure functions.

They read no clock and do no I/O: the caller passes times and the results of earlier actions as facts. `decide` is
called again after every change until it returns no action.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import StrEnum

from poolctl.config import Restart
from poolctl.runners.runner_protocol import Exit
from poolctl.units import format_duration

from .server_state import Desired, DesiredState, HookState, ListenerState, ServerListener
from .worker import LEAVING, Worker, WorkerPhase

# The commands of a server's `hooks`.
BEFORE_START, AFTER_STOP = "before_start", "after_stop"

# The effect of a window on a server.
AWAKE, ASLEEP = "awake", "asleep"

# If a command sends a worker one of these signals, the worker's exit is ordered, whatever its exit status.
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)


# A view is never changed after construction, but not frozen: each event creates several, and creating a frozen one
# takes three times as long.


@dataclass(slots=True)
class ServerView:
    """All facts that the decision about one server depends on."""

    desired: DesiredState
    listener: ServerListener
    hooks: HookState
    count: int = 1  # the number of workers it should have, with the indexes 0 to count - 1
    vacant: Set[int] = frozenset()  # indexes that get no further worker
    waiting: Set[int] = frozenset()  # indexes in backoff
    refuses: bool = False  # close the listener while all indexes are in backoff
    overlap: bool = True  # whether two generations may run at once
    feasible: bool = True  # a check has shown that workers of the desired generation can start
    checking: bool = False  # this check is in progress
    may_start: bool = True  # its dependencies fulfil their conditions
    may_stop: bool = True  # no dependent has to stop before it
    may_open: bool = True  # no other server has its address
    may_accept: bool = True  # no worker of another server accepts from its address any longer
    may_leave: bool = True  # the servers with which it exchanges addresses are ready at theirs
    abandoned: tuple[str, ...] = ()  # previous addresses from which no worker accepts
    job: bool = False  # runs to its end once
    sleepy: bool = False  # scales to zero: may have no worker while it gets no requests
    has_pending_request: bool = False  # a request has arrived since it fell asleep
    has_live_dependents: bool = False  # a server that depends on it is up
    window_demand: str = ""  # AWAKE or ASLEEP while a window requires it, else ""
    workers: tuple[Worker, ...] = ()

    @property
    def staying(self) -> list[Worker]:
        """The workers that are not draining or stopping."""
        return [worker for worker in self.workers if worker.phase not in LEAVING]

    @property
    def indexes(self) -> list[int]:
        """The indexes of the workers that should run."""
        return [index for index in range(self.count) if index not in self.vacant]

    @property
    def awaits_replacement(self) -> bool:
        """Whether workers serve, and no worker of their next generation exists yet."""
        return any(worker.phase is WorkerPhase.READY for worker in self.workers) and not any(
            self.desired.is_current(worker) or worker.generation >= self.desired.generation
            for worker in self.workers
        )

    @property
    def in_backoff(self) -> bool:
        """Whether all indexes of the server are in backoff, so that no worker serves or starts."""
        waits = bool(self.waiting) and self.waiting >= {*self.indexes}
        return waits and not (self.staying or self.should_sleep)

    @property
    def should_sleep(self) -> bool:
        """Whether the server scales to zero, is not needed now, and has only draining or stopping workers, if any."""
        is_needed = (
            self.has_pending_request
            or self.has_live_dependents
            or self.window_demand == AWAKE
            or self.hooks.awaited
        )
        return self.sleepy and not is_needed and not self.staying

    @property
    def may_fall_asleep(self) -> bool:
        """Whether the server may fall asleep: all of its workers run and had no traffic for its `scale.idle`."""
        return (
            self.sleepy
            and not self.has_live_dependents
            and self.window_demand != AWAKE
            and not self.desired.overrides.out
            and {worker.index for worker in self.staying}.issuperset(self.indexes)
            and all(worker.idle and self.desired.is_current(worker) for worker in self.staying)
        )


@dataclass(frozen=True, slots=True)
class Open:
    """Open the server's listener."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the server's listener."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Close the server's listener, and each connection that arrives at an inherited socket, which cannot be closed."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker."""

    generation: int
    index: int


@dataclass(frozen=True, slots=True)
class Check:
    """Ask the runner whether a worker of the new generation can start, before the old workers end."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Let a worker finish its requests and end."""

    worker: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop a worker within its server's stop_timeout."""

    worker: str


@dataclass(frozen=True, slots=True)
class Rotate:
    """Take a worker out of rotation, or put it back."""

    worker: str
    in_rotation: bool


@dataclass(frozen=True, slots=True)
class Accept:
    """Let a worker accept connections or, if not `accepting`, leave them to the server's other workers."""

    worker: str
    accepting: bool


@dataclass(frozen=True, slots=True)
class Release:
    """Close a listener of a previous address of the server."""

    key: str


@dataclass(frozen=True, slots=True)
class Arm:
    """Watch the listener for the first request."""


@dataclass(frozen=True, slots=True)
class Disarm:
    """Stop watching the listener. Workers that start later accept the connections that wait there."""


@dataclass(frozen=True, slots=True)
class FallAsleep:
    """Drain every worker, and start no worker until the next request, which starts a new generation."""


@dataclass(frozen=True, slots=True)
class RunHook:
    """Run a command of the server's `hooks`."""

    hook: str


@dataclass(frozen=True, slots=True)
class EndHook:
    """End the running hook, because the start that it belongs to has been cancelled."""


Action = (
    Open | Close | Refuse | Spawn | Check | Drain | Stop | Rotate | Accept | Release | Arm | Disarm | FallAsleep
    | RunHook | EndHook
)  # fmt: skip


def decide(view: ServerView) -> list[Action]:
    """The actions that bring the server closer to its desired state; empty if there is nothing to do now."""
    return [Release(key) for key in view.abandoned] + _decide_by_desired_state(view)


def _decide_by_desired_state(view: ServerView) -> list[Action]:
    if view.desired.state.wants_no_worker:
        return _decide_stopping(view)
    is_closed = view.listener.state is ListenerState.CLOSED and view.may_open
    if is_closed and view.listener.returned and view.window_demand != ASLEEP:
        return [Open()]
    if view.hooks.awaited:
        return _run_hooks(view)
    if view.window_demand == ASLEEP:
        # No request may wake the server, so its address refuses connections instead of letting them wait for hours.
        return _retire_then_close(view)
    if view.in_backoff:
        return _close(view, Refuse()) if view.refuses else []
    if view.awaits_replacement and not view.may_start:
        # The old workers serve, with their listener and their configuration, until the dependencies are ready.
        return _disarm(view) + _rotation_changes(view) + _choose_accepting(view)
    if is_closed and (view.may_start or view.sleepy):
        return [Open()]
    if view.listener.state is not ListenerState.OPEN:
        return []
    if view.listener.must_reopen:
        return _retire_then_close(view)
    if view.should_sleep:
        return [Arm()] if view.listener.armed is None else []
    if view.may_fall_asleep:
        return [FallAsleep()]
    return _disarm(view) + _rotation_changes(view) + _choose_accepting(view) + _spawn_and_retire_workers(view)


def _run_hooks(view: ServerView) -> list[Action]:
    """Return the next actions for a server that is to run and has a due hook.

    A hook runs only while the server has no workers, so workers are stopped first. If both hooks are due, AFTER_STOP
    completes the previous stop before BEFORE_START begins the next start.
    """
    if view.hooks.running is not None:
        return []
    if view.workers:
        return [Stop(worker.id) for worker in view.staying]
    if view.hooks.after_stop_due:
        return [RunHook(AFTER_STOP)]
    return [RunHook(BEFORE_START)] if view.may_start else []


def _decide_stopping(view: ServerView) -> list[Action]:
    running = view.hooks.running
    if running is not None and running.name == BEFORE_START:
        return [] if running.ends else [EndHook()]
    if view.hooks.after_stop_due and running is None and not view.workers:
        return [RunHook(AFTER_STOP), *_stop_then_close(view)]
    return _stop_then_close(view)


def _stop_then_close(view: ServerView) -> list[Action]:
    if view.desired.state is Desired.REMOVED:
        return _retire_then_close(view)
    if view.workers:
        staying = [worker for worker in view.workers if worker.phase is not WorkerPhase.STOPPING]
        return [Stop(worker.id) for worker in staying] if view.may_stop else []
    return _close(view, Refuse() if view.desired.state is Desired.FAILED else Close())


def _close(view: ServerView, action: Close | Refuse) -> list[Action]:
    return [*_disarm(view), action] if view.listener.state is ListenerState.OPEN else []


def _disarm(view: ServerView) -> list[Action]:
    return [] if view.listener.armed is None else [Disarm()]


def _retire_then_close(view: ServerView) -> list[Action]:
    if not view.may_stop:
        return []
    if view.staying:
        return [_retire(worker) for worker in view.staying]
    if any(worker.may_accept for worker in view.workers):
        return []  # a gateway may still send them requests
    # No worker accepts any longer, so new connections need not wait for draining workers.
    return _close(view, Close())


def _rotation_changes(view: ServerView) -> list[Action]:
    out = view.desired.overrides.out
    return [
        Rotate(worker.id, not out)
        for worker in view.workers
        if worker.phase is WorkerPhase.READY and worker.out != out
    ]


def _choose_accepting(view: ServerView) -> list[Action]:
    """The actions that let only healthy workers accept. If all workers are unhealthy, at least one accepts."""
    if not view.may_accept:
        return []
    # Skip abandoned workers of a newer generation: they never accepted, and another server may have their address.
    ready = [
        worker
        for worker in view.staying
        if worker.phase is WorkerPhase.READY and worker.generation <= view.desired.generation_at(worker.index)
    ]
    if any(not worker.unhealthy for worker in ready):
        return [
            Accept(worker.id, not worker.unhealthy)
            for worker in ready
            if worker.resting is not worker.unhealthy
        ]
    if all(worker.resting for worker in ready):
        return [Accept(worker.id, True) for worker in ready]
    return []


def _spawn_and_retire_workers(view: ServerView) -> list[Action]:
    current = [worker for worker in view.staying if view.desired.is_current(worker)]
    old = [worker for worker in view.staying if worker not in current]
    others = [worker for worker in view.workers if worker not in current]
    if not view.overlap and others:
        # The old workers must end before the new worker starts; connections wait meanwhile. A draining worker of a
        # server that scales to zero has little to finish, and is not interrupted.
        uninterrupted = LEAVING if view.sleepy else {WorkerPhase.STOPPING}
        to_stop = [worker for worker in others if worker.phase not in uninterrupted]
        if not view.feasible and any(worker.phase is WorkerPhase.READY for worker in to_stop):
            # Running workers are not stopped for a replacement that cannot start.
            return [] if view.checking else [Check()]
        return [Stop(worker.id) for worker in to_stop]
    actions: list[Action] = []
    if view.may_start:
        # A leaving worker keeps its name until it has ended.
        present = {(worker.generation, worker.index) for worker in view.workers}
        actions += [
            Spawn(view.desired.generation_at(index), index)
            for index in view.indexes
            if index not in view.waiting and (view.desired.generation_at(index), index) not in present
        ]
    surplus = [worker for worker in current if worker.index >= view.count]
    ready = {worker.index for worker in current if worker.phase is WorkerPhase.READY}
    if ready.issuperset(view.indexes):
        return actions + [_retire(worker) for worker in (surplus + old if view.may_leave else surplus)]
    # An individually replaced worker leaves as soon as its own replacement is ready.
    replaced = [
        worker for worker in old if str(worker.index) in view.desired.renewed and worker.index in ready
    ]
    actions += [_retire(worker) for worker in replaced]
    old = [worker for worker in old if worker not in replaced]
    # Until all replacements are ready, a ready worker may be the only one that answers, so only workers that are not
    # ready are retired. A running job is not interrupted in order to run it again.
    leaving = surplus if view.job else surplus + old
    return actions + [_retire(worker) for worker in leaving if worker.phase is not WorkerPhase.READY]


def _retire(worker: Worker) -> Action:
    # A worker that is not ready here may have accepted already: its report may be on its way. A stuck worker cannot
    # finish anything.
    return Stop(worker.id) if worker.stuck else Drain(worker.id)


# Minimum delay when retries are unlimited.
MIN_ENDLESS_BACKOFF_SECONDS = 1.0


class StepAfterExit(StrEnum):
    """What follows the exit of a worker that no command requested."""

    RESTART = "restart"  # another worker starts with its index, after a delay
    SLEEP = "sleep"  # the server sleeps until its next request
    VACATE = "vacate"  # its index stays without a worker, and the server's other workers continue
    DONE = "done"  # the server has ended
    FAILED = "failed"  # the server has failed


def restarts_within(count: int, policy: Restart) -> str:
    """The number of restarts and the window in which they were counted, as in "3 restarts in 1m"."""
    return f"{count} restart{'s' * (count != 1)} in {format_duration(policy.window)}"


@dataclass(frozen=True, slots=True)
class ExitDecision:
    """The decision after a worker's exit, the delay before a restart, and the reason for giving up.

    `restarts` is the number of restarts within the policy's `window` if the server is given up because of them, else 0.
    With `spent`, restarts have reached the policy's `limit`, but retries continue.
    """

    next: StepAfterExit
    delay_seconds: float = 0.0
    reason: str = ""
    restarts: int = 0
    spent: bool = False


@dataclass(frozen=True, slots=True)
class ExitSituation:
    """The circumstances of a worker's exit that no command requested.

    `now` is the time of the exit, on the same clock as `restarts`.
    """

    now: float
    was_ready: bool = True
    restarts: Sequence[float] = ()  # the times of earlier restarts with the worker's index
    was_up: bool = False  # the server has been ready since its start
    spent: bool = False  # an earlier decision, since the index last had a ready worker, was `spent`
    others: bool = False  # other workers of the server serve or start
    others_wait: bool = False  # the next worker of another index waits for its backoff
    others_failed: bool = False  # a worker of a vacant index had failed
    may_sleep: bool = False  # the server may be without a worker until the next request
    retries: bool = True  # a worker that was never ready is restarted


def is_ordered_end(signals: Mapping[int, float], exit_: Exit, now: float) -> bool:
    """Whether a worker has exited because of a signal that a command sent it, and not by itself.

    `signals` maps each signal to the end of the time in which an exit counts as its effect. A program that handles
    one of ENDING_SIGNALS may exit with any status.
    """
    return any(
        now <= until and number in (exit_.signal, *ENDING_SIGNALS) for number, until in signals.items()
    )


def judge_exit(
    policy: str, limits: Restart, exit_: Exit, situation: ExitSituation, *, jitter: float
) -> ExitDecision:
    """Decide what follows the exit of a worker under this restart policy.

    Restarts longer ago than `limits.window` do not count. If none counts, a worker that was ever ready is restarted at
    once. `jitter` is a random number from -1 to 1.

    A server that was ready once is retried forever: the cause may lie outside, such as a database that is down.
    Exceptions: its configuration limits restarts, or it may sleep and its next request starts it.
    """
    if not (situation.retries or situation.was_ready):
        return ExitDecision(StepAfterExit.FAILED, reason=exit_.message)
    if exit_.ok and situation.was_ready and situation.may_sleep and not situation.others:
        return ExitDecision(StepAfterExit.SLEEP)
    if policy == "no" or (exit_.ok and policy != "always"):
        if situation.others or situation.others_wait:
            return ExitDecision(StepAfterExit.VACATE)
        if exit_.ok and not situation.others_failed:
            return ExitDecision(StepAfterExit.DONE)
        return ExitDecision(StepAfterExit.FAILED, reason=exit_.message)
    recent = [time for time in situation.restarts if situation.now - time <= limits.window]
    if situation.spent or len(recent) >= limits.limit:
        is_retried = situation.was_up and not (limits.is_limited or situation.may_sleep)
        if situation.others or is_retried:
            delay_seconds = limits.backoff.longest_seconds(jitter)
            if not situation.others:
                delay_seconds = max(delay_seconds, MIN_ENDLESS_BACKOFF_SECONDS)
            return ExitDecision(StepAfterExit.RESTART, delay_seconds, spent=True)
        reason = f"{exit_.message}; given up after {restarts_within(len(recent), limits)}"
        return ExitDecision(StepAfterExit.FAILED, reason=reason, restarts=len(recent))
    if not recent and situation.was_ready:
        return ExitDecision(StepAfterExit.RESTART)
    return ExitDecision(StepAfterExit.RESTART, limits.backoff.delay_seconds(len(recent), jitter))
