"""The control socket's server: HTTP/1.1 by h11 over a Unix socket, JSON lines out, peer credentials checked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import h11

from poolctl.control.directory import BACKLOG
from poolctl.control.messages import error, result
from poolctl.control.reserve import DescriptorReserve
from poolctl.exit_codes import FAILED
from poolctl.platform import peer_credentials

MAX_BODY_BYTES = 4 * 1024 * 1024
# A client that has stopped to read, such as a suspended `events -f`, is let go of.
MAX_UNREAD_BYTES = 64 * 1024 * 1024
REQUEST_SECONDS = 10.0
_AGAIN_SECONDS = 0.1

logger = logging.getLogger("poolctl.supervisor")

Document = dict[str, Any]
Progress = Callable[[Document], None]


@dataclass(frozen=True, slots=True)
class Request:
    """A verb with its arguments, and who asks."""

    verb: str
    body: Document
    pid: int
    uid: int


Handler = Callable[[Request, Progress], Awaitable[Document]]


class Refused(Exception):
    """A request that gets a plain HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ControlServer:
    """Answers `POST /v1/VERB` (a JSON body) and `GET /v1/VERB` with JSON lines: progress, then the result.

    `handle` is awaited for each request with a function that sends one line of progress. It is cancelled when the
    client goes away; when it raises ConnectionError the connection is closed without an answer. `reserve`, descriptors
    for when there are no others, is entered for each request.
    """

    def __init__(self, handle: Handler, reserve: DescriptorReserve | None = None) -> None:
        self._handle = handle
        self._reserve = reserve or contextlib.nullcontext()
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def listen(self, listener: socket.socket) -> None:
        """Accept from this one, which is closed with the server, and from no other any more."""
        self._leave_listener()
        listener.setblocking(False)
        listener.listen(BACKLOG)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    async def close(self) -> None:
        """Stop accepting; let the answers under way be finished."""
        self._leave_listener()
        pending = self._tasks - {asyncio.current_task()}
        if pending:
            await asyncio.wait(pending, timeout=1.0)

    def _leave_listener(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            with self._reserve:
                sock, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.error("cannot accept commands: %s", error.strerror)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener.fileno())
            loop.call_later(_AGAIN_SECONDS, self._accept_again, listener)
            return
        task = asyncio.get_running_loop().create_task(self._serve(sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener is self._listener:
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        with self._reserve:
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
            await self._converse(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            request = await self._request(connection, reader, writer)
            await self._answer(connection, request, reader, writer)
        except Refused as refused:
            _send(connection, writer, refused.status, {"error": str(refused)})
        except (h11.RemoteProtocolError, TimeoutError):
            _send(connection, writer, 400, {"error": "not a request"})
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def _request(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Request:
        pid, uid, _ = peer_credentials(writer.get_extra_info("socket"))
        if uid not in (0, os.geteuid()):
            raise Refused(403, f"this pool belongs to uid {os.geteuid()}")
        head: h11.Request | None = None
        body = b""
        async with asyncio.timeout(REQUEST_SECONDS):
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await reader.read(65536))
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > MAX_BODY_BYTES:
                        raise Refused(413, "the request is too large")
                elif isinstance(event, h11.EndOfMessage) and head is not None:
                    break
                else:
                    raise ConnectionResetError
        return Request(_verb(head), _document(body), pid, uid)

    async def _answer(
        self,
        connection: h11.Connection,
        request: Request,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        headers = [("content-type", "application/x-ndjson"), ("connection", "close")]
        writer.write(connection.send(h11.Response(status_code=200, headers=headers)) or b"")

        def line(document: Document) -> None:
            if writer.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
                raise ConnectionResetError
            data = json.dumps(document, separators=(",", ":")).encode() + b"\n"
            writer.write(connection.send(h11.Data(data=data)) or b"")

        work = asyncio.ensure_future(self._handle(request, line))
        gone = asyncio.ensure_future(_end(reader))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ConnectionResetError
            line({"result": _outcome(work)})
            writer.write(connection.send(h11.EndOfMessage()) or b"")
            async with asyncio.timeout(REQUEST_SECONDS):
                await writer.drain()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait({work, gone})


def _outcome(work: asyncio.Future[Document]) -> Document:
    try:
        return work.result()
    except ConnectionError:
        raise
    except Exception:
        logger.exception("a request could not be answered")
        message = "the supervisor failed at this command; its log says why"
        return result([], [error(FAILED, "ErrorInternal", message, "see supervisor.log")], exit_code=FAILED)


async def _end(reader: asyncio.StreamReader) -> None:
    """Return when the client has gone away; what it sends after its request is read by nobody."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(65536):
            continue


def _verb(head: h11.Request) -> str:
    target = head.target.decode("ascii", "replace").partition("?")[0]
    if not target.startswith("/v1/") or head.method not in (b"GET", b"POST"):
        raise Refused(404, f"there is no {target}; try GET /v1/list")
    verb = target.removeprefix("/v1/")
    return "list" if verb == "servers" else verb


def _document(body: bytes) -> Document:
    if not body:
        return {}
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise Refused(400, "the body must be a JSON object")
    return document


def _send(connection: h11.Connection, writer: asyncio.StreamWriter, status: int, document: Document) -> None:
    if connection.our_state is not h11.IDLE and connection.our_state is not h11.SEND_RESPONSE:
        return
    data = json.dumps(document).encode() + b"\n"
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(data))),
        ("connection", "close"),
    ]
    with contextlib.suppress(h11.LocalProtocolError, ConnectionError):
        writer.write(connection.send(h11.Response(status_code=status, headers=headers)) or b"")
        writer.write(connection.send(h11.Data(data=data)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
