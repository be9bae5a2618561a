"""State shared by all connections of the gateway: settings, route table, backends, socket pairs, pools and counts.

There is one Edge per process. This module imports only what the Edge holds; the code that serves connections
(accepting, proxying, streams) gets the Edge as its first argument.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import Protocol

from poolctl.feature import features
from poolctl.json_form import Table, from_json
from poolctl.routing.decision import is_within
from poolctl.routing.route import Route
from poolctl.routing.route_table import RouteTable, write_table

from .backends.backends import Backends
from .backends.hosts import HostStates
from .backends.route_backends import Backend, NoBackend
from .counts import TrafficCounts
from .descriptor_limit import DescriptorLimits, StreamDescriptorLimit, is_exhausted
from .machines import WakeableMachines
from .passing import ConnectionSender
from .proxy.backend_connection import BackendConnection
from .proxy.connection_pool import ProxyConnections
from .proxy.gateway_access_log import GatewayAccessLog
from .settings import Endpoint, GatewaySettings, MachineState
from .tls import CertificatesByListener

# Minimum time between reports of an event that an application can cause at any rate.
_REPORT_SECONDS = 10.0
# A closed idle connection keeps its descriptor for one or two more turns of the loop.
_CONNECT_ATTEMPTS = 4
_RETRY_AFTER_SECONDS = 1.0


class EdgePart(Protocol):
    """The part of a feature that runs in the gateway's process. Created with the Edge and the feature's settings."""

    def configure(self, settings: Table) -> None:
        """Apply these settings."""

    def request_arrived(self, route: Route) -> None:
        """Called for each request that needs a backend. Must not block."""

    def snapshot(self) -> Table:
        """Return the feature's data for the report that the gateway's process sends to the supervisor."""

    def drain(self) -> None:
        """Stop working, because a successor process does the work from now on."""

    def close(self) -> None:
        """Stop, and release everything."""


class GatewayState:
    """The gateway's shared state. `table` and `settings` are replaced as a whole, so do not keep references to them.

    Must be created on the loop that uses it. `report` sends an event to the supervisor.
    """

    def __init__(self, settings: GatewaySettings, report: Callable[[str, Table], None]) -> None:
        self.settings = settings
        self.access_log: GatewayAccessLog | None = None
        self.loop = asyncio.get_running_loop()
        self._report = report
        self._reported: dict[str, float] = {}  # by kind of event: when the next one may be reported
        self.draining = False  # no new connection is accepted, and open ones are closed after their response
        self.table = _empty_table()
        # Whether workers may have connections without TLS; if not, plain connections that come back are closed.
        self.workers_keep = True
        # Asks the supervisor to wake the sleeping server, or to start the machine behind the URL. Never blocks.
        self.wake: Callable[[str], None] = lambda server: None
        self.hosts = HostStates(self.loop.time)
        self.counts = TrafficCounts()
        self.backends = Backends(self.hosts, self.loop.time, self.event, self.counts)
        self.passing = ConnectionSender(self.event, self.counts)
        self.pool = ProxyConnections()
        self.certificates = CertificatesByListener()
        self.descriptors = DescriptorLimits()
        self.stream_share = StreamDescriptorLimit(self.descriptors)
        self.evicted = 0  # number of idle connections that were closed to make room for others
        self.parts: dict[str, EdgePart] = {}  # of features, by their packages
        self.machines = WakeableMachines(self)

    def now(self) -> float:
        """The time of the loop in seconds, used for deadlines and latencies."""
        return self.loop.time()

    def configure(self, settings: GatewaySettings) -> None:
        """Apply these settings."""
        self.settings = settings
        self.hosts.configure(settings.traffic_re_enable_seconds, settings.header_for_host)
        self._set_access_log(settings.access_log)
        self._reconcile_parts(settings.parts)

    def _reconcile_parts(self, settings: Mapping[str, Table]) -> None:
        """Configure the EdgePart of each feature in `settings`, or create it if it does not exist; close all others."""
        for package in self.parts.keys() - settings.keys():
            self.parts.pop(package).close()
        for package, its in settings.items():
            if package in self.parts:
                self.parts[package].configure(its)
            else:
                feature = next(each for each in features() if each.package == package)
                self.parts[package] = feature.load(feature.gateway)(self, its)

    def _set_access_log(self, path: str) -> None:
        if path != ("" if self.access_log is None else self.access_log.path):
            if self.access_log is not None:
                self.access_log.close()
            self.access_log = GatewayAccessLog(path) if path else None

    @property
    def keeps_connections(self) -> bool:
        """Whether client connections stay open for further requests."""
        return not self.draining and self.settings.keep_alive_seconds > 0

    def event(self, kind: str, **data: object) -> None:
        """Report an event of the gateway ("breaker opened", …) to the supervisor, which records it. Never blocks."""
        self._report(kind, data)

    def throttled_event(self, kind: str, **data: object) -> None:
        """Report an event that may occur very often: of each kind, at most one is sent every 10 s."""
        now = self.now()
        if now >= self._reported.get(kind, now):
            self._reported[kind] = now + _REPORT_SECONDS
            self.event(kind, **data)

    def evict_client(self) -> bool:
        """Close the client connection that has been idle longest; returns False if none is idle.

        Connections that have sent nothing are closed first. The descriptor may become free only in the next loop
        iteration.
        """
        return self._evicted(self.passing.waiting.close_silent() or self.pool.close_idle_client())

    def evict(self) -> bool:
        """Close the client connection idle longest, or else an idle backend connection; returns False if none is idle.

        Reports the shortage of descriptors as an event.
        """
        done = self.evict_client() or self._evicted(self.pool.close_idle_backend())
        what = "idle ones are closed for new ones" if done else "new ones have to wait, as none is idle"
        message = f"connections take nearly all {self.descriptors.limit} descriptors of the gateway: {what}"
        self.throttled_event("gateway short of descriptors", message=message, severity="warning")
        return done

    def _evicted(self, closed: bool) -> bool:
        self.evicted += closed
        return closed

    async def connect(self, endpoint: Endpoint) -> BackendConnection:
        """Open a connection to a backend; idle connections are closed if descriptors are short.

        Raises OSError if the backend cannot be reached, and NoBackend if this process has no descriptor left.
        """
        for _ in range(_CONNECT_ATTEMPTS):
            try:
                if not self.descriptors.exhausted():
                    return await self.pool.open_backend_connection(endpoint)
            except OSError as error:
                if not is_exhausted(error):
                    raise
            if not self.evict():
                break
            await asyncio.sleep(0)
        raise NoBackend("no descriptor is left", _RETRY_AFTER_SECONDS)

    async def start_machine_and_connect(self, backend: Backend, connect_seconds: float) -> BackendConnection:
        """Connect to a backend, after starting the machine behind its URL if necessary. Raises OSError or NoBackend.

        The caller limits the time, except for a backend in `machines`: starting a machine may take longer.
        """
        if backend.key in self.machines:
            return await self.machines.connect(backend, connect_seconds)
        return await self.connect(backend.endpoint)

    def update_machine(self, state: Table) -> None:
        """Store the supervisor's report about the machine behind a URL; remove the machine if it reports no state."""
        found = from_json(MachineState, state)
        if found.state:
            self.machines.update(found)
        else:
            self.machines.remove(found.host)

    def is_trusted(self, peer: str) -> bool:
        """Whether the peer is a trusted proxy, whose information about its client is used."""
        return bool(self.settings.trusted_proxies) and is_within(peer, self.settings.trusted_proxies)

    def snapshot(self) -> Table:
        """The counts and the current state of this process, for the supervisor's reports."""
        found: Table = {
            "counts": self.counts.snapshot(),
            "hosts": self.backends.snapshot(),
            "healths": self.backends.healths(),
            "queues": self.backends.queued_by_route(),
            "connections": len(self.pool.clients),
            "waiting": len(self.passing.waiting),
            "evicted": self.evicted,
        }
        parts = {package: part.snapshot() for package, part in self.parts.items()}
        return {**found, "parts": parts} if parts else found

    def drain_connections(self) -> None:
        """Close each client connection after its next response, and call `drain` of each feature's EdgePart."""
        self.draining = True
        for part in self.parts.values():
            part.drain()

    def close(self) -> None:
        """End all connections, and close the access log, each feature's EdgePart and the route table."""
        self.passing.close()
        self.pool.close()
        self._set_access_log("")
        self._reconcile_parts({})
        self.table.close()


def _empty_table() -> RouteTable:
    fd = write_table((), 0)
    try:
        return RouteTable(fd)
    finally:
        os.close(fd)
