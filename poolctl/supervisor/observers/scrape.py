"""The metrics over HTTP: a listener that the keeper holds, and answers that no slow or hostile client can hold up."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

import h11

from poolctl.monitor.exposition import OPENMETRICS, TEXT, wants_openmetrics

REQUEST_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 120.0  # Prometheus asks every minute, by default, and keeps its connection
MOST_CONNECTIONS = 32
_MOST_HEAD_BYTES = 16 * 1024
_FRESH_SECONDS = 0.5  # so long the same text does for whoever asks

logger = logging.getLogger("poolctl.supervisor")

# The text in the one format or in the other.
Text = Callable[[bool], Awaitable[str]]
Header = tuple[str, str]


class Scrapes:
    """Answers `GET path` on listeners; `text` gives what is told. Others are told where it is, or that it is not so."""

    def __init__(self, text: Text, path: str) -> None:
        self.path = path
        self._text = text
        self._servers: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._told: dict[bool, tuple[float, str]] = {}
        self._telling = asyncio.Lock()

    async def serve(self, listeners: list[socket.socket], backlog: int) -> None:
        """Accept from them, from now on; they are ours to close."""
        for sock in listeners:
            start = asyncio.start_unix_server if sock.family == socket.AF_UNIX else asyncio.start_server
            self._servers.append(
                await start(self._connected, sock=sock, limit=_MOST_HEAD_BYTES, backlog=backlog)
            )

    def close(self) -> None:
        """Accept nothing more, and end what is under way."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in list(self._connections):
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MOST_CONNECTIONS:
            # The one that has been here longest has had its time.
            oldest = next(iter(self._connections))
            self._connections.pop(oldest).transport.abort()
            oldest.cancel()
        self._connections[task] = writer
        try:
            await self._converse(reader, writer)
        except (h11.ProtocolError, OSError, TimeoutError, asyncio.CancelledError):
            pass
        finally:
            self._connections.pop(task, None)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST_HEAD_BYTES)
        patience_seconds = REQUEST_SECONDS
        while True:
            try:
                async with asyncio.timeout(patience_seconds):
                    request = await _request(connection, reader)
            except h11.RemoteProtocolError as error:
                if connection.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await _send(connection, writer, error.error_status_hint, [], b"", "this is no request\n")
                return
            if request is None:
                return
            status, headers, content = await self._answer(request)
            await _send(connection, writer, status, headers, request.method, content)
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return
            connection.start_next_cycle()
            patience_seconds = KEEP_ALIVE_SECONDS

    async def _answer(self, request: h11.Request) -> tuple[int, list[Header], str]:
        target = request.target.partition(b"?")[0].decode("latin-1")
        if request.method not in (b"GET", b"HEAD"):
            return 405, [("allow", "GET, HEAD")], "only GET\n"
        if target != self.path:
            return 404, [], f"the metrics are at {self.path}\n"
        accept = b",".join(value for name, value in request.headers if name == b"accept")
        openmetrics = wants_openmetrics(accept.decode("latin-1"))
        kind = OPENMETRICS if openmetrics else TEXT
        return 200, [("content-type", kind), ("vary", "accept")], await self._fresh(openmetrics)

    async def _fresh(self, openmetrics: bool) -> str:
        # Many who ask at once are all told the same.
        async with self._telling:
            loop = asyncio.get_running_loop()
            at, text = self._told.get(openmetrics, (float("-inf"), ""))
            if loop.time() - at >= _FRESH_SECONDS:
                text = await self._text(openmetrics)
                self._told[openmetrics] = loop.time(), text
            return text


async def _request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The next request, its body read and forgotten; None at the end."""
    found: h11.Request | None = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_MOST_HEAD_BYTES))
        elif isinstance(event, h11.Request):
            found = event
        elif isinstance(event, h11.EndOfMessage):
            return found
        elif not isinstance(event, h11.Data):
            return None


async def _send(
    connection: h11.Connection,
    writer: asyncio.StreamWriter,
    status: int,
    headers: list[Header],
    method: bytes,
    content: str,
) -> None:
    body = content.encode()
    plain = [] if any(name == "content-type" for name, _ in headers) else [("content-type", "text/plain")]
    head = [*headers, *plain, ("content-length", str(len(body)))]
    writer.write(connection.send(h11.Response(status_code=status, headers=head)) or b"")
    if method != b"HEAD":
        writer.write(connection.send(h11.Data(data=body)) or b"")
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    async with asyncio.timeout(REQUEST_SECONDS):
        await writer.drain()
