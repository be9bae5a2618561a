"""HTTP/1.1 connections that can be drained and counted, with limits for request heads; one class for each parser.

The class for each parser combines a common mixin with uvicorn's class.

A connection that is between two requests can move to another worker through a socket pair that the workers share. This
worker then closes its own descriptor of the connection, which the client does not notice.

A keep-alive connection that is closed while the client's next request is on its way loses that request (measured: 1–2 %
of them). So a connection that cannot move to another worker lingers: each response says `Connection: close`, and an
idle connection is closed only after a quiet period with nothing in its receive buffer (RFC 9112 §9.6).

The head of a request is limited in time and size. The time runs from the accept, including a TLS handshake, to the end
of the first head, and later from a head's first byte to its end; between two requests the keep-alive timeout applies.
For a head that arrives in one piece, the check costs one comparison.

uvicorn writes the head of a response and its body separately. Here a connection poses as the transport of uvicorn's
request object, and holds the head back to send it together with the beginning of the body, which saves a system call
or the gathering of two buffers. ASGI allows that. At the end of the event loop's iteration the head is sent anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import sys
from bisect import bisect_left
from collections.abc import Iterable
from time import monotonic, monotonic_ns
from typing import Any

import h11
import uvicorn

from poolctl.http.messages import ServerConnection
from poolctl.keeper.connection_handover import unread_bytes

from ..tally import BOUNDS_NS, BUCKETS, LATENCY_NS, MALFORMED, STARTED, STATUS
from .connection_state import HEAD_BYTES, Header, PoolServerState, send_away
from .request_records import FAILURES, RequestCounts
from .route_context import is_of_gateway
from .uvicorn_parts import CLOSE_HEADER, H11Protocol, Http1Protocol, HttpToolsProtocol, State

QUIET_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.003
_LAST_PAUSE_SECONDS = 0.05
CLOSE = (b"connection", b"close")
# A read of at most this size cannot exceed the limit, because `http.max_head_size` is never smaller.
SMALL_BYTES = 4096
_LINGER_SECONDS, _LINGER_BYTES = 2.0, 1024 * 1024
_JOINED_BYTES = 16 * 1024  # a larger part of a body is not copied to join it with the head
# Where the status is in the head of a response.
_STATUS_AT, _STATUS_END, _ZERO = len(b"HTTP/1.1 "), len(b"HTTP/1.1 200"), ord("0")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ANNOUNCES_CLOSE = re.compile(rb"\r\nconnection:[^\r]*\bclose\b", re.IGNORECASE)
_WITHOUT_BODY = (b"204", b"304")  # RFC 9112 §6.3
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_END_OF_LINES = b"\n\r\n"
_END_BYTES = 4
_REFUSALS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
}


class PartialHead:
    """An incomplete request head; about `size` bytes of it have arrived."""

    __slots__ = ("last", "size")

    def __init__(self) -> None:
        self.size = 0
        self.last = b""  # the last bytes: the end of a head may arrive in two pieces


FIRST = PartialHead()  # the head of a first request, before any byte has arrived


class AnsweredTransport:
    """Replaces the transport of uvicorn's object for a request after its response: later errors close no connection."""

    def close(self) -> None:
        """Do nothing: the client was not told that the connection ends, and may have sent its next request."""


_ANSWERED = AnsweredTransport()


