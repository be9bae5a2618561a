"""A client's connection that speaks HTTP/2 (RFC 9113): streams, flow control both ways, and bounds for all of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import cast

from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    PingReceived,
    PriorityUpdated,
    RemoteSettingsChanged,
    RequestReceived,
    StreamReset,
    TrailersReceived,
    UnknownFrameReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from hyperframe.frame import GoAwayFrame

from ...http.message_head import BadMessage
from ...keeper.connection_handover import unread_bytes
from ..edge import Edge
from ..proxy.client_connection import QUIET_SECONDS
from ..proxy.forwarded_head import Forwarding
from ..proxy.proxied_request import ProxiedRequest, read_request
from ..proxy.request_routing import refused, route_request
from ..proxy.timer_wheel import Timer
from ..tls.listener_certificates import ServerContext
from .http2_fields import Fields, MalformedError, fields_of, request_head
from .http2_limits import COST_OF_RESET, MOST_TABLE_BYTES, ClientCredit, server_connection
from .http2_stream import NO_ERROR, PROTOCOL_ERROR, Stream

# h2 reads all frames of its input before their events are seen: more at once would hold up the loop too long.
_MOST_READ_AT_ONCE = 4 * 1024
_LARGEST_FRAME = 16 * 1024
# So much is put into frames before the system is asked whether it takes more.
_WRITTEN_AT_ONCE = 64 * 1024
_SMALL_UPDATE = 256  # bytes: a window that grows in such steps makes frames that small
_COSTLY = (PingReceived, PriorityUpdated, RemoteSettingsChanged, UnknownFrameReceived)
_LAST_STREAM = 2**31 - 1


class Http2Connection(asyncio.Protocol):
    """Streams of requests, each of which has an exchange; `waiting` are the bytes of responses that wait.

    While the client takes nothing, nothing is read from it: what it asks for could not be answered.
    """

    def __init__(self, edge: Edge, context: object) -> None:
        self.waiting = 0
        self._edge = edge
        self._context = context if isinstance(context, ServerContext) else None
        self._timer = Timer(edge.pool.timers)
        self._transport: asyncio.Transport
        self._forwarding: Forwarding
        self._h2 = server_connection(edge.settings.max_head_bytes)
        self._streams: dict[int, Stream] = {}
        self._sending: dict[int, Stream] = {}  # those with data, or their end, to be sent
        self._previous: ProxiedRequest | None = None
        self._writable = True
        self._flush_due = False
        self._closed = False
        # Later ones are refused; 0 between the announcement of the end and that.
        self._last_stream = _LAST_STREAM
        self._silent = 0  # bytes since the last event
        self._credit = ClientCredit(edge.now)

    def __repr__(self) -> str:
        return f"<Http2Connection: {len(self._streams)} streams>"

    # For the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no common class
        peer = transport.get_extra_info("peername")
        address, port = peer[:2] if isinstance(peer, tuple) else ("", 0)
        settings = self._edge.settings
        self._forwarding = Forwarding(address, "https", settings.trusted_proxies, port)
        self._edge.pool.enter(self, idle=True)
        self._timer.start(settings.head_seconds, self._expired)
        self._flush()
        if self._edge.draining:
            self.drain()

    def data_received(self, data: bytes) -> None:
        for at in range(0, len(data), _MOST_READ_AT_ONCE):
            if self._closed:
                return
            piece = data[at : at + _MOST_READ_AT_ONCE]
            try:
                events = self._h2.receive_data(piece)
            except H2Error:
                self._end()  # with the GOAWAY that h2 has written
                return
            self._silent = 0 if events else self._silent + len(piece)
            if self._silent > self._edge.settings.max_head_bytes + 2 * _LARGEST_FRAME:
                self._end(ErrorCodes.ENHANCE_YOUR_CALM)
                return
            self._take(events)
        self._flush_soon()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed = True
        self._edge.pool.leave(self)
        self._timer.close()
        self._close_streams()

    def pause_writing(self) -> None:
        self._writable = False
        if not self._closed:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable = True
        if not self._closed:
            self._transport.resume_reading()
            self._flush_soon()

    # What the client sends.

    def _take(self, events: list[Event]) -> None:
        reset = {event.stream_id for event in events if isinstance(event, StreamReset)}
        for event in events:
            if self._closed:
                return
            if isinstance(event, RequestReceived):
                if event.stream_id not in reset:
                    self._begin(event)
            elif isinstance(event, DataReceived):
                self._take_data(event)
            elif isinstance(event, TrailersReceived):
                self._take_trailers(event)
            elif isinstance(event, WindowUpdated):
                if event.delta < _SMALL_UPDATE:
                    self._pay(1)
            elif isinstance(event, StreamReset):
                stream = self._streams.get(event.stream_id)
                if stream is not None:
                    self._forget(stream)
                self._pay(COST_OF_RESET)
            elif isinstance(event, ConnectionTerminated):
                self._client_ends()
            elif isinstance(event, _COSTLY):
                self._pay(1)
                self._limit_table()
            elif isinstance(event, PingAckReceived) and self._last_stream == 0:
                self._accept_no_more()

    def _begin(self, event: RequestReceived) -> None:
        number, complete = event.stream_id, event.stream_ended is not None
        stream = Stream(self._edge, self, number)
        if 0 < self._last_stream < number:
            self.reset(stream, ErrorCodes.REFUSED_STREAM)
            return
        self._streams[number] = stream
        self._edge.pool.idle_clients.pop(self, None)
        self._extend()
        previous, self._previous = self._previous, None
        request = routed = None
        try:
            head = request_head(event.headers, complete=complete)
            request = read_request(head, self._edge.settings.max_head_bytes, previous)
            if request is None or request.end != len(head):
                raise MalformedError("no whole head")
            self._previous = request if request.canonical else None
            if self._context is not None and not self._context.is_for(request.host):
                raise BadMessage("a host for which another certificate is presented", 421)
            routed = route_request(self._edge, request, self._forwarding)
            stream.begin(self._edge, request, routed, complete=complete)
        except MalformedError:
            self._malformed(stream)
        except BadMessage as error:
            refused(self._edge, error.status, stream.http_version, request, self._forwarding, routed)
            stream.refuse(error.status)

    def _take_data(self, event: DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        size, complete = event.flow_controlled_length, event.stream_ended is not None
        if not event.data and not complete:
            self._pay(1)
        if stream is None:
            self._acknowledge(event.stream_id, size)
            return
        try:
            stream.receive(event.data, size, complete=complete)
        except MalformedError:
            self._malformed(stream)

    def _take_trailers(self, event: TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            try:
                stream.receive_trailers(event.headers)
            except MalformedError:
                self._malformed(stream)

    def _malformed(self, stream: Stream) -> None:
        self._pay(COST_OF_RESET)
        self.reset(stream, PROTOCOL_ERROR)

    def _limit_table(self) -> None:
        encoder = self._h2.encoder
        if encoder.header_table_size > MOST_TABLE_BYTES:
            encoder.header_table_size = MOST_TABLE_BYTES

    def _pay(self, cost: float) -> None:
        """End the connection of a client whose frames are too many for its requests."""
        if not self._credit.spend(cost):
            self._end(ErrorCodes.ENHANCE_YOUR_CALM)

    # For the streams.

    def send_fields(self, stream: Stream, fields: Fields, *, end: bool) -> None:
        """Send a head or the trailers."""
        self._send(partial(self._h2.send_headers, stream.number, fields, end_stream=end))

    def wants_to_send(self, stream: Stream) -> None:
        """The stream has data, or its end, to be sent."""
        if stream.number in self._streams:
            self._sending[stream.number] = stream
            self._flush_soon()

    def received(self, stream: Stream, size: int) -> None:
        """So many bytes of the body have been taken: the client may send as many more."""
        self._acknowledge(stream.number, size)

    def reset(self, stream: Stream, code: int) -> None:
        """End the stream before its response was complete."""
        self._send(partial(self._h2.reset_stream, stream.number, code))
        self._forget(stream)

    def ended(self, stream: Stream) -> None:
        """The whole response has been sent."""
        self._credit.responded()
        if not stream.complete:  # RFC 9113 §8.1: the rest of the request is not needed
            self._send(partial(self._h2.reset_stream, stream.number, NO_ERROR))
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.number, None) and not self._streams and not self._closed:
            self._edge.pool.idle_clients[self] = None
            if not self._edge.settings.keep_alive_seconds:
                self._accept_no_more()
        self._sending.pop(stream.number, None)
        stream.close()
        self._extend()
        self._flush_soon()

    def _acknowledge(self, number: int, size: int) -> None:
        self._send(partial(self._h2.acknowledge_received_data, size, number))

    def _send(self, call: Callable[[], None]) -> None:
        """The client may have ended the stream, or the connection: then there is nothing to be sent."""
        if not self._closed:
            with suppress(H2Error):
                call()
            self._flush_soon()

    def _extend(self) -> None:
        """The connection is being used."""
        if self._last_stream and not self._closed:
            self._timer.start(self._edge.settings.idle_seconds, self._expired)

    # Sending.

    def _flush_soon(self) -> None:
        """Once for all that happens in this turn of the loop."""
        if not self._flush_due and not self._closed:
            self._flush_due = True
            self._edge.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._closed:
            return
        self._write()
        while self._writable and self._sending and not self._closed:
            written = 0
            for stream in list(self._sending.values()):
                written += self._send_waiting(stream)
                if written >= _WRITTEN_AT_ONCE:
                    break
            self._write()
            if not written:
                break
        if not self._streams and 0 < self._last_stream < _LAST_STREAM:
            self._end()

    def _write(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._transport.write(data)

    def _send_waiting(self, stream: Stream) -> int:
        """Send one frame of the stream, as far as the client's windows allow; how many bytes."""
        number = stream.number
        try:
            size = max(0, min(self._h2.local_flow_control_window(number), _LARGEST_FRAME, stream.size))
            if stream.size and not size:
                return 0
            last = stream.finished and size == stream.size
            if size:
                self._h2.send_data(number, stream.take_data(size), last and not stream.trailers)
            elif last and not stream.trailers:
                self._h2.end_stream(number)
            if last and stream.trailers:
                self._h2.send_headers(number, fields_of(stream.trailers), end_stream=True)
        except H2Error:
            self._forget(stream)
            return 0
        waits = self._sending.pop(number, None)
        if waits is not None and stream.size:
            self._sending[number] = stream  # after the others
        self._extend()
        if last:
            self.ended(stream)
        return size + 9

    # Ends.

    def drain(self) -> None:
        """Announce the end. Requests that cross the announcement are still answered (RFC 9113 §6.8)."""
        if self._last_stream == _LAST_STREAM:
            self._last_stream = 0
            with suppress(H2Error):
                self._h2.ping(b"draining")  # its answer comes behind them
            self._go_away(_LAST_STREAM)
            self._timer.start(QUIET_SECONDS, self._accept_no_more)
            self._flush_soon()

    def end_now(self) -> None:
        """End, whatever is under way."""
        self._transport.abort()

    def close_idle(self) -> bool:
        """Close the connection, which has no streams, with a GOAWAY, unless bytes wait to be read or to be sent."""
        transport = self._transport
        if self._flush_due or transport.get_write_buffer_size() or unread_bytes(transport):
            return False
        self._end(NO_ERROR)
        transport.abort()  # TLS would wait for the client
        return True

    def _accept_no_more(self) -> None:
        self._last_stream = max(1, self._h2.highest_inbound_stream_id)
        self._go_away(self._last_stream)
        self._extend()
        self._flush_soon()

    def _client_ends(self) -> None:
        """The client makes no more requests. It still waits for its responses: h2 would not let them be sent."""
        if self._h2.state_machine.state is ConnectionState.CLOSED:
            self._h2.state_machine.state = ConnectionState.SERVER_OPEN
        self._last_stream = max(1, self._h2.highest_inbound_stream_id)

    def _go_away(self, last_stream: int, code: int = NO_ERROR) -> None:
        """h2's own ends the connection at once."""
        self._write()
        self._transport.write(GoAwayFrame(0, last_stream_id=last_stream, error_code=code).serialize())

    def _expired(self) -> None:
        if any(stream.active for stream in self._streams.values()):  # these have deadlines of their own
            self._timer.start(self._edge.settings.idle_seconds, self._expired)
        elif self._writable:
            self._end(NO_ERROR)
        else:
            self._transport.abort()

    def _end(self, code: int | None = None) -> None:
        """Close the connection after what is to be sent, with a GOAWAY if there is a code for it."""
        if self._closed:
            return
        if code is not None:
            self._go_away(self._h2.highest_inbound_stream_id, code)
        else:
            self._write()
        self._closed = True
        self._close_streams()
        # A slow client may still be taking its last response.
        self._timer.start(QUIET_SECONDS if code else self._edge.settings.idle_seconds, self._transport.abort)
        self._transport.close()

    def _close_streams(self) -> None:
        streams, self._streams = self._streams, {}
        self._sending.clear()
        for stream in streams.values():
            stream.close()
