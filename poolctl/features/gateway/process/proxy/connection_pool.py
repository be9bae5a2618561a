"""The proxy's connections: idle connections to backends, which are reused, and client connections."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Coroutine
from itertools import islice
from typing import Any, Protocol

from ..settings import Endpoint
from ..tls import SharedBufferProtocol
from .backend_connection import BackendConnection

# Maximum for one endpoint. Further connections are closed as soon as they are idle.
MOST_IDLE = 128
# Shorter than the keep-alive of most servers, so that few requests meet a connection that is being closed.
IDLE_SECONDS = 55.0
# Maximum number of idle clients examined to find one to close: on the others, bytes wait to be read or sent.
_LOOKED_AT = 32


class DrainableClient(Protocol):
    """The methods of a client connection that the pool calls."""

    def drain(self) -> None:
        """Close the connection after its current response. Give an idle client some seconds for a last request."""

    def end_now(self) -> None:
        """Close now; a WebSocket gets a close frame (1012) if one can be inserted."""

    def close_idle(self) -> bool:
        """Close the idle connection and return True. Return False instead if bytes wait to be read or sent."""


class ProxyConnections:
    """Idle connections to backends, by endpoint, and all proxied connections of clients.

    The most recently used backend connection is reused first, so that surplus ones expire. Must be created on the loop
    that uses it.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.clients: set[DrainableClient] = set()
        # Client connections between two requests, the least recently used first.
        self.idle_clients: dict[DrainableClient, None] = {}
        self.arriving = 0  # number of accepted connections that are not among `clients` yet
        # TLS handshakes in progress, the oldest first.
        self.handshakes: dict[asyncio.Task[None], socket.socket] = {}
        self._idle: dict[Endpoint, list[BackendConnection]] = {}
        self._emptied: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._contexts: dict[bool, ssl.SSLContext] = {}

    def __repr__(self) -> str:
        return f"<ProxyConnections: {sum(map(len, self._idle.values()))} idle, {len(self.clients)} clients>"

    def take(self, endpoint: Endpoint, *, certain: bool) -> BackendConnection | None:
        """The most recently used idle connection to the endpoint, or None.

        `certain`, for a request that cannot be repeated: the kernel is asked whether the backend has closed the
        connection.
        """
        idle = self._idle.get(endpoint)
        while idle:
            connection = idle.pop()
            if connection.reuse(certain=certain):
                return connection
        return None

    async def open_backend_connection(self, endpoint: Endpoint) -> BackendConnection:
        """A new connection to the endpoint. Raises OSError (ssl.SSLError is one)."""
        made = BackendConnection(self.loop)
        context = self._context(endpoint) if endpoint.tls else None
        name = endpoint.server_name or "localhost" if endpoint.tls else None
        protocol = made if context is None else SharedBufferProtocol(made)
        tls: dict[str, Any] = {"ssl": context, "server_hostname": name}
        if endpoint.kind == "unix":
            await self.loop.create_unix_connection(lambda: protocol, endpoint.path, **tls)
        else:
            await self.loop.create_connection(lambda: protocol, endpoint.host, endpoint.port, **tls)
        made.endpoint = endpoint
        return made

    def give_back(self, connection: BackendConnection) -> None:
        """Keep the connection, whose response is complete, for another request; close it if there are enough."""
        idle = self._idle.setdefault(connection.endpoint, [])
        if len(idle) >= MOST_IDLE:
            connection.close()
            return
        idle.append(connection)
        connection.start_idle_timeout(idle, IDLE_SECONDS)

    def add_client(self, client: DrainableClient, *, idle: bool) -> None:
        """Add an open connection of a client; `idle`: nothing was received on it yet."""
        self.clients.add(client)
        if idle:
            self.idle_clients[client] = None

    def remove_client(self, client: DrainableClient) -> None:
        """Remove a client's connection that was closed, or has left the proxy."""
        self.clients.discard(client)
        self.idle_clients.pop(client, None)
        if not self.clients and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def wait_until_no_clients(self, seconds: float) -> bool:
        """Wait until no client is connected; False if that takes longer than `seconds`."""
        if not self.clients:
            return True
        self._emptied = self.loop.create_future()
        done, _ = await asyncio.wait([self._emptied], timeout=seconds)
        return bool(done)

    def close_idle_client(self) -> bool:
        """Close and forget the client connection that has been idle longest; returns False if none is idle."""
        for client in list(islice(self.idle_clients, _LOOKED_AT)):
            if client.close_idle():
                self.remove_client(client)
                return True
            self.idle_clients[client] = self.idle_clients.pop(client)
        return False

    def close_idle_backend(self) -> bool:
        """Close the backend connection that has been idle longest; returns False if none is idle."""
        found = min(filter(None, self._idle.values()), key=lambda idle: idle[0].idle_until, default=None)
        if found is None:
            return False
        found.pop(0).close()
        return True

    def close_idle_to(self, endpoint: Endpoint) -> None:
        """Close the idle connections to this backend."""
        for connection in self._idle.pop(endpoint, []):
            connection.close()

    def close_idle_backend_connections(self) -> None:
        """Close the idle connections to backends."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()
        self._idle.clear()

    def close(self) -> None:
        """Close all connections."""
        self.close_idle_backend_connections()
        for client in list(self.clients):
            client.end_now()
        for task in self._tasks:
            task.cancel()

    def start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the coroutine as a task, and keep a reference until it is done."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _context(self, endpoint: Endpoint) -> ssl.SSLContext:
        """Return the endpoint's TLS context. A URL is verified by the system's CAs, a server of this pool is not."""
        context = self._contexts.get(bool(endpoint.server_name))
        if context is None:
            context = ssl.create_default_context()
            context.set_alpn_protocols(["http/1.1"])
            if not endpoint.server_name:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._contexts[bool(endpoint.server_name)] = context
        return context
