"""One backend: its identity, whether it may get requests, and its results."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from hashlib import blake2b
from typing import NamedTuple, Protocol

from poolctl.routing.host_report import BreakerState, HostState
from poolctl.routing.route import BreakerRule, Limit
from poolctl.routing.route_health import ERROR, HEALTHY, NAPPING, UNHEALTHY, UNKNOWN, RouteHealth
from poolctl.routing.route_health import STARTING as ROUTE_STARTING
from poolctl.states import State, Status
from poolctl.time_windows import until_text

from ..counts import Traffic
from ..endpoint import Endpoint, ProbeState, ServerFacts
from .breaker import Breaker
from .canary_turns import CanaryTurns
from .hosts import HostManager
from .limiter import WARN_SHARE, Limiter

# Retry-After for clients when it is not known when a host is back.
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


class RequestOutcome(Enum):
    """How a request to a backend ended."""

    ANSWERED = auto()  # a complete response with any status
    FAILED = auto()  # no connection, closed too early, no answer in time, no valid response
    CANCELLED = auto()  # the client left, or the request was not sent after all
    UNUSED = auto()  # nothing was sent: the gateway answered, or chose another way
    PASSED = auto()  # the connection was handed over; the worker counts what becomes of it


# In Python 3.11 looking up a member of an enumeration takes longer than calling a function.
ANSWERED, FAILED, CANCELLED, UNUSED, PASSED = RequestOutcome
# A 500 may be about one request: a route that knows better names it in its breaker.
_FAILURES = frozenset((502, 503, 504))


def is_failure(outcome: RequestOutcome, status: int, rule: BreakerRule) -> bool:
    """Whether the outcome counts against the backend: the only rule of passive health."""
    return outcome is FAILED or (outcome is ANSWERED and (status in _FAILURES or status in rule.statuses))


def sticky_value(key: str) -> str:
    """The value of sticky cookies for the backend with this key, which reveals nothing about the backend."""
    return blake2b(key.encode(), digest_size=8).hexdigest()


class BackendVerdict(NamedTuple):
    """Whether a host gets requests now, and if not, why.

    `may_wait`: a place becomes free by itself; `by_time`: after `retry_after_seconds`, without any other event.
    `until`: when that time ends, on the clock of requests. `meant`: it is the result of a command.
    """

    ok: bool
    why: str = ""
    retry_after_seconds: float = 0.0
    may_wait: bool = False
    by_time: bool = False
    until: float = 0.0
    meant: bool = False

    def remaining_seconds(self, now: float) -> float:
        """The time after which another try is worth it."""
        return max(0.0, self.until - now) if self.until else self.retry_after_seconds


AVAILABLE = BackendVerdict(True)


class RouteInForce(Protocol):
    """A route, as its backends know it."""

    alias: str

    @property
    def passes(self) -> bool: ...

    @property
    def waiting(self) -> int: ...

    def admit(self) -> None:
        """Serve waiting requests while there are places."""

    def refresh(self) -> None:
        """Act on a change of the route's backends."""

    def can_spare(self, backend: Backend) -> bool:
        """Whether its other backends can take the requests of this one."""

    def keep_one(self) -> None:
        """Let requests through to backends that answer with errors, if no other backend is left."""


