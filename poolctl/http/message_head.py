"""Parses and writes heads of requests and responses, and finds the framing of the body, in all processes alike.

The grammar follows RFC 9112 §2 to §6 strictly: a line ends with CRLF, there is no space before a colon, and a field
that determines the end or the recipient of the message occurs at most once. Only a response may have folded lines.
"""

from __future__ import annotations

import re
from functools import lru_cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import ClassVar, Self

MAX_HEAD_BYTES = 64 * 1024
# Maximum fields of a head and options of Connection. Browsers send about thirty fields and two options.
MOST_FIELDS = 100
MOST_OPTIONS = 64
MOST_INTERIM = 20  # responses before the final one
# The body has no known length: it comes in chunks, or ends with the connection.
CHUNKED, UNTIL_CLOSE = -1, -2

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # RFC 9110 §5.6.2
# A field's value: no CR, LF, NUL or other control (RFC 9110 §5.5). No space before the colon (RFC 9112 §5.1).
TEXT = rb"[\t \x21-\x7e\x80-\xff]*+"
# Only repetitions of single characters are possessive. For a group that is repeated possessively, Python 3.11.2 loses
# the captured text, and may stay in the middle of a repetition that failed. Here a repetition has one way to match.
FIELD_LINES = rb"(?:" + TOKEN + rb":" + TEXT + rb"\r\n)*"
HOST = rb"[0-9A-Za-z._~%!$&'()*+,;=:\[\]-]*+"  # RFC 9110 §7.2, RFC 3986 §3.2.2
# Characters that are neither part of a line nor its end: a control, a bare CR, a bare LF. A CR may be the last byte
# received so far.
unfit = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?![\n]|\Z)").search
TOKEN_CHARACTERS = "!#$%&'*+.^_`|~-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CONTROLS = bytes(byte for byte in range(32) if byte != ord("\t")) + b"\x7f"
_is_host = re.compile(HOST).fullmatch
_is_length = re.compile(rb"[0-9]{1,15}").fullmatch
_END = b"\r\n\r\n"

# Visible ASCII without a fragment, which is not part of a target (RFC 9112 §3.2). One empty line may precede it, from
# a client that ended its last body with one (RFC 9112 §2.2).
_REQUEST_LINE = rb"(\r\n)?(" + TOKEN + rb") ((?! )(/[!\"$->@-~]*+)?[!\"$-~]*+) HTTP/1\.([01])\r\n"
_request_head = re.compile(_REQUEST_LINE + FIELD_LINES + rb"\r\n").fullmatch
_other_version = re.compile(rb"(?:\r\n)?" + TOKEN + rb" [!-~]++ HTTP/(?!1\.[01])[0-9]\.[0-9]\r\n").match
# The fields that determine the end or the recipient of a request. The first letter rules out most others.
_DECISIVE = rb"(?i:host|connection|content-length|transfer-encoding|upgrade|expect|proxy-connection)"
_decisive_of_request = re.compile(rb"\n(?=[CEHPTUcehptu])(" + _DECISIVE + rb"):[ \t]*+([^\r]*+)").findall
_ONCE = frozenset((b"host", b"content-length", b"transfer-encoding"))
_KEEP_ALIVE = {b"connection": b"keep-alive"}
_CONTINUE = b"100-continue"
_NO_OPTIONS: frozenset[bytes] = frozenset()
# Idempotent methods (RFC 9110 §9.2.2).
_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))
# The methods of a canonical head: llhttp's without CONNECT.
_METHODS = frozenset(
    b"ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY OPTIONS"
    b" PATCH POST PROPFIND PROPPATCH PURGE PUT REBIND REPORT SEARCH SUBSCRIBE TRACE UNBIND UNLINK UNLOCK UNSUBSCRIBE"
    b"".split()
)
_are_options = re.compile(TOKEN + rb"(?:, ?" + TOKEN + rb")*").fullmatch
_is_protocol = re.compile(TOKEN + rb"(?:/" + TOKEN + rb")?").fullmatch

