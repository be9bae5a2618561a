"""The services that have registered as backends: which of them get requests, and until when. No I/O."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator

from poolctl.clock import Clock
from poolctl.json_form import Table
from poolctl.logs.log_line import stamp
from poolctl.probes.worker_probes import Hysteresis
from poolctl.routing.route_health import HEALTHY, UNHEALTHY, RouteHealth
from poolctl.routing.route_health import STARTING as ROUTE_STARTING
from poolctl.routing.route_report import FAILING, SERVING, SILENT, STARTING, RegistrationReport
from poolctl.states import Status
from poolctl.units import format_duration

from ._service_routes import RegisteredBackend, Registration, registration_of

MOST_SERVICES = 10_000
# One client of [registration] may use only part of them.
MOST_OF_CLIENT = 1_000
# Time for which a silent service stays listed, and its route answers with 503 instead of 404.
FORGOTTEN_SECONDS = 3600.0
# No heartbeat arrives while one supervisor takes over from another.
_GRACE_SECONDS = 2.0

REGISTERED, CHANGED, RECOVERED, REFRESHED = "registered", "changed", "recovered", "refreshed"
_STATES = (STARTING, SERVING, FAILING, SILENT)
_HEALTH = {SERVING: HEALTHY, STARTING: ROUTE_STARTING}

Key = tuple[str, str]


class RegistrationRefused(Exception):
    """A service cannot be registered; `hint` says what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class RegisteredService:
    """One service. `deadline`, on the monotonic clock, is when it is silent, or when a silent one is forgotten.

    `queued` is the time of its entry among the deadlines, which is not later. `owner` is the client of [registration]
    that has registered it, "" for the control socket.
    """

    __slots__ = (
        "deadline", "hysteresis", "latency_seconds", "owner", "queued", "settings", "since", "state", "why",
    )  # fmt: skip

    def __init__(self, settings: Registration, state: str, since: float, owner: str = "") -> None:
        self.settings = settings
        self.owner = owner
        self.state = state
        self.since = since
        self.why = ""
        self.deadline = self.queued = math.inf
        self.latency_seconds: float | None = None
        self.hysteresis = _hysteresis(settings, state)

    def __repr__(self) -> str:
        return f"<RegisteredService {self}: {self.state}>"

    def __str__(self) -> str:
        return f"{self.settings.name} {self.settings.to}"

    @property
    def key(self) -> Key:
        """The name and URL, which identify the registration."""
        return self.settings.name, self.settings.to

    @property
    def alias(self) -> str:
        """The alias of the service's route."""
        return self.settings.name

    @property
    def url(self) -> str:
        """The URL of the service."""
        return self.settings.to

    @property
    def is_serving(self) -> bool:
        """Whether the service gets requests."""
        return self.state == SERVING

    @property
    def problem(self) -> str:
        """Why the service gets no requests."""
        return self.why or self.state

    @property
    def is_probed(self) -> bool:
        """Whether the service's state is the result of a probe."""
        return self.hysteresis is not None

    @property
    def health(self) -> RouteHealth:
        """The service's contribution to the health of its route."""
        status = _HEALTH.get(self.state, UNHEALTHY)
        return RouteHealth(status=status, latency_seconds=self.latency_seconds, detail=self.why)


def _hysteresis(settings: Registration, state: str) -> Hysteresis | None:
    if settings.probe is None:
        return None
    known = {SERVING: Status.OK, FAILING: Status.KO}
    return Hysteresis(settings.probe, known.get(state, Status.UNKNOWN))


