"""Taking over clients' sockets, and ending their connections."""

from __future__ import annotations

import asyncio
import socket
import ssl

from poolctl.keeper.connection_handover import Connection
from poolctl.platform import close_promptly

from ..counts import TLS
from ..edge import Edge
from ..tls.tls_reading import TlsReader
from .client_connection import CLOSE_FRAME_SECONDS, ClientConnection, Peer
from .shared_transport import SharedTransport

HANDSHAKE_SECONDS = 10.0
# A little longer than the time that a WebSocket has after its close frame.
CLOSING_SECONDS = CLOSE_FRAME_SECONDS + 0.5


def serve(edge: Edge, sock: socket.socket, received: bytes = b"", reported: Peer | None = None) -> None:
    """Serve the connection, of which these bytes have already been read. The socket is the proxy's from now on.

    `reported` is the client, if a trusted proxy has reported it.
    """
    edge.pool.start(_serve(edge, sock, received, None, reported))


def serve_tls(edge: Edge, sock: socket.socket, context: ssl.SSLContext, reported: Peer | None = None) -> None:
    """Serve the connection after a TLS handshake, with the certificate that the context chooses.

    At the maximum number of handshakes in progress, the oldest is aborted.
    """
    handshakes = edge.pool.handshakes
    if len(handshakes) >= edge.descriptors.of_handshakes:
        oldest = next(iter(handshakes))
        oldest.cancel()
        handshakes.pop(oldest).close()  # the task may not have begun
    task = edge.pool.start(_serve(edge, sock, b"", context, reported))
    handshakes[task] = sock
    task.add_done_callback(lambda task: handshakes.pop(task, None))


async def drain(edge: Edge, seconds: float) -> None:
    """End client connections: idle connections soon, others after their response, the remaining after `seconds`."""
    pool = edge.pool
    for client in list(pool.clients):
        client.drain()
    if not await pool.empty(seconds):
        for client in list(pool.clients):
            client.end_now()
        await pool.empty(CLOSING_SECONDS)
    pool.close_idle()


async def _serve(
    edge: Edge,
    sock: socket.socket,
    received: bytes,
    context: ssl.SSLContext | None,
    reported: Peer | None,
) -> None:
    if isinstance(sock, Connection) and context is None:
        try:
            SharedTransport(edge.loop, sock, ClientConnection(edge, "http", received, reported))
        except OSError:
            close_promptly(sock.detach())
        return
    sock.setblocking(False)
    edge.pool.arriving += 1
    try:
        await edge.loop.connect_accepted_socket(
            lambda: _protocol(edge, received, reported, secure=context is not None),
            sock,
            ssl=context,
            ssl_handshake_timeout=None if context is None else HANDSHAKE_SECONDS,
        )
    except (OSError, asyncio.CancelledError):  # ssl.SSLError is one; so is a handshake that takes too long
        sock.close()
        if context is not None:
            edge.counts.refused(TLS)
    finally:
        edge.pool.arriving -= 1


def _protocol(edge: Edge, received: bytes, reported: Peer | None, *, secure: bool) -> asyncio.BaseProtocol:
    if not secure:
        return ClientConnection(edge, "http", received, reported)
    return TlsReader(ClientConnection(edge, "https", reported=reported), edge.pool.tls_buffer)
