"""Makes proxied client connections from sockets, after a TLS handshake if necessary, and drains them."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct

from poolctl.http.messages import Buffer
from poolctl.keeper.connection_handover import Connection
from poolctl.platform import close_promptly

from ..counts import TLS
from ..edge import GatewayState
from ..tls import SharedBufferProtocol
from .client_connection import CLOSE_FRAME_SECONDS, ClientConnection, Peer

HANDSHAKE_SECONDS = 10.0
# A little longer than the time that a WebSocket has after its close frame.
CLOSING_SECONDS = CLOSE_FRAME_SECONDS + 0.5
_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_READ_BYTES = 64 * 1024
# The protocol is asked to pause above the first number of unsent bytes, and to continue at the second.
_HIGH_BYTES, _LOW_BYTES = 64 * 1024, 16 * 1024
_RESET = struct.pack("ii", 1, 0)


def start_serving(
    edge: GatewayState, sock: socket.socket, received: bytes = b"", reported: Peer | None = None
) -> None:
    """Start to serve the connection, and return at once. Takes ownership of the socket.

    `received` are bytes that were already read from it. `reported` is the client's address if a trusted proxy has
    reported it.
    """
    edge.pool.start_task(_start_client_connection(edge, sock, received, None, reported))


def start_serving_tls(
    edge: GatewayState, sock: socket.socket, context: ssl.SSLContext, reported: Peer | None = None
) -> None:
    """Start a TLS handshake, after which the connection is served, and return at once. Takes ownership of the socket.

    The context chooses the certificate. At the maximum number of handshakes in progress, the oldest is aborted.
    """
    handshakes = edge.pool.handshakes
    if len(handshakes) >= edge.descriptors.of_handshakes:
        oldest = next(iter(handshakes))
        oldest.cancel()
        handshakes.pop(oldest).close()  # the task may not have begun
    task = edge.pool.start_task(_start_client_connection(edge, sock, b"", context, reported))
    handshakes[task] = sock
    task.add_done_callback(lambda task: handshakes.pop(task, None))


async def drain_clients(edge: GatewayState, grace_seconds: float) -> None:
    """End client connections: idle ones soon, others after their response, and the rest after `grace_seconds`."""
    pool = edge.pool
    for client in list(pool.clients):
        client.drain()
    if not await pool.wait_until_no_clients(grace_seconds):
        for client in list(pool.clients):
            client.end_now()
        await pool.wait_until_no_clients(CLOSING_SECONDS)
    pool.close_idle_backend_connections()


async def _start_client_connection(
    edge: GatewayState,
    sock: socket.socket,
    received: bytes,
    context: ssl.SSLContext | None,
    reported: Peer | None,
) -> None:
    client = ClientConnection(edge, "http" if context is None else "https", received, reported)
    protocol = client if context is None else SharedBufferProtocol(client)
    if isinstance(sock, Connection) and context is None:
        try:
            SharedSocketTransport(edge.loop, sock, client)
        except OSError:
            close_promptly(sock.detach())
        return
    sock.setblocking(False)
    edge.pool.arriving += 1
    try:
        await edge.loop.connect_accepted_socket(
            lambda: protocol,
            sock,
            ssl=context,
            ssl_handshake_timeout=None if context is None else HANDSHAKE_SECONDS,
        )
    except (OSError, asyncio.CancelledError):  # ssl.SSLError is one; so is a handshake that takes too long
        sock.close()
        if context is not None:
            edge.counts.count_refusal(TLS)
    finally:
        edge.pool.arriving -= 1


class SharedSocketTransport(asyncio.Transport):
    """A transport over a socket that workers may share: no call blocks, even if another process clears O_NONBLOCK.

    It owns the connection, unless its constructor raises OSError because the connection has already ended.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, connection: Connection, protocol: asyncio.Protocol
    ) -> None:
        super().__init__({"socket": connection, "peername": connection.getpeername()})
        self._loop = loop
        self._connection = connection
        self._fd = connection.fileno()
        self._protocol = protocol
        self._unsent = bytearray()
        self._reading = False
        self._wanted = True  # whether the protocol wants to read
        self._ended = False  # whether the client has closed its side
        self._paused = False  # whether the protocol was asked to pause writing
        self._eof = self._closing = self._over = False
        protocol.connection_made(self)
        if self._wanted:
            self.resume_reading()

    # Reading.

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._wanted = False
        self._stop_reading()

    def resume_reading(self) -> None:
        self._wanted = True
        if not (self._reading or self._ended or self._closing):
            self._reading = True
            self._loop.add_reader(self._fd, self._read)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def _read(self) -> None:
        try:
            data = self._connection.recv(_READ_BYTES, _FLAGS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._force_close(error)
            return
        if data:
            self._protocol.data_received(data)
            return
        self._ended = True
        self._stop_reading()
        if not self._protocol.eof_received():
            self.close()

    # Writing.

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: Buffer) -> None:  # type: ignore[override]  # no bytearray: it could be changed later
        if self._over or self._eof:
            return
        sent = 0
        if not self._unsent:
            try:
                sent = self._connection.send(data, _FLAGS)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                self._force_close(error)
                return
            if sent == len(data):
                return
            self._loop.add_writer(self._fd, self._flush)
        self._unsent += memoryview(data)[sent:]
        if len(self._unsent) > _HIGH_BYTES and not self._paused:
            self._paused = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        self._eof = True
        if not self._unsent:
            self._shut_down_writing()

    def _flush(self) -> None:
        try:
            sent = self._connection.send(memoryview(self._unsent)[:_HIGH_BYTES], _FLAGS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._force_close(error)
            return
        del self._unsent[:sent]
        if not self._unsent:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._force_close(None)
                return
            if self._eof:
                self._shut_down_writing()
        if self._paused and len(self._unsent) <= _LOW_BYTES:
            self._paused = False
            self._protocol.resume_writing()

    def _shut_down_writing(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._force_close(error)

    # The end.

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._stop_reading()
            if not self._unsent:
                self._force_close(None)

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, error: Exception | None) -> None:
        if self._over:
            return
        self._over = self._closing = True
        self._stop_reading()
        self._loop.remove_writer(self._fd)
        self._unsent.clear()
        self._loop.call_soon(self._end, error)

    def _end(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)
        try:
            resets = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET)) == _RESET
        except OSError:
            resets = False
        if resets:  # closing does not wait then
            os.close(self._connection.detach())
        else:
            close_promptly(self._connection.detach())