class Registrations:
    """The services by name and URL, bounded in number. Heartbeats change nothing but deadlines."""

    def __init__(self, clock: Clock, most: int = MOST_SERVICES, most_of_owner: int = MOST_OF_CLIENT) -> None:
        self._clock = clock
        self._most, self._most_of_owner = most, most_of_owner
        self._services: dict[Key, RegisteredService] = {}
        self._by_name: dict[str, dict[str, RegisteredService]] = {}
        self._deadlines: list[tuple[float, int, RegisteredService]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._services)

    def __iter__(self) -> Iterator[RegisteredService]:
        return iter([*self._services.values()])

    def __contains__(self, service: RegisteredService) -> bool:
        return self._services.get(service.key) is service

    def of(self, name: str, url: str = "") -> list[RegisteredService]:
        """The services of this name, or only the one with this URL."""
        return [each for each in self._by_name.get(name, {}).values() if url in ("", each.settings.to)]

    @property
    def names(self) -> list[str]:
        """Every name, in the order of the first registrations."""
        return [*self._by_name]

    def register(self, settings: Registration, owner: str = "") -> tuple[RegisteredService, str]:
        """The service, and the result: registered, changed, recovered, or refreshed by a heartbeat.

        A known service keeps its probe if the request names no probe. Raises RegistrationRefused if it contradicts
        another service of its name, belongs to another owner, or exceeds the limit. The owner "" may change all
        services.
        """
        key = settings.name, settings.to
        self._check_place(settings)
        service = self._services.get(key)
        if service is None:
            self._check_number(owner)
            self._make_room()
            service = RegisteredService(settings, _first_state(settings), self._clock.time(), owner)
            self._services[key] = self._by_name.setdefault(settings.name, {})[settings.to] = service
            word = REGISTERED
        else:
            if owner not in ("", service.owner):
                message = f"{settings.to} is registered as {settings.name!r} by another client"
                raise RegistrationRefused(message, "unregister it there, or with `poolctl unregister`")
            if settings.probe is None:
                settings = settings.but(probe=service.settings.probe)
            word = CHANGED if settings != service.settings else REFRESHED
            if service.state == SILENT or settings.probe != service.settings.probe:
                word = RECOVERED if service.state == SILENT else word
                service.hysteresis = _hysteresis(settings, STARTING)
                self._set(service, _first_state(settings))
            service.settings = settings
        self._expect(service, settings.ttl or math.inf)
        return service, word

    def remove(self, service: RegisteredService) -> None:
        """Remove the service: it gets no more requests, and is forgotten."""
        name, url = service.key
        del self._services[service.key], self._by_name[name][url]
        if not self._by_name[name]:
            del self._by_name[name]
        service.queued = math.inf

    def probed(self, service: RegisteredService, problem: str, latency_seconds: float) -> bool:
        """Whether a result of its probe, a problem or "", has changed its state."""
        hysteresis, before = service.hysteresis, service.state
        if hysteresis is None or service.state == SILENT:
            return False
        service.latency_seconds = latency_seconds
        status_before = hysteresis.status
        status = hysteresis.record(not problem)
        if service.state == STARTING and problem:
            hysteresis.reset()  # a failure before its first success is not a fall
        elif service.state == STARTING and status is Status.OK:
            self._set(service, SERVING)
        elif service.state == SERVING and problem and status is not Status.OK:
            self._set(service, FAILING)
        elif service.state == FAILING and not problem and status is not status_before:
            self._set(service, SERVING)
        service.why = problem
        return service.state != before

    @property
    def due(self) -> float | None:
        """When `expire` has something to do, on the monotonic clock."""
        while self._deadlines:
            at, _, service = self._deadlines[0]
            if at == service.queued == service.deadline:
                break
            heapq.heappop(self._deadlines)
            if at == service.queued:
                self._queue(service)
        return self._deadlines[0][0] if self._deadlines else None

    def expire(self) -> tuple[list[RegisteredService], list[RegisteredService]]:
        """The services that have become silent by now, and silent ones that are forgotten."""
        silent, forgotten = [], []
        now = self._clock.monotonic()
        while (due := self.due) is not None and due <= now:
            _, _, service = heapq.heappop(self._deadlines)
            service.queued = math.inf
            if service.state == SILENT:
                self.remove(service)
                forgotten.append(service)
            else:
                self._set(service, SILENT)
                service.why = f"no heartbeat for {format_duration(service.settings.ttl)}"
                self._expect(service, FORGOTTEN_SECONDS)
                silent.append(service)
        return silent, forgotten

    def backends(self) -> tuple[RegisteredBackend, ...]:
        """The services as routes have them."""
        return tuple(
            RegisteredBackend(
                each.settings.name,
                each.settings.to,
                each.settings.weight,
                each.settings.host,
                each.settings.path,
                each.state == SERVING,
            )
            for each in self._services.values()
        )

    def counts(self) -> dict[str, int]:
        """How many services are in each state."""
        found = dict.fromkeys(_STATES, 0)
        for each in self._services.values():
            found[each.state] += 1
        return found

    def report(self, service: RegisteredService) -> RegistrationReport:
        """The service as commands show it."""
        settings = service.settings
        left = service.deadline - self._clock.monotonic() if service.state != SILENT else 0.0
        return RegistrationReport(
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

    def to_json(self, service: RegisteredService) -> Table:
        """The state that `restore` needs in the next supervisor."""
        return {
            "settings": service.settings.as_given(),
            "owner": service.owner,
            "state": service.state,
            "since": service.since,
            "why": service.why,
            "deadline": None if service.deadline == math.inf else service.deadline,
        }

    def restore(self, table: Table, *, whole: bool = False, stopped: bool = False) -> None:
        """Continue with a service of the previous supervisor; ignored if it is not valid.

        Deadlines are of the same clock; `whole`: begin the time-to-live again, since heartbeats were not saved.
        `stopped`: the pool was stopped meanwhile, and a service with a probe has to pass it again.
        """
        settings = registration_of(table.get("settings") or {}, [])
        if settings is None or table.get("state") not in _STATES:
            return
        state = str(table["state"])
        if stopped and state != SILENT:
            state = _first_state(settings)
        since, owner = float(table.get("since") or 0.0), str(table.get("owner") or "")
        service = RegisteredService(settings, state, since, owner)
        service.why = str(table.get("why") or "")
        self._services[service.key] = self._by_name.setdefault(settings.name, {})[settings.to] = service
        if table.get("deadline") is not None:
            most = FORGOTTEN_SECONDS if service.state == SILENT else settings.ttl
            least = 0.0 if service.state == SILENT else most if whole else min(most, _GRACE_SECONDS)
            left = float(table["deadline"]) - self._clock.monotonic()
            self._expect(service, min(max(left, least), most))

    def _check_place(self, settings: Registration) -> None:
        """All services of one name share a host and path; a service without them takes the others'."""
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

    def _check_number(self, owner: str) -> None:
        if not owner or len(self._services) < self._most_of_owner:
            return
        if sum(each.owner == owner for each in self._services.values()) >= self._most_of_owner:
            hint = "unregister those that are gone"
            raise RegistrationRefused(
                f"{owner} has registered {self._most_of_owner:,} services already", hint
            )

    def _make_room(self) -> None:
        if len(self._services) < self._most:
            return
        silent = next((each for each in self._services.values() if each.state == SILENT), None)
        if silent is None:
            hint = "unregister those that are gone, and give the others a ttl"
            raise RegistrationRefused(f"{self._most:,} services are registered already", hint)
        self.remove(silent)

    def _set(self, service: RegisteredService, state: str) -> None:
        service.state, service.since, service.why = state, self._clock.time(), ""

    def _expect(self, service: RegisteredService, seconds: float) -> None:
        """Have the service become silent, or be forgotten, after this time."""
        service.deadline = self._clock.monotonic() + seconds
        if service.deadline < service.queued:  # otherwise its entry is looked at in time
            self._queue(service)

    def _queue(self, service: RegisteredService) -> None:
        service.queued = service.deadline
        if service.queued != math.inf:
            heapq.heappush(self._deadlines, (service.queued, next(self._numbers), service))


def _first_state(settings: Registration) -> str:
    return SERVING if settings.probe is None else STARTING
