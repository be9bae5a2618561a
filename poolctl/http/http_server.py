"""A small asyncio server that reads whole requests, and writes responses whole or piece by piece. h11 frames them.

It serves commands, and the health of `poolctl serve`. No client can block it: time and bytes of a request are limited,
and a refused connection is closed in a way that lets the client read the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

import h11

from .messages import END_OF_HEAD, MAX_FIELDS, MAX_HEAD_BYTES, UNFIT, UNFIT_CHARACTER, BadMessage, next_event

Fields = Iterable[tuple[str, str]]
_READ_BYTES = 64 * 1024
# Accepted by h11, but read differently by other servers (RFC 9112 §2.2, §3.2, §5.2, §6.3): UNFIT, a folded field, a
# list of lengths, a fragment.
_ambiguous = re.compile(UNFIT + rb"|\n[\t ]|\n(?i:content-length):[^\r]*,|\A[^\r]*#").search
_is_host = re.compile(rb"[0-9A-Za-z._~%!$&'()*+,;=:\[\]-]*").fullmatch  # RFC 9110 §7.2, RFC 3986 §3.2.2
_ACCEPT_AGAIN_SECONDS = 0.1
_LINGER_SECONDS, _LINGER_BYTES = 1.0, 1024 * 1024

logger = logging.getLogger("poolctl.supervisor")


class ClientGone(ConnectionError):
    """The client does not read the response, or has closed the connection."""


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A complete request, and the socket it was received on. `path` is the target without its query."""

    method: str
    path: str
    body: bytes
    sock: socket.socket


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits for each client. With `keep_alive_seconds` 0, each connection serves one request."""

    head_bytes: int = MAX_HEAD_BYTES
    body_bytes: int = MAX_HEAD_BYTES
    request_seconds: float = 10.0
    keep_alive_seconds: float = 0.0
    connections: int | None = None  # one more closes the oldest connection
    unread_bytes: int = 64 * 1024 * 1024


class Responder:
    """The answer to one request: `send` it whole, or `begin`, `write` and `finish` it."""

    def __init__(
        self,
        connection: h11.Connection,
        writer: asyncio.StreamWriter,
        limits: ServerLimits,
        *,
        keep_alive: bool,
        bodiless: bool = False,
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._limits = limits
        self._keep_alive = keep_alive
        self._bodiless = bodiless

    def begin(self, status: int, fields: Fields) -> None:
        """Send the head of a response of unknown length."""
        closing = [] if self._keep_alive else [("Connection", "close")]
        reason = HTTPStatus(status).phrase.encode()
        self._send(h11.Response(status_code=status, headers=[*fields, *closing], reason=reason))

    def write(self, data: bytes) -> None:
        """Send a piece of the response without waiting. Raises ClientGone above `unread_bytes` of unsent data."""
        if self._writer.transport.get_write_buffer_size() > self._limits.unread_bytes:
            raise ClientGone("the client does not read")
        if data and not self._bodiless:
            self._send(h11.Data(data=data))

    def send_with_descriptor(self, sock: socket.socket, fd: int, data: bytes) -> None:
        """Send a piece of the response with a file descriptor (SCM_RIGHTS). Raises ClientGone if it would block."""
        framed = self._connection.send(h11.Data(data=data)) or b""
        if self._writer.transport.get_write_buffer_size():
            raise ClientGone("the client does not read")
        try:
            sent = socket.send_fds(sock, [framed], [fd], socket.MSG_DONTWAIT)
        except OSError as error:
            raise ClientGone(f"the client does not read: {error}") from None
        if sent < len(framed):
            raise ClientGone("the client does not read")

    async def finish(self) -> None:
        """End the response, and wait until it is sent. Raises ClientGone when the client takes too long."""
        self._send(h11.EndOfMessage())
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                await self._writer.drain()
        except TimeoutError:
            raise ClientGone("the client does not read") from None

    async def send(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a complete response, and wait until it is sent. Raises ClientGone when the client takes too long."""
        self.begin(status, [*fields, ("content-length", str(len(body)))])
        self.write(body)
        await self.finish()

    def _send(self, event: h11.Event) -> None:
        self._writer.write(self._connection.send(event) or b"")


