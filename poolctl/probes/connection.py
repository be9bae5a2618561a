"""One connection to a worker, on which one question at a time is asked; no task and no stream object waits on it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Protocol

from poolctl.listeners.sock_diag import is_accepted

from .answer import Answer, BadAnswer
from .multiplexer import Ears

_CHUNK_BYTES = 65536

Told = Callable[[str], None]


class Question(Protocol):
    """What is sent, and how what comes back is judged."""

    request: bytes

    def begin(self) -> Answer:
        """What takes the bytes that come."""
        ...

    def judge(self, answer: Answer, told: Told) -> None:
        """Have `told` called with what is wrong with the whole answer, "" when nothing is: at once, or later."""
        ...


class Line:
    """`answered` counts the answers that came over it; `closed`, it is of no more use. Belongs to the running loop."""

    def __init__(self, sock: socket.socket, ears: Ears, context: ssl.SSLContext | None = None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._tls = Tls(context) if context is not None else None
        self._unsent = b"" if self._tls is None else self._tls.begin()
        self._question: Question | None = None
        self._answer: Answer | None = None
        self._told: Told | None = None
        self.answered = 0
        self.began = False  # something of the answer under way is here
        self.closed = False
        self._ears = ears
        ears.add(sock.fileno(), self._readable)
        if self._unsent:
            self._send(b"")

    def ask(self, question: Question, told: Told) -> None:
        """Ask; `told` gets "" or what is wrong, once, perhaps at once. Nobody else may be waiting."""
        self._question, self._answer, self._told = question, question.begin(), told
        self.began = False
        self._send(question.request if self._tls is None else self._tls.encrypt(question.request))

    def is_accepted(self) -> bool | None:
        """Whether a process has the other end; None when the kernel does not say."""
        return is_accepted(self._sock)

    def close(self) -> None:
        """End the connection; who waits is told nothing any more."""
        self._told = None
        if not self.closed:
            self.closed = True
            self._ears.remove(self._sock.fileno())
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
            self._lost(error.strerror or str(error))
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
            self._lost(error.strerror or str(error))
            return
        if not data:
            self._ended()
            return
        if self._tls is not None:
            try:
                data, reply = self._tls.decrypt(data)
            except ssl.SSLError as error:
                self._lost(f"TLS: {error.reason or error}")
                return
            if reply:
                self._send(reply)
        if data:
            self._heard(data)

    def _heard(self, data: bytes) -> None:
        if self._answer is None:
            self._lost("it spoke without being asked")
            return
        self.began = True
        try:
            if self._answer.feed(data):
                self._complete()
        except BadAnswer as error:
            self._lost(str(error))

    def _ended(self) -> None:
        if self._answer is not None and self._answer.end():
            self._complete()
        else:
            self._lost("it closed the connection")

    def _complete(self) -> None:
        question, answer, told = self._question, self._answer, self._told
        assert question is not None
        assert answer is not None
        self._question = self._answer = self._told = None
        self.answered += 1
        if not answer.kept:
            self.close()
        if told is not None:
            question.judge(answer, told)

    def _lost(self, problem: str) -> None:
        told = self._told
        self.close()
        if told is not None:
            told(problem)


class Tls:
    """The TLS of one connection, apart from its socket."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing)
        self._shaken = False
        self._plain = b""

    def begin(self) -> bytes:
        """The first bytes of the handshake."""
        self._shake()
        return self._outgoing.read()

    def encrypt(self, data: bytes) -> bytes:
        """What is to be sent for it now; before the handshake is over it waits here."""
        self._plain += data
        self._write()
        return self._outgoing.read()

    def decrypt(self, data: bytes) -> tuple[bytes, bytes]:
        """What it says, and what is to be sent back. Raises ssl.SSLError."""
        self._incoming.write(data)
        if not self._shaken:
            self._shake()
            self._write()
        found = b""
        if self._shaken:
            try:
                while more := self._object.read(_CHUNK_BYTES):
                    found += more
            except ssl.SSLWantReadError:
                pass
        return found, self._outgoing.read()

    def _shake(self) -> None:
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return
        self._shaken = True

    def _write(self) -> None:
        if self._shaken and self._plain:
            self._object.write(self._plain)
            self._plain = b""


def trusting() -> ssl.SSLContext:
    """A context that believes every certificate: who is asked is known by other means."""
    global _trusting
    if _trusting is None:
        _trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trusting.check_hostname, _trusting.verify_mode = False, ssl.CERT_NONE
        _trusting.set_alpn_protocols(["http/1.1"])
    return _trusting


_trusting: ssl.SSLContext | None = None
