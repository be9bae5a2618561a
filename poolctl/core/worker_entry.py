"""The state of one worker of a server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.runners.runner_protocol import Exit, Placement
from poolctl.states import Status

from .decision_input import Phase


@dataclass(slots=True)
class Worker:
    """One worker of a server, with the configuration that it was placed with; `ready_at` is monotonic, in seconds."""

    id: str
    generation: int
    index: int
    config: ServerConfig
    phase: Phase = Phase.PLACING
    placement: Placement | None = None
    ready_at: float | None = None
    failure: ServerError | None = None
    given_up: bool = False  # stopped because it was not ready in time
    address_taken: bool = False  # it says that the address of its server is in use
    placed_at: float = 0.0  # in seconds since the epoch
    out: bool = False  # taken out of rotation
    resting: bool = False  # it leaves accepting to others
    health: Status = Status.UNKNOWN  # the result of its probes
    left: bool = False  # it does not accept any more
    files: dict[str, str] = field(default_factory=dict)  # digests of the files that it has read
    files_before: dict[str, str] = field(default_factory=dict)  # of the files that its server had in use
    certificate_ends: float | None = None  # of the certificate that it has read, in seconds since the epoch
    passed_over: float | None = None  # when the certificate in the file expired, which it did not load
    idle: bool = False  # ready, and without traffic for its server's scale.idle
    stuck: bool = False  # its event loop has left a heartbeat unanswered
    relieved: bool = False  # stopped because it is unhealthy; another one replaces it
    stop_seconds: float | None = None  # it is killed after these; None: after its server's `stop_timeout`
    unstoppable: bool = False  # not even SIGKILL has ended it
    task: asyncio.Task[None] | None = None
    preparing: asyncio.Future[str] | None = None
    exit: Exit | None = None
    next_step: str = ""  # what follows from its end, in words; "" if it was ordered

    @property
    def status(self) -> Status:
        """Its health: the result of its probes, ok without any."""
        if self.stuck:
            return Status.KO
        return self.health if self.config.health.probed else Status.OK

    @property
    def ko(self) -> bool:
        """Its probes fail, or it is stuck."""
        return self.status is Status.KO
