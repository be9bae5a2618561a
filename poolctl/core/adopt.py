"""What a supervisor takes over from the one before: listeners that are open, and workers that serve."""

from __future__ import annotations

from collections.abc import Callable

from poolctl.address import overlaps
from poolctl.config import ServerConfig

from .addresses import Addresses, same_listener
from .decide import LEAVING, Listener, Phase
from .perform import Executor
from .registry import Roster
from .state import Entry, Worker


class Inheritance:
    """Enters into the roster's entries what is there already. `touch` is told of each."""

    def __init__(
        self, roster: Roster, addresses: Addresses, executor: Executor, touch: Callable[[Entry], None]
    ) -> None:
        self._roster = roster
        self._addresses = addresses
        self._executor = executor
        self._touch = touch

    def adopt_listener(self, entry: Entry, config: ServerConfig) -> None:
        """Take over an open listener that the supervisor before had opened for the entry, under this configuration."""
        if same_listener(config, entry.config):
            entry.listener, entry.bound = Listener.OPEN, entry.config
        elif overlaps(config.address, entry.config.address):
            # The other one cannot be open as well; the move begins anew.
            entry.listener, entry.bound = Listener.OPEN, config
        elif not any(same_listener(config, held) for held in entry.former):
            entry.former.append(config)
        if entry.removed or config is not entry.config:
            self._addresses.leave(entry)
        self._touch(entry)

    def adopt(self, entry: Entry, worker: Worker) -> None:
        """Take over a worker of the supervisor before."""
        if entry.removed:
            self._roster.remove(entry)
        entry.workers[worker.id] = worker
        entry.called = entry.called or worker.phase is Phase.READY
        entry.newest = max(entry.newest, worker.generation)
        self._executor.adopt(entry, worker)
        self._touch(entry)

    def resume(self, entry: Entry) -> None:
        """Go on from what was taken over: the generation that serves may be newer than was noted, or all be leaving."""
        staying = {worker.generation for worker in entry.workers.values() if worker.phase not in LEAVING}
        if entry.workers and entry.generation not in staying:
            newer = [generation for generation in staying if generation > entry.generation]
            if newer:
                entry.generation = max(newer)
            elif any(worker.generation == entry.generation for worker in entry.workers.values()):
                # What leaves keeps its name until it has gone; what comes gets another.
                entry.next_generation()
        if entry.wanted or entry.removed or not entry.at_rest:
            # Nothing is to be done about the others, and the first command's servers would be sorted in behind them.
            self._touch(entry)
