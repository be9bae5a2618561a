"""Passes connections to workers: sends the client's socket over a socket pair that the server's workers read.

The gateway has the sending ("give") end of each routed server's pair. Connections for a server that is slow to take
them wait in a queue of its own, bounded in number and time. A descriptor is closed here as soon as it is sent.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from poolctl.keeper import connection_handover, wire
from poolctl.keeper.connection_handover import Connection, Routed
from poolctl.platform import close_promptly
from poolctl.routing.route import passable
from poolctl.routing.route_table import RouteTable

from .counts import TLS, TrafficCounts
from .descriptor_limit import is_exhausted
from .proxy.response_head import whole_response
from .waiting_connections import WaitingConnections

# The pair itself holds some 270 more.
MOST_QUEUED = 1024
QUEUE_SECONDS = 5.0
_SENT_AT_ONCE = 32
# The pair has room, and the kernel takes no message: too many descriptors are in flight (unix(7), ETOOMANYREFS).
_RETRY_SECONDS = 0.005
_RETRY_AFTER_SECONDS = 1
# RFC 8446 §6.2: fatal alerts in the form used before a handshake, which every version understands.
_INTERNAL_ERROR = bytes((21, 3, 3, 0, 2, 2, 80))
_UNRECOGNIZED_NAME = bytes((21, 3, 3, 0, 2, 2, 112))


class _Queued(NamedTuple):
    sock: socket.socket
    routed: Routed
    until: float
    tls: bool


class _ServerQueue:
    """The sending end of a server's socket pair, and the connections that wait for room in it, oldest first."""

    def __init__(self) -> None:
        self.end: socket.socket | None = None  # None until the next pair arrives
        self.tls = False
        self.queue: deque[_Queued] = deque()
        self.full = False  # whether it was reported that the queue is full
        self.retry: asyncio.TimerHandle | None = None
        self.timer: asyncio.TimerHandle | None = None


