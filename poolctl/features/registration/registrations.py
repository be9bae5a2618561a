"""Services register as backends of routes, and leave: the verbs, the events, and the state for a successor.

A service that has left, is silent or fails is taken out of the route table at once. Only such changes produce a new
table; a heartbeat does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from poolctl.config import Finding, Tables
from poolctl.control.answers import Result, failure
from poolctl.errors import PoolParamError, PoolValidateError
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION, NOTHING_MATCHED
from poolctl.features.gateway.supervision.gateway_manager import GatewayManager, GatewayPart
from poolctl.features.gateway.supervision.outside_targets import UrlProbes, WithServices
from poolctl.features.gateway.supervision.pool_gateway import no_gateway_to_change
from poolctl.features.gateway.table import GatewayConfig, RouteConfig
from poolctl.json_form import Table
from poolctl.keeper import fd_store, pool_files
from poolctl.monitor.metrics import Family, family_of
from poolctl.platform import read_file, replace_file, sealed_file
from poolctl.routing.route import REGISTRATION
from poolctl.routing.route_report import FAILING, SILENT, STARTING, RegistrationReport
from poolctl.runners.listener_opener import in_daemon_thread
from poolctl.runners.process_link import LinkLost
from poolctl.supervisor.feature_parts import PartSite
from poolctl.supervisor.verbs.verb import Call, Verb

from ._answers import RegistrationsResult
from ._endpoint import HINT, RegistrationAddress, target_problem
from ._services import (
    REFRESHED,
    REGISTERED,
    RegisteredService,
    Registration,
    RegistrationRefused,
    Registrations,
    registration_of,
    with_registrations,
)
from .table import RegistrationTable

# Options of every request, not of the service.
_OF_REQUESTS = ("timeout", "progress", "wait")
# In the state directory, from a stop to the next start.
_FILE = "stopped-registrations.json"
# Interval at which heartbeats are saved; a successor gives each service time for another heartbeat.
_SAVE_SECONDS = 1.0
_PERFORMED_SECONDS = 5.0
_RESOLVED_SECONDS = 5.0
_AFTER_START_SECONDS = 1.0
_AT_ONCE = 100

logger = logging.getLogger("poolctl.supervisor")


class TargetRegistration(GatewayPart):
    """Keeps the services of a gateway."""

    def __init__(self, site: PartSite) -> None:
        super().__init__(site)
        environment = site.environment
        self.services = Registrations(site.core.clock)
        self._clock = site.core.clock
        self._events = site.events
        self._keeper = environment.keeper
        self._directory = environment.directory
        self._path = os.path.join(environment.state_directory, _FILE)
        self._address = RegistrationAddress(environment, site.events, self)
        self._table: RegistrationTable | None = None
        self._gateway: GatewayManager | None = None
        self._probes = UrlProbes(self._probed)
        self._expiry: asyncio.TimerHandle | None = None
        self._saving: asyncio.TimerHandle | None = None

    @property
    def verbs(self) -> Mapping[str, Verb]:
        """See FeaturePart."""
        return {"register": self.register, "unregister": self.unregister}

    def follow(self, tables: Tables) -> None:
        """See FeaturePart."""
        self._table = tables.get(RegistrationTable) if tables.get(GatewayConfig) is not None else None
        self._serve()

    def connect(self, gateway: GatewayManager) -> None:
        """See GatewayPart."""
        self._gateway = gateway
        self._resumed = asyncio.ensure_future(self._resume())
        gateway.routes.services = self
        self._serve()
        prepare = threading.Thread(target=_prepare_validation, daemon=True)
        asyncio.get_running_loop().call_later(_AFTER_START_SECONDS, prepare.start)

    def _serve(self) -> None:
        if self._gateway is not None:
            self._address.follow(self._table)

    @property
    def not_served(self) -> Iterable[str]:
        """See GatewayPart."""
        return [f"[registration]: {self._address.problem}"] if self._address.problem else []

    async def attempted(self) -> None:
        """See FeaturePart."""
        if self._gateway is not None:
            await self._address.attempted()

    def gateway_metrics(self, reports: Table) -> Iterable[Family]:
        """See GatewayPart."""
        found = family_of("poolctl_gateway_registrations", "gauge", "Registered services by their state.")
        for state, count in self.services.counts().items():
            found.add(count, state=state)
        return [found]

    async def stop_serving(self) -> None:
        """See FeaturePart. The next start of the pool has the services again."""
        if self._gateway is None:
            return
        await self._address.close()
        with contextlib.suppress(Exception):  # which every route table has reported
            await self._resumed
        self._probes.close()
        for timer in (self._expiry, self._saving):
            if timer is not None:
                timer.cancel()
        self._save_for_next_start()

    # The services for the gateway's routes (ServiceSource).

    async def present(self) -> WithServices:
        """See ServiceSource."""
        await self._resumed
        return partial(with_registrations, registered=self.services.backends())

    def __iter__(self) -> Iterator[RegisteredService]:
        return iter(self.services)

    def of(self, alias: str) -> Sequence[RegisteredService]:
        """See ServiceSource."""
        return self.services.of(alias)

    def reports(self, alias: str) -> tuple[RegistrationReport, ...]:
        """See ServiceSource."""
        return tuple(map(self.services.report, self.services.of(alias)))

    # The verbs.

    async def register(self, call: Call, owner: str = "") -> Result:
        """Register a service, or record its heartbeat; returns once the gateway has applied it."""
        gateway = self._gateway
        if gateway is None or gateway.tables.get(GatewayConfig) is None:
            return await no_gateway_to_change(call)
        await self._resumed
        settings = await self._settings(call.options, gateway.tables)
        if isinstance(settings, Result):
            return settings
        try:
            service, word = self.services.register(settings, owner)
        except RegistrationRefused as refused:
            return _refusal(CONFLICT, str(refused), refused.hint)
        self._note(service)
        self._expect(service.deadline)
        if word == REFRESHED:
            self._save_soon()
            return self._answer([service])
        if word != REGISTERED:
            self._accepted(word, service, call)
        reason = ""
        try:
            reason = await self._no_route(gateway, settings.name)
        finally:
            if word == REGISTERED and service in self.services:
                if reason:
                    self._forget([service])
                else:
                    self._accepted(word, service, call)
        if reason and word == REGISTERED:
            known = settings.has_place or gateway.routes.has(settings.name)
            hint = "`poolctl routes` lists the routes; register = true lets services register"
            return _refusal(
                CONFLICT if known else NOTHING_MATCHED,
                f"{settings.name} cannot be registered: {reason}",
                hint,
            )
        return self._answer([service], reason, await self._in_force(gateway, call))

    async def unregister(self, call: Call, owner: str = "") -> Result:
        """Unregister a service, or this owner's services of a name; returns once the gateway has applied it."""
        if self._gateway is None:
            return await no_gateway_to_change(call)
        await self._resumed
        name, url = str(call.options.get("name") or ""), str(call.options.get("to") or "")
        settings = registration_of({"name": name, "to": url}, []) if url else None
        url = url if settings is None else settings.to
        known = [each for each in self.services.of(name) if owner in ("", each.owner)]
        found = [each for each in known if url in ("", each.settings.to)]
        if not found:
            what = f"{url} is not registered as {name!r}" if known else f"nothing is registered as {name!r}"
            near = [each.settings.to for each in known] or get_close_matches(
                name[:200], self.services.names[:1000], n=1
            )
            hint = f"did you mean {near[0]}?" if near else "`poolctl routes` lists the routes"
            return _refusal(NOTHING_MATCHED, what, hint)
        answer = self._answer(found)
        for each in found:
            self._record("audit", "unregistered", each, by=call.by())
        self._forget(found)
        late = await self._in_force(self._gateway, call)
        return replace(answer, warnings=(late,) if late else ())

    async def _settings(self, options: Table, tables: Tables) -> Registration | Result:
        findings: list[Finding] = []
        given = {
            key: value for key, value in options.items() if key not in _OF_REQUESTS and value is not None
        }
        settings = registration_of(given, findings)
        if settings is not None and (problem := await _problem_of(settings.to, tables)):
            findings.append(Finding(("to",), problem, HINT))
        if settings is None or findings:
            errors = [
                failure(PoolValidateError, f"{'.'.join(map(str, each.path))}: {each.message}", each.hint)
                for each in findings
            ]
            return RegistrationsResult(errors=tuple(errors), exit_code=INVALID_CONFIGURATION)
        return settings

    def _accepted(self, word: str, service: RegisteredService, call: Call) -> None:
        self._record("audit", word, service, by=call.by())
        self._save()
        self._probes.watch(service)

    async def _no_route(self, gateway: GatewayManager, name: str) -> str:
        """Why the services of this name have no route after the current computation; "" if they have a route."""
        routes = gateway.routes
        routes.again()
        await routes.settled()
        own = (each for each in routes.routes.excluded if each.provider == REGISTRATION)
        return next((each.reason for each in own if each.alias == name), "")

    async def _in_force(self, gateway: GatewayManager, call: Call) -> str:
        """Save the events; return "" once the gateway has the new routes, or a warning if that takes too long."""
        self._events.flush()
        await gateway.routes.settled()
        if (process := gateway.gateway) is not None:
            # It was sent the table; other changes need not be awaited.
            with contextlib.suppress(LinkLost, TimeoutError):
                async with asyncio.timeout(_PERFORMED_SECONDS):
                    await process.performed()
                return ""
        return await gateway.in_force(call.options.get("timeout"))

    def _answer(self, services: Iterable[RegisteredService], *warnings: str) -> RegistrationsResult:
        reports = tuple(map(self.services.report, services))
        return RegistrationsResult(items=reports, warnings=tuple(filter(None, warnings)))

    # Changes without a command.

    def _probed(self, service: RegisteredService, problem: str, latency_seconds: float) -> None:
        before = service.state
        if not self.services.probed(service, problem, latency_seconds):
            return
        if service.state == FAILING:
            self._record("pool", "flagged", service, cause=problem, severity="warning")
        else:
            self._record("pool", "ready" if before == STARTING else "recovered", service)
        self._note(service)
        self._changed()

    def _changed(self) -> None:
        if self._gateway is not None:
            self._gateway.routes.again()
        self._save()

    def _expect(self, deadline: float | None) -> None:
        """Check for expired services at this time, unless that is done earlier: a heartbeat may then have come."""
        loop = asyncio.get_running_loop()
        if deadline is None or deadline == math.inf:
            return
        at = loop.time() + max(0.0, deadline - self._clock.monotonic())
        if self._expiry is None or at < self._expiry.when():
            if self._expiry is not None:
                self._expiry.cancel()
            self._expiry = loop.call_at(at, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        silent, forgotten = self.services.expire()
        for each in silent:
            self._probes.forget(each)
            self._note(each)
            self._record("pool", "expired", each, cause=each.why, severity="warning")
        for each in forgotten:
            self._record("pool", "forgotten", each, cause=each.why)
        if silent or forgotten:
            self._changed()
        self._expect(self.services.due)

    def _forget(self, services: Iterable[RegisteredService]) -> None:
        for each in services:
            self.services.remove(each)
            self._probes.forget(each)
        self._changed()

    def _record(self, kind: str, word: str, service: RegisteredService, **more: Any) -> None:
        settings = service.settings
        self._events.record(
            kind, f"backend {word}", message=str(service), route=settings.name, url=settings.to, **more
        )

    # State for the next supervisor.

    async def _resume(self) -> None:
        """Continue with the services of the previous supervisor.

        If it was killed together with its keeper, they are in a file of the runtime directory. If the pool was stopped,
        they are in a file of the state directory, which is valid for one start and is removed.
        """
        _, fds = await self._keeper.call({"op": "get", "name": fd_store.REGISTRATIONS})
        stopped = _take_stopped(self._path)
        if fds:
            content = read_file(fds[0])
            os.close(fds[0])
            saved, stopped = json.loads(content), []
        elif (
            saved := pool_files.read_desired(self._directory, pool_files.REGISTRATIONS).get("services") or ()
        ):
            stopped = []
        for number, each in enumerate(saved or stopped):
            self.services.restore(each, whole=not fds, stopped=bool(stopped))
            if number % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        for service in self.services:
            self._note(service)
            if service.state != SILENT:
                self._probes.watch(service)
        self._expect(self.services.due)
        if len(self.services):
            self._save()

    def _note(self, service: RegisteredService) -> None:
        service.record = json.dumps(self.services.to_json(service)).encode()

    def _save_soon(self) -> None:
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVE_SECONDS, self._save_heartbeats)

    def _save(self) -> None:
        content = self._save_heartbeats()
        try:
            pool_files.write_desired(self._directory, b'{"services": %s}' % content, pool_files.REGISTRATIONS)
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
        return b"[%s]" % b",".join(each.record for each in self.services)

    def _save_heartbeats(self) -> bytes:
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        content = self._content
        fd = sealed_file("poolctl-registrations", content)
        try:
            self._keeper.send({"op": "put", "name": fd_store.REGISTRATIONS}, [fd])
        finally:
            os.close(fd)
        return content


def _take_stopped(path: str) -> list[Table]:
    """Remove this file and return the services in it."""
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        os.unlink(path)
    except (OSError, ValueError):
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _prepare_validation() -> None:
    """Import and build the validation of registrations now, because an upgrade may replace the package's files."""
    registration_of({}, [])
    with contextlib.suppress(PoolValidateError):
        RouteConfig()


async def _problem_of(url: str, tables: Tables) -> str:
    """See target_problem; if the name server does not answer, the URL is allowed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_RESOLVED_SECONDS):
            return await in_daemon_thread(lambda: target_problem(url, tables))
    return ""


def _refusal(code: int, message: str, hint: str) -> RegistrationsResult:
    return RegistrationsResult(errors=(failure(PoolParamError, message, hint),), exit_code=code)
