"""Heads of requests and responses: their grammar, the framing of the body (RFC 9112 §5 and §6), and writing them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from re import Pattern
    from typing import ClassVar

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # RFC 9110 §5.6.2
# A field's value: no CR, LF, NUL or other control (RFC 9110 §5.5). No space stands before the colon (RFC 9112 §5.1).
TEXT = rb"[\t \x21-\x7e\x80-\xff]*+"
FIELD_LINE = TOKEN + rb":" + TEXT + rb"\r\n"

# Neither part of a line nor its end: a control, a bare CR, a bare LF. A CR may be the last byte received so far.
UNFIT = rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?![\n]|\Z)"
FIELD_LINES = rb"(?:" + FIELD_LINE + rb")*+"
TOKEN_CHARACTERS = "!#$%&'*+.^_`|~-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_TOKEN_BYTES = TOKEN_CHARACTERS.encode()
# Visible ASCII without the fragment, which is no part of a target (RFC 9112 §3.2). One empty line may stand before it,
# left behind by a client that ended its last body with one (RFC 9112 §2.2).
_REQUEST_LINE = rb"(?:\r\n)?+(" + TOKEN + rb") ([!\"$-~]++) HTTP/1\.([01])\r\n"
_REQUEST_HEAD = _REQUEST_LINE + FIELD_LINES + rb"\r\n"
_OTHER_VERSION = rb"(?:\r\n)?+" + TOKEN + rb" [!-~]++ HTTP/(?!1\.[01])[0-9]\.[0-9]\r\n"
HOST = rb"[0-9A-Za-z._~%!$&'()*+,;=:\[\]-]*+"  # RFC 9110 §7.2, RFC 3986 §3.2.2
# The space after the status is left out by many when there is no reason phrase (RFC 9112 §4).
STATUS_LINE = rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + TEXT + rb")?+\r\n"
_VERSIONS = (b"HTTP/1.0 ", b"HTTP/1.1 ")
_SHORTEST_STATUS_LINE = len("HTTP/1.1 200")
# A user agent reads a folded line as one (RFC 9112 §5.2); a server refuses it.
_FOLDED_FIELD_LINES = rb"(?:(?:" + TOKEN + rb":|[\t ])" + TEXT + rb"\r\n)*+"
_FOLD = rb"[\t ]*+\r\n[\t ]++"
_CONTROLS = bytes(byte for byte in range(32) if byte != ord("\t")) + b"\x7f"
_MAX_LENGTH_DIGITS = 15
# Fields of a request's head, and options of Connection. Browsers send some thirty, and two.
MOST_FIELDS = 100
MOST_OPTIONS = 64
_END = b"\r\n\r\n"
_END_LINES = 2  # that of the start line, and the empty one

_compiled: dict[bytes, Pattern[bytes]] = {}
# What a client or a person needs to recognise a status; the phrase means nothing (RFC 9112 §4).
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
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


def _has_control(text: bytes) -> bool:
    """Whether there is a control character in it that TEXT does not allow."""
    return text.translate(None, _CONTROLS) != text


class BadMessage(Exception):
    """The received bytes are not a valid message. `status` is that of a server's response to them."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class MessageHead:
    """The head of a message that is in order: its bytes from the start line to the empty line.

    `content_length` is None where the head names none; `keep_alive`, the sender would keep the connection open.
    """

    start_line: ClassVar[bytes]
    field_lines: ClassVar[bytes] = FIELD_LINES
    no_start_line: ClassVar[str]

    content_length: int | None = None
    chunked = False

    def __init__(self, raw: bytes, *, http_1_1: bool) -> None:
        self.raw = raw
        self.http_1_1 = self.keep_alive = http_1_1
        self._lower = raw.lower()
        if options := self.get(b"connection").lower():
            # RFC 9110 §7.6.1, RFC 9112 §9.3: of several options close decides.
            if options.count(b",") >= MOST_OPTIONS:
                raise BadMessage(f"more than {MOST_OPTIONS} options of connection", 431)
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

    @classmethod
    def problem(cls, raw: bytes) -> BadMessage:
        """Why this is not such a head."""
        known = compiled(cls.start_line).match(raw)
        return BadMessage("malformed header field" if known else cls.no_start_line)

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


