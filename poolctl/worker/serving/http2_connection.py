"""uvicorn's HTTP/2 protocol on the parser zttp, with a drain by GOAWAY that loses no request.

After a GOAWAY a client opens no further streams and continues on another connection; streams that it opened before are
answered (RFC 9113 §6.8). So the first GOAWAY names the highest stream that can exist, and the last GOAWAY, with which
an idle connection closes, names the highest stream that existed.
"""

from __future__ import annotations

import asyncio
from functools import partial
from time import monotonic_ns
from typing import Any

import uvicorn
from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol

from ...keeper.connection_handover import unread_bytes
from .connection_state import Drainable, PoolServerState
from .http1_connection import QUIET_SECONDS, Head, wants_events
from .http1_or_2 import PREFACE
from .request_counting import send_counted
from .uvicorn_parts import State

_HEADER_BYTES = 9  # RFC 9113 §4.1
_HEADERS, _CONTINUATION = 1, 9
_END_HEADERS = 0x4
_NO_ERROR, _REFUSED_STREAM, _ENHANCE_YOUR_CALM = 0, 7, 11
_HIGHEST_STREAM = 2**31 - 1


class Http2Connection(Drainable, ZttpH2Protocol):
    """A connection of HTTP/2. It cannot move, and finishes its requests in this worker."""

    server_state: PoolServerState
    head: Head | None = None

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: PoolServerState,
        app_state: State,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        if not config.access_log:
            self.access_log = False
        self.lingering = False
        self.batch = self.server_state.batch
        self._frames = Frames()
        self._newest = 0  # the highest stream that got a response
        self._final: int | None = None  # the highest one that will get one
        self._begun_ns: dict[int, int] = {}

    @property
    def idle(self) -> bool:
        """Whether every request has its complete response, and all of it has been sent."""
        return not self.cycles and not self.conn.has_pending_send()

    def linger(self) -> None:
        """Finish current requests and close when the client is idle.

        Cannot be undone, since a GOAWAY cannot be revoked.
        """
        if self.lingering or self.transport is None or self.transport.is_closing():
            return
        self.lingering = True
        self.conn.close(_NO_ERROR, _HIGHEST_STREAM)
        self.flush()
        self._close_if_quiet()

    def end_events(self) -> None:
        """End the event streams; their clients reconnect."""
        for cycle in list(self.cycles.values()):
            if (
                cycle.response_started
                and not cycle.response_complete
                and wants_events(cycle.scope["headers"])
            ):
                cycle.disconnected = True
                cycle.stream.end_message()
                cycle.message_event.set()
        self.flush()

    def shutdown(self) -> None:
        """Close after the current responses. New requests are refused so that clients can repeat them."""
        if self.transport.is_closing():
            return
        if self.idle:
            self._close_connection()
            return
        self.lingering = self.shutdown_requested = True
        self._final = self._newest
        self.conn.close(_NO_ERROR, self._final)
        self.flush()

    def handle_request(self, event: Any) -> None:
        if self._final is not None and event.stream_id > self._final:
            self.conn.stream(event.stream_id).reset(_REFUSED_STREAM)
            return
        super().handle_request(event)
        cycle: Any = self.cycles[event.stream_id]
        if event.end_stream:
            # uvicorn 0.54 waits for an event that zttp 0.0.35 does not send for a request without a body.
            cycle.more_body = False
            cycle.message_event.set()
        if self.batch is not None or self.server_state.failed is not None:
            cycle.send = partial(send_counted, self, cycle)
        self._newest = max(self._newest, event.stream_id)
        self._head_is_over()
        if self.batch is not None:
            self._begun_ns[event.stream_id] = monotonic_ns()
            self.batch.started += 1
            if self.batch.timer is None:
                self.batch.soon()

    def log_failure(self, cycle: Any, status: int) -> None:
        """See Counts."""
        failed = self.server_state.failed
        if failed is not None:
            begun_ns = self._begun_ns.get(cycle.stream.stream_id)
            failed.log(cycle.scope, status, (monotonic_ns() - begun_ns) / 1e9 if begun_ns else None)

    def on_response_complete(self, stream_id: int) -> None:
        begun_ns = self._begun_ns.pop(stream_id, 0)
        if begun_ns and self.batch is not None:
            self.batch.latencies_ns.append(monotonic_ns() - begun_ns)
            if self.batch.timer is None:
                self.batch.soon()
        super().on_response_complete(stream_id)
        self._close_if_quiet()

    def data_received(self, data: bytes) -> None:
        heads = self.server_state.heads
        self._frames.feed(data)
        if self._frames.head_bytes > heads.most_bytes:
            self.conn.close(_ENHANCE_YOUR_CALM)
            self.flush()
            self.transport.close()
            return
        super().data_received(data)
        if self._newest:
            if self._frames.within and self.head is None:
                self.head = Head()
                heads.wait(self)
            elif not self._frames.within:
                self._head_is_over()
        self._close_if_quiet()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        due = self.server_state.handshake_is_over(self)
        super().connection_made(transport)
        self.head = Head()
        self.server_state.heads.wait(self, due)
        if self.server_state.draining:
            self.linger()
        elif self.server_state.evenness is not None:
            self.server_state.evenness.arrived(self, unread=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_over()
        super().connection_lost(exc)

    def head_is_late(self) -> None:
        """Close with GOAWAY, because a head was not complete in time."""
        self._head_is_over()
        self._close_connection()

    def _head_is_over(self) -> None:
        if self.head is not None:
            self.head = None
            self.server_state.heads.end(self)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless its receive buffer holds data of a request."""
        if self.transport.is_closing() or not self.idle:
            return
        if unread_bytes(self.transport) or self._frames.within:
            self._close_after(QUIET_SECONDS if self.lingering else self.timeout_keep_alive)
        else:
            self._close_connection()

    def _close_if_quiet(self) -> None:
        if self.lingering and self.idle and not self.transport.is_closing():
            self._close_after(QUIET_SECONDS)

    def _close_after(self, seconds: float) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _close_connection(self) -> None:
        # uvicorn calls it as soon as a response is complete, when a part of it may not have been sent.
        if self.conn.has_pending_send():
            self._close_after(QUIET_SECONDS)
        else:
            super()._close_connection()


class Frames:
    """Tracks whether the received data, including the preface, ends within a frame or a request's head."""

    def __init__(self) -> None:
        self.head_bytes = 0  # of the current or last head
        self._left = len(PREFACE)  # of the preface, then of the frame
        self._header = b""
        self._head_goes_on = False

    @property
    def within(self) -> bool:
        """Whether a frame or a request's head is incomplete."""
        return bool(self._left or self._header or self._head_goes_on)

    def feed(self, data: bytes) -> None:
        """Process the next received bytes."""
        at, end = 0, len(data)
        while at < end:
            if self._left:
                step = min(self._left, end - at)
                self._left -= step
                at += step
                continue
            step = min(_HEADER_BYTES - len(self._header), end - at)
            self._header += data[at : at + step]
            at += step
            if len(self._header) == _HEADER_BYTES:
                self._begin(self._header)
                self._header = b""

    def _begin(self, header: bytes) -> None:
        self._left = int.from_bytes(header[:3], "big")
        kind, flags = header[3], header[4]
        if kind == _HEADERS:
            self.head_bytes = 0
        if kind in (_HEADERS, _CONTINUATION):
            self.head_bytes += self._left
            self._head_goes_on = not flags & _END_HEADERS
