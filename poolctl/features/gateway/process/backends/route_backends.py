"""Chooses a backend of a route for each request, or queues or refuses the request."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import blake2b
from random import Random
from typing import NamedTuple

from poolctl.routing.route import STICKY, BreakerRule, Route, StreamRoute, TrafficLimits, passable
from poolctl.routing.route_health import ERROR, HEALTHY, NAPPING, UNHEALTHY, UNKNOWN, RouteHealth
from poolctl.routing.route_health import STARTING as ROUTE_STARTING
from poolctl.routing.route_report import BreakerState, RequestedBackendState
from poolctl.states import State, Status
from poolctl.time_windows import until_text

from ..counts import PROTOCOL, Traffic
from ..settings import Endpoint, ProbeState, ServerFacts
from .balance import BY_LOAD, Policy, policy_of
from .breaker import Breaker
from .hosts import HostStates
from .limiter import WARN_SHARE, ClientLimits, RequestLimiter

# Tolerance for shares of a number, which are not exact as binary fractions: three tenths of ten are three.
_ROUNDING = 1e-9
_RANDOM = Random()
# Retry-After for clients when it is not known when a host will be available again.
DOWN_RETRY_SECONDS = 5.0
# Retry-After when a window keeps a server asleep for ever.
KEPT_RETRY_SECONDS = 86_400.0

# Hosts of a lower rank are preferred: connections to a starting server wait until it is ready, and a sleeping one is
# woken only when no other can serve.
READY, STARTING, SLEEPING = RANKS = (0, 1, 2)
_HEALTH_OF_RANKS = {STARTING: ROUTE_STARTING, SLEEPING: NAPPING}
_WAITING = {State.STARTING.value: STARTING, State.SLEEPING.value: SLEEPING}

# Server states that result from a stop, disable or drain command.
_ORDERED_STATES = (State.STOPPED.value, State.DISABLED.value, State.DRAINING.value)

_BREAKER_ORDER = (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED)
# uvloop's timers and its clock count milliseconds: with shorter pauses the loop would spin.
_LEAST_PAUSE_SECONDS = 0.001

# If `header_for_host` is another header than this, all requests are proxied.
_PASSED_BY = "host"

AnyRoute = Route | StreamRoute


class CanaryTurns:
    """The turns of a server's canary: which requests go to the canary, so that it gets the fraction `share` of all.

    With `share` 0.1, after every 10 requests the canary gets one of the next 10, chosen at random. Without the random
    choice, a client that repeats a sequence of requests could always send the same request to the canary. The caller
    must call `undo` for a request that was counted but not sent.
    """

    def __init__(self, share: float, random: Random = _RANDOM) -> None:
        self._share = share
        self._random = random
        self._requests = self._turns = 0
        self._passed_over: int | None = None  # requests left before the canary's next turn

    def next(self) -> bool:
        """Count the next request; returns whether it goes to the canary."""
        self._requests += 1
        if self._due < 1:
            return False
        if self._passed_over is None:
            self._passed_over = int(self._random.random() * int(1 / self._share + _ROUNDING))
        if self._passed_over:
            self._passed_over -= 1
            return False
        self._turns += 1
        self._passed_over = None
        return True

    def count_kept_on_canary(self) -> None:
        """Count a request that goes to the canary because the client's sticky cookie names the canary."""
        self._requests += 1
        self._turns += 1

    def count_kept_on_server(self) -> None:
        """Count a request that goes to the server because the client's sticky cookie names the server.

        Such requests give turns to the canary, too. At most one unused turn is kept, to avoid a burst to the canary.
        """
        self._requests += 1
        if self._due >= 2:
            self._turns += 1

    def undo(self, *, of_canary: bool) -> None:
        """Undo the count of a request that was not sent. `of_canary`: it was meant for the canary."""
        self._requests -= 1
        self._turns -= of_canary

    @property
    def _due(self) -> float:
        return self._share * self._requests - self._turns + _ROUNDING


class RequestOutcome(Enum):
    """How a request to a backend ended."""

    ANSWERED = auto()  # a complete response with any status
    FAILED = auto()  # no connection, closed too early, no answer in time, no valid response
    CANCELLED = auto()  # the client left, or the request was not sent after all
    UNUSED = auto()  # nothing was sent: the gateway answered, or chose another way
    PASSED = auto()  # the connection was handed to a worker, which counts its requests


