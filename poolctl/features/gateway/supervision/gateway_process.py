"""The supervisor's side of the gateway's process. It remembers the state that was sent, and sends only changes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from poolctl.json_form import Table, to_json
from poolctl.keeper import wire
from poolctl.platform import parent_and_start, read_file
from poolctl.routing.route import StreamRoute
from poolctl.runners.process_link import HasDescriptor, LinkLost, identity
from poolctl.runners.withheld_variables import withheld_variables

from ..process.settings import GatewaySettings, ListenerSettings, MachineState, ProbeState, ServerFacts
from .sidecar import UP_SECONDS, SidecarProcess

# A hung gateway must not delay the stop of a server for longer.
_WITHDRAW_SECONDS = 1.0
# Likewise, while clients of a replaced HAProxy may still send requests to the server.
_UNUSED_SECONDS = 3.0
_REPORT_SECONDS = 5.0
# Additional time to close the remaining connections, WebSockets with a close frame.
_CLOSES_SECONDS = 5.0
_FIGURES_SECONDS = 1.0
# A fork takes milliseconds: a zygote that does not answer within this time is stopped, or hangs.
_FORKS_SECONDS = 2.0


class GatewayProcess(SidecarProcess):
    """The supervisor's connection to the gateway's process. State that the process already has is not sent again."""

    part, label, output = "features.gateway.process", "the gateway", "gateway.log"

    def __init__(self, sock: socket.socket, known: Table, mark: str) -> None:
        self._sent: dict[str, object] = {}
        self.on_report: Callable[[wire.Message], None] = lambda message: None  # receives events and requests
        super().__init__(sock, known, mark)

    def begin_resync(self) -> None:
        """Have all state sent again. `begin_serving` then removes servers and listeners that were not sent again."""
        self._sent.clear()
        self.link.send({"t": "resync"})

    def begin_serving(self) -> None:
        """Tell the process to serve: its whole state has been sent."""
        self.link.send({"t": "begin"})

    def _send_if_changed(
        self, name: str, mark: object, message: wire.Message, fds: Sequence[int | HasDescriptor] = ()
    ) -> None:
        if self._sent.get(name) != mark:
            self._sent[name] = mark
            self.link.send(message, fds)

    def configure(self, settings: GatewaySettings) -> None:
        """Have the process apply these settings."""
        self._send_if_changed("settings", settings, {"t": "settings", "settings": to_json(settings)})

    def set_return_socket_pair(self, give: socket.socket, take: socket.socket) -> None:
        """Have the process receive the connections that workers give back.

        Workers send to `give`; the process receives from `take`. A supervisor that adopts the process gets both ends.
        """
        self._send_if_changed("pair", pair_number(give), {"t": "pair"}, [give, take])

    def listen(
        self,
        listener: ListenerSettings,
        route: StreamRoute | None,
        mark: tuple[int, ...],
        sockets: Sequence[socket.socket],
    ) -> None:
        """Have the process accept connections or datagrams on these sockets of the listener.

        `route` is the route of a stream, None for HTTP. `mark` identifies the sockets.
        """
        message = {
            "t": "listener",
            "listener": to_json(listener),
            "route": None if route is None else route.to_json(),
        }
        self._send_if_changed(f"listener {listener.key}", (listener, route, mark), message, sockets)

    def close_listener(self, key: str) -> None:
        """Have the process stop accepting on this listener."""
        if self._sent.pop(f"listener {key}", None) is not None:
            self.link.send({"t": "unlisten", "key": key})

    def _keys(self, kind: str) -> set[str]:
        return {name.removeprefix(f"{kind} ") for name in self._sent if name.startswith(f"{kind} ")}

    @property
    def listeners(self) -> set[str]:
        """The keys of the listeners that were sent to the process."""
        return self._keys("listener")

    @property
    def servers(self) -> set[str]:
        """The names of the servers that were sent to the process."""
        return self._keys("server")

    def use_certificate(
        self, bind: str, names: Sequence[str], tls: Table, mark: object, fds: Sequence[int]
    ) -> None:
        """Have the process use this certificate for these host names on the listener `bind`.

        The first certificate of a listener is also used for all other hosts. `mark` identifies the certificate's
        contents, and `fds` are the descriptors of its files.
        """
        message = {"t": "certificate", "bind": bind, "names": list(names), "tls": tls}
        self._send_if_changed(f"certificate {bind} {' '.join(names)}", mark, message, fds)

    def keep_certificates(self, names: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Have the process drop, for each listener, all certificates except those with these host names."""
        for bind, of_listener in names.items():
            for names_before in self._keys(f"certificate {bind}") - {*map(" ".join, of_listener)}:
                del self._sent[f"certificate {bind} {names_before}"]
            message = {"t": "certified", "bind": bind, "names": [*map(list, of_listener)]}
            self._send_if_changed(f"certified {bind}", message["names"], message)

    def publish(self, generation: int, table: HasDescriptor, *, workers_may_keep: bool = True) -> None:
        """Have the process route requests by this table.

        With `workers_may_keep`, workers may hold connections without TLS. Without `workers_may_keep`, the process
        closes every connection without TLS that a worker gives back.
        """
        message = {"t": "table", "generation": generation, "keeps": workers_may_keep}
        self._send_if_changed("table", generation, message, [table])

    def report_server(self, facts: ServerFacts, give: socket.socket | None) -> None:
        """Send a server's state to the process. `give` is the socket for passing connections to the server, if any."""
        pair = 0 if give is None else pair_number(give)
        message = {"t": "server", "facts": to_json(facts), "pair": pair}
        self._send_if_changed(f"server {facts.name}", (facts, pair), message, [] if give is None else [give])

    def forget_server(self, server: str) -> None:
        """Have the process forget a server that no longer has a route."""
        if self._sent.pop(f"server {server}", None) is not None:
            self.link.send({"t": "forget", "server": server})

    async def withdraw_passing_socket(self, server: str, give: socket.socket) -> None:
        """Have the process stop sending to the socket `give`; returns when it confirms or exits, or at a timeout."""
        message = {"t": "withdraw", "server": server, "pair": pair_number(give)}
        self._sent.pop(f"server {server}", None)
        with contextlib.suppress(LinkLost, TimeoutError):
            async with asyncio.timeout(_WITHDRAW_SECONDS):
                await self.link.call(message)

    async def wait_briefly_until_unused(self, server: str) -> None:
        """Wait until the process has applied what was sent so far, and nothing sends the server further requests.

        Returns without that when the process has exited, or a timeout has passed.
        """
        with contextlib.suppress(LinkLost, TimeoutError):
            async with asyncio.timeout(_UNUSED_SECONDS):
                await self.link.call({"t": "performed", "unused": server})

    async def fetch_report(self) -> Table:
        """The current counts of routes, hosts and connections, from the process. Raises LinkLost or TimeoutError."""
        async with asyncio.timeout(_REPORT_SECONDS):
            _, (fd,) = await self.link.call({"t": "report"})
        try:
            found: Table = json.loads(read_file(fd))
            return found
        finally:
            os.close(fd)

    async def fetch_request_totals(self) -> Table:
        """Return the gateway's total counts of requests, and its open connections. Raises LinkLost or TimeoutError."""
        async with asyncio.timeout(_FIGURES_SECONDS):
            reply, _ = await self.link.call({"t": "figures"})
        return reply

    async def reopen_log(self) -> None:
        """Have the process reopen its access log; returns when it has. Raises LinkLost or TimeoutError."""
        async with asyncio.timeout(_REPORT_SECONDS):
            await self.link.call({"t": "reopen"})

    async def change_host_states(self, order: Table) -> Table:
        """Have the process disable, enable or drain hosts; returns its answer. Raises LinkLost or TimeoutError."""
        async with asyncio.timeout(_REPORT_SECONDS):
            reply, _ = await self.link.call({"t": "host", **order})
        return reply

    def restore_hosts(self, states: Table) -> None:
        """Have the process set hosts to these states, which were last reported by it or by its predecessor."""
        self._send_if_changed(
            "hosts", None if not states else json.dumps(states), {"t": "hosts", "states": states}
        )

    def report_machines(self, states: Mapping[str, MachineState]) -> None:
        """Send the states of machines, such as VMs, by the target URL of each; states sent before are replaced."""
        self._report_states("machine", states, MachineState)

    def report_probes(self, states: Mapping[str, ProbeState]) -> None:
        """Send the results of the probes of URLs; results sent before are replaced."""
        self._report_states("probed", states, ProbeState)

    def _report_states(
        self, order: str, states: Mapping[str, Any], kind: type[MachineState] | type[ProbeState]
    ) -> None:
        for host, state in states.items():
            self._send_if_changed(f"{order} {host}", state, {"t": order, "state": to_json(state)})
        for host in self._keys(order) - states.keys():
            del self._sent[f"{order} {host}"]
            self.link.send({"t": order, "state": to_json(kind(host=host))})

    def report_connections(self, connections: Mapping[str, int]) -> None:
        """Send the number of connections of each server's workers, which balancing takes into account."""
        self.link.send({"t": "loads", "connections": dict(connections)})

    def drain(self, seconds: float) -> None:
        """Tell the process to stop accepting, finish the current requests within `seconds`, and exit."""
        self.end_with({"t": "drain", "seconds": seconds}, seconds + _CLOSES_SECONDS)

    async def finish(self, seconds: float) -> None:
        """Tell the process to stop accepting; returns when the last requests have ended, at most `seconds` later.

        Streams are closed at once, because no other process takes over their clients.
        """
        self.link.send({"t": "drain", "seconds": seconds, "last": True})
        try:
            await asyncio.wait([self.exited], timeout=seconds + _CLOSES_SECONDS)
        finally:
            self.end()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """Handle a message of the process; pass reports and requests on to `on_report`."""
        super().received(message, fds)
        if message.get("t") in ("event", "hosts", "loads", "wake"):
            self.on_report(message)