class Backend:
    """A host of one or several routes: a server of the pool, or a URL.

    `in_flight` counts the gateway's requests to it, and connections of streams; `open_connections`, the proxy's
    connections, is for the proxy to keep. `held` are connections that its workers have by themselves, as last reported,
    or passed since: counted only for routes that balance by load.
    """

    def __init__(self, key: str, counts: Traffic, is_server: bool) -> None:
        self.key = key
        self.counts = counts
        self.is_server = is_server
        self.facts: ServerFacts | None = None
        self.context_key = ""  # see ServerFacts
        self.canary: CanaryBackend | None = None
        self.endpoint = Endpoint("none")
        self.in_flight = self.open_connections = self.held = 0
        self.answered = False  # a request, or a probe, at least once
        self.rank = READY
        # Why no route may use it, apart from breakers and limits; None in the usual case. Kept by `update`.
        self.blocked: BackendVerdict | None = None
        self.draining = False
        self.members: dict[RouteInForce, Member] = {}
        self.queued: dict[
            RouteInForce, None
        ] = {}  # routes with requests that wait, among others for this backend
        self._breakers: dict[BreakerRule, Breaker] = {}
        self._limiters: dict[Limit, Limiter] = {}
        self._facts_verdict: BackendVerdict | None = None
        self._probe_verdict: BackendVerdict | None = None
        if not is_server:
            try:
                self.endpoint = Endpoint.of_url(key)
            except ValueError as wrong:
                self._facts_verdict = BackendVerdict(False, str(wrong), DOWN_RETRY_SECONDS)

    def __repr__(self) -> str:
        state = self.blocked.why if self.blocked else f"breaker {self.breaker_state or 'closed'}"
        return f"<Backend {self.key}: {state}, {self.in_flight} in flight>"

    @property
    def load(self) -> int:
        """The load of the backend: requests of the gateway, and connections of its workers."""
        return self.in_flight + self.held

    @property
    def breaker_state(self) -> BreakerState | None:
        """The least favourable of its breakers' states; None if it has no breaker."""
        states = {each.state for each in self._breakers.values()}
        return next((state for state in _BREAKER_ORDER if state in states), None)

    def breaker_why(self, now: float) -> str:
        """Why its breakers are not closed; "" if they are."""
        return next(filter(None, (each.describe(now) for each in self._breakers.values())), "")

    @property
    def weight(self) -> int:
        """The server's own weight, which multiplies the weight of each target."""
        return self.facts.weight if self.facts is not None else 1

    @property
    def share(self) -> float:
        """The share of its limits that it gets: less while its health is warn."""
        return WARN_SHARE if self.facts is not None and self.facts.health == Status.WARN else 1.0

    def available(self, now: float) -> BackendVerdict:
        """The most favourable verdict of the routes that may use it."""
        verdicts = [
            each.passing_verdict() if route.passes else each.verdict(now)
            for route, each in self.members.items()
        ]
        return max(verdicts, key=lambda each: (each.ok, each.may_wait), default=self.blocked or AVAILABLE)

    def report(self, facts: ServerFacts | None, now: float, wall_now: float) -> None:
        """Update the known facts about the server; None for a server that is not in the pool.

        `wall_now` is the same moment in seconds since 1970.
        """
        was_ready = self.facts is not None and self.facts.ready
        self.facts = facts
        self.context_key = "" if facts is None else facts.context_key
        self._facts_verdict, self.rank = None, READY
        self._report_canary(facts)
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
                self.probe_now(now)
        elif facts.asleep_until is not None:
            end = facts.asleep_until or None
            why = f"kept asleep {until_text(end, wall_now)}".rstrip()
            until = 0.0 if end is None else now + end - wall_now
            self._facts_verdict = BackendVerdict(False, why, KEPT_RETRY_SECONDS, until=until, meant=True)
        elif facts.state in _WAITING:
            self.rank = _WAITING[facts.state]
        else:
            why = (
                "the server is not ready" if facts.state == State.RUNNING else f"the server is {facts.state}"
            )
            self._facts_verdict = BackendVerdict(
                False, why, DOWN_RETRY_SECONDS, meant=facts.state in _ORDERED_STATES
            )
        for limiter in self._limiters.values():
            limiter.share = self.share

    def _report_canary(self, facts: ServerFacts | None) -> None:
        if facts is None or not facts.canary:
            self.canary = None
        elif self.canary is None or not self.canary.follows(facts):
            self.canary = CanaryBackend(self, facts)

    @property
    def name(self) -> str:
        """The backend's name for other programs; a canary has its server's name."""
        return self.key

    def rank_as(self, rank: int, blocked: BackendVerdict | None) -> None:
        """Set the rank of the URL, derived from the machine behind it; `blocked`: why no request may be sent there."""
        if self.endpoint.kind != "none":
            self.rank, self._facts_verdict = rank, blocked

    def probed(self, state: ProbeState) -> None:
        """Record the result of the probe of a URL."""
        self.answered |= state.answered
        self._probe_verdict = BackendVerdict(False, state.why, DOWN_RETRY_SECONDS) if state.why else None

    def update(self, hosts: HostManager) -> None:
        """Take the state that was ordered for the host, and decide whether it may be used at all."""
        record = hosts.record(self.key)
        known = self._facts_verdict or self._probe_verdict
        self.draining = record.state == HostState.DRAINING and known is None
        if record.state == HostState.DISABLED:
            seconds, until = hosts.remaining_seconds(self.key), hosts.active_again(self.key)
            self.blocked = BackendVerdict(
                False, record.why, seconds or DOWN_RETRY_SECONDS, by_time=seconds > 0, until=until, meant=True
            )
        elif self.draining:
            self.blocked = BackendVerdict(False, record.why, DOWN_RETRY_SECONDS, meant=True)
        else:
            self.blocked = known

    def probe_now(self, now: float) -> None:
        """Let open breakers send it probes at once, because something has changed."""
        for breaker in self._breakers.values():
            breaker.probe_now(now)

    def breaker(
        self, rule: BreakerRule, former: Member | None, on_change: Callable[[BreakerState, str], None]
    ) -> Breaker:
        """The breaker with this rule, which all routes with an equal rule share.

        The one of a `former` member that no other route uses goes on under the new rule, with its state.
        """
        found = self._breakers.get(rule)
        if found is None:
            found = Breaker(rule, on_change, lambda: self._is_dispensable(found))
            if former is not None and not any(
                each.breaker is former.breaker for each in self.members.values() if each is not former
            ):
                found = self._breakers.pop(former.breaker.rule, found)
                found.rule = rule
            self._breakers[rule] = found
        return found

    def _is_dispensable(self, breaker: Breaker | None) -> bool:
        """Whether all routes with this breaker can do without the backend."""
        return all(route.can_spare(self) for route, each in self.members.items() if each.breaker is breaker)

    def limiter(self, limit: Limit | None, former: Member | None) -> Limiter | None:
        """The shared limiter for this limit, or None."""
        if limit is None:
            return None
        found = self._limiters.get(limit)
        if found is None:
            found, used = Limiter(limit), former.limiter if former is not None else None
            if used is not None and not any(
                each.limiter is used for each in self.members.values() if each is not former
            ):
                found = self._limiters.pop(used.limit, found)
                found.limit = limit
            found.share = self.share
            self._limiters[limit] = found
        return found

    def leave(self, route: RouteInForce) -> None:
        """Forget the route, which no longer leads to this backend."""
        self.members.pop(route, None)
        self.queued.pop(route, None)
        breakers = {each.breaker for each in self.members.values()}
        self._breakers = {rule: each for rule, each in self._breakers.items() if each in breakers}
        limiters = {each.limiter for each in self.members.values()}
        self._limiters = {limit: each for limit, each in self._limiters.items() if each in limiters}


