"""Limits of a route or a backend: requests in flight, requests per second, and a bounded queue for the excess.

Without clocks: each call has the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from poolctl.routing.route import Limit

# While a backend's health is warn it gets this share of the requests a second.
WARN_SHARE = 0.5
# Retry-After when only the end of a request in flight can make room.
_BUSY_RETRY_SECONDS = 1.0
# Rounding errors of the times of requests, far below the time between two of them.
_EPSILON_SECONDS = 1e-9


class Limiter:
    """Counts requests in flight, and lets requests through at a rate with a burst.

    The rate is kept by one time, at which the bucket is full again (GCRA, as ATM networks and Redis-cell do): exact,
    and as cheap as a counter. `limit` and `share` (of the rate, 1 in full) may be replaced at any time.
    """

    __slots__ = ("_full_at", "in_flight", "limit", "share")

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.share = 1.0
        self.in_flight = 0
        self._full_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Limiter {self.in_flight}/{self.limit.concurrency or '-'} in flight>"

    def refused_seconds(self, now: float) -> float:
        """0 when a request may begin now, else the time after which to try again.

        Where only the end of another request can help, that is a guess: see `is_full`.
        """
        if self.is_full:
            return _BUSY_RETRY_SECONDS
        rate = self.limit.requests_per_second * self.share
        if rate <= 0:
            return 0.0
        missing = self._full_at - (self.burst - 1) / rate - now
        return missing if missing > _EPSILON_SECONDS else 0.0

    @property
    def is_full(self) -> bool:
        """Whether the maximum number of requests is in flight."""
        return 0 < self.limit.concurrency <= self.in_flight

    @property
    def burst(self) -> float:
        """The number of requests that may begin at once: the limit's `burst`, or else one second's worth."""
        limit = self.limit
        return max(1.0, float(limit.burst) if limit.burst > 0 else limit.requests_per_second * self.share)

    def enter(self, now: float) -> None:
        """Count a request that begins, after `refused_seconds` returned 0."""
        self.in_flight += 1
        rate = self.limit.requests_per_second * self.share
        if rate > 0:
            self._full_at = max(self._full_at, now) + 1 / rate

    def leave(self) -> None:
        """A request has ended."""
        self.in_flight -= 1


W = TypeVar("W")


class WaitQueue(Generic[W]):
    """Waiting requests, first come first served, at most `size`.

    `waiting` is public so that a caller can cheaply check whether it is empty.
    """

    __slots__ = ("size", "waiting")

    def __init__(self, size: int = 0) -> None:
        self.size = size
        # Not a plain dictionary: finding its first entry passes over all that were removed before it.
        self.waiting: OrderedDict[W, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[W]:
        """Iterate over a copy, so that the queue may change meanwhile."""
        return iter([*self.waiting])

    def first(self) -> W | None:
        """The request whose turn is next; None if the queue is empty."""
        return next(iter(self.waiting), None)

    def enter(self, waiter: W) -> bool:
        """Put the request into the queue; False if the queue is full."""
        if len(self.waiting) >= self.size:
            return False
        self.waiting[waiter] = None
        return True

    def leave(self, waiter: W) -> bool:
        """Remove the request from the queue; False if it had left already."""
        if waiter not in self.waiting:
            return False
        del self.waiting[waiter]
        return True
