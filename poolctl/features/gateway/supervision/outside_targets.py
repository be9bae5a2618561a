"""Targets outside the pool: their probes, and the interfaces of features that manage such targets."""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cache
from typing import Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

from poolctl.config import Probe, ServerConfig, Tables
from poolctl.http.http_client import exchange
from poolctl.http.messages import BadMessage
from poolctl.probes.prober import statuses
from poolctl.probes.worker_probes import Hysteresis
from poolctl.routing import route as routing
from poolctl.routing.route import AnyRoute, Route, StreamRoute
from poolctl.routing.route_health import RouteHealth
from poolctl.routing.route_report import (
    FAILING,
    SERVING,
    STARTING,
    RegisteredServiceReport,
    TargetMachineReport,
)
from poolctl.states import Status
from poolctl.units import format_duration

from ..repeated_work import RepeatedWork
from ..routes import probe_with_host, probed_targets
from ..settings import Endpoint, unverifiable_address
from ..target import MachineState, Target, TargetState

# Maximum number of probes at once. With many services, each is probed less often than configured.
_MAX_CONCURRENT_PROBES = 32
# A service that has just started is probed more often at first.
_FIRST_PAUSE_SECONDS, _PAUSE_GROWTH = 0.1, 1.5
_UNQUOTED = "/?&=%:@!$'()*+,;~-._"
_system_context = cache(ssl.create_default_context)


class Activity(NamedTuple):
    """The number of requests that a target has received, and of those in progress or waiting now."""

    requests: int
    in_progress: int


class MachineSource(Protocol):
    """A feature that knows the machines behind URLs, and starts them."""

    @property
    def states(self) -> Mapping[str, MachineState]:
        """The states of the machines that requests may start, by URL."""

    def set_routes(self, routes: Sequence[Route | StreamRoute]) -> None:
        """Find the machines behind these routes. Called with all routes when one changes."""

    def machines(self, route: Route | StreamRoute) -> tuple[TargetMachineReport, ...]:
        """The machines behind the route, for output."""

    def start_machine(self, url: str) -> None:
        """Start the machine behind this URL if it is stopped, because a request needs it."""


# Called in a thread with routes, servers and tables; returns the routes with services added.
WithServices = Callable[[Sequence[AnyRoute], Sequence[ServerConfig], Tables], Sequence[AnyRoute]]


class RoutedService(Protocol):
    """A registered service that is a target of a route, and its state."""

    @property
    def url(self) -> str: ...

    @property
    def alias(self) -> str:
        """The alias of the service's route."""

    @property
    def is_serving(self) -> bool:
        """Whether the service gets requests."""

    @property
    def is_probed(self) -> bool:
        """Whether the service is probed, so that its state is known."""

    @property
    def health(self) -> RouteHealth: ...

    @property
    def problem(self) -> str:
        """Why the service gets no requests, or its state."""


class ServiceSource(Protocol):
    """A feature that adds services to routes while the pool runs, and requests new routes when they change."""

    async def route_extender(self) -> WithServices:
        """Return a function that adds the current services to routes."""

    def __iter__(self) -> Iterator[RoutedService]: ...

    def of(self, alias: str) -> Sequence[RoutedService]:
        """The services of a route."""

    def reports(self, alias: str) -> tuple[RegisteredServiceReport, ...]:
        """A report, for output, on each service of a route."""


class ProbedService(Hashable, Protocol):
    """A service to be probed at its `url`; `state` is STARTING until a probe has succeeded."""

    @property
    def url(self) -> str: ...

    @property
    def hysteresis(self) -> Hysteresis | None: ...

    @property
    def state(self) -> str: ...


S = TypeVar("S", bound=ProbedService)


class UrlProbes(Generic[S]):
    """Probes each watched service repeatedly, until `forget` or `close`.

    `on_probed` is called with the service, the problem or "", and the duration in seconds.
    """

    def __init__(self, on_probed: Callable[[S, str, float], None]) -> None:
        self._on_probed = on_probed
        self._watched: dict[S, tuple[Probe, asyncio.Task[None]]] = {}
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT_PROBES)

    def watch(self, service: S, probe: Probe | None, target: routing.Target = routing.Target()) -> None:  # noqa: B008  immutable
        """Probe the service repeatedly, beginning at once; without a probe, stop that.

        `target` says how a certificate is verified.
        """
        if service in self._watched and self._watched[service][0] == probe:
            return
        self.forget(service)
        if probe is not None:
            self._watched[service] = probe, asyncio.ensure_future(self._repeat(service, probe, target))

    def forget(self, service: S) -> None:
        """Stop probing the service."""
        if service in self._watched:
            self._watched.pop(service)[1].cancel()

    def close(self) -> None:
        """Stop probing."""
        for service in list(self._watched):
            self.forget(service)

    async def _repeat(self, service: S, probe: Probe, target: routing.Target) -> None:
        pause_seconds, work = _FIRST_PAUSE_SECONDS, RepeatedWork(f"the probe of {service.url}")
        while True:
            async with self._slots:
                began = _now()
                with work.attempt():
                    problem = await probe_url(service.url, probe, target)
                    self._on_probed(service, problem, _now() - began)
            if service.hysteresis is None:
                return
            pause = service.hysteresis.interval_seconds
            if service.state == STARTING:
                pause = min(pause, pause_seconds)
                pause_seconds *= _PAUSE_GROWTH
            # Jitter only shortens the pause, so that a failure is detected within `interval`.
            pause *= 1 - probe.jitter * random.random()
            await asyncio.sleep(max(0.0, began + pause - _now()))


