"""The history of each server's and the pool's figures for charts: one hour by minutes, one day by quarter hours.

Each of the 60 + 96 time slots has five numbers of four bytes: 3,120 bytes per server. The counters needed to compute
the current slots take 0.8 KB more. The slots are saved each minute for a new supervisor: 3.1 MB for 1,000 servers.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Iterable, Sequence
from math import isnan, nan
from typing import NamedTuple

from poolctl.core.core import Core
from poolctl.monitor.metrics import GiveSamples, ServerSnapshot
from poolctl.runners.process_link import LinkLost
from poolctl.selection.selector import SelectorError
from poolctl.supervisor.statistics import error_rate, latency_seconds, request_rate
from poolctl.supervisor.takeover.state_store import StateStore
from poolctl.supervisor.verbs.verb import Call, selected
from poolctl.worker.tally import Counts

from ._answers import HistoryResult

FIGURES = ("requests_per_second", "errors_per_second", "latency_p99_seconds", "memory_bytes", "restarts")
POOL = ""  # the key of the whole pool's figures; no server has an empty name
_LAYOUT = 2  # the version of the saved form
_STORED = "history"  # the saved figures in the keeper's store
_DIGITS = 6


class HistorySpan(NamedTuple):
    name: str
    slot_seconds: int
    slots: int


HOUR, DAY = HistorySpan("hour", 60, 60), HistorySpan("day", 900, 96)
SPANS = (HOUR, DAY)


class _SlotStartCounters(NamedTuple):
    """The counters of a server at the beginning of a time slot."""

    at: float
    counts: array[int]
    restarts: int


class FigureRing:
    """Each server's figures over one time span, such as an hour, in equal slots. Times are on the monotonic clock."""

    def __init__(self, span: HistorySpan) -> None:
        self.span = span
        self.values: dict[str, array[float]] = {}  # the figures of one slot after another, the newest last
        self.slot: int | None = None  # the current slot; it has no figures yet
        self._slot_starts: dict[str, _SlotStartCounters] = {}

    def add(self, now: float, snapshots: Iterable[ServerSnapshot]) -> bool:
        """Record the servers' figures at time `now`; returns whether a time slot has ended and was stored."""
        slot, previous_slot = int(now // self.span.slot_seconds), self.slot
        ended = previous_slot is not None and slot > previous_slot
        if previous_slot is None or slot > previous_slot:
            if previous_slot is not None:
                self._store_ended_slot(now, snapshots)
                # In skipped slots no supervisor was running, so their figures are unknown.
                skipped = _UNKNOWN * min(slot - previous_slot - 1, self.span.slots)
                for name in self.values:
                    self._add(name, skipped)
            self.slot = slot
            self._slot_starts.clear()
        for server in snapshots:
            entry = server.entry
            if entry.name not in self._slot_starts:
                counts = array("q", server.total)
                self._slot_starts[entry.name] = _SlotStartCounters(now, counts, entry.observed.restarts)
        return ended

    def series(self, name: str) -> dict[str, list[float | None]]:
        """Return {figure: [value per ended time slot, oldest first]} of a server or POOL. An unknown value is None."""
        values = self.values.get(name, array("f"))[len(FIGURES) :]
        return {
            figure: [None if isnan(value) else round(value, _DIGITS) for value in values[at :: len(FIGURES)]]
            for at, figure in enumerate(FIGURES)
        }

    def forget_others(self, names: Iterable[str]) -> None:
        """Drop all servers that are not in this collection."""
        for name in self.values.keys() - {POOL, *names}:
            del self.values[name]

    def _store_ended_slot(self, now: float, snapshots: Iterable[ServerSnapshot]) -> None:
        slot_starts = self._slot_starts
        figures = {
            server.entry.name: _figures(server, slot_starts[server.entry.name], now)
            for server in snapshots
            if server.entry.name in slot_starts
        }
        for name in {*self.values, *figures} - {POOL}:
            self._add(name, figures.get(name, _UNKNOWN))
        self._add(POOL, _pool_figures([*figures.values()]))

    def _add(self, name: str, figures: Sequence[float]) -> None:
        values = self.values.get(name)
        if values is None:
            values = self.values[name] = array("f", [nan]) * (self.span.slots * len(FIGURES))
        values.extend(figures)
        del values[: len(figures)]


_UNKNOWN = (nan,) * len(FIGURES)


def _figures(seen: ServerSnapshot, begun: _SlotStartCounters, now: float) -> tuple[float, ...]:
    """Return a server's figures for the time slot from `begun` to `now`, in the order of FIGURES; nan if unknown."""
    before: Counts = begun.counts  # type: ignore[assignment]
    seconds = now - begun.at
    latency = latency_seconds(seen.total, before, 0.99) if seen.counted else None
    return (
        request_rate(before, seen.total, seconds) if seen.counted else nan,
        error_rate(before, seen.total, seconds) if seen.counted else nan,
        nan if latency is None else latency,
        nan if seen.memory_bytes is None else seen.memory_bytes,
        seen.entry.observed.restarts - begun.restarts,
    )


def _pool_figures(figures: Sequence[Sequence[float]]) -> list[float]:
    """The pool's figures, in the order of FIGURES: the maximum latency, and sums of all others."""
    totals = []
    for at, name in enumerate(FIGURES):
        values = [figure[at] for figure in figures if not isnan(figure[at])]
        total = max if name == "latency_p99_seconds" else sum
        totals.append(total(values) if values else nan)
    return totals


class FigureRings:
    def __init__(self) -> None:
        self.rings = {span.name: FigureRing(span) for span in SPANS}

    def add(self, now: float, seen: Sequence[ServerSnapshot]) -> bool:
        """Record the figures of all servers at this time. Returns whether there is something new to save."""
        ended = [ring.add(now, seen) for ring in self.rings.values()]
        if any(ended):
            for ring in self.rings.values():
                ring.forget_others(server.entry.name for server in seen)
        return any(ended)

    def to_bytes(self) -> bytes:
        """Return the figures of all completed time slots as bytes, which `restore` reads."""
        head, parts = [], []
        for ring in self.rings.values():
            head.append([*ring.span, ring.slot, list(ring.values)])
            parts += [values.tobytes() for values in ring.values.values()]
        return b"".join([json.dumps([_LAYOUT, FIGURES, head]).encode(), b"\n", *parts])

    def try_restore(self, content: bytes) -> None:
        """Continue with the content that the previous supervisor saved, unless its layout differs."""
        first, _, rest = content.partition(b"\n")
        try:
            layout, figures, head = json.loads(first)
            spans = [[*ring[:3]] for ring in head]
        except (ValueError, TypeError):
            return
        if (layout, tuple(figures), spans) != (_LAYOUT, FIGURES, [[*span] for span in SPANS]):
            return
        at = 0
        for name, _, slots, slot, names in head:
            ring, size = self.rings[name], 4 * slots * len(FIGURES)
            ring.slot = slot
            for server in names:
                ring.values[server] = array("f", rest[at : at + size])
                at += size


class FigureHistory:
    """The history of a pool's figures: collected from samples while enabled, and saved for the next supervisor."""

    def __init__(self, core: Core, samples: GiveSamples, store: StateStore) -> None:
        self._core = core
        self._samples = samples
        self._store = store
        self._rings: FigureRings | None = None
        self._resuming: asyncio.Task[None] | None = None

    def enable_or_clear(self, enabled: bool) -> None:
        """Start collecting, continuing the figures that the previous supervisor saved; or stop, and delete them all."""
        if enabled and self._rings is None:
            self._rings = FigureRings()
            self._resuming = asyncio.ensure_future(self._begin(self._rings))
        elif not enabled and self._rings is not None:
            self._rings = None
            self._samples(None)
            self._store.store_for_successor(_STORED, b"")

    async def _begin(self, rings: FigureRings) -> None:
        try:
            saved = await self._store.read(_STORED)
        except LinkLost:  # the keeper is being replaced
            saved = None
        if rings is self._rings:
            rings.try_restore(saved or b"")
            self._samples(self._add_sample)

    def _add_sample(self, now: float, seen: Sequence[ServerSnapshot]) -> None:
        if self._rings is not None and self._rings.add(now, seen):
            self._store.store_for_successor(_STORED, self._rings.to_bytes())

    async def verb(self, call: Call) -> HistoryResult:
        """Return the figures of one server or the pool in the last hour or day; empty while the history is disabled."""
        is_all = call.selector.selects_all
        names = [POOL] if is_all else [server.name for server in selected(self._core, call.selector)]
        span = next((span for span in SPANS if span.name == call.options.get("span", HOUR.name)), None)
        if span is None or len(names) != 1:
            raise SelectorError("history takes one server or the whole pool, and a span of hour or day")
        ring = None if self._rings is None else self._rings.rings[span.name]
        return HistoryResult(
            slot_seconds=float(span.slot_seconds),
            slots=span.slots,
            series={} if ring is None else ring.series(names[0]),
        )
