"""Totals of each server over all its workers, those that have ended included, for this supervisor and the next ones."""

from __future__ import annotations

import json

from poolctl.core.availability import KO, OK, WARN, Availability
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import JournalEvent
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from .takeover.state_store import EncodedTable, StateStore

# Of a server whose routes change often, the oldest are forgotten.
_MOST_ROUTES = 1000


class Totals:
    """Totals over all workers of a server, ended ones included: no counter ever falls.

    By the names of the servers; saved for a successor whenever something was added. Only servers with new figures are
    encoded for that: all of them, at each step of a stop of thousands, would take longer than the stop.
    """

    def __init__(self, core: Core, events: Events, store: StateStore) -> None:
        self._core = core
        self._counters = counters = core.runner.capabilities.counters
        self._store = store
        self._counts: dict[str, Counts] = {}
        self._passed: dict[str, dict[int, int]] = {}  # see tally.passed
        self._wakes: dict[str, int] = {}
        self._added: set[str] = set()
        self._availability: dict[str, Availability] = {}
        self._changed = False
        self._stale: set[str] = set()  # whose figures in the encoded tables are out of date
        self._encoded = {kind: EncodedTable() for kind in ("counts", "passed", "wakes", "availability")}
        self._revision = -1  # of the servers for which the encoded tables hold figures
        if counters is not None:
            counters.add_up = self._add_up
        events.subscribe(self._heard)

    async def resume(self) -> None:
        """Continue the counts of the previous supervisor; before any worker is adopted."""
        kept = await self._store.totals()
        self._counts = {
            name: [tally.bounded(each) for each in (counts + [0] * tally.COUNTED)[: tally.COUNTED]]
            for name, counts in kept.get("counts", {}).items()
        }
        self._passed = {name: dict(counts) for name, counts in kept.get("passed", {}).items()}
        self._wakes = kept.get("wakes", {})
        self._availability = {
            name: Availability.restored(each) for name, each in kept.get("availability", {}).items()
        }
        self._added = set(kept.get("added", ()))
        self._stale.update(self._counts, self._passed, self._wakes, self._availability)

    def of_the_ended(self, entry: Entry) -> Counts:
        """The counts of the server's workers that have ended."""
        return list(self._counts.get(entry.name) or [0] * tally.COUNTED)

    def passed_to_the_ended(self, entry: Entry) -> dict[int, int]:
        """The requests that a gateway passed to the server's ended workers, by route (tally.route_mark)."""
        found = self.by_route_of_the_ended(entry)
        return {mark: count for mark, count in found.items() if tally.is_of_requests(mark)}

    def by_route_of_the_ended(self, entry: Entry) -> dict[int, int]:
        """The requests passed to the server's ended workers, and the errors among them (tally.error_mark), by route."""
        return self._passed.get(entry.name, {})

    def wakes(self, entry: Entry) -> int:
        """How many times a request has woken the server."""
        return self._wakes.get(entry.name, 0)

    def availability(self, entry: Entry) -> Availability:
        """How long the server has been up and down, until now."""
        found = self._availability.setdefault(entry.name, Availability())
        # Changes while there was no supervisor were not noted.
        state, health = entry.state, entry.health.value
        if (found.state, found.health) != (state, health):
            self._stale.add(entry.name)
        found.note(self._core.clock.monotonic(), state=state, health=health)
        return found

    def moved(self, entry: Entry, before: str, after: str) -> None:
        """Record that the server changed from one state to another."""
        found = self._availability.setdefault(entry.name, Availability())
        found.note(self._core.clock.monotonic(), state=after, health=entry.health.value)
        if before == "sleeping" and entry.observed.called and entry.wanted:
            self._wakes[entry.name] = self.wakes(entry) + 1
        self._note(entry.name)

    def save(self) -> None:
        """Save the totals for a successor, if they have changed."""
        if not self._changed:
            return
        self._changed = False
        self._forget_the_removed()
        for name in self._stale:
            self._encode(name)
        self._stale.clear()
        # Their pages are kept until this is stored, so that a crash in between adds nothing twice.
        added = self._counters.unsettled if self._counters is not None else []
        members = [b'"%s": %s' % (kind.encode(), table.content()) for kind, table in self._encoded.items()]
        self._store.save_totals(b'{%s, "added": %s}' % (b", ".join(members), json.dumps(added).encode()))
        if self._counters is not None:
            self._counters.settled()
        self._added.clear()

    def _encode(self, name: str) -> None:
        if name in self._counts:
            self._encoded["counts"].put(name, self._counts[name])
        if name in self._passed:
            self._encoded["passed"].put(name, [*self._passed[name].items()])
        if name in self._wakes:
            self._encoded["wakes"].put(name, self._wakes[name])
        if name in self._availability:
            self._encoded["availability"].put(name, self._availability[name].to_dict())

    def _note(self, name: str) -> None:
        self._stale.add(name)
        self._changed = True

    def _heard(self, event: JournalEvent) -> None:
        known = self._availability.get(event.server) if event.kind == "health" else None
        if known is not None and event.state in (OK, WARN, KO):
            known.note(self._core.clock.monotonic(), health=event.state)
            self._note(event.server)

    def _add_up(self, name: str, server: str, counts: Counts) -> None:
        if name in self._added:
            return
        self._added.add(name)
        self._note(server)
        tally.add(self._counts.setdefault(server, [0] * tally.COUNTED), counts)
        for mark, count in tally.by_route(counts).items():
            routes = self._passed.setdefault(server, {})
            routes[mark] = tally.bounded(routes.get(mark, 0) + count)
            if len(routes) > _MOST_ROUTES:
                del routes[next(iter(routes))]

    def _forget_the_removed(self) -> None:
        names = self._core.entries.keys()
        gone = self._stale - names
        if self._revision != self._core.servers.revision:
            self._revision = self._core.servers.revision
            gone |= (self._counts.keys() | self._wakes.keys() | self._availability.keys()) - names
        for name in gone:
            for known in (self._counts, self._passed, self._wakes, self._availability):
                known.pop(name, None)
            for table in self._encoded.values():
                table.remove(name)
