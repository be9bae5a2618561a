"""The backends of one route: which one gets the next request, which requests wait, and which are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from random import Random

from poolctl.routing.route import STICKY, Limit, Route, StreamRoute, passable
from poolctl.routing.route_health import RouteHealth

from .backend import (
    AVAILABLE,
    CANCELLED,
    DOWN_RETRY_SECONDS,
    RANKS,
    READY,
    Backend,
    BackendVerdict,
    CanaryBackend,
    Member,
)
from .balance import BY_LOAD, Policy, policy_of
from .client_limits import ClientLimits
from .hosts import HostManager
from .lease import Lease, NoBackend
from .limiter import Limiter, WaitQueue

# uvloop's timers and its clock count milliseconds: with shorter pauses the loop would spin.
_LEAST_PAUSE_SECONDS = 0.001

# Requests whose host another header names are proxied.
_PASSED_BY = "host"
# Tolerance for rounding a share of a number: three tenths of ten are three.
_ROUNDING = 1e-9

AnyRoute = Route | StreamRoute


class _Waiter:
    """A request in the queue of a route."""

    __slots__ = ("answer", "client", "cookie", "tried")

    def __init__(
        self, answer: asyncio.Future[Lease], client: str, cookie: str, tried: Collection[str]
    ) -> None:
        self.answer = answer
        self.client = client
        self.cookie = cookie
        self.tried = tried


class RouteBackends:
    """The backends of one route: its policy, its limit and its queue. `acquire` needs no loop, `wait` does."""

    def __init__(
        self,
        alias: str,
        hosts: HostManager,
        now: Callable[[], float],
        random: Random,
        on_passed: Callable[[], None] | None,
    ) -> None:
        self.alias = alias
        self.now = now
        self._hosts = hosts
        self._random = random
        self._on_passed = on_passed
        self.in_flight = 0
        self.members: tuple[Member, ...] = ()
        self._limiter: Limiter | None = None
        self.clients: ClientLimits | None = None
        self._queue: WaitQueue[_Waiter] = WaitQueue()
        self._queue_seconds = 0.0
        self._retry: asyncio.TimerHandle | None = None
        # The conditions that candidates are checked against while one is chosen.
        self._at, self._rank = 0.0, READY
        self._tried: Collection[str] = ()

    def __repr__(self) -> str:
        return f"<RouteBackends {self.alias}: {self.in_flight} in flight, {len(self._queue)} wait>"

    @property
    def waiting(self) -> int:
        """The number of requests in the queue."""
        return len(self._queue)

    def apply(self, route: AnyRoute, members: Sequence[Member]) -> None:
        """Use this form of the route, and these backends. Requests in flight and waiting requests stay."""
        for gone in {*self.members} - {*members}:
            if all(each.backend is not gone.backend for each in members):
                gone.backend.leave(self)
        self.members = tuple(members)
        self._is_passable = isinstance(route, Route) and passable(route)
        self._only = members[0] if len(members) == 1 else None
        self._sticky = isinstance(route, Route) and (bool(route.sticky_cookie) or route.policy == STICKY)
        self._by_cookie = {each.cookie: each for each in members}
        self.by_load = route.policy in BY_LOAD
        self._policy: Policy[Member] = policy_of(route.policy, self.members, self._random)
        limit, of_backend = limits(route)
        if limit is None:
            self._limiter = None
        elif self._limiter is None:
            self._limiter = Limiter(limit)
            self._limiter.in_flight = self.in_flight
        else:
            self._limiter.limit = limit
        of_client = route.client_limit if isinstance(route, Route) else None
        if of_client is None:
            self.clients = None
        elif self.clients is None or self.clients.limit != of_client:
            self.clients = ClientLimits(of_client)
        queue = limit if limit is not None and limit.queue else of_backend
        self._queue.size, self._queue_seconds = (queue.queue, queue.queue_seconds) if queue else (0, 0.0)
        self.refresh()

    def refresh(self) -> None:
        """Act on a change of the route's backends: their health, their state or their number."""
        self.keep_one()
        if self._limiter is not None and self.members:
            self._limiter.share = sum(each.backend.share for each in self.members) / len(self.members)
        if self._queue:
            for member in self.members:
                member.backend.queued[self] = None
            self.admit()

    def can_spare(self, backend: Backend) -> bool:
        """Whether another backend serves, and the route allows this backend to be spared as well."""
        others = [each for each in self.members if each.backend is not backend]
        left_alone = 1 + sum(not each.breaker.is_closed for each in others)
        most = max((each.breaker.rule.max_open for each in self.members), default=0.0) * len(self.members)
        return left_alone <= most + _ROUNDING and any(each.serves for each in others)

    def keep_one(self) -> None:
        """Close the breakers that answers have opened, if no other backend still serves."""
        if any(each.serves for each in self.members):
            return
        for each in self.members:
            if each.backend.blocked is None and each.breaker.by_answers:
                each.breaker.close("no other backend can serve")

    @property
    def passes(self) -> bool:
        """Whether the route passes connections on to workers."""
        return self._is_passable and self._hosts.header_for_host.lower() == _PASSED_BY

    def healths(self) -> dict[str, RouteHealth]:
        """The consequence of each backend's verdict for the route, by the backend's key."""
        now = self.now()
        return {each.key: each.health(now, passing=self.passes) for each in self.members}

    def close(self) -> None:
        """Close the route: waiting requests are refused, requests in flight end normally."""
        for waiter in self._queue:
            self._refuse(waiter, NoBackend("the route was removed", DOWN_RETRY_SECONDS))
        for member in self.members:
            member.backend.leave(self)

    def acquire(self, client: str, cookie: str = "", tried: Collection[str] = ()) -> Lease | NoBackend:
        """A backend for a request of this client now, excluding the backends `tried` before (their keys).

        `client` is its IP address, `cookie` its value of the route's sticky cookie.
        """
        if self._queue.waiting:
            return NoBackend("others wait already", self._queue_seconds, may_wait=True)
        return self._assign(client, cookie, tried)

    def choose(self, client: str) -> Backend | NoBackend:
        """Choose a backend for a connection that is passed on. Only the worker learns how its requests end.

        So there is no lease, which would be released at once. Routes with a limit pass nothing on.
        """
        now = self.now()
        if now >= self._hosts.next_expiry:
            self._hosts.expire()
        member = self._by_policy(client, self._takes_connections)
        if member is not None:
            return member.backend
        return self._refusal(now, [(each.key, each.passing_verdict()) for each in self.members])

    async def wait(self, client: str, cookie: str = "", tried: Collection[str] = ()) -> Lease:
        """Wait for a backend, for at most the route's `queue_seconds`, after earlier requests. Raises NoBackend.

        Cancel it when the client leaves: its place is free at once.
        """
        if not self._queue:
            found = self._assign(client, cookie, tried)
            if isinstance(found, Lease):
                return found
            if not found.may_wait:
                raise found
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), client, cookie, tried)
        if not self._queue.enter(waiter):
            raise NoBackend("the queue is full", self._queue_seconds)
        for member in self.members:
            member.backend.queued[self] = None
        late = NoBackend("no place became free in time", DOWN_RETRY_SECONDS)
        timer = loop.call_later(self._queue_seconds, self._refuse, waiter, late)
        self.admit()
        try:
            return await waiter.answer
        except asyncio.CancelledError:
            # It may have got a lease at the moment at which the client left.
            if not waiter.answer.cancelled() and waiter.answer.exception() is None:
                waiter.answer.result().release(CANCELLED)
            raise
        finally:
            timer.cancel()
            self._leave_queue(waiter)

    def admit(self) -> None:
        """Serve waiting requests in their order while there are places."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        while (first := self._queue.first()) is not None and self._serve(first):
            pass
        if first is None or not first.tried:
            return
        # The first request waits for a backend that it has not tried; others may have more choice.
        for waiter in self._queue:
            if waiter is not first and not self._serve(waiter) and not waiter.tried:
                return

    def admit_queued(self, backend: Backend) -> None:
        """Serve waiting requests of all routes that can use this backend."""
        for route in [*backend.queued]:
            # The others get their turn first next time.
            if route in backend.queued:
                del backend.queued[route]
                backend.queued[route] = None
                route.admit()

    def passed(self, backend: Backend) -> None:
        """A connection was handed over to the backend's workers."""
        if self.by_load:
            backend.held += 1
            if self._on_passed is not None:
                self._on_passed()

    def left(self, backend: Backend) -> None:
        """A request to the backend has ended."""
        self.in_flight -= 1
        if self._limiter is not None:
            self._limiter.leave()
        if backend.queued:
            self.admit_queued(backend)
        if self._queue.waiting:
            self.admit()

    def _serve(self, waiter: _Waiter) -> bool:
        """Try to answer the waiting request, by a backend or a refusal; returns whether it has left the queue."""
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

    def _leave_queue(self, waiter: _Waiter) -> bool:
        left = self._queue.leave(waiter)
        if left and not self._queue:
            for member in self.members:
                member.backend.queued.pop(self, None)
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
        return left

    def _assign(self, client: str, cookie: str, tried: Collection[str]) -> Lease | NoBackend:
        now = self.now()
        if now >= self._hosts.next_expiry:
            self._hosts.expire()
        limiter = self._limiter
        if limiter is not None:
            seconds = limiter.refused_seconds(now)
            if seconds:
                may_wait, by_time = self._queue.size > 0, not limiter.is_full
                return NoBackend("the route's limit is reached", seconds, may_wait=may_wait, by_time=by_time)
        member = self._choose(now, client, cookie, tried)
        if member is None:
            untried = [each for each in self.members if each.key not in tried]
            return self._refusal(now, [(each.key, each.verdict(now)) for each in untried], tried)
        backend, breaker = member.backend, member.breaker
        period = breaker.period if breaker.is_closed else breaker.enter()
        if member.limiter is not None:
            member.limiter.enter(now)
        if limiter is not None:
            limiter.enter(now)
        self.in_flight += 1
        backend.in_flight += 1
        backend.counts.began()
        if backend.canary is not None and not tried and breaker.is_closed:
            return self._shared(backend.canary, member, period, cookie)
        return Lease(self, member, period, self._new_cookie(member.cookie, cookie), backend)

    def _shared(self, canary: CanaryBackend, member: Member, period: int, cookie: str) -> Lease:
        """A lease of the server, or of its canary, whose results do not count for the breaker."""
        if not canary.gets(cookie if self._sticky else "", member.cookie):
            return Lease(
                self, member, period, self._new_cookie(member.cookie, cookie), member.backend, canary
            )
        return Lease(self, member, -1, self._new_cookie(canary.cookie, cookie), canary, canary)

    def _new_cookie(self, value: str, cookie: str) -> str:
        """The cookie value to set; "" if the client has it already, or the route is not sticky."""
        return value if self._sticky and value != cookie else ""

    def _of_canary(self, cookie: str) -> Member | None:
        """The backend whose canary the client's cookie names."""
        for member in self.members:
            if member.backend.canary is not None and member.backend.canary.cookie == cookie:
                return member
        return None

    def _choose(self, now: float, client: str, cookie: str, tried: Collection[str]) -> Member | None:
        if cookie and self._sticky:
            known = self._by_cookie.get(cookie) or self._of_canary(cookie)
            if known is not None and known.key not in tried and known.verdict(now, resumed=True).ok:
                return known
        if self._only is not None:
            usable = self._only.key not in tried and self._only.verdict(now) is AVAILABLE
            return self._only if usable else None
        self._at, self._tried = now, tried
        return self._by_policy(client, self._is_usable)

    def _by_policy(self, client: str, is_usable: Callable[[Member], bool]) -> Member | None:
        found = self._policy.choose(client, is_usable)
        if found is None:
            for self._rank in RANKS[1:]:
                found = found or self._policy.choose(client, is_usable)
            self._rank = READY
        return found

    def _takes_connections(self, member: Member) -> bool:
        return member.backend.rank == self._rank and member.passing_verdict() is AVAILABLE

    def _is_usable(self, member: Member) -> bool:
        return (
            member.backend.rank == self._rank
            and member.verdict(self._at) is AVAILABLE
            and (not self._tried or member.key not in self._tried)
        )

    def _refusal(
        self, now: float, verdicts: list[tuple[str, BackendVerdict]], tried: Collection[str] = ()
    ) -> NoBackend:
        """Why none of these backends gets the request, and when to try again."""
        if not verdicts:
            return NoBackend(
                "every backend was tried" if tried else "the route has no backend", DOWN_RETRY_SECONDS
            )
        may_wait = self._queue.size > 0 and any(verdict.may_wait for _, verdict in verdicts)
        by_time = any(verdict.by_time for _, verdict in verdicts)
        seconds = min(each.remaining_seconds(now) for _, each in verdicts if each.by_time or not by_time)
        (key, first), more = verdicts[0], len(verdicts) - 1
        why = f"{key}: {first.why}" + (f"; and {more} more" if more else "")
        return NoBackend(why, seconds, may_wait=may_wait, by_time=by_time)


def limits(route: AnyRoute) -> tuple[Limit | None, Limit | None]:
    """The limit of the route, and the limits of its backends."""
    if isinstance(route, Route):
        return route.limit, route.backend_limit
    return (Limit(concurrency=route.max_connections), None) if route.max_connections else (None, None)
