"""Samples of a server's load."""

from __future__ import annotations

from collections.abc import Iterable

from poolctl.core.core import Core
from poolctl.core.decide import Phase
from poolctl.core.server_entry import Entry
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ._autoscale import Load
from ._triggers import TRIGGERS, Sample


class ServerLoad:
    """Samples of one server with these triggers, from `now` on."""

    def __init__(self, core: Core, triggers: Iterable[str], now: float) -> None:
        capabilities = core.runner.capabilities
        self._counters = capabilities.counters
        self._triggers = {name: TRIGGERS[name](capabilities) for name in triggers}
        self._seen: dict[str, Counts] = {}  # by worker id
        self._at = now

    def sample(self, entry: Entry, now: float) -> Load:
        """The load now, and since the previous sample; new workers have no figures yet."""
        seen: dict[str, Counts] = {}
        counted = [0] * tally.COUNTED
        in_flight, serves = 0, False
        for worker in entry.observed.workers.values():
            if worker.phase is not Phase.READY or worker.placement is None or self._counters is None:
                continue
            serves = serves or not worker.ko
            found = self._counters.counts(worker.placement)
            if found is None:
                continue
            seen[worker.id] = counts = found[: tally.COUNTED]
            in_flight += tally.in_flight(counts)
            before = self._seen.get(worker.id)
            if before is not None and before != counts:
                # An application can overwrite its counts.
                for slot, count in enumerate(counts):
                    counted[slot] += max(0, count - before[slot])
        self._seen = seen
        sample = Sample(entry, now, now - self._at, in_flight, counted)
        self._at = now
        figures = {name: trigger.measure(sample) for name, trigger in self._triggers.items()}
        return Load(now, len(seen), serves, figures=figures)
