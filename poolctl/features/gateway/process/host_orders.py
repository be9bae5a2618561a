"""Orders of the supervisor about hosts, and the reports of their states."""

from __future__ import annotations

import asyncio

from poolctl.json_form import Table
from poolctl.keeper import wire
from poolctl.routing.host_report import HostState
from poolctl.runners.supervised_process import SupervisedProcess

from .backends import Backends, HostManager, UnknownHost, find_host


class HostOrders:
    """Disables, enables and drains hosts for the supervisor of this process, and reports each change to it."""

    def __init__(self, process: SupervisedProcess, hosts: HostManager, backends: Backends) -> None:
        self._process = process
        self._hosts = hosts
        self._backends = backends
        self._expiry: asyncio.TimerHandle | None = None
        self._restoring = False
        hosts.subscribe(self._changed)

    def restore(self, states: Table) -> None:
        """Continue with the states of the hosts that an earlier process has reported."""
        self._restoring = True  # hosts reported while restoring are not news
        try:
            self._hosts.restore(states)
        finally:
            self._restoring = False

    def follow(self, message: wire.Message) -> None:
        """Disable, enable or drain the named hosts; if one of them is unknown, none is changed."""
        hosts, known = self._hosts, [str(row["host"]) for row in self._backends.snapshot()]
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
        self._process.link.send({"t": "host", "id": message["id"], "hosts": found, "problems": problems})

    def report(self) -> None:
        """Send the states of the hosts."""
        self._process.link.send({"t": "hosts", "states": self._hosts.to_json()})

    def close(self) -> None:
        """Enable the hosts whose time out of service is over."""
        if self._expiry is not None:
            self._expiry.cancel()

    def _changed(self, host: str, state: HostState, why: str) -> None:
        if not self._restoring:
            event = {"t": "event", "kind": f"host {state}", "data": {"host": host, "cause": why}}
            self._process.link.send(event)
            self.report()
        self.close()
        due, loop = self._hosts.due, asyncio.get_running_loop()
        self._expiry = None if due is None else loop.call_at(due, self._hosts.expire)
