"""Beginning, promoting and withdrawing canaries."""

from __future__ import annotations

from poolctl.clock import Clock
from poolctl.config import ServerConfig

from .canary import Canary
from .decide import Drain, Stop
from .decision_input import LEAVING, Phase
from .perform import Executor
from .server_changes import Workqueue
from .server_entry import Entry
from .servers import Servers


class Canaries:
    """Begins, promotes and withdraws the canaries of servers."""

    def __init__(self, clock: Clock, queue: Workqueue, servers: Servers, executor: Executor) -> None:
        self._clock = clock
        self._queue = queue
        self._servers = servers
        self._executor = executor

    def begin(self, entry: Entry, config: ServerConfig, count: int) -> Canary:
        """Let so many workers of a new generation serve beside those of the server, with this configuration."""
        entry.newest += 1
        entry.canary = Canary(entry.newest, count, config, self._clock.monotonic())
        entry.canary_generation = entry.newest
        self._queue.touch(entry)
        return entry.canary

    def promote(self, entry: Entry) -> None:
        """Let the canary's generation serve alone: the workers before leave once all of its own are ready."""
        canary = entry.canary
        assert canary is not None
        entry.canary, entry.canary_generation = None, 0
        entry.generation, entry.code_since = canary.generation, canary.code_since
        for worker in entry.workers.values():
            if worker.generation == canary.generation and worker.phase is Phase.READY:
                entry.files, entry.certificate_ends = worker.files, worker.certificate_ends
        entry.restarts += 1
        self._servers.configure(entry, canary.config)
        self._queue.touch(entry)

    def withdraw(self, entry: Entry) -> None:
        """End the workers of the server's canary, if it has one; its own serve on."""
        canary = entry.canary
        if canary is None:
            return
        entry.canary, entry.canary_generation = None, 0
        for worker in list(entry.workers.values()):
            if worker.generation == canary.generation and worker.phase not in LEAVING:
                is_fit = worker.phase is Phase.READY and not worker.stuck
                self._executor.perform(entry, Drain(worker.id) if is_fit else Stop(worker.id))
        self._queue.touch(entry)

    def take_lost(self) -> list[Entry]:
        """The servers whose canary a previous supervisor had begun; its workers leave. Each is returned once."""
        lost = [
            entry
            for entry in self._servers.entries.values()
            if entry.canary_generation and entry.canary is None
        ]
        for entry in lost:
            entry.canary_generation = 0
            self._queue.note(entry)
        return lost
