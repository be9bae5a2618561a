"""The loop of the supervisor: a change makes an entry dirty, the dirty ones are decided on, the actions performed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

from poolctl.clock import Clock
from poolctl.config import ServerConfig
from poolctl.monitor.events import Events
from poolctl.runners.protocol import Runner

from .addresses import Addresses, abandoned, same_listener
from .adopt import Inheritance
from .audit_context import CURRENT, NOBODYS
from .certificates import report_expired
from .decide import LEAVING, Action, Listener, Stop, View, decide
from .health import Probing
from .perform import Executor
from .registry import Roster
from .sleep import Arm
from .state import Entry, Worker
from .workqueue import Agenda


class Engine:
    """All servers of the pool, in the order of the file.

    `listeners` get each entry that may have changed, `ailments` each worker that is found to be alive in name only,
    with the reason.
    """

    def __init__(self, servers: Iterable[ServerConfig], runner: Runner, clock: Clock) -> None:
        self.runner = runner
        self.clock = clock
        self.events = Events(clock)
        self._addresses = Addresses(self.touch)
        self.roster = Roster(servers, self._addresses)
        self.entries = self.roster.entries
        self.graph = self.roster.graph
        self.listeners: set[Callable[[Entry], None]] = set()
        self.ailments: set[Callable[[Entry, Worker, str], None]] = set()
        self.calm = False  # nothing is done that nobody has ordered
        self._ordered: set[str] = set()
        self.reason = ""  # why everything is being stopped, if nobody has asked for it
        self._summaries: dict[str, tuple[object, ...]] = {}
        self._agenda = Agenda()
        self._scheduled = False
        self.probing = Probing(runner, self)
        self.listeners.add(self.probing.look)
        self._executor = Executor(
            runner,
            clock,
            self._addresses,
            self._moved,
            self.roster.configure,
            lambda: random.uniform(-1, 1),
            self.probing,
            lambda *expired: report_expired(self.events, *expired),
        )
        self.inheritance = Inheritance(self.roster, self._addresses, self._executor, self.touch)

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
            entry.next_generation()
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
            entry.next_generation()
            entry.restarts += 1
        elif entry.armed is not None:
            self._executor.preload(entry)
        self.start(entry, ignore_dependencies=True)

    def renew(self, entry: Entry, generation: int) -> None:
        """Replace the workers of this generation, which have served long enough; no failure and no restart."""
        if entry.wanted and entry.generation == generation:
            entry.next_generation()
            self.touch(entry)

    def relieve(self, entry: Entry, worker: Worker) -> None:
        """Stop this one worker; when it has gone, another takes its place."""
        worker.relieved = True
        self._executor.perform(entry, Stop(worker.id))
        self.touch(entry)

    def idle(self, entry: Entry, worker_id: str, idle: bool) -> None:
        """A worker has been without traffic for long enough to sleep, or is so no longer."""
        worker = entry.workers.get(worker_id)
        if worker is not None and worker.idle is not idle:
            worker.idle = idle
            self.touch(entry)

    # Changes of what there is.

    def add(self, config: ServerConfig) -> Entry:
        """A server that was not there, not started; one that is leaving under the same name comes back as this one."""
        entry = self.roster.add(config)
        self.touch(entry)
        return entry

    def remove(self, entry: Entry) -> None:
        """Stop the server, whose workers finish what they have; it is forgotten when nothing of it is left."""
        self.roster.remove(entry)
        entry.out = False
        entry.cancel_timers()
        entry.wanted = entry.called = entry.failed = entry.done = False
        self.touch(entry)

    def change(self, entry: Entry, config: ServerConfig, *, live: bool) -> None:
        """Give the server another configuration of the same name.

        With `live` its workers go on under it; without, what runs is replaced by a generation that has it, what has
        failed or waits is tried again, and what was stopped stays so.
        """
        before, was_disabled = entry.config, entry.is_disabled
        self.roster.configure(entry, config)
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
                entry.next_generation()
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

    def ail(self, entry: Entry, worker: Worker, reason: str) -> None:
        """A worker is alive in name only: tell those who do something about it."""
        for listener in list(self.ailments):
            listener(entry, worker, reason)

    # Deciding.

    def touch(self, entry: Entry) -> None:
        """Something about the entry has changed: decide on it before the loop sleeps again."""
        self._note(entry)

    def _moved(self, entry: Entry) -> None:
        self._note(entry, moved=True)

    def _note(self, entry: Entry, *, moved: bool = False) -> None:
        self._agenda.add(entry, moved=moved)
        if by := CURRENT.get():
            entry.ordered = by
            self._ordered.add(entry.name)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._settle, context=NOBODYS)

    def _settle(self) -> None:
        self._scheduled = False
        touched: dict[str, Entry] = {}
        for entry in self._agenda.turn():
            name = entry.name
            touched[name] = entry
            self._addresses.review(entry)
            self._review_sleep(entry)
            for action in self._actions(entry):
                self._executor.perform(entry, action)
            self._wake_neighbours(entry)
            for held in self._addresses.tidy(entry):
                self._executor.close(held)
            if entry.removed and entry.at_rest and self.entries.get(name) is entry:
                self.roster.forget(entry)
                self._summaries.pop(name, None)
            elif not entry.removed:
                # What leaves may wait for the last worker that needed it.
                self._agenda.update(self.roster.removed.values())
        if self._agenda:
            self._schedule()
        for entry in touched.values():
            for listener in list(self.listeners):
                listener(entry)

    def _actions(self, entry: Entry) -> list[Action]:
        actions = decide(self._view(entry))
        if self.calm and entry.name not in self._ordered:
            # To watch for a request starts nothing, and the request that comes is an order.
            return [action for action in actions if isinstance(action, Arm)]
        return actions

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
                self._agenda.add(neighbour)
