"""What to do next for one server: a pure function from what is wanted and what is there to a list of actions.

No clock, no I/O, no memory: time reaches it as facts (`held`, `refusing`), and whoever performs the actions reports
back as new facts. It is called again after every change until it asks for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from poolctl.probes.rotation import RotationState, rotation_changes
from poolctl.states import State

from .sleep import Arm, Disarm, Sleep, asleep, tired


class Phase(StrEnum):
    """What a worker is doing."""

    PLACING = "placing"  # asked for, no process yet
    STARTING = "starting"  # a process that has not answered
    READY = "ready"
    DRAINING = "draining"  # accepts nothing more, finishes what it has
    STOPPING = "stopping"  # told to end


LEAVING = frozenset({Phase.DRAINING, Phase.STOPPING})


class Listener(StrEnum):
    """What the server's listening sockets are doing."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


# Nobody changes these two; frozen, they would take three times as long to make, and each event makes several.


@dataclass(slots=True)
class WorkerView:
    """One worker as the decision sees it."""

    id: str
    generation: int
    index: int
    phase: Phase
    out: bool = False  # told to be out of rotation
    idle: bool = False  # ready, and without traffic for as long as its server wants it to be before it sleeps
    stuck: bool = False  # its event loop answers nobody
    resting: bool = False  # ready, and it leaves the accepting to others
    ko: bool = False  # it is not well


@dataclass(slots=True)
class View:
    """Everything that the decision about one server depends on."""

    wanted: bool  # should run: not disabled, not deliberately stopped
    generation: int  # the generation that should serve
    count: int = 1  # how many workers
    overlap: bool = True  # may two generations run at once
    feasible: bool = True  # workers of the generation that should serve can be placed, as far as is known
    checking: bool = False  # that is being found out
    may_start: bool = True  # its dependencies are as far as they have to be
    may_stop: bool = True  # nothing that depends on it still runs and has to go first
    may_open: bool = True  # nobody else has its address
    vacates: bool = False  # its listener has to be opened anew, and its workers have to go before
    abandoned: tuple[str, ...] = ()  # addresses that it had, and from which nobody accepts any more
    held: bool = False  # in backoff
    refusing: bool = False  # in backoff for so long that its listener is closed
    failed: bool = False  # given up until somebody starts it again
    done: bool = False  # ended by itself with 0, and is not to be restarted
    job: bool = False  # runs to its end once
    disabled: bool = False
    out: bool = False  # out of rotation: it answers, and nobody is to send it more
    removed: bool = False  # leaves the pool: what it has under way may be finished first
    sleepy: bool = False  # may be without a worker while nobody asks for it
    called: bool = False  # somebody has asked for it since it slept
    needed: bool = False  # something that depends on it is up
    armed: bool = False  # its listener is watched for the first request
    listener: Listener = Listener.CLOSED
    workers: tuple[WorkerView, ...] = ()

    @property
    def resting(self) -> bool:
        """Nothing of it should run now."""
        return not self.wanted or self.failed or self.done

    @property
    def staying(self) -> list[WorkerView]:
        """The workers that have not been told to leave."""
        return [worker for worker in self.workers if worker.phase not in LEAVING]


@dataclass(frozen=True, slots=True)
class Open:
    """Open the server's listener."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the server's listener."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Make a worker."""

    generation: int
    index: int


@dataclass(frozen=True, slots=True)
class Check:
    """Find out whether workers of the generation that should serve can be placed."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Let a worker finish what it has and end."""

    worker: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End a worker within its server's stop_timeout."""

    worker: str


@dataclass(frozen=True, slots=True)
class Rotate:
    """Take a worker out of rotation, or back into it."""

    worker: str
    in_rotation: bool


@dataclass(frozen=True, slots=True)
class Attend:
    """Let a worker accept connections, or leave them to others."""

    worker: str
    accepting: bool


@dataclass(frozen=True, slots=True)
class Release:
    """Close a listener of an address that the server had before."""

    key: str


Action = Open | Close | Spawn | Check | Drain | Stop | Rotate | Attend | Release | Arm | Disarm | Sleep


