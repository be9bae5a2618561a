"""Connections that leave the proxy between two requests, to be routed again like new connections."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Collection

from poolctl.keeper.connection_handover import Connection, Routed

from ..edge import Edge
from .connection_pool import ProxiedClient

# After this time a connection without TLS waits with the connections that have sent nothing yet, for a sixth of the
# memory.
IDLE_SECONDS = 5.0
# After this number of consecutive passable requests the next request is passed. A connection whose requests are passed
# and proxied in turn stays: going to a worker and back costs as much as proxying some requests.
MOST_PASSABLE = 3


def leave(
    edge: Edge, client: ProxiedClient, transport: asyncio.Transport, received: bytes, seconds: float
) -> bool:
    """Whether the connection now waits elsewhere for its next request, for at most `seconds`.

    If so, the transport is closed. Otherwise it stays: it has TLS, something is unsent, or there is no room.
    """
    decide = edge.passing.decide_again
    if decide is None or edge.draining or transport.get_extra_info("sslcontext") is not None:
        return False
    if transport.is_closing() or transport.get_write_buffer_size():
        return False
    if not received and edge.passing.waiting.is_full:
        return False
    try:
        sock = _detach(transport)
    except OSError:
        return False
    edge.pool.leave(client)
    decide(sock, Routed("", received=received, decided=False), seconds)
    return True


def pass_on(
    edge: Edge,
    client: ProxiedClient,
    transport: asyncio.Transport,
    received: bytes,
    servers: Collection[str],
) -> bool:
    """Whether the connection, with these bytes of its next request, goes to a worker of one of these servers."""
    if not all(map(edge.passing.passes, servers)):
        return False
    return leave(edge, client, transport, received, edge.settings.head_seconds)


def _detach(transport: asyncio.Transport) -> socket.socket:
    """The transport's connection, which lives on without it. Raises OSError."""
    used = transport.get_extra_info("socket")
    kind = Connection if isinstance(used, Connection) else socket.socket
    fd = os.dup(used.fileno())
    try:
        sock = kind(fileno=fd)
    except OSError:
        os.close(fd)
        raise
    transport.abort()  # which closes its own descriptor only
    return sock
