"""The targets of routes: servers of the pool and URLs, whether they get requests, and why not."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from poolctl.core.core import Core
from poolctl.core.decide import LEAVING
from poolctl.core.schedules import asleep_until
from poolctl.core.server_entry import Entry
from poolctl.logs.log_line import stamp
from poolctl.routing.route import Route, StreamRoute, Target
from poolctl.routing.route_health import (
    ERROR,
    HEALTHY,
    NAPPING,
    UNHEALTHY,
    UNKNOWN,
    RouteHealth,
    route_health,
)
from poolctl.routing.route_health import STARTING as ROUTE_STARTING
from poolctl.routing.route_report import BackendReport, BreakerState, RequestedBackendState, route_key
from poolctl.states import State
from poolctl.time_windows import until_text
from poolctl.worker import tally

from ..settings import H2, Endpoint, MachineState, ProbeState, ServerFacts
from .breaker import NO_CONNECTION, Breaker, Results
from .counts import CONNECT, RESPONSE, TrafficCounts
from .hosts import HostStates

# Targets of a lower rank are preferred: a connection to a starting server waits until it is ready, and a sleeping one
# is woken only when no other can serve.
READY, STARTING, SLEEPING = 0, 1, 2
_HEALTH_OF_RANKS = {STARTING: ROUTE_STARTING, SLEEPING: NAPPING}
_RANK_OF_STATES = {State.STARTING.value: STARTING, State.SLEEPING.value: SLEEPING}
_RANK_OF_MACHINES = {MachineState.STOPPED: SLEEPING, MachineState.STARTING: STARTING}
# Server states that result from a stop, disable or drain command.
_ORDERED_STATES = (State.STOPPED.value, State.DISABLED.value, State.DRAINING.value)
# Tolerance for shares of a number, which are not exact as binary fractions: three tenths of ten are three.
_ROUNDING = 1e-9
_NOT_ANSWERED, ONLY_FAILED = "it has not answered yet", "all its requests have failed so far"
_BREAKER_ORDER = (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED)

AnyServedRoute = Route | StreamRoute


@dataclass(frozen=True, slots=True)
class TargetState:
    """Whether a target gets requests: not if there is a reason `why`. `by_command`: the reason is not a failure."""

    rank: int = READY
    why: str = ""
    by_command: bool = False
    failed: bool = False
    draining: bool = False


class TargetsInUse(NamedTuple):
    """The targets to which a route's requests go now.

    `draining` ones only serve clients whose cookie names them. `tested` ones get at most this number of concurrent
    requests, because their breaker is half-open. `rank` is that of the `serving` ones; READY without any.
    """

    serving: set[str]
    draining: set[str]
    tested: dict[str, int]
    rank: int = READY


class TargetStates(NamedTuple):
    """The states of targets at one moment.

    `breakers` are those that are not closed, by `route_key` and target. The `unknown` targets may be in another state.
    """

    states: Mapping[str, TargetState] = MappingProxyType({})
    breakers: Mapping[tuple[str, str], BreakerState] = MappingProxyType({})
    unknown: frozenset[str] = frozenset()

    def changed_since(self, before: TargetStates) -> list[str]:
        """The targets whose states differ: routes to all others have the same targets in use."""
        places = self.breakers.keys() | before.breakers.keys()
        changed = {key for name, key in places if self._breaker(name, key) != before._breaker(name, key)}
        changed |= self.unknown ^ before.unknown
        return [
            key for key, state in self.states.items() if key in changed or before.states.get(key) != state
        ]

    def is_up(self, key: str) -> bool:
        """Whether the target accepts connections, as far as is known: it need not be woken, nor is it starting."""
        return self.states[key].rank == READY and key not in self.unknown

    def in_use(self, route: AnyServedRoute) -> TargetsInUse:
        """The targets that get the route's requests now: the ready ones, else the starting, else the sleeping ones.

        Breakers do not matter while all others are open, too.
        """
        name, states = route_key(route), {target.key: self.states[target.key] for target in route.to}
        able = [key for key, each in states.items() if not each.why]
        closed = [key for key in able if self._breaker(name, key) is BreakerState.CLOSED]
        best = min((states[key].rank for key in closed or able), default=READY)
        return TargetsInUse(
            serving={key for key in closed or able if states[key].rank == best},
            draining={key for key, each in states.items() if each.draining},
            tested={
                key: route.breaker.probes
                for key in able
                if closed and states[key].rank <= best and self._breaker(name, key) is BreakerState.HALF_OPEN
            },
            rank=best,
        )

    def _breaker(self, route: str, key: str) -> BreakerState:
        return self.breakers.get((route, key), BreakerState.CLOSED)


def facts_of(core: Core, entry: Entry) -> ServerFacts:
    """The server's current address and its state."""
    config, state = entry.config, entry.state
    endpoints = core.endpoints(config)
    waits = bool(endpoints) or config.is_proxied or config.binds_itself
    if entry.listener.armed is not None:
        # Even while its last worker is still draining: a connection wakes the server.
        state = State.SLEEPING
    elif state is State.BACKOFF and waits and not entry.refuses:
        state = State.STARTING
    elif state is State.STARTING and not waits:
        # The address is not open yet: a connection would be refused.
        state = State.STOPPED
    processes, numbered = _processes(entry) if config.is_proxied else (None, ())
    return ServerFacts(
        bind=endpoints[0] if endpoints else config.key,
        tls=bool(config.tls),
        state=state,
        ready=entry.ready and not entry.out_of_rotation,
        ready_at=max((each.ready_at or 0.0 for each in entry.observed.ready), default=0.0),
        asleep_until=asleep_until(entry),
        processes=processes,
        numbered=numbered,
        binds_itself=config.binds_itself,
        h2=config.backend_protocol == H2,
        is_leaving=any(each.phase in LEAVING for each in entry.observed.workers.values()),
    )


