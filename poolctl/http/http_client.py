"""One request on a connection of its own, and its streamed response: for clients on an asyncio loop."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from .forward_proxy import ForwardProxy
from .message_head import ResponseHead, request_head
from .message_reader import ResponseReader

_READ_BYTES = 256 * 1024


class NoResponse(ConnectionError):
    """The connection was made, and ended before the response was complete."""


class StreamedResponse:
    """A response whose head has been read, and whose body is read on demand."""

    def __init__(self, head: ResponseHead, message: ResponseReader, stream: asyncio.StreamReader) -> None:
        self.head = head
        self.status = head.status
        self._message = message
        self._stream = stream

    def __repr__(self) -> str:
        return f"<StreamedResponse {self.status}>"

    async def body(self) -> AsyncGenerator[bytes]:
        """Yield the body in the pieces that arrive. Raises BadMessage, OSError, and NoResponse when it ends early."""
        while True:
            if piece := self._message.take_body():
                yield piece
            if self._message.complete or not await _read(self._message, self._stream):
                break
        if piece := self._message.take_body():
            yield piece


@contextlib.asynccontextmanager
async def exchange(
    where: str | tuple[str, int],
    method: str,
    target: str,
    fields: Iterable[tuple[str, str]],
    body: bytes = b"",
    *,
    tls: ssl.SSLContext | None = None,
    version: str = "1.1",
    proxy: ForwardProxy | None = None,
) -> AsyncIterator[StreamedResponse]:
    """Send one request to a Unix socket's path, or to a host and a port, and yield its response.

    With `proxy` it is sent through that: with `tls` in a tunnel, otherwise as a request to the proxy with a URL as its
    target.

    With `tls` the certificate must be valid for the host, unless the context says otherwise. Redirects are not
    followed, failures are not retried, and there is no time limit except the caller's `asyncio.timeout`. Raises
    OSError, BadMessage for a response that is not HTTP, NoResponse, and ValueError for a request that cannot be
    written.
    """
    head = request_head(method, target, fields, version=version)
    if isinstance(where, str):
        stream, writer = await asyncio.open_unix_connection(where, limit=_READ_BYTES)
    elif proxy is not None and tls is not None:
        stream, writer = await proxy.open_tunnel(*where, tls, limit=_READ_BYTES)
    elif proxy is not None:
        stream, writer = await asyncio.open_connection(proxy.host, proxy.port, limit=_READ_BYTES)
    else:
        stream, writer = await asyncio.open_connection(*where, limit=_READ_BYTES, ssl=tls)
    try:
        writer.write(head + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()  # a server that refuses the rest has sent the reason
        message = ResponseReader(head_only=method == "HEAD")
        while message.head is None:
            await _read(message, stream)
        yield StreamedResponse(message.head, message, stream)
    finally:
        # Not close(), which would wait for a server that does not read, or that does not end its TLS.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _read(message: ResponseReader, stream: asyncio.StreamReader) -> bool:
    """Read more of the response; returns False if it has ended properly. Raises NoResponse if it ended early."""
    try:
        data = await stream.read(_READ_BYTES)
    except ConnectionError as error:
        raise NoResponse(error.errno, error.strerror) from None
    if data:
        message.feed(data)
        return True
    if not message.end():
        raise NoResponse("the connection was closed before the response was complete")
    return False
