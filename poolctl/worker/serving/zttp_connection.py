"""Connections whose requests zttp parses, by HTTP/1.1."""

from __future__ import annotations

import sys

import zttp
from uvicorn.protocols.http.zttp_impl import ZttpProtocol

from .connection_state import PoolServerState
from .http1_connection import FIRST, Http1Connection
from .routed_connections import RoutedConnection


class ZttpConnection(Http1Connection, ZttpProtocol):
    """A connection that uses zttp. It lingers, because the parser does not report its buffered data."""

    __slots__ = ()

    server_state: PoolServerState
    can_move = False
    _ahead = 0

    @classmethod
    def routed(cls) -> type[ZttpConnection]:
        """See Http1Connection."""
        return RoutedZttpConnection

    @property
    def between_requests(self) -> bool:
        """See Http1Connection. Known only before the first byte."""
        return self.head is FIRST

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        ahead = not self.idle and not cycle.more_body
        super().data_received(data)
        if ahead and cycle is self.cycle:
            # Pipelined requests wait in the parser, which has no limit for them.
            self._ahead += len(data)
            if self._ahead > self.server_state.heads.most_bytes:
                self.flow.pause_reading()

    def handle_events(self, event: zttp.Event) -> None:
        before = self.cycle
        super().handle_events(event)
        if self.cycle is not before:
            self.request_begins(before)

    def handle_remote_protocol_error(self) -> None:
        # zttp has its own limits: 16 KiB and a hundred headers.
        if "size limit" in str(sys.exception()) and self.idle:
            self.refuse(431)
        else:
            super().handle_remote_protocol_error()

    def on_response_complete(self) -> None:
        self._ahead = 0
        self.response_ends()
        super().on_response_complete()
        self.may_leave()

    def last_chunk(self) -> bytes:
        """See Http1Connection."""
        return b"0\r\n\r\n" if self.cycle.chunked_encoding else b""


class RoutedZttpConnection(RoutedConnection, ZttpConnection):
    """A connection that uses zttp and was passed on by the gateway."""

    __slots__ = ("look",)
