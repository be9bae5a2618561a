"""One connection to a worker, for one probe at a time; it is kept for the next probe."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import cache
from typing import Protocol

from poolctl.http.message_head import BadMessage
from poolctl.listeners.sock_diag import is_accepted

# Called once with the result of a probe: the problem, or "".
OnResult = Callable[[str], None]

_ENDED = "it closed the connection"


class ProbeReply(Protocol):
    """A reader of one reply; for HTTP it is a ResponseReader."""

    status: int

    @property
    def body(self) -> bytes:
        """The reply's content."""
        ...

    @property
    def reusable(self) -> bool:
        """Whether the connection can be reused; valid once the reply is complete."""
        ...

    def feed(self, data: bytes) -> bool:
        """Add received bytes; returns whether the reply is complete. Raises BadMessage."""
        ...

    def end(self) -> bool:
        """Handle the end of the connection. Returns whether the reply is complete."""
        ...


class ProbeRequest(Protocol):
    """The bytes to send, and the judgement of the reply."""

    payload: bytes

    def new_reply(self) -> ProbeReply:
        """A new reader for the reply."""
        ...

    def judge(self, reply: ProbeReply, on_result: OnResult) -> None:
        """Call `on_result`, now or later, with the problem of the complete reply, or ""."""
        ...


class ProbeConnection(asyncio.Protocol):
    """A connection for one probe at a time.

    `replies` counts received replies; once `closed` it cannot be reused. Belongs to the running loop.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None = None) -> None:
        self._sock = sock
        self._transport: asyncio.Transport | None = None
        self._request: ProbeRequest | None = None
        self._reply: ProbeReply | None = None
        self._on_result: OnResult | None = None
        self.replies = 0
        self.replying = False  # a part of the current reply has arrived
        self.closed = False
        self._opening = asyncio.ensure_future(self._open(context))
        self._opening.add_done_callback(self._opened)

    def send(self, request: ProbeRequest, on_result: OnResult) -> None:
        """Send the request; `on_result` is called once. One request at a time."""
        self._request, self._reply, self._on_result = request, request.new_reply(), on_result
        self.replying = False
        if self._transport is not None:
            self._transport.write(request.payload)

    def is_accepted(self) -> bool | None:
        """Whether a process has the other end; None if the kernel does not report it."""
        return is_accepted(self._sock)

    def close(self) -> None:
        """Close the connection; an outstanding result is not reported."""
        self._on_result = None
        if not self.closed:
            self.closed = True
            self._opening.cancel()
            if self._transport is not None:
                self._transport.abort()

    async def _open(self, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        is_unix = self._sock.family == socket.AF_UNIX
        connect = loop.create_unix_connection if is_unix else loop.create_connection
        name = None if context is None else ""
        try:
            await connect(lambda: self, sock=self._sock, ssl=context, server_hostname=name)
        except ssl.SSLError as error:
            self._fail(f"TLS: {error.reason or error}")
        except OSError as error:
            self._fail(error.strerror or str(error) or _ENDED)

    def _opened(self, opening: asyncio.Task[None]) -> None:
        if self._transport is None:
            self._sock.close()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        if self.closed:
            transport.abort()
        elif self._request is not None:
            transport.write(self._request.payload)

    def data_received(self, data: bytes) -> None:
        if self._reply is None:
            self._fail("it sent data without a request")
            return
        self.replying = True
        try:
            if self._reply.feed(data):
                self._complete()
        except BadMessage as error:
            self._fail(f"the response is not valid HTTP: {error}")

    def eof_received(self) -> None:
        if self._reply is not None and self._reply.end():
            self._complete()
        self._fail(_ENDED)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(getattr(exc, "strerror", None) or _ENDED)

    def _complete(self) -> None:
        request, reply, on_result = self._request, self._reply, self._on_result
        assert request is not None
        assert reply is not None
        self._request = self._reply = self._on_result = None
        self.replies += 1
        if not reply.reusable:
            self.close()
        if on_result is not None:
            request.judge(reply, on_result)

    def _fail(self, problem: str) -> None:
        on_result = self._on_result
        self.close()
        if on_result is not None:
            on_result(problem)


@cache
def unverified_context() -> ssl.SSLContext:
    """A context that accepts any certificate, because the connection itself identifies the worker."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context