def _processes(entry: Entry) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The addresses of a proxied server's ready processes: of all, and of the newest one of each index, or ""."""
    ready = [
        (each, each.placement.address)
        for each in entry.observed.ready
        if each.placement is not None and not each.ko and each.exit is None
    ]
    newest = {each.index: address for each, address in sorted(ready, key=lambda pair: pair[0].generation)}
    return (
        tuple(address for _, address in ready),
        tuple(newest.get(index, "") for index in range(entry.size)),
    )


def worker_counts(core: Core, entry: Entry) -> Iterator[tally.Counts]:
    """Yield each worker's counts of requests and connections; skip workers without counts, such as commands."""
    for worker in entry.observed.workers.values():
        if worker.placement is not None and (counts := core.runner.counts(worker.placement)) is not None:
            yield counts


class Targets:
    """The targets of the current routes. `event(kind, **data)` is called when a breaker opens or closes.

    The state of a target comes from the supervisor's facts about a server of the pool (`facts` returns None for another
    target), from an operator's commands (`hosts`), from probes, from machines, and from the breakers, which get what
    HAProxy has counted by `record_results`. `now` is the monotonic clock of the facts and of `hosts`.
    """

    def __init__(
        self,
        facts: Callable[[str], ServerFacts | None],
        hosts: HostStates,
        counts: TrafficCounts,
        event: Callable[..., object],
        now: Callable[[], float],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.hosts = hosts
        self.counts = counts
        self.routes: tuple[AnyServedRoute, ...] = ()
        self.probes: Mapping[str, ProbeState] = {}
        self.machines: Mapping[str, MachineState] = {}
        self.unknown: Collection[str] = ()  # targets whose state is not known yet
        self.unresolved: Collection[str] = ()  # host names whose address is not known
        self._facts = facts
        self._event = event
        self._now = now
        self._wall = wall
        self._users: dict[str, list[AnyServedRoute]] = {}  # the routes to each target
        self._by_key: dict[str, AnyServedRoute] = {}
        self._breakers: dict[tuple[str, str], Breaker] = {}  # by route and target, once it had results
        self._answered, self._failed = set[str](), set[str]()
        self.unexplained: set[str] = set()  # targets to which no connection could be made, for `explain`

    def follow(self, probes: Mapping[str, ProbeState], machines: Mapping[str, MachineState]) -> None:
        """Use these reports, by target, from now on."""
        self.probes, self.machines = probes, machines

    def set_routes(self, routes: Iterable[AnyServedRoute]) -> None:
        """Use the targets of these routes, and forget all others."""
        self.routes = tuple(routes)
        before, self._users = self._users.keys(), {}
        for route in self.routes:
            for target in route.to:
                users = self._users.setdefault(target.key, [])
                if not users or users[-1] is not route:  # it may name a target twice
                    users.append(route)
        gone = before - self._users.keys()
        self.hosts.forget(gone)
        self._answered -= gone
        self._failed -= gone
        self._by_key = {route_key(each): each for each in self.routes}
        breakers, self._breakers = self._breakers, {}
        for (name, key), breaker in breakers.items():
            known = self._by_key.get(name)
            if known is not None and any(target.key == key for target in known.to):
                breaker.rule = known.breaker
                self._breakers[name, key] = breaker
        streams = [each.alias for each in self.routes if isinstance(each, StreamRoute)]
        http = [each.alias for each in self.routes if isinstance(each, Route)]
        self.counts.retain_only(http, streams, self._users)

    @property
    def keys(self) -> list[str]:
        """The names of servers, and the URLs, to which routes lead."""
        return [*self._users]

    def target(self, key: str) -> Target:
        """The first target of the routes with this key."""
        users = self._users.get(key, ())
        return next((each for route in users for each in route.to if each.key == key), Target(url=key))

    def facts(self) -> dict[str, ServerFacts]:
        """The facts about each server to which a route leads, by name."""
        found = {key: self._facts(key) for key in self._users}
        return {key: each for key, each in found.items() if each is not None}

    def state(self, key: str) -> TargetState:
        """The state of a target."""
        record = self.hosts.host_record(key)
        facts = self._facts(key)
        own = self._url_state(key) if facts is None else self._server_state(facts)
        if record.state == RequestedBackendState.DISABLED:
            return TargetState(own.rank, record.why, by_command=True)
        if record.state == RequestedBackendState.DRAINING and not own.why:
            return TargetState(own.rank, record.why, by_command=True, draining=True)
        return own

    def states(self, keys: Iterable[str]) -> TargetStates:
        """The present states of these targets, and all breakers."""
        breakers = {place: each.state for place, each in self._breakers.items() if not each.is_closed}
        return TargetStates({key: self.state(key) for key in keys}, breakers, frozenset(self.unknown))

    def _server_state(self, facts: ServerFacts) -> TargetState:
        if facts.ready:
            return TargetState()
        if facts.asleep_until is not None:
            why = f"kept asleep {until_text(facts.asleep_until or None, self._wall())}".rstrip()
            return TargetState(why=why, by_command=True)
        if (rank := _RANK_OF_STATES.get(facts.state)) is not None:
            return TargetState(rank)
        what = "not ready" if facts.state == State.RUNNING else facts.state
        ordered, failed = facts.state in _ORDERED_STATES, facts.state == State.FAILED
        return TargetState(why=f"the server is {what}", by_command=ordered, failed=failed)

    def _url_state(self, key: str) -> TargetState:
        if "://" not in key and not key.startswith("unix:") and ":" not in key:
            return TargetState(why="there is no such server")
        machine, probe = self.machines.get(key), self.probes.get(key)
        if machine is not None and machine.state == MachineState.FAILED:
            return TargetState(why=machine.why)
        if machine is not None and machine.state in _RANK_OF_MACHINES:
            return TargetState(_RANK_OF_MACHINES[machine.state])
        if self.unresolved and (name := Endpoint.of_url(key).host) in self.unresolved:
            return TargetState(why=f"no address is found for {name}")
        return TargetState(why=probe.why if probe is not None else "")

    def in_use(self, route: AnyServedRoute) -> TargetsInUse:
        """The targets that get the route's requests now."""
        return self.states(target.key for target in route.to).in_use(route)

    def record_results(self, results: Mapping[tuple[str, str], Results]) -> bool:
        """Record what HAProxy has counted, by `route_key` and target, since the last call.

        Returns whether other targets get requests now. Call it about once a second, also without results, because
        breakers change with time.
        """
        changed = False
        not_closed = [place for place, each in self._breakers.items() if not each.is_closed]
        for name, key in dict.fromkeys((*results, *not_closed)):
            if (route := self._by_key.get(name)) is not None:
                changed |= self._record(route, key, results.get((name, key), Results()))
        return changed

    def _record(self, route: AnyServedRoute, key: str, found: Results) -> bool:
        facts = self._facts(key)
        if facts is not None:
            # The supervisor knows better whether a server of the pool can be reached.
            found = found._replace(unreached=0)
        if found.answered:
            self._answered.add(key)
        elif found.failed or found.unreached:
            self._failed.add(key)
        breaker = self._breakers.setdefault((route_key(route), key), Breaker(route.breaker))
        before, blocked = breaker.state, self.state(key).why
        is_new = facts is not None and facts.ready_at > breaker.since
        if before is not BreakerState.CLOSED and (blocked or is_new):
            breaker.close()  # its results are outdated
        else:
            breaker.record(found, self._now(), is_dispensable=self._is_dispensable(route, key))
        if before is BreakerState.CLOSED and not breaker.is_closed:
            if breaker.why == NO_CONNECTION:
                self.unexplained.add(key)
            else:
                self._event("breaker opened", host=key, why=breaker.why)
        elif before is not BreakerState.CLOSED and breaker.is_closed:
            self._event("breaker closed", host=key, why=blocked or "it gets requests again")
        return breaker.state is not before

    def _is_dispensable(self, route: AnyServedRoute, key: str) -> bool:
        """Whether another target serves the route, and its share of open breakers stays within `max_open`."""
        keys = {target.key for target in route.to}
        closed = {each for each in keys - {key} if self._breaker_state(route, each) is BreakerState.CLOSED}
        most = route.breaker.max_open * len(keys) + _ROUNDING
        return len(keys) - len(closed) <= most and any(not self.state(each).why for each in closed)

    def _breaker_state(self, route: AnyServedRoute, key: str) -> BreakerState:
        breaker = self._breakers.get((route_key(route), key))
        return BreakerState.CLOSED if breaker is None else breaker.state

    def _breaker_problem(self, route: AnyServedRoute, key: str) -> str:
        breaker = self._breakers.get((route_key(route), key))
        return "" if breaker is None else breaker.describe_problem(self._now())

    def explain(self, key: str, why: str) -> None:
        """Record why no connection to the target can be made; "" if that is not known."""
        self.unexplained.discard(key)
        reason = f"{NO_CONNECTION}: {why}" if why else NO_CONNECTION
        for (_, each), breaker in self._breakers.items():
            if each == key and breaker.why == NO_CONNECTION:
                breaker.why = reason
        self._event("breaker opened", host=key, why=reason)

    def health(self, route: AnyServedRoute, key: str) -> RouteHealth:
        """The target's health on this route."""
        state = self.state(key)
        if state.why:
            status = UNKNOWN if state.by_command else ERROR if state.failed else UNHEALTHY
            return RouteHealth(status=status, detail=state.why)
        if problem := self._breaker_problem(route, key):
            return RouteHealth(status=UNHEALTHY, detail=problem)
        if state.rank != READY:
            return RouteHealth(status=_HEALTH_OF_RANKS[state.rank])
        probe = self.probes.get(key)
        if self._facts(key) is not None or key in self._answered or (probe is not None and probe.answered):
            return RouteHealth(status=HEALTHY)
        if key in self._failed:
            return RouteHealth(status=UNHEALTHY, detail=ONLY_FAILED)
        return RouteHealth(status=UNKNOWN, detail=_NOT_ANSWERED)

    def reports(
        self, in_flight: Mapping[tuple[str, str], int], queued: Mapping[str, int]
    ) -> Iterator[BackendReport]:
        """A report on each target. `in_flight` is by `route_key` and target, `queued` by `route_key`."""
        states = self.states(self._users)
        used = {name: states.in_use(route) for name, route in self._by_key.items()}
        for key, users in self._users.items():
            names = [*map(route_key, users)]
            yield self._report(
                key,
                users,
                is_used=any(key in used[name].serving or key in used[name].tested for name in names),
                forwarded=sum(in_flight.get((name, key), 0) for name in names),
                waiting=sum(queued.get(name, 0) for name in names),
            )

    def _report(
        self, key: str, users: list[AnyServedRoute], *, is_used: bool, forwarded: int, waiting: int
    ) -> BackendReport:
        record, state, traffic = self.hosts.host_record(key), self.state(key), self.counts.backends[key]
        breakers = {self._breaker_state(each, key) for each in users}
        problems = (self._breaker_problem(each, key) for each in users)
        return BackendReport(
            host=key,
            routes=tuple(dict.fromkeys(each.alias for each in users)),
            state=record.state,
            since=stamp(record.since) if record.since else "",
            until=stamp(record.until) if record.until else "",
            available=not state.why and (is_used or BreakerState.CLOSED in breakers),
            why=state.why or next(filter(None, problems), ""),
            health=route_health(self.health(each, key) for each in users).status,
            breaker=next(each for each in _BREAKER_ORDER if each in breakers),
            connections=forwarded,
            in_flight=forwarded,
            waiting=waiting,
            requests=traffic.requests,
            errors=traffic.failures + traffic.errors[CONNECT] + traffic.errors[RESPONSE],
        )
