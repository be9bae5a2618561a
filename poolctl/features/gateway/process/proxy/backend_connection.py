"""A connection to a backend, which carries one request at a time and parses its response."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Protocol, cast

from poolctl.http.messages import (
    CHUNKED,
    MOST_CHUNKS_AT_ONCE,
    MOST_INTERIM,
    UNTIL_CLOSE,
    BadMessage,
    Buffer,
    ChunkedBodyReader,
)

from ..backends.route_backends import Backend
from ..settings import Endpoint
from .response_head import Response, read_response

_NEVER = float("inf")
# What is expected next: a number of bytes of the body, 0 for none; CHUNKED, UNTIL_CLOSE; or one of:
_HEAD, _TUNNEL = -3, -4
# After a tunnel: time that the backend may take to accept the rest of the client's bytes.
_SENDING_SECONDS = 60.0


class Timer:
    """One deadline that is moved often; `expired` is called when it has passed.

    Moving it later is only an assignment: the loop's timer is set again when it fires.
    """

    __slots__ = ("_due", "_expired", "_handle", "_loop", "deadline")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._expired: Callable[[], None] = _nothing
        self._handle: asyncio.TimerHandle | None = None
        self._due = _NEVER  # when the loop's timer is due
        self.deadline = _NEVER

    def start(self, seconds: float, expired: Callable[[], None]) -> None:
        """Replace the deadline and its callback; 0 seconds means no deadline."""
        self._expired = expired
        self.deadline = deadline = self._loop.time() + seconds if seconds else _NEVER
        if deadline < self._due:
            self._arm_loop_timer()

    def stop(self) -> None:
        """Remove the deadline, so that the callback given to `start` is not called."""
        self.deadline, self._expired = _NEVER, _nothing

    def close(self) -> None:
        """Remove the deadline, and cancel the event loop's timer, which refers to this object. Closes no connection."""
        self.stop()
        if self._handle is not None:
            self._handle.cancel()
            self._handle, self._due = None, _NEVER

    def _arm_loop_timer(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._due = self.deadline
        self._handle = self._loop.call_at(self._due, self._on_loop_timer)

    def _on_loop_timer(self) -> None:
        self._handle, self._due = None, _NEVER
        if self.deadline <= self._loop.time():
            expired = self._expired
            self.stop()
            expired()
        elif self.deadline < _NEVER:
            self._arm_loop_timer()


def _nothing() -> None:
    pass


class ResponseReceiver(Protocol):
    """Receives the parts of a response. No method is called after `response_ends` or `backend_lost`."""

    def interim(self, response: Response) -> None:
        """Called for an interim response (1xx)."""

    def switched(self, response: Response, data: bytes) -> None:
        """Called after a change of protocol (101); `data` are its first bytes, later bytes go to `response_data`."""

    def response_begins(self, response: Response, *, done: bool) -> None:
        """Called with the head, and the first bytes of the body.

        If `done`, the response is complete and `response_ends` follows.
        """

    def response_data(self, data: Buffer) -> None:
        """Called with bytes of the body, or of a tunnel. A chunked body includes the framing, unless it is decoded."""

    def response_ends(self, trailers: bytes) -> None:
        """Called when the response is complete."""

    def backend_eof(self) -> None:
        """Called when the backend has closed its side of a tunnel. The client may still send bytes to the backend."""

    def backend_lost(self, error: Exception | None) -> None:
        """Called if the connection is lost before the response is complete, or the response is invalid (BadMessage)."""

    def backend_writable(self, writable: bool) -> None:
        """Called when the backend stops accepting bytes, or accepts them again."""


class BackendConnection(asyncio.Protocol):
    """A connection to a backend. `requests` counts the requests that were sent on it.

    `answered`: bytes of the current response have arrived. `reusable`: the last response was complete, and the
    backend keeps the connection open.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.endpoint = Endpoint("")
        self.requests = 0
        self.answered = False
        self.reusable = False
        self.closed = False
        self._timer = Timer(loop)
        self._transport: asyncio.Transport
        self._receiver: ResponseReceiver | None = None
        self._backend: Backend | None = None
        self._idle_in: list[BackendConnection] | None = None
        self._expected = 0
        self._buffer = b""  # the beginning of a head, or chunks for the next turn of the loop
        self._scanned = 0  # the length of that beginning
        self._chunks: ChunkedBodyReader | None = None
        self._turn_due = False  # the buffer is processed further in the loop's next turn
        self._paused = False  # the client accepts no data for now
        self._head_only = self._decode = self._may_switch = False
        self._interim = 0

    # Methods for the pool.

    def start_idle_timeout(self, idle: list[BackendConnection], seconds: float) -> None:
        """Keep the connection in this list of idle ones, and close it after `seconds`."""
        self._idle_in = idle
        self._timer.start(seconds, self.close)

    @property
    def idle_until(self) -> float:
        """The loop's time at which the idle connection is closed, unless it is used before."""
        return self._timer.deadline

    def reuse(self, *, certain: bool) -> bool:
        """Stop the idle timeout, after removal from the idle list; returns whether the connection is usable.

        `certain`: also ask the kernel whether the backend has closed the connection.
        """
        self._idle_in = None
        self._timer.stop()
        if self.closed or self._transport.is_closing():
            return False
        if certain:
            poll = select.poll()
            poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
            if poll.poll(0):
                self.close()
                return False
        return True

    # Methods for the exchange.

    def count_as_open_for(self, backend: Backend) -> None:
        """Count this connection among the backend's open connections until it is closed."""
        self._backend = backend
        backend.open_connections += 1

    def request(
        self, receiver: ResponseReceiver, data: bytes, *, head_only: bool, decode: bool, may_switch: bool
    ) -> None:
        """Send the head of a request, with the part of the body that has arrived.

        `head_only`: the response has no body, even if its fields announce one. `decode`: the receiver gets the data of
        a chunked body without the framing. `may_switch`: the request asks for another protocol.
        """
        self._receiver = receiver
        self._head_only, self._decode, self._may_switch = head_only, decode, may_switch
        self._expected, self._interim = _HEAD, 0
        self.answered = self.reusable = False
        self.requests += 1
        self._transport.write(data)

    def send(self, data: Buffer) -> None:
        """Send more of the body, or data of a tunnel."""
        self._transport.write(data)

    def send_eof(self) -> None:
        """Close this side of the tunnel, because the client has closed its own."""
        write_eof_or_close(self._transport)

    def pause_reading(self) -> None:
        """Pause reading, because the client does not accept data."""
        self._paused = True
        self._update_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._paused = False
        if self._chunks is not None and self._buffer:
            self._schedule_buffer_processing()
        self._update_reading()

    def close(self, *, gently: bool = False) -> None:
        """Close the connection at once, or `gently` after sending the buffered bytes; detaches the receiver."""
        self._receiver = None
        self.reusable = False
        if gently:
            self._transport.close()
            if not self.closed:
                self._timer.start(_SENDING_SECONDS, self._transport.abort)
        else:
            self._transport.abort()

    # Callbacks of the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have no common base class

    def pause_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.backend_writable(False)

    def resume_writing(self) -> None:
        if self._receiver is not None:
            self._receiver.backend_writable(True)

    def data_received(self, data: bytes) -> None:
        receiver = self._receiver
        expected = self._expected
        self.answered = True
        try:
            if expected == _HEAD:
                self._read_head(data)
            elif receiver is None or not expected:  # a response that was not asked for
                self.close()
            elif expected > 0:
                self._expected = max(0, expected - len(data))
                receiver.response_data(data[:expected])
                if not self._expected:
                    self._complete(keep=len(data) == expected)
            elif expected == CHUNKED:
                if self._buffer:
                    self._buffer += data
                else:
                    self._read_chunks(receiver, data)
            else:
                receiver.response_data(data)
        except BadMessage as error:
            self._fail_response(error)

    def eof_received(self) -> bool:
        if self._expected == _TUNNEL and self._receiver is not None and self._transport.can_write_eof():
            self._receiver.backend_eof()
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._timer.close()
        if self._backend is not None:
            self._backend.open_connections -= 1
        if self._idle_in is not None and self in self._idle_in:
            self._idle_in.remove(self)
        if self._expected == UNTIL_CLOSE and error is None and self._receiver is not None:
            self._complete(keep=False)
        elif not (self._expected == CHUNKED and self._buffer):  # otherwise the received bytes are read first
            self._fail_response(error)

    # Reading a response.

    def _read_head(self, data: bytes) -> None:
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        while True:
            receiver = self._receiver
            if receiver is None:
                self.close()
                return
            response = read_response(data, self._scanned, head_only=self._head_only)
            if response is None:
                self._buffer, self._scanned = data, len(data)
                return
            self._scanned = 0
            if response.status >= 200:
                break
            if response.status == 101:
                if not self._may_switch or not response.upgrade:
                    raise BadMessage("switches protocols without being asked")
                self._expected = _TUNNEL
                receiver.switched(response, data[response.end :])
                return
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise BadMessage(f"more than {MOST_INTERIM} interim responses")
            receiver.interim(response)
            data = data[response.end :]
            if not data:
                return
        self._begin_response(receiver, response)

    def _begin_response(self, receiver: ResponseReceiver, response: Response) -> None:
        data, body = bytes(response.first), response.body
        self._expected, self.reusable = body, response.reusable
        if body >= 0:
            self._expected = max(0, body - len(data))
            if len(data) > body:  # a response that was not asked for
                response.first, self.reusable = data[:body], False
            receiver.response_begins(response, done=not self._expected)
            if not self._expected:
                self._complete(keep=True)
            return
        if body == CHUNKED:
            chunks = self._chunks = ChunkedBodyReader(decode=self._decode)
            response.first = chunks.feed(data, most_chunks=MOST_CHUNKS_AT_ONCE)
            if not chunks.done and chunks.rest:
                self._buffer = chunks.rest
                self._schedule_buffer_processing()
            receiver.response_begins(response, done=chunks.done)
            if chunks.done:
                self._complete(chunks.trailers, keep=not chunks.rest)
            return
        receiver.response_begins(response, done=False)

    def _read_chunks(self, receiver: ResponseReceiver, data: bytes) -> None:
        chunks = self._chunks
        assert chunks is not None
        piece = chunks.feed(data, most_chunks=MOST_CHUNKS_AT_ONCE)
        if not chunks.done and chunks.rest:
            self._buffer = chunks.rest
            self._schedule_buffer_processing()
        if piece:
            receiver.response_data(piece)
        if chunks.done and self._receiver is receiver:
            self._complete(chunks.trailers, keep=not chunks.rest)

    def _schedule_buffer_processing(self) -> None:
        """Pause reading, and process the rest of the buffer in the next loop iteration, after other connections."""
        if not self._turn_due:
            self._turn_due = True
            asyncio.get_running_loop().call_soon(self._process_buffer)
            self._update_reading()

    def _process_buffer(self) -> None:
        self._turn_due = False
        receiver = self._receiver
        if receiver is not None and self._chunks is not None and self._buffer and not self._paused:
            data, self._buffer = self._buffer, b""
            try:
                self._read_chunks(receiver, data)
            except BadMessage as error:
                self._fail_response(error)
            if self.closed and not self._buffer:
                self._fail_response(None)
        self._update_reading()

    def _update_reading(self) -> None:
        if self.closed or self._transport.is_closing():
            return
        if self._paused or self._turn_due:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _complete(self, trailers: bytes = b"", *, keep: bool) -> None:
        receiver, self._receiver = self._receiver, None
        self._expected, self._chunks = 0, None
        self.reusable = self.reusable and keep and not self.closed
        if receiver is not None:
            receiver.response_ends(trailers)

    def _fail_response(self, error: Exception | None) -> None:
        receiver, self._receiver = self._receiver, None
        self._expected, self.reusable = 0, False
        if not self.closed:
            self._transport.abort()
        if receiver is not None:
            receiver.backend_lost(error)


def write_eof_or_close(transport: asyncio.Transport) -> None:
    """Close the sending direction after the buffered bytes; with TLS, which cannot do that, the whole connection."""
    if not transport.can_write_eof():
        transport.close()
    elif not transport.is_closing():
        try:
            transport.write_eof()
        except OSError:  # asyncio raises it if the connection was reset just now
            transport.abort()