class HttpHandler(Protocol):
    """Answers the requests of a server."""

    def check_client(self, sock: socket.socket) -> None:
        """Raise BadMessage to refuse a client before reading anything from it."""

    async def handle(self, request: ReceivedRequest, response: Responder) -> None:
        """Answer a request. Cancelled when the client disconnects, if the server watches for that."""

    def error_response(self, error: BadMessage) -> tuple[int, str, bytes]:
        """Status, content type and body of the response to an invalid request."""


class HttpServer:
    """Serves requests on its listeners.

    `what` names the requests in the log; `reserve` is a context manager that is entered for each connection. With
    `watch`, a request is cancelled when its client disconnects; each connection then serves one request, because bytes
    that arrive meanwhile are discarded.
    """

    def __init__(
        self,
        handler: HttpHandler,
        limits: ServerLimits,
        *,
        what: str,
        watch: bool = False,
        reserve: contextlib.AbstractContextManager[None] | None = None,
    ) -> None:
        self._handler = handler
        self._limits = limits
        self._what = what
        self._watch = watch
        self._reserve = reserve or contextlib.nullcontext()
        self._listeners: list[socket.socket] = []
        # Oldest first; each with its socket until a transport owns it.
        self._connections: dict[asyncio.Task[None], socket.socket | None] = {}

    def listen(self, listener: socket.socket, backlog: int) -> None:
        """Also accept connections on this listening socket, which is closed with the server."""
        listener.setblocking(False)
        listener.listen(backlog)
        self._listeners.append(listener)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def stop_accepting(self) -> None:
        """Close the listeners; requests in progress continue."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()

    def abort(self) -> None:
        """Stop accepting, and cancel the requests in progress."""
        self.stop_accepting()
        for task in list(self._connections):
            task.cancel()

    async def drain_requests(self, grace_seconds: float) -> None:
        """Stop accepting, and wait until current requests are finished, at most `grace_seconds`."""
        self.stop_accepting()
        pending = self._connections.keys() - {asyncio.current_task()}
        if pending:
            await asyncio.wait(pending, timeout=grace_seconds)

    def _accept(self, listener: socket.socket) -> None:
        try:
            with self._reserve:
                sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.error("cannot accept %s: %s", self._what, error.strerror)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener.fileno())
            loop.call_later(_ACCEPT_AGAIN_SECONDS, self._accept_again, listener)
            return
        limit = self._limits.connections
        if limit is not None and len(self._connections) >= limit:
            oldest = next(iter(self._connections))
            oldest.cancel()
            self._remove_connection(oldest)
        task = asyncio.get_running_loop().create_task(self._serve(sock))
        self._connections[task] = sock
        task.add_done_callback(self._remove_connection)

    def _remove_connection(self, task: asyncio.Task[None]) -> None:
        sock = self._connections.pop(task, None)
        if sock is not None:
            sock.close()  # the task was cancelled before it ran: no transport owns the socket

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(stream)
        with self._reserve:
            if (task := asyncio.current_task()) in self._connections:
                self._connections[task] = None
            try:
                transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
            except OSError:
                return
            writer = asyncio.StreamWriter(transport, protocol, stream, loop)
            try:
                await self._serve_requests(sock, stream, writer)
                writer.close()
            except (ClientGone, asyncio.CancelledError):
                transport.abort()  # unread data is discarded
            except OSError:
                writer.close()
            except Exception:
                logger.exception("a request could not be answered")
                transport.abort()

    async def _serve_requests(
        self, sock: socket.socket, stream: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        limits, seconds, received = self._limits, self._limits.request_seconds, b""
        persistent = limits.keep_alive_seconds > 0 and not self._watch
        while True:
            connection = h11.Connection(h11.SERVER)
            deadline = asyncio.get_running_loop().time() + seconds
            try:
                self._handler.check_client(sock)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(deadline):
                        received = received or await stream.read(_READ_BYTES)
                if not received:
                    return
                async with asyncio.timeout_at(deadline):
                    head = await _receive_head(connection, limits, received, stream)
                    body = await _receive_body(connection, stream, writer)
            except TimeoutError:
                await self._refuse(BadMessage("the request did not arrive in time", 408), stream, writer)
                return
            except BadMessage as error:
                await self._refuse(error, stream, writer)
                return
            response = Responder(
                connection, writer, limits, keep_alive=persistent, bodiless=head.method == b"HEAD"
            )
            path = head.target.partition(b"?")[0].decode()
            await self._answer_or_cancel(
                ReceivedRequest(head.method.decode(), path, body, sock), response, stream
            )
            if connection.our_state is h11.MUST_CLOSE:
                return
            seconds, received = limits.keep_alive_seconds, connection.trailing_data[0]

    async def _answer_or_cancel(
        self, request: ReceivedRequest, response: Responder, stream: asyncio.StreamReader
    ) -> None:
        if not self._watch:
            await self._handler.handle(request, response)
            return
        work = asyncio.ensure_future(self._handler.handle(request, response))
        disconnect = asyncio.ensure_future(_await_disconnect(stream))
        try:
            await asyncio.wait({work, disconnect}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGone("the client has closed the connection")
            work.result()
        finally:
            for task in (work, disconnect):
                task.cancel()
            await asyncio.gather(work, disconnect, return_exceptions=True)

    async def _refuse(
        self, error: BadMessage, stream: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send the error, then discard input: closing with unread data would reset the connection (RFC 9112 §9.6).

        Returns when the client disconnects, but after at most one second or a limited number of bytes.
        """
        status, kind, body = self._handler.error_response(error)
        response = Responder(h11.Connection(h11.SERVER), writer, self._limits, keep_alive=False)
        await response.send(status, [("content-type", kind)], body)
        writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await _await_disconnect(stream, self._limits.head_bytes if status == 431 else _LINGER_BYTES)


