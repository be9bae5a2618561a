"""The services registered as backends: their state, time-to-live and routes. Does no I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field, StringConstraints

from poolctl.clock import Clock
from poolctl.config.model.pool_tables import Tables
from poolctl.config.model.section import Table, validated
from poolctl.config.values.normalise import merged
from poolctl.config.values.plain import BadValue
from poolctl.config.values.problems import Finding, Tree, shortened_printable, shown
from poolctl.config.values.value_types import Duration, Word
from poolctl.features.gateway.routes import build_route
from poolctl.features.gateway.table import GatewayConfig, RouteConfig
from poolctl.features.gateway.value_types import Host, OutsideProbe, RoutePath, TargetText, Weight
from poolctl.json_form import Table as JsonTable
from poolctl.logs.log_line import stamp
from poolctl.probes.worker_probes import Hysteresis
from poolctl.routing.match import DEFAULT, WILDCARD, HostPattern, covers_path, host_pattern
from poolctl.routing.route import REGISTRATION, AnyRoute, ExcludedRoute, Route, Target
from poolctl.routing.route_health import HEALTHY, UNHEALTHY, RouteHealth
from poolctl.routing.route_health import STARTING as ROUTE_STARTING
from poolctl.routing.route_report import FAILING, SERVING, SILENT, STARTING, RegisteredServiceReport
from poolctl.states import Status
from poolctl.units import format_duration

if TYPE_CHECKING:
    from poolctl.config.model.server_keys import ServerConfig


MAX_SERVICES = 10_000
# The maximum for one client of [registration].
MAX_PER_CLIENT = 1_000
# For this time a silent service stays listed, so that its route answers 503 instead of 404.
FORGOTTEN_SECONDS = 3600.0

REGISTERED, CHANGED, RECOVERED, REFRESHED = "registered", "changed", "recovered", "refreshed"
_STATES = (STARTING, SERVING, FAILING, SILENT)
_HEALTH = {SERVING: HEALTHY, STARTING: ROUTE_STARTING}


_URL_ALLOWED = '"http://HOST:PORT", "https://HOST:PORT" or "unix:/PATH"'
_MAX_NAME_LENGTH = 200


def _service_url(text: str) -> str:
    if ":" not in text or text.startswith("tag:"):
        raise BadValue(f"{shortened_printable(text[:60])!r} is not a URL", _URL_ALLOWED)
    if not text.isprintable():
        raise BadValue(f"{shown(text)} holds a control character", _URL_ALLOWED)
    return text


ServiceName = Annotated[Word, StringConstraints(max_length=_MAX_NAME_LENGTH)]
ServiceUrl = Annotated[TargetText, AfterValidator(_service_url)]


class RegistrationRequest(Table, frozen=True):
    """A service's request: the route that it wants to be a backend of, its URL, and its time-to-live."""

    table: ClassVar[str] = "registration"

    name: ServiceName
    """The alias of a route."""
    to: ServiceUrl
    """Its URL."""
    ttl: Duration = Field(default="0s", validate_default=True)
    """It is silent after this time without a heartbeat; 0: never."""
    weight: Weight = 1
    """Its share of the traffic, relative to the other targets."""
    host: Host | None = None
    """The host of a route of its own."""
    path: RoutePath | None = None
    """The path of a route of its own."""
    probe: OutsideProbe = Field(default=None, validate_default=True)
    """How its health is checked."""

    @property
    def has_place(self) -> bool:
        """Whether the service asks for a route of its own, by a host or a path."""
        return bool(self.host) or self.path is not None


def registration_of(values: dict[str, Tree], findings: list[Finding]) -> RegistrationRequest | None:
    """Validate these keys. Returns None if they are invalid, with the reasons added to `findings`."""
    request = validated(RegistrationRequest, values, findings)
    probe = None if request is None else request.probe
    # A program would run as the pool's user, and an expression needs a process that matches it.
    if probe is not None and (probe.kinds != ["http"] or probe.body):
        message = "a registered service is probed by http alone"
        findings.append(Finding(("probe",), message, 'allowed is "/health"'))
        return None
    return request


