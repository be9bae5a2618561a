"""TCP: each connection of a client is copied to and from a backend, or handed to a worker that serves TLS itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Sequence

from poolctl.json_form import Table
from poolctl.routing.route import StreamRoute

from ..backends.route_backends import Lease, RequestOutcome
from ..counts import CONNECT, RESET
from ..descriptor_limit import is_exhausted
from ..edge import GatewayState
from ..proxy_header import MOST_BYTES, NoProxyHeader, read_proxy_header
from .stream import AddressWithFamily, BackendAddresses, IdleTracker

_BUFFER = bytearray(64 * 1024)
_VIEW = memoryview(_BUFFER)
logger = logging.getLogger("poolctl.gateway")

_AT_ONCE = 16  # connections accepted in one iteration of the loop
_NOT_BLOCKING = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_ACCEPT_AGAIN_SECONDS = 1.0


class Flow:
    """One direction of a connection: bytes read from `source` are written to `target` at once.

    Reading pauses while bytes wait for `target`, so at most one buffer is held.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: _StreamedConnection,
        source: socket.socket,
        target: socket.socket,
    ) -> None:
        self.copied = 0
        self.ended = False  # the source has ended, and the target was notified
        self._connection = connection
        self._loop = loop
        self._source, self._target = source, target
        self._waiting = memoryview(b"")

    def resume(self) -> None:
        """Read from the source again."""
        self._loop.add_reader(self._source.fileno(), self._copy)

    def stop_copying(self) -> None:
        """Stop reading and writing."""
        self._loop.remove_writer(self._target.fileno())
        self._loop.remove_reader(self._source.fileno())

    def _copy(self) -> None:
        try:
            size = self._source.recv_into(_BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._connection.read_failed(self._source)
            return
        if not size:
            self._loop.remove_reader(self._source.fileno())
            self._forward_eof()
            return
        rest = self._send(_VIEW[:size])
        if rest:
            self._waiting = memoryview(bytes(rest))
            self._loop.remove_reader(self._source.fileno())
            self._loop.add_writer(self._target.fileno(), self._flush)

    def _flush(self) -> None:
        self._waiting = self._send(self._waiting)
        if not self._waiting and not self.ended:
            self._loop.remove_writer(self._target.fileno())
            self.resume()

    def _send(self, data: memoryview) -> memoryview:
        """Send what `target` takes now, and return the rest. If it takes no more data at all, this direction ends."""
        try:
            sent = self._target.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.stop_copying()
            self.ended = True
            self._connection.close_ended_and_report_open()
            return data[:0]
        self.copied += sent
        self._connection.mark_used()
        return data[sent:]

    def _forward_eof(self) -> None:
        self.ended = True
        if self._connection.close_ended_and_report_open():
            with contextlib.suppress(OSError):  # the target is gone, which reading from it shows
                self._target.shutdown(socket.SHUT_WR)


class TcpStream:
    """A stream route in service: its listeners, and the connections accepted from them.

    Starts when it is created. At `max_connections`, further connections wait in the backlog. The caller owns the
    listeners.
    """

    def __init__(self, edge: GatewayState, listeners: Sequence[socket.socket], route: StreamRoute) -> None:
        self.edge = edge
        self.route = route
        self.addresses = BackendAddresses(edge.loop, socket.SOCK_STREAM)
        self.open: IdleTracker[_StreamedConnection, _StreamedConnection] = IdleTracker(
            edge.loop, edge.now, route.idle_seconds, _StreamedConnection.close
        )
        self.accepted = self.passed = self.refused = self.failed = 0
        self.bytes_in = self.bytes_out = 0  # of connections that have ended
        self._listeners = listeners
        self._accepting = False
        self._closed = False
        self._held_off: asyncio.TimerHandle | None = None
        self.update_accepting()

    def apply(self, route: StreamRoute) -> None:
        """Apply changed targets and limits to new connections, and the idle limit to all."""
        self.route = route
        self.open.set_idle_limit(route.idle_seconds)
        self.update_accepting()

    def stop_accepting_clients(self) -> None:
        """Stop accepting; open connections continue."""
        self._closed = True
        self.update_accepting()

    async def drain(self, grace_seconds: float) -> None:
        """Stop accepting, and wait until open connections have ended; the rest are reset after `grace_seconds`."""
        self.stop_accepting_clients()
        await self.open.wait_until_empty(grace_seconds)
        for connection in self.open:
            connection.reset()
        self.addresses.close()

    def snapshot(self) -> Table:
        """The counts for reports: connections since the start, open connections, bytes from and to clients."""
        return {
            "open": len(self.open),
            "accepted": self.accepted,
            "passed": self.passed,
            "refused": self.refused,
            "failed": self.failed,
            "bytes_in": self.bytes_in + sum(each.bytes_in for each in self.open),
            "bytes_out": self.bytes_out + sum(each.bytes_out for each in self.open),
        }

    def remove(self, connection: _StreamedConnection) -> None:
        """Remove a connection that is closed or was passed on, and add its bytes to the stream's counts."""
        self.bytes_in += connection.bytes_in
        self.bytes_out += connection.bytes_out
        self.open.remove(connection)
        self.edge.stream_share.remove_connection()
        self.update_accepting()

    def pause_accepting(self, error: OSError) -> None:
        """Stop accepting for a moment: connections wait in the backlog until descriptors are free again."""
        if self._held_off is None:
            logger.warning("stream %s cannot open a connection: %s", self.route.alias, error)
            self._held_off = self.edge.loop.call_later(_ACCEPT_AGAIN_SECONDS, self._accept_again)
            self.update_accepting()

    def _accept_again(self) -> None:
        self._held_off = None
        self.update_accepting()

    def update_accepting(self) -> None:
        """Start or stop accepting: it stops when closed, at the maximum of connections, or short of descriptors."""
        room = not self.route.max_connections or len(self.open) < self.route.max_connections
        wanted = room and not self._closed and self._held_off is None
        wanted = wanted and self.edge.stream_share.has_room_or_notify(self.update_accepting)
        if wanted is not self._accepting:
            self._accepting = wanted
            for listener in self._listeners:
                if wanted:
                    self.edge.loop.add_reader(listener.fileno(), self._accept_waiting_connections, listener)
                else:
                    self.edge.loop.remove_reader(listener.fileno())

    def _accept_waiting_connections(self, listener: socket.socket) -> None:
        for number in range(_AT_ONCE):
            self.update_accepting()  # connections of other streams count, too
            if not self._accepting:
                return
            if self.edge.descriptors.is_low():
                if number == 0 and not self.edge.evict():
                    self.pause_accepting(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
                return
            try:
                client, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return  # another process of this gateway was faster
            except OSError as error:
                if not is_exhausted(error):
                    continue  # the client is gone already
                if not self.edge.evict():
                    self.pause_accepting(error)
                return
            client.setblocking(False)
            self.accepted += 1
            self.edge.stream_share.add_connection()
            host = address[0] if address else ""
            connection = _StreamedConnection(self, client, host)
            self.open.add(connection, connection)
            if self.route.accept_proxy and self.edge.is_trusted(host):
                connection.expect_header()
            else:
                connection.connect()


class _StreamedConnection:
    """A client's connection: first without a backend, then with both directions being copied."""

    def __init__(self, stream: TcpStream, client: socket.socket, host: str) -> None:
        self.used = 0.0
        self._stream = stream
        self._loop = stream.edge.loop
        self._client = client
        self._host = host
        self._reported = False
        self._peeked = 0
        self._tried: tuple[str, ...] = ()
        self._addresses: list[AddressWithFamily] = []
        self._backend: socket.socket | None = None
        self._lease: Lease | None = None
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._resolving: asyncio.Task[None] | None = None
        self._up: Flow | None = None
        self._down: Flow | None = None
        self._closed = False

    @property
    def bytes_in(self) -> int:
        """The number of bytes received from the client."""
        return self._up.copied if self._up else 0

    @property
    def bytes_out(self) -> int:
        """The number of bytes sent to the client."""
        return self._down.copied if self._down else 0

    def expect_header(self) -> None:
        """Arrange that `connect` is called when the client's PROXY header has arrived, or `reset` after a timeout."""
        self._timer = self._loop.call_later(self._stream.edge.settings.head_seconds, self.reset)
        self._loop.add_reader(self._client.fileno(), self._read_header)

    def _read_header(self) -> None:
        try:
            data = self._client.recv(MOST_BYTES, socket.MSG_PEEK)
            header = read_proxy_header(data)
            if header is not None:
                self._stop_waiting()
                self._client.recv(header.size)
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            elif len(data) <= self._peeked:
                raise NoProxyHeader  # the client has ended
            else:
                # Woken only for more than this, since it stays unread.
                self._peeked = len(data)
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data) + 1)
                return
        except BlockingIOError:
            return
        except (NoProxyHeader, OSError):
            self.reset()
            return
        self._host = header.client or self._host
        self._reported = bool(header.client)
        self.connect()

    def connect(self) -> None:
        """Try backends one after another until one accepts the connection.

        Does not block: it is called again when a name is resolved, or an attempt has ended.
        """
        while not (self._closed or self._backend or self._up or self._resolving):
            if self._addresses:
                self._start_connecting(self._addresses.pop(0))
            else:
                self._try_next_backend()

    def _try_next_backend(self) -> None:
        if self._lease is not None:  # none of its addresses accepted a connection
            self._stream.failed += 1
            self._release(RequestOutcome.FAILED, CONNECT)
        lease = self._stream.edge.backends.of(self._stream.route).acquire(self._host, "", self._tried)
        if not isinstance(lease, Lease):
            self._stream.refused += 1
            self.reset()
            return
        self._lease, self._began = lease, self._stream.edge.now()
        self._tried += (lease.backend.key,)
        endpoint = lease.backend.endpoint
        # A worker would take the trusted proxy for the client that it has reported.
        if (
            endpoint.tls
            and not self._reported
            and self._stream.edge.passing.can_pass_to(lease.backend.key, tls=True)
        ):
            self._pass_client_to_worker(lease)
            return
        known = self._stream.addresses.get_or_start_resolving(endpoint)
        if known is None:
            self._resolving = self._loop.create_task(self._resolve(lease))
        else:
            self._addresses = list(known)

    async def _resolve(self, lease: Lease) -> None:
        found = await self._stream.addresses.wait_for_addresses(lease.backend.endpoint)
        self._addresses, self._resolving = list(found), None
        self.connect()

    def _pass_client_to_worker(self, lease: Lease) -> None:
        """Pass the client's connection to a worker of `lease.backend`. The connection wakes the server if it sleeps."""
        self._closed = True
        self._release(RequestOutcome.PASSED)
        client = self._client
        self._stream.passed += 1
        self._stream.remove(self)
        self._stream.edge.passing.pass_queue_or_refuse(
            lease.backend.key, client, self._stream.route.alias, tls=True
        )

    def _start_connecting(self, place: AddressWithFamily) -> None:
        try:
            backend = socket.socket(place.family, _NOT_BLOCKING)
        except OSError as error:
            self._release(RequestOutcome.CANCELLED)
            self.reset()
            self._stream.pause_accepting(error)
            return
        self._backend = backend
        if place.family != socket.AF_UNIX:
            backend.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status = backend.connect_ex(place.address)
        if status == errno.EINPROGRESS:
            if seconds := self._stream.route.timeouts.connect:
                self._timer = self._loop.call_later(seconds, self._finish_connecting, errno.ETIMEDOUT)
            self._loop.add_writer(backend.fileno(), self._finish_connecting)
        else:
            self._start_copying_or_discard(status)

    def _finish_connecting(self, error_number: int | None = None) -> None:
        """Handle the result of a connection attempt, which is read from the socket if `error_number` is None."""
        assert self._backend is not None
        self._stop_waiting()
        self._start_copying_or_discard(
            self._backend.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error_number is None
            else error_number
        )
        self.connect()

    def _stop_waiting(self) -> None:
        """Stop waiting for the header, for a backend to accept the connection, or for the end of the time limit."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._client.fileno())
        if self._backend is not None and self._up is None:
            self._loop.remove_writer(self._backend.fileno())

    def _start_copying_or_discard(self, error_number: int) -> None:
        """Start copying in both directions or, if `error_number` is not 0, close the backend's socket."""
        assert self._backend is not None
        assert self._lease is not None
        if error_number:
            logger.debug(
                "stream %s: %s: %s",
                self._stream.route.alias,
                self._lease.backend.key,
                os.strerror(error_number),
            )
            self._backend.close()
            self._backend = None
            return
        self._lease.record_long_lived_accepted()
        self._stream.open.record_activity(self, self)
        if seconds := self._stream.route.timeouts.total:
            self._timer = self._loop.call_later(seconds, self.reset)
        self._up = Flow(self._loop, self, self._client, self._backend)
        self._down = Flow(self._loop, self, self._backend, self._client)
        self._up.resume()
        self._down.resume()

    def mark_used(self) -> None:
        """Restart the idle time, because bytes were copied."""
        self._stream.open.record_activity(self, self)

    def close_ended_and_report_open(self) -> bool:
        """Close the connection if both directions have ended; returns whether it is still open."""
        assert self._up is not None
        assert self._down is not None
        if self._up.ended and self._down.ended:
            self.close()
        return not self._closed

    def read_failed(self, source: socket.socket) -> None:
        """Reset both sides, because reading from `source` failed: the peers must not take this for a normal end."""
        if source is self._backend and not self.bytes_out:
            self._stream.failed += 1
            self._release(RequestOutcome.FAILED, RESET)
        self.reset()

    def reset(self) -> None:
        """Close both sides so that their peers see an error."""
        for sock in (self._client, self._backend):
            if sock is not None and not self._closed:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.close()

    def close(self) -> None:
        """Close both sides."""
        if self._closed:
            return
        self._closed = True
        if self._resolving is not None:
            self._resolving.cancel()
        for flow in (self._up, self._down):
            if flow is not None:
                flow.stop_copying()
        self._stop_waiting()
        self._release(RequestOutcome.ANSWERED if self._up else RequestOutcome.CANCELLED)
        self._client.close()
        if self._backend is not None:
            self._backend.close()
        self._stream.remove(self)

    def _release(self, outcome: RequestOutcome, error: str = "") -> None:
        if self._lease is not None:
            lease, self._lease = self._lease, None
            lease.backend.counts.bytes_in += self.bytes_in
            lease.backend.counts.bytes_out += self.bytes_out
            lease.release(outcome, self._stream.edge.now() - self._began, 0, error)
