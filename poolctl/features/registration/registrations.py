"""The supervisor's part for services that register as backends: verbs, events, and state for the next supervisor.

A service that leaves, becomes silent or fails is taken out of the gateway's route table at once. A heartbeat does not
change the route table. Services register by a command or at the address of [registration], which the process `web`
serves (`site.py`). While that process cannot receive heartbeats, no service expires.
Afterwards each time-to-live begins again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from poolctl.address import Address, parse
from poolctl.config import Finding, Tables, named_addresses
from poolctl.control.answers import Result, failure
from poolctl.control.pool_paths import SOCKET_NAME
from poolctl.daemon_threads import in_daemon_thread
from poolctl.errors import PoolParamError, PoolValidateError, ServerError
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION, NOTHING_MATCHED
from poolctl.features.gateway.routes import probe_with_host
from poolctl.features.gateway.supervision.gateway import GatewayManager, GatewayPart
from poolctl.features.gateway.supervision.outside_targets import UrlProbes, WithServices
from poolctl.features.gateway.supervision.pool_gateway import no_gateway_to_change
from poolctl.features.gateway.table import GatewayConfig, RouteConfig
from poolctl.json_form import Table
from poolctl.keeper import fd_store, pool_files
from poolctl.monitor.metrics import Family
from poolctl.platform import read_json_object, replace_file
from poolctl.routing.match import sent_host
from poolctl.routing.route import REGISTRATION
from poolctl.routing.route_report import FAILING, SILENT, STARTING, RegisteredServiceReport
from poolctl.supervisor.active_configuration import SupervisorContext
from poolctl.supervisor.feature_parts import PartContext
from poolctl.supervisor.verbs.verb import Call, Verb
from poolctl.supervisor.web_addresses import Order, SiteSettings, WebAddress, WebServer, tls_settings
from poolctl.web.bearer_tokens import Ip, unmapped

from . import _services
from ._answers import RegistrationChangeResult
from ._services import REGISTERED, RegisteredService, registration_of
from .table import RegistrationTable

# Options of every request, not of the service.
_OF_REQUESTS = ("timeout", "progress", "wait")
# In the state directory, from a stop to the next start.
_FILE = "stopped-registrations.json"
_RESOLVED_SECONDS = 5.0
_AT_ONCE = 100

logger = logging.getLogger("poolctl.supervisor")


class TargetRegistration(GatewayPart):
    """Manages the registered services of a gateway."""

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        environment = context.environment
        self._clock = context.core.clock
        self.services = _services.Registrations(self._clock)
        self._events = context.events
        self._store = context.store
        self._directory = environment.directory
        self._path = os.path.join(environment.state_directory, _FILE)
        self._address = RegistrationAddress(context.web, environment, self.services.renew)
        self._table: RegistrationTable | None = None
        self._gateway: GatewayManager | None = None
        self._routes: dict[str, RouteConfig] = {}  # by alias
        self._probes = UrlProbes(self._record_probe)
        self._expiry: asyncio.TimerHandle | None = None
        self._expiring: set[asyncio.Task[None]] = set()

    @property
    def verbs(self) -> Mapping[str, Verb]:
        return {
            "register": partial(perform_for_owner, self.register),
            "unregister": partial(perform_for_owner, self.unregister),
        }

    def apply_tables(self, tables: Tables) -> None:
        """Serve the address that [registration] configures, and apply its settings."""
        self._table = tables.get(RegistrationTable) if tables.get(GatewayConfig) is not None else None
        self._routes = {route.label: route for route in tables.all(RouteConfig)}
        for service in self.services:
            if service.state != SILENT:
                self._watch(service)
        self._serve()

    def connect(self, gateway: GatewayManager) -> None:
        self._gateway = gateway
        self._resumed = asyncio.ensure_future(self._resume())
        gateway.routes.services = self
        self._serve()

    def _serve(self) -> None:
        if self._gateway is not None:
            self._address.serve_table(self._table)

    @property
    def not_served(self) -> Iterable[str]:
        return self._address.warnings

    async def wait_for_opening_attempt(self) -> None:
        """Wait until the endpoint's address was opened or failed to open. Without a gateway, return at once."""
        if self._gateway is not None:
            await self._address.wait_for_opening_attempt()

    def gateway_metrics(self) -> Iterable[Family]:
        family = Family("poolctl_gateway_registrations", "gauge", "Registered services by their state.")
        for state, count in self.services.counts_by_state().items():
            family.add(count, state=state)
        return [family]

    async def stop_serving(self) -> None:
        """Close the address for registrations, and save the services for the next start of the pool."""
        if self._gateway is None:
            return
        await self._address.close()
        with contextlib.suppress(Exception):  # a failure has been reported with each route table
            await self._resumed
        self._probes.close()
        if self._expiry is not None:
            self._expiry.cancel()
        for task in self._expiring:
            task.cancel()
        self._save_for_next_start()

    # The services for the gateway's routes (ServiceSource).

    async def route_extender(self) -> WithServices:
        """Wait until the services are restored; return a function that adds the registered services to routes."""
        await self._resumed
        return partial(_services.with_registrations, registered=self.services.backends())

    def __iter__(self) -> Iterator[RegisteredService]:
        return iter(self.services)

    def of(self, alias: str) -> Sequence[RegisteredService]:
        """The registered services of a route."""
        return self.services.of(alias)

    def reports(self, alias: str) -> tuple[RegisteredServiceReport, ...]:
        """The registered services of a route, for output."""
        return tuple(map(self.services.report, self.services.of(alias)))

    # The verbs.

    async def register(self, call: Call, owner: str = "") -> Result:
        """Register a service, or record its heartbeat; returns once the gateway has applied it."""
        gateway = self._gateway
        if gateway is None or gateway.tables.get(GatewayConfig) is None:
            return await no_gateway_to_change(call)
        await self._resumed
        settings = await self._validate(call.options, gateway.tables)
        if isinstance(settings, Result):
            return settings
        try:
            service, word = self.services.register(settings, owner)
        except _services.RegistrationRefused as refused:
            return _refusal(CONFLICT, str(refused), refused.hint)
        self._update_record(service)
        self._schedule_expiry_check(service.deadline)
        if word == _services.REFRESHED:
            return self._answer([service])
        if word != REGISTERED:
            self._record_save_and_watch(word, service, call)
        reason = ""
        try:
            reason = await self._update_routes(gateway, settings.name)
        finally:
            if word == REGISTERED and service in self.services:
                if reason:
                    self._forget([service])
                else:
                    self._record_save_and_watch(word, service, call)
        if reason and word == REGISTERED:
            has_route = settings.has_place or gateway.routes.has(settings.name)
            hint = "`poolctl routes` lists the routes; register = true lets services register"
            return _refusal(
                CONFLICT if has_route else NOTHING_MATCHED,
                f"{settings.name} cannot be registered: {reason}",
                hint,
            )
        return self._answer([service], reason, await self._await_routes(gateway, call))

    async def unregister(self, call: Call, owner: str = "") -> Result:
        """Unregister this owner's services with the given name and, if given, URL; returns once the gateway knows."""
        if self._gateway is None:
            return await no_gateway_to_change(call)
        await self._resumed
        name, url = str(call.options.get("name") or ""), str(call.options.get("to") or "")
        settings = registration_of({"name": name, "to": url}, []) if url else None
        url = url if settings is None else settings.to
        candidates = [service for service in self.services.of(name) if owner in ("", service.owner)]
        matches = [service for service in candidates if url in ("", service.settings.to)]
        if not matches:
            subject = f"{url} is not" if candidates else "nothing is"
            what = f"{subject} registered as {name!r}"
            near = [service.settings.to for service in candidates] or get_close_matches(
                name[:200], self.services.names[:1000], n=1
            )
            hint = f"did you mean {near[0]}?" if near else "`poolctl routes` lists the routes"
            return _refusal(NOTHING_MATCHED, what, hint)
        answer = self._answer(matches)
        for service in matches:
            self._record("audit", "unregistered", service, by=call.by())
        self._forget(matches)
        late = await self._await_routes(self._gateway, call)
        return replace(answer, warnings=(late,) if late else ())

    async def _validate(self, options: Table, tables: Tables) -> _services.RegistrationRequest | Result:
        findings: list[Finding] = []
        values = {
            key: value for key, value in options.items() if key not in _OF_REQUESTS and value is not None
        }
        settings = registration_of(values, findings)
        if settings is not None:
            url, problem = settings.to, ""
            with contextlib.suppress(TimeoutError):  # if the name server does not answer, the URL is allowed
                async with asyncio.timeout(_RESOLVED_SECONDS):
                    problem = await in_daemon_thread(lambda: target_problem(url, tables))
            if problem:
                findings.append(Finding(("to",), problem, HINT))
        if settings is None or findings:
            errors = [
                failure(
                    PoolValidateError, f"{'.'.join(map(str, finding.path))}: {finding.message}", finding.hint
                )
                for finding in findings
            ]
            return RegistrationChangeResult(errors=tuple(errors), exit_code=INVALID_CONFIGURATION)
        return settings

    def _record_save_and_watch(self, word: str, service: RegisteredService, call: Call) -> None:
        self._record("audit", word, service, by=call.by())
        self._save()
        self._watch(service)

    async def _update_routes(self, gateway: GatewayManager, name: str) -> str:
        """Recompute the routes; returns the reason why the services of this name have no route, or ""."""
        routes = gateway.routes
        routes.schedule_computation()
        await routes.wait_until_current()
        excluded = (route for route in routes.routes.excluded if route.provider == REGISTRATION)
        return next((route.reason for route in excluded if route.alias == name), "")

    async def _await_routes(self, gateway: GatewayManager, call: Call) -> str:
        """Wait until the gateway has the new routes; returns "", or a warning if the gateway takes too long."""
        self._events.flush()  # the event of the change is saved before the change is reported as done
        await gateway.routes.wait_until_current()
        return await gateway.wait_until_applied(call.options.get("timeout"))

    def _answer(self, services: Iterable[RegisteredService], *warnings: str) -> RegistrationChangeResult:
        reports = tuple(map(self.services.report, services))
        return RegistrationChangeResult(items=reports, warnings=tuple(filter(None, warnings)))

    # Changes not caused by a verb: probes and expiry.

    def _watch(self, service: RegisteredService) -> None:
        """Probe the service with the Host header that its route sends."""
        settings, route = service.settings, self._routes.get(service.settings.name)
        host = (
            sent_host(settings.host or "", "") if route is None else sent_host(route.host, route.host_header)
        )
        probe = settings.probe
        self._probes.watch(service, None if probe is None else probe_with_host(probe, host))

    def _record_probe(self, service: RegisteredService, problem: str, latency_seconds: float) -> None:
        before = service.state
        if not self.services.record_probe(service, problem, latency_seconds):
            return
        if service.state == FAILING:
            self._record("pool", "flagged", service, cause=problem, severity="warning")
        else:
            self._record("pool", "ready" if before == STARTING else "recovered", service)
        self._update_record(service)
        self._publish_and_save_change()

    def _publish_and_save_change(self) -> None:
        if self._gateway is not None:
            self._gateway.routes.schedule_computation()
        self._save()

    def _schedule_expiry_check(self, deadline: float) -> None:
        """Schedule the next check for expired services at `deadline`, unless an earlier check is scheduled."""
        if deadline == math.inf:
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + max(0.0, deadline - self._clock.monotonic())
        if self._expiry is None or at < self._expiry.when():
            if self._expiry is not None:
                self._expiry.cancel()
            self._expiry = loop.call_at(at, self._expire)

    def _schedule_next_expiry_check(self) -> None:
        self._schedule_expiry_check(self.services.due)

    def _expire(self) -> None:
        self._expiry = None
        task = asyncio.ensure_future(self._expire_if_reachable())
        self._expiring.add(task)
        task.add_done_callback(self._expiring.discard)

    async def _expire_if_reachable(self) -> None:
        """Remove services after their time-to-live; renew it if services could not send heartbeats."""
        if not await self._address.receives_heartbeats():
            self.services.renew()
        silent, forgotten = self.services.expire()
        for service in silent:
            self._probes.forget(service)
            self._update_record(service)
            self._record("pool", "expired", service, cause=service.why, severity="warning")
        for service in forgotten:
            self._record("pool", "forgotten", service, cause=service.why)
        if silent or forgotten:
            self._publish_and_save_change()
        self._schedule_next_expiry_check()

    def _forget(self, services: Iterable[RegisteredService]) -> None:
        for service in services:
            self.services.remove(service)
            self._probes.forget(service)
        self._publish_and_save_change()

    def _record(self, kind: str, word: str, service: RegisteredService, **more: Any) -> None:
        settings = service.settings
        self._events.record(
            kind, f"backend {word}", message=str(service), route=settings.name, url=settings.to, **more
        )

    # State for the next supervisor.

    async def _resume(self) -> None:
        """Restore the services of the previous supervisor.

        Their state is in the keeper or, if the keeper was killed too, in a file of the runtime directory. After a stop
        of the pool it is in a file of the state directory, which is valid for one start and is removed.
        """
        content = await self._store.read(fd_store.REGISTRATIONS)
        stopped = _pop_saved_services(self._path)
        if content is not None:
            saved = json.loads(content)
        else:
            saved = pool_files.read_left_state(self._directory, pool_files.REGISTRATIONS)
        was_stopped = content is None and not saved.get("services")
        saved = stopped if was_stopped else saved
        for number, entry in enumerate(saved.get("services") or ()):
            self.services.restore_service(entry, pool_was_stopped=was_stopped)
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        for service in self.services:
            self._update_record(service)
            if service.state != SILENT:
                self._watch(service)
        self._schedule_next_expiry_check()
        if len(self.services):
            self._save()

    def _update_record(self, service: RegisteredService) -> None:
        service.record = json.dumps(self.services.to_json(service)).encode()

    def _save(self) -> None:
        self._store.store_for_successor(fd_store.REGISTRATIONS, self._content)
        try:
            pool_files.write_left_state(self._directory, self._content, pool_files.REGISTRATIONS)
        except OSError as error:
            logger.warning("if keeper and supervisor are killed together, registrations are lost: %s", error)

    def _save_for_next_start(self) -> None:
        if not len(self.services):
            return
        try:
            replace_file(self._path, self._content)
        except OSError as error:
            logger.warning("the services that have registered are lost with this stop: %s", error)

    @property
    def _content(self) -> bytes:
        services = b",".join(service.record for service in self.services)
        return b'{"services": [%s]}' % services


