"""The facts about one server on which its next actions depend, and its state as derived from them. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from poolctl.states import State

from .desired import IN_BACKOFF, Desired


class Phase(StrEnum):
    """The phase of a worker's life."""

    PLACING = "placing"  # asked for, no process yet
    STARTING = "starting"  # a process that has not answered
    READY = "ready"
    DRAINING = "draining"  # accepts nothing more, finishes what it has
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
    """The facts about one worker."""

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
    overlap: bool = True  # may two generations run at once
    feasible: bool = True  # workers of the generation that should serve are known to start
    checking: bool = False  # that is being checked
    may_start: bool = True  # its dependencies fulfil their conditions
    may_stop: bool = True  # no dependent has to stop before it
    may_open: bool = True  # no other server has its address
    vacates: bool = False  # its listener must be opened again, after its workers have ended
    abandoned: tuple[str, ...] = ()  # its former addresses from which no worker accepts any more
    job: bool = False  # runs to its end once
    disabled: bool = False
    out: bool = False  # out of rotation: it answers, but gets no more traffic
    sleepy: bool = False  # may be without a worker while there are no requests for it
    called: bool = False  # a request has come since it slept
    needed: bool = False  # a dependent of it is up
    armed: bool = False  # its listener is watched for the first request
    listener: Listener = Listener.CLOSED
    workers: tuple[WorkerView, ...] = ()

    @property
    def staying(self) -> list[WorkerView]:
        """The workers that are not leaving."""
        return [worker for worker in self.workers if worker.phase not in LEAVING]

    # A sleeping server has a watched listener and no worker. It is woken by a request (`called`), or by a dependent
    # that is up (`needed`).

    @property
    def asleep(self) -> bool:
        """It should have no worker: none is started, and none stays."""
        return self.sleepy and not self.called and not self.needed and not self.staying

    @property
    def falls_asleep(self) -> bool:
        """It is complete, and every worker has been without traffic for its `scale.idle`."""
        return (
            self.sleepy
            and not self.needed
            and not self.out
            and {worker.index for worker in self.staying}.issuperset(range(self.count))
            and all(worker.idle and worker.generation == self.generation for worker in self.staying)
        )

    @property
    def state(self) -> State:
        """The server's state in one word (see the documentation of states)."""
        if self.desired.rests:
            if self.workers:
                return State.STOPPING
            if self.desired is Desired.FAILED:
                return State.FAILED
            return State.DISABLED if self.disabled else State.STOPPED
        if any(worker.phase is Phase.READY for worker in self.staying):
            return State.DRAINING if self.out else State.RUNNING
        if self.desired in IN_BACKOFF:
            return State.BACKOFF
        if self.armed and self.asleep:
            return State.DRAINING if self.workers else State.SLEEPING
        return State.STARTING

    @property
    def ready(self) -> bool:
        """It has answered, serves, and is not ko; a job is ready once it has ended with 0."""
        if self.state is not State.RUNNING:
            return self.job and self.desired is Desired.COMPLETED
        return any(worker.phase is Phase.READY and not worker.ko for worker in self.staying)
