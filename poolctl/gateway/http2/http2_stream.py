"""A stream of HTTP/2: one request of a client, and its response."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ...http.canonical_head import CHUNKED
from ...http.message_head import BadMessage
from ..edge import Edge
from ..proxy.chunked_body import Buffer, allowed_trailers
from ..proxy.exchange import Exchange
from ..proxy.proxied_request import ProxiedRequest
from ..proxy.refusal import refusal
from ..proxy.request_routing import RoutedRequest
from ..proxy.response_head import Response
from ..proxy.timer_wheel import Timer
from .http2_fields import Fields, MalformedError, response_fields, trailer_lines

# Of a response; so much waits for the client's window before the backend is read no further. When the responses of a
# connection together are more than MOST_WAITING_TOGETHER, those that wait are read no further at all.
MOST_WAITING = 64 * 1024
MOST_WAITING_TOGETHER = 512 * 1024
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR = 0, 1, 2  # RFC 9113 §7


class StreamConnection(Protocol):
    """The stream's connection."""

    waiting: int  # bytes of all responses

    def send_fields(self, stream: Stream, fields: Fields, *, end: bool) -> None:
        """Send a head or the trailers."""

    def wants_to_send(self, stream: Stream) -> None:
        """The stream has data, or its end, to be sent."""

    def ended(self, stream: Stream) -> None:
        """The response has ended with its head, which has been sent."""

    def received(self, stream: Stream, size: int) -> None:
        """So many bytes of the body have been taken: the client may send as many more."""

    def reset(self, stream: Stream, code: int) -> None:
        """End the stream before its response was complete."""