# In Python 3.11 looking up a member of an enumeration takes longer than calling a function.
ANSWERED, FAILED, CANCELLED, UNUSED, PASSED = RequestOutcome
# A 500 may concern only one request. A route can add it in the `statuses` of its breaker.
_FAILURES = frozenset((502, 503, 504))


def is_failure(outcome: RequestOutcome, status: int, rule: BreakerRule) -> bool:
    """Whether this is a failure of the backend: no complete response, or status 502, 503, 504 or one in `rule`."""
    return outcome is FAILED or (outcome is ANSWERED and (status in _FAILURES or status in rule.statuses))


def sticky_value(key: str) -> str:
    """The value of sticky cookies for the backend with this key, which reveals nothing about the backend."""
    return blake2b(key.encode(errors="surrogateescape"), digest_size=8).hexdigest()


class BackendVerdict(NamedTuple):
    """Whether a host gets requests now: `ok` is true if it does, otherwise `why` is the reason.

    A client should wait until the monotonic time `until` or, if `until` is 0, for `retry_after_seconds`. `by_time` is
    true if the host is certain to get requests again after this wait, and false if the wait is an estimate.
    `may_wait` is true if the host is only busy, so that a request may wait in a queue. `by_command` is true if the
    reason is a command or a configured window, and not a fault.
    """

    ok: bool
    why: str = ""
    retry_after_seconds: float = 0.0
    may_wait: bool = False
    by_time: bool = False
    until: float = 0.0
    by_command: bool = False

    def remaining_seconds(self, now: float) -> float:
        """The seconds to wait before another attempt makes sense."""
        return max(0.0, self.until - now) if self.until else self.retry_after_seconds


AVAILABLE = BackendVerdict(True)


