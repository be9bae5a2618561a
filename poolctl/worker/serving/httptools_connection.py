"""Connections whose requests httptools parses."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .connection_state import PoolServerState
from .http1_connection import Http1Connection
from .routed_connections import RoutedConnection


class HttptoolsConnection(Http1Connection, HttpToolsProtocol):
    """A connection that uses httptools, which parses all received data at once.

    uvicorn sets a timer after each response, and cancels it at the next request. Here one timer runs: when it fires,
    the connection closes if it has been quiet since its last response.
    """

    __slots__ = ("_closes_at", "_fires_at")

    server_state: PoolServerState
    timeout_keep_alive_task: asyncio.TimerHandle | None
    _closes_at: float

    @classmethod
    def routed(cls) -> type[HttptoolsConnection]:
        """See Http1Connection."""
        return RoutedHttptoolsConnection

    @property
    def between_requests(self) -> bool:
        """See Http1Connection. A scope without a method belongs to a request with incomplete headers."""
        if not self.idle or self.pipeline or (self.scope is not None and "method" not in self.scope):
            return False
        return self.cycle is None or not self.cycle.more_body

    def on_headers_complete(self) -> None:
        before = self.cycle
        HttpToolsProtocol.on_headers_complete(self)
        if self.cycle is not before:  # not an upgrade, for which uvicorn still needs the list
            # httptools adds trailers to it: the application's holds the fields of the head only (RFC 9110 §6.5.1).
            self.headers = []
            self.request_begins(before)

    def on_message_complete(self) -> None:
        HttpToolsProtocol.on_message_complete(self)
        if self.cycle is not None and self.cycle.response_complete:
            # The response came before the end of the body, which uvicorn then does not record.
            self.cycle.more_body = False
            if self.server_state.moves_to is not None:
                self.loop.call_soon(self._move)

    def last_chunk(self) -> bytes:
        """See Http1Connection."""
        return b"0\r\n\r\n" if self.cycle.chunked_encoding else b""

    def on_response_complete(self) -> None:
        self.response_ends()
        if self.pipeline:
            super().on_response_complete()
        else:  # as in uvicorn, without a new timer
            self.server_state.total_requests += 1
            if not self.transport.is_closing():
                self.flow.resume_reading()
                self._closes_at = self.loop.time() + self.timeout_keep_alive
                if self.timeout_keep_alive_task is None:
                    self._set_timer()
        self.may_leave()

    def _unset_keepalive_if_required(self) -> None:
        """Leave the timer running. uvicorn calls this whenever data arrives."""

    @property
    def closes_at(self) -> float:
        """See Http1Connection."""
        return self._closes_at

    def close_when_quiet(self, seconds: float) -> None:
        """See Http1Connection."""
        self._closes_at = self.loop.time() + seconds
        if self.timeout_keep_alive_task is None or self._closes_at < self._fires_at:
            self.stop_timer()
            self._set_timer()

    def timeout_keep_alive_handler(self) -> None:
        """See Http1Connection. A request in progress sets a new timer when it is complete."""
        self.timeout_keep_alive_task = None
        if not self.idle or self not in self.connections:  # or a WebSocket
            return
        if self.loop.time() < self._closes_at:
            self._set_timer()
        else:
            super().timeout_keep_alive_handler()

    def _set_timer(self) -> None:
        self._fires_at = self._closes_at
        self.timeout_keep_alive_task = self.loop.call_at(self._closes_at, self.timeout_keep_alive_handler)


class RoutedHttptoolsConnection(RoutedConnection, HttptoolsConnection):
    """A connection that uses httptools and was passed on by the gateway."""

    __slots__ = ("look",)