def _pop_saved_services(path: str) -> Table:
    """Remove this file and return its content. Returns {} if the file is invalid or cannot be removed."""
    content = read_json_object(path)
    try:
        os.unlink(path)
    except OSError:
        return {}
    services = content.get("services")
    are_valid = isinstance(services, list) and all(isinstance(service, dict) for service in services)
    return content if are_valid else {}


async def perform_for_owner(perform: Callable[[Call, str], Awaitable[Result]], call: Call) -> Result:
    """Perform a verb. The process `web` names the client of [registration] in the option `owner`."""
    options = {**call.options}
    owner = str(options.pop("owner", ""))
    if owner:
        by = {"user": owner, "command": "registration", "address": call.by().get("address", "")}
        call = call._replace(options=options, by=lambda: by)
    return await perform(call, owner)


def _refusal(code: int, message: str, hint: str) -> RegistrationChangeResult:
    return RegistrationChangeResult(errors=(failure(PoolParamError, message, hint),), exit_code=code)


# The address [registration].


class RegistrationAddress(WebAddress[RegistrationTable]):
    """The address in [registration]. `on_served` is called whenever a process has begun to serve it."""

    def __init__(self, web: WebServer, environment: SupervisorContext, on_served: Callable[[], None]) -> None:
        super().__init__(
            web, "registration", lambda table: site_settings(table, environment.configuration.environment)
        )
        self._on_served = on_served

    def on_attempted(self, order: Order, *, changed: bool) -> None:
        super().on_attempted(order, changed=changed)
        self._on_served()

    async def receives_heartbeats(self) -> bool:
        """Whether the process can receive heartbeats. If it answers late, returns False then."""
        return self.table is None or await self.web.is_answering()