class Backend:
    """A host of one or several routes: a server of the pool, or a URL.

    `name` is what other programs are shown: its key or, for a canary, its server's key.
    `in_flight` counts proxied requests to it and connections of streams; `open_connections` counts the proxy's
    connections to it, and is updated by the proxy. `worker_connections` is the last reported number of its workers'
    connections, plus the connections passed since; it is kept only for routes that balance by load.
    """

    def __init__(self, key: str, counts: Traffic, is_server: bool) -> None:
        self.key = self.name = key
        self.counts = counts
        self.is_server = is_server
        self.facts: ServerFacts | None = None
        self.context_key = ""  # see ServerFacts
        self.canary: CanaryBackend | None = None
        self.endpoint = Endpoint("none")
        self.in_flight = self.open_connections = self.worker_connections = 0
        self.answered = False  # whether it has answered a request or a probe at least once
        self.rank = READY
        # Why no route may use it, apart from breakers and limits; None in the usual case. Set by `update`.
        self.blocked: BackendVerdict | None = None
        self.draining = False
        self.members: dict[RouteBackends, Member] = {}
        # The routes that lead here and have queued requests.
        self.queued: dict[RouteBackends, None] = {}
        self._breakers: dict[BreakerRule, Breaker] = {}
        self._limiters: dict[TrafficLimits, RequestLimiter] = {}
        self._facts_verdict: BackendVerdict | None = None
        self._probe_verdict: BackendVerdict | None = None
        if not is_server:
            try:
                self.endpoint = Endpoint.of_url(key)
            except ValueError as wrong:
                self._facts_verdict = BackendVerdict(False, str(wrong), DOWN_RETRY_SECONDS)

    def __repr__(self) -> str:
        state = self.blocked.why if self.blocked else f"breaker {self.worst_breaker_state or 'closed'}"
        return f"<Backend {self.key}: {state}, {self.in_flight} in flight>"

    @property
    def load(self) -> int:
        """The sum of `in_flight` and `worker_connections`."""
        return self.in_flight + self.worker_connections

    @property
    def worst_breaker_state(self) -> BreakerState | None:
        """The worst state of the backend's breakers; None if it has no breaker."""
        states = {each.state for each in self._breakers.values()}
        return next((state for state in _BREAKER_ORDER if state in states), None)

    def breaker_why(self, now: float) -> str:
        """Why the backend's breakers are not closed; "" if they are."""
        return next(filter(None, (each.describe_problem(now) for each in self._breakers.values())), "")

    @property
    def weight(self) -> int:
        """The server's weight (1 for a URL); the weight of each target in a route is multiplied by it."""
        return self.facts.weight if self.facts is not None else 1

    @property
    def share(self) -> float:
        """The granted fraction of this backend's rate limits: less than 1 while its health is "warn", otherwise 1."""
        return WARN_SHARE if self.facts is not None and self.facts.health == Status.WARN else 1.0

    def best_verdict(self, now: float) -> BackendVerdict:
        """The most favorable verdict of the routes to this backend: `ok` if at least one of them may use it now."""
        verdicts = [
            each.passing_verdict() if route.passes_connections else each.verdict(now)
            for route, each in self.members.items()
        ]
        return max(verdicts, key=lambda each: (each.ok, each.may_wait), default=self.blocked or AVAILABLE)

    def apply_facts(self, facts: ServerFacts | None, now: float, wall_now: float) -> None:
        """Store the supervisor's facts about the server. `facts` is None if the server is not in the pool.

        `wall_now` is the current time in seconds since 1970.
        """
        was_ready = self.facts is not None and self.facts.ready
        self.facts = facts
        self.context_key = "" if facts is None else facts.context_key
        self._facts_verdict, self.rank = None, READY
        self._apply_canary_facts(facts)
        if facts is None:
            self._facts_verdict = BackendVerdict(False, "there is no such server", DOWN_RETRY_SECONDS)
            return
        try:
            self.endpoint = Endpoint.of_server(facts.bind, facts.tls) if facts.bind else Endpoint("none")
        except ValueError:
            self.endpoint = Endpoint("none")
            self._facts_verdict = BackendVerdict(False, "it has no address to connect to", DOWN_RETRY_SECONDS)
            return
        if facts.ready:
            if not was_ready:
                self.let_breakers_probe_now(now)
        elif facts.asleep_until is not None:
            end = facts.asleep_until or None
            why = f"kept asleep {until_text(end, wall_now)}".rstrip()
            until = 0.0 if end is None else now + end - wall_now
            self._facts_verdict = BackendVerdict(False, why, KEPT_RETRY_SECONDS, until=until, by_command=True)
        elif facts.state in _WAITING:
            self.rank = _WAITING[facts.state]
        else:
            why = (
                "the server is not ready" if facts.state == State.RUNNING else f"the server is {facts.state}"
            )
            self._facts_verdict = BackendVerdict(
                False, why, DOWN_RETRY_SECONDS, by_command=facts.state in _ORDERED_STATES
            )
        for limiter in self._limiters.values():
            limiter.share = self.share

    def _apply_canary_facts(self, facts: ServerFacts | None) -> None:
        if facts is None or not facts.canary:
            self.canary = None
        elif self.canary is None or not self.canary.still_matches(facts):
            self.canary = CanaryBackend(self, facts)

    def set_rank(self, rank: int, blocked: BackendVerdict | None) -> None:
        """Store a URL's rank (READY, STARTING or SLEEPING). `blocked` is why the URL gets no requests, or None."""
        if self.endpoint.kind != "none":
            self.rank, self._facts_verdict = rank, blocked

    def record_probe(self, state: ProbeState) -> None:
        """Record the result of the probe of a URL."""
        self.answered |= state.answered
        self._probe_verdict = BackendVerdict(False, state.why, DOWN_RETRY_SECONDS) if state.why else None

    def update_blocked(self, hosts: HostStates) -> None:
        """Update this backend's `draining` and `blocked` after an operator's command, a report or a probe."""
        record = hosts.host_record(self.key)
        known = self._facts_verdict or self._probe_verdict
        self.draining = record.state == RequestedBackendState.DRAINING and known is None
        if record.state == RequestedBackendState.DISABLED:
            until = hosts.reactivation_time(self.key)
            self.blocked = BackendVerdict(
                False, record.why, DOWN_RETRY_SECONDS, by_time=until > 0, until=until, by_command=True
            )
        elif self.draining:
            self.blocked = BackendVerdict(False, record.why, DOWN_RETRY_SECONDS, by_command=True)
        else:
            self.blocked = known

    def let_breakers_probe_now(self, now: float) -> None:
        """Let open breakers probe the backend at once, because its state has changed."""
        for breaker in self._breakers.values():
            breaker.probe_now(now)

    def shared_breaker(
        self, rule: BreakerRule, previous: Member | None, on_change: Callable[[BreakerState, str], None]
    ) -> Breaker:
        """Return the breaker of a route to this backend. Routes with an equal `rule` share one breaker.

        If no breaker has `rule` yet, the breaker of `previous`, the route's old Member, gets it and keeps its state.
        If `previous` is None, or shares its breaker with another route, a new breaker is created.
        """
        found = self._breakers.get(rule)
        if found is None:
            found = Breaker(rule, on_change, lambda: self._is_dispensable(found))
            others = [each.breaker for each in self.members.values() if each is not previous]
            if previous is not None and previous.breaker not in others:
                found = self._breakers.pop(previous.breaker.rule, found)
                found.rule = rule
            self._breakers[rule] = found
        return found

    def _is_dispensable(self, breaker: Breaker | None) -> bool:
        """Whether each route that uses the breaker can do without this backend (see `can_spare`)."""
        return all(route.can_spare(self) for route, each in self.members.items() if each.breaker is breaker)

    def shared_limiter(self, limit: TrafficLimits | None, previous: Member | None) -> RequestLimiter | None:
        """Return the limiter of a route to this backend; None if `limit` is None. Routes with an equal limit share one.

        If no limiter has `limit` yet, the limiter of `previous`, the route's old Member, gets it and keeps its state.
        If there is no such limiter, or `previous` shares it with another route, a new limiter is created.
        """
        if limit is None:
            return None
        found = self._limiters.get(limit)
        if found is None:
            found, used = RequestLimiter(limit), previous.limiter if previous is not None else None
            others = [each.limiter for each in self.members.values() if each is not previous]
            if used is not None and used not in others:
                found = self._limiters.pop(used.limit, found)
                found.limit = limit
            found.share = self.share
            self._limiters[limit] = found
        return found

    def remove_route(self, route: RouteBackends) -> None:
        """Remove the route, which no longer leads to this backend."""
        self.members.pop(route, None)
        self.queued.pop(route, None)
        breakers = {each.breaker for each in self.members.values()}
        self._breakers = {rule: each for rule, each in self._breakers.items() if each in breakers}
        limiters = {each.limiter for each in self.members.values()}
        self._limiters = {limit: each for limit, each in self._limiters.items() if each in limiters}