# Many servers omit the space after the status if there is no reason phrase (RFC 9112 §4).
_STATUS_LINE = rb"(HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + TEXT + rb")?)\r\n"
_response_head = re.compile(_STATUS_LINE + FIELD_LINES + rb"\r\n").fullmatch
# A user agent joins folded lines (RFC 9112 §5.2); a server refuses them.
_fold = re.compile(rb"[\t ]*+\r\n[\t ]++")
# Fields about one connection (RFC 9110 §7.6.1): never passed on.
HOP_BY_HOP = (
    rb"connection|keep-alive|proxy-connection|proxy-authenticate|proxy-authorization|te"
    rb"|transfer-encoding|upgrade"
)
_decisive_of_response = re.compile(
    rb"\n(?=[CKPTUckptu])((?i:content-length|" + HOP_BY_HOP + rb")):[ \t]*+([^\r]*+)"
).findall
# The heads that nearly all servers send, read in one step. The lines are distinct, so that nothing is tried twice.
_OTHER_LINES = (
    rb"(?:(?:[ABDF-JL-OQ-SV-Zabdf-jl-oq-sv-z]|(?!(?i:content-length|"
    + HOP_BY_HOP
    + rb"):)[!#$%&'*+.^_`|~0-9CEKPTUcekptu-])"
    + TOKEN[:-2]
    + rb"*+:"
    + TEXT
    + rb"\r\n)*"
)
_usual_response_head = re.compile(
    rb"(HTTP/1\.1 ([2-5][0-9]{2})(?: "
    + TEXT
    + rb")?)\r\n"
    + _OTHER_LINES
    + rb"(?:(?:(?i:content-length): ?([0-9]{1,15}+)|(?i:transfer-encoding: ?(chunked)))\r\n"
    + _OTHER_LINES
    + rb")?\r\n"
).fullmatch
# Nearly all servers send the first of these, or none, and some both: HTTP/1.1 means the same without them.
_keep_alive = re.compile(rb"\r\n(?=[CKck])(?i:connection: ?keep-alive|keep-alive:" + TEXT + rb")(?=\r\n)")
_BODILESS = (204, 304)  # RFC 9112 §6.3

# Phrases by which a client or a person recognises a status; they carry no meaning (RFC 9112 §4).
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


