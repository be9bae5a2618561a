"""Services that register as backends of routes while the pool runs: their keys, and the routes that follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.section import Probe, Table, field, required, validated
from poolctl.config.values.normalise import merged
from poolctl.config.values.plain import BadValue
from poolctl.config.values.problems import Finding, Tree
from poolctl.features.gateway.routes import made_route, with_separation
from poolctl.features.gateway.table import GatewayConfig, RouteConfig
from poolctl.routing.match import DEFAULT, WILDCARD, HostPattern, covers_path, host_pattern
from poolctl.routing.route import REGISTRATION, AnyRoute, ExcludedRoute, Route, Target

if TYPE_CHECKING:
    from poolctl.config.model.server_keys import ServerKeys

    from ._value_types import PATH_OF_PROBE, Duration, Host, RoutePath, ServiceName, ServiceUrl, Weight

KINDS = "poolctl.features.registration._value_types"
# Only for a server's probes: a program would run as the pool's user, an expression needs a process to match it.
_NOT_PROBED = ("exec", "tcp", "body")


def _http_only(probe: Probe) -> Probe:
    other = next((key for key in _NOT_PROBED if getattr(probe, key)), None)
    if other is not None or probe.http is None:
        raise BadValue("a registered service is probed by http alone", '"/health"')
    return probe


class Registration(Table):
    """A service's own statement: the route that it is a backend of, its URL, and how long that holds."""

    table: ClassVar[str] = "registration"

    name: ServiceName = required(description="The alias of a route.")
    to: ServiceUrl = required(description="Its URL.")
    ttl: Duration = field(0.0, "It is silent after this time without a heartbeat; 0: never.")
    weight: Weight = field(1, "Its share of the traffic, relative to the other targets.")
    host: Host | None = field(None, "The host of a route of its own.")
    path: RoutePath | None = field(None, "The path of a route of its own.")
    probe: Annotated[Probe | None, PATH_OF_PROBE] = field(None, "How its health is checked.")

    @property
    def has_place(self) -> bool:
        """Whether the service gives the host or the path of its own route."""
        return self.host is not None or self.path is not None


def registration_of(given: dict[str, Tree], findings: list[Finding]) -> Registration | None:
    """The registration of these keys; None if it is invalid: the reasons are added to the findings."""
    made = validated(Registration, given, findings)
    if made is not None and made.probe is not None:
        try:
            _http_only(made.probe)
        except BadValue as wrong:
            findings.append(Finding(("probe",), str(wrong), f"allowed is {wrong.allowed}"))
            return None
    return made


class RegisteredBackend(NamedTuple):
    """A registered service as routes have it: its route's alias, and that route's place if it is one of its own.

    One that gets no requests now is not `serving`; its route stays.
    """

    name: str
    url: str
    weight: int
    host: str | None
    path: str | None
    serving: bool


def with_registrations(
    routes: Sequence[AnyRoute],
    servers: Iterable[ServerKeys],
    tables: Tables,
    registered: Iterable[RegisteredBackend],
) -> tuple[AnyRoute, ...]:
    """The routes of these servers; routes of the files with their registered backends; then services' own routes.

    Registrations without a route, and routes whose place is taken, are excluded with the reason. Other routes take
    precedence.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return tuple(routes)
    backends: dict[str, list[RegisteredBackend]] = {}
    for each in registered:
        backends.setdefault(each.name, []).append(each)
    if not backends:
        return tuple(routes)
    accepting = {each.label for each in tables.all(RouteConfig) if each.register}
    found: list[AnyRoute] = []
    for route in routes:
        its = backends.get(route.alias) if route.alias in accepting and isinstance(route, Route) else None
        found.append(route if its is None or not isinstance(route, Route) else _joined(route, its))
    taken = {each.alias for each in routes if isinstance(each, Route)}
    places = _Places(each for each in routes if isinstance(each, Route))
    defaults = gateway.defaults_of_routes()
    for name, its in backends.items():
        if name in taken:
            if name not in accepting:
                found.append(_excluded(name, "the route accepts no registrations (register = true)"))
            continue
        place = next(((each.host, each.path) for each in its if (each.host, each.path) != (None, None)), None)
        if place is None:
            reason = "there is no such route, and neither a host nor a path for one of its own"
            found.append(_excluded(name, reason))
            continue
        config = validated(RouteConfig, _own_table(defaults, name, *place), [])
        assert config is not None
        if reason := places.problem(config.host, config.path):
            found.append(_excluded(name, reason, config.host))
            continue
        own = _joined(made_route(name, config, (), REGISTRATION), its)
        places.add(own)
        found.append(own)
    return with_separation(found, servers)


def _own_table(defaults: dict[str, Tree], name: str, host: str | None, path: str | None) -> dict[str, Tree]:
    # A mode of [gateway] other than auto is about the pool's own servers.
    own = {"alias": name, "host": host or "", "path": path or "/", "register": True, "mode": "auto"}
    return merged(defaults, own)


def _joined(route: Route, registered: Iterable[RegisteredBackend]) -> Route:
    there = {each.key for each in route.to}
    more = [
        Target(url=each.url, weight=each.weight)
        for each in registered
        if each.serving and each.url not in there
    ]
    return replace(route, to=(*route.to, *more))


def _excluded(name: str, reason: str, host: str = "") -> ExcludedRoute:
    return ExcludedRoute(alias=name, reason=reason, host=host, provider=REGISTRATION)


class _Places:
    """The hosts and paths of routes, of which a registered service takes none."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._paths: dict[HostPattern, dict[str, list[Route]]] = {}
        for route in routes:
            self.add(route)

    def add(self, route: Route) -> None:
        """The route has its place from now on."""
        paths = self._paths.setdefault(host_pattern(route.host), {})
        paths.setdefault(route.path, []).append(route)

    def problem(self, host: str, path: str) -> str:
        """Why a route cannot have this place: it would take another route's requests, or get no requests; else ""."""
        other = next(self._others(host_pattern(host), path), None)
        if other is None:
            return ""
        return f"{host or '*'}{path} is taken by the route {other.alias!r} ({other.host or '*'}{other.path})"

    def _others(self, pattern: HostPattern, path: str) -> Iterator[Route]:
        for prefix, routes in self._paths.get(pattern, {}).items():
            if prefix == path:
                yield from (each for each in routes if not (each.methods or each.headers))
            elif covers_path(prefix, path) and not (pattern.tier == DEFAULT and prefix == "/"):
                yield routes[0]
        if pattern.tier < WILDCARD:
            # Patterns with "*" elsewhere always come after the other patterns.
            for other, paths in self._paths.items():
                if other.tier == WILDCARD and pattern.covers(other.text.replace("*", "x")):
                    yield from (routes[0] for prefix, routes in paths.items() if covers_path(path, prefix))
