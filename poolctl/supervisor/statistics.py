"""Statistics of each server over all its workers: requests, usage, history; and the verbs `stats` and `monitor`.

Totals include exited workers, and are saved for the next supervisor.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from poolctl.control import server_answers
from poolctl.core.core import Core
from poolctl.core.server_entry import Availability, Entry
from poolctl.core.worker import Worker
from poolctl.json_form import Table, from_json, to_json
from poolctl.keeper import fd_store
from poolctl.monitor import metrics
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import JournalEvent
from poolctl.monitor.metrics import BOUNDS_SECONDS, INTERVAL_SECONDS, Figure, ServerSnapshot, worker_pids
from poolctl.runners.local.tallies import Tallies
from poolctl.runners.process_usage import Usage
from poolctl.states import Status
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from .takeover.state_store import StateStore
from .verbs.verb import Call, complaint_of, items, selected

HISTORY_LENGTH = 60  # intervals
SETTLED_SECONDS = 0.015
WATCHED_SECONDS = 60.0
_WINDOW = 5  # the number of intervals over which current rates and latencies are computed
# Figures that are unknown for programs, because poolctl does not see their requests.
_UNCOUNTED: Table = dict.fromkeys(
    ("requests_total", "requests_per_second", "responses_total", "errors_total", "disconnects_total", "in_flight",
     "connections", "connections_total", "websockets"),
)  # fmt: skip


class Totals:
    """Totals of each server over all workers, including exited ones, so that no counter ever decreases.

    They are saved for the next supervisor after each change; until then, `tallies` holds the counts of exited workers.
    """

    def __init__(self, core: Core, tallies: Tallies, events: EventBus, store: StateStore) -> None:
        self._core = core
        self._tallies = tallies
        self._store = store
        self._counts: dict[str, Counts] = {}
        self._wakes: dict[str, int] = {}
        self._added: set[str] = set()
        self._availability: dict[str, Availability] = {}
        self._changed = False
        events.subscribe(self._note_health_event)

    async def resume(self) -> None:
        """Continue the counts of the previous supervisor; called before any worker is adopted."""
        totals: Table = json.loads(await self._store.read(fd_store.TOTALS) or b"{}")
        self._counts = {
            name: [tally.bounded(count) for count in (counts + [0] * tally.COUNTED)[: tally.COUNTED]]
            for name, counts in totals.get("counts", {}).items()
        }
        self._wakes = totals.get("wakes", {})
        self._availability = {
            name: from_json(Availability, table) for name, table in totals.get("availability", {}).items()
        }
        self._added = set(totals.get("added", ()))

    def counts_of_ended_workers(self, entry: Entry) -> Counts:
        """The total counts of the server's exited workers."""
        return list(self._counts.get(entry.name) or [0] * tally.COUNTED)

    def wakes(self, entry: Entry) -> int:
        """The number of times that a request has woken the sleeping server."""
        return self._wakes.get(entry.name, 0)

    def availability(self, entry: Entry) -> Availability:
        """How long the server has been up and down so far."""
        availability = self._availability.setdefault(entry.name, Availability())
        # Changes that happened without a supervisor have not been noted.
        availability.note(self._core.clock.monotonic(), state=entry.state, health=entry.health.value)
        return availability

    def record_state_change(self, entry: Entry, before: str, after: str) -> None:
        """Record that the server changed from one state to another."""
        availability = self._availability.setdefault(entry.name, Availability())
        availability.note(self._core.clock.monotonic(), state=after, health=entry.health.value)
        if before == "sleeping" and entry.observed.has_pending_request and entry.wanted:
            self._wakes[entry.name] = self.wakes(entry) + 1
        self._changed = True

    def save(self) -> None:
        """Save the totals for a successor, if they have changed."""
        if not self._changed:
            return
        self._changed = False
        for by_name in (self._counts, self._wakes, self._availability):
            for name in by_name.keys() - self._core.entries.keys():
                del by_name[name]
        totals = {
            "counts": self._counts,
            "wakes": self._wakes,
            "availability": {
                name: to_json(availability) for name, availability in self._availability.items()
            },
            # The keeper holds exited workers' pages until the totals are stored, so that a crash counts them once.
            "added": self._tallies.unsaved_workers,
        }
        self._store.store_for_successor(fd_store.TOTALS, json.dumps(totals).encode())
        self._tallies.discard_saved_counts()
        self._added.clear()

    def _note_health_event(self, event: JournalEvent) -> None:
        availability = self._availability.get(event.server) if event.kind == "health" else None
        if availability is not None and event.state in (Status.OK, Status.WARN, Status.KO):
            availability.note(self._core.clock.monotonic(), health=event.state)
            self._changed = True

    def add_up(self, server: str, worker: str, counts: Counts) -> None:
        """Add the final counts of a worker that has exited, unless they have been added."""
        if worker in self._added:
            return
        self._added.add(worker)
        self._changed = True
        tally.add(self._counts.setdefault(server, [0] * tally.COUNTED), counts)


