"""Connections that can be drained: uvicorn's HTTP protocols with a drain that loses no request.

A keep-alive connection that is closed while the client's next request is on its way loses that request (measured:
1–2 % of them). So a connection that cannot move to another worker lingers: each response says `Connection: close`, and
an idle one is closed only after a quiet period with nothing in its receive buffer (RFC 9112 §9.6).
"""

from __future__ import annotations

import asyncio
import sys
from time import monotonic_ns
from typing import Any

from ..tally import MALFORMED
from .counting import MANY, Count
from .request_heads import FIRST, LimitedHead

QUIET_SECONDS = 2.0
CLOSE = (b"connection", b"close")


class Closing:
    """Mixed in before an unknown protocol class, of which only uvicorn's common interface is used."""

    transport: asyncio.Transport
    head = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.server_state: Any = kwargs["server_state"]
        if kwargs["config"].ssl is not None:
            self.server_state.expect(self)

    def leave(self) -> None:
        """Leave this worker."""
        self.linger()

    def linger(self) -> None:
        """Finish the response in progress, and close."""
        self.shutdown()  # type: ignore[attr-defined]

    def stay(self) -> None:
        """Do nothing: a connection that was asked to close still closes."""

    def end_events(self) -> None:
        """Do nothing: its responses are unknown."""

    def take_over(self, until: float | None, *, asked: bool) -> None:
        """Do nothing: it has only its own limits."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.server_state.handshake_is_over(self)
        super().connection_made(transport)  # type: ignore[misc]
        if self.server_state.draining:
            self.linger()


class Lingering(LimitedHead):
    """Mixed in before one of uvicorn's HTTP protocol classes."""

    lingering = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        batch = self.server_state.batch
        self.count = None if batch is None else Count(batch)
        if kwargs["config"].ssl is not None:
            self.server_state.expect(self)

    def leave(self) -> None:
        """Leave this worker in the best way that is possible."""
        self.linger()

    def linger(self) -> None:
        """Start to leave: a response in progress is the last one, an idle connection closes once it is quiet."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.idle:
            self.lingering = True
            self.close_when_quiet(QUIET_SECONDS)
        elif not self.cycle.response_started:
            self._answer_and_close()

    def stay(self) -> None:
        """Undo `linger`, unless the last response has been announced already."""
        if self.transport is not None and not self.transport.is_closing() and self.idle:
            self.lingering = False
            self.close_when_quiet(self.timeout_keep_alive)

    def end_events(self) -> None:
        """End a stream of events between two of them; its client connects again.

        For the application the client has disconnected.
        """
        cycle = self.cycle
        if self.idle or not cycle.response_started or not wants_events(cycle.scope):
            return
        cycle.disconnected = True
        cycle.message_event.set()
        self.transport.write(self.last_chunk())
        self.transport.close()

    def last_chunk(self) -> bytes:
        """The bytes that end the response in progress if it has no length of its own."""
        return b""

    def shutdown(self) -> None:
        """Close an idle connection; a response in progress is the last one, and says so."""
        super().shutdown()
        if not self.idle:
            self._answer_and_close()

    # A request that arrives while the worker drains gets a response, and is the last one of its connection.

    def on_headers_complete(self) -> None:
        self.headers_complete()
        count = self.count
        if count is not None and count.newest is not self.cycle:
            newest, count.newest = count.newest, self.cycle
            batch = count.batch
            batch.started += 1
            if batch.timer is None:
                batch.soon()
            if newest is None or newest.response_complete:
                count.begun_ns = monotonic_ns() if batch.started < MANY or not batch.started & 3 else 0
        self._last_request_if_draining()

    def handle_events(self, *events: Any) -> None:
        super().handle_events(*events)  # type: ignore[misc]
        count = self.count
        if count is not None and count.newest is not self.cycle:
            count.newest = self.cycle
            count.batch.started += 1
            if count.batch.timer is None:
                count.batch.soon()
            count.begun_ns = monotonic_ns()  # the previous request has its response
        self._last_request_if_draining()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        state = self.server_state
        due = state.handshake_is_over(self) if state.expected else None
        self.made(transport)
        if self.head is FIRST:
            self.await_first_head(due)
        if state.draining:
            self.close_when_quiet(QUIET_SECONDS)
        if state.moves_to is not None:
            self.leave()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.head is not None:
            self.head_is_over()
        if self.count is not None:
            self.count.lost(self)
        self.lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.count is not None:
            self.count.batch.tally[MALFORMED] += 1
        super().send_400_response(msg)

    def on_response_complete(self) -> None:
        count = self.count
        if count is not None:
            batch, begun_ns = count.batch, count.begun_ns
            batch.complete += 1
            if begun_ns:
                # A pipelined request begins now.
                count.begun_ns = now_ns = monotonic_ns()
                count.took(now_ns - begun_ns)
            if batch.timer is None:
                batch.soon()
        self.response_complete()
        state = self.server_state
        # The response did not say that it is the last one: the client may send another request.
        if state.draining and self.idle and not self.transport.is_closing():
            self.close_when_quiet(QUIET_SECONDS)
        if state.moves_to is not None:
            # Before anything else is read: a client that never pauses would keep this worker alive for ever.
            self.leave()

    def _last_request_if_draining(self) -> None:
        if self.server_state.draining and not self.idle:
            self._answer_and_close()

    def _answer_and_close(self) -> None:
        cycle = self.cycle
        cycle.keep_alive = False
        # With httptools uvicorn adds the header itself, with h11 it only closes.
        if not cycle.response_started and CLOSE not in cycle.default_headers:
            cycle.default_headers = [*cycle.default_headers, CLOSE]


class LingeringZttp(Lingering):
    """For the protocol on zttp: it lingers, because the parser does not report its buffered data."""

    flow: Any
    _ahead = 0

    def data_received(self, data: bytes) -> None:
        cycle = self.cycle
        ahead = not self.idle and not cycle.more_body
        super().data_received(data)
        if ahead and cycle is self.cycle:
            # Pipelined requests wait in the parser, which has no limit for them.
            self._ahead += len(data)
            if self._ahead > self.server_state.heads.most_bytes:
                self.flow.pause_reading()

    def handle_remote_protocol_error(self) -> None:
        # zttp has its own limits: 16 KiB and a hundred headers.
        if "size limit" in str(sys.exception()) and self.idle:
            self.refuse(431)
        else:
            super().handle_remote_protocol_error()  # type: ignore[misc]

    def on_response_complete(self) -> None:
        self._ahead = 0
        super().on_response_complete()

    def last_chunk(self) -> bytes:
        """See Lingering."""
        return b"0\r\n\r\n" if self.cycle.chunked_encoding else b""


def wants_events(scope: Any) -> bool:
    """Whether the client of this request reads a stream of events."""
    # As every EventSource sends (HTML, "Server-sent events"). Any other stream, ended so, could be taken for complete.
    return any(name == b"accept" and b"text/event-stream" in value for name, value in scope["headers"])