class Stream:
    """The client side of one exchange (`client_side.ClientSide`). `number` identifies it on its connection."""

    __slots__ = (
        "_chunked", "_complete", "_connection", "_exchange", "_held", "_most_body", "_paused", "_request", "_sent",
        "_size", "_taking", "_timer", "_waiting", "finished", "number", "size", "takes_chunks", "trailers",
    )  # fmt: skip

    http_version = "2"

    def __init__(self, edge: Edge, connection: StreamConnection, number: int) -> None:
        self.takes_chunks = False
        self.number = number
        self.size = 0  # of the response's data that waits
        self.finished = False  # nothing is added to it
        self.trailers = b""
        self._connection = connection
        self._timer = Timer(edge.pool.timers)
        self._request: ProxiedRequest | None = None
        self._exchange: Exchange | None = None
        self._waiting: deque[Buffer] = deque()
        self._paused = False  # the backend is not read
        self._sent = False  # the head, and the end of the response with it
        self._chunked = False
        self._complete = False  # the request
        self._size = self._most_body = 0  # of the request's body
        self._taking = True
        self._held = 0  # received, and not yet given back to the client's window

    def __repr__(self) -> str:
        return f"<Stream {self.number}: {self._exchange or 'no exchange'}>"

    @property
    def active(self) -> bool:
        """Whether its exchange goes on."""
        return self._exchange is not None

    @property
    def complete(self) -> bool:
        """Whether the whole request has been received."""
        return self._complete

    # The request.

    def begin(self, edge: Edge, request: ProxiedRequest, routed: RoutedRequest, *, complete: bool) -> None:
        """Send the request to a backend. Raises MalformedError, and BadMessage for a body that is too large."""
        self._request = request
        self._complete = complete
        self._chunked = request.body == CHUNKED
        self._most_body = routed.route.max_body_bytes
        self._check_size()
        exchange = self._exchange = Exchange(edge, self, request, routed, self._timer)
        exchange.start(b"", complete=complete)

    def receive(self, data: bytes, window: int, *, complete: bool) -> None:
        """More of the request's body, which has made the client's window smaller by so many bytes.

        Raises MalformedError.
        """
        exchange = self._exchange
        if exchange is None:
            self._connection.received(self, window)
            return
        self._held += window
        self._size += len(data)
        self._complete = complete
        try:
            self._check_size()
        except BadMessage as error:
            exchange.refuse(error.status)
            return
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            data = data + b"0\r\n\r\n" if complete else data
        exchange.send_body(data, complete=complete)
        self._give_back()

    def receive_trailers(self, fields: Fields) -> None:
        """The request's end, with these fields. Raises MalformedError."""
        lines = allowed_trailers(trailer_lines(fields))
        self._complete = True
        self._check_size()
        if self._exchange is not None:
            self._exchange.send_body(b"0\r\n" + lines + b"\r\n" if self._chunked else b"", complete=True)

    def close(self) -> None:
        """The stream has ended, or its connection has: let go of everything."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_left()
        self._timer.close()
        self._connection.waiting -= self.size
        self.size = 0
        self._waiting.clear()
        self._taking = True
        self._give_back()

    def _check_size(self) -> None:
        body = self._size if self._chunked or self._request is None else self._request.body
        if self._most_body and body > self._most_body:
            raise BadMessage("the body is too large", 413)
        if self._size > body or (self._complete and self._size != body):
            raise MalformedError("the body has not the length that the head names")

    def take_body(self, take: bool) -> None:
        self._taking = take
        self._give_back()

    def _give_back(self) -> None:
        if self._taking and self._held:
            size, self._held = self._held, 0
            self._connection.received(self, size)

    # The response.

    def interim(self, response: Response) -> None:
        self._connection.send_fields(self, response_fields(response.lines), end=False)

    def respond(self, response: Response) -> None:
        fields = response_fields(response.lines)
        if response.length >= 0:
            fields.append((b"content-length", b"%d" % response.length))
        self._sent = response.body == 0
        self._connection.send_fields(self, fields, end=self._sent)
        if response.first_size:
            self.send_data(response.first)

    def send_data(self, data: Buffer) -> None:
        self._waiting.append(data)
        self.size += len(data)
        self._connection.waiting += len(data)
        self._connection.wants_to_send(self)
        most = MOST_WAITING if self._connection.waiting <= MOST_WAITING_TOGETHER else 0
        if self.size > most and not self._paused and self._exchange is not None:
            self._paused = True
            self._exchange.client_writable(False)

    def take_data(self, most: int) -> bytes:
        """At most so many bytes of the data that waits, which are sent now."""
        pieces: list[Buffer] = []
        left = min(most, self.size)
        self.size -= left
        self._connection.waiting -= left
        while left:
            piece = self._waiting.popleft()
            if len(piece) > left:
                view = memoryview(piece)
                self._waiting.appendleft(view[left:])
                piece = view[:left]
            left -= len(piece)
            pieces.append(piece)
        if self._paused and self.size <= MOST_WAITING // 4:
            self._paused = False
            if self._exchange is not None:
                self._exchange.client_writable(True)
        return b"".join(pieces)

    def finish(self, trailers: bytes) -> None:
        self._exchange = None
        self.finished, self.trailers = True, trailers
        if self._sent:
            self._connection.ended(self)
        else:
            self._connection.wants_to_send(self)

    def refuse(self, status: int, retry_after_seconds: float = 0) -> None:
        self._exchange = None
        request = self._request
        head_only = request is not None and request.method == b"HEAD"
        text = refusal(status, retry_after_seconds=retry_after_seconds, head_only=head_only, keep_alive=True)
        lines, _, body = text.partition(b"\r\n\r\n")
        self._sent = head_only
        self._connection.send_fields(self, response_fields(lines), end=head_only)
        if body:
            self.send_data(body)
        self.finish(b"")

    def cut_off(self) -> None:
        self._exchange = None
        self._connection.reset(self, INTERNAL_ERROR)

    # Other protocols: the gateway does not announce that it takes them (RFC 8441), so no request asks for one.

    def switch(self, response: Response, data: bytes) -> None:
        self._connection.reset(self, INTERNAL_ERROR)

    def send_eof(self) -> None:
        pass
