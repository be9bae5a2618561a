"""The targets of the current routes: which get requests, and why the others do not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
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

_STATES_OF_MACHINES = {
    MachineState.STOPPED: TargetState.SLEEPING,
    MachineState.STARTING: TargetState.STARTING,
}
# Tolerance for inexact binary fractions: three tenths of ten are three.
_ROUNDING = 1e-9
_BREAKER_ORDER = (BreakerState.OPEN, BreakerState.HALF_OPEN, BreakerState.CLOSED)

AnyServedRoute = Route | StreamRoute


class TargetsNow(NamedTuple):
    """A snapshot of the targets by key, and, by `route_key` and key, of targets with an open or half-open breaker."""

    by_key: Mapping[str, Target] = MappingProxyType({})
    on_routes: Mapping[tuple[str, str], Target] = MappingProxyType({})

    def of(self, route: AnyServedRoute) -> dict[str, Target]:
        """The route's targets by key, with `serves` set: ready targets serve, else starting, else sleeping ones.

        If no breaker is closed, breakers are ignored.
        """
        name, keys = route_key(route), [target.key for target in route.to]
        targets = {key: self.on_routes.get((name, key), self.by_key[key]) for key in keys}
        candidates = [target for target in targets.values() if target.can_serve]
        closed = [target for target in candidates if target.breaker is BreakerState.CLOSED]
        best = min((target.state for target in closed or candidates), default=None)
        for key, target in targets.items():
            if best is None or not target.can_serve:
                continue
            if closed and target.breaker is not BreakerState.CLOSED:
                is_tested = target.breaker is BreakerState.HALF_OPEN and target.state <= best
                targets[key] = target._replace(serves=is_tested)
            else:
                targets[key] = target._replace(serves=target.state is best, probes=0)
        return targets


class Targets:
    """The targets of the current routes. `event(kind, **data)` is called when a breaker opens or closes.

    Their state comes from the supervisor for the pool's servers (`facts` returns None for other targets), from probes
    and machines for the others; from an operator's commands (`hosts`); and from the breakers, which get HAProxy's
    counters by `record_results`. `now` is the monotonic clock of the facts and of `hosts`.
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
        self.probed: Mapping[str, Target] = {}  # the results of probes, by URL
        self.machines: Mapping[str, MachineState] = {}
        self.unknown: Set[str] = frozenset()  # targets that may have a machine, which is not known yet
        self.unresolved: Collection[str] = ()  # host names without a known address
        self._facts = facts
        self._event = event
        self._now = now
        self._users: dict[str, list[AnyServedRoute]] = {}  # the routes to each target
        self._by_key: dict[str, AnyServedRoute] = {}
        self._breakers: dict[tuple[str, str], Breaker] = {}  # by route and target, once it had results
        self._answers: dict[str, bool] = {}  # whether a target has ever answered, once it had results
        self.unexplained: dict[str, routing.Target] = {}  # unreachable targets, for `explain`

    def set_routes(self, routes: Iterable[AnyServedRoute]) -> None:
        """Use the targets of these routes, and forget all others."""
        self.routes = tuple(routes)
        before, self._users = self._users.keys(), {}
        for route in self.routes:
            for target in route.to:
                users = self._users.setdefault(target.key, [])
                if not users or users[-1] is not route:  # it may name a target twice
                    users.append(route)
        removed = before - self._users.keys()
        self.hosts.forget(removed)
        self._answers = {key: answered for key, answered in self._answers.items() if key not in removed}
        self._by_key = {route_key(route): route for route in self.routes}
        breakers, self._breakers = self._breakers, {}
        for (name, key), breaker in breakers.items():
            current = self._by_key.get(name)
            if current is not None and any(target.key == key for target in current.to):
                breaker.rule = current.breaker
                self._breakers[name, key] = breaker
        streams = [route.alias for route in self.routes if isinstance(route, StreamRoute)]
        http = [route.alias for route in self.routes if isinstance(route, Route)]
        self.counts.retain_only(http, streams, self._users)

    @property
    def keys(self) -> list[str]:
        """The targets of all routes: names of servers, and URLs."""
        return [*self._users]

    def facts(self) -> dict[str, ServerFacts]:
        """The facts about each routed server, by name."""
        return {key: facts for key in self._users if (facts := self._facts(key)) is not None}

    def target(self, key: str) -> Target:
        """The target as it is for all routes."""
        record = self.hosts.host_record(key)
        if record.state == RequestedBackendState.DISABLED:
            return Target(TargetState.STOPPED, record.why)
        facts = self._facts(key)
        target = self._outside(key) if facts is None else facts.target
        if record.state == RequestedBackendState.DRAINING and target.can_serve:
            return Target(TargetState.DRAINING, record.why)
        return target

    def now(self, keys: Iterable[str]) -> TargetsNow:
        """The targets with these keys at this moment."""
        by_key = {key: self.target(key) for key in keys}
        return TargetsNow(
            by_key,
            {
                (name, key): by_key[key]._replace(
                    breaker=breaker.state,
                    reason=by_key[key].reason or breaker.describe_problem(self._now()),
                    probes=breaker.rule.probes if breaker.state is BreakerState.HALF_OPEN else 0,
                )
                for (name, key), breaker in self._breakers.items()
                if key in by_key and not breaker.is_closed
            },
        )

    def _outside(self, key: str) -> Target:
        if ":" not in key:
            return Target(TargetState.DOWN, "there is no such server")
        machine = self.machines.get(key)
        if machine is not None and machine.state == MachineState.FAILED:
            return Target(TargetState.DOWN, machine.why)
        if machine is not None and machine.state in _STATES_OF_MACHINES:
            return Target(_STATES_OF_MACHINES[machine.state])
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
        not_closed = [place for place, breaker in self._breakers.items() if not breaker.is_closed]
        for name, key in dict.fromkeys((*results, *not_closed)):
            if (route := self._by_key.get(name)) is not None:
                changed |= self._record(route, key, results.get((name, key), Results()))
        return changed

    def _record(self, route: AnyServedRoute, key: str, results: Results) -> bool:
        facts = self._facts(key)
        if facts is not None:
            # The supervisor knows better whether a server of the pool can be reached.
            results = results._replace(unreached=0)
        if results.answered:
            self._answers[key] = True
        elif results.failed or results.unreached:
            self._answers.setdefault(key, False)
        breaker = self._breakers.setdefault((route_key(route), key), Breaker(route.breaker))
        state_before, target = breaker.state, self.target(key)
        is_new = facts is not None and facts.ready_at > breaker.since
        if state_before is not BreakerState.CLOSED and (is_new or not target.can_serve):
            breaker.close()  # its results are outdated
        else:
            breaker.record(results, self._now(), is_dispensable=self._is_dispensable(route, key))
        if state_before is BreakerState.CLOSED and not breaker.is_closed:
            if breaker.why == NO_CONNECTION:
                self.unexplained[key] = next(target for target in route.to if target.key == key)
            else:
                self._event("breaker opened", host=key, why=breaker.why)
        elif state_before is not BreakerState.CLOSED and breaker.is_closed:
            self._event("breaker closed", host=key, why=target.reason or "it gets requests again")
        return breaker.state is not state_before

    def _is_dispensable(self, route: AnyServedRoute, key: str) -> bool:
        """Whether another target can serve the route and, with this breaker open, `max_open` is not exceeded."""
        name, keys = route_key(route), {target.key for target in route.to}
        breakers = {other: self._breakers.get((name, other)) for other in keys - {key}}
        closed = [other for other, breaker in breakers.items() if breaker is None or breaker.is_closed]
        max_open = route.breaker.max_open * len(keys) + _ROUNDING
        return len(keys) - len(closed) <= max_open and any(self.target(other).can_serve for other in closed)

    def explain(self, key: str, why: str) -> None:
        """Record why no connection to the target can be made; "" if that is not known."""
        reason = f"{NO_CONNECTION}: {why}" if why else NO_CONNECTION
        for (_, target), breaker in self._breakers.items():
            if target == key and breaker.why == NO_CONNECTION:
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
            targets = [of_routes[name][key] for name in names]
            breakers = {target.breaker for target in targets}
            forwarded = sum(in_flight.get((name, key), 0) for name in names)
            yield BackendReport(
                host=key,
                routes=tuple(dict.fromkeys(user.alias for user in users)),
                state=record.state,
                since=stamp(record.since) if record.since else "",
                until=stamp(record.until) if record.until else "",
                available=targets[0].can_serve
                and (BreakerState.CLOSED in breakers or any(target.serves for target in targets)),
                why=next((target.reason for target in targets if target.reason), ""),
                health=route_health(target.health for target in targets).status,
                breaker=next(state for state in _BREAKER_ORDER if state in breakers),
                connections=forwarded,
                in_flight=forwarded,
                waiting=sum(queued.get(name, 0) for name in names),
                requests=traffic.requests,
                errors=traffic.failures + traffic.errors[CONNECT] + traffic.errors[RESPONSE],
            )
