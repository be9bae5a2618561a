"""One connection to a worker, for one probe at a time; no task and no stream object waits on it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from poolctl.http.message_head import BadMessage
from poolctl.listeners.sock_diag import is_accepted

from .schedule import Multiplexer

_CHUNK_BYTES = 65536

# Called once with the result of a probe: the problem, or "".
OnResult = Callable[[str], None]


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
        """The connection has ended; returns whether the reply is complete."""
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


class ProbeConnection:
    """`replies` counts received replies; once `closed` it cannot be reused. Belongs to the running loop."""

    def __init__(
        self, sock: socket.socket, multiplexer: Multiplexer, context: ssl.SSLContext | None = None
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._tls = TlsLayer(context) if context is not None else None
        self._unsent = b"" if self._tls is None else self._tls.start()
        self._request: ProbeRequest | None = None
        self._reply: ProbeReply | None = None
        self._on_result: OnResult | None = None
        self.replies = 0
        self.replying = False  # a part of the current reply has arrived
        self.closed = False
        self._multiplexer = multiplexer
        multiplexer.add(sock.fileno(), self._readable)
        if self._unsent:
            self._send(b"")

    def send(self, request: ProbeRequest, on_result: OnResult) -> None:
        """Send the request; `on_result` is called once, possibly before this returns. One request at a time."""
        self._request, self._reply, self._on_result = request, request.new_reply(), on_result
        self.replying = False
        self._send(request.payload if self._tls is None else self._tls.encrypt(request.payload))

    def is_accepted(self) -> bool | None:
        """Whether a process has the other end; None if the kernel does not report it."""
        return is_accepted(self._sock)

    def close(self) -> None:
        """Close the connection; an outstanding result is not reported."""
        self._on_result = None
        if not self.closed:
            self.closed = True
            self._multiplexer.remove(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()

    def _send(self, data: bytes) -> None:
        self._unsent += data
        if not self._unsent or self.closed:
            return
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        self._unsent = self._unsent[sent:]
        if self._unsent:
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._send(b"")

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        if not data:
            self._ended()
            return
        if self._tls is not None:
            try:
                data, answer = self._tls.decrypt(data)
            except ssl.SSLError as error:
                self._fail(f"TLS: {error.reason or error}")
                return
            if answer:
                self._send(answer)
        if data:
            self._received(data)

    def _received(self, data: bytes) -> None:
        if self._reply is None:
            self._fail("it sent data without a request")
            return
        self.replying = True
        try:
            if self._reply.feed(data):
                self._complete()
        except BadMessage as error:
            self._fail(f"the response is not valid HTTP: {error}")

    def _ended(self) -> None:
        if self._reply is not None and self._reply.end():
            self._complete()
        else:
            self._fail("it closed the connection")

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


class TlsLayer:
    """The TLS of one connection, apart from its socket."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing)
        self._established = False
        self._plain = b""

    def start(self) -> bytes:
        """The first bytes of the handshake."""
        self._handshake()
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        """The encrypted bytes to send now; the data is held back until the handshake is complete."""
        self._plain += data
        self._write()
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> tuple[bytes, bytes]:
        """The decrypted bytes, and the bytes to send in return. Raises ssl.SSLError."""
        self._incoming.write(data)
        if not self._established:
            self._handshake()
            self._write()
        plain = b""
        if self._established:
            try:
                while more := self._object.read(_CHUNK_BYTES):
                    plain += more
            except ssl.SSLWantReadError:
                pass
        return plain, self._outgoing.read()

    def _handshake(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        self._established = True

    def _write(self) -> None:
        if self._established and self._plain:
            self._object.write(self._plain)
            self._plain = b""


def unverified_context() -> ssl.SSLContext:
    """A context that accepts any certificate, because the connection itself identifies the worker."""
    global _unverified
    if _unverified is None:
        _unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _unverified.check_hostname, _unverified.verify_mode = False, ssl.CERT_NONE
        _unverified.set_alpn_protocols(["http/1.1"])
    return _unverified


_unverified: ssl.SSLContext | None = None