class ServerHistory:
    """A server's request and error rates, latencies and memory in the last intervals, and its latest counts."""

    def __init__(self) -> None:
        self.counts: deque[tuple[float, Counts]] = deque(maxlen=_WINDOW + 1)
        self.requests_per_second: deque[float] = deque(maxlen=HISTORY_LENGTH)
        self.errors_per_second: deque[float] = deque(maxlen=HISTORY_LENGTH)
        self.latency_p99_seconds: deque[Figure] = deque(maxlen=HISTORY_LENGTH)
        self.memory_bytes: deque[int | None] = deque(maxlen=HISTORY_LENGTH)

    def add_sample(self, now: float, snapshot: ServerSnapshot) -> None:
        """Add the rates since the last sample; the first call only stores the counts, for comparison with the next."""
        if self.counts:
            at, before = self.counts[-1]
            self.requests_per_second.append(request_rate(before, snapshot.total, now - at))
            self.errors_per_second.append(error_rate(before, snapshot.total, now - at))
            self.latency_p99_seconds.append(latency_seconds(snapshot.total, before, 0.99))
            self.memory_bytes.append(snapshot.memory_bytes)
        self.counts.append((now, snapshot.total))

    def values(self, *, counted: bool, with_errors: bool) -> server_answers.StatsHistory:
        """Return the figures of the last intervals, oldest first; error rates only if `with_errors`.

        Set `counted` to False for a server whose requests are not counted: all rates are then None.
        """
        return server_answers.StatsHistory(
            interval_seconds=INTERVAL_SECONDS,
            requests_per_second=_rounded(self.requests_per_second, counted=counted),
            errors_per_second=_rounded(self.errors_per_second, counted=counted) if with_errors else None,
            latency_p99_seconds=tuple(self.latency_p99_seconds),
            memory_bytes=tuple(self.memory_bytes),
        )


