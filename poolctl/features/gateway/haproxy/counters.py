"""Reads HAProxy's counters: sums them by route and target, and derives each target's failed requests."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple

from poolctl.routing.route_report import stream_key

from ..supervision.breaker import Results
from ..supervision.counts import CONNECT, DISCONNECTED, REFUSED, RESPONSE, Traffic, TrafficCounts
from .configuration import (
    FAILURES,
    FAILURES_KEY_BYTES,
    NO_ROUTE,
    UNANSWERED,
    WAIT,
    HaproxyBackend,
)

# The commands for `rows_of`: HAProxy's own counters, the responses that count as failures, and HAProxy's own responses
# 502.
READ_COUNTERS = ("show stat", f"show table {FAILURES}", f"show map {UNANSWERED}")
_FRONTEND, _BACKEND = "FRONTEND", "BACKEND"
_STATUSES = ("hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx")
_COUNTS = (
    "stot", "bin", "bout", "dreq", "econ", "eresp", "wretr", "wredis", "cli_abrt", *_STATUSES,
)  # fmt: skip
_BAD_STATUS = "bad_status"  # responses with a status that counts as a failure
_FAILED = "failed"  # requests without a complete response of the server
# All columns that are read come before this number of commas; later columns may contain commas.
_COLUMNS_READ = 50


class CounterRow(NamedTuple):
    """The counters of a frontend, a server, or a whole backend. `counts` are by HAProxy's names.

    `has_queued`: a request has waited for this server.
    """

    proxy: str
    name: str
    open_now: int
    queued: int
    has_queued: bool
    counts: Mapping[str, int]


def rows_of(text: str) -> list[CounterRow]:
    """The rows in the responses to READ_COUNTERS (management guide, "show stat" and "show table")."""
    statistics, _, table = text.partition(f"# table: {FAILURES}")
    bad = dict(re.findall(r"^\S+ key=(\S+) .*\bgpc0=(\d+)", table, re.MULTILINE))
    unanswered = dict(re.findall(r"^\S+ (\S+) (\d+)$", table, re.MULTILINE))
    lines = statistics.lstrip("# ").splitlines()
    columns = lines[0].split(",") if lines else []
    rows = []
    for line in filter(None, lines[1:]):
        values = dict(zip(columns, line.split(",", _COLUMNS_READ), strict=False))
        proxy, name = values["pxname"], values["svname"]
        counts = {column: int(values[column] or 0) for column in _COUNTS}
        bad_gateway = int(unanswered.get(f"{proxy}/{name}", 0))
        # HAProxy counts a request that it answers with 502 twice, but not if the response is invalid.
        counts[_FAILED] = max(counts["eresp"] - bad_gateway, bad_gateway)
        counts[_BAD_STATUS] = int(bad.get(f"{proxy}/{name}"[:FAILURES_KEY_BYTES], 0))
        now, queued, max_queued = (int(values[column] or 0) for column in ("scur", "qcur", "qmax"))
        rows.append(CounterRow(proxy, name, now, queued, max_queued > 0, counts))
    return rows


class CounterReader:
    """Adds the counters of one HAProxy process, which begin at 0, to `counts`.

    Current are `connections`, the clients' open connections; `open_streams`, those of each stream; `in_flight`, the
    forwarded requests by `route_key` and target; and `queued`, the waiting requests by `route_key`. `requests` counts
    the requests of each HTTP route, by alias.
    """

    def __init__(self, counts: TrafficCounts) -> None:
        self.counts = counts
        self.connections = 0
        self.open_streams: Counter[str] = Counter()
        self.in_flight: Counter[tuple[str, str]] = Counter()
        self.queued: Counter[str] = Counter()
        self.requests: dict[str, int] = {}
        self._seen: dict[tuple[str, str], Mapping[str, int]] = {}
        # By server, the repeated attempts to connect for requests that are not counted yet.
        self._repeated: dict[tuple[str, str], int] = {}

    def compare(self, rows: Iterable[CounterRow]) -> list[tuple[CounterRow, Mapping[str, int]]]:
        """Return the rows to add, with their increases since the last call: changed rows, new backends, and busy rows.

        May be called in a thread.
        """
        changed = []
        for row in rows:
            is_new = row.name == _BACKEND and (row.proxy, row.name) not in self._seen
            increases = self._increases(row)
            if increases or row.open_now or row.queued or is_new:
                changed.append((row, increases))
        return changed

    def add(
        self,
        rows: Iterable[tuple[CounterRow, Mapping[str, int]]],
        sections: Mapping[str, HaproxyBackend],
    ) -> dict[tuple[str, str], Results]:
        """Add the rows of `compare` to the counts. `sections` are by name.

        Returns the results since the last call by route and target; targets without results are omitted.
        """
        by_proxy: dict[str, _Section] = {}
        self.connections = 0
        self.open_streams, self.in_flight, self.queued = Counter(), Counter(), Counter()
        results: dict[tuple[str, str], Results] = {}
        for row, increases in rows:
            if row.name == _FRONTEND:
                self.connections += row.open_now
            if row.proxy in sections:
                section = by_proxy[row.proxy] = by_proxy.get(row.proxy) or _Section(sections[row.proxy])
                self._record_current(row, section)
                if increases:
                    self._add(row, section, increases, results)
            elif row.proxy == NO_ROUTE and row.name == _BACKEND:
                self.counts.refused["404"] += increases.get("stot", 0)
        return results

    def _record_current(self, row: CounterRow, section: _Section) -> None:
        if row.name == _FRONTEND:
            self.open_streams[section.alias] = row.open_now
        elif row.name == _BACKEND:
            self.queued[section.key] = row.queued
            self._traffic_of(section)  # metrics show routes without requests, too
        elif row.open_now and (target := section.target_of(row.name)):
            self.in_flight[section.key, target] += row.open_now

    def _add(
        self,
        row: CounterRow,
        section: _Section,
        increases: Mapping[str, int],
        results: dict[tuple[str, str], Results],
    ) -> None:
        if row.name == _BACKEND:
            traffic = _traffic_of_route(increases, section)
            self._traffic_of(section).add(traffic)
            self.counts.total.add(traffic)
            if not section.is_stream:
                self.requests[section.alias] = self.requests.get(section.alias, 0) + increases["stot"]
        elif target := section.target_of(row.name):
            section.unreached += increases["econ"]
            section.failed += increases[_FAILED]
            traffic = _traffic(increases)
            traffic.errors[CONNECT] = increases["econ"] + increases["wredis"]
            self.counts.backends[target].add(traffic)
            # Results of the waiting server (":wait") are not those of the target.
            new = _results(increases, self._failed_connections(row, increases), is_copied=section.is_copied)
            if target == section.keys[row.name] and any(new):
                before = results.get((section.key, target), Results())
                results[section.key, target] = Results(*map(sum, zip(before, new, strict=True)))

    def _failed_connections(self, row: CounterRow, increases: Mapping[str, int]) -> int:
        """The number of requests that failed because no connection to this server could be made.

        HAProxy's `econ` includes requests that waited too long for the server. For a real failure it retries first, and
        counts the retries (`wretr`) before the request, except if the server's certificate has another name.
        """
        if not row.has_queued:
            return increases["econ"]
        server = row.proxy, row.name
        repeated = self._repeated.get(server, 0) + increases["wretr"]
        failed = min(increases["econ"], repeated)
        is_reached = any(increases[status] for status in _STATUSES)
        self._repeated[server] = 0 if is_reached else repeated - failed
        return failed

    def _traffic_of(self, section: _Section) -> Traffic:
        return (self.counts.streams if section.is_stream else self.counts.routes)[section.alias]

    def _increases(self, row: CounterRow) -> Mapping[str, int]:
        """The increases of the row's counters since the last call; empty without any."""
        before = self._seen.get((row.proxy, row.name))
        if row.counts == before:
            return {}
        self._seen[row.proxy, row.name] = row.counts
        if before is None or row.counts["stot"] < before["stot"]:  # a server of this name was added again
            return row.counts if any(row.counts.values()) else {}
        return {name: max(0, count - before[name]) for name, count in row.counts.items()}