def _now() -> float:
    return asyncio.get_running_loop().time()


async def probe_url(url: str, probe: Probe, target: routing.Target = routing.Target()) -> str:  # noqa: B008  immutable
    """Probe this URL once; returns the problem, or "". `target` says how a certificate is verified."""
    endpoint = Endpoint.of_url(url)
    where = endpoint.path if endpoint.kind == "unix" else (endpoint.host, endpoint.port)
    host = "localhost" if endpoint.kind == "unix" else url.partition("://")[2]
    fields = {"Host": host, "User-Agent": "poolctl", **probe.headers, "Connection": "close"}
    path = quote(probe.http or "/", safe=_UNQUOTED)
    label = f"{probe.method} {probe.http}"
    try:
        if probe.tcp:
            async with asyncio.timeout(probe.timeout):
                await _connect(endpoint)
            return ""
        tls, name = _verification(endpoint, target)
        async with (
            asyncio.timeout(probe.timeout),
            exchange(where, probe.method, path, fields.items(), tls=tls, server_name=name) as answer,
        ):
            return "" if answer.status in statuses(probe.status) else f"{label}: status {answer.status}"
    except TimeoutError:
        return f"no answer within {format_duration(probe.timeout)}"
    except BadMessage as error:
        return f"{label}: the response is not valid HTTP: {error}"
    except (OSError, ValueError) as error:
        return f"no connection: {_reason(error)}"


async def connection_problem(target: routing.Target, timeout_seconds: float) -> str:
    """Connect to this target's URL once; returns the problem, or ""."""
    endpoint = Endpoint.of_url(target.url)
    try:
        async with asyncio.timeout(timeout_seconds):
            await _connect(endpoint, *_verification(endpoint, target))
    except TimeoutError:
        return f"no answer within {format_duration(timeout_seconds)}"
    except (OSError, ValueError) as error:
        return _reason(error)
    return unverifiable_address(target.url, sni=target.sni, verify=target.verify)


async def _connect(endpoint: Endpoint, tls: ssl.SSLContext | None = None, name: str | None = None) -> None:
    if endpoint.kind == "unix":
        _, writer = await asyncio.open_unix_connection(endpoint.path)
    else:
        _, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=tls, server_hostname=name)
    writer.close()


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if getattr(error, "reason", None) in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        return "the target does not speak TLS: write http://"
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio has another text
    return str(getattr(error, "strerror", None) or error)


def _verification(endpoint: Endpoint, target: routing.Target) -> tuple[ssl.SSLContext | None, str | None]:
    """The TLS context for a connection, and the name that is verified. Raises OSError."""
    if not endpoint.tls:
        return None, None
    name = target.sni or endpoint.host
    if target.verify and not target.ca:
        return _system_context(), name
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if target.verify:
        context.load_verify_locations(target.ca)
    else:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context, name


class ProbedTarget:
    """A target and the results of its probes. After enough failures it is FAILING, and gets no requests."""

    def __init__(self, url: str, probe: Probe, target: routing.Target = routing.Target()) -> None:  # noqa: B008  immutable
        self.url = url
        self.probe = probe
        self.target = target
        self.hysteresis = Hysteresis(probe)
        self.state = STARTING
        self.why = ""
        self.latency_seconds: float | None = None

    def record(self, problem: str, latency_seconds: float) -> None:
        """Record the result of a probe: the problem, or "", and how long the probe took."""
        status = self.hysteresis.record(not problem)
        self.latency_seconds = None if problem else latency_seconds
        self.why = problem
        if status is Status.KO:
            self.state = FAILING
        elif not problem or self.state == FAILING:
            self.state = SERVING

    @property
    def result(self) -> Target:
        """The target as the probes have found it."""
        if self.state == FAILING:
            return Target(TargetState.DOWN, self.why)
        return Target(answers=True if self.state == SERVING else None)


class TargetProbes:
    """Probes the URLs that are targets in the configuration. Calls `changed` when one starts to fail or recovers."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._targets: dict[str, ProbedTarget] = {}
        self._probes = UrlProbes(self._record_probe_result)

    def apply_tables(self, tables: Tables) -> None:
        """Probe the targets in these tables. Keeps the results of targets whose probe has not changed."""
        before, self._targets = self._targets, {}
        for url, (target, probe, host) in probed_targets(tables).items():
            probed, probe = before.get(url), probe_with_host(probe, host)
            if probed is None or (probed.target, probed.probe) != (target, probe):
                probed = ProbedTarget(url, probe, target)
                self._probes.watch(probed, probe, target)
            self._targets[url] = probed
        for probed in before.values():
            if self._targets.get(probed.url) is not probed:
                self._probes.forget(probed)
        self._changed()

    @property
    def targets(self) -> dict[str, Target]:
        """The probed targets, by URL."""
        return {url: target.result for url, target in self._targets.items()}

    def latency_seconds(self, url: str) -> float | None:
        """How long the last probe of this URL took; None if it failed or there is none."""
        target = self._targets.get(url)
        return None if target is None else target.latency_seconds

    def close(self) -> None:
        """Stop probing."""
        self._probes.close()

    def _record_probe_result(self, target: ProbedTarget, problem: str, latency_seconds: float) -> None:
        before = target.result
        target.record(problem, latency_seconds)
        if target.result != before:
            self._changed()
