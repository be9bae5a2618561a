"""The servers of the pool: by name, in the order of the file, with their addresses and their dependencies."""

from __future__ import annotations

from collections.abc import Iterable

from poolctl.config import ServerConfig

from .addresses import Addresses
from .dependencies import DependencyGraph
from .desired import Desired
from .state import Entry


class Registry:
    """The servers, including those that are leaving. Starts and stops nothing.

    `can_sleep`: their runner can watch listeners of servers without workers.
    """

    def __init__(
        self, servers: Iterable[ServerConfig], addresses: Addresses, *, can_sleep: bool = True
    ) -> None:
        self._addresses = addresses
        self._can_sleep = can_sleep
        self.entries: dict[str, Entry] = {
            server.name: Entry(server, can_sleep=can_sleep) for server in servers
        }
        for entry in self.entries.values():
            addresses.claim(entry)
        self.graph = DependencyGraph(self.entries)
        self.removed: dict[str, Entry] = {}
        self.revision = 0  # how many times the configuration of a server has changed

    def add(self, config: ServerConfig) -> Entry:
        """Add a server; one that is leaving under the same name comes back as this one."""
        entry = self.entries.get(config.name)
        if entry is not None:
            entry.become(Desired.IDLE)
            self.removed.pop(entry.name, None)
            self.configure(entry, config)
            return entry
        self.revision += 1
        entry = self.entries[config.name] = Entry(config, can_sleep=self._can_sleep)
        self.graph.add(entry)
        self._addresses.claim(entry)
        return entry

    def remove(self, entry: Entry) -> None:
        """Let the server leave; it is forgotten when its last worker has ended."""
        entry.become(Desired.REMOVED)
        self.removed[entry.name] = entry
        self._addresses.leave(entry)

    def configure(self, entry: Entry, config: ServerConfig) -> None:
        """Give the server this configuration of the same name, which takes effect as its workers are replaced."""
        self.revision += 1
        self.graph.remove(entry)
        self._addresses.waive(entry)
        entry.config = config
        self.graph.add(entry)
        self._addresses.claim(entry)

    def forget(self, entry: Entry) -> None:
        """Forget a server that has left."""
        self.revision += 1
        self.graph.remove(entry)
        self._addresses.waive(entry)
        del self.entries[entry.name]
        self.removed.pop(entry.name, None)

    def revise(self) -> None:
        """Note that the configuration has changed without a change of an entry, so that it is saved for a successor."""
        self.revision += 1

    def arrange(self, names: Iterable[str]) -> None:
        """Put the servers into this order; those that are not named follow."""
        first = {name: self.entries[name] for name in names if name in self.entries}
        rest = {name: entry for name, entry in self.entries.items() if name not in first}
        self.entries.clear()
        self.entries.update(first | rest)

    @property
    def unused(self) -> bool:
        """No server runs, is wanted, or has ever run."""
        return not any(
            entry.wanted or entry.workers or entry.generation > 1 or entry.failures
            for entry in self.entries.values()
        )
