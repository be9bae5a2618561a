"""Beginning, promoting and withdrawing canaries."""

from __future__ import annotations

from typing import Protocol

from poolctl.address import Address
from poolctl.clock import Clock
from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.listeners.port_ledger import free_port
from poolctl.runners.runner_protocol import Runner

from .decide import Drain, Stop
from .decision_input import LEAVING, Phase
from .perform import Executor
from .server_changes import Workqueue
from .server_entry import Canary, Entry, Worker
from .servers import Servers

# Another program may take the port between the choice and the use of it.
_OPEN_ATTEMPTS = 3


class TrafficSplit(Protocol):
    """Sends a share of a server's requests to the address of its canary."""

    def split_obstacle(self, server: str) -> str | None:
        """Why it cannot for this server, "" if it can; None for one whose requests do not come through it."""
        ...


class Canaries:
    """Begins, promotes and withdraws the canaries of servers. `split` is the gateway of the pool, if it has one."""

    def __init__(
        self, runner: Runner, clock: Clock, queue: Workqueue, servers: Servers, executor: Executor
    ) -> None:
        self.split: TrafficSplit | None = None
        self._runner = runner
        self._clock = clock
        self._queue = queue
        self._servers = servers
        self._executor = executor

    async def open_apart(self, config: ServerConfig) -> ServerConfig:
        """The configuration with an address of its own on this machine, which is open. Raises ServerError."""
        for attempt in range(_OPEN_ATTEMPTS):
            made = config.at(_address_apart(config.address))
            try:
                await self._runner.open(made)
            except ServerError:
                if attempt == _OPEN_ATTEMPTS - 1:
                    raise
            else:
                break
        return made

    def close_apart(self, config: ServerConfig) -> None:
        """Close that address again: nothing was begun there."""
        self._executor.close(config)

    def begin(
        self,
        entry: Entry,
        config: ServerConfig,
        count: int,
        *,
        share: float = 0.0,
        apart: ServerConfig | None = None,
    ) -> Canary:
        """Let so many workers of a new generation serve beside those of the server, with this configuration.

        They are `apart` from these with that form of it (see `open_apart`), for this share of the requests.
        """
        entry.desired.newest += 1
        now, is_apart = self._clock.monotonic(), apart is not None
        entry.desired.canary = Canary(
            entry.desired.newest, count, apart or config, now, config, is_apart=is_apart, share=share
        )
        entry.desired.canary_generation, entry.desired.canary_share = entry.desired.newest, share
        self._servers.revise()
        self._queue.touch(entry)
        return entry.desired.canary

    def promote(self, entry: Entry) -> None:
        """Let the new code and configuration serve alone: the workers before leave once all others are ready.

        The workers of a canary that is apart serve on until it is withdrawn: they cannot move to the server's address.
        """
        canary = entry.desired.canary
        assert canary is not None
        if canary.is_apart:
            entry.order_restart()
            entry.desired.code_since = self._clock.monotonic()
        else:
            self.end(entry)
            entry.desired.generation, entry.desired.code_since = canary.generation, canary.code_since
            for worker in entry.observed.workers.values():
                if worker.generation == canary.generation and worker.phase is Phase.READY:
                    entry.observed.files, entry.observed.certificate_ends = (
                        worker.files,
                        worker.certificate_ends,
                    )
            entry.observed.restarts += 1
        self._servers.configure(entry, canary.promoted)
        self._queue.touch(entry)

    def withdraw(self, entry: Entry) -> None:
        """End the workers of the server's canary, if it has one; its own serve on."""
        canary = self.end(entry)
        if canary is None:
            return
        for worker in list(entry.observed.workers.values()):
            if worker.generation == canary.generation and worker.phase not in LEAVING:
                is_fit = worker.phase is Phase.READY and not worker.stuck
                self._executor.perform(entry, Drain(worker.id) if is_fit else Stop(worker.id))
        self._queue.touch(entry)

    def end(self, entry: Entry) -> Canary | None:
        """The server's canary, which is none any more; its address is closed once its workers have left."""
        canary = entry.desired.canary
        entry.desired.canary, entry.desired.canary_generation, entry.desired.canary_share = None, 0, 0.0
        if canary is not None and canary.is_apart:
            entry.listener.withdrawn = canary
            entry.listener.former.append(canary.config)
            self._servers.revise()
        return canary

    def adopt(self, entry: Entry, worker: Worker) -> None:
        """Adopt the canary of a previous supervisor with the first of its workers, if it is apart.

        The gateway of that supervisor sends requests to it until it is withdrawn here. If it was not recorded yet, it
        has no share any more.
        """
        is_apart = worker.config.key != entry.config.key and worker.generation > entry.desired.generation
        is_of_it = is_apart or (
            entry.desired.canary_share and worker.generation == entry.desired.canary_generation
        )
        if is_of_it and worker.phase not in LEAVING and entry.desired.canary is None:
            canary = Canary(worker.generation, 0, worker.config, 0.0, entry.config)
            canary.is_apart, canary.is_lost, canary.share = True, True, entry.desired.canary_share
            entry.desired.canary = canary

    def withdraw_lost(self) -> list[Entry]:
        """Withdraw the canaries that a previous supervisor had begun; their servers. Each is returned once."""
        lost = [
            entry
            for entry in self._servers.entries.values()
            if (
                entry.desired.canary_generation
                if entry.desired.canary is None
                else entry.desired.canary.is_lost
            )
        ]
        for entry in lost:
            self.withdraw(entry)
            entry.desired.canary_generation, entry.desired.canary_share = 0, 0.0
            self._queue.note(entry)
        return lost


def config_apart(entry: Entry) -> ServerConfig | None:
    """The configuration of its canary while that has an address of its own, which may be closing already."""
    if entry.desired.canary is not None and entry.desired.canary.is_apart:
        return entry.desired.canary.config
    before = entry.listener.withdrawn
    is_open = before is not None and before.config in (*entry.listener.former, *entry.listener.releasing)
    return before.config if before is not None and is_open else None


def _address_apart(address: Address) -> Address:
    """An address of the same kind that this machine alone reaches: the application sees similar clients there."""
    if address.kind == "unix":
        return Address("unix", path=f"{address.path}.canary")
    host = "::1" if address.is_ipv6 else "127.0.0.1"
    return Address("tcp", host=host, port=free_port(host))
