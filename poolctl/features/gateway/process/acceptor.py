"""Accepts connections, takes connections back from workers, and assigns each to a worker or to the proxy.

A request's head is only peeked at and stays unread in the socket. If the route allows it, the socket's descriptor is
sent to a worker; the proxy serves all other connections. A TLS connection is routed by the host in its ClientHello.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from poolctl.http.messages import RequestHead, canonical_head
from poolctl.keeper import connection_handover
from poolctl.keeper.connection_handover import MOST_HOPS, Routed
from poolctl.keeper.wire import WireError
from poolctl.platform import close_promptly
from poolctl.routing.decision import can_pass_peer_to_worker, passable_match, passable_tls_host_match
from poolctl.routing.route import Route
from poolctl.routing.route_table import Match

from .backends.route_backends import SLEEPING, NoBackend
from .descriptor_limit import is_exhausted
from .edge import GatewayState
from .proxy.client_connection import Peer
from .proxy.own_answers import announce_request_to_parts, spares_server
from .proxy.serving import start_serving, start_serving_tls
from .proxy_header import MOST_BYTES as MOST_HEADER_BYTES
from .proxy_header import NoProxyHeader, ProxyHeader, read_proxy_header
from .settings import ListenerSettings
from .tls import MOST_BYTES, ClientHello, NoClientHello, read_client_hello
from .waiting_connections import ConnectionAwaitingInput

_AT_ONCE = 16
# Pause after running out of descriptors or memory, or reaching the maximum number of connections.
_RETRY_SECONDS = 0.1
_RETRY_AFTER_SECONDS = 1
# Most heads and ClientHellos are smaller.
_PEEK_BYTES = 4096
_LEAST_SECONDS = 0.1
_PEEK = socket.MSG_PEEK | socket.MSG_DONTWAIT
_NO_LINGER = bytes(8)
_TLS_HANDSHAKE = b"\x16"
_USUAL_HOST_HEADER = "host"
_HTTP_1_1 = "http/1.1"


class _ConnectionSource:
    """Takes connections from `sock` whenever it is readable. `close` leaves the socket open."""

    def __init__(self, edge: GatewayState, sock: socket.socket) -> None:
        self._edge = edge
        self._sock = sock
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    def stop_receiving(self) -> None:
        """Stop taking connections; waiting connections are left to other processes."""
        if self._timer is not None:
            self._timer.cancel()
        self._edge.loop.remove_reader(self._sock.fileno())

    def _watch(self) -> None:
        self._edge.loop.add_reader(self._sock.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        raise NotImplementedError

    def _pause(self) -> None:
        self._edge.loop.remove_reader(self._sock.fileno())
        self._timer = self._edge.loop.call_later(_RETRY_SECONDS, self._watch)


class Acceptor(_ConnectionSource):
    """Accepts the connections of a listener."""

    def __init__(self, edge: GatewayState, listener: socket.socket, settings: ListenerSettings) -> None:
        self._settings = settings
        super().__init__(edge, listener)

    def _on_readable(self) -> None:
        for number in range(_AT_ONCE):
            if not self._accept_one(first=number == 0):
                return

    def _accept_one(self, *, first: bool) -> bool:
        """Accept the next connection; returns False if none is waiting, or if there is no room for it.

        `first`: a connection is certainly waiting, so an idle connection may be closed to make room for it.
        """
        edge = self._edge
        full = is_full(edge)
        if full or edge.descriptors.is_low():
            if first and not (edge.evict_client() if full else edge.evict()):
                self._pause()
            # Retried after the evicted connection's descriptor is closed.
            return False
        try:
            sock, address = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            if not (is_exhausted(error) and edge.evict()):
                self._pause()
            return False
        # Served before the next is accepted, so that only one connection is lost if this process is killed.
        client = address[0] if isinstance(address, tuple) else ""
        seconds = edge.settings.head_seconds
        if self._settings.accept_proxy and edge.is_trusted(client):
            _serve_or_wait(ProxyHeaderConnection(edge, sock, client, self._settings), seconds)
        else:
            _serve_or_wait(_new_connection(edge, sock, client, self._settings), seconds)
        return True


class ReturnedConnectionReceiver(_ConnectionSource):
    """The connections that workers give back, and those left in a closed server's socket pair; each is routed again.

    Connections that leave the proxy, or were queued for a server that can no longer take them, are also routed here.
    """

    def __init__(self, edge: GatewayState, take_end: socket.socket) -> None:
        edge.passing.route_again = self._route_again
        super().__init__(edge, take_end)

    def _on_readable(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                taken = connection_handover.receive_connection(self._sock)
            except (BlockingIOError, InterruptedError):
                return
            except connection_handover.NoRoom:
                if not self._edge.evict():
                    self._pause()
                return
            except WireError:
                continue
            except OSError:
                taken = None
            if taken is None:
                self.stop_receiving()
                return
            settings = self._edge.settings
            seconds = settings.keep_alive_seconds if taken.asked else settings.head_seconds
            if taken.until is not None:
                seconds = min(seconds, max(_LEAST_SECONDS, taken.until - time.monotonic()))
            self._route(taken, taken.routed, seconds, is_new=True)

    def _route_again(self, sock: socket.socket, routed: Routed, seconds: float | None) -> None:
        usual = self._edge.settings.head_seconds
        self._route(sock, routed, usual if seconds is None else seconds, is_new=False)

    def _route(self, sock: socket.socket, routed: Routed | None, seconds: float, *, is_new: bool) -> None:
        """Route the connection by its next request, which has to arrive within `seconds`.

        `routed` has the bytes that were already read from the socket. `is_new` is true for a connection from another
        process, and false for a connection from the proxy or a queue of this process.
        """
        received, hops = (b"", 0) if routed is None else (routed.received, routed.hops)
        try:
            # Closing must not block, even if an application has set SO_LINGER (socket(7)).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            peer = sock.getpeername()
            first = received or sock.recv(1, _PEEK)
        except BlockingIOError:
            first = b""
        except OSError:
            close_promptly(sock.detach())
            return
        client = peer[0] if isinstance(peer, tuple) else ""
        if is_new and first != _TLS_HANDSHAKE and not self._edge.workers_keep:
            # A worker may have kept a duplicate, and would read requests for another user's server.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            close_promptly(sock.detach())
        elif is_new and not self._make_room_for_client():
            self._refuse(sock, first)
        elif first == _TLS_HANDSHAKE:
            _serve_or_wait(TlsConnection(self._edge, sock, client, ""), seconds)
        else:
            _serve_or_wait(PlainConnection(self._edge, sock, client, received, hops), seconds)

    def _make_room_for_client(self) -> bool:
        """Whether there is room for another client, after closing an idle connection if necessary."""
        edge = self._edge
        if is_full(edge) and not edge.evict_client():
            return False
        return not edge.descriptors.is_low() or edge.evict()

    def _refuse(self, sock: socket.socket, first: bytes) -> None:
        """Close a connection for which there is no room; send an error first if the client has sent something."""
        if first == _TLS_HANDSHAKE:
            self._edge.passing.refuse_tls(sock)
        elif first:
            self._edge.passing.refuse(sock, 503, _RETRY_AFTER_SECONDS)
        else:
            close_promptly(sock.detach())


class ArrivingConnection(ConnectionAwaitingInput):
    """A connection whose request head, or ClientHello, has not yet arrived completely."""

    __slots__ = ("client", "data", "edge", "reported")

    def __init__(self, edge: GatewayState, sock: socket.socket, client: str) -> None:
        super().__init__(sock)
        self.edge = edge
        self.client = client
        self.reported: Peer | None = None  # the client, if a trusted proxy has reported it
        self.data = b""  # the bytes peeked at so far

    @property
    def most_seconds(self) -> float:
        return self.edge.settings.head_seconds

    def peek_nowait(self, most_bytes: int) -> bytes | None:
        """At most `most_bytes` of the socket's unread bytes, which stay there.

        None if no byte has arrived yet, b"" at end of file or after an error.
        """
        try:
            data = self.sock.recv(_PEEK_BYTES, _PEEK)
            return data if len(data) < _PEEK_BYTES else self.sock.recv(most_bytes, _PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def try_handle_without_proxy(
        self, match: Match, head: RequestHead | None = None, hops: int = 0, received: bytes = b""
    ) -> bool:
        """Pass the connection to a worker or refuse it, and return True; return False if the proxy has to serve it.

        `head` is the request head, None for TLS. `hops` is how often workers have given the connection back, and
        `received` are the bytes that the last of them had read.
        """
        edge, passing, tls = self.edge, self.edge.passing, head is None
        if self.reported is not None:
            return False  # a worker would take the proxy for the client
        if not any(passing.can_pass_to(server, tls=tls) for server in match.servers):
            return False
        route = match.route
        backends = edge.backends.of(route)
        backend = backends.choose(self.client)
        if isinstance(backend, NoBackend):
            self._count(route, head)
            if tls:
                passing.refuse_tls(self.sock, route=route.alias)
            else:
                status, seconds = backend.status, backend.retry_after_seconds
                passing.refuse(self.sock, status, seconds, route=route.alias)
            return True
        server = backend.key
        spared = (
            backend.rank == SLEEPING and head is not None and spares_server(route, head.method, head.path)
        )
        if spared or not passing.can_pass_to(server, tls=tls):
            return False
        self._count(route, head)
        if backend.rank == SLEEPING:
            edge.wake(server)  # the connection wakes it, too, but later
        canary = backend.canary
        if canary is not None and passing.can_pass_to(canary.key, tls=tls) and canary.connections.next():
            server = canary.key
        trusted = edge.is_trusted(self.client)
        generation = edge.table.generation
        sent = passing.pass_queue_or_refuse(
            server, self.sock, route.alias, generation, hops, received, tls=tls, trusted=trusted
        )
        if sent:
            backends.count_handover(backend)
        else:
            backend.counts.count_start()
            backend.counts.count_disconnect()
        return True

    def _count(self, route: Route, head: RequestHead | None) -> None:
        method, path = (b"", b"") if head is None else (head.method, head.path)
        announce_request_to_parts(self.edge, route, method, path)


class PlainConnection(ArrivingConnection):
    """A connection without TLS. `received` are bytes already read by a worker; the socket's unread bytes follow."""

    __slots__ = ("hops", "received", "scanned")

    def __init__(
        self, edge: GatewayState, sock: socket.socket, client: str, received: bytes = b"", hops: int = 0
    ) -> None:
        super().__init__(edge, sock, client)
        self.received = received
        self.hops = hops
        self.scanned = 0  # number of bytes known to contain no complete head

    def needs_more_after_read(self, *, ended: bool) -> bool:
        unread = self.peek_nowait(self.edge.settings.max_head_bytes)
        if unread is None and not self.received:
            return not ended
        data = self.received + unread if unread else self.received
        if (
            RequestHead.is_incomplete_but_valid(data, self.scanned)
            and len(data) < self.edge.settings.max_head_bytes
        ):
            self.scanned = len(data)
            self.silent = self.silent and not data
            # A client that has closed its side has not sent a request.
            return not ended and unread != b""
        self.data = data
        return False

    def serve_or_close(self) -> None:
        edge, data = self.edge, self.data
        if not data:
            self.close()
        elif self.hops >= MOST_HOPS:
            message = f"a connection from {self.client} was given back by workers {self.hops} times"
            edge.throttled_event("misdirected connection closed", message=message, severity="warning")
            edge.passing.refuse(self.sock, 421)
        elif not self._try_handle_plain_without_proxy(data):
            start_serving(edge, self.sock, self.received, self.reported)

    def _try_handle_plain_without_proxy(self, data: bytes) -> bool:
        edge = self.edge
        head = canonical_head(data)
        if head is None:
            if RequestHead.is_incomplete_but_valid(data):
                edge.passing.refuse(self.sock, 431)
                return True
            return False
        match = passable_match(head, edge.table)
        if match is None or edge.settings.header_for_host.lower() != _USUAL_HOST_HEADER:
            return False
        if not can_pass_peer_to_worker(match.route, self.client, trusted=edge.is_trusted(self.client)):
            return False
        return self.try_handle_without_proxy(match, head, self.hops, self.received)

    def on_deadline(self) -> None:
        if self.scanned:
            self.edge.passing.refuse(self.sock, 408)
        else:
            self.close()


