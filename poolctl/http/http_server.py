"""A small asyncio server that reads whole requests, and writes responses whole or piece by piece.

It serves commands, and the health of `poolctl serve`. No client can block it: time and bytes of a request are limited,
and a refused connection is closed in a way that lets the client read the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from .messages import (
    CONTINUE,
    LAST_CHUNK,
    MAX_HEAD_BYTES,
    BadMessage,
    RequestHead,
    RequestReader,
    chunk,
    response_head,
)

Fields = Iterable[tuple[str, str]]
_READ_BYTES = 64 * 1024
_ACCEPT_AGAIN_SECONDS = 0.1
_LINGER_SECONDS, _LINGER_BYTES = 1.0, 1024 * 1024

logger = logging.getLogger("poolctl.supervisor")


class ClientGone(ConnectionError):
    """The client does not read the response, or has closed the connection."""


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A complete request, and the socket it was received on."""

    head: RequestHead
    body: bytes
    sock: socket.socket


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits for each client. With `keep_alive_seconds` 0, each connection serves one request."""

    head_bytes: int = MAX_HEAD_BYTES
    body_bytes: int = MAX_HEAD_BYTES
    request_seconds: float = 10.0
    keep_alive_seconds: float = 0.0
    connections: int | None = None  # above it the oldest connection is closed
    unread_bytes: int = 64 * 1024 * 1024


class Responder:
    """The answer to one request: `send` it whole, or `begin`, `write` and `finish` it."""

    def __init__(
        self,
        head: RequestHead | None,
        writer: asyncio.StreamWriter,
        limits: ServerLimits,
        *,
        keep_alive: bool,
    ) -> None:
        self._bodiless = head is not None and head.method == b"HEAD"
        self._chunked = head is not None and head.http_1_1
        self._writer = writer
        self._limits = limits
        self.keep_alive = keep_alive

    def begin(self, status: int, fields: Fields) -> None:
        """Send the head of a response of unknown length."""
        framing = ("transfer-encoding", "chunked") if self._chunked else ("connection", "close")
        self._write_head(status, [*fields, framing])

    def write(self, data: bytes) -> None:
        """Send a piece of the response without waiting. Raises ClientGone above `unread_bytes` of unsent data."""
        if self._writer.transport.get_write_buffer_size() > self._limits.unread_bytes:
            raise ClientGone("the client does not read")
        if not self._bodiless:
            self._writer.write(chunk(data) if self._chunked else data)

    def send_with_descriptor(self, sock: socket.socket, fd: int, data: bytes) -> None:
        """Send a piece of the response with a file descriptor (SCM_RIGHTS). Raises ClientGone if it would block."""
        data = chunk(data) if self._chunked else data
        if self._writer.transport.get_write_buffer_size():
            raise ClientGone("the client does not read")
        try:
            sent = socket.send_fds(sock, [data], [fd], socket.MSG_DONTWAIT)
        except OSError as error:
            raise ClientGone(f"the client does not read: {error}") from None
        if sent < len(data):
            raise ClientGone("the client does not read")

    async def finish(self) -> None:
        """End the response, and wait until it is sent. Raises ClientGone when the client takes too long."""
        if self._chunked and not self._bodiless:
            self._writer.write(LAST_CHUNK)
        await self._drain()

    async def send(self, status: int, fields: Fields, body: bytes) -> None:
        """Send a complete response, and wait until it is sent. Raises ClientGone when the client takes too long."""
        self._write_head(status, [*fields, ("content-length", str(len(body)))])
        if not self._bodiless:
            self._writer.write(body)
        await self._drain()

    def _write_head(self, status: int, fields: list[tuple[str, str]]) -> None:
        if not self.keep_alive and ("connection", "close") not in fields:
            fields.append(("connection", "close"))
        self._writer.write(response_head(status, fields))

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                await self._writer.drain()
        except TimeoutError:
            raise ClientGone("the client does not read") from None


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
        most = self._limits.connections
        if most is not None and len(self._connections) >= most:
            oldest = next(iter(self._connections))
            oldest.cancel()
            self._remove_connection(oldest)
        task = asyncio.get_running_loop().create_task(self._serve(sock))
        self._connections[task] = sock
        task.add_done_callback(self._remove_connection)

    def _remove_connection(self, task: asyncio.Task[None]) -> None:
        sock = self._connections.pop(task, None)
        if sock is not None:
            sock.close()  # it was cancelled before its first step

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
                await self._converse(sock, stream, writer)
                writer.close()
            except (ClientGone, asyncio.CancelledError):
                transport.abort()  # unread data is discarded
            except OSError:
                writer.close()
            except Exception:
                logger.exception("a request could not be answered")
                transport.abort()

    async def _converse(
        self, sock: socket.socket, stream: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        limits, seconds, rest = self._limits, self._limits.request_seconds, b""
        while True:
            message = RequestReader(max_head_bytes=limits.head_bytes, max_body_bytes=limits.body_bytes)
            try:
                self._handler.check_client(sock)
                async with asyncio.timeout(seconds):
                    head = await _receive_whole_request(message, rest, stream, writer)
            except TimeoutError:
                if message.started:
                    await self._refuse(BadMessage("the request did not arrive in time", 408), stream, writer)
                return
            except BadMessage as error:
                await self._refuse(error, stream, writer)
                return
            if head is None:
                return
            persistent = limits.keep_alive_seconds > 0 and not self._watch
            keep_alive = head.keep_alive and head.http_1_1 and persistent
            response = Responder(head, writer, limits, keep_alive=keep_alive)
            await self._answer_or_cancel(ReceivedRequest(head, message.body, sock), response, stream)
            if not response.keep_alive:
                return
            seconds, rest = limits.keep_alive_seconds, message.rest

    async def _answer_or_cancel(
        self, request: ReceivedRequest, response: Responder, stream: asyncio.StreamReader
    ) -> None:
        if not self._watch:
            await self._handler.handle(request, response)
            return
        work = asyncio.ensure_future(self._handler.handle(request, response))
        gone = asyncio.ensure_future(_await_disconnect(stream))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGone("the client has closed the connection")
            work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait({work, gone})

    async def _refuse(
        self, error: BadMessage, stream: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send the error, then discard input: closing with unread data would reset the connection (RFC 9112 §9.6).

        Return when the client has disconnected, at the latest after one second or a maximum number of bytes.
        """
        status, kind, body = self._handler.error_response(error)
        response = Responder(None, writer, self._limits, keep_alive=False)
        await response.send(status, [("content-type", kind)], body)
        writer.write_eof()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await _await_disconnect(stream, self._limits.head_bytes if status == 431 else _LINGER_BYTES)


async def _receive_whole_request(
    message: RequestReader, rest: bytes, stream: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> RequestHead | None:
    """Read the next request completely into `message`, and return its head. `rest` are bytes already received.

    Returns None if the client closes the connection before a request begins. Raises BadMessage, also for an
    incomplete request.
    """
    continued = False
    while not (rest and message.feed(rest)):
        if message.head is not None and not continued and message.head.expects_continue:
            continued = True
            writer.write(CONTINUE)
        rest = await stream.read(_READ_BYTES)
        if not rest:
            if not message.started:
                return None
            raise BadMessage("the request is incomplete")
    return message.head


async def _await_disconnect(stream: asyncio.StreamReader, most_bytes: float = math.inf) -> None:
    """Return when the client has disconnected or sent `most_bytes`; the received bytes are discarded."""
    with contextlib.suppress(ConnectionError):
        while most_bytes > 0 and (data := await stream.read(_READ_BYTES)):
            most_bytes -= len(data)
