"""Counts requests, errors, bytes and latencies of proxied traffic, by route and backend.

The counts have the same layout as those of workers (`tally`), so that both can be added. Requests on connections that
were passed to workers are counted only by the workers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable

from poolctl.json_form import Table
from poolctl.worker import tally

# Why a request failed: no connection, closed too early, no answer in time, refused by a limit or without an available
# backend, no valid response.
CONNECT, RESET, TIMEOUT, REFUSED, PROTOCOL = ERRORS = ("connect", "reset", "timeout", "refused", "protocol")
# Used in place of a status: a refused handshake.
TLS = "tls"


class Traffic:
    """The counts of one route or backend, as plain integers. They only increase, except by `undo_start`."""

    def __init__(self) -> None:
        self.slots: tally.Counts = [0] * tally.COUNTED
        self.errors: defaultdict[str, int] = defaultdict(int)
        self.bytes_in = 0  # bodies of requests, and bytes that clients send after an upgrade
        self.bytes_out = 0

    def count_start(self) -> None:
        """Count the beginning of a request. The caller counts its outcome later, for example with `count_response`."""
        self.slots[tally.STARTED] += 1

    def count_response(self, status: int, seconds: float) -> None:
        """Count a complete response with this status, which has ended `seconds` after the request began."""
        slots, latency_ns = self.slots, int(seconds * 1e9)
        slots[tally.LATENCY_NS] += latency_ns
        slots[tally.BUCKETS + bisect_left(tally.BOUNDS_NS, latency_ns)] += 1
        if 100 <= status < 600:
            slots[tally.STATUS + status // 100] += 1

    def count_failure(self, error: str) -> None:
        """Count a request without a complete response; `error` is one of ERRORS."""
        self.slots[tally.BROKEN] += 1
        self.errors[error] += 1

    def count_disconnect(self) -> None:
        """Count a request without a complete response because the client left."""
        self.slots[tally.DISCONNECTED] += 1

    def undo_start(self) -> None:
        """Undo the count of a request that was not sent after all, or was passed to a worker, which counts it."""
        self.slots[tally.STARTED] -= 1

    @property
    def requests(self) -> int:
        """The number of requests that have begun, except those undone by `undo_start`."""
        return self.slots[tally.STARTED]

    @property
    def failures(self) -> int:
        """The number of requests answered with 5xx or not completely answered, except those that the client aborted."""
        return self.slots[tally.BROKEN] + self.slots[tally.STATUS + 5]

    def to_json(self) -> Table:
        """The counts so far; `slots` has the layout of a worker's counts (see `tally`)."""
        return {
            "slots": [*self.slots],
            "errors": {**self.errors},
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }


class TrafficCounts:
    """The traffic of all routes and backends. Callers may keep the objects that `route` and `backend` return."""

    def __init__(self) -> None:
        self._routes: defaultdict[str, Traffic] = defaultdict(Traffic)
        self._backends: defaultdict[str, Traffic] = defaultdict(Traffic)
        self._refused: defaultdict[str, int] = defaultdict(int)
        self._former = [0] * tally.COUNTED  # sums for routes that are no longer configured
        self._former_refused = 0

    def count_refusal(self, code: str, alias: str = "", times: int = 1) -> None:
        """Count a refused request of the route `alias`. With `alias` "", count `times` refusals without a route.

        Refusals without a route are counted by `code`: the response's status, or TLS for a refused handshake.
        """
        if alias:
            traffic = self.route(alias)
            traffic.count_start()
            traffic.count_failure(REFUSED)
        else:
            self._refused[code] += times

    def route(self, alias: str) -> Traffic:
        """The counts of a route. The first call creates them."""
        return self._routes[alias]

    def backend(self, key: str) -> Traffic:
        """The counts of a backend. The first call creates them."""
        return self._backends[key]

    def retain_only(self, routes: Iterable[str], backends: Iterable[str]) -> None:
        """Forget all other routes and backends, which are no longer configured."""
        for alias in self._routes.keys() - {*routes}:
            gone = self._routes.pop(alias)
            tally.add(self._former, gone.slots)
            self._former_refused += gone.errors.get(REFUSED, 0)
        for key in self._backends.keys() - {*backends}:
            del self._backends[key]

    def total(self) -> tally.Counts:
        """The counts of all routes together, which never decrease."""
        # Summed by columns, which stays fast with thousands of routes.
        return [
            sum(column)
            for column in zip(self._former, *(each.slots for each in self._routes.values()), strict=True)
        ]

    @property
    def route_and_other_refusals(self) -> tuple[int, int]:
        """Two numbers: the refused requests of all routes together, and the refusals of requests without a route."""
        of_routes = sum(each.errors.get(REFUSED, 0) for each in self._routes.values())
        return self._former_refused + of_routes, sum(self._refused.values())

    def snapshot(self) -> Table:
        """All counts: `routes` by alias, `backends` by key, and requests `refused` without a route by status."""
        return {
            "refused": {**self._refused},
            "routes": {alias: each.to_json() for alias, each in self._routes.items()},
            "backends": {key: each.to_json() for key, each in self._backends.items()},
        }
