"""Handles the supervisor's messages in a gateway process, with any engine."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import socket
from collections.abc import Callable
from typing import ClassVar, Generic, Protocol, TypeVar

from poolctl.json_form import Table, from_json, to_json
from poolctl.keeper import pool_files, wire
from poolctl.logs.internal_log import InternalLog
from poolctl.platform import memory_file
from poolctl.routing.route_report import RequestedBackendState
from poolctl.runners.process_link import Link
from poolctl.runners.supervised_process import LINK_FD, AdoptionMessages, SupervisedProcess

from .backends.backends import Backends
from .backends.hosts import HostStates, UnknownHost, find_host
from .settings import GatewaySettings, ListenerSettings, ProbeState, ServerFacts

Order = Callable[[wire.Message, list[int]], None]


class ListenerWithSockets(Protocol):
    """A listener with its sockets."""

    @property
    def settings(self) -> ListenerSettings: ...

    @property
    def sockets(self) -> list[socket.socket]: ...


L = TypeVar("L", bound=ListenerWithSockets)


class SupervisedGateway(SupervisedProcess, Generic[L]):
    """Base of gateway processes: calls a method for each message of the supervisor, `_pair` for the message "pair".

    A new supervisor sends the message "resync", then all servers, listeners and other state, then "begin". At "begin"
    the process removes the servers and listeners that were not sent again.
    """

    ORDERS: ClassVar[tuple[str, ...]] = (
        "settings", "pair", "hosts", "server", "forget", "certificate", "certified", "table", "listener", "unlisten",
        "resync", "begin", "withdraw", "host", "probed", "report", "figures", "drain",
    )  # fmt: skip
    settings: GatewaySettings  # the table [gateway] in force
    hosts: HostStates  # made by `create`, like the backends of all routes
    backends: Backends

    def create_serving_state(self) -> None:
        """Create `hosts`, `backends` and all else that serves clients. Called once, when `settings` is first set."""
        raise NotImplementedError

    def configure(self) -> None:
        """Apply `settings`, which are new or have changed."""
        raise NotImplementedError

    async def drain(self, seconds: float, *, last: bool) -> None:
        """Stop accepting; returns when the last connections have ended, at most `seconds` later.

        New connections go to another process. The `last` process of a pool has no successor: its streams end at once.
        """
        raise NotImplementedError

    def __init__(self, fd: int = LINK_FD) -> None:
        super().__init__(fd)
        self._orders: dict[str, Order] = {name: getattr(self, f"_{name}") for name in self.ORDERS}
        self._own_pair: list[socket.socket] = []  # give, for the next supervisor, and take
        self._servers: dict[str, ServerFacts] = {}
        self._listeners: dict[str, L] = {}
        # After "resync": for each server and listener not sent again yet, the order that removes it, and its key.
        self._stale: set[tuple[str, str]] = set()
        self._has_settings = self._begun = False
        self._draining: asyncio.Task[None] | None = None
        self._expiry: asyncio.TimerHandle | None = None  # reactivates hosts whose disable time is over
        self._hosts_report: asyncio.Handle | None = None  # due in this iteration of the loop
        self._restoring = False

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        name = str(message.get("t"))
        order = self._orders.get(name)
        if order is None or not (self._has_settings or name == "settings"):
            for fd in fds:  # an order of another version of poolctl, or for another engine
                os.close(fd)
            return
        order(message, fds)
        self._has_settings = True

    def messages_for_adopter(self) -> AdoptionMessages:
        yield {"t": "pair"}, self._own_pair
        for listener in self._listeners.values():
            yield {"t": "listener", "listener": to_json(listener.settings)}, listener.sockets

    def on_link_lost(self) -> None:
        """React to the supervisor's end: exit if not serving yet, go on if draining, else wait for a new supervisor."""
        if not self._begun:
            self.over.set()
        elif self._draining is None:
            self.listen_for_adoption(self.settings.directory, pool_files.GATEWAY)

    def adopted(self, link: Link) -> None:
        super().adopted(link)
        self._report_hosts()

    def _settings(self, message: wire.Message, fds: list[int]) -> None:
        self.settings = from_json(GatewaySettings, message["settings"])
        self.mark = self.settings.mark
        if not self._has_settings:
            log = InternalLog(os.path.join(self.settings.directory, "gateway.log"), stamped=True)
            logging.basicConfig(handlers=[log], level=logging.WARNING)
            self.create_serving_state()
            self.hosts.subscribe(self._host_changed)
        self.configure()

    def _resync(self, message: wire.Message, fds: list[int]) -> None:
        self._stale = {("forget", name) for name in self._servers}
        self._stale |= {("unlisten", key) for key in self._listeners}
        self.backends.forget_probes()

    def _remove_not_resent(self) -> None:
        for order, name in self._stale:
            self._orders[order]({"server": name, "key": name}, [])
        self._stale.clear()

    def _hosts(self, message: wire.Message, fds: list[int]) -> None:
        self._restoring = True  # hosts reported while restoring are not news
        try:
            self.hosts.restore(message["states"])
        finally:
            self._restoring = False

    def _probed(self, message: wire.Message, fds: list[int]) -> None:
        self.backends.record_probe(from_json(ProbeState, message["state"]))

    def _host(self, message: wire.Message, fds: list[int]) -> None:
        """Disable, enable or drain the named hosts; if one of them is unknown, none is changed."""
        hosts, known = self.hosts, [str(row["host"]) for row in self.backends.snapshot()]
        found, problems = [], []
        for name in message["hosts"]:
            try:
                found.append(find_host(name, known))
            except UnknownHost as unknown:
                problems.append({"message": unknown.message, "hint": unknown.hint})
        for host in found if not problems else ():
            if message["op"] == "disable":
                hosts.disable(host, message.get("for"))
            elif message["op"] == "drain":
                hosts.drain(host)
            else:
                hosts.enable(host)
        if self._hosts_report is not None:
            self._report_hosts()
        self.link.send({"t": "host", "id": message["id"], "hosts": found, "problems": problems})

    def _report_hosts(self) -> None:
        if self._hosts_report is not None:
            self._hosts_report.cancel()
            self._hosts_report = None
        self.link.send({"t": "hosts", "states": self.hosts.to_json()})

    def _host_changed(self, host: str, state: RequestedBackendState, why: str) -> None:
        if not self._restoring:
            event = {"t": "event", "kind": f"host {state}", "data": {"host": host, "cause": why}}
            self.link.send(event)
            # Once for all changes at this time: each report has all hosts.
            if self._hosts_report is None:
                self._hosts_report = asyncio.get_running_loop().call_soon(self._report_hosts)
        self.stop_expiry()
        if self.hosts.next_expiry < math.inf:
            self._expiry = asyncio.get_running_loop().call_at(
                self.hosts.next_expiry, self.hosts.enable_expired
            )

    def stop_expiry(self) -> None:
        """Stop reactivating hosts whose disable time is over."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _send_report(self, number: int, report: Table) -> None:
        fd = memory_file("poolctl-report", json.dumps(report).encode())
        try:
            self.link.send({"t": "report", "id": number}, [fd])
        finally:
            os.close(fd)

    def _drain(self, message: wire.Message, fds: list[int]) -> None:
        async def drain() -> None:
            try:
                await self.drain(float(message["seconds"]), last=bool(message.get("last")))
            finally:
                self.over.set()

        if self._draining is None:
            self._draining = asyncio.ensure_future(drain())
