"""The gateway process if HAProxy serves the clients: it carries out the supervisor's orders by controlling HAProxy.

Changes of servers are sent to HAProxy's runtime socket. When routes or listeners change, a new HAProxy starts on the
same sockets, and the previous one finishes its requests. When this process exits, HAProxy finishes its requests too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostStates
from poolctl.features.gateway.process.backends.route_backends import SLEEPING
from poolctl.features.gateway.process.counts import Traffic, TrafficCounts
from poolctl.features.gateway.process.gateway_orders import SupervisedGateway
from poolctl.features.gateway.process.settings import ListenerSettings, ServerFacts
from poolctl.json_form import Table, from_json
from poolctl.keeper import wire
from poolctl.platform import read_file
from poolctl.routing.route import Route, StreamRoute
from poolctl.routing.route_table import RouteTable
from poolctl.runners.listener_opener import in_daemon_thread
from poolctl.runners.supervised_process import LINK_FD
from poolctl.worker import tally

from ._access_log import AccessLogPipe
from ._configuration import (
    NO_ROUTE,
    CertificateContents,
    HaproxyBackend,
    HeldListener,
    host_names,
    setup_of,
)
from ._program import HaproxyProcessManager, HaproxyRefusal
from .engine import HAPROXY

# How long a change of routes waits for the addresses of new names, and when they are asked for again.
_RESOLVES_SECONDS, _RESOLVES_AGAIN_SECONDS = 1.0, 10.0
# HAProxy reports no event when it shows a waiting page.
_WAKES_SECONDS = 0.2

logger = logging.getLogger("poolctl.gateway")


class HostNames:
    """The addresses of host names, asked for again and again; `changed` is called when one of them has changed.

    A name server that does not answer holds up nothing but its names.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.addresses: dict[str, str] = {}
        self._changed = changed
        self._following: dict[str, asyncio.Task[None]] = {}

    async def follow(self, names: frozenset[str]) -> None:
        """Follow these names, and no others; returns when new ones are known, or after a second."""
        for gone in self._following.keys() - names:
            self._following.pop(gone).cancel()
            self.addresses.pop(gone, None)
        new = {name: asyncio.Event() for name in names - self._following.keys()}
        for name, tried in new.items():
            self._following[name] = asyncio.ensure_future(self._follow(name, tried))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RESOLVES_SECONDS):
                for tried in new.values():
                    await tried.wait()

    async def _follow(self, name: str, tried: asyncio.Event) -> None:
        while True:
            with contextlib.suppress(OSError, RuntimeError, UnicodeError):
                found = await in_daemon_thread(lambda: _resolve(name))
                if self.addresses.get(name) not in found:
                    self.addresses[name] = found[0]
                    self._changed()
            tried.set()
            await asyncio.sleep(_RESOLVES_AGAIN_SECONDS)

    def close(self) -> None:
        """Follow no name."""
        for task in self._following.values():
            task.cancel()
        self._following.clear()


