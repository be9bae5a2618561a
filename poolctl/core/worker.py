"""One worker of a server, as the core sees it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.runners.runner_protocol import Exit, Placement
from poolctl.states import Status

if TYPE_CHECKING:
    from poolctl.probes.worker_probes import WorkerProbes
    from poolctl.runners.stack_report import WorkerStacks


class WorkerPhase(StrEnum):
    """A phase in the life of a worker."""

    PLACING = "placing"  # requested, no process yet
    STARTING = "starting"  # has a process, which is not ready yet
    READY = "ready"
    DRAINING = "draining"  # accepts no new connections, finishes its requests
    STOPPING = "stopping"  # ends within its time limit


LEAVING = frozenset({WorkerPhase.DRAINING, WorkerPhase.STOPPING})


@dataclass(slots=True)
class Worker:
    """One worker of a server, and the configuration that it runs with. `ready_at` is in monotonic seconds."""

    id: str
    generation: int
    index: int
    config: ServerConfig
    phase: WorkerPhase = WorkerPhase.PLACING
    placement: Placement | None = None
    ready_at: float | None = None
    failure: ServerError | None = None
    given_up: bool = False  # stopped because it was not ready in time
    address_taken: bool = False  # its output says that the server's address is in use
    placed_at: float = 0.0  # in seconds since the epoch
    out: bool = False  # taken out of rotation
    resting: bool = False  # it leaves accepting to other workers
    health: Status = Status.UNKNOWN  # the result of its probes
    probes: WorkerProbes | None = None  # None while it is not probed
    stopped_accepting: bool = False  # it has stopped accepting connections
    files: dict[str, str] = field(default_factory=dict)  # digests of the files that it has read
    files_before: dict[str, str] = field(default_factory=dict)  # digests in use before it started
    certificate_ends: float | None = None  # when the certificate it uses expires, in seconds since the epoch
    idle: bool = False  # ready, and without traffic for its server's scale.idle
    expired: bool = False  # it has served its max_requests
    stuck: bool = False  # its event loop has not answered a heartbeat
    stop_seconds: float | None = None  # the time until it is killed; None for the server's `stop_timeout`
    unstoppable: bool = False  # not even SIGKILL has ended it
    # By signal that a command has sent it: the end (monotonic) of the time in which an exit counts as its effect.
    signals: dict[int, float] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None
    preloading: asyncio.Future[str] | None = None
    # While its stacks are read, before it is recovered.
    reading_stacks: asyncio.Task[WorkerStacks | None] | None = None
    exit: Exit | None = None
    last_line: str = ""  # the last line of its output, if it ended by itself with status 0
    next_step: str = ""  # the consequence of its exit as a sentence; "" if the exit was ordered

    @property
    def status(self) -> Status:
        """The worker's health: `ko` (bad) if it is stuck, else the result of its probes; `ok` without probes."""
        if self.stuck:
            return Status.KO
        return self.health if self.config.health.probed else Status.OK

    @property
    def may_accept(self) -> bool:
        """Whether the worker is draining, and has not confirmed yet that it accepts no more connections."""
        return self.phase is WorkerPhase.DRAINING and not self.stopped_accepting

    @property
    def unhealthy(self) -> bool:
        """Whether the worker's probes fail, or it is stuck."""
        return self.status is Status.KO
