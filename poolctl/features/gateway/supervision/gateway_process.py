"""The gateway's process as the supervisor sees it; remembers the sent state, so that only changes are sent again."""

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
from poolctl.platform import process_parent, read_file
from poolctl.routing.route import StreamRoute
from poolctl.runners.process_link import HasDescriptor, LinkLost, identity, withheld_variables
from poolctl.supervisor.sidecar import UP_SECONDS, SidecarProcess

from ..process.settings import GatewaySettings, ListenerSettings, MachineState, ProbeState, ServerFacts

# A gateway that hangs must not hold up the stop of a server.
_WITHDRAW_SECONDS = 1.0
_REPORT_SECONDS = 5.0
# For closing the rest, WebSockets with a close frame.
_CLOSES_SECONDS = 5.0
_FIGURES_SECONDS = 1.0
# A fork takes milliseconds: a zygote that is silent for longer is stopped, or hangs.
_FORKS_SECONDS = 2.0


class GatewayProcess(SidecarProcess):
    """Sends the process its state, piece by piece; a piece that it has already is not sent again."""

    part, label, output = "features.gateway.process", "the gateway", "gateway.log"

    def __init__(self, sock: socket.socket, known: Table, mark: str) -> None:
        self._sent: dict[str, object] = {}
        self.on_report: Callable[[wire.Message], None] = lambda message: None  # events and requests
        super().__init__(sock, known, mark)

    def resync(self) -> None:
        """Begin to send everything again; the process forgets state that is not sent again before `begin`."""
        self._sent.clear()
        self.link.send({"t": "resync"})

    def begin(self) -> None:
        """Tell the process to serve, because everything has been sent."""
        self.link.send({"t": "begin"})

    def _send(
        self, name: str, mark: object, message: wire.Message, fds: Sequence[int | HasDescriptor] = ()
    ) -> None:
        if self._sent.get(name) != mark:
            self._sent[name] = mark
            self.link.send(message, fds)

    def configure(self, settings: GatewaySettings) -> None:
        """Put these settings in force."""
        self._send("settings", settings, {"t": "settings", "settings": to_json(settings)})

    def take_back(self, give: socket.socket, take: socket.socket) -> None:
        """Take from this pair the connections that workers give back; it keeps both ends for the next supervisor."""
        self._send("pair", pair_number(give), {"t": "pair"}, [give, take])

    def listen(
        self,
        listener: ListenerSettings,
        route: StreamRoute | None,
        mark: tuple[int, ...],
        sockets: Sequence[socket.socket],
    ) -> None:
        """Accept connections, or datagrams, of this listener."""
        message = {
            "t": "listener",
            "listener": to_json(listener),
            "route": None if route is None else route.to_json(),
        }
        self._send(f"listener {listener.key}", (listener, route, mark), message, sockets)

    def close_listener(self, key: str) -> None:
        """Stop accepting on this listener."""
        if self._sent.pop(f"listener {key}", None) is not None:
            self.link.send({"t": "unlisten", "key": key})

    def _keys(self, kind: str) -> set[str]:
        return {name.removeprefix(f"{kind} ") for name in self._sent if name.startswith(f"{kind} ")}

    @property
    def listeners(self) -> set[str]:
        """The keys of the listeners that it was sent."""
        return self._keys("listener")

    @property
    def servers(self) -> set[str]:
        """The names of the servers that it was sent."""
        return self._keys("server")

    def certify(self, bind: str, names: Sequence[str], tls: Table, mark: object, fds: Sequence[int]) -> None:
        """Use this certificate on the listener for these host names; the first certificate also for all other hosts."""
        message = {"t": "certificate", "bind": bind, "names": list(names), "tls": tls}
        self._send(f"certificate {bind} {' '.join(names)}", mark, message, fds)

    def certify_only(self, names: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Use no other certificates than these, by listeners: one that was renewed may have had other names."""
        for bind, of_listener in names.items():
            for names_before in self._keys(f"certificate {bind}") - {*map(" ".join, of_listener)}:
                del self._sent[f"certificate {bind} {names_before}"]
            message = {"t": "certified", "bind": bind, "names": [*map(list, of_listener)]}
            self._send(f"certified {bind}", message["names"], message)

    def publish(self, generation: int, table: HasDescriptor, *, keeps: bool = True) -> None:
        """Decide by this route table. `keeps`: workers may keep connections without TLS; otherwise these are ended."""
        message = {"t": "table", "generation": generation, "keeps": keeps}
        self._send("table", generation, message, [table])

    def serve(self, facts: ServerFacts, give: socket.socket | None) -> None:
        """Serve this server's routes as these facts say, passing connections through its pair if it has one."""
        pair = 0 if give is None else pair_number(give)
        message = {"t": "server", "facts": to_json(facts), "pair": pair}
        self._send(f"server {facts.name}", (facts, pair), message, [] if give is None else [give])

    def forget(self, server: str) -> None:
        """Withdraw the server, which no longer has a route."""
        if self._sent.pop(f"server {server}", None) is not None:
            self.link.send({"t": "forget", "server": server})

    async def withdraw(self, server: str, give: socket.socket) -> None:
        """Return once the process confirms that it no longer uses this pair, does not answer in time, or has ended."""
        message = {"t": "withdraw", "server": server, "pair": pair_number(give)}
        self._sent.pop(f"server {server}", None)
        with contextlib.suppress(LinkLost, TimeoutError):
            async with asyncio.timeout(_WITHDRAW_SECONDS):
                await self.link.call(message)

    async def followed(self) -> None:
        """Return once clients are served by the state sent before, or this takes too long, or the process is gone."""
        with contextlib.suppress(LinkLost, TimeoutError):
            async with asyncio.timeout(_WITHDRAW_SECONDS):
                await self.performed()

    async def report(self) -> Table:
        """The process's counts of routes, hosts and connections. Raises LinkLost or TimeoutError."""
        async with asyncio.timeout(_REPORT_SECONDS):
            _, (fd,) = await self.link.call({"t": "report"})
        try:
            found: Table = json.loads(read_file(fd))
            return found
        finally:
            os.close(fd)

    async def figures(self) -> Table:
        """The sums of its counts, and its connections. Raises LinkLost or TimeoutError."""
        async with asyncio.timeout(_FIGURES_SECONDS):
            reply, _ = await self.link.call({"t": "figures"})
        return reply

    async def reopen_log(self) -> None:
        """Return when nothing is written to an access log that was moved away. Raises LinkLost or TimeoutError."""
        async with asyncio.timeout(_REPORT_SECONDS):
            await self.link.call({"t": "reopen"})

    async def order_hosts(self, order: Table) -> Table:
        """Have the process disable, enable or drain hosts; returns its answer. Raises LinkLost or TimeoutError."""
        async with asyncio.timeout(_REPORT_SECONDS):
            reply, _ = await self.link.call({"t": "host", **order})
        return reply

    def restore_hosts(self, states: Table) -> None:
        """Put these states of hosts in force, which it, or its predecessor, has reported."""
        self._send("hosts", None if not states else json.dumps(states), {"t": "hosts", "states": states})

    def report_machines(self, states: Mapping[str, MachineState]) -> None:
        """Use these states of the machines behind URLs, and forget all others."""
        self._report_states("machine", states, MachineState)

    def report_probes(self, states: Mapping[str, ProbeState]) -> None:
        """Use these results of probes of URLs, and of no others."""
        self._report_states("probed", states, ProbeState)

    def _report_states(
        self, order: str, states: Mapping[str, Any], kind: type[MachineState] | type[ProbeState]
    ) -> None:
        for host, state in states.items():
            self._send(f"{order} {host}", state, {"t": order, "state": to_json(state)})
        for host in self._keys(order) - states.keys():
            del self._sent[f"{order} {host}"]
            self.link.send({"t": order, "state": to_json(kind(host=host))})

    def inform(self, connections: Mapping[str, int]) -> None:
        """Balance by these numbers of connections that the workers of servers have."""
        self.link.send({"t": "loads", "connections": dict(connections)})

    def drain(self, seconds: float) -> None:
        """Stop accepting, finish the current requests, and end."""
        self.leave({"t": "drain", "seconds": seconds}, seconds + _CLOSES_SECONDS)

    async def finish(self, seconds: float) -> None:
        """Stop accepting; return when the last requests have ended, or were ended after `seconds`.

        Streams end at once: no other process takes their clients over.
        """
        self.link.send({"t": "drain", "seconds": seconds, "last": True})
        try:
            await asyncio.wait([self.exited], timeout=seconds + _CLOSES_SECONDS)
        finally:
            self.end()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """See Receiver."""
        super().received(message, fds)
        if message.get("t") in ("event", "hosts", "loads", "wake"):
            self.on_report(message)


class GatewayZygote(SidecarProcess):
    """The process that forks gateways: it waits, with everything imported, for the end of the serving gateway.

    It is obsolete if its mark would differ now, because it also has the environment of its start.
    """

    part, label, output = "features.gateway.process", "the gateway's zygote", "gateway.log"
    is_up = False  # it can fork

    @staticmethod
    def mark_for(mark: str) -> str:
        """The mark of a zygote for gateways with this mark, and without the variables that are withheld now."""
        return " ".join([mark, *withheld_variables()])

    @property
    def is_of_keeper(self) -> bool:
        """Whether it is a child of the keeper; then its forks become children of the keeper, too."""
        return process_parent(int(self.known["pid"])) == (os.getppid(), self.known["start"])

    async def fork(self, mark: str) -> GatewayProcess:
        """A new process, which waits for its first message. Raises LinkLost."""
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
        """See Receiver."""
        super().received(message, fds)
        self.is_up = self.is_up or message.get("t") == "up"


def pair_number(give: socket.socket) -> int:
    """Distinguishes a pair from others."""
    return os.fstat(give.fileno()).st_ino
