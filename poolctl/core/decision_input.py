"""The desired state of a server, and the facts that its next actions depend on."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Desired(StrEnum):
    """The desired state of a server.

    `wanted`: commands want it to run, whether it does or not. `rests`: no worker of it should run now.
    """

    wanted: bool
    rests: bool

    def __new__(cls, word: str, wanted: bool = False, rests: bool = True) -> Desired:
        """The member with these properties, or the member for a value."""
        case = str.__new__(cls, word)
        case._value_, case.wanted, case.rests = word, wanted, rests
        return case

    # Not started yet, or stopped because it was disabled: it starts when it is enabled.
    IDLE = "idle", False, True
    # By a command, and stays so when it is enabled.
    STOPPED = "stopped", False, True
    RUN = "run", True, False
    # Runs at scheduled times and waits for the next run; while it runs the state is RUN.
    SCHEDULED = "scheduled", True, True
    # Restarted after a pause; in REFUSING the pause is long enough that the listener is closed.
    BACKOFF = "backoff", True, False
    REFUSING = "refusing", True, False
    # It ended by itself with 0, and is not started again.
    COMPLETED = "completed", True, True
    # Given up until a command starts it.
    FAILED = "failed", True, True
    # It leaves the pool, and is forgotten when its last worker has ended.
    REMOVED = "removed", False, True


IN_BACKOFF = (Desired.BACKOFF, Desired.REFUSING)

_ORDERED = {
    Desired.IDLE,
    Desired.STOPPED,
    Desired.RUN,
    Desired.SCHEDULED,
    Desired.REMOVED,
}  # what commands may want of a server
_ENDED = {Desired.COMPLETED, Desired.FAILED}
FOLLOWS = MappingProxyType(
    {
        Desired.IDLE: _ORDERED,
        Desired.STOPPED: _ORDERED,
        Desired.RUN: _ORDERED | _ENDED | {Desired.BACKOFF},
        Desired.SCHEDULED: _ORDERED,
        Desired.BACKOFF: _ORDERED | _ENDED | {Desired.BACKOFF, Desired.REFUSING},
        Desired.REFUSING: _ORDERED | _ENDED | {Desired.BACKOFF},
        # Another worker of it may still fail.
        Desired.COMPLETED: _ORDERED | _ENDED,
        Desired.FAILED: _ORDERED | {Desired.FAILED},
        # A server of that name is added again.
        Desired.REMOVED: {Desired.REMOVED, Desired.IDLE},
    }
)


class ImpossibleChange(Exception):
    """The desired state cannot be changed in this way."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Live changes that override the configuration until a reload removes them."""

    workers: int | None = None
    disabled: bool | None = None
    out: bool = False  # out of rotation


NO_OVERRIDES = Overrides()


# The commands of a server's `hooks`.
BEFORE_START, AFTER_STOP = "before_start", "after_stop"

# The effect of a window on a server.
AWAKE, ASLEEP = "awake", "asleep"


class Phase(StrEnum):
    """A phase in the life of a worker."""

    PLACING = "placing"  # asked for, no process yet
    STARTING = "starting"  # a process that has not answered
    READY = "ready"
    DRAINING = "draining"  # accepts no new connections, finishes its requests
    STOPPING = "stopping"  # ends within its time limit


LEAVING = frozenset({Phase.DRAINING, Phase.STOPPING})


class Listener(StrEnum):
    """The state of the server's listening sockets."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"


# Never changed after construction. Frozen, they would take three times as long to make, and each event makes several.


@dataclass(slots=True)
class WorkerView:
    """The facts about one worker that decisions depend on."""

    id: str
    generation: int
    index: int
    phase: Phase
    out: bool = False  # taken out of rotation
    idle: bool = False  # ready, and without traffic for its server's `scale.idle`
    stuck: bool = False  # its event loop does not answer
    resting: bool = False  # ready, and it leaves accepting to others
    ko: bool = False  # its probes fail, or it is stuck


@dataclass(slots=True)
class View:
    """All facts that the decision about one server depends on."""

    desired: Desired
    generation: int  # the generation that should serve
    count: int = 1  # how many workers
    canary: int = 0  # a further generation until it is judged; 0 without a canary
    canaries: int = 0  # how many workers of that
    apart: bool = False  # these have an address of their own
    overlap: bool = True  # may two generations run at once
    feasible: bool = True  # workers of the generation that should serve are known to start
    checking: bool = False  # that is being checked
    may_start: bool = True  # its dependencies fulfil their conditions
    may_stop: bool = True  # no dependent has to stop before it
    may_open: bool = True  # no other server has its address
    vacates: bool = False  # its listener must be opened again, after its workers have ended
    abandoned: tuple[str, ...] = ()  # its former addresses that no worker accepts from any longer
    job: bool = False  # runs to its end once
    out: bool = False  # out of rotation: it answers, but gets no new traffic
    sleepy: bool = False  # may be without a worker while there are no requests for it
    called: bool = False  # a request has come since it slept
    needed: bool = False  # a dependent of it is up
    kept: str = ""  # AWAKE or ASLEEP, by a window
    armed: bool = False  # its listener is watched for the first request
    before_start_due: bool = False  # a command has started it, and that hook has not ended with 0 yet
    after_stop_due: bool = False  # a command has stopped it, and that hook has not ended yet
    hook: str = ""  # the hook that runs
    hook_ends: bool = False  # it has been asked to end
    listener: Listener = Listener.CLOSED
    workers: tuple[WorkerView, ...] = ()

    @property
    def staying(self) -> list[WorkerView]:
        """The workers that are not leaving."""
        return [worker for worker in self.workers if worker.phase not in LEAVING]

    @property
    def sleeps(self) -> bool:
        """See Entry.sleeps."""
        wakes = self.called or self.needed or self.kept == AWAKE or self.awaits_hook
        return self.sleepy and not wakes and not self.staying

    @property
    def awaits_hook(self) -> bool:
        """See Entry.awaits_hook."""
        return self.before_start_due or self.after_stop_due or bool(self.hook)

    @property
    def falls_asleep(self) -> bool:
        """Whether the server may fall asleep: it is complete, and no worker had traffic for its `scale.idle`."""
        return (
            self.sleepy
            and not self.needed
            and self.kept != AWAKE
            and not self.out
            and {worker.index for worker in self.staying}.issuperset(range(self.count))
            and all(worker.idle and worker.generation == self.generation for worker in self.staying)
        )