class CanaryBackend(Backend):
    """The canary of a server: other workers, which get a share of its requests on every route.

    It has the server's counts and limits. Its failures count for no breaker: the rollout judges them.
    """

    def __init__(self, of: Backend, facts: ServerFacts) -> None:
        super().__init__(facts.canary, of.counts, is_server=True)
        self.context_key = facts.context_key
        self.endpoint = Endpoint.of_server(facts.canary_bind, facts.tls)
        self.cookie = sticky_value(self.key)
        # Of proxied requests, and of connections that are passed on.
        self.requests, self.connections = CanaryTurns(facts.canary_share), CanaryTurns(facts.canary_share)
        self._of = of.key
        self._share = facts.canary_share

    @property
    def name(self) -> str:
        """See Backend."""
        return self._of

    def follows(self, facts: ServerFacts) -> bool:
        """Whether this is the canary that these facts are about."""
        endpoint = Endpoint.of_server(facts.canary_bind, facts.tls)
        return (self.key, self.endpoint, self._share) == (facts.canary, endpoint, facts.canary_share)

    def gets(self, cookie: str, servers: str) -> bool:
        """Whether the canary gets this request of the server; a sticky client stays where its cookie points.

        `servers` is the value of the server's own cookie.
        """
        if not cookie:
            return self.requests.next()
        if cookie == self.cookie:
            self.requests.resume()
            return True
        if cookie == servers:
            self.requests.stay()
            return False
        return self.requests.next()


class Member:
    """A backend as part of a route: its weight in the route, the route's rule for the breaker, and its limit."""

    __slots__ = ("backend", "breaker", "cookie", "key", "limiter", "weight")

    def __init__(self, backend: Backend, weight: int, breaker: Breaker, limiter: Limiter | None) -> None:
        self.backend = backend
        self.key = backend.key
        self.weight = weight
        self.breaker = breaker
        self.limiter = limiter
        self.cookie = sticky_value(self.key)

    def __repr__(self) -> str:
        return f"<Member {self.key}, weight {self.weight}>"

    @property
    def load(self) -> int:
        """The load of the backend."""
        return self.backend.load

    @property
    def serves(self) -> bool:
        """Whether it is enabled and ready, and its breaker closed."""
        return self.backend.blocked is None and self.breaker.is_closed

    def passing_verdict(self) -> BackendVerdict:
        """Whether the backend gets a connection that the route passes on; only its workers see the responses.

        So the breaker does not count it, and a route that passes connections has no limiter.
        """
        return self.backend.blocked or AVAILABLE

    def health(self, now: float, *, passing: bool) -> RouteHealth:
        """The consequence of the verdict for the route; `passing`: the route passes connections on.

        A limit that is reached is no fault. A breaker that is not closed is one until a request has succeeded.
        """
        backend = self.backend
        if (blocked := backend.blocked) is not None:
            failed = backend.facts is not None and backend.facts.state == State.FAILED
            status = UNKNOWN if blocked.meant else ERROR if failed else UNHEALTHY
            return RouteHealth(status=status, detail=blocked.why)
        if not (passing or self.breaker.is_closed):
            return RouteHealth(status=UNHEALTHY, detail=self.breaker.describe(now))
        if backend.rank != READY:
            return RouteHealth(status=_HEALTH_OF_RANKS[backend.rank])
        if backend.is_server or backend.answered:
            return RouteHealth(status=HEALTHY)
        return RouteHealth(status=UNKNOWN, detail="it has not answered yet")

    def verdict(self, now: float, *, resumed: bool = False) -> BackendVerdict:
        """Whether it gets a request of the route now: enabled, ready, breaker not open, limiter not full.

        `resumed`: for a client whose cookie names it, which a draining host still serves.
        """
        backend = self.backend
        if backend.blocked is not None and not (resumed and backend.draining):
            return backend.blocked
        breaker = self.breaker
        if not breaker.is_closed:
            seconds = breaker.refused_seconds(now)
            if seconds:
                by_time = breaker.state is BreakerState.OPEN
                return BackendVerdict(False, breaker.describe(now), seconds, by_time=by_time)
        limiter = self.limiter
        if limiter is not None:
            seconds = limiter.refused_seconds(now)
            if seconds:
                return BackendVerdict(
                    False, "its limit is reached", seconds, True, by_time=not limiter.is_full
                )
        return AVAILABLE