class ConnectionSender:
    """The sender of connections to servers over their socket pairs. Must be created on the running loop.

    `event(kind, **data)` is called when a server's queue is full. `counts` counts the connections that are refused.
    """

    def __init__(
        self,
        event: Callable[..., None],
        counts: TrafficCounts | None = None,
        *,
        queue_seconds: float = QUEUE_SECONDS,
        most_queued: int = MOST_QUEUED,
    ) -> None:
        self._event = event
        self._counts = counts or TrafficCounts()
        self._loop = asyncio.get_running_loop()
        self._most_queued = most_queued
        self._queue_seconds = queue_seconds
        self._servers: dict[str, _ServerQueue] = {}
        self.queued_connections = 0  # of all servers
        self.waiting = WaitingConnections()
        # Routes a connection again that was queued for a withdrawn server, or that leaves the proxy. Its next request
        # has to arrive within the given seconds (None: the usual time for a head).
        self.route_again: Callable[[socket.socket, Routed, float | None], None] | None = None

    def can_pass_to(self, server: str, *, tls: bool = False) -> bool:
        """Whether connections with TLS (`tls`) or without it can be passed to the server.

        The socket pair of a server carries either plaintext or TLS connections.
        """
        found = self._servers.get(server)
        return found is not None and found.tls is tls

    def set_pair(self, server: str, end: socket.socket, *, tls: bool) -> None:
        """Pass connections to the server over this sending end of a socket pair, which this object now owns."""
        found = self._servers.setdefault(server, _ServerQueue())
        self._close_end(found)
        changed, found.end, found.tls = found.tls is not tls, end, tls
        if changed:
            self._route_again(self._take_queue(found))
        else:
            self._send_queued(found)

    def remove_server_and_reroute(self, server: str, done: Callable[[], None]) -> None:
        """Stop passing connections to the server, route those in its queue again, then call `done`."""
        found = self._servers.pop(server, None)
        if found is not None:
            self._close_end(found)
            self._route_again(self._take_queue(found))
        done()

    def pass_queue_or_refuse(
        self,
        server: str,
        sock: socket.socket,
        route: str,
        generation: int = 0,
        hops: int = 0,
        received: bytes = b"",
        *,
        tls: bool = False,
        trusted: bool = False,
    ) -> bool:
        """Send the connection to the server, or queue it; if neither is possible, refuse it and return False.

        Takes ownership of `sock`. The worker is also sent the route's alias, the `generation` of the route table, how
        often workers have given the connection back (`hops`), and the bytes `received` that one of them had read.
        `trusted`: the peer is a trusted proxy, so the client address that it reports is used.
        """
        found = self._servers.get(server)
        if found is None:
            self._refuse(sock, tls, route)
            return False
        routed = Routed(route, generation, hops, received, trusted=trusted)
        if not found.queue and self._send_or_close_unless_full(found, sock, routed):
            return True
        if len(found.queue) >= self._most_queued:
            self._report_full(server, found)
            self._refuse(sock, tls, route)
            return False
        self.queued_connections += 1
        until = self._loop.time() + self._queue_seconds
        found.queue.append(_Queued(sock, routed, until, tls))
        self._watch(found)
        if found.timer is None:
            found.timer = self._loop.call_later(self._queue_seconds, self._refuse_expired, found)
        return True

    def queue_length(self, server: str) -> int:
        """The number of connections that wait for room in the server's socket pair."""
        found = self._servers.get(server)
        return 0 if found is None else len(found.queue)

    def refuse(
        self, sock: socket.socket, status: int, retry_after_seconds: int = 0, *, route: str = ""
    ) -> None:
        """Send an error response with this status, close the connection, and count a refusal.

        It is counted for the route with the alias `route`, or by its status if `route` is "".
        """
        self._counts.count_refusal(str(status), route)
        self.waiting.refuse(sock, whole_response(status, retry_after_seconds=retry_after_seconds))

    def refuse_tls(self, sock: socket.socket, *, unknown_name: bool = False, route: str = "") -> None:
        """Send a TLS alert in place of a handshake, close the connection, and count a refused handshake."""
        self._counts.count_refusal(TLS, route)
        self.waiting.refuse(sock, _UNRECOGNIZED_NAME if unknown_name else _INTERNAL_ERROR)

    def reroute_for_new_table(self, table: RouteTable) -> None:
        """Route each queued connection again for whose route the new route table requires the proxy."""
        for found in self._servers.values():
            if not found.queue:
                continue
            staying: deque[_Queued] = deque()
            leaving: list[_Queued] = []
            for each in self._take_queue(found):
                match = table.by_alias(each.routed.route)
                stays = match is None or passable(match.route, tls=each.tls)
                (staying if stays else leaving).append(each)
            found.queue = staying
            self.queued_connections += len(staying)
            if staying:
                found.timer = self._loop.call_at(staying[0].until, self._refuse_expired, found)
            else:
                self._unwatch(found)
            self._route_again(leaving)

    def close(self) -> None:
        """Refuse queued connections, and close the socket pairs' sending ends and the waiting connections."""
        for found in self._servers.values():
            self._close_end(found)
            for each in self._take_queue(found):
                self._refuse(each.sock, each.tls, each.routed.route)
        self._servers.clear()
        self.waiting.close()

    def _send_or_close_unless_full(self, found: _ServerQueue, sock: socket.socket, routed: Routed) -> bool:
        """Try to send the connection's descriptor to a worker; return False if the connection has to wait.

        True means that the connection is done with: it was sent, or it was closed because `routed` has too many bytes.
        """
        if found.end is None:
            return False
        try:
            connection_handover.send_connection(found.end, sock.fileno(), routed=routed)
        except BlockingIOError:
            return False
        except wire.WireError:  # too many bytes were received
            close_promptly(sock.detach())
            return True
        except OSError as error:
            if not is_exhausted(error):
                # The other end is closed: a new pair follows, or the server is withdrawn.
                self._close_end(found)
            return False
        if isinstance(sock, Connection):  # an application has held it too
            close_promptly(sock.detach())
        else:
            os.close(sock.detach())  # half the time of sock.close()
        return True

    def _send_queued(self, found: _ServerQueue) -> None:
        """Send as many queued connections as there is room for, up to a maximum per loop iteration."""
        found.retry = None
        sent = 0
        while found.queue and sent < _SENT_AT_ONCE:
            first = found.queue[0]
            if not self._send_or_close_unless_full(found, first.sock, first.routed):
                break
            found.queue.popleft()
            sent += 1
        self.queued_connections -= sent
        if found.end is None or not found.queue:
            self._unwatch(found)
            if not found.queue:
                found.full = False
                if found.timer is not None:
                    found.timer.cancel()
                    found.timer = None
        elif sent:
            self._watch(found)
        else:
            self._unwatch(found)
            found.retry = self._loop.call_later(_RETRY_SECONDS, self._send_queued, found)

    def _watch(self, found: _ServerQueue) -> None:
        if found.end is not None and found.retry is None:
            self._loop.add_writer(found.end.fileno(), self._send_queued, found)

    def _unwatch(self, found: _ServerQueue) -> None:
        if found.retry is not None:
            found.retry.cancel()
            found.retry = None
        if found.end is not None:
            self._loop.remove_writer(found.end.fileno())

    def _close_end(self, found: _ServerQueue) -> None:
        self._unwatch(found)
        if found.end is not None:
            found.end.close()
            found.end = None

    def _take_queue(self, found: _ServerQueue) -> list[_Queued]:
        if found.timer is not None:
            found.timer.cancel()
            found.timer = None
        queue, found.queue = found.queue, deque()
        self.queued_connections -= len(queue)
        return [*queue]

    def _route_again(self, connections: list[_Queued]) -> None:
        for each in connections:
            if self.route_again is None:
                self._refuse(each.sock, each.tls, each.routed.route)
            else:
                self.route_again(each.sock, each.routed, None)

    def _refuse_expired(self, found: _ServerQueue) -> None:
        now, found.timer = self._loop.time(), None
        while found.queue and found.queue[0].until <= now:
            late = found.queue.popleft()
            self.queued_connections -= 1
            self._refuse(late.sock, late.tls, late.routed.route)
        if found.queue:
            found.timer = self._loop.call_at(found.queue[0].until, self._refuse_expired, found)
        else:
            found.full = False
            self._unwatch(found)

    def _report_full(self, server: str, found: _ServerQueue) -> None:
        """Report that the queue is full; not repeated until it has been empty."""
        if not found.full:
            found.full = True
            message = f"{server} takes no connections: {len(found.queue)} wait, and new ones get 503"
            self._event("connection queue full", server=server, message=message, severity="warning")

    def _refuse(self, sock: socket.socket, tls: bool, route: str) -> None:
        if tls:
            self.refuse_tls(sock, route=route)
        else:
            self.refuse(sock, 503, _RETRY_AFTER_SECONDS, route=route)
