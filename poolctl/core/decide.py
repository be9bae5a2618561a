"""Decides the next actions for one server, and what follows when its worker has ended. Pure functions.

No clock, no I/O, no memory: time comes as facts (a backoff), and the executor reports the outcome of the actions as new
facts. Called again after every change until it returns no action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from poolctl.config import Restart
from poolctl.runners.runner_protocol import Exit
from poolctl.units import format_duration

from .decision_input import (
    AFTER_STOP,
    ASLEEP,
    BEFORE_START,
    IN_BACKOFF,
    LEAVING,
    Desired,
    Listener,
    Phase,
    View,
    WorkerView,
)


@dataclass(frozen=True, slots=True)
class Open:
    """Open the server's listener."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the server's listener."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker."""

    generation: int
    index: int


@dataclass(frozen=True, slots=True)
class Check:
    """Check whether workers of the newest generation can be started."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Let a worker finish its requests and end."""

    worker: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End a worker within its server's stop_timeout."""

    worker: str


@dataclass(frozen=True, slots=True)
class Rotate:
    """Take a worker out of rotation, or put it back."""

    worker: str
    in_rotation: bool


@dataclass(frozen=True, slots=True)
class Attend:
    """Let a worker accept connections, or leave them to other workers."""

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
    """Leave the listener and its waiting connections to the next workers."""


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
    Open | Close | Spawn | Check | Drain | Stop | Rotate | Attend | Release | Arm | Disarm | FallAsleep
    | RunHook | EndHook
)  # fmt: skip


def decide(view: View) -> list[Action]:
    """The actions that bring the server closer to its desired state; empty if there is nothing to do now."""
    return [Release(key) for key in view.abandoned] + _proceed(view)


def _proceed(view: View) -> list[Action]:
    if view.desired.rests:
        return _rest(view)
    if view.desired in IN_BACKOFF:
        return _hold(view)
    if view.awaits_hook:
        return _run_hooks(view)
    if view.kept == ASLEEP:
        # No request may wake it, so its address refuses connections instead of letting them wait for hours.
        return _leave(view)
    may_open = view.may_open and (view.may_start or view.sleepy)
    if view.listener is Listener.CLOSED and may_open:
        return [Open()]
    if view.listener is not Listener.OPEN:
        return []
    if view.vacates:
        return _leave(view)
    if view.sleeps:
        return [] if view.armed else [Arm()]
    if view.falls_asleep:
        return [FallAsleep()]
    return _disarm(view) + _rotate(view) + _attend(view) + _serve(view)


def _run_hooks(view: View) -> list[Action]:
    """The action that runs the hook of an unfinished stop or, if none is due, the hook of the start."""
    if view.hook:
        return []
    if view.workers:
        return [Stop(worker.id) for worker in view.staying]
    if view.after_stop_due:
        return [RunHook(AFTER_STOP)]
    return [RunHook(BEFORE_START)] if view.may_start else []


def _rest(view: View) -> list[Action]:
    if view.hook == BEFORE_START:
        return [] if view.hook_ends else [EndHook()]
    if view.after_stop_due and not (view.hook or view.workers):
        return [RunHook(AFTER_STOP), *_end(view)]
    return _end(view)


def _end(view: View) -> list[Action]:
    if view.desired is Desired.REMOVED:
        return _leave(view)
    if view.workers:
        staying = [worker for worker in view.workers if worker.phase is not Phase.STOPPING]
        return [Stop(worker.id) for worker in staying] if view.may_stop else []
    return _close(view)


def _close(view: View) -> list[Action]:
    return [*_disarm(view), Close()] if view.listener is Listener.OPEN else []


def _disarm(view: View) -> list[Action]:
    return [Disarm()] if view.armed else []


def _leave(view: View) -> list[Action]:
    if not view.may_stop:
        return []
    staying = [worker for worker in view.workers if worker.phase not in LEAVING]
    if staying:
        return [_retire(worker) for worker in staying]
    # No worker accepts any longer, so new connections need not wait for draining workers.
    return _close(view)


def _rotate(view: View) -> list[Action]:
    return [
        Rotate(worker.id, not view.out)
        for worker in view.workers
        if worker.phase is Phase.READY and worker.out != view.out
    ]


def _attend(view: View) -> list[Action]:
    """The actions that let only healthy workers accept. If all workers are ko, at least one accepts."""
    ready = [worker for worker in view.staying if worker.phase is Phase.READY]
    if view.apart:
        own = [worker for worker in ready if worker.generation != view.canary]
        return _share_out(own) + _share_out([worker for worker in ready if worker not in own])
    return _share_out(ready)


