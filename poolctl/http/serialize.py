"""Heads of messages, written. What would break out of its line is refused: no header is injected."""

from __future__ import annotations

from .head import TOKEN_CHARACTERS, has_control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# What a client or a person needs to recognise a status; the phrase means nothing (RFC 9112 §4).
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def request_head(
    method: str, target: str, fields: Iterable[tuple[str, str]], *, version: str = "1.1"
) -> bytes:
    """The head of a request. Raises ValueError for what cannot stand in one; the message does not repeat it."""
    if not method or method.strip(TOKEN_CHARACTERS):
        raise ValueError("the method of a request is not a word")
    if not target or not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError("the target of a request has a character that must be percent-encoded")
    return _head(f"{method} {target} HTTP/{version}", fields)


def response_head(status: int, fields: Iterable[tuple[str, str]]) -> bytes:
    """The head of a response of HTTP/1.1. Raises ValueError as `request_head` does."""
    return _head(f"HTTP/1.1 {status} {_PHRASES.get(status, '')}", fields)


def chunk(data: bytes) -> bytes:
    """One chunk of a body (RFC 9112 §7.1); no data is no chunk, as that would be the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def _head(start_line: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [start_line.encode()]
    for name, value in fields:
        if not name or name.strip(TOKEN_CHARACTERS):
            raise ValueError(f"{name!r} is not the name of a header")
        line = f"{name}: {value}".encode(errors="surrogateescape")
        if has_control(line):
            raise ValueError(f"the header {name!r} has a control character in its value")
        lines.append(line)
    return b"\r\n".join([*lines, b"", b""])
