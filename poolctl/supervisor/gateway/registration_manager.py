"""Services register as backends of routes, and leave: the verbs, the events, and the state for a successor.

A service that has left, is silent or fails is taken out of the route table at once. Only such changes produce a new
table; a heartbeat does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from poolctl.clock import Clock
from poolctl.config import Finding, Registration, Tables, registration_of
from poolctl.control.answers import Result, failure
from poolctl.control.gateway_answers import RegistrationsResult
from poolctl.errors import PoolParamError, PoolValidateError
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION, NOTHING_MATCHED
from poolctl.json_form import Table
from poolctl.keeper import fd_store, rendezvous
from poolctl.monitor.event_queue import Events
from poolctl.monitor.exposition import Family
from poolctl.monitor.server_metrics import family_of
from poolctl.platform import read_file, replace_file, sealed_file
from poolctl.routing.registration_report import FAILING, SILENT, STARTING
from poolctl.routing.route import REGISTRATION
from poolctl.runners.listener_opener import in_daemon_thread
from poolctl.runners.process_link import Link, LinkLost

from ..verbs.verb import Call
from ..verbs.verbs import Verbs
from .gateway_manager import GatewayManager
from .registration_probes import RegistrationProbes
from .registration_targets import HINT, target_problem
from .registrations import (
    REFRESHED,
    REGISTERED,
    Key,
    RegisteredService,
    RegistrationRefused,
    Registrations,
)

# Options of every request, not of the service.
_OF_REQUESTS = ("timeout", "progress", "wait")
# In the state directory, from a stop to the next start.
_FILE = "stopped-registrations.json"
# Interval at which heartbeats are saved; a successor gives each service time for another heartbeat.
_SAVE_SECONDS = 1.0
_PERFORMED_SECONDS = 5.0
_RESOLVED_SECONDS = 5.0
_AT_ONCE = 100

logger = logging.getLogger("poolctl.supervisor")


async def saved_registrations(
    keeper: Link, directory: str, state_directory: str, clock: Clock
) -> Registrations:
    """The services that the previous supervisor had.

    Of one that was killed with its keeper they are in a file of the runtime directory, of a pool that was stopped in
    one of the state directory, which is removed: it holds for one start.
    """
    services = Registrations(clock)
    _, fds = await keeper.call({"op": "get", "name": fd_store.REGISTRATIONS})
    stopped = _take_stopped(state_directory)
    if fds:
        content = read_file(fds[0])
        os.close(fds[0])
        saved, stopped = json.loads(content), []
    elif saved := rendezvous.read_desired(directory, rendezvous.REGISTRATIONS).get("services") or ():
        stopped = []
    for number, each in enumerate(saved or stopped):
        services.restore(each, whole=not fds, stopped=bool(stopped))
        if number % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
    return services


def _take_stopped(state_directory: str) -> list[Table]:
    """The state saved by `save_for_next_start`."""
    path = os.path.join(state_directory, _FILE)
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        os.unlink(path)
    except (OSError, ValueError):
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


class RegistrationManager:
    """Keeps the services of a gateway."""

    def __init__(
        self,
        gateway: GatewayManager,
        clock: Clock,
        events: Events,
        keeper: Link,
        directory: str,
        state_directory: str,
        services: Registrations,
    ) -> None:
        self.services = services
        self._gateway = gateway
        self._clock = clock
        self._events = events
        self._keeper = keeper
        self._directory = directory
        self._state_directory = state_directory
        self._probes = RegistrationProbes(self._probed)
        self._records: dict[Key, bytes] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self._saving: asyncio.TimerHandle | None = None
        gateway.routes.registered = services.backends
        for each in services:
            self._note(each)
            if each.state != SILENT:
                self._probes.watch(each)
        self._expect()
        if self._records:
            self._save()

    def add_to(self, verbs: Verbs) -> None:
        """Answer these verbs."""
        verbs.add("register", self.register)
        verbs.add("unregister", self.unregister)
        verbs.before_end(self.save_for_next_start)

    async def register(self, call: Call, owner: str = "") -> Result:
        """Register a service, or take its heartbeat; returns when the gateway follows."""
        settings = await self._settings(call.options)
        if isinstance(settings, Result):
            return settings
        try:
            service, word = self.services.register(settings, owner)
        except RegistrationRefused as refused:
            return _refusal(CONFLICT, str(refused), refused.hint)
        self._note(service)
        if word == REFRESHED:
            self._expect()
            self._save_soon()
            return self._answer([service])
        if word != REGISTERED:
            self._accepted(word, service, call)
        reason = ""
        try:
            reason = await self._no_route(settings.name)
        finally:
            if word == REGISTERED and service in self.services:
                if reason:
                    self._forget([service])
                else:
                    self._accepted(word, service, call)
        if reason and word == REGISTERED:
            known = settings.has_place or self._gateway.routes.has(settings.name)
            hint = "`poolctl routes` lists the routes; register = true lets services register"
            return _refusal(
                CONFLICT if known else NOTHING_MATCHED,
                f"{settings.name} cannot be registered: {reason}",
                hint,
            )
        return self._answer([service], reason, await self._in_force(call))

    async def unregister(self, call: Call, owner: str = "") -> Result:
        """Take out a service, or all of a name that this owner has; returns when the gateway follows."""
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
        late = await self._in_force(call)
        return replace(answer, warnings=(late,) if late else ())

    def metrics(self) -> list[Family]:
        """How many services have registered."""
        found = family_of("poolctl_gateway_registrations", "gauge", "Registered services by their state.")
        for state, count in self.services.counts().items():
            found.add(count, state=state)
        return [found]

    def close(self) -> None:
        """Stop probing."""
        self._probes.close()
        for timer in (self._expiry, self._saving):
            if timer is not None:
                timer.cancel()

    async def _settings(self, options: Table) -> Registration | Result:
        tables = self._gateway.tables
        if tables.gateway is None:
            hint = "a [gateway] or a [[route]] in the file adds one"
            return _refusal(NOTHING_MATCHED, "the pool has no gateway", hint)
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
        self._expect()
        self._save()
        self._probes.watch(service)

    async def _no_route(self, name: str) -> str:
        """Why the services of this name have no route after the current computation; "" if they have a route."""
        routes = self._gateway.routes
        routes.again()
        await routes.settled()
        own = (each for each in routes.routes.excluded if each.provider == REGISTRATION)
        return next((each.reason for each in own if each.alias == name), "")

    async def _in_force(self, call: Call) -> str:
        """Return once the gateway follows, or a warning; a kill of this supervisor loses no event of it then."""
        self._events.flush()
        await self._gateway.routes.settled()
        if (process := self._gateway.gateway) is not None:
            # It was sent the table; other changes need not be awaited.
            with contextlib.suppress(LinkLost, TimeoutError):
                async with asyncio.timeout(_PERFORMED_SECONDS):
                    await process.performed()
                return ""
        return await self._gateway.in_force(call.options.get("timeout"))

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
        self._gateway.routes.again()
        self._save()

    def _expect(self) -> None:
        """Look again when the next time-to-live has passed."""
        due = self.services.due
        if self._expiry is not None:
            self._expiry.cancel()
        loop = asyncio.get_running_loop()
        seconds = None if due is None else max(0.0, due - self._clock.monotonic())
        self._expiry = None if seconds is None else loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        silent, forgotten = self.services.expire()
        for each in silent:
            self._probes.forget(each)
            self._note(each)
            self._record("pool", "expired", each, cause=each.why, severity="warning")
        for each in forgotten:
            self._records.pop(each.key, None)
            self._record("pool", "forgotten", each, cause=each.why)
        if silent or forgotten:
            self._gateway.routes.again()
            self._save()
        self._expect()

    def _forget(self, services: Iterable[RegisteredService]) -> None:
        for each in services:
            self.services.remove(each)
            self._probes.forget(each)
            self._records.pop(each.key, None)
        self._gateway.routes.again()
        self._save()

    def _record(self, kind: str, word: str, service: RegisteredService, **more: Any) -> None:
        settings = service.settings
        self._events.record(
            kind, f"backend {word}", message=str(service), route=settings.name, url=settings.to, **more
        )

    # State for the next supervisor.

    def _note(self, service: RegisteredService) -> None:
        self._records[service.key] = json.dumps(self.services.to_json(service)).encode()

    def _save_soon(self) -> None:
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVE_SECONDS, self._save_heartbeats)

    def _save(self) -> None:
        content = self._save_heartbeats()
        try:
            rendezvous.write_desired(self._directory, b'{"services": %s}' % content, rendezvous.REGISTRATIONS)
        except OSError as error:
            logger.warning("if keeper and supervisor are killed together, registrations are lost: %s", error)

    async def save_for_next_start(self) -> None:
        """Keep the services for the next start of the pool, which is being stopped."""
        if not self._records:
            return
        content = b"[%s]" % b",".join(self._records.values())
        try:
            replace_file(os.path.join(self._state_directory, _FILE), content)
        except OSError as error:
            logger.warning("the services that have registered are lost with this stop: %s", error)

    def _save_heartbeats(self) -> bytes:
        if self._saving is not None:
            self._saving.cancel()
            self._saving = None
        content = b"[%s]" % b",".join(self._records.values())
        fd = sealed_file("poolctl-registrations", content)
        try:
            self._keeper.send({"op": "put", "name": fd_store.REGISTRATIONS}, [fd])
        finally:
            os.close(fd)
        return content


async def _problem_of(url: str, tables: Tables) -> str:
    """See target_problem; a name server that does not answer forbids nothing."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_RESOLVED_SECONDS):
            return await in_daemon_thread(lambda: target_problem(url, tables))
    return ""


def _refusal(code: int, message: str, hint: str) -> RegistrationsResult:
    return RegistrationsResult(errors=(failure(PoolParamError, message, hint),), exit_code=code)
