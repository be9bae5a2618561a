"""The servers of the pool by name, with their dependencies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from poolctl.config import ServerConfig

from .address_changes import Addresses
from .decision_input import Desired
from .server_entry import Entry, ServerListener


class Servers:
    """The servers, including those being removed. Starts and stops nothing.

    `can_watch`: their runner can watch listeners of servers without workers.
    """

    def __init__(
        self, servers: Iterable[ServerConfig], addresses: Addresses, *, can_watch: bool = True
    ) -> None:
        self._addresses = addresses
        self._can_watch = can_watch
        self.entries: dict[str, Entry] = {}
        self.removed: dict[str, Entry] = {}
        self.revision = 0  # how many times the configuration of a server has changed
        # Names, because a dependency may be missing: not added yet, or removed.
        self._dependents: dict[str, dict[str, None]] = defaultdict(dict)
        for server in servers:
            self._insert(server)

    def add(self, config: ServerConfig) -> Entry:
        """Add a server. A server of the same name that is being removed is kept, with this configuration."""
        entry = self.entries.get(config.name)
        if entry is not None:
            entry.become(Desired.IDLE)
            self.removed.pop(entry.name, None)
            self.configure(entry, config)
            if any(worker.config != config for worker in entry.observed.workers.values()):
                entry.next_generation()  # a dependent has kept them from stopping until now
            return entry
        self.revision += 1
        return self._insert(config)

    def _insert(self, config: ServerConfig) -> Entry:
        entry = Entry(config, listener=ServerListener(can_watch=self._can_watch))
        self.entries[entry.name] = entry
        self._note(entry)
        return entry

    def remove(self, entry: Entry) -> None:
        """Mark the server as being removed; it is forgotten when its last worker has ended."""
        entry.become(Desired.REMOVED)
        self.removed[entry.name] = entry
        self._addresses.leave(entry)

    def configure(self, entry: Entry, config: ServerConfig) -> None:
        """Replace the server's configuration, under the same name. It takes effect as workers are replaced."""
        self.revision += 1
        self._discard(entry)
        entry.config = config
        self._note(entry)

    def forget(self, entry: Entry) -> None:
        """Remove a server that has been stopped for removal."""
        self.revision += 1
        self._discard(entry)
        del self.entries[entry.name]
        self.removed.pop(entry.name, None)

    def _note(self, entry: Entry) -> None:
        """Register the server's dependencies and its address."""
        for dependency in entry.config.depends_on:
            self._dependents[dependency.name][entry.name] = None
        self._addresses.claim(entry)

    def _discard(self, entry: Entry) -> None:
        """Remove the server's dependencies and its address. Its dependents still name it."""
        for dependency in entry.config.depends_on:
            self._dependents[dependency.name].pop(entry.name, None)
        self._addresses.waive(entry)

    def revise(self) -> None:
        """Mark the configuration as changed although no entry has changed, so that it is saved for a successor."""
        self.revision += 1

    def arrange(self, names: Iterable[str]) -> None:
        """Sort the servers into this order. Servers that are not named come last."""
        first = {name: self.entries[name] for name in names if name in self.entries}
        rest = {name: entry for name, entry in self.entries.items() if name not in first}
        self.entries.clear()
        self.entries.update(first | rest)

    @property
    def unused(self) -> bool:
        """Whether no server runs, is wanted, or has ever run."""
        return not any(
            entry.wanted or entry.observed.workers or entry.desired.generation > 1 or entry.observed.failures
            for entry in self.entries.values()
        )

    # Their dependencies.

    def dependencies(self, entry: Entry) -> list[Entry]:
        """The servers that this server depends on directly."""
        needed = entry.config.depends_on
        return [self.entries[each.name] for each in needed if each.name in self.entries] if needed else []

    def dependents(self, entry: Entry) -> list[Entry]:
        """The servers that depend on this server directly."""
        names = self._dependents.get(entry.name)
        return [self.entries[name] for name in names if name in self.entries] if names else []

    def closure(self, entries: Iterable[Entry], step: Callable[[Entry], list[Entry]]) -> list[Entry]:
        """The entries and all entries reachable from them by `step`, in the order of the file."""
        seen: set[str] = set()
        ahead = list(entries)
        while ahead:
            entry = ahead.pop()
            if entry.name not in seen:
                seen.add(entry.name)
                ahead += step(entry)
        return [entry for name, entry in self.entries.items() if name in seen]

    def note_stopped_with(self, stopped: Mapping[str, list[str]], disabled: Iterable[Entry]) -> None:
        """Record that these dependents were stopped because the named servers were disabled.

        `stopped` has their names, with the names for which they were stopped before.
        """
        names = [entry.name for entry in disabled]
        for name, before in stopped.items():
            needed = {each.name for each in self.closure([self.entries[name]], self.dependencies)}
            now = [each for each in names if each in needed and each not in before]
            self.entries[name].desired.stopped_with = [*before, *now]

    def stopped_with(self, enabled: Sequence[Entry]) -> list[Entry]:
        """The entries that were stopped because of these servers, and not because of another that is still disabled."""
        names = {entry.name for entry in enabled}
        found = self.closure(filter(self.dependents, enabled), self.dependents)
        return [
            entry
            for entry in found
            if not names.isdisjoint(entry.desired.stopped_with)
            and not any(name not in names and self._is_disabled(name) for name in entry.desired.stopped_with)
        ]

    def _is_disabled(self, name: str) -> bool:
        entry = self.entries.get(name)
        return entry is not None and entry.is_disabled

    def may_start(self, entry: Entry) -> bool:
        """Whether each of its dependencies fulfils its condition."""
        awaited = entry.config.depends_on
        if entry.desired.ignore_dependencies:
            # A sleeping server that was started without its dependencies still wakes after the wanted ones among them.
            awaited = tuple(each for each in awaited if entry.sleepy and self._is_to_run(each.name))
        return all(self._satisfied(each.name, each.condition) for each in awaited)

    def _is_to_run(self, name: str) -> bool:
        entry = self.entries.get(name)
        return entry is not None and not entry.rests

    def _satisfied(self, name: str, condition: str) -> bool:
        entry = self.entries.get(name)
        if entry is None:
            return True
        if entry.desired.queued_start is not None:
            return False  # its former workers are leaving
        if condition == "started":
            return entry.answers or entry.started
        if condition == "completed":
            return entry.completed
        # One that is out of rotation is not ready, but its dependents reach it.
        return entry.answers

    def may_stop(self, entry: Entry) -> bool:
        """Whether the server may stop now, because no dependent has to stop or be replaced first."""
        if entry.removed and any(
            dependency.name == entry.name
            for other in self.entries.values()
            for worker in other.observed.workers.values()
            for dependency in worker.config.depends_on
        ):
            return False
        return not any(
            not dependent.wanted and (dependent.observed.workers or dependent.cleans_up)
            for dependent in self.dependents(entry)
        )
