"""The verb `monitor`: how each server is and has been, for a client that wants the snapshots of a Pool."""

from __future__ import annotations

from poolctl.control.messages import Document, result
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.core.state import Entry
from poolctl.pool.select import Selector

from ..verbs.selection import Selection
from .totals import Totals


class Monitoring:
    """Changes nothing, and asks nobody: it is what probes have said, and what was counted."""

    def __init__(self, core: Core, totals: Totals) -> None:
        self._core = core
        self._totals = totals
        self._selection = Selection(core)

    async def monitor(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """The selected servers, each with its snapshot as `"monitor"`."""
        items = self._selection.items(selector)
        entries = self._selection.of(selector)
        for document, entry in zip(items, entries, strict=True):
            document["monitor"] = self._snapshot(entry)
        return result(items)

    def _snapshot(self, entry: Entry) -> Document:
        known = self._totals.availability(entry)
        failure = entry.failure.message if entry.failure is not None and not entry.ready else ""
        return {
            "status": known.status,
            "latency_seconds": self._core.health.latency_seconds(entry),
            "uptime_seconds": known.uptime,
            "downtime_seconds": known.downtime,
            "rise_seconds": known.risetime,
            "fall_seconds": known.falltime,
            "rises": known.rise,
            "falls": known.fall,
            "sli": known.sli,
            "message": self._core.health.complaint(entry) or failure,
        }
