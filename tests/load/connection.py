"""One non-blocking connection on an epoll: connects, shakes hands, writes what it can, hands over what it reads."""

from __future__ import annotations

import errno
import select
import socket
import ssl
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .generator import Generator

READ_BYTES = 262_144
UNIX_QUEUE_FULL_SECONDS = 0.002


class Conversation(Protocol):
    """What is said over a connection."""

    def connected(self) -> None: ...

    def received(self, data: bytes) -> None: ...

    def ended(self, error: OSError | None) -> None:
        """The other side closed in good order (None), or the connection broke. The descriptor is closed already."""
        ...


def way_of(error: OSError) -> str:
    """The word of a report for a connection that broke so."""
    if isinstance(error, ConnectionError) and not isinstance(error, ConnectionRefusedError):
        return "reset"
    return "dropped" if isinstance(error, ssl.SSLError) else "refused"


class Connection:
    """Made, then `connect()`ed. Ends once: by `close()` here without a word, or by `ended` of its conversation."""

    def __init__(self, generator: Generator, target: str, conversation: Conversation) -> None:
        self.generator = generator
        self.target = target
        self.conversation = conversation
        self.is_open = False  # whether it can be written to
        self.was_open = False
        self.is_over = False
        self._connected = False
        self._out = bytearray()
        self._events = 0
        unix = target.startswith("unix:")
        family = socket.AF_UNIX if unix else socket.AF_INET6 if target.startswith("[") else socket.AF_INET
        self.sock: socket.socket = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        if not unix:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connect(self) -> None:
        if self.is_over:
            return
        error = self.sock.connect_ex(_address(self.target))
        if error == errno.EAGAIN and self.target.startswith("unix:"):
            # A Unix listener whose queue is full: a blocking connect() would wait here.
            self.generator.later(UNIX_QUEUE_FULL_SECONDS, self.connect)
        elif error in (0, errno.EINPROGRESS):
            self.generator.register(self, select.EPOLLOUT)
            self._events = select.EPOLLOUT
        else:
            self._end(OSError(error, errno.errorcode.get(error, "?")))

    def handle(self, events: int) -> None:
        """What epoll says about it."""
        try:
            if not self.is_open:
                if not self._connected and not events & ~select.EPOLLIN:
                    return  # the event is of an earlier connection with the same descriptor
                self._opening()
            if self.is_open and events & select.EPOLLOUT:
                self._flush()
            if self.is_open and events & ~select.EPOLLOUT:
                self._read()
        except OSError as error:
            self._end(error)

    def write(self, data: bytes) -> None:
        """Send it, now as far as possible."""
        waiting = bool(self._out)
        self._out += data
        if not waiting:
            self._flush()

    def close(self) -> None:
        """Close it from this side; nothing more is said about it."""
        if not self.is_over:
            self.is_over, self.is_open = True, False
            self.generator.forget(self)
            self.sock.close()

    def _opening(self) -> None:
        if not self._connected:
            if error := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, errno.errorcode.get(error, "?"))
            self._connected = True
            if self.generator.tls is not None:
                self.generator.forget(self)
                self.sock = self.generator.tls.wrap_socket(
                    self.sock, server_hostname="localhost", do_handshake_on_connect=False
                )
                self.generator.register(self, select.EPOLLOUT)
        if isinstance(self.sock, ssl.SSLSocket):
            try:
                self.sock.do_handshake()
            except ssl.SSLWantReadError:
                return self._want(select.EPOLLIN)
            except ssl.SSLWantWriteError:
                return self._want(select.EPOLLOUT)
        self._want(select.EPOLLIN)
        self.is_open = self.was_open = True
        self.conversation.connected()
        return None

    def _flush(self) -> None:
        while self._out and not self.is_over:
            try:
                sent = self.sock.send(self._out)
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                break
            except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
                # Earlier data of the server may still be unread; the end is found by reading it.
                self._out.clear()
                break
            del self._out[:sent]
        if not self.is_over:
            self._want(select.EPOLLIN | (select.EPOLLOUT if self._out else 0))

    def _read(self) -> None:
        while not self.is_over:
            try:
                data = self.sock.recv(READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return None
            if not data:
                return self._end(None)
            self.conversation.received(data)
            if self.generator.tls is None and len(data) < READ_BYTES:
                return None  # epoll reports further bytes, except those already decrypted
        return None

    def _want(self, events: int) -> None:
        if events != self._events:
            self._events = events
            self.generator.epoll.modify(self.sock, events)

    def _end(self, error: OSError | None) -> None:
        if not self.is_over:
            self.close()
            self.conversation.ended(error)


def _address(target: str) -> str | tuple[str, int]:
    if target.startswith("unix:"):
        return target.removeprefix("unix:")
    host, _, port = target.rpartition(":")
    return host.strip("[]"), int(port)