def site_settings(table: RegistrationTable, env: Mapping[str, str]) -> SiteSettings:
    """The settings of the address, with the clients and their tokens. Raises ServerError for a missing token."""
    clients = []
    for client in table.client:
        token = env.get(client.token_env, "").strip()
        if not token:
            message = f"the environment variable {client.token_env} is not set"
            raise ServerError(message, hint=f"export {client.token_env}=… before poolctl start")
        routes, allow = [*client.routes], [*map(str, client.allow)]
        clients.append({"name": client.label, "token": token, "routes": routes, "allow": allow})
    tls = tls_settings(table.tls, env, is_optional=False) if table.tls else None
    return SiteSettings({"clients": clients}, tls)


HINT = "name the service's own address"
# Names of this machine that a resolver may not know.
_LOOPBACK_NAMES = ("localhost", ".localhost", "ip6-localhost", "ip6-loopback")


def target_problem(url: str, tables: Tables) -> str:
    """Why no service may be registered at this URL; "" if it is allowed. Blocks to resolve the host name.

    Addresses of the pool itself, and addresses that cannot be a service, are refused. Otherwise every client of the
    route could reach the control socket, the metrics, the credentials that cloud providers serve on link-local
    addresses, or the gateway itself in a loop.
    """
    target = parse(url.rpartition("://")[2])
    if target.kind == "unix":
        return _socket_problem(url, target, tables)
    ips = resolve_addresses(target.host)
    for ip in ips:
        if ip.is_link_local:
            return f"{url} is a link-local address"
        if ip.is_multicast or ip.is_unspecified:
            return f"{url} is not the address of a service"
    for name, address in named_addresses(tables):
        if address is not None and address.kind == "tcp" and _reaches_own_address(target, ips, address):
            return f"{url} is an address of {_owner_text(name)}"
    return ""


