"""The metrics of a pool: their names, and where each comes from."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable

from poolctl import __version__
from poolctl.config import masked_text
from poolctl.control.answers import About
from poolctl.core.availability import KO, OK, UNKNOWN, WARN, Availability
from poolctl.core.core import Core
from poolctl.core.state import Worker
from poolctl.core.view import LEAVING
from poolctl.monitor.exposition import Family, render
from poolctl.platform import cpu_seconds, memory_bytes
from poolctl.selection.selector import Selector
from poolctl.states import State
from poolctl.worker import tally

from ..verbs.verb import selected
from .statistics import BOUNDS_SECONDS, ServerSnapshot, Statistics, Usage, loop_lag_seconds

_TIMES = {
    "uptime": "How long the server has answered.",
    "downtime": "How long it has not, though it was not turned off.",
    "risetime": "How long it was on its way from ko to ok.",
    "falltime": "How long it was on its way from ok to ko.",
}
_TURNS = {
    "rise": "How often the server began to answer.",
    "fall": "How often it ceased to, though it was not turned off.",
}


class PoolMetrics:
    """The metrics of one core; `identity` is that of its daemon."""

    def __init__(self, core: Core, statistics: Statistics, identity: About) -> None:
        self._core = core
        self._statistics = statistics
        self._identity = identity

    async def text(self, openmetrics: bool = False, selector: Selector | None = None) -> str:
        """The pool and its servers as they are now, or the selected ones."""
        entries = list(self._core.entries.values()) if selector is None else selected(self._core, selector)
        seen = await self._statistics.look(entries)
        families: list[Family] = []
        for part in (self._pool, _states, self._monitor, _requests, _workers):
            families += part(seen)
            await asyncio.sleep(0)
        # For a thousand servers this makes four megabytes of text: in a thread, so that the loop goes on.
        return await asyncio.to_thread(render, families, openmetrics=openmetrics)

    def _pool(self, seen: list[ServerSnapshot]) -> Iterable[Family]:
        info = Family("poolctl_build", "info", "Which pool this is, and the version of poolctl that runs it.")
        info.add(1, pool=self._identity.name, version=__version__, python=self._identity.python)
        yield info
        servers = Family("poolctl_servers", "gauge", "Servers of the pool by their state.")
        states = [each.entry.state for each in seen]
        for state in State:
            servers.add(states.count(state.value), state=state.value)
        yield servers
        memory = Family(
            "poolctl_process_memory_bytes", "gauge", "Memory (PSS) of the pool's own processes.", "bytes"
        )
        spent = Family(
            "poolctl_process_cpu_seconds", "counter", "Processor time of the pool's own processes.", "seconds"
        )
        for process, pid in (("supervisor", os.getpid()), ("keeper", self._identity.keeper_pid)):
            memory.add(memory_bytes(pid), process=process)
            spent.add(cpu_seconds(pid), process=process)
        yield from (memory, spent)

    def _monitor(self, seen: list[ServerSnapshot]) -> Iterable[Family]:
        """The status of each server, and its availability."""
        known = [(each.entry.name, self._statistics.totals.availability(each.entry)) for each in seen]
        status = Family(
            "poolctl_monitor_status",
            "gauge",
            "1 for the status of the server: ok, warn, ko, or unknown while it is off.",
        )
        for name, found in known:
            for value in (OK, WARN, KO, UNKNOWN):
                status.add(int(found.status == value), server=name, status=value)
        yield status
        latency = Family(
            "poolctl_monitor_latency_seconds",
            "gauge",
            "How long the newest probe of the server took.",
            "seconds",
        )
        for each in seen:
            latency.add(self._core.health.latency_seconds(each.entry), server=each.entry.name)
        yield latency
        yield from _availability(known)
        expiration = Family(
            "poolctl_certificate_expiration_timestamp_seconds",
            "gauge",
            "When the certificate that the server uses expires, in seconds since 1970 (UTC).",
            "seconds",
        )
        for each in seen:
            if each.entry.workers:
                expiration.add(each.entry.certificate_ends, server=each.entry.name)
        yield expiration
        wakes = Family("poolctl_server_wakes", "counter", "How often a request has woken the server.")
        for each in seen:
            wakes.add(self._statistics.totals.wakes(each.entry), server=each.entry.name)
        yield wakes


def _availability(known: list[tuple[str, Availability]]) -> Iterable[Family]:
    """For how long servers have answered, and how often that has changed."""
    for what, said in _TIMES.items():
        times = Family(f"poolctl_monitor_{what}_seconds", "counter", said, "seconds")
        for name, found in known:
            times.add(round(getattr(found, what), 3), server=name)
        yield times
    for what, said in _TURNS.items():
        turns = Family(f"poolctl_monitor_{what}s", "counter", said)
        for name, found in known:
            turns.add(getattr(found, what), server=name)
        yield turns
    sli = Family(
        "poolctl_monitor_sli_ratio",
        "gauge",
        "The part of its time that it has answered, from 0 to 1.",
        "ratio",
    )
    for name, found in known:
        sli.add(found.sli, server=name)
    yield sli


def _states(seen: list[ServerSnapshot]) -> Iterable[Family]:
    info = Family("poolctl_server", "info", "What the server is: its addresses and tags.")
    state = Family("poolctl_server_state", "gauge", "1 for the state that the server is in.")
    ready = Family("poolctl_server_ready", "gauge", "Whether the server answers.")
    wanted = Family("poolctl_server_workers_wanted", "gauge", "How many workers the server is to have.")
    workers = Family("poolctl_server_workers", "gauge", "How many workers the server has.")
    restarts = Family(
        "poolctl_server_restarts", "counter", "How often the server was restarted, ordered or not."
    )
    failures = Family(
        "poolctl_server_failures", "counter", "How often a start or a stop of the server has failed."
    )
    memory = Family("poolctl_server_memory_bytes", "gauge", "Memory (PSS) of the server's workers.", "bytes")
    for each in seen:
        entry, name = each.entry, each.entry.name
        now = entry.state
        info.add(
            1,
            server=name,
            bind=entry.config.key,
            expose=masked_text(entry.config.expose),
            tags=",".join(entry.config.tags),
        )
        for value in State:
            state.add(int(now == value.value), server=name, state=value.value)
        ready.add(int(entry.ready), server=name)
        wanted.add(entry.size, server=name)
        workers.add(len(each.workers), server=name)
        restarts.add(entry.restarts, server=name)
        failures.add(entry.failures, server=name)
        memory.add(each.memory_bytes, server=name)
    yield from (info, state, ready, wanted, workers, restarts, failures, memory)


def _requests(seen: list[ServerSnapshot]) -> Iterable[Family]:
    started = Family("poolctl_requests", "counter", "Requests that have come.")
    responses = Family(
        "poolctl_responses", "counter", "Responses that have begun, by the class of their status."
    )
    errors = Family(
        "poolctl_request_errors", "counter",
        "What went wrong: 5xx; broken off by the application; disconnected before the end; malformed.",
    )  # fmt: skip
    in_flight = Family("poolctl_requests_in_flight", "gauge", "Requests that are being answered.")
    duration = Family(
        "poolctl_request_duration_seconds",
        "histogram",
        "From the headers of a request to the end of its response.",
        "seconds",
    )
    open_ = Family("poolctl_open_connections", "gauge", "Connections that are open.")
    accepted = Family(
        "poolctl_connections",
        "counter",
        "Connections that a worker has accepted, or taken over from another.",
    )
    sockets = Family("poolctl_open_websockets", "gauge", "WebSockets that are open.")
    upgraded = Family("poolctl_websockets", "counter", "Connections that became WebSockets.")
    for each in seen:
        if each.entry.config.command:
            continue  # requests to a program are not counted
        name, counts = each.entry.name, each.total
        started.add(counts[tally.STARTED], server=name)
        for digit in range(1, 6):
            responses.add(counts[tally.STATUS + digit], server=name, code=f"{digit}xx")
        for reason, slot in _REASONS.items():
            errors.add(counts[slot], server=name, reason=reason)
        in_flight.add(tally.in_flight(counts), server=name)
        buckets = counts[tally.BUCKETS : tally.COUNTED]
        duration.spread(BOUNDS_SECONDS, buckets, counts[tally.LATENCY_NS] / 1e9, server=name)
        open_.add(counts[tally.OPEN_CONNECTIONS], server=name)
        accepted.add(counts[tally.CONNECTIONS], server=name)
        sockets.add(counts[tally.OPEN_WEBSOCKETS], server=name)
        upgraded.add(counts[tally.WEBSOCKETS], server=name)
    yield from (started, responses, errors, in_flight, duration, open_, accepted, sockets, upgraded)


_REASONS = {
    "5xx": tally.STATUS + 5,
    "broken": tally.BROKEN,
    "disconnected": tally.DISCONNECTED,
    "malformed": tally.MALFORMED,
}


def _workers(seen: list[ServerSnapshot]) -> Iterable[Family]:
    info = Family("poolctl_worker", "info", "The process of the worker.")
    memory = Family("poolctl_worker_memory_bytes", "gauge", "Memory (PSS) of the worker.", "bytes")
    spent = Family("poolctl_worker_cpu_seconds", "counter", "Processor time of the worker.", "seconds")
    lag = Family(
        "poolctl_worker_event_loop_lag_seconds",
        "gauge",
        "How late the worker's event loop was at its newest heartbeat.",
        "seconds",
    )
    requests = Family("poolctl_worker_requests", "counter", "Requests that have come to the worker.")
    in_flight = Family("poolctl_worker_requests_in_flight", "gauge", "Requests that the worker is answering.")
    open_ = Family("poolctl_worker_open_connections", "gauge", "Connections of the worker that are open.")
    for each in seen:
        for worker, counts, usage in _staying(each):
            labels = {"server": each.entry.name, "worker": str(worker.index)}
            pid = worker.placement.pid if worker.placement is not None else None
            if pid is not None:
                info.add(1, **labels, pid=str(pid), generation=str(worker.generation))
                memory.add(usage.memory_bytes, **labels)
                spent.add(cpu_seconds(pid), **labels)
            lag.add(loop_lag_seconds(counts), **labels)
            if counts is not None:
                requests.add(counts[tally.STARTED], **labels)
                in_flight.add(tally.in_flight(counts), **labels)
                open_.add(counts[tally.OPEN_CONNECTIONS], **labels)
    yield from (info, memory, spent, lag, requests, in_flight, open_)


def _staying(seen: ServerSnapshot) -> Iterable[tuple[Worker, tally.Counts | None, Usage]]:
    """One worker for each index: while it is being replaced, the one that stays."""
    places: dict[int, tuple[Worker, tally.Counts | None, Usage]] = {}
    for found in sorted(seen.workers, key=lambda each: (each[0].phase not in LEAVING, each[0].generation)):
        places[found[0].index] = found
    return places.values()
