"""Connections of health probes: served like any other, but not counted.

They do not keep a worker from being idle, use up no `max_requests` and leave no line in an access log. A drain does
not wait for them.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn

from .access_log import unwatched
from .adoption import AcceptedConnections
from .counting import Batch, Counted, uncounted
from .server_state import PoolServerState

_KEPT_SECONDS = 86400.0  # the prober closes it
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class ProbeConnections:
    """Answers probes of one server's application; `listeners` are those of its clients."""

    def __init__(
        self,
        config: uvicorn.Config,
        app_state: dict[str, Any],
        batch: Batch | None,
        listeners: Sequence[socket.socket],
    ) -> None:
        self._config = config
        self._app_state = app_state
        self._batch = batch
        self._address = _address(listeners)
        self._secure = False
        self.server_state = PoolServerState()
        self._accepted = AcceptedConnections(self.server_state.changed)

    def answer(self, question: dict[str, Any], sock: socket.socket) -> None:
        """Answer on the connection as requested: `echo`, or HTTP, with `plain` without TLS even if the server uses it.

        An echo shows that the event loop runs.
        """
        if question.get("kind") == "echo":
            self._accepted.attach(Echo, sock, None)
            return
        self._secure = self._config.ssl is not None
        self.server_state.default_headers = self._config.encoded_headers
        self._accepted.attach(self._make_protocol, sock, None if question.get("plain") else self._config.ssl)

    def close(self) -> None:
        """End every such connection."""
        self._accepted.cancel()
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def _make_protocol(self) -> asyncio.Protocol:
        kind: Any = self._config.http_protocol_class
        made: Any = getattr(kind, "http1", kind)(
            config=self._config, server_state=self.server_state, app_state=self._app_state
        )
        made.access_log = False
        counted = isinstance(made.app, Counted)
        made.app = unwatched(made.app.inner if counted else made.app)
        if self._batch is not None and not counted:
            made.app = uncounted(made.app, self._batch)
        made.timeout_keep_alive = _KEPT_SECONDS
        made.connection_made = functools.partial(self._made, made)
        return made  # type: ignore[no-any-return]

    def _made(self, protocol: Any, transport: asyncio.Transport) -> None:
        type(protocol).connection_made(protocol, transport)
        # The application sees an address as in a client's request, not a socket pair.
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
