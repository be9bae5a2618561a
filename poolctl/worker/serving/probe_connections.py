"""Connections of health probes: served like any other, but not counted.

They do not keep a worker from being idle, use up no `max_requests` and leave no line in an access log. A drain does
not wait for them.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Sequence
from time import monotonic
from typing import Any

import uvicorn

from .accepted_connections import AcceptedConnections
from .accepting import protocol_factory
from .access_log import unwatched
from .connection_state import Heads, PoolServerState
from .uvicorn_parts import Message, State
from .worker_routes import ANYWHERE

_KEPT_SECONDS = 86400.0  # the prober closes it


class ProbeConnections:
    """Answers probes of one server's application; `listeners` are its clients' listeners."""

    def __init__(
        self,
        config: uvicorn.Config,
        app_state: State,
        listeners: Sequence[socket.socket],
    ) -> None:
        self._config = config
        self._app_state = app_state
        self._address = _address(listeners)
        self._secure = False
        self.server_state = PoolServerState()
        self.server_state.heads = Heads(_KEPT_SECONDS)
        self._accepted = AcceptedConnections(self.server_state)

    def answer(self, question: Message, sock: socket.socket) -> None:
        """Answer on the connection as requested: `echo`, or HTTP, with `plain` without TLS even if the server uses it.

        An echo shows that the event loop runs.
        """
        if question.get("kind") == "echo":
            self._accepted.attach(EchoProtocol, sock)
            return
        self._secure = self._config.ssl is not None
        self.server_state.default_headers = self._config.encoded_headers
        if self._config.ssl is None or question.get("plain"):
            self._accepted.attach(self._make_protocol, sock)
        else:
            due = monotonic() + self.server_state.heads.seconds
            self._accepted.shake_hands(self._make_protocol(), sock, self._config.ssl, due)

    def close(self) -> None:
        """End every such connection."""
        self._accepted.cancel()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _make_protocol(self) -> asyncio.Protocol:
        made = protocol_factory(self._config, self.server_state, self._app_state)()
        made.access_log = False
        made.app = unwatched(made.app)
        made.timeout_keep_alive = _KEPT_SECONDS
        made.connection_made = functools.partial(self._made, made)
        return made  # type: ignore[no-any-return]

    def _made(self, protocol: Any, transport: asyncio.Transport) -> None:
        type(protocol).connection_made(protocol, transport)
        # The application sees an address as in a client's request, not a socket pair.
        if self._address is not None:
            protocol.server, protocol.client = self._address, (self._address[0], 0)
        protocol.scheme = "https" if self._secure else "http"


class EchoProtocol(asyncio.Protocol):
    """Echoes the received data."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


def _address(listeners: Sequence[socket.socket]) -> tuple[str, int] | None:
    for listener in listeners:
        if listener.family in (socket.AF_INET, socket.AF_INET6):
            host, port = listener.getsockname()[:2]
            return ANYWHERE.get(host, host), port
    return None
