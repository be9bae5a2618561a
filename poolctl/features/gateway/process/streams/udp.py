"""UDP: the datagrams of each client are a session with one backend, until it has been idle for a while."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Any

from poolctl.json_form import Table
from poolctl.routing.route import StreamRoute

from ..backends.route_backends import Lease, RequestOutcome
from ..counts import CONNECT
from ..edge import GatewayState
from .stream import BackendAddresses, IdleTracker

_NOT_BLOCKING = int(socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
_AT_ONCE = 32  # datagrams read in one iteration of the loop
_BUFFER = bytearray(64 * 1024)  # more than any datagram holds
_VIEW = memoryview(_BUFFER)
# The maximum for a route without its own: a flood from forged addresses must not take all descriptors of the gateway.
_MOST_SESSIONS = 16_384
_WILDCARDS = ("0.0.0.0", "::")

# A client's address, and the control data with the address to which it has sent; b"" unless the kernel reports that.
_Key = tuple[Any, bytes]
_IP_PKTINFO = 8
_PKTINFO_SPACE = socket.CMSG_SPACE(20)


class UdpStream:
    """A stream route in service: its sockets, and the sessions of their clients.

    Starts when it is created. At the maximum number of sessions, a new session replaces the one that has been idle
    longest. The caller owns the sockets. A datagram without an available backend is dropped.
    """

    def __init__(self, edge: GatewayState, listeners: Sequence[socket.socket], route: StreamRoute) -> None:
        self.edge = edge
        self.route = route
        self.addresses = BackendAddresses(edge.loop, socket.SOCK_DGRAM)
        self.sessions: IdleTracker[_Key, _Session] = IdleTracker(
            edge.loop, edge.now, route.idle_seconds, _Session.close
        )
        self.opened = self.evicted = self.failed = self.dropped = 0
        self.bytes_in = self.bytes_out = 0
        edge.stream_share.add_stream(self)
        self._listeners = [_DatagramListener(self, each) for each in listeners]

    def __len__(self) -> int:
        return len(self.sessions)

    def apply(self, route: StreamRoute) -> None:
        """Apply changed targets and limits to new sessions, and the idle limit to all."""
        self.route = route
        self.sessions.set_idle_limit(route.idle_seconds)
        while len(self.sessions) > self._most_sessions:
            self.evict()

    @property
    def _most_sessions(self) -> int:
        return self.route.max_connections or min(_MOST_SESSIONS, self.edge.descriptors.of_sessions)

    def stop_accepting_clients(self) -> None:
        """Stop reading clients' datagrams, which a successor reads. Replies of backends are still forwarded."""
        for listener in self._listeners:
            listener.close()

    async def drain(self, grace_seconds: float) -> None:
        """Stop reading datagrams of clients, and forward answers until the sessions are idle or the time has passed."""
        self.stop_accepting_clients()
        await self.sessions.wait_until_empty(grace_seconds)
        for session in self.sessions:
            session.close()
        self.addresses.close()
        self.edge.stream_share.remove_stream(self)

    def snapshot(self) -> Table:
        """The counts for reports: sessions since the start, open sessions, bytes from and to clients."""
        return {
            "open": len(self.sessions),
            "opened": self.opened,
            "evicted": self.evicted,
            "failed": self.failed,
            "dropped": self.dropped,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
        }

    def begin(self, key: _Key, listener: _DatagramListener, tried: tuple[str, ...] = ()) -> _Session | None:
        """Start a session for the client; returns None if the datagram has to be dropped.

        `tried` has the keys of backends that are not to be used.
        """
        while len(self.sessions) >= self._most_sessions:
            self.evict()
        self.edge.stream_share.make_room()
        while True:
            lease = self.edge.backends.of(self.route).acquire(key[0][0], "", tried)
            if not isinstance(lease, Lease):
                return None
            known = self.addresses.get_or_start_resolving(lease.backend.endpoint)
            # While its name is being resolved the datagram is dropped: clients of UDP send again.
            sock = self._open_session_socket(known[0].family) if known else None
            if known is None or sock is None:
                lease.release(RequestOutcome.CANCELLED)
                return None
            try:
                sock.connect(known[0].address)
            except OSError:  # no route to it
                sock.close()
                lease.release(RequestOutcome.FAILED, 0.0, 0, CONNECT)
                self.failed += 1
                tried += (lease.backend.key,)
                continue
            self.opened += 1
            return _Session(key, listener, sock, lease)

    def _open_session_socket(self, family: int) -> socket.socket | None:
        """A socket for a session; None if this process is out of descriptors and no session can be ended."""
        while True:
            try:
                sock = socket.socket(family, _NOT_BLOCKING)
            except OSError:
                if not self.sessions:
                    self.edge.evict()  # for the next datagram
                    return None
                self.evict()
                continue
            if self.sessions and sock.fileno() >= self.edge.descriptors.mark:
                self.evict()
            return sock

    def evict(self) -> None:
        """End the session that has been idle longest."""
        self.evicted += 1
        self.sessions.oldest().close()