class RegistrationRefused(Exception):
    """A service cannot be registered; `hint` says how to fix it."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(slots=True, eq=False, repr=False)
class RegisteredService:
    """A registered service."""

    settings: RegistrationRequest
    state: str
    since: float  # when this state began, in seconds since the epoch
    owner: str = ""  # the client of [registration]; "" for the control socket
    why: str = ""  # the reason for the state
    deadline: float = math.inf  # the monotonic time when it becomes silent, or is removed if it is silent
    latency_seconds: float | None = None
    hysteresis: Hysteresis | None = None
    record: bytes = b""  # its state in JSON for the next supervisor, updated after each change

    def __post_init__(self) -> None:
        self.hysteresis = _hysteresis(self.settings, self.state)

    def __repr__(self) -> str:
        return f"<RegisteredService {self}: {self.state}>"

    def __str__(self) -> str:
        return f"{self.settings.name} {self.settings.to}"

    @property
    def alias(self) -> str:
        return self.settings.name

    @property
    def url(self) -> str:
        return self.settings.to

    @property
    def is_serving(self) -> bool:
        return self.state == SERVING

    @property
    def problem(self) -> str:
        """Why the service gets no requests: the reason if known, else its state."""
        return self.why or self.state

    @property
    def is_probed(self) -> bool:
        """Whether the service has a probe."""
        return self.hysteresis is not None

    @property
    def health(self) -> RouteHealth:
        """The service's contribution to the health of its route: status, latency and reason."""
        status = _HEALTH.get(self.state, UNHEALTHY)
        return RouteHealth(status=status, latency_seconds=self.latency_seconds, detail=self.why)


def _hysteresis(settings: RegistrationRequest, state: str) -> Hysteresis | None:
    if settings.probe is None:
        return None
    statuses = {SERVING: Status.OK, FAILING: Status.KO}
    return Hysteresis(settings.probe, statuses.get(state, Status.UNKNOWN))


