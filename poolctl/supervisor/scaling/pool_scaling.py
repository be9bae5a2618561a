"""The scaling of a pool's servers; its modules are imported when a server has triggers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolctl.core.core import Core
from poolctl.core.decision_input import ASLEEP
from poolctl.core.server_entry import Entry
from poolctl.monitor.event_queue import Events

if TYPE_CHECKING:
    from .autoscaler import Autoscaler

# Modules that a start imports only for a configuration with triggers.
MODULES = ("poolctl.supervisor.scaling.autoscaler",)


class PoolScaling:
    """Watches the servers with triggers from now on; with `calm` their numbers of workers stay as they are."""

    def __init__(self, core: Core, events: Events, *, calm: bool = False) -> None:
        self._core = core
        self._events = events
        self._autoscaler: Autoscaler | None = None
        if calm:
            return
        core.listeners.add(self._look)
        for entry in core.entries.values():
            self._look(entry)

    def demand(self, server_name: str, count: int) -> int:
        """Note the number of requests that wait for the server; returns its planned number of workers. Does not block.

        Wakes a server that sleeps. The requests count as its queue until they are older than the time over which its
        figures are averaged. Returns 0 for a server that no request starts, because it is stopped, failed or disabled,
        or kept asleep by a window. Raises KeyError for an unknown name.
        """
        entry = self._core.entries[server_name]
        if entry.rests or entry.kept == ASLEEP:
            return 0
        self._core.wake(entry)
        if self._autoscaler is not None and entry.scales:
            self._autoscaler.note_demand(entry, count)
        return entry.size

    def close(self) -> None:
        """Stop changing numbers of workers."""
        self._core.listeners.discard(self._look)
        if self._autoscaler is not None:
            self._autoscaler.close()

    def _look(self, entry: Entry) -> None:
        if not entry.config.scale.is_automatic:
            return
        if self._autoscaler is None:
            from .autoscaler import Autoscaler

            self._autoscaler = Autoscaler(self._core, self._events)
        self._autoscaler.watch(entry)
