"""Connections whose requests h11 parses."""

from __future__ import annotations

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .connection_state import PoolServerState
from .http1_connection import Http1Connection
from .routed_connections import RoutedConnection


class H11Connection(Http1Connection, H11Protocol):
    """A connection that uses h11, which keeps pipelined data in its buffer."""

    __slots__ = ()

    server_state: PoolServerState

    @classmethod
    def routed(cls) -> type[H11Connection]:
        """See Http1Connection."""
        return RoutedH11Connection

    @property
    def between_requests(self) -> bool:
        """See Http1Connection."""
        conn = self.conn
        waiting, _ = conn.trailing_data
        return self.idle and not waiting and conn.our_state is conn.their_state is h11.IDLE

    @property
    def body_follows(self) -> bool:
        """See Http1Connection. uvicorn does not record the end of a body that follows its response."""
        return self.conn.their_state is h11.SEND_BODY

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.request_begins(before)
        if self.server_state.moves_to is not None:
            self._move()

    def on_response_complete(self) -> None:
        self.response_ends()
        super().on_response_complete()
        self.may_leave()
        if self.head is None and (begun := self.conn.trailing_data[0]) and self.idle:
            # A part of the next head arrived before this response was complete.
            self.stop_timer()
            self.wait_for_head(begun, len(begun))

    def send_400_response(self, msg: str) -> None:
        if len(self.conn.trailing_data[0]) > self.server_state.heads.most_bytes:
            self.refuse(431)
        else:
            super().send_400_response(msg)

    def last_chunk(self) -> bytes:
        """See Http1Connection."""
        try:
            return self.conn.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError:  # the response has a length
            return b""


class RoutedH11Connection(RoutedConnection, H11Connection):
    """A connection that uses h11 and was passed on by the gateway."""

    __slots__ = ("look",)