class Statistics:
    """Computes the statistics of servers, such as request rates, latencies, CPU and memory usage.

    Takes samples for a minute after `keep_sampling`, and always while a receiver is set (`send_samples_to`).
    """

    def __init__(self, core: Core, totals: Totals) -> None:
        self._send_sample: metrics.TakeSample | None = None
        self._core = core
        self.totals = totals
        self._measuring: asyncio.Task[None] | None = None
        self._histories: dict[str, ServerHistory] = {}
        self._requested_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    async def stats(self, call: Call) -> server_answers.StatsResult:
        """The verb `stats`: the selected servers with their figures and, on request, the rates of their errors."""
        entries = selected(self._core, call.selector)
        with_errors = bool(call.options.get("errors"))
        self.keep_sampling()
        snapshots = await self.measure(entries)
        return server_answers.StatsResult(
            items=tuple(
                server_answers.MeasuredServer(
                    **vars(item), stats=self.figures(snapshot, with_errors=with_errors)
                )
                for item, snapshot in zip(items(self._core, entries), snapshots, strict=True)
            )
        )

    async def monitor(self, call: Call) -> server_answers.MonitorResult:
        """The verb `monitor`: the last probe results of the selected servers, and their availability.

        Sends no probe.
        """
        entries = selected(self._core, call.selector)
        return server_answers.MonitorResult(
            items=tuple(
                server_answers.MonitoredServer(**vars(item), monitor=self._monitor_report(entry))
                for item, entry in zip(items(self._core, entries), entries, strict=True)
            )
        )

    def _monitor_report(self, entry: Entry) -> server_answers.ServerAvailability:
        availability = self.totals.availability(entry)
        return server_answers.ServerAvailability(
            status=availability.status,
            latency_seconds=self._core.health.latency_seconds(entry),
            uptime_seconds=availability.uptime,
            downtime_seconds=availability.downtime,
            rise_seconds=availability.risetime,
            fall_seconds=availability.falltime,
            rises=availability.rise,
            falls=availability.fall,
            sli=availability.sli,
            message=complaint_of(self._core, entry),
        )

    def keep_sampling(self) -> None:
        """Take samples in the background until one minute from now."""
        self._requested_at = self._core.clock.monotonic()
        if self._timer is None:
            self._sample()

    def send_samples_to(self, take: metrics.TakeSample | None) -> None:
        """Set the function that receives each sample from now on; None removes it."""
        self._send_sample = take
        if take is not None:
            self.keep_sampling()

    def of(self, entry: Entry) -> ServerSnapshot:
        """Return the server's current statistics, with the memory and processor time that were measured last."""
        ended = self.totals.counts_of_ended_workers(entry)
        return metrics.measure_server(entry, ended, self._core.runner)

    def figures(self, snapshot: ServerSnapshot, *, with_errors: bool) -> server_answers.ServerStats:
        """The statistics that the verb `stats` reports, from this snapshot; error rates only if `with_errors`."""
        entry = snapshot.entry
        history = self._histories.setdefault(entry.name, ServerHistory())
        # Without an earlier sample, as for the first request, latencies are computed since the start.
        has_samples = len(history.counts) > 1
        at, before = history.counts[0] if has_samples else (0.0, [0] * tally.COUNTED)
        seconds = self._core.clock.monotonic() - at
        total, counted = snapshot.total, snapshot.counted
        stats = server_answers.ServerStats(
            requests_total=total[tally.STARTED],
            requests_per_second=round(request_rate(before, total, seconds), 3) if has_samples else 0.0,
            responses_total={f"{digit}xx": total[tally.STATUS + digit] for digit in range(1, 6)},
            errors_total=errors(total),
            disconnects_total=total[tally.DISCONNECTED],
            in_flight=tally.in_flight(total),
            connections=total[tally.OPEN_CONNECTIONS],
            connections_total=total[tally.CONNECTIONS],
            websockets=total[tally.OPEN_WEBSOCKETS],
            latency_p50_seconds=latency_seconds(total, before, 0.5),
            latency_p99_seconds=latency_seconds(total, before, 0.99),
            memory_bytes=snapshot.memory_bytes,
            cpu_percent=snapshot.cpu_percent,
            loop_lag_seconds=snapshot.loop_lag_seconds,
            wakes_total=self.totals.wakes(entry),
            restarts_total=entry.observed.restarts,
            counted=counted,
            history=history.values(counted=counted, with_errors=with_errors),
            workers=tuple(
                _worker_stats(worker, counts if counted else None, usage)
                for worker, counts, usage in snapshot.workers
            ),
        )
        if with_errors and counted:
            stats = replace(
                stats, errors_per_second=round(error_rate(before, total, seconds), 3) if has_samples else 0.0
            )
        return stats if counted else replace(stats, **_UNCOUNTED)

    async def measure(self, entries: Sequence[Entry]) -> list[ServerSnapshot]:
        """Take a snapshot of each server, one by one; other tasks of the event loop run in between."""
        await self._core.runner.usages.measure(worker_pids(entries))
        # Wait, because workers write the counts of requests up to now a moment later.
        await asyncio.sleep(SETTLED_SECONDS)
        snapshots = []
        for entry in entries:
            snapshots.append(self.of(entry))
            await asyncio.sleep(0)
        return snapshots

    def _sample(self) -> None:
        now = self._core.clock.monotonic()
        if self._send_sample is None and now - self._requested_at > WATCHED_SECONDS:
            self._timer = None
            self._histories.clear()
            return
        # Set before the sample is taken, so that intervals are exact.
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_SECONDS, self._sample)
        snapshots = []
        for entry in self._core.entries.values():
            snapshot = self.of(entry)
            self._histories.setdefault(entry.name, ServerHistory()).add_sample(now, snapshot)
            snapshots.append(snapshot)
        if self._send_sample is not None:
            self._send_sample(now, snapshots)
        # For the next sample: this one does not wait, so that intervals are exact.
        pids = worker_pids(self._core.entries.values())
        self._measuring = asyncio.ensure_future(self._core.runner.usages.measure(pids))
        for name in self._histories.keys() - self._core.entries.keys():
            del self._histories[name]


