"""Connections of HTTP/1.1 that can be drained: uvicorn's protocols, whose requests are counted and limited.

A keep-alive connection that is closed while the client's next request is on its way loses that request (measured:
1–2 % of them). So a connection that cannot move to another worker lingers: each response says `Connection: close`, and
an idle one is closed only after a quiet period with nothing in its receive buffer (RFC 9112 §9.6).

The head of a request is limited in time and size. The time runs from the accept, including a TLS handshake, to the end
of the first head, and later from a head's first byte to its end; between two requests the keep-alive timeout applies.
A request whose head arrives in one piece costs a comparison.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from time import monotonic, monotonic_ns
from typing import Any

import uvicorn

from poolctl.keeper.connection_handover import Routed, unread_bytes

from ..tally import MALFORMED, STATUS
from .connection_state import Drainable, PoolServerState
from .request_counting import MANY
from .uvicorn_parts import CLOSE_HEADER, Http1Protocol, State

QUIET_SECONDS = 2.0
CLOSE = (b"connection", b"close")
# A read of at most this size cannot exceed the limit: `http.max_head_size` is not smaller.
SMALL_BYTES = 4096
_READ_ON_SECONDS = 2.0
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_END_BYTES = 4
_REFUSALS = {
    408: b"Request Timeout",
    421: b"Misdirected Request",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}
_NOT_MALFORMED = {421: (), 503: ((b"retry-after", b"1"),)}


class Head:
    """An incomplete head, of which about `size` bytes have arrived."""

    __slots__ = ("last", "size")

    def __init__(self) -> None:
        self.size = 0
        self.last = b""  # the last bytes: the end of a head may arrive in two pieces


FIRST = Head()  # a first head of which nothing has arrived yet


class Lingering(Drainable, Http1Protocol):
    """Mixed in before one of uvicorn's protocol classes for HTTP/1.1."""

    server_state: PoolServerState
    lingering = False

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: PoolServerState,
        app_state: State,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.initialize(config, server_state, app_state, _loop)
        self.head: Head | None = FIRST
        self.batch = server_state.batch
        self.begun_ns = 0  # when the oldest request in progress began; 0 if it is not timed

    @property
    def idle(self) -> bool:
        """No request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def carried(self) -> Routed | None:
        """What another worker has to know of a connection of a route."""
        return None

    @property
    def body_follows(self) -> bool:
        """The body of a request that has its response has not been read to its end."""
        return self.cycle is not None and self.cycle.more_body

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
        if self.idle or not cycle.response_started or not wants_events(cycle.scope["headers"]):
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
        before = self.cycle
        self.headers_complete()
        if self.cycle is not before:  # not an upgrade, for which uvicorn still needs the list
            # httptools adds trailers to it: the application's holds the fields of the head only (RFC 9110 §6.5.1).
            self.headers = []
            batch = self.batch
            if batch is not None:
                batch.started += 1
                if batch.timer is None:
                    batch.soon()
                if before is None or before.response_complete:
                    self.begun_ns = monotonic_ns() if batch.started < MANY or not batch.started & 3 else 0
        if self.server_state.draining:
            self._last_request()

    def handle_events(self, *events: Any) -> None:
        before = self.cycle
        self.take_events(*events)
        batch = self.batch
        if batch is not None and self.cycle is not before:
            batch.started += 1
            if batch.timer is None:
                batch.soon()
            self.begun_ns = monotonic_ns()  # the previous request has its response
        if self.server_state.draining:
            self._last_request()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        state = self.server_state
        due = state.handshake_is_over(self) if state.expected else None
        self.made(transport)
        unread = self.head is FIRST and self not in state.heads.due
        if unread:
            state.heads.wait(self, due)
        if state.draining:
            self.close_when_quiet(QUIET_SECONDS)
        if state.moves_to is not None:
            self.leave()
        elif state.evenness is not None:
            state.evenness.arrived(self, unread=unread and self.scheme == "http")

    def connection_lost(self, exc: Exception | None) -> None:
        if self.head is not None:
            self.head_is_over()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete and self.batch is not None:
            self.batch.unanswered(self, cycle)
        self.stop_timer()
        self.lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.batch is not None:
            self.batch.tally[MALFORMED] += 1
        super().send_400_response(msg)

    def on_response_complete(self) -> None:
        batch = self.batch
        if batch is not None:
            batch.complete += 1
            begun_ns = self.begun_ns
            if begun_ns:
                # A pipelined request begins now.
                self.begun_ns = now_ns = monotonic_ns()
                batch.latencies_ns.append(now_ns - begun_ns)
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

    def _last_request(self) -> None:
        """A request has begun while the worker drains."""
        if not self.idle:
            self._answer_and_close()

    def _answer_and_close(self) -> None:
        cycle = self.cycle
        cycle.keep_alive = False
        # With httptools uvicorn adds the header itself, with h11 it only closes.
        if not cycle.response_started and CLOSE not in cycle.default_headers:
            cycle.default_headers = [*cycle.default_headers, CLOSE]

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self.head is None and len(data) <= SMALL_BYTES:
            self.feed(data)
            cycle = self.cycle
            # The usual case, and the cheapest: a request in one piece, after others.
            if cycle is not None and not cycle.response_complete and "method" in self.scope:
                return
            if cycle is before or "method" not in self.scope:  # otherwise it has its response already
                self.wait_for_head(data, 1)  # a part of it may be the end of a body
            return
        size = len(data) if self.head is FIRST and len(data) <= SMALL_BYTES else self._measured(data)
        if size:
            self.feed(data)
            cycle = self.cycle
            if "method" not in (self.scope or ()) or (
                cycle is before and (cycle is None or cycle.response_complete)
            ):
                self.wait_for_head(data, size)
            elif self.head is not None:
                self.head_is_over()

    def take_over(self, until: float | None, *, asked: bool) -> None:
        """See Drainable."""
        if until is not None and not asked:
            heads = self.server_state.heads
            heads.wait(self, min(until, monotonic() + heads.seconds))
            return
        self.head = None
        left = self.timeout_keep_alive
        self.close_when_quiet(left if until is None else min(max(0.0, until - monotonic()), left))

    def time_left(self) -> dict[str, float | bool]:
        """The arguments for `take_over` in another process, for a connection that is between two requests."""
        if self.head is not None:
            due = self.server_state.heads.due.get(self)
            return {} if due is None else {"until": due, "asked": False}
        if self.timeout_keep_alive_task is None:
            return {}
        return {"until": monotonic() + self.closes_at - self.loop.time(), "asked": True}

    def head_is_over(self) -> None:
        """No head is expected any more."""
        if self.head is not None:
            self.head = None
            self.server_state.heads.end(self)

    def head_is_late(self) -> None:
        """The time is over: close a connection without data; respond to an incomplete head with 408."""
        head = self.head
        if head is not None and head.size and not self.transport.is_closing():
            self.refuse(431 if head.size > self.server_state.heads.most_bytes else 408)
        else:
            self.head_is_over()
            self.transport.close()

    def wait_for_head(self, data: bytes, size: int) -> None:
        """The data did not complete a request: `size` bytes of it are a head, unless it is the end of a body."""
        heads = self.server_state.heads
        if self.transport.is_closing() or self not in self.connections:
            self.head_is_over()  # a WebSocket is not a connection of this protocol any more
            return
        if self.idle and self.body_follows:
            self.close_when_quiet(self.timeout_keep_alive)
            return
        head = self.head
        if head is None:
            heads.wait(self)
        if head is None or head is FIRST:
            head = self.head = Head()
        head.size += size
        head.last = (head.last + data[-_END_BYTES:])[-_END_BYTES:]

    def _measured(self, data: bytes) -> int:
        """The number of bytes that belong to a head; 0 when the head is too large, and has been refused."""
        heads, head = self.server_state.heads, self.head
        if head is None and (not self.idle or self.body_follows):
            return 1  # a body, or data that follows one
        size = len(data)
        so_far, last = (0, b"") if head is None else (head.size, head.last)
        if so_far + size <= heads.most_bytes:
            return size
        text = last + data
        begins = 0 if so_far else len(text) - len(text.lstrip(b"\r\n"))
        end = _END_OF_HEAD.search(text, begins)
        if end is not None and so_far - len(last) + end.end() - begins <= heads.most_bytes:
            return size
        if self.idle:
            self.refuse(431)
        elif head is not None and head is not FIRST:
            head.size += size  # refused as soon as the response before it is complete
        return 0

    def refuse(self, status: int) -> None:
        """Respond to a request that the parser has not got, and close once the client has had time to read it."""
        transport, phrase = self.transport, _REFUSALS[status]
        lines = [b"HTTP/1.1 %d %b" % (status, phrase)]
        length = (b"content-length", b"%d" % len(phrase))
        more = _NOT_MALFORMED.get(status, ())
        for name, value in (*self.server_state.default_headers, *more, length, CLOSE_HEADER):
            lines.append(name + b": " + value)
        transport.write(b"\r\n".join([*lines, b"", phrase]))
        self.head_is_over()
        self.stop_timer()
        if self.batch is not None:
            self.batch.tally[MALFORMED] += status not in _NOT_MALFORMED
            self.batch.tally[STATUS + status // 100] += 1
        # Closed with unread data, the connection would be reset, and the response lost.
        if transport.can_write_eof():
            transport.write_eof()
        transport.resume_reading()
        transport.set_protocol(RefusedConnection(self))
        self.loop.call_later(_READ_ON_SECONDS, transport.close)

    def close_when_quiet(self, seconds: float) -> None:
        """Close the connection after this time without a byte."""
        self.stop_timer()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def stop_timer(self) -> None:
        """Do not close the connection for being quiet, until `close_when_quiet` is called again."""
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    @property
    def closes_at(self) -> float:
        """When the quiet connection is closed, by the loop's clock."""
        timer = self.timeout_keep_alive_task
        return self.loop.time() if timer is None else timer.when()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, but never one with a request in its receive buffer, or a part of one."""
        if self.transport is None or self.transport.is_closing():
            return
        if self.head is not None and self.head.size:
            return
        if unread_bytes(self.transport):
            self.close_when_quiet(self.timeout_keep_alive)
        else:
            super().timeout_keep_alive_handler()


class RefusedConnection(asyncio.Protocol):
    """A connection whose last response has been written: further data from its client is read and discarded."""

    def __init__(self, before: Lingering) -> None:
        self._before = before

    def connection_lost(self, exc: Exception | None) -> None:
        self._before.connection_lost(exc)


def wants_events(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether the client of a request with these headers reads a stream of events."""
    # As every EventSource sends (HTML, "Server-sent events"). Any other stream, ended so, could be taken for complete.
    return any(name == b"accept" and b"text/event-stream" in value for name, value in headers)