def decide(view: View) -> list[Action]:
    """The actions that bring the server nearer to what is wanted; empty when nothing is to be done now."""
    return [Release(key) for key in view.abandoned] + _proceed(view)


def _proceed(view: View) -> list[Action]:
    if view.resting:
        return _rest(view)
    if view.held:
        return _hold(view)
    may_open = view.may_open and (view.may_start or view.sleepy) and not view.refusing
    if view.listener is Listener.CLOSED and may_open:
        return [Open()]
    if view.listener is not Listener.OPEN:
        return []
    if view.vacates:
        return _leave(view)
    if asleep(view):
        return [] if view.armed else [Arm()]
    if tired(view):
        return [Sleep()]
    return _disarm(view) + _rotate(view) + _attend(view) + _serve(view)


def _rest(view: View) -> list[Action]:
    if view.removed:
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
    # Nobody accepts any more: who comes now need not wait for those that are seen off.
    return _close(view)


def _rotate(view: View) -> list[Action]:
    return [
        Rotate(worker.id, not view.out)
        for worker in view.workers
        if worker.phase is Phase.READY and worker.out != view.out
    ]


def _attend(view: View) -> list[Action]:
    serving = [
        (worker.id, RotationState(worker.ko, worker.resting))
        for worker in view.staying
        if worker.phase is Phase.READY
    ]
    return [Attend(name, accepting) for name, accepting in rotation_changes(serving)]


def _hold(view: View) -> list[Action]:
    # A worker that still serves goes on; connections to a server without one wait until it refuses them.
    return _close(view) if view.refusing and not view.workers else []


def _serve(view: View) -> list[Action]:
    current = [worker for worker in view.staying if worker.generation == view.generation]
    old = [worker for worker in view.staying if worker.generation != view.generation]
    if not view.overlap and len(current) < len(view.workers):
        # The old ones must be gone before the new one begins; meanwhile connections wait. One that falls asleep has
        # hardly anything to finish, and is not interrupted.
        ending = LEAVING if view.sleepy else {Phase.STOPPING}
        going = [worker for worker in view.workers if worker not in current and worker.phase not in ending]
        if not view.feasible and any(worker.phase is Phase.READY for worker in going):
            # Running workers are not stopped for a replacement that cannot start.
            return [] if view.checking else [Check()]
        return [Stop(worker.id) for worker in going]
    actions: list[Action] = []
    if view.may_start:
        # What leaves keeps its name until it has gone.
        present = {worker.index for worker in view.workers if worker.generation == view.generation}
        actions += [Spawn(view.generation, index) for index in range(view.count) if index not in present]
    surplus = [worker for worker in current if worker.index >= view.count]
    ready = {worker.index for worker in current if worker.phase is Phase.READY}
    if ready.issuperset(range(view.count)):
        return actions + [_retire(worker) for worker in surplus + old]
    # One too many, or superseded, may be the only one that answers: until the others do, it goes only if it does not
    # serve. A job that runs is not interrupted for its being run again.
    leaving = surplus if view.job else surplus + old
    return actions + [_retire(worker) for worker in leaving if worker.phase is not Phase.READY]


def _retire(worker: WorkerView) -> Action:
    # A worker that is stuck can finish nothing.
    return Drain(worker.id) if worker.phase is Phase.READY and not worker.stuck else Stop(worker.id)


def state_of(view: View) -> State:
    """The server's state in one word (see the documentation of states)."""
    if view.resting:
        if view.workers:
            return State.STOPPING
        if view.failed:
            return State.FAILED
        return State.DISABLED if view.disabled else State.STOPPED
    if any(worker.phase is Phase.READY for worker in view.staying):
        return State.DRAINING if view.out else State.RUNNING
    if view.held:
        return State.BACKOFF
    if view.armed and asleep(view):
        return State.DRAINING if view.workers else State.SLEEPING
    return State.STARTING


def is_ready(view: View) -> bool:
    """Whether it has answered, serves, and is not ko; a job is, when it has ended with 0."""
    if state_of(view) is not State.RUNNING:
        return view.job and view.done
    return any(worker.phase is Phase.READY and not worker.ko for worker in view.staying)