class _Section:
    """A backend while its rows are added. `unreached` counts requests that no server got, `failed` those that a server
    failed to answer.
    """

    def __init__(self, backend: HaproxyBackend) -> None:
        self.alias, self.is_stream = backend.alias, backend.is_stream
        self.is_copied = backend.is_stream or backend.passes_tls  # HAProxy sees no responses
        self.key = stream_key(backend.alias) if backend.is_stream else backend.alias
        self.unreached = self.failed = 0
        self._servers = backend.servers

    @cached_property
    def keys(self) -> Mapping[str, str]:
        """The key of each server, by name."""
        return {server.name: server.key for server in self._servers}

    def target_of(self, server: str) -> str:
        """The key of the target that this server is, or at which its connections wait; "" for an unknown server."""
        return self.keys.get(server, "").removesuffix(WAIT)


def _traffic(increases: Mapping[str, int]) -> Traffic:
    traffic = Traffic()
    traffic.requests, traffic.bytes_in, traffic.bytes_out = (
        increases[name] for name in ("stot", "bin", "bout")
    )
    traffic.statuses = [0, *(increases[status] for status in _STATUSES)]
    traffic.errors[RESPONSE], traffic.errors[DISCONNECTED] = increases[_FAILED], increases["cli_abrt"]
    return traffic


def _traffic_of_route(increases: Mapping[str, int], section: _Section) -> Traffic:
    traffic, unreached = _traffic(increases), section.unreached
    traffic.errors[RESPONSE] = section.failed
    traffic.errors[CONNECT] = unreached
    # HAProxy also counts a request as not connected if it waited too long, or if no server was available.
    traffic.errors[REFUSED] = increases["dreq"] + max(0, increases["econ"] - unreached)
    return traffic


def _results(increases: Mapping[str, int], failed_connections: int, *, is_copied: bool) -> Results:
    unreached = increases["wredis"] + failed_connections
    if not is_copied:
        bad = increases[_BAD_STATUS]
        answered = sum(increases[status] for status in _STATUSES) - bad
        return Results(max(0, answered), bad + increases[_FAILED], unreached)
    # HAProxy does not count successful connections; data from the server shows that there was one.
    failures = sum(increases[name] for name in ("econ", "wretr", "wredis", "eresp"))
    answered = max(0, increases["stot"] - failures) if increases["bout"] else 0
    return Results(answered, increases["eresp"], unreached)
