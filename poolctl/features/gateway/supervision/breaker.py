"""Circuit breaker of a route's target: after failures the target gets no requests for a while, then a few to test it.

HAProxy's counters, read about once a second, drive it. A failed connection opens the breaker at once. Other failures
may be due to one client's broken requests: only several in a row or in a window open it, and only if other targets of
the route can take the requests.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from poolctl.routing.route import BreakerRule
from poolctl.routing.route_report import BreakerState

# The number of parts of the window; the oldest part is dropped as a whole.
_SLOTS = 10
NO_CONNECTION = "no connection can be made"


class Results(NamedTuple):
    """The outcomes of requests to a target since the last results.

    `failed` counts timeouts, resets, invalid responses, and statuses that count as failures; `unreached` counts failed
    connections.
    """

    answered: int = 0
    failed: int = 0
    unreached: int = 0


class Breaker:
    """The circuit breaker of one target of a route. `rule` and `why` may be replaced at any time.

    `since` is when it was last opened or half-opened.
    """

    def __init__(self, rule: BreakerRule) -> None:
        self.rule = rule
        self.state = BreakerState.CLOSED
        self.why = ""
        self.since = 0.0
        self._reset_counts()

    def _reset_counts(self) -> None:
        self._in_a_row: int = 0
        self._trailing_failures: int = 0  # consecutive failures at the end of the last results
        self._slot_end: float = -math.inf  # the end of the newest part of the window
        self._seen: list[int] = [0] * _SLOTS  # the parts of the window
        self._failed: list[int] = [0] * _SLOTS

    def __repr__(self) -> str:
        return f"<Breaker {self.state}, {self._in_a_row} failures in a row>"

    @property
    def is_closed(self) -> bool:
        """Whether the target gets requests without restrictions."""
        return self.state is BreakerState.CLOSED

    def describe_problem(self, now: float) -> str:
        """Why the target gets few or no requests; "" while the breaker is closed."""
        if self.is_closed:
            return ""
        if self.state is BreakerState.HALF_OPEN:
            return f"breaker half-open after {self.why}: a request tries it"
        return f"breaker open: {self.why}, {math.ceil(max(0.0, self._retry_at - now))} s left"

    def record(self, results: Results, now: float, *, is_dispensable: bool) -> None:
        """Record results, possibly none, and change the state accordingly.

        `is_dispensable`: other targets of the route can take the requests. Otherwise this one gets them even while the
        breaker is open.
        """
        if self.is_closed:
            self._count(results, now)
            if why := self._reason_to_open(results, is_dispensable=is_dispensable):
                self._open(why, now)
        elif self.state is BreakerState.HALF_OPEN:
            self._record_tests(results, now, is_dispensable=is_dispensable)
        elif results.answered and not is_dispensable:
            self.close()
        elif now >= self._retry_at:
            self.state, self.since, self._passed = BreakerState.HALF_OPEN, now, 0

    def close(self) -> None:
        """Close the breaker and forget all results."""
        self.state, self.why = BreakerState.CLOSED, ""
        self._reset_counts()

    def _record_tests(self, results: Results, now: float, *, is_dispensable: bool) -> None:
        if results.unreached or (results.failed and is_dispensable):
            self._open(self.why, now)
            return
        self._passed += results.answered
        # If no other target can take over, an error response is better than none. The time limit lifts the restriction
        # of a target without requests.
        if results.failed or self._passed >= self.rule.probes or now >= self._retry_at:
            self.close()

    @property
    def _retry_at(self) -> float:
        return self.since + self.rule.open_seconds

    def _open(self, why: str, now: float) -> None:
        self.state, self.why, self.since = BreakerState.OPEN, why, now
        self._reset_counts()

    def _reason_to_open(self, results: Results, *, is_dispensable: bool) -> str:
        rule, seen, failed = self.rule, sum(self._seen), sum(self._failed)
        if results.unreached and rule.failures and not (results.answered or results.failed):
            return NO_CONNECTION
        if not (results.failed or results.unreached) or not is_dispensable:
            return ""
        if 0 < rule.failures <= self._in_a_row:
            return f"{self._in_a_row} failure{'s' if self._in_a_row > 1 else ''}"
        if rule.rate > 0 and seen >= rule.minimum_requests and failed >= rule.rate * seen:
            return f"{failed} of {seen} requests failed within {rule.window_seconds:g} s"
        return ""

    def _count(self, results: Results, now: float) -> None:
        failed = results.failed + results.unreached
        if results.answered:
            # Their order is unknown: at least this many failures must have been in a row.
            self._in_a_row, self._trailing_failures = math.ceil(failed / (results.answered + 1)), 0
        else:
            self._in_a_row = self._trailing_failures = self._trailing_failures + failed
        if now >= self._slot_end:
            self._advance_window(now)
        self._seen[-1] += results.answered + failed
        self._failed[-1] += failed

    def _advance_window(self, now: float) -> None:
        seconds = self.rule.window_seconds / _SLOTS
        steps = int(min(_SLOTS, (now - self._slot_end) // seconds + 1))
        self._seen = self._seen[steps:] + [0] * steps
        self._failed = self._failed[steps:] + [0] * steps
        self._slot_end = now + seconds if steps == _SLOTS else self._slot_end + steps * seconds