class GatewayZygote(SidecarProcess):
    """A process with all modules imported, which forks a new gateway when the current one exits.

    Forks inherit the zygote's modules and environment, which the string `mark` identifies. The zygote is replaced if
    `mark_for` returns another mark for the next gateway.
    """

    part, label, output = "features.gateway.process", "the gateway's zygote", "gateway.log"
    is_up = False  # whether it is ready to fork

    @staticmethod
    def mark_for(mark: str) -> str:
        """Return `mark`, which the zygote's gateways have, followed by the names of withheld environment variables."""
        return " ".join([mark, *withheld_variables()])

    @property
    def is_of_keeper(self) -> bool:
        """Whether the keeper process is the parent of the zygote, and so also of the gateways that it forks."""
        return parent_and_start(int(self.known["pid"])) == (os.getppid(), self.known["start"])

    async def fork(self, mark: str) -> GatewayProcess:
        """Fork a gateway, which waits for its first message. Raises LinkLost."""
        seconds = _FORKS_SECONDS if self.is_up else UP_SECONDS
        ours, theirs = wire.pair()
        with theirs:
            try:
                reply, _ = await self.link.call({"t": "fork"}, [theirs.fileno()], patience_seconds=seconds)
            except BaseException:
                ours.close()
                raise
        return GatewayProcess(ours, identity(int(reply["pid"])), mark)

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """Handle a message of the zygote. The message "up" says that the zygote is ready to fork."""
        super().received(message, fds)
        self.is_up = self.is_up or message.get("t") == "up"


def pair_number(give: socket.socket) -> int:
    """A number that identifies a socket pair: the inode of its sending end."""
    return os.fstat(give.fileno()).st_ino