def _resolve(name: str) -> list[str]:
    """The addresses of a host name. Blocks; raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]


class HaproxyGateway(SupervisedGateway[HeldListener]):
    """The gateway process that runs HAProxy. See SupervisedGateway for its methods."""

    ORDERS = (*SupervisedGateway.ORDERS, "reopen")

    def __init__(self, fd: int = LINK_FD) -> None:
        super().__init__(fd)
        self._certificates: dict[tuple[str, tuple[str, ...]], CertificateContents] = {}
        self._routes: tuple[Route, ...] = ()
        self._work: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._behind = self._ending = False
        self._waking: asyncio.Task[None] | None = None
        self._access_log: AccessLogPipe | None = None

    def confirm_performed(self, message: wire.Message) -> None:
        """Answer the supervisor's `message` once HAProxy has applied all orders received before it.

        If the message has a server as `unused`, replaced processes that send it requests have no idle clients then.
        """
        self._reply_when_applied({"t": "performed", "id": message["id"]}, str(message.get("unused", "")))

    async def end_service(self) -> None:
        self._ending = True
        for task in list(self._work):
            task.cancel()
        if self._has_settings:
            self.stop_expiry()
            self._names.close()
            await self.haproxy.stop_immediately()
        for listener in self._listeners.values():
            _close(listener.sockets)
        _close(self._own_pair)

    # The state in force.

    def create_serving_state(self) -> None:
        now = asyncio.get_running_loop().time
        self.hosts, self.counts = HostStates(now), TrafficCounts()
        self.backends = Backends(self.hosts, now, counts=self.counts)
        self.hosts.subscribe(lambda *_: self._schedule_apply())
        self.statistics = HaproxyStatisticsAccumulator(self.counts)
        directory = os.path.join(self.settings.directory, "haproxy")
        self._names = HostNames(self._schedule_apply)
        self.haproxy = HaproxyProcessManager(self.settings.program, directory)
        self.haproxy.on_too_many = self._record_ended_process
        self.haproxy.on_refused_server = self._record_refused_server
        self.haproxy.adopt_left_processes()

    def configure(self) -> None:
        self.hosts.configure(self.settings.traffic_re_enable_seconds, self.settings.header_for_host)
        before, path = self._access_log, self.settings.access_log
        if before is None or before.path != path:
            self._access_log = AccessLogPipe(path) if path else None
            if before is not None:
                before.close()

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Carry out an order; HAProxy's configuration is updated soon afterwards."""
        super().perform(message, fds)
        if message.get("t") not in ("report", "figures", "drain"):
            self._schedule_apply()

    def _pair(self, message: wire.Message, fds: list[int]) -> None:
        _close(self._own_pair)
        self._own_pair = [socket.socket(fileno=fd) for fd in fds]

    def _server(self, message: wire.Message, fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        facts = from_json(ServerFacts, message["facts"])
        self._stale.discard(("forget", facts.name))
        self._servers[facts.name] = facts

    def _forget(self, message: wire.Message, fds: list[int]) -> None:
        self._servers.pop(message["server"], None)

    def _withdraw(self, message: wire.Message, fds: list[int]) -> None:
        """Confirm that no connection is passed over a socket of the server; HAProxy's connections are its own."""
        self.link.send({"t": "withdrawn", "id": message["id"]})

    def _certificate(self, message: wire.Message, fds: list[int]) -> None:
        contents = [read_file(fd) for fd in fds]
        for fd in fds:
            os.close(fd)
        names = tuple(message["names"])
        self._certificates[message["bind"], names] = CertificateContents(message["tls"], contents)

    def _certified(self, message: wire.Message, fds: list[int]) -> None:
        bind, kept = message["bind"], self._certificates
        self._certificates = {key: each for key, each in kept.items() if key[0] != bind}
        for names in map(tuple, message["names"]):
            self._certificates[bind, names] = kept[bind, names]

    def _table(self, message: wire.Message, fds: list[int]) -> None:
        (fd,) = fds
        table = RouteTable(fd)
        os.close(fd)
        self._routes = tuple(table)
        table.close()

    def _listener(self, message: wire.Message, fds: list[int]) -> None:
        settings = from_json(ListenerSettings, message["listener"])
        route = None if message["route"] is None else from_json(StreamRoute, message["route"])
        sockets = [socket.socket(fileno=fd) for fd in fds]
        self._stale.discard(("unlisten", settings.key))
        before = self._listeners.get(settings.key)
        if before is not None and _numbers(before.sockets) == _numbers(sockets):
            _close(sockets)
            sockets = before.sockets  # the same numbers, so that HAProxy need not be started again
        elif before is not None:
            _close(before.sockets)
        self._listeners[settings.key] = HeldListener(settings, route, sockets)

    def _unlisten(self, message: wire.Message, fds: list[int]) -> None:
        if (listener := self._listeners.pop(message["key"], None)) is not None:
            _close(listener.sockets)

    def _begin(self, message: wire.Message, fds: list[int]) -> None:
        self._remove_not_resent()
        self._begun = True
        self._reply_when_applied({"t": "up"})

    def _reopen(self, message: wire.Message, fds: list[int]) -> None:
        # The access log looks by itself whether its path is another file's.
        self.link.send({"t": "reopened", "id": message["id"]})

    # HAProxy.

    def _schedule_apply(self) -> None:
        self._behind = True
        if self._begun and self._following is None and not self._ending:
            self._following = self._spawn_task(self._apply_until_current())

    def _spawn_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    def _reply_when_applied(self, reply: wire.Message, unused: str = "") -> None:
        """Start a task that sends `reply` once HAProxy has applied all orders received from the supervisor.

        With a server as `unused`, `reply` is sent when replaced processes begin no requests to it either.
        """

        async def send() -> None:
            while self._following is not None:
                await asyncio.wait([self._following])
            if unused and self._has_settings:
                await self.haproxy.wait_until_unused(unused)
            self.link.send(reply)

        self._spawn_task(send())

    async def _apply_until_current(self) -> None:
        try:
            while self._behind:
                self._behind = False
                await self._apply_setup()
        except (HaproxyRefusal, OSError) as refusal:
            logger.error("HAProxy cannot serve by the new configuration: %s", refusal)
            self.link.send(
                {"t": "event", "kind": "gateway configuration refused", "data": {"message": str(refusal)}}
            )
            if self.haproxy.process is None:
                self.over.set()
        finally:
            self._following = None

    async def _apply_setup(self) -> None:
        streams = [each.route for each in self._listeners.values() if each.route is not None]
        self.backends.apply([*self._routes, *streams], {**self._servers})
        if not self._listeners:
            await self.haproxy.stop_immediately()
            return
        before = self.haproxy.process
        await self._names.follow(host_names([*self._routes, *streams], self._servers))
        setup = setup_of(
            self.settings,
            list(self._listeners.values()),
            self._certificates,
            self._routes,
            self._servers,
            self.backends,
            self._names.addresses,
            None if self._access_log is None else self._access_log.descriptor,
        )
        await self._update_counts()
        await self.haproxy.apply(setup)
        if setup.shows_waiting_page and self._waking is None:
            self._waking = self._spawn_task(self._wake_for_waiting_pages())
        process = self.haproxy.process
        if process is not None and process is not before:
            self.statistics.begin_process()
            process.exited.add_done_callback(lambda _: self._exit_if_haproxy_ended(process))

    async def _wake_for_waiting_pages(self) -> None:
        """Wake the servers whose waiting page HAProxy has shown, as long as it may show one."""
        try:
            while (
                (process := self.haproxy.process)
                and (setup := self.haproxy.setup)
                and setup.shows_waiting_page
            ):
                with contextlib.suppress(HaproxyRefusal):  # it is being replaced
                    shown = await process.sections_to_wake()
                    aliases = {each.alias for each in setup.configuration.backends if each.name in shown}
                    for route in self._routes:
                        if route.alias in aliases:
                            self._wake(route)
                await asyncio.sleep(_WAKES_SECONDS)
        finally:
            self._waking = None

    def _wake(self, route: Route) -> None:
        for member in self.backends.of(route).members:
            if member.backend.rank == SLEEPING and member.backend.blocked is None:
                self.link.send({"t": "wake", "server": member.key})
                return

    def _record_ended_process(self, pid: int) -> None:
        message = f"the oldest replaced HAProxy (pid {pid}) is ended with its connections: there are too many"
        self.link.send({"t": "event", "kind": "gateway connections ended", "data": {"message": message}})

    def _record_refused_server(self, target: str, why: str) -> None:
        message = f"{target} gets no requests, as HAProxy does not accept it: {why}"
        logger.error("%s", message)
        self.link.send({"t": "event", "kind": "backend refused", "data": {"message": message}})

    def _exit_if_haproxy_ended(self, process: object) -> None:
        """Exit, because HAProxy has exited unexpectedly: the supervisor then starts another gateway."""
        if process is self.haproxy.process and not self._ending:
            logger.error("HAProxy has ended")
            self.over.set()

    # Figures, and the end.

    async def _update_counts(self) -> None:
        process, setup = self.haproxy.process, self.haproxy.setup
        if process is not None and setup is not None:
            try:
                rows = await process.statistics()
                self.statistics.update_from_statistics(rows, setup.configuration.backends, self.backends)
            except HaproxyRefusal as refusal:
                logger.warning("HAProxy does not report its figures: %s", refusal)

    def _report(self, message: wire.Message, fds: list[int]) -> None:
        self._spawn_task(self._update_counts_and_send_report(message["id"]))

    async def _update_counts_and_send_report(self, number: int) -> None:
        await self._update_counts()
        report = {
            "counts": self.counts.snapshot(),
            "hosts": self.backends.snapshot(),
            "healths": self.backends.healths(),
            "streams": self.statistics.streams,
            "queued": {},
            "connections": self.statistics.connections,
            "waiting": 0,
            "evicted": 0,
        }
        self._send_report(number, report)

    def _figures(self, message: wire.Message, fds: list[int]) -> None:
        self._spawn_task(self._send_figures(message["id"]))

    async def _send_figures(self, number: int) -> None:
        await self._update_counts()
        streams = self.statistics.streams.values()
        figures: Table = {
            "slots": self.counts.total(),
            "refused": self.counts.route_and_other_refusals,
            "connections": self.statistics.connections,
            "streamed": sum(each["accepted"] for each in streams),
            "stream_errors": sum(each["failed"] for each in streams),
            "program_pid": None if self.haproxy.process is None else self.haproxy.process.pid,
            "replaced": len(self.haproxy.replaced_pids),
        }
        self.link.send({"t": "figures", "id": number, **figures})

    async def drain(self, seconds: float, *, last: bool) -> None:
        self._ending = True
        await (self.haproxy.end_after_last_request(seconds) if last else self.haproxy.drain(seconds))


def _numbers(sockets: list[socket.socket]) -> list[int]:
    return [os.fstat(sock.fileno()).st_ino for sock in sockets]


def _close(sockets: list[socket.socket]) -> None:
    while sockets:
        sockets.pop().close()


_STATUSES = ("hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx")


class HaproxyStatisticsAccumulator:
    """Sums up in `counts` the counts of successive HAProxy processes, each of which counts from 0."""

    def __init__(self, counts: TrafficCounts) -> None:
        self.connections = 0
        self.streams: dict[str, Table] = {}
        self._counts = counts
        self._seen: dict[tuple[str, str, str], int] = {}

    def begin_process(self) -> None:
        """Expect counts that begin at 0 again, because a new HAProxy process has started."""
        self._seen.clear()

    def update_from_statistics(
        self, rows: Iterable[Table], sections: Iterable[HaproxyBackend], backends: Backends
    ) -> None:
        """Update the counts and the backends' states from `rows`, the statistics of HAProxy's process.

        What HAProxy has counted since the last call is added to the counts.
        """
        known = {each.name: each for each in sections}
        in_flight: dict[str, int] = {}
        down: dict[str, set[str]] = {name: set() for name in known}
        answered: dict[str, set[str]] = {name: set() for name in known}
        self.connections = 0
        for row in rows:
            proxy, server = row["pxname"], row["svname"]
            section = known.get(proxy)
            if server == "FRONTEND":
                self.connections += int(row["scur"] or 0)
            if section is not None and section.is_stream:
                self._add_to_stream(section.alias, row)
            elif section is not None and server == "BACKEND":
                self._add_increase_to(self._counts.route(section.alias), row)
            elif proxy == NO_ROUTE and server == "BACKEND":
                self._counts.count_refusal("404", times=self._take_increase(row, "stot"))
            if section is not None:
                key = next((each.key for each in section.servers if each.name == server), None)
                if key is not None:
                    in_flight[key] = in_flight.get(key, 0) + int(row["scur"] or 0)
                    self._add_increase_to(self._counts.backend(key), row)
                    if row["status"].startswith("DOWN"):
                        down[proxy].add(key)
                    if row["check_status"].endswith("OK") or any(int(row[each] or 0) for each in _STATUSES):
                        answered[proxy].add(key)
        backends.set_in_flight(in_flight)
        for name, section in known.items():
            found = down[name], answered[name]
            backends.apply_external_proxy_verdicts(
                HAPROXY.label, section.alias, *found, is_stream=section.is_stream
            )

    def _add_increase_to(self, traffic: Traffic, row: Table) -> None:
        traffic.slots[tally.STARTED] += self._take_increase(row, "stot")
        for kind, name in enumerate(_STATUSES, 1):
            traffic.slots[tally.STATUS + kind] += self._take_increase(row, name)
        traffic.bytes_in += self._take_increase(row, "bin")
        traffic.bytes_out += self._take_increase(row, "bout")

    def _add_to_stream(self, alias: str, row: Table) -> None:
        stream = self.streams.setdefault(
            alias,
            {"accepted": 0, "open": 0, "failed": 0, "refused": 0, "passed": 0, "bytes_in": 0, "bytes_out": 0},
        )
        if row["svname"] == "FRONTEND":
            stream["open"] = int(row["scur"] or 0)
            stream["accepted"] += self._take_increase(row, "stot")
            stream["bytes_in"] += self._take_increase(row, "bin")
            stream["bytes_out"] += self._take_increase(row, "bout")
        elif row["svname"] == "BACKEND":
            stream["failed"] += self._take_increase(row, "econ")

    def _take_increase(self, row: Table, column: str) -> int:
        """The increase of the row's count in this column since the last call."""
        place, value = (row["pxname"], row["svname"], column), int(row.get(column) or 0)
        before = self._seen.get(place, 0)
        self._seen[place] = value
        return value - before if value >= before else value  # a server of this name was added again