class TlsConnection(ArrivingConnection):
    """A TLS connection. `bind` is the address of the connection's listener, or "" if the listener is not known."""

    __slots__ = ("bind", "hello")

    def __init__(self, edge: GatewayState, sock: socket.socket, client: str, bind: str) -> None:
        super().__init__(edge, sock, client)
        self.bind = bind
        self.hello: ClientHello | None = None

    def needs_more_after_read(self, *, ended: bool) -> bool:
        data = self.peek_nowait(MOST_BYTES)
        if data is None:
            return not ended
        self.data = data
        try:
            self.hello = read_client_hello(data) if data else None
            if data and self.hello is None and len(data) < MOST_BYTES:
                self.data = b""
                return not ended
        except NoClientHello:
            self.data = b""
        return False

    def serve_or_close(self) -> None:
        edge, hello = self.edge, self.hello
        if not self.data:
            self.close()
            return
        if hello is not None and (not hello.protocols or _HTTP_1_1 in hello.protocols):
            match = passable_tls_host_match(hello.server_name, edge.table) if hello.server_name else None
            if (
                match is not None
                and can_pass_peer_to_worker(match.route, self.client, trusted=edge.is_trusted(self.client))
                and self.try_handle_without_proxy(match)
            ):
                return
        context = edge.certificates.context(self.bind, hello.server_name if hello is not None else "")
        if context is None:
            edge.passing.refuse_tls(self.sock, unknown_name=True)
        else:
            start_serving_tls(edge, self.sock, context, self.reported)