class BadMessage(Exception):
    """The received bytes are not a valid message. `status` is the status of a server's response to them."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class MessageHead:
    """The head of a message.

    `fields` are its lines as they were sent, each after its line break: "\\r\\nHost: a". `end` is the number of bytes
    up to the body; `body` the length of the body, CHUNKED or UNTIL_CLOSE. `options` are the options of Connection, in
    lower case; `keep_alive`: the sender would keep the connection open.
    """

    __slots__ = ("body", "end", "fields", "http_1_1", "keep_alive", "options")

    beginning: ClassVar[bytes] = b""
    start_line: ClassVar[re.Pattern[bytes]]
    no_start_line: ClassVar[str]

    body: int
    end: int
    fields: bytes
    http_1_1: bool
    keep_alive: bool
    options: frozenset[bytes]

    def __init__(self, raw: bytes) -> None:
        """Raises BadMessage if these bytes are not a whole head."""
        raise NotImplementedError

    @classmethod
    def read(cls, data: bytes, scanned: int = 0, max_bytes: int = MAX_HEAD_BYTES) -> Self | None:
        """The head that these bytes begin with; None while it is incomplete, and may become one. Raises BadMessage.

        An earlier call has found the first `scanned` bytes incomplete.
        """
        end = data.find(_END, scanned - 3 if scanned > 3 else 0)
        if (end + 4 if end >= 0 else len(data)) > max_bytes:
            raise BadMessage("the head is too large", 431)
        if end >= 0:
            return cls(data[: end + 4])
        if not cls.is_incomplete(data, scanned):
            raise cls.problem(data)
        return None

    @classmethod
    def is_incomplete(cls, data: bytes, scanned: int = 0) -> bool:
        """Whether these bytes are the beginning of a head, without its end.

        False as soon as more bytes cannot make them a valid one; the caller bounds their number. Up to the offset
        `scanned` an earlier call has found them incomplete.
        """
        line_end = data.find(b"\r\n", 2) + 2  # an empty line may come first
        return (
            data.find(_END, max(0, scanned - 3)) < 0
            and unfit(data, max(0, scanned - 1)) is None
            and cls.beginning.startswith(data[: len(cls.beginning)])
            and (line_end <= max(2, scanned) or cls.start_line.match(data) is not None)
        )

    @classmethod
    def problem(cls, data: bytes) -> BadMessage:
        """The reason why these bytes are not the beginning of a valid head."""
        if not cls.beginning.startswith(data[: len(cls.beginning)]):
            return BadMessage(cls.no_start_line)
        if unfit(data.partition(_END)[0]):
            return BadMessage("a control character, or a line that does not end with CRLF")
        return BadMessage("malformed header field" if cls.start_line.match(data) else cls.no_start_line)

    def values(self, name: bytes) -> list[bytes]:
        """The values of every field with this lower-case name, as sent and in their order."""
        return [value.rstrip(b"\t ") for value in _values_of(name)(self.fields)]

    def get(self, name: bytes) -> bytes:
        """The value of this field, b"" if missing; several values are joined by a comma (RFC 9110 §5.2)."""
        return b", ".join(self.values(name))

    def _decide(self, sent: list[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], bool]:
        """The decisive fields by name, and whether each occurs only once and without whitespace after its value."""
        decisive: dict[bytes, bytes] = {}
        plain = True
        for name, text in sent:
            name, value = name.lower(), text.rstrip(b" \t")
            if value != text:
                plain = False
            if name in decisive:
                if name in _ONCE:
                    raise BadMessage(f"more than one {name.decode()}")
                plain, value = False, decisive[name] + b", " + value
            decisive[name] = value
        return decisive, plain

    def _read_options(self, value: bytes | None) -> None:
        """Read the options of Connection, of which close takes precedence (RFC 9110 §7.6.1, RFC 9112 §9.3)."""
        if value is None:
            self.options, self.keep_alive = _NO_OPTIONS, self.http_1_1
            return
        if value.count(b",") >= MOST_OPTIONS:
            raise BadMessage(f"more than {MOST_OPTIONS} options of connection", 431)
        self.options = options = frozenset([option.strip(b" \t") for option in value.lower().split(b",")])
        self.keep_alive = (self.http_1_1 or b"keep-alive" in options) and b"close" not in options


class RequestHead(MessageHead):
    """The head of a request.

    `path` is the target without its query; `host` as it was sent, or b"". `upgrade` is the protocol that the client
    asks to change to, or b"" (RFC 9110 §7.8). `expects_continue`: the client waits for 100 before it sends the body
    (RFC 9110 §10.1.1).

    `canonical`: httptools (llhttp) and h11 read it alike, the same method, target, host and end of the message. So a
    process can decide about the request and leave the bytes to a server with either parser. Where the parsers, or
    applications behind them, differ, this form is stricter than RFC 9112:

    - llhttp's methods without CONNECT; a target in origin form, or `OPTIONS *`. The absolute form names a second host,
      and uvicorn's two protocols give an application different paths for it.
    - No empty line before the head, and no Proxy-Connection, which is Connection to llhttp and nothing to h11.
    - Each decisive field at most once, in its plain form and without whitespace behind the value.
    - No body in a request that asks for another protocol: to llhttp its bytes belong to that protocol.

    Names with an underscore are ordinary names here, as they are for both parsers.
    """

    __slots__ = ("canonical", "expects_continue", "host", "method", "path", "target", "upgrade")

    start_line = re.compile(_REQUEST_LINE)
    no_start_line = "no request line"

    def __init__(self, raw: bytes) -> None:
        found = _request_head(raw)
        if found is None:
            raise self.problem(raw)
        blank, self.method, self.target, path, minor = found.groups()
        self.path = path or self.target.partition(b"?")[0]
        self.http_1_1 = minor == b"1"
        self.fields = raw[found.end(5) : -4]
        _bound_fields(self.fields.count(b"\n"))
        self.end = len(raw)
        decisive, plain = self._decide(_decisive_of_request(self.fields))
        # RFC 9112 §3.2: an older client may leave it out.
        host = decisive.pop(b"host", None if self.http_1_1 else b"")
        if host is None:
            raise BadMessage("no host")
        if not _is_host(host):
            raise BadMessage("host is not a host name")
        self.host, self.body, self.upgrade, self.expects_continue = host, 0, b"", False
        if not decisive or decisive == _KEEP_ALIVE:
            self.options, self.keep_alive = _NO_OPTIONS, self.http_1_1 or bool(decisive)
        else:
            plain = self._read_decisive(decisive) and plain
        self.canonical = (
            plain
            and blank is None
            and self.method in _METHODS
            and (path is not None or (self.target == b"*" and self.method == b"OPTIONS"))
        )

    def __repr__(self) -> str:
        return f"<RequestHead {self.method.decode()} {self.target.decode()}>"

    def _read_decisive(self, decisive: dict[bytes, bytes]) -> bool:
        """Whether these fields are in canonical form."""
        options = decisive.get(b"connection")
        self._read_options(options)
        body = _body_of(decisive)
        if body == CHUNKED and not self.http_1_1:
            raise BadMessage("transfer-encoding in HTTP/1.0")  # RFC 9112 §6.1
        self.body = body or 0
        expected = decisive.get(b"expect", _CONTINUE).lower()
        self.expects_continue = self.http_1_1 and b"expect" in decisive and expected == _CONTINUE
        protocol = decisive.get(b"upgrade", b"-")
        asks = b"upgrade" in decisive and b"upgrade" in self.options
        if asks and self.http_1_1 and not self.body and _is_protocol(protocol):
            self.upgrade = protocol
        return bool(
            asks == bool(self.upgrade)
            and expected == _CONTINUE
            and b"proxy-connection" not in decisive
            and (options is None or _are_options(options))
            and _is_protocol(protocol)
        )

    @classmethod
    def problem(cls, data: bytes) -> BadMessage:
        """See MessageHead."""
        if _other_version(data):
            return BadMessage("the version is not HTTP/1.1", 505)
        return super().problem(data)

    @property
    def idempotent(self) -> bool:
        """Whether the request may be repeated when its outcome is unknown."""
        return self.method in _IDEMPOTENT

    def cookie(self, name: str) -> str:
        """The value of the cookie of this name, "" without one."""
        pair = rb"(?:^|[;,])[\t ]*+" + re.escape(name.encode()) + rb"=([^;,]*+)"
        found = re.search(pair, self.get(b"cookie"))
        return found[1].decode("latin-1").strip("\t ").strip('"') if found else ""


def canonical_head(data: bytes) -> RequestHead | None:
    """The head that these bytes begin with; None if it is not canonical, or not complete."""
    try:
        head = RequestHead.read(data, max_bytes=len(data))
    except BadMessage:
        return None
    return head if head is not None and head.canonical else None


class ResponseHead(MessageHead):
    """The head of a response.

    `length` is the Content-Length, -1 without one; `upgrade` the protocol that the server changes to, b"" for none.
    `plain` is the whole head as it may be passed on: without lines that keep the connection alive, and b"" if it has
    other fields about the connection, or an end of the body that the next recipient would not see.
    """

    __slots__ = ("length", "plain", "status", "status_line", "upgrade")

    beginning = b"HTTP/1."
    start_line = re.compile(_STATUS_LINE)
    no_start_line = "no HTTP/1.1 status line"

    def __init__(self, raw: bytes) -> None:
        self.end = len(raw)
        _bound_fields(raw.count(b"\n") - 2)
        self.plain, self.upgrade = raw, b""
        usual = _usual_response_head(raw)
        if usual is None:
            self.plain = _keep_alive.sub(b"", raw)
            usual = _usual_response_head(self.plain) if len(self.plain) < self.end else None
        if usual is not None:
            self.status_line, status, length, chunked = usual.groups()
            self.fields = self.plain[usual.end(1) : -4]
            self.options, self.http_1_1, self.keep_alive = _NO_OPTIONS, True, True
            body = int(length) if length is not None else CHUNKED if chunked else None
        else:
            found = _response_head(raw)
            if found is None:
                raw = _fold.sub(b" ", raw)
                found = _response_head(raw)
                if found is None:
                    raise self.problem(raw)
            self.status_line, minor, status = found.groups()
            self.fields, self.plain = raw[found.end(1) : -4], b""
            self.http_1_1 = minor == b"1"
            decisive, _ = self._decide(_decisive_of_response(self.fields))
            self._read_options(decisive.get(b"connection"))
            self.upgrade = decisive.get(b"upgrade", b"")
            body = _body_of(decisive)
        self.status = int(status)
        self.body = UNTIL_CLOSE if body is None else body
        self.length = self.body if self.body >= 0 else -1
        if self.status < 200 or self.status in _BODILESS:
            self.leave_out_body()
        elif body is None:
            self.plain = b""

    def leave_out_body(self) -> None:
        """Whether no body follows in any case: the response is to a HEAD, or its status excludes a body."""
        if self.body == CHUNKED or (self.status == 204 and self.length >= 0):
            self.plain = b""
        self.body = 0
        if self.status == 204:
            self.length = -1

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on the connection after this response."""
        # Chunks in HTTP/1.0 are an error, after which the connection cannot be used (RFC 9112 §6.1).
        return self.keep_alive and (self.body >= 0 or (self.body == CHUNKED and self.http_1_1))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.status}>"