def _share_out(ready: list[WorkerView]) -> list[Action]:
    """The actions that decide which of the workers at one address accept connections."""
    if any(not worker.ko for worker in ready):
        return [Attend(worker.id, not worker.ko) for worker in ready if worker.resting is not worker.ko]
    if all(worker.resting for worker in ready):
        return [Attend(worker.id, True) for worker in ready]
    return []


def _hold(view: View) -> list[Action]:
    # A worker that still serves continues; connections to a server without one wait until it refuses them.
    return _close(view) if view.desired is Desired.REFUSING and not view.workers else []


def _serve(view: View) -> list[Action]:
    current = [worker for worker in view.staying if worker.generation == view.generation]
    old = [worker for worker in view.staying if worker.generation not in (view.generation, view.canary)]
    if not view.overlap and len(current) < len(view.workers):
        # The old workers must end before the new worker starts; connections wait meanwhile. A worker of a server that
        # falls asleep has little to finish, and is not interrupted.
        ending = LEAVING if view.sleepy else {Phase.STOPPING}
        going = [worker for worker in view.workers if worker not in current and worker.phase not in ending]
        if not view.feasible and any(worker.phase is Phase.READY for worker in going):
            # Running workers are not stopped for a replacement that cannot start.
            return [] if view.checking else [Check()]
        return [Stop(worker.id) for worker in going]
    actions: list[Action] = []
    if view.may_start:
        actions += _missing(view, view.generation, view.count)
        actions += _missing(view, view.canary, view.canaries)
    surplus = [worker for worker in current if worker.index >= view.count]
    ready = {worker.index for worker in current if worker.phase is Phase.READY}
    if ready.issuperset(range(view.count)):
        return actions + [_retire(worker) for worker in surplus + old]
    # A surplus or superseded worker may be the only worker that answers, so until the others answer it is stopped only
    # if it does not serve. A running job is not interrupted in order to run it again.
    leaving = surplus if view.job else surplus + old
    return actions + [_retire(worker) for worker in leaving if worker.phase is not Phase.READY]


def _missing(view: View, generation: int, count: int) -> list[Action]:
    # A leaving worker keeps its name until it has ended.
    present = {worker.index for worker in view.workers if worker.generation == generation}
    return [Spawn(generation, index) for index in range(count) if index not in present]


def _retire(worker: WorkerView) -> Action:
    # A stuck worker cannot finish anything.
    return Drain(worker.id) if worker.phase is Phase.READY and not worker.stuck else Stop(worker.id)


class Next(StrEnum):
    """The decision about a server after one of its workers has exited."""

    RESTART = "restart"
    DONE = "done"
    FAILED = "failed"


def restarts_within(count: int, policy: Restart) -> str:
    """The number of restarts after which a server was given up, as text."""
    return f"{count} restart{'s' * (count > 1)} in {format_duration(policy.window)}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens after an exit, the delay before a restart, and the reason for giving up.

    `restarts` is set if there were too many restarts.
    """

    next: Next
    delay_seconds: float = 0.0
    reason: str = ""
    restarts: int = 0


def judge(
    policy: Restart,
    exit_: Exit,
    *,
    was_ready: bool,
    restarts: Sequence[float],
    now: float,
    jitter: float,
    retries: bool = True,
) -> Verdict:
    """The decision after an exit that no command requested.

    `restarts` are the times of the restarts so far, `now` the time of this death (same clock), `jitter` a random number
    from -1 to 1. The first restart within the window is immediate, if the worker had ever been ready. Without `retries`
    the exit of a worker that was never ready is final.
    """
    if not (retries or was_ready):
        return Verdict(Next.FAILED, reason=exit_.message)
    if exit_.ok and policy.policy != "always":
        return Verdict(Next.DONE)
    if policy.policy == "no":
        return Verdict(Next.FAILED, reason=exit_.message)
    recent = [moment for moment in restarts if now - moment <= policy.window]
    if len(recent) >= policy.limit:
        reason = f"{exit_.message}; given up after {restarts_within(len(recent), policy)}"
        return Verdict(Next.FAILED, reason=reason, restarts=len(recent))
    if not recent and was_ready:
        return Verdict(Next.RESTART)
    return Verdict(Next.RESTART, policy.backoff.delay_seconds(len(recent), jitter))
