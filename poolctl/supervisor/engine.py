"""The loop of the supervisor: a change makes an entry dirty, the dirty ones are decided on, the actions performed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

from poolctl.address import overlaps
from poolctl.clock import Clock
from poolctl.config.model import ServerConfig
from poolctl.runners.protocol import Runner

from .addresses import Addresses, abandoned, same_listener
from .entry import Entry, Worker
from .execute import Executor
from .graph import Graph
from .reconcile import LEAVING, Listener, Phase, View, decide


class Engine:
    """All servers of the pool, in the order of the file. `listeners` get each entry that may have changed."""

    def __init__(self, servers: Iterable[ServerConfig], runner: Runner, clock: Clock) -> None:
        self.runner = runner
        self.clock = clock
        self.entries: dict[str, Entry] = {server.name: Entry(server) for server in servers}
        self._addresses = Addresses(self.touch)
        for entry in self.entries.values():
            self._addresses.claim(entry)
        self.graph = Graph(self.entries)
        self.listeners: set[Callable[[Entry], None]] = set()
        self.reason = ""  # why everything is being stopped, if nobody has asked for it
        self.configured = 0  # how many times the configuration of a server has changed
        self._summaries: dict[str, tuple[object, ...]] = {}
        self._removed: dict[str, Entry] = {}
        self._dirty: dict[str, Entry] = {}
        self._scheduled = False
        self._executor = Executor(
            runner, clock, self._addresses, self.touch, self._configure, lambda: random.uniform(-1, 1)
        )

    # Changes of what is wanted.

    def start(self, entry: Entry, *, ignore_dependencies: bool = False) -> None:
        """Want the server to run; forget that it had failed or waits to be tried again."""
        if entry.is_disabled or entry.removed:
            return
        entry.cancel_timers()
        if entry.failed or entry.done:
            entry.restart_times.clear()
            entry.called = False
        if entry.failed or entry.done or not entry.wanted:
            entry.code_since = self.clock.monotonic()
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
        entry.wanted = entry.called = entry.failed = entry.done = entry.out = False
        entry.dismissed = True
        if kill:
            for worker in entry.workers.values():
                self._executor.kill(entry, worker)
        self.touch(entry)

    def restart(self, entry: Entry) -> None:
        """Want a new generation of the server; one that does not run is started."""
        running = any(worker.generation == entry.generation for worker in entry.workers.values())
        entry.code_since = self.clock.monotonic()
        if entry.wanted and running:
            self._next_generation(entry)
            entry.restarts += 1
        elif entry.armed is not None:
            self._executor.preload(entry)
        self.start(entry, ignore_dependencies=True)

    def renew(self, entry: Entry, generation: int) -> None:
        """Replace the workers of this generation, which have served long enough; no failure and no restart."""
        if entry.wanted and entry.generation == generation:
            self._next_generation(entry)
            self.touch(entry)

    def idle(self, entry: Entry, worker_id: str, idle: bool) -> None:
        """A worker has been without traffic for long enough to sleep, or is so no longer."""
        worker = entry.workers.get(worker_id)
        if worker is not None and worker.idle is not idle:
            worker.idle = idle
            self.touch(entry)

    def _next_generation(self, entry: Entry) -> None:
        entry.newest += 1
        entry.generation = entry.newest

    # Changes of what there is.

    def add(self, config: ServerConfig) -> Entry:
        """A server that was not there, not started; one that is leaving under the same name comes back as this one."""
        entry = self.entries.get(config.name)
        self.configured += 1
        if entry is None:
            entry = self.entries[config.name] = Entry(config)
            self.graph.add(entry)
            self._addresses.claim(entry)
        else:
            entry.removed = entry.dismissed = False
            self._removed.pop(entry.name, None)
            self._configure(entry, config)
        self.touch(entry)
        return entry

    def remove(self, entry: Entry) -> None:
        """Stop the server, whose workers finish what they have; it is forgotten when nothing of it is left."""
        entry.removed = True
        self._removed[entry.name] = entry
        entry.out = False
        entry.cancel_timers()
        entry.wanted = entry.called = entry.failed = entry.done = False
        self._addresses.leave(entry)
        self.touch(entry)

    def change(self, entry: Entry, config: ServerConfig, *, live: bool) -> None:
        """Give the server another configuration of the same name.

        With `live` its workers go on under it; without, what runs is replaced by a generation that has it, what has
        failed or waits is tried again, and what was stopped stays so.
        """
        before, was_disabled = entry.config, entry.is_disabled
        self._configure(entry, config)
        if not same_listener(before, config):
            # At once: whoever wants that address may be looked at before this one.
            self._addresses.leave(entry)
        if live:
            for worker in entry.workers.values():
                if worker.config is before:
                    worker.config = config
            if config.idle_seconds != before.idle_seconds:
                self._executor.idle_after(entry, config.idle_seconds)
        elif entry.wanted:
            if any(each.generation == entry.generation for each in entry.workers.values()):
                self._next_generation(entry)
                entry.restarts += 1
            entry.code_since = self.clock.monotonic()
            # What it depends on now may be new as well.
            entry.ignore_dependencies = False
            if entry.failed or entry.held or (entry.done and not config.job):
                # It may well be what was wrong with it.
                self.start(entry)
        self._heed(entry, was_disabled)
        self.touch(entry)

    def override(
        self, entry: Entry, *, count: int | None = None, disabled: bool | None = None, out: bool = False
    ) -> None:
        """Let these live changes win over the configuration, and only these."""
        was_disabled = entry.is_disabled
        entry.count, entry.disabled, entry.out = count, disabled, out
        self._heed(entry, was_disabled)
        self.touch(entry)

    def _heed(self, entry: Entry, was_disabled: bool) -> None:
        """Stop what is disabled by now, start what was; one that was deliberately stopped stays so."""
        if entry.is_disabled and not was_disabled:
            dismissed = entry.dismissed
            self.stop(entry)
            entry.dismissed = dismissed
        elif was_disabled and not entry.is_disabled and not entry.dismissed:
            self.start(entry)

    async def renew_tls(self, entry: Entry) -> None:
        """Let the server use its certificates as they are now, in the processes that run. Raises ServerError."""
        await self._executor.renew_tls(entry)

    def arrange(self, names: Iterable[str]) -> None:
        """Put the servers into this order; those that are not named follow."""
        first = {name: self.entries[name] for name in names if name in self.entries}
        rest = {name: entry for name, entry in self.entries.items() if name not in first}
        self.entries.clear()
        self.entries.update(first | rest)

    def _configure(self, entry: Entry, config: ServerConfig) -> None:
        self.configured += 1
        self.graph.remove(entry)
        self._addresses.waive(entry)
        entry.config = config
        self.graph.add(entry)
        self._addresses.claim(entry)

    def _forget(self, entry: Entry) -> None:
        self.configured += 1
        self.graph.remove(entry)
        self._addresses.waive(entry)
        del self.entries[entry.name]
        self._removed.pop(entry.name, None)
        self._summaries.pop(entry.name, None)

    # Taking over.

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
        self.touch(entry)

    def adopt(self, entry: Entry, worker: Worker) -> None:
        """Take over a worker of the supervisor before."""
        if entry.removed:
            self._removed[entry.name] = entry
            self._addresses.leave(entry)
        entry.workers[worker.id] = worker
        entry.called = entry.called or worker.phase is Phase.READY
        entry.newest = max(entry.newest, worker.generation)
        self._executor.adopt(entry, worker)
        self.touch(entry)

    def resume(self, entry: Entry) -> None:
        """Go on from what was taken over: the generation that serves may be newer than was noted, or all be leaving."""
        staying = {worker.generation for worker in entry.workers.values() if worker.phase not in LEAVING}
        if entry.workers and entry.generation not in staying:
            newer = [generation for generation in staying if generation > entry.generation]
            if newer:
                entry.generation = max(newer)
            elif any(worker.generation == entry.generation for worker in entry.workers.values()):
                # What leaves keeps its name until it has gone; what comes gets another.
                self._next_generation(entry)
        self.touch(entry)

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
            self._addresses.review(entry)
            self._review_sleep(entry)
            for action in decide(self._view(entry)):
                self._executor.perform(entry, action)
            self._wake_neighbours(entry)
            for held in self._addresses.tidy(entry):
                self._executor.close(held)
            if entry.removed and entry.at_rest and self.entries.get(name) is entry:
                self._forget(entry)
            elif not entry.removed:
                # What leaves may wait for the last worker that needed it.
                self._dirty.update(self._removed)
        for entry in touched.values():
            for listener in list(self.listeners):
                listener(entry)

    def _review_sleep(self, entry: Entry) -> None:
        entry.needed = any(dependent.up for dependent in self.graph.dependents(entry))
        if entry.armed is not None and (
            entry.armed is not entry.config or entry.listener is not Listener.OPEN
        ):
            # What is watched is no longer how the server is to be, or where.
            self._executor.disarm(entry)

    def _view(self, entry: Entry) -> View:
        return entry.view(
            may_start=self.graph.may_start(entry),
            may_stop=self.graph.may_stop(entry) and self._addresses.may_close(entry),
            may_open=self._addresses.may_open(entry),
            abandoned=tuple(held.key for held in abandoned(entry)),
        )

    def _wake_neighbours(self, entry: Entry) -> None:
        summary = entry.summary()
        if self._summaries.get(entry.name) != summary:
            self._summaries[entry.name] = summary
            neighbours = (*self.graph.dependents(entry), *self.graph.dependencies(entry))
            for neighbour in (*neighbours, *self._addresses.neighbours(entry)):
                self._dirty[neighbour.name] = neighbour
