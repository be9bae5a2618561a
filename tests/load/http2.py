"""Requests over HTTP/2, one after the other on each connection (RFC 9113)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from .exchanges import Exchange
from .responses import Malformed, Response

if TYPE_CHECKING:
    from .generator import Generator

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
# HPACK: ":method: GET", ":method: POST", ":scheme: https", ":authority" and ":path" with values of their own,
# ":status: 200".
_GET, _POST, _HTTPS, _AUTHORITY, _PATH, _OK = 0x82, 0x83, 0x87, 0x01, 0x04, 0x88


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def greeting() -> bytes:
    """What a client sends first, with a window that a gigabyte of responses fills."""
    return _PREFACE + _frame(_SETTINGS, 0, 0) + _frame(_WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big"))


def get(number: int, host: str, path: str) -> bytes:
    """The request with this number on a connection, from 0."""
    return _frame(_HEADERS, _END_HEADERS | _END_STREAM, 2 * number + 1, _fields(_GET, host, path))


def post(number: int, host: str, path: str, body: bytes) -> bytes:
    """The request with this number on a connection, from 0."""
    head = _frame(_HEADERS, _END_HEADERS, 2 * number + 1, _fields(_POST, host, path))
    return head + _frame(_DATA, _END_STREAM, 2 * number + 1, body)


def _fields(method: int, host: str, path: str) -> bytes:
    authority = bytes((method, _HTTPS, _AUTHORITY, len(host))) + host.encode()
    return authority + bytes((_PATH, len(path))) + path.encode()


def read_outcome(sock: socket.socket, number: int) -> str:
    """The status of the response to the request with this number, or how else it ends: "reset 7", "closed"."""
    with sock.makefile("rb") as file:
        while prefix := file.read(9):
            payload, kind = file.read(int.from_bytes(prefix[:3], "big")), prefix[3]
            if int.from_bytes(prefix[5:], "big") == 2 * number + 1:
                if kind == _RST_STREAM:
                    return f"reset {int.from_bytes(payload, 'big')}"
                if kind == _HEADERS:  # HAProxy compresses no status with a Huffman code
                    return "200" if payload[0] == _OK else payload[2:5].decode()
    return "closed"


class _Answers:
    """Bytes of HTTP/2 in, complete responses out; `replies` are frames that the server waits for."""

    def __init__(self) -> None:
        self.replies = b""
        self.last_stream: int | None = None  # after GOAWAY: the server answers no later one
        self._bytes = bytearray()
        self._status = 0
        self._body = b""

    @property
    def within(self) -> bool:
        """Whether some bytes of a response have arrived that is not complete."""
        return bool(self._status or self._bytes)

    def end(self) -> list[Response]:
        return []

    def feed(self, data: bytes) -> list[Response]:
        """The responses that these bytes complete. Raises Malformed."""
        self._bytes += data
        found = []
        while len(self._bytes) >= 9:
            length, kind, flags = int.from_bytes(self._bytes[:3], "big"), self._bytes[3], self._bytes[4]
            if len(self._bytes) < 9 + length:
                break
            stream = int.from_bytes(self._bytes[5:9], "big")
            payload = bytes(self._bytes[9 : 9 + length])
            del self._bytes[: 9 + length]
            if self._take(kind, flags, stream, payload):
                found.append(Response(self._status, {}, self._body, self.last_stream is not None))
                self._status, self._body = 0, b""
        return found

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> bool:
        """Whether the frame ends a response."""
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            self.replies += _frame(kind, _ACK, 0, payload if kind == _PING else b"")
        elif kind == _GOAWAY:
            self.last_stream = int.from_bytes(payload[:4], "big")
        elif kind == _RST_STREAM:
            raise Malformed(f"stream {stream} is reset")
        elif kind == _HEADERS:
            self._status = 200 if payload[0] == _OK else 1
        elif kind == _DATA:
            self._body += payload
            self.replies += _frame(_WINDOW_UPDATE, 0, 0, len(payload).to_bytes(4, "big")) if payload else b""
        return kind in (_HEADERS, _DATA) and bool(flags & _END_STREAM)


class Http2(Exchange):
    """GET after GET; after GOAWAY on another connection."""

    def __init__(self, generator: Generator, target: str) -> None:
        self.streams = 0
        super().__init__(generator, target)
        self.responses: _Answers = _Answers()  # type: ignore[assignment]

    def connected(self) -> None:
        self.connection.write(greeting())
        super().connected()

    def request(self, number: int) -> bytes:
        self.streams += 1
        return get(self.streams - 1, "load", f"{self.settings.path}?n={number:012}")

    def received(self, data: bytes) -> None:
        super().received(data)
        answers = self.responses
        if self.connection.is_over:
            return
        if answers.replies:
            self.connection.write(answers.replies)
            answers.replies = b""
        if answers.last_stream is not None and not self.under_way:
            self.tally.counts["closed"] += 1
            self._leave()
