"""The control loop: changed entries are queued, each is decided on in turn, and its actions are performed."""

from __future__ import annotations

from collections.abc import Callable

from .address_changes import Addresses, abandoned
from .decide import Action, Arm, decide
from .decision_input import ASLEEP, Listener, View
from .decision_trace import Trace
from .perform import Executor
from .scheduled_runs import ScheduledRuns
from .server_changes import Workqueue
from .server_entry import Entry
from .servers import Servers
from .sleep_windows import SleepWindows


class Reconciler:
    """Decides, and has the actions performed. `listeners` get each entry that was decided on."""

    def __init__(
        self,
        queue: Workqueue,
        servers: Servers,
        addresses: Addresses,
        executor: Executor,
        windows: SleepWindows,
        runs: ScheduledRuns,
        *,
        calm: bool,
        trace: Trace | None,
    ) -> None:
        self.listeners: set[Callable[[Entry], None]] = set()
        self._calm = calm
        self._trace = trace
        self._queue = queue
        self._servers = servers
        self._addresses = addresses
        self._executor = executor
        self._windows = windows
        self._runs = runs
        self._summaries: dict[str, tuple[object, ...]] = {}
        queue.feed(self._settle)

    def _settle(self) -> None:
        touched: dict[str, Entry] = {}
        for entry in self._queue.batch():
            name = entry.name
            touched[name] = entry
            self._addresses.review(entry)
            self._review_sleep(entry)
            self._runs.review(entry)
            for action in self._decide(entry):
                self._executor.perform(entry, action)
            self._wake_neighbours(entry)
            for held in self._addresses.tidy(entry):
                self._executor.close(held)
            if entry.removed and entry.at_rest and self._servers.entries.get(name) is entry:
                self.forget(entry)
                # Its dependencies need not wait for it any more.
                self._queue.update(self._servers.dependents(entry))
            elif not entry.removed:
                # A dependency that stops may have waited for the last worker that needed it.
                self._queue.update(self._servers.removed.values())
        if self._queue:
            self._queue.schedule()
        for entry in touched.values():
            for listener in list(self.listeners):
                listener(entry)

    def forget(self, entry: Entry) -> None:
        """Drop an entry without workers and listeners."""
        self._servers.forget(entry)
        self._summaries.pop(entry.name, None)
        if self._trace is not None:
            self._trace.forget(entry.name)

    def _decide(self, entry: Entry) -> list[Action]:
        view = self.view(entry)
        decided = actions = decide(view)
        if self._calm and entry.name not in self._queue.commanded:
            # Watching starts no worker, and the request that comes counts as a command.
            actions = [action for action in decided if isinstance(action, Arm)]
        if self._trace is not None:
            self._trace.decision(entry.name, view, actions, withheld=bool(decided) and not actions)
        return actions

    def _review_sleep(self, entry: Entry) -> None:
        kept = entry.kept
        entry.observed.needed = any(dependent.up for dependent in self._servers.dependents(entry))
        self._windows.review(entry)
        if entry.kept == ASLEEP:
            entry.observed.called = False
            if kept != ASLEEP and entry.observed.workers:
                # Its workers leave, and keep their names until they have ended.
                entry.next_generation()
        if entry.listener.armed is not None and (
            entry.listener.armed is not entry.config or entry.listener.state is not Listener.OPEN
        ):
            # The server's configuration or address has changed since it is watched.
            self._executor.disarm(entry)

    def view(self, entry: Entry) -> View:
        """The facts on which the next actions for the entry depend."""
        return entry.view(
            may_start=self._servers.may_start(entry),
            may_stop=self._servers.may_stop(entry) and self._addresses.may_close(entry),
            may_open=self._addresses.may_open(entry),
            abandoned=tuple(held.key for held in abandoned(entry)),
        )

    def _wake_neighbours(self, entry: Entry) -> None:
        summary = entry.summary()
        if self._summaries.get(entry.name) != summary:
            self._summaries[entry.name] = summary
            neighbours = (*self._servers.dependents(entry), *self._servers.dependencies(entry))
            for neighbour in (*neighbours, *self._addresses.neighbours(entry)):
                self._queue.add(neighbour)
