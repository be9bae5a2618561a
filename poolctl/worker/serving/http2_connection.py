"""HTTP/2 connections, and connections whose protocol is still undecided.

With TLS the negotiated protocol decides. Without it the connection is HTTP/2 if it begins with the client's preface
(RFC 9113 §3.3).

HTTP/2 is uvicorn's protocol on the parser zttp, with a drain by GOAWAY that loses no request. After a GOAWAY a client
opens no further streams and continues on another connection; streams that it opened before are answered (RFC 9113
§6.8). So the first GOAWAY names the highest stream that can exist, and the last GOAWAY, with which an idle connection
closes, names the highest stream that existed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from functools import partial
from time import monotonic_ns
from typing import Any

import uvicorn

from ...keeper.connection_handover import unread_bytes
from ..tally import STARTED, STATUS
from .connection_state import Drainable, PoolServerState, send_away
from .http1_connection import FIRST, QUIET_SECONDS, PartialHead, wants_events
from .request_records import FAILURES, RequestCounts
from .uvicorn_parts import Message, State, ZttpH2Protocol

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_BYTES = 9  # RFC 9113 §4.1
_HEADERS, _CONTINUATION = 1, 9
_END_HEADERS = 0x4
_NO_ERROR, _REFUSED_STREAM, _ENHANCE_YOUR_CALM = 0, 7, 11
_HIGHEST_STREAM = 2**31 - 1


class Http1Or2(Drainable, asyncio.Protocol):
    """A connection whose protocol is not known yet. An HTTP/1.1 or HTTP/2 protocol object then takes its place."""

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
        self._until: tuple[float | None, bool] | None = None
        self.head: PartialHead | None = FIRST

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        due = self.server_state.record_handshake_end(self)
        self.transport = transport
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._switch_protocol(self.http2 if tls.selected_alpn_protocol() == "h2" else self.http1, due)
        elif self._until is not None and self._until[1]:
            self._switch_protocol(self.http1)  # handed over between two requests of HTTP/1.1
        else:
            self.server_state.connections.add(self)
            self.server_state.head_timeouts.start(self, due if self._until is None else self._until[0])
            if self.server_state.draining:
                self.close_when_idle()
            elif self.server_state.balancer is not None:
                self.server_state.balancer.balance_new_connection(self, unread=self._until is None)

    def hand_over(self, end: socket.socket) -> bool:
        """Move the connection to another worker through the socket `end`, unless its first byte has arrived.

        Returns whether the connection moved.
        """
        if self._data or self.transport.is_closing() or self.transport.get_protocol() is not self:
            return False
        limits = {"until": self.server_state.head_timeouts.due[self], "asked": False}
        if not send_away(self.transport, end, limits):
            return False
        self.server_state.connections.discard(self)
        return True

    def data_received(self, data: bytes) -> None:
        self._data += data
        if len(self._data) >= len(PREFACE) or not PREFACE.startswith(self._data):
            self.server_state.connections.discard(self)
            self._switch_protocol(
                self.http2 if self._data.startswith(PREFACE) else self.http1, self._pop_head_deadline()
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self.server_state.connections.discard(self)
        self._pop_head_deadline()

    def on_head_timeout(self) -> None:
        """Close the connection: no data, or only a part of the HTTP/2 preface, has arrived in time."""
        self._pop_head_deadline()
        self.transport.close()

    def limit_head_or_idle_time(self, until: float | None, *, between_requests: bool) -> None:
        self._until = until, between_requests

    def close_when_idle(self) -> None:
        """Begin to close: the connection closes after QUIET_SECONDS if no data has arrived by then."""
        self._loop.call_later(QUIET_SECONDS, self._close_if_silent)

    def shutdown(self) -> None:
        """Close the connection."""
        self.transport.close()

    def _close_if_silent(self) -> None:
        if self.transport.get_protocol() is self and not self._data and not unread_bytes(self.transport):
            self.transport.close()

    def _pop_head_deadline(self) -> float | None:
        due = self.server_state.head_timeouts.due.get(self)
        self.server_state.head_timeouts.cancel(self)
        return due

    def _switch_protocol(self, kind: Any, due: float | None = None) -> None:
        protocol = kind(*self._made_with, _loop=self._loop)
        if self._until is not None and isinstance(protocol, Drainable):
            until, asked = self._until
            protocol.limit_head_or_idle_time(until, between_requests=asked)
        self.transport.set_protocol(protocol)
        limited = due is not None and isinstance(protocol, Drainable)
        if limited:
            # So that it is not treated as a connection from which nothing has been read.
            self.server_state.head_timeouts.start(protocol, due)
        protocol.connection_made(self.transport)
        if limited and protocol.head is not None:
            self.server_state.head_timeouts.start(protocol, due)
        if self._data:
            protocol.data_received(self._data)


class Http2Connection(Drainable, ZttpH2Protocol):
    """An HTTP/2 connection. It cannot be handed over, and finishes its requests in this worker."""

    server_state: PoolServerState
    head: PartialHead | None = None

    def __init__(self, config: uvicorn.Config, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        if not config.access_log:
            self.access_log = False
        self.lingering = False
        self.counts: RequestCounts | None = self.server_state.counts
        self._frames = Http2FrameTracker()
        self._newest = 0  # the highest number of a stream with a response
        self._final: int | None = None  # while draining: the highest number of a stream that gets a response
        self._begun_ns: dict[int, int] = {}

    @property
    def idle(self) -> bool:
        """Whether every request has a complete response, and no data is waiting to be sent."""
        return not self.cycles and not self.conn.has_pending_send()

    def close_when_idle(self) -> None:
        """Finish current requests and close when the client is idle.

        Cannot be undone, since a GOAWAY cannot be revoked.
        """
        if self.lingering or self.transport is None or self.transport.is_closing():
            return
        self.lingering = True
        self.conn.close(_NO_ERROR, _HIGHEST_STREAM)
        self.flush()
        self._close_if_quiet()

    def end_event_streams(self) -> None:
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
        state, now_ns = self.server_state, monotonic_ns()
        state.report_activity()
        cycle: Any = self.cycles[event.stream_id]
        if now_ns >= state.date_ends_ns:
            state.renew_default_headers()
            cycle.default_headers = state.default_headers
        if event.end_stream:
            # uvicorn 0.54 waits for an event that zttp 0.0.35 does not send for a request without a body.
            cycle.more_body = False
            cycle.message_event.set()
        if self.counts is not None or state.failed is not None:
            cycle.send = partial(self._send_counted, cycle)
        self._newest = max(self._newest, event.stream_id)
        self._cancel_head_timeout()
        self._begun_ns[event.stream_id] = now_ns
        if self.counts is not None:
            self.counts.tally[STARTED] += 1

    def _send_counted(self, cycle: Any, message: Message) -> Awaitable[None]:
        """Pass a message to uvicorn's `send`. When the response begins, count its status, and log it if it failed."""
        if not cycle.response_started and message["type"] == "http.response.start" and not cycle.disconnected:
            del cycle.send  # break the reference cycle between the object and this method
            status, failed = message["status"], self.server_state.failed
            if 100 <= status < 600:  # uvicorn raises an error for any other status
                if self.counts is not None:
                    self.counts.tally[STATUS + status // 100] += 1
                if failed is not None and status // 100 >= FAILURES:
                    begun_ns = self._begun_ns[cycle.stream.stream_id]
                    failed.log(cycle.scope, status, (monotonic_ns() - begun_ns) / 1e9)
        return type(cycle).send(cycle, message)  # type: ignore[no-any-return]

    def on_response_complete(self, stream_id: int) -> None:
        begun_ns = self._begun_ns.pop(stream_id)
        if self.counts is not None:
            self.counts.count_response(monotonic_ns() - begun_ns)
        super().on_response_complete(stream_id)
        state = self.server_state
        if state.total_requests == state.max_requests:
            state.on_limit()
        self._close_if_quiet()

    def data_received(self, data: bytes) -> None:
        timeouts = self.server_state.head_timeouts
        self._frames.feed(data)
        if self._frames.head_bytes > timeouts.most_bytes:
            self.conn.close(_ENHANCE_YOUR_CALM)
            self.flush()
            self.transport.close()
            return
        super().data_received(data)
        if self._newest:
            if self._frames.within and self.head is None:
                self.head = PartialHead()
                timeouts.start(self)
            elif not self._frames.within:
                self._cancel_head_timeout()
        self._close_if_quiet()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        due = self.server_state.record_handshake_end(self)
        super().connection_made(transport)
        self.head = PartialHead()
        self.server_state.head_timeouts.start(self, due)
        if self.server_state.draining:
            self.close_when_idle()
        elif self.server_state.balancer is not None:
            self.server_state.balancer.balance_new_connection(self, unread=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timeout()
        super().connection_lost(exc)

    def on_head_timeout(self) -> None:
        """Close with GOAWAY, because a head was not complete in time."""
        self._cancel_head_timeout()
        self._close_connection()

    def _cancel_head_timeout(self) -> None:
        if self.head is not None:
            self.head = None
            self.server_state.head_timeouts.cancel(self)

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
        # uvicorn calls this once a response is complete, although part of it may not have been sent yet.
        if self.conn.has_pending_send():
            self._close_after(QUIET_SECONDS)
        else:
            super()._close_connection()


class Http2FrameTracker:
    """Tracks whether the received data ends within a frame (or the preface), or within a request's head."""

    def __init__(self) -> None:
        self.head_bytes = 0  # the size of the current or last head
        self._left = len(PREFACE)  # the missing bytes of the preface, later of the current frame
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