async def _receive_head(
    connection: h11.Connection, limits: ServerLimits, received: bytes, stream: asyncio.StreamReader
) -> h11.Request:
    """Read a request's head, of which `received` has already arrived; feed all bytes to `connection`.

    A chunked body is refused (RFC 9112 §6.3), because no client here needs it. Raises BadMessage.
    """
    checked = 0
    while (end := received.find(END_OF_HEAD, max(0, checked - 3))) < 0:
        _check_characters(received, checked)
        if len(received) > limits.head_bytes:
            raise BadMessage("the head is too large", 431)
        checked = len(received)
        more = await stream.read(_READ_BYTES)
        if not more:
            raise BadMessage("the request is incomplete")
        received += more
    head = received[: end + len(END_OF_HEAD)]
    if len(head) > limits.head_bytes:
        raise BadMessage("the head is too large", 431)
    _check_characters(head)
    connection.receive_data(received)
    request = next_event(connection)
    assert isinstance(request, h11.Request)
    names = [name for name, _ in request.headers]
    hosts = [value for name, value in request.headers if name == b"host"]
    if len(names) > MAX_FIELDS:
        raise BadMessage(f"more than {MAX_FIELDS} fields", 431)
    if request.http_version not in (b"1.0", b"1.1"):
        raise BadMessage("the version is not HTTP/1.1", 505)
    # h11 drops a repeated Content-Length, and then returns fewer fields than the head has lines.
    if len(names) != head.count(b"\n") - 2 or len(hosts) > 1:
        raise BadMessage("more than one host or content-length")
    if not all(map(_is_host, hosts)):
        raise BadMessage("host is not a host name")
    if b"transfer-encoding" in names:
        raise BadMessage("a body without a content-length", 411)
    length = next((int(value) for name, value in request.headers if name == b"content-length"), 0)
    if length > limits.body_bytes:
        raise BadMessage("the body is too large", 413)
    return request


def _check_characters(received: bytes, checked: int = 0) -> None:
    if _ambiguous(received, max(0, checked - 1)):
        raise BadMessage(UNFIT_CHARACTER)


async def _receive_body(
    connection: h11.Connection, stream: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bytes:
    body = bytearray()
    while not isinstance(event := next_event(connection), h11.EndOfMessage):
        if isinstance(event, h11.Data):
            body += event.data
            continue
        if connection.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
            writer.write(connection.send(go_on) or b"")
        connection.receive_data(await stream.read(_READ_BYTES))
    return bytes(body)


async def _await_disconnect(stream: asyncio.StreamReader, max_bytes: float = math.inf) -> None:
    """Return when the client has disconnected or sent `max_bytes`; the received bytes are discarded."""
    with contextlib.suppress(ConnectionError):
        while max_bytes > 0 and (data := await stream.read(_READ_BYTES)):
            max_bytes -= len(data)