class ProxyHeaderConnection(ArrivingConnection):
    """A trusted proxy's connection, which begins with a header of the PROXY protocol."""

    __slots__ = ("header", "settings", "until")

    def __init__(
        self, edge: GatewayState, sock: socket.socket, client: str, settings: ListenerSettings
    ) -> None:
        super().__init__(edge, sock, client)
        self.settings = settings
        self.header: ProxyHeader | None = None
        self.until = edge.now() + edge.settings.head_seconds

    def needs_more_after_read(self, *, ended: bool) -> bool:
        data = self.peek_nowait(MOST_HEADER_BYTES)
        if data is None:
            return not ended
        try:
            self.header = read_proxy_header(data) if data else None
        except NoProxyHeader:
            return False
        return bool(data) and self.header is None and not ended

    def serve_or_close(self) -> None:
        edge, header = self.edge, self.header
        if header is None:
            self.close()
            return
        try:
            self.sock.recv(header.size)
        except OSError:
            self.close()
            return
        made = _new_connection(edge, self.sock, header.client or self.client, self.settings)
        if header.client:
            made.reported = header.client, header.port
        _serve_or_wait(made, max(_LEAST_SECONDS, self.until - edge.now()))


def _new_connection(
    edge: GatewayState, sock: socket.socket, client: str, settings: ListenerSettings
) -> ArrivingConnection:
    if settings.tls:
        return TlsConnection(edge, sock, client, settings.bind)
    return PlainConnection(edge, sock, client)


def is_full(edge: GatewayState) -> bool:
    """Whether the maximum number of clients is connected."""
    most, passing, pool = edge.settings.max_connections, edge.passing, edge.pool
    return bool(most) and (
        len(passing.waiting) + passing.queued_connections + len(pool.clients) + pool.arriving >= most
    )


def _serve_or_wait(connection: ArrivingConnection, seconds: float) -> None:
    """Process the connection now if enough bytes have arrived, otherwise wait for them for at most `seconds`."""
    if connection.needs_more_after_read(ended=False):
        connection.edge.passing.waiting.add(connection, seconds)
    else:
        connection.serve_or_close()
