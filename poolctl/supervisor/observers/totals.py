"""Totals of each server over all its workers, ended ones included: no counter ever falls. The verb `monitor`."""

from __future__ import annotations

from poolctl.control.answers import Monitored, MonitorResult, Observed
from poolctl.control.server import Progress
from poolctl.core.availability import KO, OK, WARN, Availability
from poolctl.core.core import Core
from poolctl.core.state import Entry
from poolctl.monitor.event_queue import Events
from poolctl.runners.protocol import Counters
from poolctl.selection.selector import Selector
from poolctl.values import Table
from poolctl.worker.tally import COUNTED, Counts, add

from ..takeover.state_store import StateStore
from ..verbs.reports import items
from ..verbs.verb import selected


class Totals:
    """By the names of the servers; saved for a successor whenever something was added."""

    def __init__(self, core: Core, events: Events, counters: Counters | None, store: StateStore) -> None:
        self._core = core
        self._counters = counters
        self._store = store
        self._counts: dict[str, Counts] = {}
        self._wakes: dict[str, int] = {}
        self._added: set[str] = set()
        self._availability: dict[str, Availability] = {}
        self._changed = False
        if counters is not None:
            counters.add_up = self._add_up
        events.subscribe(self._heard)

    async def resume(self) -> None:
        """Continue the counts of the previous supervisor; before any worker is adopted."""
        kept = await self._store.totals()
        self._counts = {
            name: (counts + [0] * COUNTED)[:COUNTED] for name, counts in kept.get("counts", {}).items()
        }
        self._wakes = kept.get("wakes", {})
        self._availability = {
            name: Availability.restored(each) for name, each in kept.get("availability", {}).items()
        }
        self._added = set(kept.get("added", ()))

    def of_the_ended(self, entry: Entry) -> Counts:
        """The counts of the server's workers that have ended."""
        return list(self._counts.get(entry.name) or [0] * COUNTED)

    def wakes(self, entry: Entry) -> int:
        """How many times a request has woken the server."""
        return self._wakes.get(entry.name, 0)

    def availability(self, entry: Entry) -> Availability:
        """How long the server has been up and down, until now."""
        found = self._availability.setdefault(entry.name, Availability())
        # Changes while there was no supervisor were not noted.
        found.note(self._core.clock.monotonic(), state=entry.state, health=entry.health.value)
        return found

    def moved(self, entry: Entry, before: str, after: str) -> None:
        """The server went from one state to another."""
        found = self._availability.setdefault(entry.name, Availability())
        found.note(self._core.clock.monotonic(), state=after, health=entry.health.value)
        if before == "sleeping" and entry.called and entry.wanted:
            self._wakes[entry.name] = self.wakes(entry) + 1
        self._changed = True

    def save(self) -> None:
        """Save the totals for a successor, if they have changed."""
        if not self._changed:
            return
        self._changed = False
        self._forget_the_removed()
        document: Table = {
            "counts": self._counts,
            "wakes": self._wakes,
            "availability": {name: each.to_dict() for name, each in self._availability.items()},
            # Their pages are kept until this is stored, so that a crash in between adds nothing twice.
            "added": self._counters.unsettled if self._counters is not None else [],
        }
        self._store.save_totals(document)
        if self._counters is not None:
            self._counters.settled()
        self._added.clear()

    def _heard(self, event: Table) -> None:
        known = self._availability.get(event["server"]) if event["kind"] == "health" else None
        if known is not None and event["after"] in (OK, WARN, KO):
            known.note(self._core.clock.monotonic(), health=event["after"])
            self._changed = True

    def _add_up(self, name: str, server: str, counts: Counts) -> None:
        if name in self._added:
            return
        self._added.add(name)
        self._changed = True
        add(self._counts.setdefault(server, [0] * COUNTED), counts)

    def _forget_the_removed(self) -> None:
        for known in (self._counts, self._wakes, self._availability):
            for name in known.keys() - self._core.entries.keys():
                del known[name]


class Monitoring:
    """Reads the last results of probes and the totals; sends no probe."""

    def __init__(self, core: Core, totals: Totals) -> None:
        self._core = core
        self._totals = totals

    async def monitor(self, selector: Selector, options: Table, progress: Progress) -> MonitorResult:
        """The selected servers, each with its snapshot as `"monitor"`."""
        entries = selected(self._core, selector)
        return MonitorResult(
            items=tuple(
                Monitored.extending(item, monitor=self._snapshot(entry))
                for item, entry in zip(items(self._core, entries), entries, strict=True)
            )
        )

    def _snapshot(self, entry: Entry) -> Observed:
        known = self._totals.availability(entry)
        failure = entry.failure.message if entry.failure is not None and not entry.ready else ""
        return Observed(
            status=known.status,
            latency_seconds=self._core.health.latency_seconds(entry),
            uptime_seconds=known.uptime,
            downtime_seconds=known.downtime,
            rise_seconds=known.risetime,
            fall_seconds=known.falltime,
            rises=known.rise,
            falls=known.fall,
            sli=known.sli,
            message=self._core.health.complaint(entry) or failure,
        )