class RequestHead(MessageHead):
    """The head of a request: its method, its target as it was sent, and its fields."""

    start_line = _REQUEST_LINE
    no_start_line = "no request line"

    def __init__(self, raw: bytes) -> None:
        found = compiled(_REQUEST_HEAD).fullmatch(raw)
        if found is None:
            raise self.problem(raw)
        self.method, self.target, minor = found.groups()
        if raw.count(b"\n", found.end(3)) > MOST_FIELDS + _END_LINES:
            raise BadMessage(f"more than {MOST_FIELDS} fields", 431)
        super().__init__(raw, http_1_1=minor == b"1")
        if self.chunked and not self.http_1_1:
            raise BadMessage("transfer-encoding in HTTP/1.0")  # RFC 9112 §6.1
        # RFC 9112 §3.2: exactly one, which an older client may leave out.
        hosts = self.values(b"host")
        if len(hosts) > 1 or (self.http_1_1 and not hosts):
            raise BadMessage("more than one host" if hosts else "no host")
        if hosts and not compiled(HOST).fullmatch(hosts[0]):
            raise BadMessage("host is not a host name")

    @classmethod
    def problem(cls, raw: bytes) -> BadMessage:
        """Why this is not the head of a request."""
        if compiled(_OTHER_VERSION).match(raw):
            return BadMessage("the version is not HTTP/1.1", 505)
        return super().problem(raw)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition(b"?")[0].decode("ascii")

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100 before it sends the body (RFC 9110 §10.1.1)."""
        return self.http_1_1 and self.get(b"expect").lower() == b"100-continue"


class ResponseHead(MessageHead):
    """The head of a response: its status and its fields."""

    start_line = STATUS_LINE
    field_lines = _FOLDED_FIELD_LINES
    no_start_line = "no HTTP/1.1 status line"

    def __init__(self, raw: bytes) -> None:
        if not is_response_head(raw):
            raw = compiled(_FOLD).sub(b" ", raw)
            if not is_response_head(raw):
                raise self.problem(raw)
        self.status = int(raw[9:12])
        super().__init__(raw, http_1_1=raw[7:8] == b"1")


def is_response_head(raw: bytes) -> bool:
    """Whether these are a STATUS_LINE, FIELD_LINES and an empty line; found out without a regular expression."""
    start, *fields = raw.removesuffix(_END).split(b"\r\n")
    return (
        raw.endswith(_END)
        and start[:9] in _VERSIONS
        and start[9:12].isdigit()
        and start[9:10] != b"0"
        and start[12:13] in (b"", b" ")
        and len(start) >= _SHORTEST_STATUS_LINE
        and not _has_control(start)
        and all(map(_is_field, fields))
    )


def _is_field(line: bytes) -> bool:
    """Whether the line, without its end, is a FIELD_LINE."""
    name, colon, value = line.partition(b":")
    return bool(colon and name) and not name.strip(_TOKEN_BYTES) and not _has_control(value)


def without_fields(lines: bytes, names: Collection[bytes]) -> bytes:
    """The lines of a head, or of a part of one, without the fields of these names, which are in lower case."""
    kept = [line for line in lines.split(b"\r\n") if line.partition(b":")[0].lower() not in names]
    return b"\r\n".join(kept)


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
    """The head of a request. Raises ValueError for invalid characters; the error does not repeat them."""
    if not method or method.strip(TOKEN_CHARACTERS):
        raise ValueError("the method of a request is not a word")
    if not target or not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError("the target of a request has a character that must be percent-encoded")
    return _head(f"{method} {target} HTTP/{version}", fields)


def response_head(status: int, fields: Iterable[tuple[str, str]]) -> bytes:
    """The head of a response of HTTP/1.1. Raises ValueError as `request_head` does."""
    return _head(f"HTTP/1.1 {status} {_PHRASES.get(status, '')}", fields)


def chunk(data: bytes | memoryview) -> bytes:
    """One chunk of a body (RFC 9112 §7.1); no data is no chunk, as that would be the last one."""
    return b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if data else b""


def _head(start_line: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [start_line.encode()]
    for name, value in fields:
        if not name or name.strip(TOKEN_CHARACTERS):
            raise ValueError(f"{name!r} is not the name of a header")
        line = f"{name}: {value}".encode(errors="surrogateescape")
        if _has_control(line):
            raise ValueError(f"the header {name!r} has a control character in its value")
        lines.append(line)
    return b"\r\n".join([*lines, b"", b""])
