"""The targets of the current routes: which get requests, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from poolctl.logs.log_line import stamp
from poolctl.routing import route as routing
from poolctl.routing.route import Route, StreamRoute
from poolctl.routing.route_health import route_health
from poolctl.routing.route_report import BackendReport, BreakerState, RequestedBackendState, route_key

from ..settings import Endpoint
from ..target import MachineState, ServerFacts, Target, TargetState
from .breaker import NO_CONNECTION, Breaker, Results
from .counts import CONNECT, RESPONSE, TrafficCounts
from .hosts import HostStates

_OF_MACHINES = {MachineState.STOPPED: TargetState.SLEEPING, MachineState.STARTING: TargetState.STARTING}
# Tolerance for shares of a number, which are not exact as binary fractions: three tenths of ten are three.
_ROUNDING = 1e-9
_BREAKER_ORDER = (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED)

AnyServedRoute = Route | StreamRoute


class TargetsNow(NamedTuple):
    """The targets at one moment, by key, and by `route_key` and key those whose breaker on this route is not closed."""

    by_key: Mapping[str, Target] = MappingProxyType({})
    on_routes: Mapping[tuple[str, str], Target] = MappingProxyType({})

    def of(self, route: AnyServedRoute) -> dict[str, Target]:
        """The route's targets by key. The ready ones serve, else the starting ones, else the sleeping ones.

        Breakers do not matter while all others are open, too.
        """
        name = route_key(route)
        found = {each.key: self.on_routes.get((name, each.key), self.by_key[each.key]) for each in route.to}
        able = [each for each in found.values() if each.can_serve]
        closed = [each for each in able if each.breaker is BreakerState.CLOSED]
        best = min((each.state for each in closed or able), default=None)
        for key, target in found.items():
            if best is None or not target.can_serve:
                continue
            if closed and target.breaker is not BreakerState.CLOSED:
                is_tested = target.breaker is BreakerState.HALF_OPEN and target.state <= best
                found[key] = target._replace(serves=is_tested)
            else:
                found[key] = target._replace(serves=target.state is best, probes=0)
        return found


class Targets:
    """The targets of the current routes. `event(kind, **data)` is called when a breaker opens or closes.

    What is known about a server of the pool comes from the supervisor (`facts` returns None for another target), and
    about others from probes and machines; from an operator's commands (`hosts`), and from the breakers, which get what
    HAProxy has counted by `record_results`. `now` is the monotonic clock of the facts and of `hosts`.
    """

    def __init__(
        self,
        facts: Callable[[str], ServerFacts | None],
        hosts: HostStates,
        counts: TrafficCounts,
        event: Callable[..., object],
        now: Callable[[], float],
    ) -> None:
        self.hosts = hosts
        self.counts = counts
        self.routes: tuple[AnyServedRoute, ...] = ()
        self.probed: Mapping[str, Target] = {}  # what the probes of URLs have found
        self.machines: Mapping[str, MachineState] = {}
        self.unknown: Collection[str] = ()  # targets whose machine is not known yet
        self.unresolved: Collection[str] = ()  # host names whose address is not known
        self._facts = facts
        self._event = event
        self._now = now
        self._users: dict[str, list[AnyServedRoute]] = {}  # the routes to each target
        self._by_key: dict[str, AnyServedRoute] = {}
        self._breakers: dict[tuple[str, str], Breaker] = {}  # by route and target, once it had results
        self._answers: dict[str, bool] = {}  # whether a target has ever answered, once it had results
        self.unexplained: dict[str, routing.Target] = {}  # no connection could be made to them, for `explain`

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
        self._answers = {key: each for key, each in self._answers.items() if key not in gone}
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

    def facts(self) -> dict[str, ServerFacts]:
        """The facts about each server to which a route leads, by name."""
        found = {key: self._facts(key) for key in self._users}
        return {key: each for key, each in found.items() if each is not None}

    def target(self, key: str) -> Target:
        """The target as it is for all routes."""
        record = self.hosts.host_record(key)
        if record.state == RequestedBackendState.DISABLED:
            return Target(TargetState.STOPPED, record.why)
        facts = self._facts(key)
        found = self._outside(key) if facts is None else facts.target
        if record.state == RequestedBackendState.DRAINING and found.can_serve:
            return Target(TargetState.DRAINING, record.why)
        return found

    def now(self, keys: Iterable[str]) -> TargetsNow:
        """The targets with these keys at this moment."""
        by_key = {key: self.target(key) for key in keys}
        return TargetsNow(
            by_key,
            {
                (name, key): by_key[key]._replace(
                    breaker=each.state,
                    reason=by_key[key].reason or each.describe_problem(self._now()),
                    probes=each.rule.probes if each.state is BreakerState.HALF_OPEN else 0,
                )
                for (name, key), each in self._breakers.items()
                if key in by_key and not each.is_closed
            },
        )

    def _outside(self, key: str) -> Target:
        if "://" not in key and not key.startswith("unix:") and ":" not in key:
            return Target(TargetState.DOWN, "there is no such server")
        machine = self.machines.get(key)
        if machine is not None and machine.state == MachineState.FAILED:
            return Target(TargetState.DOWN, machine.why)
        if machine is not None and machine.state in _OF_MACHINES:
            return Target(_OF_MACHINES[machine.state])
        if self.unresolved and (name := Endpoint.of_url(key).host) in self.unresolved:
            return Target(TargetState.DOWN, f"no address is found for {name}")
        if key in self.unknown:
            return Target(TargetState.STARTING)
        probed = self.probed.get(key, Target(answers=None))
        return probed._replace(answers=probed.answers or self._answers.get(key))

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
            self._answers[key] = True
        elif found.failed or found.unreached:
            self._answers.setdefault(key, False)
        breaker = self._breakers.setdefault((route_key(route), key), Breaker(route.breaker))
        before, target = breaker.state, self.target(key)
        is_new = facts is not None and facts.ready_at > breaker.since
        if before is not BreakerState.CLOSED and (is_new or not target.can_serve):
            breaker.close()  # its results are outdated
        else:
            breaker.record(found, self._now(), is_dispensable=self._is_dispensable(route, key))
        if before is BreakerState.CLOSED and not breaker.is_closed:
            if breaker.why == NO_CONNECTION:
                self.unexplained[key] = next(each for each in route.to if each.key == key)
            else:
                self._event("breaker opened", host=key, why=breaker.why)
        elif before is not BreakerState.CLOSED and breaker.is_closed:
            self._event("breaker closed", host=key, why=target.reason or "it gets requests again")
        return breaker.state is not before

    def _is_dispensable(self, route: AnyServedRoute, key: str) -> bool:
        """Whether another target serves the route, and its share of open breakers stays within `max_open`."""
        keys = {target.key for target in route.to}
        closed = {each for each in keys - {key} if self._breaker_state(route, each) is BreakerState.CLOSED}
        most = route.breaker.max_open * len(keys) + _ROUNDING
        return len(keys) - len(closed) <= most and any(self.target(each).can_serve for each in closed)

    def _breaker_state(self, route: AnyServedRoute, key: str) -> BreakerState:
        breaker = self._breakers.get((route_key(route), key))
        return BreakerState.CLOSED if breaker is None else breaker.state

    def explain(self, key: str, why: str) -> None:
        """Record why no connection to the target can be made; "" if that is not known."""
        reason = f"{NO_CONNECTION}: {why}" if why else NO_CONNECTION
        for (_, each), breaker in self._breakers.items():
            if each == key and breaker.why == NO_CONNECTION:
                breaker.why = reason
        self._event("breaker opened", host=key, why=reason)

    def reports(
        self, in_flight: Mapping[tuple[str, str], int], queued: Mapping[str, int]
    ) -> Iterator[BackendReport]:
        """A report on each target. `in_flight` is by `route_key` and target, `queued` by `route_key`."""
        now = self.now(self._users)
        of_routes = {name: now.of(route) for name, route in self._by_key.items()}
        for key, users in self._users.items():
            record, traffic = self.hosts.host_record(key), self.counts.backends[key]
            names = [*map(route_key, users)]
            found = [of_routes[name][key] for name in names]
            breakers = {each.breaker for each in found}
            forwarded = sum(in_flight.get((name, key), 0) for name in names)
            yield BackendReport(
                host=key,
                routes=tuple(dict.fromkeys(user.alias for user in users)),
                state=record.state,
                since=stamp(record.since) if record.since else "",
                until=stamp(record.until) if record.until else "",
                available=found[0].can_serve
                and (BreakerState.CLOSED in breakers or any(each.serves for each in found)),
                why=next((each.reason for each in found if each.reason), ""),
                health=route_health(each.health for each in found).status,
                breaker=next(each for each in _BREAKER_ORDER if each in breakers),
                connections=forwarded,
                in_flight=forwarded,
                waiting=sum(queued.get(name, 0) for name in names),
                requests=traffic.requests,
                errors=traffic.failures + traffic.errors[CONNECT] + traffic.errors[RESPONSE],
            )