class Registrations:
    """The registered services by name and URL, limited in number. A heartbeat only extends a service's deadline."""

    def __init__(self, clock: Clock, most: int = MAX_SERVICES, most_of_owner: int = MAX_PER_CLIENT) -> None:
        self._clock = clock
        self._most, self._most_of_owner = most, most_of_owner
        self._by_name: dict[str, dict[str, RegisteredService]] = {}  # by name, then by URL

    def __len__(self) -> int:
        return sum(map(len, self._by_name.values()))

    def __iter__(self) -> Iterator[RegisteredService]:
        return iter([service for services in self._by_name.values() for service in services.values()])

    def __contains__(self, service: RegisteredService) -> bool:
        return self._by_name.get(service.alias, {}).get(service.url) is service

    def of(self, name: str) -> list[RegisteredService]:
        """The services of this name."""
        return [*self._by_name.get(name, {}).values()]

    @property
    def names(self) -> list[str]:
        """Every name, in the order of the first registrations."""
        return [*self._by_name]

    def register(self, settings: RegistrationRequest, owner: str = "") -> tuple[RegisteredService, str]:
        """Register a service; returns it with the result: registered, changed, recovered, or refreshed by a heartbeat.

        A request without a probe keeps the service's probe. Raises RegistrationRefused if a service of the same name
        has another host or path, the service has another owner, or a limit is reached. The owner "" may change all
        services.
        """
        self._check_place_matches_namesakes(settings)
        service = self._by_name.get(settings.name, {}).get(settings.to)
        if service is None:
            self._check_owner_limit(owner)
            self._make_room()
            service = RegisteredService(settings, _first_state(settings), self._clock.time(), owner)
            self._by_name.setdefault(settings.name, {})[settings.to] = service
            word = REGISTERED
        else:
            if owner not in ("", service.owner):
                message = f"{settings.to} is registered as {settings.name!r} by another client"
                raise RegistrationRefused(message, "unregister it there, or with `poolctl unregister`")
            if settings.probe is None:
                settings = settings.model_copy(update={"probe": service.settings.probe})
            word = CHANGED if settings != service.settings else REFRESHED
            if service.state == SILENT or settings.probe != service.settings.probe:
                word = RECOVERED if service.state == SILENT else word
                service.hysteresis = _hysteresis(settings, STARTING)
                self._set_state(service, _first_state(settings))
            service.settings = settings
        self._schedule_expiry(service, settings.ttl or math.inf)
        return service, word

    def remove(self, service: RegisteredService) -> None:
        """Remove the service: it gets no more requests, and is forgotten."""
        del self._by_name[service.alias][service.url]
        if not self._by_name[service.alias]:
            del self._by_name[service.alias]

    def record_probe(self, service: RegisteredService, problem: str, latency_seconds: float) -> bool:
        """Record a probe's result: `problem` is "" if it passed. Returns whether the service's state has changed."""
        hysteresis, before = service.hysteresis, service.state
        if hysteresis is None or service.state == SILENT:
            return False
        service.latency_seconds = latency_seconds
        status_before = hysteresis.status
        status = hysteresis.record(not problem)
        if service.state == STARTING and problem:
            hysteresis.reset()  # failures before the first success do not count
        elif service.state == STARTING and status is Status.OK:
            self._set_state(service, SERVING)
        elif service.state == SERVING and problem and status is not Status.OK:
            self._set_state(service, FAILING)
        elif service.state == FAILING and not problem and status is not status_before:
            self._set_state(service, SERVING)
        service.why = problem
        return service.state != before

    @property
    def due(self) -> float:
        """The monotonic time at which `expire` next has something to do; infinite if never."""
        return min((service.deadline for service in self), default=math.inf)

    def expire(self) -> tuple[list[RegisteredService], list[RegisteredService]]:
        """Mark services without a heartbeat as silent, and remove services silent for too long; returns both lists."""
        silent, forgotten = [], []
        now = self._clock.monotonic()
        for service in self:
            if service.deadline > now:
                continue
            if service.state == SILENT:
                self.remove(service)
                forgotten.append(service)
            else:
                self._set_state(service, SILENT)
                service.why = f"no heartbeat for {format_duration(service.settings.ttl)}"
                self._schedule_expiry(service, FORGOTTEN_SECONDS)
                silent.append(service)
        return silent, forgotten

    def renew(self) -> None:
        """Give each service its full time-to-live again, because no heartbeat could arrive."""
        for service in self:
            if service.state != SILENT:
                self._schedule_expiry(service, service.settings.ttl or math.inf)

    def backends(self) -> tuple[Registered, ...]:
        return tuple((service.settings, service.is_serving) for service in self)

    def counts_by_state(self) -> dict[str, int]:
        counts = dict.fromkeys(_STATES, 0)
        for service in self:
            counts[service.state] += 1
        return counts

    def report(self, service: RegisteredService) -> RegisteredServiceReport:
        settings = service.settings
        left = service.deadline - self._clock.monotonic() if service.state != SILENT else 0.0
        return RegisteredServiceReport(
            name=settings.name,
            url=settings.to,
            state=service.state,
            why=service.why,
            since=stamp(service.since),
            weight=settings.weight,
            ttl_seconds=settings.ttl,
            left_seconds=None if left == math.inf else round(max(0.0, left), 3),
            latency_seconds=service.latency_seconds,
            probe=settings.probe.http or "" if settings.probe else "",
        )

    def to_json(self, service: RegisteredService) -> JsonTable:
        """The state that `restore` needs in the next supervisor."""
        return {
            "settings": service.settings.as_given(),
            "owner": service.owner,
            "state": service.state,
            "since": service.since,
            "why": service.why,
        }

    def restore_service(self, table: JsonTable, *, pool_was_stopped: bool = False) -> None:
        """Restore a service from the state that the previous supervisor saved. Does nothing if the state is invalid.

        Its time-to-live begins again. If `pool_was_stopped`, a service with a probe has to pass the probe again.
        """
        settings = registration_of(table.get("settings") or {}, [])
        if settings is None or table.get("state") not in _STATES:
            return
        state = str(table["state"])
        if pool_was_stopped and state != SILENT:
            state = _first_state(settings)
        since, owner = float(table.get("since") or 0.0), str(table.get("owner") or "")
        service = RegisteredService(settings, state, since, owner)
        service.why = str(table.get("why") or "")
        self._by_name.setdefault(settings.name, {})[settings.to] = service
        self._schedule_expiry(service, FORGOTTEN_SECONDS if state == SILENT else settings.ttl or math.inf)

    def _check_place_matches_namesakes(self, settings: RegistrationRequest) -> None:
        """Raise RegistrationRefused if a service with the same name is registered for a different host or path."""
        if not settings.has_place:
            return
        for other in self.of(settings.name):
            theirs = other.settings
            if theirs.to == settings.to or not theirs.has_place:
                continue
            if (theirs.host or "", theirs.path or "/") != (settings.host or "", settings.path or "/"):
                place = f"{theirs.host or '*'}{theirs.path or '/'}"
                raise RegistrationRefused(
                    f"{settings.name} is registered for {place}",
                    "leave host and path out, or choose another name",
                )
            return

    def _check_owner_limit(self, owner: str) -> None:
        if not owner or len(self) < self._most_of_owner:
            return
        if sum(service.owner == owner for service in self) >= self._most_of_owner:
            hint = "unregister those that are gone"
            raise RegistrationRefused(
                f"{owner} has registered {self._most_of_owner:,} services already", hint
            )

    def _make_room(self) -> None:
        if len(self) < self._most:
            return
        silent = next((service for service in self if service.state == SILENT), None)
        if silent is None:
            hint = "unregister those that are gone, and give the others a ttl"
            raise RegistrationRefused(f"{self._most:,} services are registered already", hint)
        self.remove(silent)

    def _set_state(self, service: RegisteredService, state: str) -> None:
        service.state, service.since, service.why = state, self._clock.time(), ""

    def _schedule_expiry(self, service: RegisteredService, seconds: float) -> None:
        """Set the time after which the service becomes silent or, if it is silent, is removed."""
        service.deadline = self._clock.monotonic() + seconds


