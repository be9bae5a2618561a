"""What the first bytes of a connection are: a request, a part of one, or neither."""

from __future__ import annotations

import re
from enum import StrEnum

# A longer line is left to the application; httptools and h11 have limits of their own.
MAX_LINE_BYTES = 8192
ENOUGH_BYTES = MAX_LINE_BYTES + 2
_METHOD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}"
_REQUEST_LINE = re.compile(_METHOD + rb" [^ \r\n]+ HTTP/[0-9]\.[0-9]\r?")
_BEGINNING = re.compile(_METHOD + rb"( .*)?", re.DOTALL)
# RFC 8446 §5.1 and §4: a record of type handshake, version 3.x, whose first message is a ClientHello.
_HANDSHAKE, _MAJOR, _CLIENT_HELLO = 0x16, 3, 1
_HELLO_AT = 5


class FirstBytesKind(StrEnum):
    """The kinds of data with which a connection can begin."""

    REQUEST = "request"
    BEGINNING = "beginning"  # it may become one: wait for more
    NO_REQUEST = "no request"


def bad_request_response(*, late: bool) -> bytes:
    """The HTTP response to bytes that are not a request (400) or, when `late`, to an incomplete request (408)."""
    status = b"408 Request Timeout" if late else b"400 Bad Request"
    return b"HTTP/1.1 " + status + b"\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def classify_first_bytes(head: bytes, *, tls: bool) -> FirstBytesKind:
    """The kind of data with which a connection begins. The first ENOUGH_BYTES bytes suffice as `head`."""
    return _classify_client_hello(head) if tls else _classify_request_line(head)


def _classify_request_line(head: bytes) -> FirstBytesKind:
    # Empty lines before the request line are to be ignored (RFC 9112 §2.2).
    line, end, _ = head.lstrip(b"\r\n").partition(b"\n")
    if end:
        return FirstBytesKind.REQUEST if _REQUEST_LINE.fullmatch(line) else FirstBytesKind.NO_REQUEST
    if not line:
        return FirstBytesKind.BEGINNING if len(head) < MAX_LINE_BYTES else FirstBytesKind.NO_REQUEST
    if not _BEGINNING.fullmatch(line):
        return FirstBytesKind.NO_REQUEST
    return FirstBytesKind.BEGINNING if len(line) < MAX_LINE_BYTES else FirstBytesKind.REQUEST


def _classify_client_hello(head: bytes) -> FirstBytesKind:
    expected = ((0, _HANDSHAKE), (1, _MAJOR), (_HELLO_AT, _CLIENT_HELLO))
    if any(head[at] != value for at, value in expected if at < len(head)):
        return FirstBytesKind.NO_REQUEST
    return FirstBytesKind.REQUEST if len(head) > _HELLO_AT else FirstBytesKind.BEGINNING
