"""The servers of a pool by name, and their dependencies: which server waits for which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from poolctl.config import ServerConfig

from .addresses import AddressRegistry
from .server_entry import Entry
from .server_state import Desired


class ServerRegistry:
    """The servers of a pool, including those being removed. Starts and stops nothing."""

    def __init__(self, servers: Iterable[ServerConfig], addresses: AddressRegistry) -> None:
        self._addresses = addresses
        self.entries: dict[str, Entry] = {}
        self.removed: dict[str, Entry] = {}
        self.revision = 0  # the number of changes of servers' configurations
        # By name, because a dependency may be missing: not added yet, or removed.
        self._dependents: dict[str, dict[str, None]] = defaultdict(dict)
        for server in servers:
            self._insert(server)

    def add_or_revive(self, config: ServerConfig) -> Entry:
        """Add a server. A server of the same name that is being removed is kept, with this configuration."""
        entry = self.entries.get(config.name)
        if entry is not None:
            entry.set_desired(Desired.IDLE)
            self.removed.pop(entry.name, None)
            self.replace_config(entry, config)
            if any(worker.config != config for worker in entry.observed.workers.values()):
                entry.begin_generation()  # old workers still run because of a dependent
            return entry
        self.revision += 1
        return self._insert(config)

    def _insert(self, config: ServerConfig) -> Entry:
        entry = Entry(config)
        self.entries[entry.name] = entry
        self._add_to_indexes(entry)
        return entry

    def mark_removed(self, entry: Entry) -> None:
        """Mark the server as being removed; it is forgotten when its last worker has ended."""
        entry.set_desired(Desired.REMOVED)
        self.removed[entry.name] = entry
        self._addresses.note_leaving(entry)

    def replace_config(self, entry: Entry, config: ServerConfig) -> None:
        """Replace the server's configuration, under the same name. It takes effect as workers are replaced."""
        self.revision += 1
        self._remove_from_indexes(entry)
        entry.config = config
        self._add_to_indexes(entry)

    def forget(self, entry: Entry) -> None:
        """Remove a server that has been stopped for removal."""
        self.revision += 1
        self._remove_from_indexes(entry)
        del self.entries[entry.name]
        self.removed.pop(entry.name, None)

    def _add_to_indexes(self, entry: Entry) -> None:
        for dependency in entry.config.depends_on:
            self._dependents[dependency.name][entry.name] = None
        self._addresses.register(entry)

    def _remove_from_indexes(self, entry: Entry) -> None:
        """Undo `_add_to_indexes`: the server is no longer found as a dependent, nor by its address."""
        for dependency in entry.config.depends_on:
            self._dependents[dependency.name].pop(entry.name, None)
        self._addresses.unregister(entry)

    def note_revision(self) -> None:
        """Record a change to be saved for the next supervisor, although no server's configuration has changed."""
        self.revision += 1

    def sort(self, names: Iterable[str]) -> None:
        """Sort the servers into this order. Servers that are not named come last."""
        ordered = {name: self.entries[name] for name in names if name in self.entries} | self.entries
        self.entries.clear()
        self.entries.update(ordered)

    @property
    def has_never_run(self) -> bool:
        """Whether no server is running or wanted, and none has ever run."""
        return not any(
            entry.wanted or entry.observed.workers or entry.desired.generation > 1 or entry.observed.failures
            for entry in self.entries.values()
        )

    # Dependencies between servers.

    def dependencies(self, entry: Entry) -> list[Entry]:
        """The servers that this server depends on directly."""
        names = [dependency.name for dependency in entry.config.depends_on]
        return [self.entries[name] for name in names if name in self.entries]

    def dependents(self, entry: Entry) -> list[Entry]:
        """The servers that depend on this server directly."""
        names = self._dependents.get(entry.name)
        return [self.entries[name] for name in names if name in self.entries] if names else []

    def closure(self, entries: Iterable[Entry], step: Callable[[Entry], list[Entry]]) -> list[Entry]:
        """The entries and all servers that `step` reaches from them, directly or indirectly, in the order of the file.

        `step` is `dependencies` or `dependents`.
        """
        seen: set[str] = set()
        ahead = list(entries)
        while ahead:
            entry = ahead.pop()
            if entry.name not in seen:
                seen.add(entry.name)
                ahead += step(entry)
        return [entry for name, entry in self.entries.items() if name in seen]

    def note_stopped_with(
        self, already_stopped_with: Mapping[str, list[str]], disabled: Sequence[Entry]
    ) -> None:
        """Record in `stopped_with` of each stopped server which of the `disabled` servers it depends on.

        `already_stopped_with` maps the names of the stopped servers to what earlier calls recorded, which is kept.
        """
        for name, before in already_stopped_with.items():
            dependencies = {entry.name for entry in self.closure([self.entries[name]], self.dependencies)}
            names = [entry.name for entry in disabled if entry.name in dependencies - {*before}]
            self.entries[name].desired.stopped_with = [*before, *names]

    def stopped_along_with(self, enabled: Sequence[Entry]) -> list[Entry]:
        """Return the servers that were stopped along with one of the `enabled` servers (see `note_stopped_with`).

        Omits a server while another one in its `stopped_with` is still disabled.
        """
        names = {entry.name for entry in enabled}
        return [
            entry
            for entry in self.closure(enabled, self.dependents)
            if not names.isdisjoint(entry.desired.stopped_with)
            and not any(
                other.is_disabled
                for name in entry.desired.stopped_with
                if name not in names and (other := self.entries.get(name)) is not None
            )
        ]

    def may_start(self, entry: Entry) -> bool:
        """Whether workers of the server may start: no dependency still has to become ready or be replaced."""
        return self.awaited_dependency(entry) is None

    def awaited_dependency(self, entry: Entry) -> Entry | None:
        """The first dependency that has to be ready, or to be replaced, before workers of the server start."""
        for needed in entry.config.depends_on:
            dependency = self.entries.get(needed.name)
            if dependency is not None and self._waits_for(entry, dependency, needed.condition):
                return dependency
        return None

    def _waits_for(self, entry: Entry, dependency: Entry, condition: str) -> bool:
        if entry.awaits_replacement and self._addresses.waits_for_address(dependency):
            return False  # this server may have to leave that address first
        # A server that scales to zero and ignores dependencies still waits for dependencies that should run.
        ignores = entry.desired.ignore_dependencies and (dependency.wants_no_worker or not entry.sleepy)
        if not (ignores or self._meets_condition(dependency, condition)):
            return True
        # A server that only replaces a crashed worker uses the old workers of the dependency.
        is_new = entry.awaits_replacement or not (ignores or entry.observed.was_up)
        return is_new and self._is_being_replaced(dependency, condition)

    def _is_being_replaced(self, entry: Entry, condition: str = "ready") -> bool:
        if not entry.is_being_replaced or (condition == "started" and entry.has_new_process):
            return False
        # If it waits for a stopped server, its replacement may never begin.
        return self.stopped_dependency(entry) is None

    def waiting_dependents(self, entry: Entry) -> list[Entry]:
        """The servers that depend on this server directly, and whose replacement has not begun."""
        return [dependent for dependent in self.dependents(entry) if dependent.awaits_replacement]

    def dependency_facts(self, entry: Entry) -> tuple[object, ...]:
        """Return a tuple of the facts about the server on which decisions about its neighbours depend."""
        return (
            *entry.dependency_facts(),
            self._is_being_replaced(entry),
            self._is_being_replaced(entry, "started"),
            self._addresses.waits_for_address(entry),
        )

    def stopped_dependency(self, entry: Entry) -> Entry | None:
        """A dependency that the server waits for in vain, because that dependency should not run; None without one."""
        if not entry.wanted or self.may_start(entry):
            return None
        return next(
            (
                dependency
                for dependency in self.dependencies(entry)
                if dependency.wants_no_worker
                and not dependency.ready
                and dependency.desired.queued_start is None
            ),
            None,
        )

    @staticmethod
    def _meets_condition(entry: Entry, condition: str) -> bool:
        if entry.desired.queued_start is not None:
            return False  # the workers of the previous start are still leaving
        if condition == "started":
            return entry.is_responsive or entry.started
        if condition == "completed":
            return entry.completed
        # Out of rotation it is not ready, but dependents can still reach it.
        return entry.is_responsive

    def may_stop(self, entry: Entry) -> bool:
        """Whether the server may stop now, because no dependent has to stop or be replaced first.

        A dependent that cannot be ended does not keep it running.
        """
        waits = entry.removed and not entry.desired.ignore_dependencies
        if waits and any(
            dependency.name == entry.name
            for dependent in self.entries.values()
            for worker in dependent.observed.workers.values()
            for dependency in worker.config.depends_on
            if not worker.unstoppable
        ):
            return False
        return not any(
            not (dependent.wanted or dependent.is_unstoppable)
            and (dependent.observed.workers or dependent.hooks.cleans_up)
            for dependent in self.dependents(entry)
        )
