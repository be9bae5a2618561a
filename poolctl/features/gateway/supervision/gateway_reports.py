"""Reports and requests of the gateway's process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from poolctl.core.core import Core
from poolctl.json_form import Table
from poolctl.keeper import fd_store, wire
from poolctl.monitor.event_queue import Events
from poolctl.platform import read_file, sealed_file
from poolctl.runners.process_link import Link

from .gateway_process import GatewayProcess
from .server_facts import connections_of


class GatewayReports:
    """Records the events of the process, keeps the states of its hosts for its successor, and answers its requests."""

    def __init__(self, keeper: Link, core: Core, events: Events) -> None:
        self._keeper = keeper
        self._core = core
        self._events = events
        # Starts the machine behind a URL that a request needs.
        self.on_machine_needed: Callable[[str], None] = lambda url: None
        self.hosts: Table = {}  # the states of its hosts, as it reported them last
        self.on_hosts: Callable[[], None] = lambda: None

    async def adopt(self) -> None:
        """Take over the states of hosts that were reported to the previous supervisor."""
        _, fds = await self._keeper.call({"op": "get", "name": fd_store.GATEWAY_HOSTS})
        for fd in fds:
            self.hosts = json.loads(read_file(fd))
            os.close(fd)

    def follow(self, process: GatewayProcess) -> None:
        """Receive a report of this process."""
        process.on_report = lambda message: self._received(process, message)

    def _received(self, process: GatewayProcess, message: wire.Message) -> None:
        """An event, the states of hosts, or a request for the connections of servers or for a wake."""
        if message["t"] == "hosts":
            self.hosts = message["states"]
            fd = sealed_file("poolctl-hosts", json.dumps(self.hosts).encode())
            try:
                self._keeper.send({"op": "put", "name": fd_store.GATEWAY_HOSTS}, [fd])
            finally:
                os.close(fd)
            self.on_hosts()
        elif message["t"] == "loads":
            process.inform({name: self.connections(name) for name in message["servers"]})
        elif message["t"] == "wake":
            if (entry := self._core.entries.get(message["server"])) is not None:
                self._core.wake(entry)
            else:
                self.on_machine_needed(message["server"])
        else:
            self._events.record("pool", str(message["kind"]), **_about_host(message["data"]))

    @property
    def set_aside(self) -> frozenset[str]:
        """The hosts that are disabled or drained."""
        return frozenset(each["host"] for each in self.hosts.get("hosts", ()))

    def connections(self, server: str) -> int:
        """How many connections the workers of the server have, by their own count."""
        entry = self._core.entries.get(server)
        return 0 if entry is None else connections_of(self._core, entry)


def _about_host(data: Table) -> Table:
    """A sentence about an event of a host: which host, and why."""
    return {"message": data["host"], "cause": data.get("why", ""), **data} if "host" in data else data
