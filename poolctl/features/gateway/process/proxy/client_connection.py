"""An HTTP/1.1 client connection: its requests are forwarded to backends one after another."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from functools import partial
from socket import SO_LINGER, SOL_SOCKET
from time import monotonic
from typing import cast

from poolctl.http.messages import (
    CHUNKED,
    MOST_CHUNKS_AT_ONCE,
    BadMessage,
    Buffer,
    ChunkedBodyReader,
    RequestHead,
    chunk,
)
from poolctl.keeper.connection_handover import Connection, Routed, unread_bytes
from poolctl.routing.context import context_line

from ..backends.limiter import RequestLimiter
from ..backends.route_backends import (
    ANSWERED,
    CANCELLED,
    FAILED,
    READY,
    UNUSED,
    Lease,
    NoBackend,
    RequestOutcome,
)
from ..counts import CONNECT, PROTOCOL, REFUSED, RESET, TIMEOUT
from ..edge import GatewayState
from ..tls import CertificateContext
from .backend_connection import BackendConnection, Timer, write_eof_or_close
from .gateway_access_log import CLIENT_LEFT, AccessLogEntry
from .own_answers import announce_request_to_parts, answer_of_route, wake_and_answer
from .request_head import (
    ForwardingContext,
    RoutedRequest,
    context_lines,
    read_request,
    response_fields,
    route_or_refuse_request,
)
from .response_head import Response, whole_response

# A close frame of a server with status 1012, service restart.
_CLOSE_1012 = b"\x88\x02" + (1012).to_bytes(2, "big")
_LONGER, _LONGEST = 126, 127
# Maximum number of frames tracked in one read. If a server sends more, of less than some hundred bytes each, its
# frames are no longer tracked: examining each of them would delay other connections.
MOST_FRAMES_AT_ONCE = 1024
_MASKED = 0x80
# Maximum bytes of a request's body kept until the response begins, for a retry or until there is a backend.
MOST_KEPT_BYTES = 64 * 1024
_TRY_ANOTHER = (502, 503, 504)
# After this time an idle connection without TLS leaves the proxy, and waits with the connections that have sent nothing
# yet: that takes a sixth of the memory.
IDLE_SECONDS = 5.0
# After this number of consecutive passable requests the next request is passed. A connection whose requests are passed
# and proxied in turn stays: going to a worker and back costs as much as proxying some requests.
MOST_PASSABLE = 3
# Maximum bytes read ahead while a request is in progress.
MOST_READ_AHEAD = 64 * 1024
# Maximum number of requests, and of bytes before the last of them, that are begun in one turn of the loop.
MOST_REQUESTS_AT_ONCE = 4
MOST_BYTES_AT_ONCE = 8 * 1024
# After a response to a request that was not read to its end: the maximum time and bytes for reading and dropping its
# rest, because closing with unread bytes would reset the connection before the client has read the response (RFC 9112
# §9.6).
LINGER_SECONDS = 2.0
MOST_LINGERED = 1024 * 1024
# Maximum time without progress in sending before a connection that is to be closed is cut off.
SENDING_SECONDS = 60.0
# While draining: time without a byte after which an idle connection is closed, and time between a WebSocket's close
# frame and its end.
QUIET_SECONDS = 2.0
CLOSE_FRAME_SECONDS = 2.0
_LEAST_SECONDS = 0.1
_RESET = struct.pack("ii", 1, 0)


Peer = tuple[str, int]  # address and port


class RequestBodyDecoder:
    """The body of a request: `length` bytes, or chunks if CHUNKED. More than `most` bytes (0: no limit) get 413.

    `feed` returns the bytes to forward. When `done` is true, the body is complete and `rest` has the bytes after it.
    While `done` is false, pass `rest` to the next call: one call processes only a limited number of chunks.
    """

    def __init__(self, length: int, most: int) -> None:
        self._chunks = ChunkedBodyReader() if length == CHUNKED else None
        self._left = length
        self._most = most
        self.done = False
        self.rest = b""
        self._check(length)

    def extract_body_bytes(self, data: bytes) -> Buffer:
        """Process received bytes; returns the bytes to pass on. Raises BadMessage."""
        chunks = self._chunks
        if chunks is None:
            if len(data) > self._left:
                data, self.rest = data[: self._left], data[self._left :]
            self._left -= len(data)
            self.done = not self._left
            return data
        passed = chunks.feed(data, most_chunks=MOST_CHUNKS_AT_ONCE)
        self._check(chunks.size)
        self.done, self.rest = chunks.done, chunks.rest
        return passed

    def _check(self, size: int) -> None:
        if self._most and size > self._most:
            raise BadMessage("the body is too large", 413)


class WebSocketFrameTracker:
    """Tracks a server's WebSocket frames. A frame may be inserted where `at_boundary` is true.

    `ending`: a close frame replaces the next frame. `lost`: there were too many frames to track.
    """

    def __init__(self) -> None:
        self.ending = self.lost = False
        self._left = 0  # of the present frame's payload
        self._header = b""

    @property
    def at_boundary(self) -> bool:
        """Whether the last frame is complete and the next has not begun."""
        return not (self._left or self._header or self.lost)

    def with_close_frame_if_ending(self, data: Buffer) -> Buffer:
        """Return what to send for `data`: all, or after `end` the rest of an incomplete frame and a close frame."""
        if not self.ending:
            self.track_frames_and_count_bytes(data)
            return data
        if self.at_boundary:
            return b""
        rest = bytes(data[: self.track_frames_and_count_bytes(data, only_first=True)])
        return rest + _CLOSE_1012 if self.at_boundary else rest

    def end_with_close_frame(self) -> bytes:
        """End the WebSocket with status 1012 as soon as possible; returns the bytes to send now."""
        self.ending = True
        return _CLOSE_1012 if self.at_boundary else b""

    def track_frames_and_count_bytes(self, data: Buffer, *, only_first: bool = False) -> int:
        """Follow the frames in `data`; return how many bytes were read. `only_first`: stop at the first boundary."""
        if self.lost:
            return len(data)
        if self._left > len(data):
            self._left -= len(data)
            return len(data)
        at, size, frames = 0, len(data), 0
        while at < size:
            if only_first and self.at_boundary:
                return at
            if self._left:
                taken = min(self._left, size - at)
                self._left -= taken
                at += taken
                continue
            frames += 1
            if frames > MOST_FRAMES_AT_ONCE:
                self.lost = True
                return size
            header = self._header + bytes(data[at : at + 14 - len(self._header)])
            lengths = _frame_lengths(header)
            if lengths is None:
                self._header = header
                return size
            length, self._left = lengths
            at += length - len(self._header)
            self._header = b""
        return at


def _frame_lengths(header: bytes) -> tuple[int, int] | None:
    """The lengths of a WebSocket frame's header and of its payload; None if the header is incomplete."""
    if len(header) < 2:
        return None
    short = header[1] & ~_MASKED
    extended = 2 if short == _LONGER else 8 if short == _LONGEST else 0
    length = 2 + extended + (4 if header[1] & _MASKED else 0)
    if len(header) < length:
        return None
    return length, int.from_bytes(header[2 : 2 + extended], "big") if extended else short


