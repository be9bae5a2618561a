"""The backends of all routes. They keep their state when the configuration changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from random import Random

from poolctl.json_form import Table, to_json
from poolctl.logs.log_line import stamp
from poolctl.routing.route import Route
from poolctl.routing.route_health import RouteHealth, route_health
from poolctl.routing.route_report import (
    BackendReport,
    BreakerState,
    RequestedBackendState,
    route_key,
    stream_key,
)

from ..counts import TrafficCounts
from ..settings import ProbeState, ServerFacts
from .hosts import HostStates
from .route_backends import (
    READY,
    AnyRoute,
    Backend,
    BackendVerdict,
    Member,
    RouteBackends,
    route_and_backend_limits,
)


class Backends:
    """The backends of all current routes. `event(kind, **data)` is called when a breaker opens or closes."""

    def __init__(
        self,
        hosts: HostStates,
        now: Callable[[], float],
        event: Callable[..., None] | None = None,
        counts: TrafficCounts | None = None,
        random: Random | None = None,
    ) -> None:
        self.hosts = hosts
        self.now = now
        self.random = random or Random()
        self._event = event
        # Called after each passed connection of a route that balances by load; the passed connections are counted as
        # open until `set_worker_connections` brings the real number.
        self.on_passed: Callable[[], None] = lambda: None
        self._counts = counts or TrafficCounts()
        self._routes: dict[str, tuple[AnyRoute, RouteBackends]] = {}
        self._backends: dict[str, Backend] = {}
        self._servers: Mapping[str, ServerFacts] = {}
        self._probes: dict[str, ProbeState] = {}  # of URLs
        self._ranks: dict[str, tuple[int, BackendVerdict | None]] = {}  # by URL; a ready URL has no entry
        hosts.subscribe(self._host_changed)

    def apply(self, routes: Iterable[AnyRoute] | None, servers: Mapping[str, ServerFacts]) -> None:
        """Apply these routes and the facts about these servers. With `routes` None, the current routes stay.

        A current route that is missing in `routes` is removed. The backends of other routes keep their state. A caller
        with very many routes may pass only those in `aliases`, because `of` adds any other route at its first request.
        """
        self._servers = servers
        affected: dict[RouteBackends, bool] = {}  # whether weights have changed
        for backend in self._backends.values():
            facts = servers.get(backend.key)
            if backend.is_server and facts != backend.facts:
                weight = backend.weight
                self._apply_reports(backend)
                for user in backend.members:
                    affected[user] = affected.get(user, False) or backend.weight != weight
        if any(affected.values()):
            for route, known in self._routes.values():
                if affected.get(known):
                    known.apply(route, self._create_members(route, known))
        if routes is not None:
            self._apply_routes(routes)
        for user in affected:
            user.update_limits_and_admit()

    def _apply_routes(self, routes: Iterable[AnyRoute]) -> None:
        wanted = {route_key(route): route for route in routes}
        for name in self._routes.keys() - wanted.keys():
            self._routes.pop(name)[1].close()
        for route in wanted.values():
            self.of(route)
        gone = [each.key for each in self._backends.values() if not each.members and not each.in_flight]
        for key in gone:
            del self._backends[key]
        self.hosts.forget(gone)
        self._counts.retain_only([route.alias for route in wanted.values()], self._backends)

    def of(self, route: AnyRoute) -> RouteBackends:
        """The backends of this route; created by the first call, and updated if the route has changed."""
        name = route_key(route)
        known = self._routes.get(name)
        if known is not None and known[0] is route:
            return known[1]
        found = (
            known[1]
            if known is not None
            else RouteBackends(route.alias, self.hosts, self.now, self.random, lambda: self.on_passed())
        )
        self._routes[name] = route, found
        if known is None or known[0] != route:
            found.apply(route, self._create_members(route, found))
        return found

    @property
    def aliases(self) -> list[str]:
        """The aliases of the current HTTP routes, which `apply` or `of` has added and no later `apply` has removed."""
        return [route.alias for route, _ in self._routes.values() if isinstance(route, Route)]

    @property
    def servers_balanced_by_load(self) -> list[str]:
        """The names of the servers to which a route balances by load, if their `worker_connections` is not 0.

        The gateway counts connections that it passes to workers, but does not see them end. So the count may be too
        high. The supervisor knows the current counts; pass these to `set_worker_connections`.
        """
        routes = [found for _, found in self._routes.values() if found.by_load]
        return sorted(
            {each.key for route in routes for each in route.members if each.backend.worker_connections}
        )

    def set_worker_connections(self, connections: Mapping[str, int]) -> None:
        """Set the current number of connections of each server's workers."""
        for server, count in connections.items():
            if server in self._backends:
                self._backends[server].worker_connections = count

    def set_in_flight(self, requests: Mapping[str, int]) -> None:
        """Set the number of requests in flight to each host, as counted by another program; 0 for all other hosts."""
        for backend in self._backends.values():
            backend.in_flight = requests.get(backend.key, 0)

    def apply_external_proxy_verdicts(
        self,
        label: str,
        alias: str,
        down: Collection[str],
        answered: Collection[str],
        *,
        is_stream: bool,
    ) -> None:
        """Apply the verdicts of another program, such as HAProxy, that balances this route; `label` is its name.

        `down` has the keys of the backends that it cannot reach: their breakers stay open until a later call omits
        them. `answered` has the keys of backends that have ever answered. `is_stream`: the alias is a stream's.
        """
        known = self._routes.get(stream_key(alias) if is_stream else alias)
        for member in () if known is None else known[1].members:
            member.backend.answered |= member.key in answered
            if (member.key in down) is member.breaker.is_closed:
                if member.breaker.is_closed:
                    member.breaker.open_until_closed(f"{label} cannot reach it")
                else:
                    member.breaker.close(f"{label} reaches it again")

    def record_probe(self, state: ProbeState) -> None:
        """Record the result of a probe of a URL. While the probe fails, the backend gets no requests."""
        self._probes[state.host] = state
        backend = self._backends.get(state.host)
        if backend is not None and not backend.is_server:
            was_blocked = backend.blocked is not None
            self._apply_reports(backend)
            if was_blocked and backend.blocked is None:
                backend.let_breakers_probe_now(self.now())
            for user in [*backend.members]:
                user.update_limits_and_admit()

    def forget_probes(self) -> None:
        """Forget all results of probes."""
        for url in [*self._probes]:
            self.record_probe(ProbeState(host=url))
        self._probes.clear()

    def set_rank(self, url: str, rank: int, blocked: BackendVerdict | None) -> None:
        """Store a URL's rank (READY, STARTING or SLEEPING). `blocked` is why the URL gets no requests, or None."""
        self._ranks[url] = rank, blocked
        backend = self._backends.get(url)
        if backend is not None and not backend.is_server:
            self._apply_reports(backend)
            backend.let_breakers_probe_now(self.now())
            for user in [*backend.members]:
                user.update_limits_and_admit()
        if rank == READY and blocked is None:
            del self._ranks[url]

    def snapshot(self) -> list[Table]:
        """Every host with its state: the fields of BackendReport."""
        now = self.now()
        return [to_json(self._backend_report(each, now)) for each in self._backends.values()]

    def healths(self) -> dict[str, dict[str, Table]]:
        """Return, by the name of each current route or stream, the health of each of its backends by key.

        The name is the alias. A stream's name also has a prefix, because an HTTP route may have the same alias.
        """
        return {
            name: {key: to_json(each) for key, each in found.healths().items()}
            for name, (_, found) in self._routes.items()
        }

    def queued_by_route(self) -> dict[str, int]:
        """Return, by alias, the number of queued requests of each HTTP route that has queued requests."""
        return {
            route.alias: found.waiting
            for route, found in self._routes.values()
            if isinstance(route, Route) and found.waiting
        }

    def _health(self, backend: Backend) -> RouteHealth:
        return route_health(
            each.health(self.now(), passing=route.passes_connections)
            for route, each in backend.members.items()
        )

    def _create_members(self, route: AnyRoute, user: RouteBackends) -> list[Member]:
        """Return a new Member for each backend of the route. The weights of targets with the same backend add up.

        `user` is the route's RouteBackends, whose old Members may pass their breakers and limiters on to the new ones.
        """
        weights: dict[str, int] = {}
        for target in route.to:
            weights[target.key] = weights.get(target.key, 0) + target.weight
        previous = {each.key: each for each in user.members}
        servers = {target.server for target in route.to}
        found = []
        for key, weight in weights.items():
            backend = self._backends.get(key)
            if backend is None:
                backend = self._backends[key] = Backend(key, self._counts.backend(key), key in servers)
                self._apply_reports(backend)
            breaker = backend.shared_breaker(
                route.breaker, previous.get(key), partial(self._handle_breaker_change, key)
            )
            limiter = backend.shared_limiter(route_and_backend_limits(route)[1], previous.get(key))
            made = backend.members[user] = Member(backend, weight * backend.weight, breaker, limiter)
            found.append(made)
        return found

    def _apply_reports(self, backend: Backend) -> None:
        if backend.is_server:
            backend.apply_facts(self._servers.get(backend.key), self.now(), self.hosts.wall())
        else:
            if self._ranks:
                backend.set_rank(*self._ranks.get(backend.key, (READY, None)))
            if (state := self._probes.get(backend.key)) is not None:
                backend.record_probe(state)
        backend.update_blocked(self.hosts)

    def _host_changed(self, host: str, state: RequestedBackendState, why: str) -> None:
        backend = self._backends.get(host)
        if backend is not None:
            backend.update_blocked(self.hosts)
            if state is RequestedBackendState.ACTIVE:
                backend.let_breakers_probe_now(self.now())
            for route in backend.members:
                route.close_breakers_if_none_serves()
            for route in [*backend.queued]:
                route.admit()

    def _handle_breaker_change(self, host: str, state: BreakerState, why: str) -> None:
        if state is BreakerState.OPEN and (backend := self._backends.get(host)) is not None:
            for route in backend.members:
                route.close_breakers_if_none_serves()
        if self._event is not None and state is not BreakerState.HALF_OPEN:
            self._event(f"breaker {'opened' if state is BreakerState.OPEN else 'closed'}", host=host, why=why)

    def _backend_report(self, backend: Backend, now: float) -> BackendReport:
        record, verdict = self.hosts.host_record(backend.key), backend.best_verdict(now)
        traffic, canary = backend.counts, backend.canary
        connections = backend.open_connections + (0 if canary is None else canary.open_connections)
        return BackendReport(
            host=backend.key,
            routes=tuple(route.alias for route in backend.members),
            state=record.state,
            since=stamp(record.since) if record.since else "",
            until=stamp(record.until) if record.until else "",
            available=verdict.ok,
            why=verdict.why or backend.breaker_why(now),
            health=self._health(backend).status,
            breaker=str(backend.worst_breaker_state or ""),
            connections=max(connections, backend.in_flight),
            in_flight=backend.in_flight,
            waiting=sum(route.waiting for route in backend.members),
            requests=traffic.requests,
            errors=traffic.failures,
        )