class Http1Connection(Http1Protocol):
    """Mixin that adds draining, counting and limits to one of uvicorn's protocol classes for HTTP/1.1.

    The class for each HTTP parser, such as H11Connection, has this mixin as first base and uvicorn's class as second.
    """

    # CPython's objects of a class share the names of up to thirty attributes, and uvicorn's already have twenty-eight.
    # With more, each object takes 1.3 KB more, and each access is slower.
    __slots__ = ("answered", "begun_ns", "body_bytes", "counts", "head", "held", "sent_head")

    server_state: PoolServerState
    lingering = False
    pipeline: Any = ()  # with httptools, further requests wait in it
    _from_gateway = False  # another worker has handed over a connection of the gateway
    _overdue = False
    _pause_seconds = 0.0
    _move_timer: asyncio.TimerHandle | None = None

    def __init__(
        self, config: uvicorn.Config, server_state: PoolServerState, app_state: State, _loop: Any = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        if not config.access_log:
            self.access_log = False
        self.head: PartialHead | None = FIRST
        # The head of the response that is held back; b"" after it was sent; None before the head of the next one.
        self.held: bytes | None = None
        self.sent_head: bytes = b""  # the head of the current response, also while it is held back
        self.body_bytes: int = 0  # how much of the body follows it, with the framing of chunks
        self.counts: RequestCounts | None = server_state.counts

    @property
    def limit_concurrency(self) -> int | None:
        """uvicorn's limit of connections and requests: 0 if the next request is to be refused, else None.

        uvicorn would also count connections without a request, so that a few idle clients block all others.
        """
        most = self.server_state.most_requests
        return None if most is None or len(self.server_state.tasks) < most else 0

    @limit_concurrency.setter
    def limit_concurrency(self, configured: int | None) -> None:
        """uvicorn sets it for each connection; `most_requests` has the same value."""

    @property
    def idle(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def of_gateway(self) -> bool:
        """Whether the connection is the gateway's, which closes it itself when it is no longer needed."""
        return self._from_gateway or (self.cycle is not None and is_of_gateway(self.cycle.scope))

    @property
    def between_requests(self) -> bool:
        """Whether all received bytes belong to requests that have their complete response."""
        raise NotImplementedError

    @property
    def body_follows(self) -> bool:
        """Whether the newest request's body is still incomplete, which is possible even after its response."""
        return self.cycle is not None and self.cycle.more_body

    def close_when_idle(self) -> None:
        """Begin to close the connection: it closes when no byte arrives for QUIET_SECONDS while it is idle.

        A response that has not begun yet says `Connection: close`, and closes the connection at its end.
        """
        if self.transport is None or self.transport.is_closing():
            return
        if self.idle:
            self.lingering = True
            self.close_when_quiet(QUIET_SECONDS)
        elif not self.cycle.response_started:
            self._close_after_response()

    def cancel_close_when_idle(self) -> None:
        """Apply the keep-alive timeout to an idle connection again, which `close_when_idle` has given a shorter one.

        While a request is in progress, do nothing: after `close_when_idle`, its response says `Connection: close`.
        """
        if self.transport is not None and not self.transport.is_closing() and self.idle:
            self.lingering = False
            self.close_when_quiet(self.timeout_keep_alive)

    def end_event_streams(self) -> None:
        """End an event stream between two events; its client reconnects.

        The application sees a disconnected client.
        """
        cycle = self.cycle
        if self.idle or not cycle.response_started:
            return
        # Every EventSource asks for it (HTML, "Server-sent events"). Other clients might think their stream complete.
        accepted = (value for name, value in cycle.scope["headers"] if name == b"accept")
        if not any(b"text/event-stream" in value for value in accepted):
            return
        cycle.disconnected = True
        cycle.message_event.set()
        self.write(self.last_chunk())
        if self.transport.can_write_eof():
            self.transport.write_eof()  # at once, so that no other client's request follows on a shared connection
        self.close()

    def last_chunk(self) -> bytes:
        """The bytes that end the current response if it is chunked; b"" otherwise."""
        return b"0\r\n\r\n" if self.cycle.chunked_encoding else b""

    def move_or_close_when_idle(self) -> None:
        """Move to another worker once no request is in progress. If it cannot move, call `close_when_idle`."""
        if self.server_state.moves_to is None:
            self.close_when_idle()
        else:
            self._move_or_retry()

    @property
    def _can_move_now(self) -> bool:
        transport = self.transport
        if transport is None or transport.is_closing() or self not in self.connections:
            return False
        # Another protocol has the connection if it has become a WebSocket, or was refused.
        return transport.get_protocol() is self and self.between_requests

    def _move_or_retry(self) -> None:
        end = self.server_state.moves_to
        if end is None or not self._can_move_now:
            return  # busy: tried again after the next response
        if self.transport.get_write_buffer_size():
            self.transport.pause_reading()
        elif self.hand_over(end):
            return
        # A response is still being written, or the pair is full because the other workers are busy: keep serving.
        if self._move_timer is not None and not self._move_timer.cancelled():
            self._move_timer.cancel()
        # First at the end of this loop iteration, when uvloop writes.
        self._move_timer = self.loop.call_later(self._pause_seconds, self._move_or_retry)
        self._pause_seconds = min(max(2 * self._pause_seconds, _FIRST_PAUSE_SECONDS), _LAST_PAUSE_SECONDS)

    def shutdown(self) -> None:
        """Close the connection if it is idle, or after the response in progress.

        Does nothing while connections move to another worker.
        """
        if self.server_state.moves_to is not None:
            return
        if self.idle:
            super().shutdown()
        elif not self.cycle.response_started:
            # A head that was sent cannot say that the connection closes: it lingers after the response.
            self._close_after_response()

    def hand_over(self, end: socket.socket) -> bool:
        """Move to another worker through the socket `end` if no request is in progress. Returns whether it moved."""
        # A lingering connection has a shorter limit, which no longer applies.
        limits = {} if self.lingering and not self.of_gateway else self.deadline_arguments()
        if not self._can_move_now or not send_away(self.transport, end, limits):
            return False
        self.connections.discard(self)  # no longer counted, even before the loop has noticed
        return True

    def handle_websocket_upgrade(self, *event: Any) -> None:
        """Upgrade to a WebSocket here, or hand the connection over if this worker has too many WebSockets."""
        state = self.server_state
        balancer = None if state.stays or self.scheme != "http" else state.balancer
        if balancer is None or not balancer.maybe_transfer(TransferableWebSocketRequest(self, *event)):
            state.renew_default_headers()
            super().handle_websocket_upgrade(*event)

    # A request that arrives while the worker drains gets a response, and is the last one of its connection.

    def on_request_start(self, before: Any) -> None:
        """Count a new request. `before` is uvicorn's object for the previous request."""
        cycle, state, now_ns = self.cycle, self.server_state, monotonic_ns()
        cycle.transport = self
        if now_ns >= state.date_ends_ns:
            state.renew_default_headers()
            cycle.default_headers = state.default_headers
        if before is None or before.response_complete:
            self.answered: Any = cycle  # the oldest request in progress
            self.begun_ns = now_ns
        if self.counts is not None:
            self.counts.tally[STARTED] += 1
        if state.on_activity is not None:
            state.on_activity()
        if state.balancer is not None:
            state.balancer.schedule_check()
        if state.draining and not self.idle:
            self._close_after_response()

    # The methods of a transport, which uvicorn's object for a request calls.

    def write(self, data: bytes) -> None:
        """Send the next part of a response. A head waits for the part that follows."""
        if self.held:
            head, self.held = self.held, b""
            self.body_bytes = len(data)
            if len(data) <= _JOINED_BYTES:
                data = head + data
            else:
                self.transport.write(head)
        elif self.held is None and self.answered.response_started:  # not `100 Continue`
            self.held = self.sent_head = data
            self.body_bytes = 0
            if data[_STATUS_AT:_STATUS_END] in _WITHOUT_BODY:
                self.omit_body()
            state = self.server_state
            if not state.held_heads:
                self.loop.call_soon(state.send_held_heads)
            state.held_heads.append(self)
            status_class = data[_STATUS_AT] - _ZERO
            if self.counts is not None:
                self.counts.tally[STATUS + status_class] += 1
            if status_class >= FAILURES and state.failed is not None:
                status, seconds = int(data[_STATUS_AT:_STATUS_END]), (monotonic_ns() - self.begun_ns) / 1e9
                state.failed.log(self.answered.scope, status, seconds)
            return
        else:
            self.body_bytes += len(data)
        self.transport.write(data)

    def omit_body(self) -> None:
        """Keep the parser from sending a body after the head of a response that has none."""

    def send_head(self) -> None:
        """Send the head of the response if it is held back."""
        head, self.held = self.held, b""
        if head and not self.transport.is_closing():
            self.transport.write(head)

    def close(self) -> None:
        """Close the connection when everything is sent, unless the client considers it open (RFC 9112 §9.6).

        uvicorn closes it after each error of an application. But a client whose response is complete, and did not say
        `Connection: close`, may have sent its next request.
        """
        if not self.answered.response_complete and self._is_sent_completely():
            self._end_response()
        else:
            self.send_head()
            self.transport.close()

    def _is_sent_completely(self) -> bool:
        """Whether the client can tell that it has the whole response, which the application has not ended."""
        head = self.sent_head
        if self.held is None:
            return False
        if self.answered.scope["method"] == "HEAD" or head[_STATUS_AT:_STATUS_END] in _WITHOUT_BODY:
            return True
        length = None if b"\r\ntransfer-encoding:" in head.lower() else _LENGTH.search(head)
        return length is not None and int(length[1]) == self.body_bytes

    def _end_response(self) -> None:
        """End a response that is complete for its client."""
        pipelined = self.end_framing()
        self.answered.response_complete = True
        self.answered.message_event.set()
        if _ANNOUNCES_CLOSE.search(self.sent_head):
            self.close()
        self.on_response_complete()
        if pipelined and not self.is_closing():
            self.data_received(pipelined)

    def end_framing(self) -> bytes:
        """Let the parser go on to the next request. Returns data that it has not parsed."""
        return b""

    def is_closing(self) -> bool:
        """Whether the connection is closed, or about to be."""
        return bool(self.transport.is_closing())

    def on_response_complete(self) -> None:
        if self.held:
            self.send_head()
        self.held = None
        self.answered.transport = _ANSWERED
        if self.pipeline:
            self.answered = self.pipeline[-1][0]
        now_ns = monotonic_ns()
        if self.counts is not None:
            tally, latency_ns = self.counts.tally, now_ns - self.begun_ns
            tally[LATENCY_NS] += latency_ns
            tally[BUCKETS + bisect_left(BOUNDS_NS, latency_ns)] += 1
        self.begun_ns = now_ns  # the time at which a pipelined request begins
        super().on_response_complete()
        state = self.server_state
        # Only once: a delayed supervisor would take many reports for a flood from a hostile application.
        if state.total_requests == state.max_requests:
            state.on_limit()
        # The client was not told that the response is the last, and may send another request.
        if state.draining and self.idle and not self.transport.is_closing():
            self.close_when_quiet(QUIET_SECONDS)
        if state.moves_to is not None:
            # Before more is read, because a client that never pauses would keep this worker running.
            self.move_or_close_when_idle()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        state = self.server_state
        due = state.record_handshake_end(self) if state.expected else None
        super().connection_made(transport)
        if self._overdue:
            self.close_when_quiet(0.0)
        unread = self.head is FIRST and self not in state.head_timeouts.due
        if unread:
            state.head_timeouts.start(self, due)
        if state.draining:
            self.close_when_quiet(QUIET_SECONDS)
        if state.moves_to is not None:
            self.move_or_close_when_idle()
        elif state.balancer is not None:
            state.balancer.balance_new_connection(self, unread=unread and self.scheme == "http")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.head is not None:
            self.cancel_head_timeout()
        cycle = self.cycle
        if cycle is not None:
            if not cycle.response_complete and self.counts is not None:
                self.counts.count_unanswered(self, cycle)
            # They would refer to each other until the next garbage collection.
            cycle.transport = self.answered.transport = self.transport
        if exc is not None:  # otherwise uvicorn does it
            self.cancel_close_when_quiet()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.counts is not None:
            self.counts.tally[MALFORMED] += 1
            self.counts.tally[STATUS + 4] += 1
        self.server_state.renew_default_headers()
        super().send_400_response(msg)

    def _close_after_response(self) -> None:
        cycle = self.cycle
        cycle.keep_alive = False
        # With httptools uvicorn adds the header itself, with h11 it only closes.
        if not cycle.response_started and CLOSE not in cycle.default_headers:
            cycle.default_headers = [*cycle.default_headers, CLOSE]

    def data_received(self, data: bytes) -> None:
        before, head = self.cycle, self.head
        if len(data) <= SMALL_BYTES and (head is None or head is FIRST):
            size = 1 if head is None else len(data)  # an unknown number: data may begin with a body
        elif not (size := self._measure_or_refuse(data)):
            return
        super().data_received(data)
        cycle = self.cycle
        if "method" not in (self.scope or ()) or (
            cycle is before and (cycle is None or cycle.response_complete)
        ):
            if cycle is not before:
                self.cancel_head_timeout()
                size = self._bytes_behind_last_head(data)
            self.track_partial_head(data, size)
        elif head is not None:
            self.cancel_head_timeout()

    def _bytes_behind_last_head(self, data: bytes) -> int:
        """How many bytes of `data` follow the last complete request; 1 if unknown, because they follow a body."""
        if any(name == b"content-length" for name, _ in self.cycle.scope["headers"]):
            return 1
        return len(data) - (data.rfind(_END_OF_LINES) + len(_END_OF_LINES) if _END_OF_LINES in data else 0)

    def set_read_deadline(self, until: float | None, *, between_requests: bool) -> None:
        """Apply the time limit of a connection that another process has handed over. Called before `connection_made`.

        The limit ends at `until`, a monotonic time. If `between_requests` is true, the connection is between two
        requests, and closes at `until` unless a request begins before; if `until` is None, it is a connection of the
        gateway, which stays open. If `between_requests` is false, the head of the next request must be complete at
        `until`; None stands for the default limit.
        """
        if until is not None and not between_requests:
            timeouts = self.server_state.head_timeouts
            timeouts.start(self, min(until, monotonic() + timeouts.seconds))
            return
        self.head = None
        if until is None and between_requests:
            self._from_gateway = True
            return
        left = self.timeout_keep_alive
        self.close_when_quiet(left if until is None else min(max(0.0, until - monotonic()), left))

    def deadline_arguments(self) -> dict[str, float | bool]:
        """Return the deadline of the next request as fields of the handover message (see Connection.limits).

        Returns {} if the usual deadline applies.
        """
        if self.head is not None:
            due = self.server_state.head_timeouts.due.get(self)
            return {} if due is None else {"until": due, "asked": False}
        if self.of_gateway:
            return {"asked": True}
        if self.timeout_keep_alive_task is None:
            return {}
        closes_at = self.timeout_keep_alive_task.when()
        return {"until": monotonic() + closes_at - self.loop.time(), "asked": True}

    def cancel_head_timeout(self) -> None:
        """Remove the time limit for a request's head."""
        if self.head is not None:
            self.head = None
            self.server_state.head_timeouts.cancel(self)

    def on_head_timeout(self) -> None:
        """Refuse an incomplete request head with 408, or 431 if too large; close the connection if no byte arrived."""
        head = self.head
        if head is not None and head.size and not self.transport.is_closing():
            self.refuse(431 if head.size > self.server_state.head_timeouts.most_bytes else 408)
        else:
            self.cancel_head_timeout()
            self.transport.close()

    def track_partial_head(self, data: bytes, size: int) -> None:
        """Limit the time for an incomplete request head, and count `size` more bytes of it. `data` has just arrived.

        If `data` belongs to the body of a request that is already answered, only set the keep-alive timeout.
        """
        timeouts = self.server_state.head_timeouts
        if self.transport.is_closing() or self not in self.connections:
            self.cancel_head_timeout()  # a WebSocket is no longer a connection of this protocol
            return
        if self.idle and self.body_follows:
            self.close_when_quiet(self.timeout_keep_alive)
            return
        head = self.head
        if head is None:
            timeouts.start(self)
        if head is None or head is FIRST:
            head = self.head = PartialHead()
        head.size += size
        head.last = (head.last + data[-_END_BYTES:])[-_END_BYTES:]

    def _measure_or_refuse(self, data: bytes) -> int:
        """Return how many bytes `data` adds to a request head; 0 if the head becomes too large, so that it is refused.

        Returns 1 if `data` may begin with part of a body, because the number is unknown then.
        """
        timeouts, head = self.server_state.head_timeouts, self.head
        if head is None and (not self.idle or self.body_follows):
            return 1  # the data is part of a body, or follows one
        size = len(data)
        so_far, last = (0, b"") if head is None else (head.size, head.last)
        if so_far + size <= timeouts.most_bytes:
            return size
        text = last + data
        begins = 0 if so_far else len(text) - len(text.lstrip(b"\r\n"))
        end = _END_OF_HEAD.search(text, begins)
        if end is not None and so_far - len(last) + end.end() - begins <= timeouts.most_bytes:
            return size
        if self.idle:
            self.refuse(431)
        elif head is not None and head is not FIRST:
            head.size += size  # a head that is too large is refused once the response before it is complete
        return 0

    def refuse(self, status: int) -> None:
        """Answer a request with this error status; close the connection when the client has had time to read it."""
        transport, (headers, body) = self.transport, self.refusal(status)
        self.server_state.renew_default_headers()
        lines = [b"HTTP/1.1 %d %b" % (status, _REFUSALS[status])]
        length = (b"content-length", b"%d" % len(body))
        for name, value in (*self.server_state.default_headers, *headers, length, CLOSE_HEADER):
            lines.append(name + b": " + value)
        transport.write(b"\r\n".join([*lines, b"", body]))
        self.cancel_head_timeout()
        self.cancel_close_when_quiet()
        if self.counts is not None:
            self.counts.tally[MALFORMED] += 1
            self.counts.tally[STATUS + status // 100] += 1
        # If closed with unread data, the connection would be reset and the response lost.
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()
        transport.set_protocol(DataDiscardingProtocol(self))
        self.loop.call_later(_LINGER_SECONDS, transport.close)

    def refusal(self, status: int) -> tuple[list[Header], bytes]:
        """Headers, besides those of every response, and body of the answer to a request refused with this status."""
        return [], _REFUSALS[status]

    def close_when_quiet(self, seconds: float) -> None:
        """Set the timer that closes the connection if no byte arrives within this time."""
        self.cancel_close_when_quiet()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def cancel_close_when_quiet(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless its receive buffer holds data of a request."""
        if self.transport is None:
            self._overdue = True  # it was passed on after its deadline
            return
        if self.transport.is_closing() or (self.head is not None and self.head.size):
            return
        if self.of_gateway and not (self.lingering or self.server_state.draining):
            # HAProxy cannot repeat a POST that it sends while the connection is closed (34 of 2,580 were lost).
            self.cancel_close_when_quiet()
        elif unread_bytes(self.transport):
            self.close_when_quiet(self.timeout_keep_alive)
        else:
            super().timeout_keep_alive_handler()


class H11Connection(Http1Connection, H11Protocol):
    """A connection that uses h11, which keeps pipelined data in its buffer."""

    __slots__ = ()

    server_state: PoolServerState

    def __init__(self, config: uvicorn.Config, *args: Any, **options: Any) -> None:
        super().__init__(config, *args, **options)
        self._renew_parser()

    def _renew_parser(self) -> None:
        self.conn = ServerConnection(self.config.h11_max_incomplete_event_size or HEAD_BYTES)

    @property
    def between_requests(self) -> bool:
        conn = self.conn
        waiting, _ = conn.trailing_data
        return self.idle and not waiting and conn.our_state is conn.their_state is h11.IDLE

    @property
    def body_follows(self) -> bool:
        """Whether the newest request's body is incomplete, according to h11: uvicorn does not record the body's end."""
        return self.conn.their_state is h11.SEND_BODY

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self.on_request_start(before)
        if self.server_state.moves_to is not None:
            self._move_or_retry()

    def end_framing(self) -> bytes:
        conn = self.conn
        if conn.our_state is h11.SEND_BODY:
            conn.send(h11.EndOfMessage())
            return b""
        if self.body_follows:
            self.send_head()
            self.transport.close()  # h11 cannot find the end of what the client still sends
            return b""
        # h11 does not continue after an invalid event, such as a body after the head of a 204.
        self._renew_parser()
        pipelined: bytes = conn.trailing_data[0]
        return pipelined

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.head is None and (begun := self.conn.trailing_data[0]) and self.idle:
            # Part of the next head has arrived before this response was complete.
            self.cancel_close_when_quiet()
            self.track_partial_head(begun, len(begun))

    def send_400_response(self, msg: str) -> None:
        if len(self.conn.trailing_data[0]) > self.server_state.head_timeouts.most_bytes:
            self.refuse(431)
        else:
            super().send_400_response(msg)

    def last_chunk(self) -> bytes:
        try:
            return self.conn.send(h11.EndOfMessage()) or b""
        except h11.LocalProtocolError:  # the response has a Content-Length
            return b""


class _UpgradeIgnored(Exception):
    """A request asks for a protocol that is not served; its head ends at this offset of the data."""


class UpgradeIgnoringConnection(HttpToolsProtocol):
    """uvicorn's class, extended to serve requests that ask for an unsupported protocol (RFC 9110 §7.8).

    httptools treats everything after such a head as data of that protocol, and uvicorn drops it: the body of a POST of
    Java's HttpClient, which asks for h2c, or the next requests. So a new parser parses the head without `Upgrade`,
    which the application still sees; the old parser would stop reading after `Connection: close`.
    """

    @property
    def ignores_upgrade(self) -> bool:
        """Whether the newest head asks for a protocol that is not served."""
        parser = self.parser
        return parser.should_upgrade() and parser.get_method() != b"CONNECT" and not self._should_upgrade()

    def _unsupported_upgrade_warning(self) -> None:
        super()._unsupported_upgrade_warning()
        if self.ignores_upgrade:
            raise _UpgradeIgnored(*sys.exception().args)  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        while data:
            try:
                super().data_received(data)
                break
            except _UpgradeIgnored as ignored:
                head, fields, data = _head_without_upgrade(self), self.headers, data[ignored.args[0] :]
                self.parser = type(self.parser)(self)
                with contextlib.suppress(AttributeError):  # httptools < 0.6.3, as in uvicorn
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                super().data_received(head)
                self.scope["headers"] = fields


def _head_without_upgrade(connection: Any) -> bytes:
    parser = connection.parser
    version = parser.get_http_version().encode()
    fields = [field for field in connection.headers if field[0] != b"upgrade"]
    return _request_head(parser.get_method(), connection.url, fields, version)


def _request_head(
    method: bytes, target: bytes, fields: Iterable[tuple[bytes, bytes]], version: bytes = b"1.1"
) -> bytes:
    lines = [
        b"%b %b HTTP/%b\r\n" % (method, target, version),
        *(b"%b: %b\r\n" % field for field in fields),
    ]
    return b"".join([*lines, b"\r\n"])


class HttptoolsConnection(Http1Connection, UpgradeIgnoringConnection):
    """A connection that uses httptools, which parses all received data at once."""

    __slots__ = ()

    server_state: PoolServerState

    @property
    def between_requests(self) -> bool:
        """Whether no request is in progress: no head has begun, and no body is still being received."""
        if not self.idle or self.pipeline or (self.scope is not None and "method" not in self.scope):
            return False
        return self.cycle is None or not self.cycle.more_body

    def omit_body(self) -> None:
        self.answered.chunked_encoding, self.answered.expected_content_length = None, 0

    def on_headers_complete(self) -> None:
        if self.ignores_upgrade:
            return  # it is parsed again
        before = self.cycle
        HttpToolsProtocol.on_headers_complete(self)
        if self.cycle is not before:  # otherwise an upgrade, for which uvicorn still needs the list
            # httptools adds trailers to it: the application's holds the fields of the head only (RFC 9110 §6.5.1).
            self.headers = []
            self.on_request_start(before)

    def on_message_complete(self) -> None:
        if self.ignores_upgrade:
            return
        HttpToolsProtocol.on_message_complete(self)
        if self.cycle is not None and self.cycle.response_complete:
            # uvicorn does not record the end of a body that follows the end of the response.
            self.cycle.more_body = False
            if self.server_state.moves_to is not None:
                self.loop.call_soon(self._move_or_retry)


class TransferableWebSocketRequest:
    """A connection that is to become a WebSocket; `event` is the parser's event, None with httptools."""

    def __init__(self, connection: Any, event: Any = None) -> None:
        self._connection = connection
        self._event = event

    def hand_over(self, end: socket.socket) -> bool:
        """Send the connection, with the head of its request, to another worker through the socket `end`.

        Returns whether it was sent; otherwise it stays here.
        """
        connection = self._connection
        transport = connection.transport
        if not connection.idle or transport.is_closing():
            return False
        if not send_away(transport, end, None, self._head()):
            return False
        connection.connections.discard(connection)
        return True

    def _head(self) -> bytes:
        connection, event = self._connection, self._event
        if event is None:  # called for httptools
            scope = connection.scope
            return _request_head(scope["method"].encode(), connection.url, scope["headers"])
        return _request_head(event.method, event.target, connection.headers)


class DataDiscardingProtocol(asyncio.Protocol):
    """A protocol that discards further data, up to a limit, from a client that has got its last response."""

    def __init__(self, before: Http1Connection) -> None:
        self._before = before
        self._left_bytes = _LINGER_BYTES

    def data_received(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._before.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)