class Exchange:
    """Forwards one request to a backend. Call `start`, then `send_body` for the rest of the request's body.

    `timer` belongs to the client connection, and is used until the exchange ends.
    """

    def __init__(
        self,
        edge: GatewayState,
        side: ClientConnection,
        request: RequestHead,
        routed: RoutedRequest,
        timer: Timer,
    ) -> None:
        self._edge, self._client_side, self._request, self._timer = edge, side, request, timer
        route, self._head, _ = routed
        self._route = route
        self._client = side.forwarding.client(request)
        self._backends, self._counts = edge.backends.of(route), edge.counts.route(route.alias)
        self._log_entry: AccessLogEntry | None = None
        if edge.access_log is not None:
            sender = side.forwarding.client_for_log(request)
            self._log_entry = AccessLogEntry(edge.access_log, request, sender)
            self._head = self._log_entry.head_with_id(self._head)
        self._cookie = request.cookie(route.sticky_cookie) if route.sticky_cookie else ""
        self._of_client: RequestLimiter | None = None  # the client's, while it counts this request
        self._connection: BackendConnection | None = None
        self._lease: Lease | None = None
        self._task: asyncio.Task[None] | None = None  # waits for a place, or connects
        self._kept: bytes | None = b""  # the body received so far; None if it is too long to keep
        self._tried: list[str] = []
        self._retries = route.retries
        self._status = 0
        self._received = self._sent = 0  # bytes of the bodies
        self._paused = False  # the client accepts no bytes of the response for now
        self._stuck = False  # the backend accepts no bytes of the request for now
        self.begun = False  # whether the response has begun
        self.complete = False  # whether the request was received completely
        self.tunnel = self._half_closed = False  # bytes of another protocol are copied
        self._started = self._assigned_at = monotonic()
        self._ends = self._started + route.timeouts.total if route.timeouts.total else 0.0

    def __repr__(self) -> str:
        return f"<Exchange {self._request!r} on {self._route.alias}>"

    # The request.

    def start(self, body: bytes, *, complete: bool) -> None:
        """Send the request to a backend, with the part of its body that has arrived."""
        self._kept = body
        self._received = len(body)
        self.complete = complete
        self._counts.count_start()
        response = answer_of_route(self._route, self._request, self._client)
        if response is not None:
            self._answer(response)
            return
        clients = self._backends.clients
        limiter = None if clients is None else clients.limiter(self._client)
        if limiter is not None:
            seconds = limiter.seconds_until_admission(self._started)
            if seconds:
                self._give_up(CANCELLED, 429, REFUSED, seconds)
                return
            limiter.count_admission(self._started)
            self._of_client = limiter
        announce_request_to_parts(self._edge, self._route, self._request.method, self._request.path)
        self._acquire_and_send()

    def send_body(self, data: Buffer, *, complete: bool) -> None:
        """Send more of the body, framed as the head announces."""
        self.complete = complete
        self._received += len(data)
        connection = self._connection
        if self._kept is not None:
            fits = len(self._kept) + len(data) <= MOST_KEPT_BYTES or not connection
            self._kept = self._kept + data if fits else None
        if connection is not None:
            connection.send(data)
            timeouts = self._route.timeouts
            self._set_time_limit(timeouts.idle if self.begun or not complete else timeouts.head)
        elif self._kept is not None and len(self._kept) > MOST_KEPT_BYTES:
            self._client_side.set_accepts_body(False)

    def client_left(self) -> None:
        """Handle the loss of the client: no more bytes are sent to it."""
        self._end(CANCELLED)

    def forward_client_eof(self) -> None:
        """Handle that the client has closed its side of the tunnel."""
        if self._connection is not None:
            self._connection.send_eof()
            self._on_side_closed()

    def set_client_writable(self, writable: bool) -> None:
        """Handle that the client stops accepting bytes, or accepts them again."""
        self._paused = not writable
        if self._connection is not None and self.begun:
            if writable:
                self._connection.resume_reading()
                self._set_time_limit(self._route.timeouts.idle)
            else:
                self._connection.pause_reading()

    def refuse(self, status: int) -> None:
        """End with this error status, because the client's request is invalid. A response that has begun is cut off."""
        self._give_up(CANCELLED, status)

    # A backend.

    def _acquire_and_send(self) -> None:
        lease = self._backends.acquire(self._client, self._cookie, self._tried)
        if isinstance(lease, NoBackend):
            if lease.may_wait:
                self._set_time_limit(0)
                self._task = self._edge.pool.start_task(self._wait_for_lease_and_send())
            else:
                self._refused(lease)
            return
        self._send_or_wake_and_answer(lease)

    async def _wait_for_lease_and_send(self) -> None:
        try:
            lease = await self._backends.wait(self._client, self._cookie, self._tried)
        except NoBackend as refused:
            self._task = None
            self._refused(refused)
            return
        self._task = None
        self._assigned_at = monotonic()
        self._send_or_wake_and_answer(lease)

    def _send_or_wake_and_answer(self, lease: Lease) -> None:
        if lease.backend.rank != READY:
            response = wake_and_answer(self._edge, lease.backend, self._route, self._request)
            if response is not None:
                lease.release(UNUSED)
                self._answer(response)
                return
        self._lease = lease
        self._send()

    def _answer(self, response: Response) -> None:
        self._status, self._sent = response.status, len(response.first)
        self._start_response(response)
        self.response_ends(b"")

    def _refused(self, refused: NoBackend) -> None:
        self._give_up(CANCELLED, refused.status, REFUSED, refused.retry_after_seconds)

    def _send(self, *, fresh: bool = False) -> None:
        assert self._lease is not None
        backend, certain = self._lease.backend, not self._request.idempotent
        connection = None if fresh else self._edge.pool.take(backend.endpoint, certain=certain)
        if connection is not None:
            self._send_on_connection(connection)
        else:
            waits_for_machine = backend.key in self._edge.machines
            self._set_time_limit(0 if waits_for_machine else self._route.timeouts.connect)
            self._task = self._edge.pool.start_task(self._connect_and_send())

    async def _connect_and_send(self) -> None:
        assert self._lease is not None
        try:
            connection = await self._edge.start_machine_and_connect(
                self._lease.backend, self._route.timeouts.connect
            )
        except NoBackend as refused:
            self._task = None
            self._refused(refused)
        except (OSError, ValueError):  # ValueError: a host name that cannot be one
            self._task = None
            self._retry_or_give_up(CONNECT, 502, sent=False)
        else:
            self._task = None
            connection.count_as_open_for(self._lease.backend)
            self._send_on_connection(connection)

    def _send_on_connection(self, connection: BackendConnection) -> None:
        kept, request = self._kept, self._request
        assert kept is not None
        self._connection = connection
        timeouts = self._route.timeouts
        self._set_time_limit(timeouts.head if self.complete else timeouts.idle)
        head = self._head
        assert self._lease is not None
        backend = self._lease.backend
        if self._route.context_headers:
            head = head[:-2] + context_lines(self._route, backend) + b"\r\n"
        if backend.context_key:
            head = head[:-2] + context_line(self._route.alias, backend.context_key) + b"\r\n"
        connection.request(
            self,
            head + kept if kept else head,
            head_only=request.method == b"HEAD",
            decode=not request.http_1_1,
            may_switch=bool(request.upgrade),
        )
        if len(kept) > MOST_KEPT_BYTES:
            self._kept = None
            self._client_side.set_accepts_body(True)

    # Its response.

    def interim(self, response: Response) -> None:
        if self._request.http_1_1:  # HTTP/1.0 has no interim responses
            self._client_side.interim(response)

    def switched(self, response: Response, data: bytes) -> None:
        self.begun = self.tunnel = True
        self._status, self._kept, self._sent = 101, None, len(data)
        assert self._lease is not None
        self._lease.record_long_lived_accepted()
        self._set_time_limit(self._route.timeouts.idle)
        self._client_side.switch_protocols(response, data)

    def response_begins(self, response: Response, *, done: bool) -> None:
        assert self._lease is not None
        status = self._status = response.status
        if self._retries and status in _TRY_ANOTHER and self._retry_for_status():
            return
        if self._lease.cookie:
            name = self._route.sticky_cookie
            response.add(
                f"Set-Cookie: {name}={self._lease.cookie}; Path=/; HttpOnly; SameSite=Lax\r\n".encode()
            )
        self.begun = True
        self._kept = None
        if not done:
            self._set_time_limit(self._route.timeouts.idle)
            self._lease.record_long_lived_accepted(status)
        self._sent = len(response.first)
        self._start_response(response)

    def _start_response(self, response: Response) -> None:
        if self._route.response_headers:
            lines, replaced = response_fields(self._route.response_headers)
            response.replace(replaced, lines)
        self._client_side.start_response(response)

    def response_data(self, data: Buffer) -> None:
        self._set_time_limit(self._route.timeouts.idle)
        self._sent += len(data)
        self._client_side.send_data(data)

    def response_ends(self, trailers: bytes) -> None:
        self._end(ANSWERED)
        self._client_side.finish(trailers)

    def backend_eof(self) -> None:
        self._client_side.send_eof()
        self._on_side_closed()

    def _on_side_closed(self) -> None:
        """Handle that one side of the tunnel has closed; the exchange ends when both have."""
        if not self._half_closed:
            self._half_closed = True
            return
        self._end(ANSWERED)
        self._client_side.finish(b"")

    def backend_writable(self, writable: bool) -> None:
        self._stuck = not writable
        self._client_side.set_accepts_body(writable)

    def backend_lost(self, error: Exception | None) -> None:
        connection = self._connection
        assert connection is not None
        if self.tunnel:
            self._end(ANSWERED)
            self._client_side.finish(b"")
            return
        # An idle connection that the backend was closing: the request has probably not been seen.
        stale = connection.requests > 1 and not connection.answered
        if stale and self._request.idempotent and self._kept is not None:
            self._connection = None
            self._send(fresh=True)
            return
        self._retry_or_give_up(PROTOCOL if isinstance(error, BadMessage) else RESET, 502, sent=True)

    def _retry_for_status(self) -> bool:
        """Send the request to another backend because of the response's status; returns False if that is impossible."""
        lease = self._lease
        assert lease is not None
        if self._kept is None or not self._request.idempotent:
            return False
        tried = [*self._tried, lease.backend.key]
        other = self._backends.acquire(self._client, self._cookie, tried)
        if isinstance(other, NoBackend):
            return False
        now = monotonic()
        lease.release(ANSWERED, now - self._assigned_at, self._status)
        self._release_connection(keep=False)
        self._tried, self._lease, self._assigned_at = tried, None, now
        self._retries -= 1
        self._send_or_wake_and_answer(other)
        return True

    # Its end.

    def _retry_or_give_up(self, error: str, status: int, *, sent: bool) -> None:
        """Handle a failure of the backend: try another if the request may be sent again, or else answer with `status`.

        `error` is one of ERRORS, for the counts. `sent`: the backend may have received the request.
        """
        lease, self._lease = self._lease, None
        assert lease is not None
        self._release_connection(keep=False)
        now = monotonic()
        lease.release(FAILED, now - self._assigned_at, 0, error)
        self._assigned_at = now
        may_repeat = self._kept is not None and (not sent or self._request.idempotent)
        if self._retries and may_repeat and not self.begun:
            self._retries -= 1
            self._tried.append(lease.backend.key)
            self._acquire_and_send()
            return
        if not sent and self._kept is not None:
            # The request has had no effect, so another backend may get it, even if the route allows no retries.
            self._tried.append(lease.backend.key)
            other = self._backends.acquire(self._client, self._cookie, self._tried)
            if not isinstance(other, NoBackend):
                self._send_or_wake_and_answer(other)
                return
        self._give_up(FAILED, status, error)

    def _handle_timeout(self) -> None:
        if self._connection is None:
            if self._task is not None:
                self._task.cancel()
                self._task = None
            if self._lease is not None:
                self._retry_or_give_up(TIMEOUT, 504, sent=False)
            else:
                self._give_up(CANCELLED, 504, TIMEOUT)
        elif self._paused if self.begun else not self.complete and not self._stuck:
            self.refuse(408)  # the client does not continue
        else:
            self._retry_or_give_up(TIMEOUT, 504, sent=True)

    def _give_up(
        self, outcome: RequestOutcome, status: int, error: str = "", retry_after_seconds: float = 0
    ) -> None:
        """End with this error status. A response that has begun is cut off."""
        if self.begun:
            self._end(outcome, error)
            self._client_side.cut_off()
        else:
            self._status = status
            self._end(outcome, error)
            fields, _ = response_fields(self._route.response_headers)
            self._client_side.send_refusal(status, retry_after_seconds, fields)

    def _end(self, outcome: RequestOutcome, error: str = "") -> None:
        self._timer.stop()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        now = monotonic()
        if self._of_client is not None:
            self._of_client.leave()
            self._of_client = None
        if self._connection is not None:
            self._release_connection(keep=outcome is ANSWERED and self.complete)
        if self._lease is not None:
            traffic = self._lease.backend.counts
            traffic.bytes_in += self._received
            traffic.bytes_out += self._sent
            self._lease.release(outcome, now - self._assigned_at, self._status)
            self._lease = None
        self._counts.bytes_in += self._received
        self._counts.bytes_out += self._sent
        if error:
            self._counts.count_failure(error)
        elif outcome is ANSWERED:
            self._counts.count_response(self._status, now - self._started)
        else:
            self._counts.count_disconnect()
        if self._log_entry is not None:
            self._log_entry.write(self._status or CLIENT_LEFT, now - self._started)

    def _release_connection(self, *, keep: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if keep and connection.reusable:
            if self._paused:
                connection.resume_reading()
            self._edge.pool.give_back(connection)
        else:
            connection.close(gently=self.tunnel)

    def _set_time_limit(self, seconds: float) -> None:
        """Call `_expired` after `seconds` (0: never), or earlier if the route's total timeout ends earlier."""
        if self._ends:
            left = max(self._ends - monotonic(), 0.001)
            seconds = min(seconds, left) if seconds else left
        self._timer.start(seconds, self._handle_timeout)


class ClientConnection(asyncio.Protocol):
    """A client connection with one exchange at a time. Each exchange ends with `finish`, `refuse` or `cut_off`.

    Pipelined requests are read ahead, up to a maximum number of bytes. Their exchanges take place one after another, in
    the order of the requests.
    """

    def __init__(
        self, edge: GatewayState, scheme: str, received: bytes = b"", reported: Peer | None = None
    ) -> None:
        self._edge, self._scheme = edge, scheme
        self._timer = Timer(edge.loop)
        self._transport: asyncio.Transport
        self._certificate: CertificateContext | None = None
        self.forwarding: ForwardingContext
        self._buffer = received  # read ahead, the beginning of a head, or chunks for the loop's next turn
        self._reported = reported  # the client of a trusted proxy's connection
        self._scanned = 0  # number of buffered bytes known to be an incomplete head
        self._request: RequestHead | None = None
        self._exchange: Exchange | None = None
        self._body: RequestBodyDecoder | None = None  # of the request, as long as more of it is to come
        self._keep = True  # whether the connection stays open after the response
        self._wraps = False  # the response's body is put into chunks
        self._frames: WebSocketFrameTracker | None = None  # of a WebSocket, from the server
        self._writable = self._reading = self._body_wanted = True
        self._turn_due = False  # the buffer is processed further in the loop's next turn
        self._advancing, self._passable = False, 0  # requests in a row that could have been passed
        self._dropped: int | None = None  # bytes dropped after the last response; None before it

    def __repr__(self) -> str:
        return f"<ClientConnection {self._exchange or 'idle'}>"

    # Callbacks of the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have no common base class
        peer = transport.get_extra_info("peername")
        address, port = self._reported or (peer[:2] if isinstance(peer, tuple) else ("", 0))
        self.forwarding = ForwardingContext(address, self._scheme, self._edge.settings.trusted_proxies, port)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._certificate = tls.context
        self._edge.pool.add_client(self, idle=not self._buffer)
        self._timer.start(self._edge.settings.head_seconds, self._head_expired)
        self._process_pipelined_requests()

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            if self._dropped is not None:
                self._drop_or_abort(data)
                return
            self._edge.pool.idle_clients.pop(self, None)
            self._buffer = self._buffer + data if self._buffer else data
            self._process_pipelined_requests()
        elif exchange.tunnel:
            exchange.send_body(data, complete=False)
        elif self._body is not None and not self._buffer:
            self._forward_body(exchange, self._body, data)
        else:
            self._buffer += data
            self._update_reading()

    def eof_received(self) -> bool:
        """Abort the request of a client that closed its side, as nginx does; a tunnel stays half open."""
        exchange = self._exchange
        if exchange is not None and exchange.tunnel and self._transport.can_write_eof():
            exchange.forward_client_eof()
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._edge.pool.remove_client(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_left()
        self._timer.close()
        self._buffer, self._dropped = b"", 0

    def pause_writing(self) -> None:
        self._writable = False
        if self._exchange is not None:
            self._exchange.set_client_writable(False)

    def resume_writing(self) -> None:
        self._writable = True
        if self._exchange is not None:
            self._exchange.set_client_writable(True)
        else:
            self._process_pipelined_requests()

    # Requests.

    def _process_pipelined_requests(self) -> None:
        """Begin the next request if it has arrived and the client has taken the responses before it."""
        if self._advancing:  # called because an exchange has ended at once: the loop below goes on
            return
        self._advancing = True
        try:
            left = len(self._buffer) - MOST_BYTES_AT_ONCE
            for number in range(MOST_REQUESTS_AT_ONCE):
                if self._exchange is not None or not self._buffer or not self._writable:
                    break
                if number and len(self._buffer) < left:
                    self._schedule_buffer_processing()
                    break
                if self._dropped is not None or not self._begin_next_or_refuse():
                    break
            else:
                self._schedule_buffer_processing()
        finally:
            self._advancing = False
        if self._buffer or not self._reading:
            self._update_reading()

    def _begin_next_or_refuse(self) -> bool:
        """Begin the next buffered request, or refuse it; returns False if its head is incomplete."""
        data, edge = self._buffer, self._edge
        self._request, self._keep, found_route = None, False, None
        try:
            found = self._request = read_request(data, edge.settings.max_head_bytes, self._scanned)
            if found is None:
                if not self._scanned:
                    self._timer.start(edge.settings.head_seconds, self._head_expired)
                self._scanned = len(data)
                return False
            self._scanned = 0
            self._keep = found.keep_alive
            found_route = routed = route_or_refuse_request(edge, found, self.forwarding, self._certificate)
            self._begin(found, routed)
        except BadMessage as error:
            if self._request is not None:
                self._buffer = data[self._request.end :]
            edge.counts.count_refusal(str(error.status), found_route.route.alias if found_route else "")
            if self._request is not None and edge.access_log is not None:
                sender = self.forwarding.client_for_log(self._request)
                AccessLogEntry(edge.access_log, self._request, sender).write(error.status, 0.0)
            self.send_refusal(error.status)
        return True

    def _begin(self, request: RequestHead, routed: RoutedRequest) -> None:
        # A worker would take the trusted proxy for the client that it has reported.
        self._passable = self._passable + 1 if routed.servers and self._reported is None else 0
        if (
            self._passable > MOST_PASSABLE
            and all(map(self._edge.passing.can_pass_to, routed.servers))
            and self._return_for_routing(self._buffer, self._edge.settings.head_seconds)
        ):
            return
        body, data = None, self._buffer[request.end :]
        if request.body:
            body = RequestBodyDecoder(request.body, routed.route.max_body_bytes)
            data, self._buffer = bytes(body.extract_body_bytes(data)), body.rest
            if body.rest and not body.done:
                self._schedule_buffer_processing()
        else:
            data, self._buffer = b"", data
        complete = body is None or body.done
        self._body = None if complete else body
        self._body_wanted = True
        exchange = self._exchange = Exchange(self._edge, self, request, routed, self._timer)
        exchange.start(data, complete=complete)

    def _forward_body(self, exchange: Exchange, body: RequestBodyDecoder, data: bytes) -> None:
        try:
            piece = body.extract_body_bytes(data)
        except BadMessage as error:
            exchange.refuse(error.status)
            return
        self._buffer = body.rest
        if body.done:
            self._body = None
        elif body.rest:
            self._schedule_buffer_processing()
        if piece or body.done:
            exchange.send_body(piece, complete=body.done)

    def _schedule_buffer_processing(self) -> None:
        """Pause reading, and process the rest of the buffer in the next loop iteration, after other connections."""
        if not self._turn_due:
            self._turn_due = True
            self._edge.loop.call_soon(self._process_buffer)
            self._update_reading()

    def _process_buffer(self) -> None:
        self._turn_due = False
        exchange, body = self._exchange, self._body
        if exchange is None:
            self._process_pipelined_requests()
        elif body is not None and self._buffer and self._body_wanted:
            data, self._buffer = self._buffer, b""
            self._forward_body(exchange, body, data)
        self._update_reading()

    def _update_reading(self) -> None:
        wanted = self._body_wanted and not self._turn_due
        if self._exchange is not None and len(self._buffer) > MOST_READ_AHEAD:
            wanted = False
        if wanted != self._reading and not self._transport.is_closing():
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # Responses.

    def interim(self, response: Response) -> None:
        self._transport.write(response.end_to_end_lines + b"\r\n")

    def start_response(self, response: Response) -> None:
        request, exchange = self._request, self._exchange
        assert request is not None
        assert exchange is not None
        keep = self._keep and exchange.complete and self._edge.keeps_connections
        head, self._keep, self._wraps = response.head_keep_alive_and_chunked(
            http_1_1=request.http_1_1, keep=keep
        )
        first = chunk(response.first) if self._wraps and response.first else response.first
        self._transport.write(head + first)

    def send_data(self, data: Buffer) -> None:
        if self._frames is not None:
            data = self._frames.with_close_frame_if_ending(data)
        self._transport.write(chunk(data) if self._wraps else data)

    def finish(self, trailers: bytes) -> None:
        exchange, self._exchange = self._exchange, None
        if self._wraps:
            self._wraps = False
            self._transport.write(b"0\r\n" + trailers + b"\r\n")
        self._keep_alive_or_close(fully_read=exchange is None or exchange.complete or exchange.tunnel)

    def send_refusal(self, status: int, retry_after_seconds: float = 0, fields: bytes = b"") -> None:
        request = self._request
        exchange, self._exchange = self._exchange, None
        # A request that was refused before it was routed may have a body, of which nothing was read.
        complete = exchange.complete if exchange is not None else request is not None and not request.body
        self._keep = self._keep and complete and self._edge.keeps_connections
        self._transport.write(
            whole_response(
                status,
                retry_after_seconds=retry_after_seconds,
                head_only=request is not None and request.method == b"HEAD",
                keep_alive=self._keep,
                fields=fields,
            )
        )
        self._keep_alive_or_close(fully_read=complete)

    def cut_off(self) -> None:
        """Close the connection before the response is complete, so that the client sees that a part is missing."""
        self._exchange = None
        assert self._request is not None
        if not self._request.http_1_1:  # only this shows the client that the response is incomplete
            self._transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
        self._transport.abort()

    def set_accepts_body(self, take: bool) -> None:
        """Resume reading the request's body if `take` is true, otherwise pause it."""
        self._body_wanted = take
        if take and self._body is not None and self._buffer:
            self._schedule_buffer_processing()
        self._update_reading()

    def _keep_alive_or_close(self, *, fully_read: bool) -> None:
        """Begin the next request if the connection stays open (`_keep`); otherwise close the connection.

        `fully_read` is true if the request was read to its end. Otherwise its rest is read and dropped before closing.
        """
        self._body_wanted = True
        if self._keep:
            edge = self._edge
            seconds = QUIET_SECONDS if edge.draining else edge.settings.keep_alive_seconds
            if seconds > IDLE_SECONDS:
                self._timer.start(IDLE_SECONDS, self._hand_over_idle_or_set_timeout)
            else:
                self._timer.start(seconds, self._close_after_sending)
            if self._buffer or not self._reading:
                self._process_pipelined_requests()
            if not self._buffer and self._exchange is None and self._dropped is None:
                edge.pool.idle_clients[self] = None
            return
        self._body, self._dropped = None, 0
        if (fully_read and not self._buffer) or not self._transport.can_write_eof():
            self._close_after_sending()
            return
        self._buffer = b""
        write_eof_or_close(self._transport)
        self._timer.start(LINGER_SECONDS, self._transport.abort)
        self._update_reading()

    def _drop_or_abort(self, data: bytes) -> None:
        assert self._dropped is not None
        self._dropped += len(data)
        if self._dropped > MOST_LINGERED:
            self._transport.abort()

    # Leaving the proxy.

    def _hand_over_idle_or_set_timeout(self) -> None:
        seconds = max(self._edge.settings.keep_alive_seconds - IDLE_SECONDS, _LEAST_SECONDS)
        if self._reported is not None or not self._return_for_routing(b"", seconds):
            self._timer.start(seconds, self._close_after_sending)

    def _return_for_routing(self, received: bytes, seconds: float) -> bool:
        """Take the connection out of the proxy to be routed again; returns False if it stays.

        `received` are bytes of its next request, which has to arrive within `seconds`. The connection stays if it uses
        TLS or has unsent bytes, if the process drains, or if there is no room.
        """
        edge, transport = self._edge, self._transport
        route_again = edge.passing.route_again
        if route_again is None or edge.draining or transport.get_extra_info("sslcontext") is not None:
            return False
        if transport.is_closing() or transport.get_write_buffer_size():
            return False
        if not received and edge.passing.waiting.is_full:
            return False
        try:
            sock = _detach(transport)
        except OSError:
            return False
        edge.pool.remove_client(self)
        route_again(sock, Routed("", received=received, decided=False), seconds)
        self._timer.stop()
        self._buffer, self._dropped = b"", 0
        return True

    # Another protocol.

    def switch_protocols(self, response: Response, data: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._keep = False
        lines = b"%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (
            response.end_to_end_lines,
            response.upgrade,
        )
        self._transport.write(lines)
        if response.upgrade.lower() == b"websocket":
            self._frames = WebSocketFrameTracker()
        if data:
            self.send_data(data)
        early, self._buffer = self._buffer, b""
        if early:
            exchange.send_body(early, complete=False)
        self._update_reading()

    def send_eof(self) -> None:
        """Close this side of the tunnel, because the backend has closed its own."""
        write_eof_or_close(self._transport)

    # Ends.

    def drain(self) -> None:
        """Close after the current response, or soon if no request is in progress; a WebSocket continues."""
        if self._exchange is None and self._dropped is None:
            self._timer.start(QUIET_SECONDS, self._close_after_sending)

    def end_now(self) -> None:
        """Close now: a WebSocket with a close frame if one can be inserted, anything else at once."""
        if self._frames is None or self._frames.ending:
            self._transport.abort()
            return
        self._timer.start(CLOSE_FRAME_SECONDS, self._transport.abort)
        self._transport.write(self._frames.end_with_close_frame())

    def close_idle(self) -> bool:
        """Close the idle connection; returns False, and leaves it open, if bytes wait to be read or sent."""
        transport = self._transport
        if transport.get_write_buffer_size() or unread_bytes(transport):
            return False
        transport.close()
        transport.abort()  # TLS would wait for the client
        return True

    def _head_expired(self) -> None:
        if self._buffer:
            self._edge.counts.count_refusal("408")
            self.send_refusal(408)
        else:
            self._close_after_sending()

    def _close_after_sending(self) -> None:
        self._transport.close()
        unsent = self._transport.get_write_buffer_size()
        self._timer.start(SENDING_SECONDS if unsent else 0, partial(self._sending_expired, unsent))

    def _sending_expired(self, unsent: int) -> None:
        if self._transport.get_write_buffer_size() < unsent:
            self._close_after_sending()
        else:
            self._transport.abort()


def _detach(transport: asyncio.Transport) -> socket.socket:
    """Take the socket out of the transport, which is discarded; returns the socket. Raises OSError."""
    used = transport.get_extra_info("socket")
    kind = Connection if isinstance(used, Connection) else socket.socket
    sock = kind(fileno=os.dup(used.fileno()))
    transport.abort()  # which closes its own descriptor only
    return sock
