"""A client's connection: requests of HTTP/1.1 one after the other, and their responses."""

from __future__ import annotations

import asyncio
import struct
from functools import partial
from socket import SO_LINGER, SOL_SOCKET
from typing import cast

from poolctl.http.chunked_body import Buffer
from poolctl.http.message_head import BadMessage, RequestHead, chunk
from poolctl.keeper.connection_handover import unread_bytes

from ..edge import Edge
from ..tls.listener_certificates import ServerContext
from .backend_connection import close_writing
from .exchange import Exchange
from .forwarded_head import Forwarding
from .leaving import IDLE_SECONDS, MOST_PASSABLE, leave, pass_on
from .proxied_request import read_request
from .refusal import refusal
from .request_body import RequestBody
from .request_routing import RoutedRequest, refused, route_request
from .response_head import Response
from .timer_wheel import SLOT_SECONDS, Timer
from .websocket_frames import FrameBoundary

# Maximum bytes read ahead while a request is in progress.
MOST_READ_AHEAD = 64 * 1024
# Requests in a row, in one turn of the loop, that are answered without a backend; and bytes, before the last of them.
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
# Larger data is not copied in order to be written together with the preceding bytes.
LARGE_BYTES = 8 * 1024
_RESET = struct.pack("ii", 1, 0)


Peer = tuple[str, int]  # address and port


