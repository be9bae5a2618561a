"""The dependency graph of the pool's servers, maintained while servers are added, changed and removed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from .state import Entry


class DependencyGraph:
    """The dependencies of the entries, which are the registry's own table, in the order of the file."""

    def __init__(self, entries: dict[str, Entry]) -> None:
        self._entries = entries
        # Names, because a dependency may be missing: not added yet, or removed.
        self._dependents: dict[str, dict[str, None]] = defaultdict(dict)
        for entry in entries.values():
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Note the dependencies of the entry."""
        for dependency in entry.config.depends_on:
            self._dependents[dependency.name][entry.name] = None

    def remove(self, entry: Entry) -> None:
        """Forget the dependencies of the entry; its dependents keep theirs."""
        for dependency in entry.config.depends_on:
            self._dependents[dependency.name].pop(entry.name, None)

    def dependencies(self, entry: Entry) -> list[Entry]:
        """The servers that it depends on directly."""
        found = (self._entries.get(dependency.name) for dependency in entry.config.depends_on)
        return [dependency for dependency in found if dependency is not None]

    def dependents(self, entry: Entry) -> list[Entry]:
        """The servers that depend on it directly."""
        found = (self._entries.get(name) for name in self._dependents.get(entry.name, ()))
        return [dependent for dependent in found if dependent is not None]

    def closure(self, entries: Iterable[Entry], step: Callable[[Entry], list[Entry]]) -> list[Entry]:
        """The entries and all that is reached from them by `step`, in the order of the file."""
        seen: set[str] = set()
        ahead = list(entries)
        while ahead:
            entry = ahead.pop()
            if entry.name not in seen:
                seen.add(entry.name)
                ahead += step(entry)
        return [entry for name, entry in self._entries.items() if name in seen]

    def may_start(self, entry: Entry) -> bool:
        """Whether each of its dependencies fulfils its condition."""
        awaited = entry.config.depends_on
        if entry.ignore_dependencies:
            # A sleeping server that was started without its dependencies still wakes after those that are wanted.
            awaited = tuple(each for each in awaited if entry.sleepy and self._is_to_run(each.name))
        return all(self._satisfied(each.name, each.condition) for each in awaited)

    def _is_to_run(self, name: str) -> bool:
        entry = self._entries.get(name)
        return entry is not None and not entry.rests

    def _satisfied(self, name: str, condition: str) -> bool:
        entry = self._entries.get(name)
        if entry is None:
            return True
        if condition == "started":
            return entry.answers or entry.started
        if condition == "completed":
            return entry.completed
        # One that is out of rotation is not ready, but its dependents reach it.
        return entry.answers

    def may_stop(self, entry: Entry) -> bool:
        """Whether no dependent has to stop, or to be replaced, before it."""
        if entry.removed and any(
            dependency.name == entry.name
            for other in self._entries.values()
            for worker in other.workers.values()
            for dependency in worker.config.depends_on
        ):
            return False
        return not any(dependent.workers and not dependent.wanted for dependent in self.dependents(entry))
