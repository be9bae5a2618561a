"""Counts of requests, errors and bytes by route and target: sums of the counters of successive HAProxy processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

# Why a request failed: no connection; a late, incomplete or invalid response; refused by a rule, or for lack of a
# target; aborted by the client.
CONNECT, RESPONSE, REFUSED, DISCONNECTED = REASONS = ("connect", "response", "refused", "disconnected")


class Traffic:
    """The counts of one route, stream or target. They only increase."""

    def __init__(self) -> None:
        self.requests = self.bytes_in = self.bytes_out = 0
        self.statuses = [0] * 6  # by the first digit
        self.errors = dict.fromkeys(REASONS, 0)

    @property
    def failures(self) -> int:
        """The number of responses with 5xx, by the target or because it did not respond."""
        return self.statuses[5]

    def add(self, other: Traffic) -> None:
        """Add the counts of `other`."""
        self.requests += other.requests
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out
        for digit, count in enumerate(other.statuses):
            self.statuses[digit] += count
        for reason, count in other.errors.items():
            self.errors[reason] += count


class TrafficCounts:
    """The traffic of all routes, streams and targets, and the requests without a route, by the status."""

    def __init__(self) -> None:
        self.routes: defaultdict[str, Traffic] = defaultdict(Traffic)
        self.streams: defaultdict[str, Traffic] = defaultdict(Traffic)
        self.backends: defaultdict[str, Traffic] = defaultdict(Traffic)
        self.refused: defaultdict[str, int] = defaultdict(int)
        self.total = Traffic()  # of all routes and streams, also those that are no longer configured

    def retain_only(self, routes: Iterable[str], streams: Iterable[str], backends: Iterable[str]) -> None:
        """Remove the counts of all other routes, streams and targets."""
        for counts, keys in ((self.routes, routes), (self.streams, streams), (self.backends, backends)):
            for key in counts.keys() - {*keys}:
                del counts[key]
