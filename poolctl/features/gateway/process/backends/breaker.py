"""Circuit breaker of a backend: after failures it blocks requests for a while, then lets a few probes decide.

It opens after consecutive failures, or when too large a share of the requests in a window fails. After `open_seconds`
it is half-open: successful probes close it, a failed probe opens it again. Each call has the time as an argument.

While its breaker is open, a backend gets no requests. Requests without an answer open it in any case. Error responses
may be due to one client's broken requests: they open it only if other backends of its routes can take the requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from poolctl.routing.route import BreakerRule
from poolctl.routing.route_report import BreakerState

# The number of parts of the window; the oldest part is dropped as a whole.
_PARTS = 10
# Retry-After for clients while all probes are in progress.
_PROBING_RETRY_SECONDS = 1.0


class Breaker:
    """One backend's circuit breaker. Call `enter` before each request, and one of the `record_` methods after it.

    `rule` may be replaced at any time. `on_change(state, reason)` is called after each change of the state. Error
    responses open the breaker only if `is_dispensable()` returns True, which means that other backends can take the
    requests.
    """

    def __init__(
        self,
        rule: BreakerRule,
        on_change: Callable[[BreakerState, str], None] | None = None,
        is_dispensable: Callable[[], bool] = lambda: True,
    ) -> None:
        self.rule = rule
        self.state = BreakerState.CLOSED
        self.is_closed = True
        self.why = ""
        self.by_answers = False  # it was opened by error responses: the backend can be reached
        self.period = 0  # increases with each change of state; results of earlier periods are ignored
        self._on_change = on_change
        self._is_dispensable = is_dispensable
        self._reset_counts()

    def __repr__(self) -> str:
        return f"<Breaker {self.state}, {self._consecutive} failures in a row>"

    def seconds_until_admission(self, now: float) -> float:
        """0 if a request may be sent now, else the seconds to wait before the next attempt."""
        if self.is_closed:
            return 0.0
        if self.state is BreakerState.OPEN:
            return max(0.0, self._open_until - now)
        return 0.0 if self._probes < self.rule.probes else _PROBING_RETRY_SECONDS

    def admit_and_return_period(self) -> int:
        """Admit a request after `seconds_until_admission` returned 0; return the period for the `record_` methods."""
        if not self.is_closed:
            if self.state is BreakerState.OPEN:
                self._become(BreakerState.HALF_OPEN, "a request is tried")
            self._probes += 1
        return self.period

    def describe_problem(self, now: float) -> str:
        """Why the breaker admits no requests, or only a few; "" if it is closed."""
        if self.is_closed:
            return ""
        if self.state is BreakerState.HALF_OPEN:
            return f"breaker half-open after {self.why}: a request tries it"
        if self._open_until == math.inf:
            return f"breaker open: {self.why}"
        left = math.ceil(self._open_until - now)
        return f"breaker open: {self.why}, {f'{left} s left' if left > 0 else 'the next request tries it'}"

    def record_success(self, now: float, period: int) -> None:
        """Record a successful request. In a half-open breaker it counts as a probe: enough of these close it."""
        if period != self.period:
            return
        if self.is_closed:
            self._consecutive = self._unreached_in_a_row = 0
            if now >= self._part:
                self._advance_window(now)
            self._seen[-1] += 1
            return
        self._probes -= 1
        self._passed += 1
        if self._passed >= self.rule.probes:
            self.close("it answers again")

    def record_failure(self, now: float, period: int, *, answered: bool) -> None:
        """Record that a request failed: without an answer or, if `answered`, with an error response."""
        if period != self.period:
            return
        if not self.is_closed:
            if answered and not self._is_dispensable():
                self.close("it answers, and other backends cannot take its requests")
            else:
                self._open(now, "it failed again", by_answers=answered)
            return
        if now >= self._part:
            self._advance_window(now)
        self._consecutive += 1
        self._unreached_in_a_row = 0 if answered else self._unreached_in_a_row + 1
        self._seen[-1] += 1
        self._failed[-1] += 1
        self._unreached[-1] += not answered
        # A backend that has answered can be reached.
        if not answered and (why := self._opening_reason(self._unreached_in_a_row, sum(self._unreached))):
            self._open(now, why)
        elif (why := self._opening_reason(self._consecutive, sum(self._failed))) and self._is_dispensable():
            self._open(now, why, by_answers=True)

    def record_no_result(self, period: int) -> None:
        """Record the end of a request whose outcome says nothing about the backend's health."""
        if period == self.period and not self.is_closed:
            self._probes -= 1

    def open_until_closed(self, why: str) -> None:
        """Open the breaker until `close` is called, because another program decides about the backend."""
        self._open_until, self.by_answers, self.why = math.inf, False, why
        self._become(BreakerState.OPEN, why)

    def close(self, why: str) -> None:
        """Close the breaker and reset its counts; `why` is passed to `on_change` as the reason."""
        self._reset_counts()
        self._become(BreakerState.CLOSED, why)

    def probe_now(self, now: float) -> None:
        """Let the next request probe the backend at once, because it may have recovered."""
        self._open_until = now

    def _opening_reason(self, consecutive: int, failed: int) -> str:
        """The reason to open the breaker after these failures in a row or in the window; "" to leave it closed."""
        rule, seen = self.rule, sum(self._seen)
        if 0 < rule.failures <= consecutive:
            return f"{consecutive} failure{'s' if consecutive > 1 else ''}"
        if rule.rate > 0 and seen >= rule.minimum_requests and failed >= rule.rate * seen:
            return f"{failed} of {seen} requests failed within {rule.window_seconds:g} s"
        return ""

    def _open(self, now: float, why: str, *, by_answers: bool = False) -> None:
        self._open_until = now + self.rule.open_seconds
        self.by_answers, self.why = by_answers, why
        self._become(BreakerState.OPEN, why)

    def _become(self, state: BreakerState, why: str) -> None:
        self.state = state
        self.is_closed = state is BreakerState.CLOSED
        self.period += 1
        self._probes = self._passed = 0
        if self._on_change is not None:
            self._on_change(state, why)

    def _reset_counts(self) -> None:
        self._consecutive = self._unreached_in_a_row = 0
        self._part = float("-inf")  # the end of the newest part of the window
        self._seen: list[int] = []  # the parts of the window, filled by the first request
        self._failed: list[int] = []
        self._unreached: list[int] = []  # counted among the failed requests

    def _advance_window(self, now: float) -> None:
        seconds = max(self.rule.window_seconds, 0.001) / _PARTS
        steps = int(min(_PARTS, (now - self._part) // seconds + 1))
        self._seen = self._seen[steps:] + [0] * steps
        self._failed = self._failed[steps:] + [0] * steps
        self._unreached = self._unreached[steps:] + [0] * steps
        self._part = now + seconds if steps == _PARTS else self._part + steps * seconds