def resolve_addresses(host: str) -> list[Ip]:
    """The addresses of a host; empty for a name that cannot be resolved. Blocks."""
    with contextlib.suppress(ValueError):
        return [unmapped(ip_address(host.partition("%")[0]))]
    if host.endswith(_LOOPBACK_NAMES):
        return [IPv4Address("127.0.0.1"), IPv6Address("::1")]
    try:
        results = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return [unmapped(ip_address(str(sockaddr[0]).partition("%")[0])) for *_, sockaddr in results]


def _reaches_own_address(target: Address, ips: list[Ip], address: Address) -> bool:
    """Whether a connection to the target, which resolves to `ips`, reaches the pool's own `address`."""
    if target.port != address.port:
        return False
    if target.host == address.host:
        return True
    if address.is_wildcard:
        return any(map(_is_of_this_machine, ips))
    return not set(ips).isdisjoint(resolve_addresses(address.host))


def _is_of_this_machine(ip: Ip) -> bool:
    if ip.is_loopback:
        return True
    family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True


def _socket_problem(url: str, target: Address, tables: Tables) -> str:
    path = os.path.realpath(target.key.removeprefix("unix:"))
    if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
        return f"{url} is not a socket"
    # A directory with a control socket is a pool's runtime directory.
    if os.path.lexists(os.path.join(os.path.dirname(path), SOCKET_NAME)):
        return f"{url} is a socket of poolctl's own"
    for name, address in named_addresses(tables):
        socket_path = address.key.removeprefix("unix:") if address and address.kind == "unix" else ""
        if socket_path and _is_same(path, socket_path):
            return f"{url} is an address of {_owner_text(name)}"
    return ""


def _is_same(path: str, other: str) -> bool:
    try:
        return os.path.realpath(other) == path or os.path.samefile(path, other)
    except OSError:
        return False


def _owner_text(table: str) -> str:
    return "the gateway itself" if table == "[gateway]" else f"the pool's own {table}"
