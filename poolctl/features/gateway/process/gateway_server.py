"""poolctl's own gateway process: serves clients with the listeners, routes and servers sent by the supervisor.

All its state comes from the supervisor, which can send it again, so another process or supervisor can take over at any
moment. If keeper and supervisor exit, the process serves with the state it has until a new supervisor adopts it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from poolctl.json_form import Table, from_json
from poolctl.keeper import wire
from poolctl.platform import read_file
from poolctl.routing.route import Route, StreamRoute
from poolctl.routing.route_table import RouteTable
from poolctl.runners.supervised_process import LINK_FD

from .acceptor import Acceptor, ReturnedConnectionReceiver
from .edge import GatewayState
from .gateway_orders import SupervisedGateway
from .proxy.serving import drain_clients
from .settings import UDP, ListenerSettings, ServerFacts
from .streams.tcp import TcpStream
from .streams.udp import UdpStream

# With more routes than this, a route's backends are created by its first request.
_MOST_LISTED_ROUTES = 1000
# Minimum interval between requests to the supervisor for the workers' connection counts, or to wake the same server.
_LOADS_SECONDS = _WAKE_SECONDS = 1.0
# Time allowed for incomplete heads when the pool ends; browsers and scanners keep them open for longer.
_LAST_HEADS_SECONDS = 2.0
_TCP_FAMILIES = (socket.AF_INET, socket.AF_INET6)

logger = logging.getLogger("poolctl.gateway")


class OpenListener:
    """The sockets of a listener, with an acceptor for each (HTTP) or with one stream for all (TCP and UDP)."""

    def __init__(
        self,
        edge: GatewayState,
        settings: ListenerSettings,
        route: StreamRoute | None,
        sockets: list[socket.socket],
    ) -> None:
        self.settings = settings
        self.sockets = sockets
        self.stream: TcpStream | UdpStream | None = None
        self._acceptors: list[Acceptor] = []
        self._set_deferral(1 if route is None else 0)
        if route is None:
            self._acceptors = [Acceptor(edge, sock, settings) for sock in sockets]
        elif settings.protocol == UDP:
            self.stream = UdpStream(edge, sockets, route)
        else:
            self.stream = TcpStream(edge, sockets, route)

    def _set_deferral(self, seconds: int) -> None:
        """Have the kernel hold back a connection until its first bytes have arrived, for at most `seconds`.

        If this process is killed, only the connections that it has accepted are lost. A stream needs 0 `seconds`,
        because its server may speak first. The socket of a former HTTP listener still has another value.
        """
        for sock in self.sockets:
            if sock.type == socket.SOCK_STREAM and sock.family in _TCP_FAMILIES:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)

    def stop(self) -> None:
        """Stop accepting; open connections stay."""
        while self._acceptors:
            self._acceptors.pop().stop_receiving()
        if self.stream is not None:
            self.stream.stop_accepting_clients()

    def close(self) -> None:
        """Stop accepting, and close the sockets."""
        self.stop()
        for sock in self.sockets:
            sock.close()

    async def drain_and_close(self, seconds: float) -> None:
        """Stop accepting, wait at most `seconds` for the connections of `stream` to end, and close the sockets."""
        self.stop()
        if self.stream is not None:
            await self.stream.drain(seconds)
        self.close()

    def update_in_place(self, settings: ListenerSettings, route: StreamRoute | None, fds: list[int]) -> bool:
        """Apply `route` and return True. Return False if the listener must be replaced by a new one.

        It must be replaced if `settings` or the sockets `fds` differ from its own, or if it changes from or to HTTP.
        """
        same = [os.fstat(fd).st_ino for fd in fds] == [
            os.fstat(sock.fileno()).st_ino for sock in self.sockets
        ]
        if settings != self.settings or not same or (route is None) != (self.stream is None):
            return False
        if self.stream is not None and route is not None:
            self.stream.apply(route)
        return True


class GatewayServer(SupervisedGateway[OpenListener]):
    """The process of poolctl's own gateway. Its base class SupervisedGateway documents the overridden methods."""

    ORDERS = (*SupervisedGateway.ORDERS, "machine", "loads", "reopen")
    edge: GatewayState  # the state shared by all connections; made by `create`

    def __init__(self, fd: int = LINK_FD) -> None:
        super().__init__(fd)
        self._returned_connections: ReturnedConnectionReceiver | None = None
        self._pairs: dict[str, int] = {}  # the number of each server's pair
        self._applying: asyncio.Handle | None = None
        self._routes_changed = False
        self._asking: asyncio.TimerHandle | None = None  # sends the next request for connection counts
        self._waking: set[str] = set()

    def confirm_performed(self, message: wire.Message) -> None:
        """Put the orders received so far into effect, then confirm this to the supervisor."""
        self._apply_pending_changes()
        super().confirm_performed(message)

    async def end_service(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        self._close_return_channel()
        for handle in (self._applying, self._asking):
            if handle is not None:
                handle.cancel()
        if self._has_settings:
            self.stop_expiry()
            self.edge.close()

    def _close_return_channel(self) -> None:
        if self._returned_connections is not None:
            self._returned_connections.stop_receiving()
            self._returned_connections = None
        while self._own_pair:
            self._own_pair.pop().close()

    # The state in force.

    def create_serving_state(self) -> None:
        edge = self.edge = GatewayState(self.settings, self._event)
        self.hosts, self.backends = edge.hosts, edge.backends
        edge.backends.on_passed = self._schedule_load_request
        edge.wake = self._wake

    def configure(self) -> None:
        self.edge.configure(self.settings)

    def _pair(self, message: wire.Message, fds: list[int]) -> None:
        self._close_return_channel()
        self._own_pair = [socket.socket(fileno=fd) for fd in fds]
        self._returned_connections = ReturnedConnectionReceiver(self.edge, self._own_pair[-1])

    def _server(self, message: wire.Message, fds: list[int]) -> None:
        facts = from_json(ServerFacts, message["facts"])
        name, number = facts.name, int(message["pair"])
        self._servers[name] = facts
        self._stale.discard(("forget", name))
        if not fds:
            if self._pairs.pop(name, None) is not None:
                self.edge.passing.remove_server_and_reroute(name, lambda: None)
        elif self._pairs.get(name) == number:
            os.close(fds[0])
        else:
            self._pairs[name] = number
            self.edge.passing.set_pair(name, socket.socket(fileno=fds[0]), tls=facts.tls)
        self._apply_soon()

    def _forget(self, message: wire.Message, fds: list[int]) -> None:
        name = message["server"]
        self._servers.pop(name, None)
        if self._pairs.pop(name, None) is not None:
            self.edge.passing.remove_server_and_reroute(name, lambda: None)
        self._apply_soon()

    def _withdraw(self, message: wire.Message, fds: list[int]) -> None:
        """Stop sending connections to a socket pair that will be closed, and confirm it; a newer pair stays in use."""
        name, reply = message["server"], {"t": "withdrawn", "id": message["id"]}
        if self._pairs.get(name) != message["pair"]:
            self.link.send(reply)
            return
        del self._pairs[name]
        self.edge.passing.remove_server_and_reroute(name, lambda: self.link.send(reply))

    def _certificate(self, message: wire.Message, fds: list[int]) -> None:
        try:
            contents = [read_file(fd) for fd in fds]
            self.edge.certificates.put(message["bind"], message["names"], message["tls"], contents)
        except OSError as error:
            logger.error("the certificate for %s cannot be used: %s", message["bind"], error)
            self._event("gateway certificate failed", {"message": f"{message['bind']}: {error}"})
        finally:
            for fd in fds:
                os.close(fd)

    def _certified(self, message: wire.Message, fds: list[int]) -> None:
        self.edge.certificates.retain_if_all_loaded(message["bind"], message["names"])

    def _table(self, message: wire.Message, fds: list[int]) -> None:
        (fd,) = fds
        try:
            table = RouteTable(fd)
        finally:
            os.close(fd)
        before, self.edge.table = self.edge.table, table
        self.edge.workers_keep = bool(message.get("keeps", True))
        self.edge.passing.reroute_for_new_table(table)
        self._apply_soon(routes=True)
        before.close()

    def _apply_soon(self, *, routes: bool = False) -> None:
        """Schedule one update after all messages received so far: of the backends and, with `routes`, of the routes."""
        self._routes_changed = self._routes_changed or routes
        if self._applying is None:
            self._applying = self.edge.loop.call_soon(self._apply_pending_changes)

    def _apply_pending_changes(self) -> None:
        if self._applying is None:
            return
        self._applying.cancel()
        self._applying = None
        listed: list[Route | StreamRoute] | None = None
        if self._routes_changed:
            listed = [each.route for each in self._streams]
            if len(self.edge.table) <= _MOST_LISTED_ROUTES:
                listed += self.edge.table
            else:
                known = map(self.edge.table.by_alias, self.edge.backends.aliases)
                listed += [match.route for match in known if match is not None]
        self._routes_changed = False
        self.edge.backends.apply(listed, self._servers)

    # Listeners.

    def _listener(self, message: wire.Message, fds: list[int]) -> None:
        settings = from_json(ListenerSettings, message["listener"])
        route = None if message["route"] is None else from_json(StreamRoute, message["route"])
        self._stale.discard(("unlisten", settings.key))
        before = self._listeners.get(settings.key)
        if before is not None and before.update_in_place(settings, route, fds):
            for fd in fds:
                os.close(fd)
        else:
            self._start_draining_listener(settings.key)
            sockets = [socket.socket(fileno=fd) for fd in fds]
            self._listeners[settings.key] = OpenListener(self.edge, settings, route, sockets)
        if route is not None:
            self._apply_soon(routes=True)

    def _unlisten(self, message: wire.Message, fds: list[int]) -> None:
        self._start_draining_listener(message["key"])

    def _start_draining_listener(self, key: str) -> None:
        listener = self._listeners.pop(key, None)
        if listener is not None:
            self.edge.pool.start_task(listener.drain_and_close(self.edge.settings.drain_seconds))

    def _resync(self, message: wire.Message, fds: list[int]) -> None:
        super()._resync(message, fds)
        self.edge.machines.clear()

    def _begin(self, message: wire.Message, fds: list[int]) -> None:
        self._remove_not_resent()
        self._apply_pending_changes()
        self._begun = True
        self.link.send({"t": "up"})

    # Hosts.

    def _host(self, message: wire.Message, fds: list[int]) -> None:
        self._apply_pending_changes()
        super()._host(message, fds)

    def _schedule_load_request(self) -> None:
        """Schedule a query to the supervisor for the workers' connection counts, which are not known here."""
        if self._asking is None:
            self._asking = self.edge.loop.call_later(_LOADS_SECONDS, self._ask_for_loads)

    def _ask_for_loads(self) -> None:
        self._asking = None
        self.link.send({"t": "loads", "servers": self.edge.backends.servers_balanced_by_load})

    def _machine(self, message: wire.Message, fds: list[int]) -> None:
        self.edge.update_machine(message["state"])

    def _loads(self, message: wire.Message, fds: list[int]) -> None:
        self.edge.backends.set_worker_connections(message["connections"])

    def _wake(self, server: str) -> None:
        if server not in self._waking:
            self._waking.add(server)
            self.edge.loop.call_later(_WAKE_SECONDS, self._waking.discard, server)
            self.link.send({"t": "wake", "server": server})

    # Reports, and the end.

    def _reopen(self, message: wire.Message, fds: list[int]) -> None:
        reply = {"t": "reopened", "id": message["id"]}
        if self.edge.access_log is None:
            self.link.send(reply)
        else:
            self.edge.access_log.reopen().add_done_callback(lambda done: self.link.send(reply))

    def _event(self, kind: str, data: Table) -> None:
        self.link.send({"t": "event", "kind": kind, "data": data})

    def _report(self, message: wire.Message, fds: list[int]) -> None:
        """Answer the supervisor's message "report" with the counts and the state of this process."""
        self._apply_pending_changes()
        edge = self.edge
        report = {
            **edge.snapshot(),
            "streams": {each.route.alias: each.snapshot() for each in self._streams},
            "queued": {name: count for name in self._pairs if (count := edge.passing.queue_length(name))},
        }
        self._send_report(message["id"], report)

    def _figures(self, message: wire.Message, fds: list[int]) -> None:
        """Send the supervisor the totals of the counts. The message does not grow with the number of routes."""
        edge, streams = self.edge, [each.snapshot() for each in self._streams]
        open_streams = sum(each["open"] for each in streams)
        figures: Table = {
            "slots": edge.counts.total(),
            "refused": edge.counts.route_and_other_refusals,
            "connections": len(edge.pool.clients) + len(edge.passing.waiting) + open_streams,
            "streamed": sum(each["accepted" if "accepted" in each else "opened"] for each in streams),
            "stream_errors": sum(each["failed"] + each.get("refused", 0) for each in streams),
        }
        self.link.send({"t": "figures", "id": message["id"], **figures})

    @property
    def _streams(self) -> list[TcpStream | UdpStream]:
        return [each.stream for each in self._listeners.values() if each.stream is not None]

    async def drain(self, seconds: float, *, last: bool) -> None:
        """Stop accepting, and wait at most `seconds` for connections and streams to end; if `last`, end streams now."""
        edge, listeners = self.edge, list(self._listeners.values())
        for listener in listeners:
            listener.stop()
        self._close_return_channel()
        edge.drain_connections()
        # First, because heads that become complete are still proxied or passed.
        await edge.passing.waiting.drain(min(seconds, _LAST_HEADS_SECONDS) if last else seconds)
        await asyncio.gather(
            drain_clients(edge, seconds),
            *(each.drain_and_close(0.0 if last else seconds) for each in listeners),
        )