class _DatagramListener:
    """A socket to which clients send their datagrams.

    If it is bound to all addresses of the machine, the kernel reports to which one a datagram was sent, and the
    answer is sent from that address.
    """

    def __init__(self, stream: UdpStream, sock: socket.socket) -> None:
        self.stream = stream
        self._sock = sock
        everywhere = sock.getsockname()[0] in _WILDCARDS
        if everywhere and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif everywhere:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        stream.edge.loop.add_reader(sock.fileno(), self._read)

    def close(self) -> None:
        """Stop reading."""
        self.stream.edge.loop.remove_reader(self._sock.fileno())

    def answer(self, session: _Session, size: int) -> None:
        """Send the first `size` bytes of `_BUFFER`, the backend's answer, to the session's client. Raises OSError."""
        self._sock.sendmsg((_VIEW[:size],), session.local, 0, session.client)

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                size, control, _, client = self._sock.recvmsg_into((_BUFFER,), _PKTINFO_SPACE)
            except OSError:
                return
            self._forward((client, control[0][2] if control else b""), size)

    def _forward(self, key: _Key, size: int) -> None:
        stream = self.stream
        session = stream.sessions.get(key)
        stream.bytes_in += size
        most_seconds = stream.route.timeouts.total
        if session is not None and most_seconds and stream.edge.now() - session.began >= most_seconds:
            session.close()
            session = None
        if session is None:
            session = stream.begin(key, self)
        tried: tuple[str, ...] = ()
        while session is not None and not session.send_or_end(size):
            # An earlier datagram was refused, so this one was not sent: another backend gets it.
            tried += (session.lease.backend.key,)
            session = stream.begin(key, self, tried)
        if session is None:
            stream.dropped += 1


class _Session:
    """The session of a client: its address, and a socket that is connected to its backend."""

    def __init__(self, key: _Key, listener: _DatagramListener, sock: socket.socket, lease: Lease) -> None:
        self.used = 0.0
        self.key = key
        self.client, local = key
        self.local = [_source_address_message(local)] if local else []
        self._listener = listener
        self._sock = sock
        self.lease = lease
        self._answers = 0
        self._ended = False
        stream = listener.stream
        self.began = stream.edge.now()
        stream.sessions.add(key, self)
        stream.edge.stream_share.add_session()
        stream.edge.loop.add_reader(sock.fileno(), self._read)

    def send_or_end(self, size: int) -> bool:
        """Send the datagram in the buffer to the backend; False if it is unreachable, which ends the session."""
        stream = self._listener.stream
        try:
            self._sock.send(_VIEW[:size])
        except (BlockingIOError, InterruptedError):
            stream.dropped += 1
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                stream.dropped += 1
                return True
            self._fail()
            return False
        stream.sessions.record_activity(self.key, self)
        return True

    def _read(self) -> None:
        stream = self._listener.stream
        try:
            size = self._sock.recv_into(_BUFFER)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # an ICMP message: port or host unreachable
            self._fail()
            return
        self._answers += 1
        if self._answers == 1:
            self.lease.record_long_lived_accepted()
        stream.sessions.record_activity(self.key, self)
        try:
            self._listener.answer(self, size)
        except OSError:
            stream.dropped += 1
            return
        stream.bytes_out += size

    def _fail(self) -> None:
        self._listener.stream.failed += 1
        self._end(RequestOutcome.FAILED, CONNECT)

    def close(self) -> None:
        """End the session; a later datagram of the client begins a new session."""
        self._end(RequestOutcome.ANSWERED if self._answers else RequestOutcome.CANCELLED)

    def _end(self, outcome: RequestOutcome, error: str = "") -> None:
        if self._ended:
            return
        self._ended = True
        stream = self._listener.stream
        stream.edge.loop.remove_reader(self._sock.fileno())
        self._sock.close()
        stream.sessions.remove(self.key)
        stream.edge.stream_share.remove_session()
        self.lease.release(outcome, stream.edge.now() - self.began, 0, error)


def _source_address_message(local: bytes) -> tuple[int, int, bytes]:
    """Return the control message (ip(7)) that sets an answer's source to the address in the control data `local`."""
    if len(local) > 12:
        # The interface only matters for a link-local address, which the client's address names as well.
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, local[:16] + bytes(4)
    return socket.IPPROTO_IP, _IP_PKTINFO, bytes(4) + local[4:8] + bytes(4)
