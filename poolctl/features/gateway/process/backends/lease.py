"""The right to send one request to a backend, and the refusal if there is no backend."""

from __future__ import annotations

import math
from typing import Protocol

from ..counts import PROTOCOL
from .backend import (
    ANSWERED,
    CANCELLED,
    FAILED,
    PASSED,
    Backend,
    CanaryBackend,
    Member,
    RequestOutcome,
    is_failure,
)


class NoBackend(Exception):
    """No backend may have the request now. The client gets `status`, with Retry-After.

    `may_wait`: `RouteBackends.wait` may find one.
    """

    status = 503

    def __init__(
        self, why: str, retry_after_seconds: float, *, may_wait: bool = False, by_time: bool = False
    ):
        super().__init__(why)
        self.why = why
        self.retry_after_seconds = max(1, math.ceil(retry_after_seconds))
        self.may_wait = may_wait
        self.next_try_seconds = retry_after_seconds if by_time else None

    def __repr__(self) -> str:
        return f"<NoBackend: {self.why}, retry after {self.retry_after_seconds} s>"


class LeasingRoute(Protocol):
    """The part of a route that its leases use."""

    def now(self) -> float: ...

    def admit_queued(self, backend: Backend) -> None:
        """Serve waiting requests of all routes that can use this backend."""

    def passed(self, backend: Backend) -> None:
        """Record that a connection was handed over to the backend's workers."""

    def left(self, backend: Backend) -> None:
        """A request to the backend has ended."""


class Lease:
    """The right to send one request, or to hold one connection, to `backend`. It must be released, once.

    `cookie` is the value of the route's sticky cookie to set, or "". If a server's requests are `shared` with its
    canary, the backend is the canary or the server.
    """

    __slots__ = ("_member", "_period", "_route", "_shared", "backend", "cookie")

    def __init__(
        self,
        route: LeasingRoute,
        member: Member,
        period: int,
        cookie: str,
        backend: Backend,
        shared: CanaryBackend | None = None,
    ) -> None:
        self._route: LeasingRoute | None = route
        self._member = member
        self._period = period
        self._shared = shared
        self.backend = backend
        self.cookie = cookie

    def __repr__(self) -> str:
        return f"<Lease of {self.backend.key}{'' if self._route else ', released'}>"

    def connected(self, status: int = 0) -> None:
        """The backend has accepted a long-lived exchange: a probe succeeds now, and not only at its end.

        Its further course counts as for any other request. `status` is the status of the response that begins.
        """
        route, breaker = self._route, self._member.breaker
        if route is None or self._period < 0 or is_failure(ANSWERED, status, breaker.rule):
            return
        self._member.backend.answered = True
        if breaker.is_closed:
            return
        breaker.succeeded(route.now(), self._period)
        self._period = breaker.period if breaker.is_closed else -1
        if self._member.backend.queued:
            route.admit_queued(self._member.backend)

    def release(
        self, outcome: RequestOutcome, seconds: float = 0.0, status: int = 0, error: str = PROTOCOL
    ) -> None:
        """Record the end of the request after `seconds`: ANSWERED with this status, or FAILED with this error.

        A second call does nothing.
        """
        route, self._route = self._route, None
        if route is None:
            return
        member = self._member
        backend = member.backend
        backend.in_flight -= 1
        breaker, traffic = member.breaker, backend.counts
        if outcome is ANSWERED:
            traffic.answered(status, seconds)
        elif outcome is FAILED:
            traffic.failed(error)
        elif outcome is CANCELLED:
            traffic.disconnected()
        else:
            traffic.not_counted()
            if outcome is PASSED:
                route.passed(backend)
            elif self._shared is not None:
                self._shared.requests.undo(of_canary=self.backend is self._shared)
        if self._period >= 0:
            if is_failure(outcome, status, breaker.rule):
                breaker.failed(route.now(), self._period, answered=outcome is ANSWERED)
            elif outcome is ANSWERED:
                backend.answered = True
                breaker.succeeded(route.now(), self._period)
            else:
                breaker.abandoned(self._period)
        if member.limiter is not None:
            member.limiter.leave()
        route.left(backend)