class CanaryBackend(Backend):
    """The canary of a server: separate workers that get a share of the server's requests on every route.

    It uses the server's counts and limits. Its failures do not open a breaker; the rollout evaluates them.
    """

    def __init__(self, of: Backend, facts: ServerFacts) -> None:
        super().__init__(facts.canary, of.counts, is_server=True)
        self.name, self.context_key = of.key, facts.context_key
        self.endpoint = Endpoint.of_server(facts.canary_bind, facts.tls)
        self.cookie = sticky_value(self.key)
        # The turns of proxied requests, and of passed connections.
        self.requests, self.connections = CanaryTurns(facts.canary_share), CanaryTurns(facts.canary_share)
        self._share = facts.canary_share

    def still_matches(self, facts: ServerFacts) -> bool:
        """Whether these facts still describe this canary: its name, endpoint and share have not changed."""
        endpoint = Endpoint.of_server(facts.canary_bind, facts.tls)
        return (self.key, self.endpoint, self._share) == (facts.canary, endpoint, facts.canary_share)

    def take_request(self, cookie: str, server_cookie: str) -> bool:
        """Count a request; returns True if the request goes to the canary, False if it goes to the server.

        `cookie` is the value of the client's sticky cookie, or "". `server_cookie` is the value that names the server.
        A cookie that names neither server nor canary does not matter.
        """
        if not cookie:
            return self.requests.next()
        if cookie == self.cookie:
            self.requests.count_kept_on_canary()
            return True
        if cookie == server_cookie:
            self.requests.count_kept_on_server()
            return False
        return self.requests.next()