def _bound_fields(number: int) -> None:
    if number > MOST_FIELDS:
        raise BadMessage(f"more than {MOST_FIELDS} fields", 431)


@lru_cache(maxsize=1024)
def _values_of(name: bytes) -> Callable[[bytes], list[bytes]]:
    return re.compile(rb"\r\n(?i:" + re.escape(name) + rb"):[\t ]*+([^\r\n]*+)").findall


def _body_of(decisive: dict[bytes, bytes]) -> int | None:
    """The length of the body, or CHUNKED; None without either (RFC 9112 §6.3)."""
    length, coding = decisive.get(b"content-length"), decisive.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise BadMessage("transfer-encoding is not chunked", 501)  # RFC 9112 §6.1
        if length is not None:
            raise BadMessage("both content-length and transfer-encoding")  # RFC 9112 §6.1
        return CHUNKED
    if length is None:
        return None
    # Nor as a list, even of equal numbers: RFC 9110 §8.6 leaves that to the recipient.
    if not _is_length(length):
        raise BadMessage("content-length is not a number")
    return int(length)


def without_fields(lines: bytes, names: Collection[bytes]) -> bytes:
    """The lines of a head, or of a part of one, without the fields with these lower-case names."""
    kept = [line for line in lines.split(b"\r\n") if line.partition(b":")[0].lower() not in names]
    return b"\r\n".join(kept)


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
    """One chunk of a body (RFC 9112 §7.1); b"" for no data, because an empty chunk would be the last."""
    return b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if data else b""


def _head(start_line: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [start_line.encode()]
    for name, value in fields:
        if not name or name.strip(TOKEN_CHARACTERS):
            raise ValueError(f"{name!r} is not the name of a header")
        line = f"{name}: {value}".encode(errors="surrogateescape")
        if line.translate(None, _CONTROLS) != line:
            raise ValueError(f"the header {name!r} has a control character in its value")
        lines.append(line)
    return b"\r\n".join([*lines, b"", b""])
