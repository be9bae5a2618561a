"""Connections that use HTTP/1.1 or HTTP/2.

With TLS the negotiated protocol decides. Without it the connection is HTTP/2 if it begins with the client's preface
(RFC 9113 §3.3).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn

from ...keeper.connection_handover import give, unread_bytes
from ...keeper.wire import WireError
from .connection_state import Drainable, PoolServerState
from .http1_connection import FIRST, QUIET_SECONDS, Head
from .uvicorn_parts import State
from .worker_routes import HasContext, show_route

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Http1Or2(Drainable, asyncio.Protocol):
    """A connection whose protocol is not known yet; it then becomes one of HTTP/1.1 or HTTP/2."""

    look: HasContext | None = None  # of a connection that the gateway has passed on

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: PoolServerState,
        app_state: State,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.idle = True
        self.server_state = server_state
        self.http1: Any = config.http_protocol_class
        self.http2: Any = server_state.http2
        self._made_with = config, server_state, app_state
        self._loop = _loop or asyncio.get_event_loop()
        self._data = b""
        self._timer: asyncio.TimerHandle | None = None
        self._until: tuple[float | None, bool] | None = None
        self.head: Head | None = FIRST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        due = self.server_state.handshake_is_over(self)
        self.transport = transport
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._set_up(self.http2 if tls.selected_alpn_protocol() == "h2" else self.http1, due)
        elif self._until is not None and self._until[1]:
            self._set_up(self.http1)  # it was handed over between two requests
        else:
            self.server_state.connections.add(self)
            self.server_state.heads.wait(self, due if self._until is None else self._until[0])
            if self.server_state.draining:
                self.linger()
            elif self.server_state.evenness is not None:
                self.server_state.evenness.arrived(self, unread=self._until is None and self.look is None)

    def hand_over(self, end: socket.socket) -> bool:
        """See Drainable. Possible only before the first byte."""
        if self._data or self.transport.is_closing() or self.transport.get_protocol() is not self:
            return False
        self.transport.pause_reading()
        limits = {"until": self.server_state.heads.due[self], "asked": False}
        try:
            give(end, self.transport.get_extra_info("socket").fileno(), limits)
        except (OSError, WireError):
            self.transport.resume_reading()
            return False
        self.transport.abort()
        self.server_state.connections.discard(self)
        return True

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) >= len(PREFACE) or not PREFACE.startswith(self._data):
            self.server_state.connections.discard(self)
            self._set_up(self.http2 if self._data.startswith(PREFACE) else self.http1, self._end())

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)
        self._end()

    def head_is_late(self) -> None:
        """Close the connection: no data, or only a part of the HTTP/2 preface, has arrived in time."""
        self._end()
        self.transport.close()

    def take_over(self, until: float | None, *, asked: bool) -> None:
        """See Drainable."""
        self._until = until, asked

    def linger(self) -> None:
        """Close if no data arrives for a moment. A request that arrives is the last."""
        self._loop.call_later(QUIET_SECONDS, self._close_if_silent)

    def shutdown(self) -> None:
        """Close the connection."""
        self.transport.close()

    def _close_if_silent(self) -> None:
        if self.transport.get_protocol() is self and not self._data and not unread_bytes(self.transport):
            self.transport.close()

    def _end(self) -> float | None:
        due = self.server_state.heads.due.get(self)
        self.server_state.heads.end(self)
        return due

    def _set_up(self, kind: Any, due: float | None = None) -> None:
        protocol = kind(*self._made_with, _loop=self._loop)
        if self._until is not None and isinstance(protocol, Drainable):
            until, asked = self._until
            protocol.take_over(until, asked=asked)
        if self.look is not None and isinstance(protocol, Drainable):
            show_route(protocol, self.look)
        self.transport.set_protocol(protocol)
        limited = due is not None and isinstance(protocol, Drainable)
        if limited:
            # So it is not taken for one of which nothing has been read.
            self.server_state.heads.wait(protocol, due)
        protocol.connection_made(self.transport)
        if limited and protocol.head is not None:
            self.server_state.heads.wait(protocol, due)
        if self._data:
            protocol.data_received(self._data)