class Member:
    """A backend as used by one route: its weight, and its breaker and limiter, which other routes may share."""

    def __init__(
        self, backend: Backend, weight: int, breaker: Breaker, limiter: RequestLimiter | None
    ) -> None:
        self.backend = backend
        self.key = backend.key
        self.weight = weight
        self.breaker = breaker
        self.limiter = limiter
        self.cookie = sticky_value(self.key)

    @property
    def load(self) -> int:
        """The backend's load: the requests and streams proxied to it, plus the connections that its workers hold."""
        return self.backend.load

    @property
    def serves(self) -> bool:
        """Whether the backend is enabled and ready, and its breaker closed."""
        return self.backend.blocked is None and self.breaker.is_closed

    def passing_verdict(self) -> BackendVerdict:
        """Whether a connection may be passed to the backend now, and if not, why.

        Breaker and limiter do not matter, because only the worker sees the responses on a passed connection.
        """
        return self.backend.blocked or AVAILABLE

    def health(self, now: float, *, passing: bool) -> RouteHealth:
        """The backend's health on this route.

        `passing` is true if the route passes connections to workers: its breaker does not matter then. Otherwise the
        backend is unhealthy while the breaker is not closed. A reached limit does not make the backend unhealthy.
        """
        backend = self.backend
        if (blocked := backend.blocked) is not None:
            failed = backend.facts is not None and backend.facts.state == State.FAILED
            status = UNKNOWN if blocked.by_command else ERROR if failed else UNHEALTHY
            return RouteHealth(status=status, detail=blocked.why)
        if not (passing or self.breaker.is_closed):
            return RouteHealth(status=UNHEALTHY, detail=self.breaker.describe_problem(now))
        if backend.rank != READY:
            return RouteHealth(status=_HEALTH_OF_RANKS[backend.rank])
        if backend.is_server or backend.answered:
            return RouteHealth(status=HEALTHY)
        return RouteHealth(status=UNKNOWN, detail="it has not answered yet")

    def verdict(self, now: float, *, by_cookie: bool = False) -> BackendVerdict:
        """Whether the backend may get a request of the route: enabled, ready, breaker not open, limiter not full.

        `by_cookie`: the client's sticky cookie names the backend, which serves such clients even while it drains.
        """
        backend = self.backend
        if backend.blocked is not None and not (by_cookie and backend.draining):
            return backend.blocked
        breaker = self.breaker
        seconds = breaker.seconds_until_admission(now)
        if seconds:
            by_time = breaker.state is BreakerState.OPEN
            return BackendVerdict(False, breaker.describe_problem(now), seconds, by_time=by_time)
        limiter = self.limiter
        if limiter is not None:
            seconds = limiter.seconds_until_admission(now)
            if seconds:
                return BackendVerdict(
                    False, "its limit is reached", seconds, True, by_time=not limiter.is_full
                )
        return AVAILABLE


