"""Classifies the first bytes of a connection: a request, the beginning of one, or nothing to wake a server for."""

from __future__ import annotations

import re
from enum import StrEnum

from poolctl.http.head import response_head

# A longer line is left to the application; httptools and h11 have limits of their own.
LONGEST_LINE_BYTES = 8192
ENOUGH_BYTES = LONGEST_LINE_BYTES + 2

_METHOD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}"
_REQUEST_LINE = re.compile(_METHOD + rb" [^ \r\n]+ HTTP/[0-9]\.[0-9]\r?")
_BEGINNING = re.compile(_METHOD + rb"( .*)?", re.DOTALL)
# RFC 8446 §5.1 and §4: a record of type handshake, version 3.x, whose first message is a ClientHello.
_HANDSHAKE, _MAJOR, _CLIENT_HELLO = 0x16, 3, 1
_HELLO_AT = 5


class FirstBytes(StrEnum):
    """The kind of bytes that a connection has sent so far."""

    REQUEST = "request"
    BEGINNING = "beginning"  # it may become one: wait for more
    NO_REQUEST = "no request"


def refusal(*, late: bool) -> bytes:
    """The answer to bytes that are not a request or, when `late`, to an incomplete one."""
    return response_head(408 if late else 400, [("Connection", "close"), ("Content-Length", "0")])


def classify_first_bytes(head: bytes, *, tls: bool) -> FirstBytes:
    """The kind of a connection's first bytes; ENOUGH_BYTES of them suffice."""
    return _hello(head) if tls else _request_line(head)


def _request_line(head: bytes) -> FirstBytes:
    # Empty lines before the request line are to be ignored (RFC 9112 §2.2).
    line, end, _ = head.lstrip(b"\r\n").partition(b"\n")
    if end:
        return FirstBytes.REQUEST if _REQUEST_LINE.fullmatch(line) else FirstBytes.NO_REQUEST
    if not line:
        return FirstBytes.BEGINNING if len(head) < LONGEST_LINE_BYTES else FirstBytes.NO_REQUEST
    if not _BEGINNING.fullmatch(line):
        return FirstBytes.NO_REQUEST
    return FirstBytes.BEGINNING if len(line) < LONGEST_LINE_BYTES else FirstBytes.REQUEST


def _hello(head: bytes) -> FirstBytes:
    expected = ((0, _HANDSHAKE), (1, _MAJOR), (_HELLO_AT, _CLIENT_HELLO))
    if any(head[at] != value for at, value in expected if at < len(head)):
        return FirstBytes.NO_REQUEST
    return FirstBytes.REQUEST if len(head) > _HELLO_AT else FirstBytes.BEGINNING
