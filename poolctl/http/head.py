"""Heads of messages: the grammar that requests and responses share, framing (RFC 9112 §5 and §6), and writing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from re import Pattern


TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # RFC 9110 §5.6.2
# A field's value: no CR, LF, NUL or other control (RFC 9110 §5.5). No space stands before the colon (RFC 9112 §5.1).
TEXT = rb"[\t \x21-\x7e\x80-\xff]*+"
FIELD_LINE = TOKEN + rb":" + TEXT + rb"\r\n"

# Neither part of a line nor its end: a control, a bare CR, a bare LF. A CR may be the last byte that has come yet.
UNFIT = rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?![\n]|\Z)"
FIELD_LINES = rb"(?:" + FIELD_LINE + rb")*+"
TOKEN_CHARACTERS = "!#$%&'*+.^_`|~-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TOKEN_BYTES = TOKEN_CHARACTERS.encode()
_CONTROLS = bytes(byte for byte in range(32) if byte != ord("\t")) + b"\x7f"
_MAX_LENGTH_DIGITS = 15


_compiled: dict[bytes, Pattern[bytes]] = {}
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


def compiled(expression: bytes) -> Pattern[bytes]:
    """The pattern of a regular expression, when it is needed first: a command should not wait for all of them."""
    pattern = _compiled.get(expression)
    if pattern is None:
        import re  # three milliseconds, which a short command need not spend

        pattern = _compiled[expression] = re.compile(expression)
    return pattern


def are_fields(lines: Iterable[bytes]) -> bool:
    """Whether each line, without its end, is a FIELD_LINE; found out without a regular expression."""
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name.strip(_TOKEN_BYTES) or has_control(value):
            return False
    return True


def has_control(text: bytes) -> bool:
    """Whether there is a control character in it that TEXT does not allow."""
    return text.translate(None, _CONTROLS) != text


class BadMessage(Exception):
    """What came is not the message that it should be. `status` is what a server answers to it."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class MessageHead:
    """The head of a message that is in order: its bytes from the start line to the empty line.

    `content_length` is None where the head names none; `keep_alive`, the sender would keep the connection open.
    """

    content_length: int | None = None
    chunked = False

    def __init__(self, raw: bytes, *, http_1_1: bool) -> None:
        self.raw = raw
        self.http_1_1 = self.keep_alive = http_1_1
        self._lower = raw.lower()
        if options := self.get(b"connection").lower():
            # RFC 9110 §7.6.1, RFC 9112 §9.3: of several options close decides.
            named = {option.strip(b" \t") for option in options.split(b",")}
            self.keep_alive = (http_1_1 or b"keep-alive" in named) and b"close" not in named
        if lengths := self.values(b"content-length"):
            self.content_length = _content_length(lengths)
        if codings := self.values(b"transfer-encoding"):
            self.chunked = _is_chunked(codings)
        if self.chunked and self.content_length is not None:
            raise BadMessage("both content-length and transfer-encoding")  # RFC 9112 §6.1

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.raw.strip().split(bytes((13,)))[0].decode('latin-1')}>"

    def values(self, name: bytes) -> list[bytes]:
        """The values of every field of this name, which is in lower case; as they were sent, in their order."""
        found: list[bytes] = []
        key = b"\r\n" + name + b":"
        at = self._lower.find(key)
        while at >= 0:
            end = self.raw.index(b"\r\n", at + len(key))
            found.append(self.raw[at + len(key) : end].strip(b" \t"))
            at = self._lower.find(key, end)
        return found

    def get(self, name: bytes) -> bytes:
        """The value of the field of this name: several ones joined by a comma (RFC 9110 §5.2), b"" without one."""
        return b", ".join(self.values(name))


def _content_length(values: list[bytes]) -> int:
    # Neither twice nor as a list, be the numbers equal: RFC 9110 §8.6 leaves that to the recipient.
    if len(values) > 1:
        raise BadMessage("more than one content-length")
    if not values[0].isdigit() or len(values[0]) > _MAX_LENGTH_DIGITS:
        raise BadMessage("content-length is not a number")
    return int(values[0])


def _is_chunked(values: list[bytes]) -> bool:
    if len(values) > 1:
        raise BadMessage("more than one transfer-encoding")
    if values[0].lower() != b"chunked":
        raise BadMessage("transfer-encoding is not chunked", 501)  # RFC 9112 §6.1
    return True


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