def errors(counts: Counts) -> int:
    """The number of responses with a 5xx status, or aborted by the application."""
    return counts[tally.STATUS + 5] + counts[tally.BROKEN]


def latency_seconds(counts: Counts, before: Counts, q: float) -> Figure:
    """The `q` quantile (0 to 1) of the latencies of responses since `before`; None without responses."""
    buckets = [max(0, counts[slot] - before[slot]) for slot in range(tally.BUCKETS, tally.COUNTED)]
    latency = quantile(BOUNDS_SECONDS, buckets, q)
    return None if latency is None else round(latency, 6)


def request_rate(before: Counts, after: Counts, seconds: float) -> float:
    """Requests per second between these counts, which were taken `seconds` apart."""
    return max(0, after[tally.STARTED] - before[tally.STARTED]) / seconds if seconds > 0 else 0.0


def error_rate(before: Counts, after: Counts, seconds: float) -> float:
    """Errors (see `errors`) per second between these counts, which were taken `seconds` apart."""
    return max(0, errors(after) - errors(before)) / seconds if seconds > 0 else 0.0


def _rounded(rates: Iterable[float], *, counted: bool) -> tuple[Figure, ...]:
    return tuple(round(rate, 3) if counted else None for rate in rates)


def _worker_stats(worker: Worker, counts: Counts | None, usage: Usage) -> server_answers.WorkerStats:
    return server_answers.WorkerStats(
        id=worker.id,
        pid=worker.placement.pid if worker.placement is not None else None,
        phase=worker.phase.value,
        memory_bytes=usage.memory_bytes,
        cpu_percent=None if usage.cpu_percent is None else round(usage.cpu_percent, 2),
        loop_lag_seconds=metrics.loop_lag_seconds(counts),
        requests_total=None if counts is None else counts[tally.STARTED],
        errors_total=None if counts is None else errors(counts),
        in_flight=None if counts is None else tally.in_flight(counts),
        connections=None if counts is None else counts[tally.OPEN_CONNECTIONS],
    )


def quantile(bounds: Sequence[float], buckets: Sequence[int], q: float) -> float | None:
    """The `q` quantile (0 to 1) of the values; None without values.

    `buckets` are the numbers of values in the buckets with these upper `bounds`. Computed as in Prometheus: values
    spread evenly within a bucket; values above the last bound count as that bound.
    """
    total = sum(buckets)
    if not total:
        return None
    rank, below, lower = q * total, 0, 0.0
    for bound, count in zip(bounds, buckets, strict=False):
        if count and below + count >= rank:
            return lower + (bound - lower) * max(0.0, rank - below) / count
        below += count
        lower = bound
    return lower