class NoBackend(Exception):
    """No backend can take the request now. The client gets `status`, with Retry-After.

    `may_wait`: `RouteBackends.wait` may find a backend. `next_try_seconds` is the time after which a backend may become
    available without any other event, or None.
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


class Lease:
    """Permission to send one request to `backend`, or to hold one connection to it. It must be released, once.

    `cookie` is the sticky cookie's value to set, or "". `canary` is the server's canary, or None. With a canary,
    `backend` is the server or the canary, depending on which of them gets the request.
    """

    def __init__(
        self,
        route: RouteBackends,
        member: Member,
        period: int,
        cookie: str,
        backend: Backend,
        canary: CanaryBackend | None,
    ) -> None:
        self._route: RouteBackends | None = route
        self._member = member
        self._period = period
        self._canary = canary
        self.backend = backend
        self.cookie = cookie

    def record_long_lived_accepted(self, status: int = 0) -> None:
        """Record that the backend accepted a long-lived request; a half-open breaker counts this as a success at once.

        `status` is the status of the response that has begun, or 0 for a stream or a tunnel.
        """
        route, breaker = self._route, self._member.breaker
        if route is None or self._period < 0 or is_failure(ANSWERED, status, breaker.rule):
            return
        self._member.backend.answered = True
        if breaker.is_closed:
            return
        breaker.record_success(route.now(), self._period)
        self._period = breaker.period if breaker.is_closed else -1
        if self._member.backend.queued:
            route.admit_on_all_routes(self._member.backend)

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
            traffic.count_response(status, seconds)
        elif outcome is FAILED:
            traffic.count_failure(error)
        elif outcome is CANCELLED:
            traffic.count_disconnect()
        else:
            traffic.undo_start()
            if outcome is PASSED:
                route.count_handover(backend)
            elif self._canary is not None:
                self._canary.requests.undo(of_canary=self.backend is self._canary)
        if self._period >= 0:
            if is_failure(outcome, status, breaker.rule):
                breaker.record_failure(route.now(), self._period, answered=outcome is ANSWERED)
            elif outcome is ANSWERED:
                backend.answered = True
                breaker.record_success(route.now(), self._period)
            else:
                breaker.record_no_result(self._period)
        if member.limiter is not None:
            member.limiter.leave()
        route.end_request(backend)


@dataclass(slots=True, eq=False)
class _Waiter:
    """A request in the queue of a route."""

    answer: asyncio.Future[Lease]
    client: str
    cookie: str
    tried: Collection[str]


class RouteBackends:
    """One route's backends, with the route's policy, limit and queue. `acquire` never waits; `wait` is a coroutine."""

    def __init__(
        self,
        alias: str,
        hosts: HostStates,
        now: Callable[[], float],
        random: Random,
        on_passed: Callable[[], None],
    ) -> None:
        self.alias = alias
        self.now = now
        self._hosts = hosts
        self._random = random
        self._on_passed = on_passed
        self.in_flight = 0
        self.members: tuple[Member, ...] = ()
        self._limiter: RequestLimiter | None = None
        self.clients: ClientLimits | None = None
        # Not a plain dictionary: finding its first entry steps over every entry that was removed before it.
        self._queue: OrderedDict[_Waiter, None] = OrderedDict()
        self._queue_size, self._queue_seconds = 0, 0.0
        self._retry: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<RouteBackends {self.alias}: {self.in_flight} in flight, {len(self._queue)} wait>"

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._queue)

    def apply(self, route: AnyRoute, members: Sequence[Member]) -> None:
        """Apply a changed route and these backends. Requests in flight and waiting requests stay."""
        for gone in {*self.members} - {*members}:
            if all(each.backend is not gone.backend for each in members):
                gone.backend.remove_route(self)
        self.members = tuple(members)
        self._is_passable = isinstance(route, Route) and passable(route)
        self._sticky = isinstance(route, Route) and (bool(route.sticky_cookie) or route.policy == STICKY)
        self._by_cookie = {each.cookie: each for each in members}
        self.by_load = route.policy in BY_LOAD
        self._policy: Policy[Member] = policy_of(route.policy, self.members, self._random)
        limit, of_backend = route_and_backend_limits(route)
        if limit is None:
            self._limiter = None
        elif self._limiter is None:
            self._limiter = RequestLimiter(limit)
            self._limiter.in_flight = self.in_flight
        else:
            self._limiter.limit = limit
        of_client = route.client_limit if isinstance(route, Route) else None
        if of_client is None:
            self.clients = None
        elif self.clients is None or self.clients.limit != of_client:
            self.clients = ClientLimits(of_client)
        queue = limit if limit is not None and limit.queue else of_backend
        self._queue_size, self._queue_seconds = (queue.queue, queue.queue_seconds) if queue else (0, 0.0)
        self.update_limits_and_admit()

    def update_limits_and_admit(self) -> None:
        """Recompute limits and breakers, and admit waiting requests, after a change of the backends."""
        self.close_breakers_if_none_serves()
        if self._limiter is not None and self.members:
            self._limiter.share = sum(each.backend.share for each in self.members) / len(self.members)
        if self._queue:
            for member in self.members:
                member.backend.queued[self] = None
            self.admit()

    def can_spare(self, backend: Backend) -> bool:
        """Return True if another backend serves, and the route's share of open breakers stays within `max_open`."""
        others = [each for each in self.members if each.backend is not backend]
        left_alone = 1 + sum(not each.breaker.is_closed for each in others)
        most = max((each.breaker.rule.max_open for each in self.members), default=0.0) * len(self.members)
        return left_alone <= most + _ROUNDING and any(each.serves for each in others)

    def close_breakers_if_none_serves(self) -> None:
        """If no backend serves any longer, close the breakers that were opened by error responses."""
        if any(each.serves for each in self.members):
            return
        for each in self.members:
            if each.backend.blocked is None and each.breaker.by_answers:
                each.breaker.close("no other backend can serve")

    @property
    def passes_connections(self) -> bool:
        """Whether the route passes connections on to workers."""
        return self._is_passable and self._hosts.header_for_host.lower() == _PASSED_BY

    def healths(self) -> dict[str, RouteHealth]:
        """The health of each backend from the route's point of view, by the backend's key."""
        now = self.now()
        return {each.key: each.health(now, passing=self.passes_connections) for each in self.members}

    def close(self) -> None:
        """Close the route: waiting requests are refused, requests in flight end normally."""
        for waiter in [*self._queue]:
            self._refuse(waiter, NoBackend("the route was removed", DOWN_RETRY_SECONDS))
        for member in self.members:
            member.backend.remove_route(self)

    def acquire(self, client: str, cookie: str = "", tried: Collection[str] = ()) -> Lease | NoBackend:
        """A lease for a request of this client, or the reason why it gets no backend now.

        `client` is the client's IP address, `cookie` the value of its sticky cookie for the route, or "". `tried` has
        the keys of backends that are not to be used.
        """
        if self._queue:
            return NoBackend("others wait already", self._queue_seconds, may_wait=True)
        return self._assign(client, cookie, tried)

    def choose(self, client: str) -> Backend | NoBackend:
        """A backend to whose workers a connection can be passed now, or the reason why there is none.

        Nothing has to be released afterwards: the worker counts the requests of the connection. A route with a limit
        passes no connections, so limits are not checked.
        """
        now = self.now()
        if now >= self._hosts.next_expiry:
            self._hosts.enable_expired()
        member = self._by_policy(client, lambda each: each.passing_verdict() is AVAILABLE)
        if member is not None:
            return member.backend
        return self._refusal(now, [(each.key, each.passing_verdict()) for each in self.members])

    async def wait(self, client: str, cookie: str = "", tried: Collection[str] = ()) -> Lease:
        """A lease for a request, after waiting in the route's queue behind earlier requests. Raises NoBackend.

        The arguments mean the same as in `acquire`. The limit that the route configures also sets the
        maximum time in the queue (`queue_seconds`). Cancel the call when the client leaves, to free its place.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), client, cookie, tried)
        if len(self._queue) >= self._queue_size:
            raise NoBackend("the queue is full", self._queue_seconds)
        self._queue[waiter] = None
        for member in self.members:
            member.backend.queued[self] = None
        late = NoBackend("no place became free in time", DOWN_RETRY_SECONDS)
        timer = loop.call_later(self._queue_seconds, self._refuse, waiter, late)
        self.admit()
        try:
            return await waiter.answer
        except asyncio.CancelledError:
            # The request may have got a lease in the iteration in which the client left.
            if not waiter.answer.cancelled() and waiter.answer.exception() is None:
                waiter.answer.result().release(CANCELLED)
            raise
        finally:
            timer.cancel()
            self._leave_queue(waiter)

    def admit(self) -> None:
        """Let waiting requests proceed in order while backends have room."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        while (first := next(iter(self._queue), None)) is not None and self._answer_waiter(first):
            pass
        if first is None or not first.tried:
            return
        # The first request waits for a backend that it has not tried; others may have more choice.
        for waiter in [*self._queue]:
            if waiter is not first and not self._answer_waiter(waiter) and not waiter.tried:
                return

    def admit_on_all_routes(self, backend: Backend) -> None:
        """Serve waiting requests of all routes that can use this backend."""
        for route in [*backend.queued]:
            # Moved to the end: the other routes come first next time.
            if route in backend.queued:
                del backend.queued[route]
                backend.queued[route] = None
                route.admit()

    def count_handover(self, backend: Backend) -> None:
        """Count a connection that was handed over to the backend's workers."""
        if self.by_load:
            backend.worker_connections += 1
            self._on_passed()

    def end_request(self, backend: Backend) -> None:
        """Count the end of a request to the backend."""
        self.in_flight -= 1
        if self._limiter is not None:
            self._limiter.leave()
        if backend.queued:
            self.admit_on_all_routes(backend)
        if self._queue:
            self.admit()

    def _answer_waiter(self, waiter: _Waiter) -> bool:
        """Try to give the waiting request a backend or a refusal; returns whether it has left the queue."""
        if waiter.answer.done():  # its client has left
            self._leave_queue(waiter)
            return True
        found = self._assign(waiter.client, waiter.cookie, waiter.tried)
        if isinstance(found, Lease):
            self._leave_queue(waiter)
            waiter.answer.set_result(found)
            return True
        if not found.may_wait:
            self._refuse(waiter, found)
            return True
        if found.next_try_seconds is not None and self._retry is None:
            loop = waiter.answer.get_loop()
            self._retry = loop.call_later(max(_LEAST_PAUSE_SECONDS, found.next_try_seconds), self.admit)
        return False

    def _refuse(self, waiter: _Waiter, refused: NoBackend) -> None:
        self._leave_queue(waiter)
        if not waiter.answer.done():
            waiter.answer.set_exception(refused)

    def _leave_queue(self, waiter: _Waiter) -> None:
        if waiter not in self._queue:
            return
        del self._queue[waiter]
        if not self._queue:
            for member in self.members:
                member.backend.queued.pop(self, None)
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None

    def _assign(self, client: str, cookie: str, tried: Collection[str]) -> Lease | NoBackend:
        now = self.now()
        if now >= self._hosts.next_expiry:
            self._hosts.enable_expired()
        limiter = self._limiter
        if limiter is not None:
            seconds = limiter.seconds_until_admission(now)
            if seconds:
                may_wait, by_time = self._queue_size > 0, not limiter.is_full
                return NoBackend("the route's limit is reached", seconds, may_wait=may_wait, by_time=by_time)
        member = self._choose(now, client, cookie, tried)
        if member is None:
            untried = [each for each in self.members if each.key not in tried]
            return self._refusal(now, [(each.key, each.verdict(now)) for each in untried], tried)
        backend, breaker = member.backend, member.breaker
        period = breaker.admit_and_return_period()
        if member.limiter is not None:
            member.limiter.count_admission(now)
        if limiter is not None:
            limiter.count_admission(now)
        self.in_flight += 1
        backend.in_flight += 1
        backend.counts.count_start()
        canary = None if tried or not breaker.is_closed else backend.canary
        value = member.cookie
        if canary is not None and canary.take_request(cookie if self._sticky else "", member.cookie):
            backend, value, period = canary, canary.cookie, -1
        new_cookie = value if self._sticky and value != cookie else ""  # "": the client has it already
        return Lease(self, member, period, new_cookie, backend, canary)

    def _find_by_canary_cookie(self, cookie: str) -> Member | None:
        """Return the Member of the server whose canary has the sticky cookie value `cookie`; None if none has it."""
        for member in self.members:
            if member.backend.canary is not None and member.backend.canary.cookie == cookie:
                return member
        return None

    def _choose(self, now: float, client: str, cookie: str, tried: Collection[str]) -> Member | None:
        if cookie and self._sticky:
            known = self._by_cookie.get(cookie) or self._find_by_canary_cookie(cookie)
            if known is not None and known.key not in tried and known.verdict(now, by_cookie=True).ok:
                return known
        return self._by_policy(client, lambda each: each.key not in tried and each.verdict(now) is AVAILABLE)

    def _by_policy(self, client: str, is_usable: Callable[[Member], bool]) -> Member | None:
        def choose(rank: int) -> Member | None:
            return self._policy.choose(client, lambda each: each.backend.rank == rank and is_usable(each))

        return next(filter(None, map(choose, RANKS)), None)

    def _refusal(
        self, now: float, verdicts: list[tuple[str, BackendVerdict]], tried: Collection[str] = ()
    ) -> NoBackend:
        """Why none of these backends gets the request, and when to try again."""
        if not verdicts:
            return NoBackend(
                "every backend was tried" if tried else "the route has no backend", DOWN_RETRY_SECONDS
            )
        may_wait = self._queue_size > 0 and any(verdict.may_wait for _, verdict in verdicts)
        by_time = any(verdict.by_time for _, verdict in verdicts)
        seconds = min(each.remaining_seconds(now) for _, each in verdicts if each.by_time or not by_time)
        (key, first), more = verdicts[0], len(verdicts) - 1
        why = f"{key}: {first.why}" + (f"; and {more} more" if more else "")
        return NoBackend(why, seconds, may_wait=may_wait, by_time=by_time)


def route_and_backend_limits(route: AnyRoute) -> tuple[TrafficLimits | None, TrafficLimits | None]:
    """The limit of the route, and the limit that applies to each of its backends; None is no limit."""
    if isinstance(route, Route):
        return route.limit, route.backend_limit
    return (TrafficLimits(concurrency=route.max_connections), None) if route.max_connections else (None, None)
