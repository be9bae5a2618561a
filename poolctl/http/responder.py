"""A request as a server's handler gets it, and the way to answer it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from .head import LAST_CHUNK, chunk, response_head
from .message_reader import MAX_HEAD_BYTES
from .request_reader import RequestHead

Fields = Iterable[tuple[str, str]]


class ClientGone(ConnectionError):
    """The client does not read what it asked for."""


@dataclass(frozen=True, slots=True)
class Received:
    """A request that has come whole, and the socket that it came from."""

    head: RequestHead
    body: bytes
    sock: socket.socket


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What a client may ask of a server. `keep_alive_seconds` 0: one request a connection."""

    head_bytes: int = MAX_HEAD_BYTES
    body_bytes: int = MAX_HEAD_BYTES
    request_seconds: float = 10.0
    keep_alive_seconds: float = 0.0
    connections: int | None = None  # above it the one that has been here longest has had its time
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
        self.begun = False

    def begin(self, status: int, fields: Fields) -> None:
        """Send the head of an answer whose length is not known."""
        framing = ("transfer-encoding", "chunked") if self._chunked else ("connection", "close")
        self.keep_alive = self.keep_alive and self._chunked
        self._head(status, [*fields, framing])

    def write(self, data: bytes) -> None:
        """Send a piece of it, without waiting. Raises ClientGone when far too much of what was sent is unread."""
        if self._writer.transport.get_write_buffer_size() > self._limits.unread_bytes:
            raise ClientGone("the client does not read")
        if not self._bodiless:
            self._writer.write(chunk(data) if self._chunked else data)

    async def finish(self) -> None:
        """Say that it is whole, and wait until it is sent. Raises ClientGone when the client takes too long."""
        if self._chunked and not self._bodiless:
            self._writer.write(LAST_CHUNK)
        await self._drain()

    async def send(self, status: int, fields: Fields, body: bytes) -> None:
        """Send the whole answer, and wait until it is sent. Raises ClientGone."""
        self._head(status, [*fields, ("content-length", str(len(body)))])
        if not self._bodiless:
            self._writer.write(body)
        await self._drain()

    def _head(self, status: int, fields: list[tuple[str, str]]) -> None:
        self.begun = True
        if not self.keep_alive and ("connection", "close") not in fields:
            fields.append(("connection", "close"))
        self._writer.write(response_head(status, fields))

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._limits.request_seconds):
                await self._writer.drain()
        except TimeoutError:
            raise ClientGone("the client does not read") from None