def _first_state(settings: RegistrationRequest) -> str:
    return SERVING if settings.probe is None else STARTING


# A backend of a route: its registration, and whether it gets requests now. Its route stays in any case.
Registered = tuple[RegistrationRequest, bool]


def with_registrations(
    routes: Sequence[AnyRoute],
    servers: Iterable[ServerConfig],
    tables: Tables,
    registered: Iterable[Registered],
) -> tuple[AnyRoute, ...]:
    """The `routes` with registered services added as backends, followed by the services' own routes.

    A service becomes an ExcludedRoute with a reason if it has no route, or its host and path are taken.
    """
    gateway = tables.get(GatewayConfig)
    if gateway is None:
        return tuple(routes)
    backends: dict[str, list[Registered]] = {}
    for service in registered:
        backends.setdefault(service[0].name, []).append(service)
    if not backends:
        return tuple(routes)
    accepting = {table.label for table in tables.all(RouteConfig) if table.register}
    result: list[AnyRoute] = [
        _with_backends(route, backends.get(route.alias, ()))
        if route.alias in accepting and isinstance(route, Route)
        else route
        for route in routes
    ]
    taken = {route.alias for route in routes if isinstance(route, Route)}
    places = _OccupiedHostPaths(route for route in routes if isinstance(route, Route))
    defaults = gateway.defaults_of_routes()
    for name, its in backends.items():
        if name in taken:
            if name not in accepting:
                result.append(_excluded_route(name, "the route accepts no registrations (register = true)"))
            continue
        placed = next((settings for settings, _ in its if settings.has_place), None)
        if placed is None:
            reason = "there is no such route, and neither a host nor a path for one of its own"
            result.append(_excluded_route(name, reason))
            continue
        place = {"alias": name, "host": placed.host or "", "path": placed.path or "/"}
        config = validated(RouteConfig, merged(defaults, {**place, "register": True}), [])
        assert config is not None
        if reason := places.problem(config.host, config.path):
            result.append(_excluded_route(name, reason, config.host))
            continue
        own_route = _with_backends(build_route(name, config, (), REGISTRATION), its)
        places.add(own_route)
        result.append(own_route)
    return tuple(result)


def _with_backends(route: Route, registered: Iterable[Registered]) -> Route:
    urls = {target.key for target in route.to}
    more = [
        Target(url=service.to, weight=service.weight)
        for service, is_serving in registered
        if is_serving and service.to not in urls
    ]
    return replace(route, to=(*route.to, *more))


def _excluded_route(name: str, reason: str, host: str = "") -> ExcludedRoute:
    return ExcludedRoute(alias=name, reason=reason, host=host, provider=REGISTRATION)


class _OccupiedHostPaths:
    """The hosts and paths of existing routes, which a registered service must not take over."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._paths: dict[HostPattern, dict[str, list[Route]]] = {}
        for route in routes:
            self.add(route)

    def add(self, route: Route) -> None:
        paths = self._paths.setdefault(host_pattern(route.host), {})
        paths.setdefault(route.path, []).append(route)

    def problem(self, host: str, path: str) -> str:
        """Why a route for this host and path conflicts with another route; "" if it does not."""
        other = next(self._conflicting_routes(host_pattern(host), path), None)
        if other is None:
            return ""
        return f"{host or '*'}{path} is taken by the route {other.alias!r} ({other.host or '*'}{other.path})"

    def _conflicting_routes(self, pattern: HostPattern, path: str) -> Iterator[Route]:
        for prefix, routes in self._paths.get(pattern, {}).items():
            if prefix == path:
                yield from (route for route in routes if not (route.methods or route.headers))
            elif covers_path(prefix, path) and not (pattern.tier == DEFAULT and prefix == "/"):
                yield routes[0]
        if pattern.tier < WILDCARD:
            # Patterns with "*" elsewhere always come after the other patterns.
            for other, paths in self._paths.items():
                if other.tier == WILDCARD and pattern.covers(other.text.replace("*", "x")):
                    yield from (routes[0] for prefix, routes in paths.items() if covers_path(path, prefix))