class ClientConnection(asyncio.Protocol):
    """The client side of one exchange after the other (`client_side.ClientSide`).

    Further requests are read ahead, within a bound, and answered in their order: an exchange begins when the previous
    exchange has ended and its response is on its way.
    """

    __slots__ = (
        "_advancing", "_body", "_body_wanted", "_buffer", "_certificate", "_dropped", "_edge", "_exchange",
        "_forwarding", "_frames", "_keep", "_passable", "_reading", "_reported", "_request", "_scanned",
        "_scheme", "_timer", "_transport", "_turn_due", "_wraps", "_writable", "takes_chunks",
    )  # fmt: skip

    def __init__(self, edge: Edge, scheme: str, received: bytes = b"", reported: Peer | None = None) -> None:
        self.takes_chunks = True
        self._edge, self._scheme = edge, scheme
        self._timer = Timer(edge.pool.timers)
        self._transport: asyncio.Transport
        self._certificate: ServerContext | None = None
        self._forwarding: Forwarding
        self._buffer = (
            received  # read ahead, the beginning of a head, or chunks for the next turn of the loop
        )
        self._reported = reported  # the client of a trusted proxy's connection
        self._scanned = 0  # number of buffered bytes known to be an incomplete head
        self._request: RequestHead | None = None
        self._exchange: Exchange | None = None
        self._body: RequestBody | None = None  # of the request, as long as more of it is to come
        self._keep = True  # the connection, after the response
        self._wraps = False  # the response's body is put into chunks
        self._frames: FrameBoundary | None = None  # of a WebSocket, from the server
        self._writable = self._reading = self._body_wanted = True
        self._turn_due = False  # the buffer is processed further in the loop's next turn
        self._advancing, self._passable = False, 0  # requests in a row that could have been passed
        self._dropped: int | None = None  # bytes since the last response of the connection

    def __repr__(self) -> str:
        return f"<ClientConnection {self._exchange or 'idle'}>"

    @property
    def http_version(self) -> str:
        return "1.1" if self._request is None or self._request.http_1_1 else "1.0"

    # Callbacks of the loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no common class
        peer = transport.get_extra_info("peername")
        address, port = self._reported or (peer[:2] if isinstance(peer, tuple) else ("", 0))
        self._forwarding = Forwarding(address, self._scheme, self._edge.settings.trusted_proxies, port)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self._certificate = tls.context
        self._edge.pool.enter(self, idle=not self._buffer)
        self._timer.start(self._edge.settings.head_seconds, self._head_expired)
        self._advance()

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            if self._dropped is not None:
                self._drop(data)
                return
            self._edge.pool.idle_clients.pop(self, None)
            self._buffer = self._buffer + data if self._buffer else data
            self._advance()
        elif exchange.tunnel:
            exchange.send_body(data, complete=False)
        elif self._body is not None and not self._buffer:
            self._read_body(exchange, self._body, data)
        else:
            self._buffer += data
            self._update_reading()

    def eof_received(self) -> bool:
        """Abort the request of a client that closed its side, as nginx does; a tunnel stays half open."""
        exchange = self._exchange
        if exchange is not None and exchange.tunnel and self._transport.can_write_eof():
            exchange.client_eof()
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._edge.pool.leave(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.client_left()
        self._timer.close()
        self._buffer, self._dropped = b"", 0

    def pause_writing(self) -> None:
        self._writable = False
        if self._exchange is not None:
            self._exchange.client_writable(False)

    def resume_writing(self) -> None:
        self._writable = True
        if self._exchange is not None:
            self._exchange.client_writable(True)
        else:
            self._advance()

    # Requests.

    def _advance(self) -> None:
        """Begin the next request if it has arrived and the client has taken the responses before it."""
        if self._advancing:  # its exchange has already ended: the loop goes on
            return
        self._advancing = True
        try:
            left = len(self._buffer) - MOST_BYTES_AT_ONCE
            for number in range(MOST_REQUESTS_AT_ONCE):
                if self._exchange is not None or not self._buffer or not self._writable:
                    break
                if number and len(self._buffer) < left:
                    self._go_on_soon()
                    break
                if self._dropped is not None or not self._begin_next():
                    break
            else:
                self._go_on_soon()
        finally:
            self._advancing = False
        if self._buffer or not self._reading:
            self._update_reading()

    def _begin_next(self) -> bool:
        """Begin the next buffered request, or refuse it; False if its head is not complete yet."""
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
            self._keep = found.keep_alive and not found.body
            found_route = routed = route_request(edge, found, self._forwarding, self._certificate)
            self._keep = found.keep_alive
            self._begin(found, routed)
        except BadMessage as error:
            if self._request is not None:
                self._buffer = data[self._request.end :]
            refused(edge, error.status, self.http_version, self._request, self._forwarding, found_route)
            self.refuse(error.status)
        return True

    def _begin(self, request: RequestHead, routed: RoutedRequest) -> None:
        # A worker would take the proxy that reports its clients for all of them.
        self._passable = self._passable + 1 if routed.servers and self._reported is None else 0
        if self._passable > MOST_PASSABLE and pass_on(
            self._edge, self, self._transport, self._buffer, routed.servers
        ):
            self._left()
            return
        body, data = None, self._buffer[request.end :]
        if request.body:
            self._keep = False  # as long as the body is not known to be in order
            body = RequestBody(request.body, routed.route.max_body_bytes)
            data, self._buffer = bytes(body.feed(data)), body.rest
            self._keep = request.keep_alive
            if body.rest and not body.done:
                self._go_on_soon()
        else:
            data, self._buffer = b"", data
        complete = body is None or body.done
        self._body = None if complete else body
        self.takes_chunks = request.http_1_1
        self._body_wanted = True
        exchange = self._exchange = Exchange(self._edge, self, request, routed, self._timer)
        exchange.start(data, complete=complete)

    def _read_body(self, exchange: Exchange, body: RequestBody, data: bytes) -> None:
        try:
            piece = body.feed(data)
        except BadMessage as error:
            exchange.refuse(error.status)
            return
        self._buffer = body.rest
        if body.done:
            self._body = None
        elif body.rest:
            self._go_on_soon()
        if piece or body.done:
            exchange.send_body(piece, complete=body.done)

    def _go_on_soon(self) -> None:
        """Process the buffer after other connections have had their turn; reading pauses until then."""
        if not self._turn_due:
            self._turn_due = True
            self._edge.loop.call_soon(self._go_on)
            self._update_reading()

    def _go_on(self) -> None:
        self._turn_due = False
        exchange, body = self._exchange, self._body
        if exchange is None:
            self._advance()
        elif body is not None and self._buffer and self._body_wanted:
            data, self._buffer = self._buffer, b""
            self._read_body(exchange, body, data)
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
        if self.takes_chunks:  # a client of HTTP/1.0 knows none
            self._transport.write(response.lines + b"\r\n")

    def respond(self, response: Response) -> None:
        request, exchange = self._request, self._exchange
        assert request is not None
        assert exchange is not None
        keep = self._keep and exchange.complete and self._edge.keeps_connections
        if keep and response.plain and request.http_1_1:
            self._transport.write(response.received)
            return
        head, self._keep, self._wraps = response.framed(http_1_1=request.http_1_1, keep=keep)
        first = chunk(response.first) if self._wraps and response.first_size else response.first
        if len(first) > LARGE_BYTES:
            # After the connection is lost, asyncio's writelines raises TypeError in Python 3.12 and 3.13 (gh-136234).
            if not self._transport.is_closing():
                self._transport.writelines((head, first))
        else:
            self._transport.write(head + first)

    def send_data(self, data: Buffer) -> None:
        if self._frames is not None:
            data = self._frames.passed_on(data)
        self._transport.write(chunk(data) if self._wraps else data)

    def finish(self, trailers: bytes) -> None:
        exchange, self._exchange = self._exchange, None
        if self._wraps:
            self._wraps = False
            self._transport.write(b"0\r\n" + trailers + b"\r\n")
        self._response_ended(read=exchange is None or exchange.complete or exchange.tunnel)

    def refuse(self, status: int, retry_after_seconds: float = 0, fields: bytes = b"") -> None:
        request = self._request
        exchange, self._exchange = self._exchange, None
        complete = exchange is None or exchange.complete
        self._keep = self._keep and complete and self._edge.keeps_connections
        self._transport.write(
            refusal(
                status,
                retry_after_seconds=retry_after_seconds,
                head_only=request is not None and request.method == b"HEAD",
                keep_alive=self._keep,
                fields=fields,
            )
        )
        self._response_ended(read=complete and request is not None)

    def cut_off(self) -> None:
        self._exchange = None
        if not self.takes_chunks:  # only this shows the client that the response is incomplete
            self._transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, _RESET)
        self._transport.abort()

    def take_body(self, take: bool) -> None:
        self._body_wanted = take
        if take and self._body is not None and self._buffer:
            self._go_on_soon()
        self._update_reading()

    def _response_ended(self, *, read: bool) -> None:
        """Begin the next request, or close the connection. `read`: the request has been read to its end."""
        self._body_wanted = True
        if self._keep:
            edge = self._edge
            seconds = QUIET_SECONDS if edge.draining else edge.settings.keep_alive_seconds
            if seconds > IDLE_SECONDS:
                self._timer.start(IDLE_SECONDS, self._idle)
            else:
                self._timer.start(seconds, self._end)
            if self._buffer or not self._reading:
                self._advance()
            if not self._buffer and self._exchange is None and self._dropped is None:
                edge.pool.idle_clients[self] = None
            return
        self._body, self._dropped = None, 0
        if (read and not self._buffer) or not self._transport.can_write_eof():
            self._end()
            return
        self._buffer = b""
        close_writing(self._transport)
        self._timer.start(LINGER_SECONDS, self._transport.abort)
        self._update_reading()

    def _drop(self, data: bytes) -> None:
        assert self._dropped is not None
        self._dropped += len(data)
        if self._dropped > MOST_LINGERED:
            self._transport.abort()

    # Leaving the proxy.

    def _idle(self) -> None:
        seconds = max(self._edge.settings.keep_alive_seconds - IDLE_SECONDS, SLOT_SECONDS)
        if self._reported is None and leave(self._edge, self, self._transport, b"", seconds):
            self._left()
        else:
            self._timer.start(seconds, self._end)

    def _left(self) -> None:
        self._timer.stop()
        self._buffer, self._dropped = b"", 0

    # Another protocol.

    def switch(self, response: Response, data: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        self._keep = False
        lines = b"%bConnection: Upgrade\r\nUpgrade: %b\r\n\r\n" % (response.lines, response.upgrade)
        self._transport.write(lines)
        if response.upgrade.lower() == b"websocket":
            self._frames = FrameBoundary()
        if data:
            self.send_data(data)
        early, self._buffer = self._buffer, b""
        if early:
            exchange.send_body(early, complete=False)
        self._update_reading()

    def send_eof(self) -> None:
        close_writing(self._transport)

    # Ends.

    def drain(self) -> None:
        """End after the present response, or soon if there is none; a WebSocket continues."""
        if self._exchange is None and self._dropped is None:
            self._timer.start(QUIET_SECONDS, self._end)

    def end_now(self) -> None:
        """End now: a WebSocket with a close frame where a frame is possible, everything else at once."""
        if self._frames is None or self._frames.ending:
            self._transport.abort()
            return
        self._timer.start(CLOSE_FRAME_SECONDS, self._transport.abort)
        self._transport.write(self._frames.end())

    def close_idle(self) -> bool:
        """Close the connection, which is between two requests, unless bytes wait to be read or to be sent."""
        transport = self._transport
        if transport.get_write_buffer_size() or unread_bytes(transport):
            return False
        transport.close()
        transport.abort()  # TLS would wait for the client
        return True

    def _head_expired(self) -> None:
        if self._buffer:
            self._keep = False
            self._edge.counts.refused("408")
            self.refuse(408)
        else:
            self._end()

    def _end(self) -> None:
        """Close after sending the buffered bytes, while the client still accepts some of them."""
        self._transport.close()
        unsent = self._transport.get_write_buffer_size()
        self._timer.start(SENDING_SECONDS if unsent else 0, partial(self._sending_expired, unsent))

    def _sending_expired(self, unsent: int) -> None:
        if self._transport.get_write_buffer_size() < unsent:
            self._end()
        else:
            self._transport.abort()
