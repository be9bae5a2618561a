"""Connections that go on in another worker: uvicorn's HTTP protocols with a drain that the client does not see.

A connection can move when it is between two requests. It is sent through the adoption pair, unread bytes and all; the
copy here is then dropped without a word, as the connection itself lives on.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11

from .connection import Lingering

_FIRST_PAUSE_SECONDS = 0.003
_LAST_PAUSE_SECONDS = 0.05


class Moving(Lingering):
    """Mixed in before a protocol class of uvicorn's that can say whether it is between two requests."""

    _pause_seconds = 0.0
    _trying: asyncio.TimerHandle | None = None

    @property
    def between_requests(self) -> bool:
        """Every byte that was read belongs to a request that has its whole response."""
        raise NotImplementedError

    def leave(self) -> None:
        """Go on in another worker as soon as possible; linger, if there is none."""
        if self.server_state.heirs is None:
            self.linger()
        else:
            self._move()

    def shutdown(self) -> None:
        """Close, unless it can still go on elsewhere."""
        if self.server_state.heirs is None:
            super().shutdown()

    def _move_if_draining(self) -> None:
        if self.server_state.heirs is not None:
            self._move()

    def _move(self) -> None:
        transport, state = self.transport, self.server_state
        if state.heirs is None or transport is None or transport.is_closing():
            return
        protocol: Any = transport.get_protocol()
        if self not in state.connections or protocol is not self:
            return  # a WebSocket by now, or refused
        if not self.between_requests:
            return  # busy: its next response is the next occasion
        transport.pause_reading()
        if transport.get_write_buffer_size():
            self._try_again()
        elif self._give():
            transport.abort()
        else:
            # No room: whoever takes from it is busy. Serve on meanwhile.
            transport.resume_reading()
            self._try_again()

    def _give(self) -> bool:
        # One that lingered was to be closed sooner than others.
        limits = {} if self.lingering else self.time_left()
        given: bool = self.server_state.heirs.give(self.transport.get_extra_info("socket").fileno(), limits)
        return given

    def _try_again(self) -> None:
        if self._trying is not None and not self._trying.cancelled():
            self._trying.cancel()
        # The first time it is only the end of this turn that is missing: uvloop writes then.
        self._trying = self.loop.call_later(self._pause_seconds, self._move)
        self._pause_seconds = min(max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS), _LAST_PAUSE_SECONDS)


class MovingHttptools(Moving):
    """For the protocol on httptools, which reads ahead as far as the client has sent."""

    pipeline: Any
    scope: Any

    @property
    def between_requests(self) -> bool:
        """See Moving. A request that has begun has a scope, and no method there before its headers are complete."""
        if not self.idle or self.pipeline or (self.scope is not None and "method" not in self.scope):
            return False
        return self.cycle is None or not self.cycle.more_body

    def on_message_complete(self) -> None:
        super().on_message_complete()  # type: ignore[misc]
        if self.cycle is not None and self.cycle.response_complete:
            # Answered before its body had been read: uvicorn does not note the end of such a body.
            self.cycle.more_body = False
            if self.server_state.heirs is not None:
                self.loop.call_soon(self._move)

    def last_chunk(self) -> bytes:
        """See Lingering."""
        return b"0\r\n\r\n" if self.cycle.chunked_encoding else b""


class MovingH11(Moving):
    """For the protocol on h11, which keeps what follows a request in its buffer."""

    conn: Any

    @property
    def between_requests(self) -> bool:
        """See Moving."""
        conn = self.conn
        waiting, _ = conn.trailing_data
        return self.idle and not waiting and conn.our_state is conn.their_state is h11.IDLE

    @property
    def body_follows(self) -> bool:
        """See LimitedHead. uvicorn does not note the end of a body that follows its answer."""
        return self.conn.their_state is h11.SEND_BODY

    def handle_events(self) -> None:
        super().handle_events()
        self._move_if_draining()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.idle and self.head is None and (begun := self.conn.trailing_data[0]):
            # A part of the next head was sent ahead of this answer.
            self._unset_keepalive_if_required()  # type: ignore[attr-defined]
            self.wait_for_head(begun, len(begun))

    def send_400_response(self, msg: str) -> None:
        heads = self.server_state.heads
        if heads is not None and len(self.conn.trailing_data[0]) > heads.most_bytes:
            self.refuse(431)
        else:
            super().send_400_response(msg)

    def last_chunk(self) -> bytes:
        """See Lingering."""
        try:
            return self.conn.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError:  # it said how long it would be
            return b""
