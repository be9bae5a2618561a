"""The loop of the supervisor: a change makes an entry dirty, the dirty ones are decided on, the actions performed."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Iterable

from poolctl.clock import Clock
from poolctl.config.model import ServerConfig
from poolctl.runners.protocol import Runner

from .entry import Entry, Worker
from .execute import Executor
from .reconcile import LEAVING, Listener, decide


class Engine:
    """All servers of the pool, in the order of the file. `changed` callbacks get each entry that may have changed."""

    def __init__(self, servers: Iterable[ServerConfig], runner: Runner, clock: Clock) -> None:
        self.runner = runner
        self.clock = clock
        self.entries: dict[str, Entry] = {server.name: Entry(server) for server in servers}
        self.listeners: set[Callable[[Entry], None]] = set()
        self._dependents: dict[str, list[Entry]] = defaultdict(list)
        for entry in self.entries.values():
            for dependency in entry.config.depends_on:
                self._dependents[dependency.name].append(entry)
        self._summaries: dict[str, tuple[object, ...]] = {}
        self._dirty: dict[str, Entry] = {}
        self._scheduled = False
        self._executor = Executor(runner, clock, self.touch, lambda: random.uniform(-1, 1))

    # Changes of what is wanted.

    def start(self, entry: Entry, *, ignore_dependencies: bool = False) -> None:
        """Want the server to run; forget that it had failed or waits to be tried again."""
        if entry.config.disabled:
            return
        entry.cancel_timers()
        if entry.failed or entry.done:
            entry.restart_times.clear()
        if any(
            worker.generation == entry.generation and worker.phase in LEAVING
            for worker in entry.workers.values()
        ):
            # What leaves keeps its name until it has gone; what comes gets another.
            self._next_generation(entry)
        entry.wanted, entry.dismissed, entry.failed, entry.done = True, False, False, False
        entry.ignore_dependencies = ignore_dependencies
        self.touch(entry)

    def stop(self, entry: Entry, *, kill: bool = False) -> None:
        """Want the server not to run; with `kill` its workers are given no time."""
        entry.cancel_timers()
        entry.wanted = entry.failed = entry.done = False
        entry.dismissed = True
        if kill:
            for worker in entry.workers.values():
                self._executor.kill(entry, worker)
        self.touch(entry)

    def restart(self, entry: Entry) -> None:
        """Want a new generation of the server; one that does not run is started."""
        running = any(worker.generation == entry.generation for worker in entry.workers.values())
        if entry.wanted and running:
            self._next_generation(entry)
            entry.restarts += 1
        self.start(entry, ignore_dependencies=True)

    def renew(self, entry: Entry, generation: int) -> None:
        """Replace the workers of this generation, which have served long enough; no failure and no restart."""
        if entry.wanted and entry.generation == generation:
            self._next_generation(entry)
            self.touch(entry)

    def _next_generation(self, entry: Entry) -> None:
        entry.newest += 1
        entry.generation = entry.newest

    # Taking over.

    def adopt(self, entry: Entry, worker: Worker, *, listening: bool) -> None:
        """Take over a worker of the supervisor before; `listening`: the server's listener is open."""
        entry.listener = Listener.OPEN if listening else Listener.CLOSED
        entry.workers[worker.id] = worker
        entry.newest = max(entry.newest, worker.generation)
        self._executor.adopt(entry, worker)
        self.touch(entry)

    # The graph.

    def dependencies(self, entry: Entry) -> list[Entry]:
        """The servers that it depends on directly."""
        found = (self.entries.get(dependency.name) for dependency in entry.config.depends_on)
        return [dependency for dependency in found if dependency is not None]

    def dependents(self, entry: Entry) -> list[Entry]:
        """The servers that depend on it directly."""
        return self._dependents.get(entry.name, [])

    def closure(self, entries: Iterable[Entry], step: Callable[[Entry], list[Entry]]) -> list[Entry]:
        """The entries and all that is reached from them by `step`, in the order of the file."""
        seen: set[str] = set()
        ahead = list(entries)
        while ahead:
            entry = ahead.pop()
            if entry.name not in seen:
                seen.add(entry.name)
                ahead += step(entry)
        return [entry for name, entry in self.entries.items() if name in seen]

    # Deciding.

    def touch(self, entry: Entry) -> None:
        """Something about the entry has changed: decide on it before the loop sleeps again."""
        self._dirty[entry.name] = entry
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._settle)

    def _settle(self) -> None:
        self._scheduled = False
        touched: dict[str, Entry] = {}
        while self._dirty:
            name = next(iter(self._dirty))
            entry = self._dirty.pop(name)
            touched[name] = entry
            view = entry.view(may_start=self._may_start(entry), may_stop=self._may_stop(entry))
            for action in decide(view):
                self._executor.perform(entry, action)
            self._wake_neighbours(entry)
        for entry in touched.values():
            for listener in list(self.listeners):
                listener(entry)

    def _wake_neighbours(self, entry: Entry) -> None:
        summary = entry.summary()
        if self._summaries.get(entry.name) != summary:
            self._summaries[entry.name] = summary
            for neighbour in (*self.dependents(entry), *self.dependencies(entry)):
                self._dirty[neighbour.name] = neighbour

    def _may_start(self, entry: Entry) -> bool:
        if entry.ignore_dependencies:
            return True
        return all(self._satisfied(each.name, each.condition) for each in entry.config.depends_on)

    def _satisfied(self, name: str, condition: str) -> bool:
        entry = self.entries.get(name)
        if entry is None:
            return True
        if condition == "started":
            return entry.ready or any(worker.placement is not None for worker in entry.workers.values())
        return entry.done if condition == "completed" else entry.ready

    def _may_stop(self, entry: Entry) -> bool:
        return not any(dependent.workers and not dependent.wanted for dependent in self.dependents(entry))
