"""Connections on which somebody asks how this worker is: served like any other, and counted as none.

They keep no worker awake, use up no `max_requests`, leave no line in an access log, and are not seen off in a drain.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .access_log import unwatched
from .adoption import AcceptedConnections
from .counting import Counted, uncounted
from .server_state import Accounts

if TYPE_CHECKING:
    from .pool_server import PoolServer


_KEPT_SECONDS = 86400.0  # who asks also ends it
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Probed:
    """What the application of one server is asked, beside its traffic; `listeners` are where that comes from."""

    def __init__(self, server: PoolServer, listeners: Sequence[socket.socket]) -> None:
        self._server = server
        self._address = _address(listeners)
        self._secure = False
        self._accepted = AcceptedConnections()
        self.accounts = Accounts(lambda: None)

    def answer(self, question: dict[str, Any], sock: socket.socket) -> None:
        """Answer on the connection in the way that is asked for: `echo`, or HTTP, in the `plain` or as all do."""
        if self._server.should_exit:
            sock.close()
        elif question.get("kind") == "echo":
            self.echo(sock)
        else:
            self.serve(sock, plain=bool(question.get("plain")))

    def serve(self, sock: socket.socket, *, plain: bool = False) -> None:
        """Let the application answer what is asked on this connection; with `plain` no TLS is spoken on it."""
        server = self._server
        config = server.config
        self._secure = config.ssl is not None
        self.accounts.default_headers = config.encoded_headers
        self._accepted.attach(self._make_protocol, sock, None if plain else config.ssl)

    def echo(self, sock: socket.socket) -> None:
        """Send back what comes: the loop has its turns, and that is all that is asked."""
        self._accepted.attach(Echo, sock, None)

    def close(self) -> None:
        """End every such connection."""
        self._accepted.cancel()
        for connection in list(self.accounts.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _make_protocol(self) -> asyncio.Protocol:
        server = self._server
        kind: Any = server.config.http_protocol_class
        made: Any = getattr(kind, "http1", kind)(
            config=server.config, server_state=self.accounts, app_state=server.lifespan.state
        )
        made.access_log = False
        counted = isinstance(made.app, Counted)
        made.app = unwatched(made.app.inner if counted else made.app)
        if server.accounts.batch is not None and not counted:
            made.app = uncounted(made.app, server.accounts.batch)
        made.timeout_keep_alive = _KEPT_SECONDS
        made.connection_made = functools.partial(self._made, made)
        return made  # type: ignore[no-any-return]

    def _made(self, protocol: Any, transport: asyncio.Transport) -> None:
        type(protocol).connection_made(protocol, transport)
        # The application sees a request as its clients make them, and not a socket pair.
        if self._address is not None:
            protocol.server, protocol.client = self._address, (self._address[0], 0)
        protocol.scheme = "https" if self._secure else "http"


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


def _address(listeners: Sequence[socket.socket]) -> tuple[str, int] | None:
    for listener in listeners:
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            host, port = listener.getsockname()[:2]
            return _ANYWHERE.get(host, host), port
    return None
