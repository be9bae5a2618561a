"""Reads HTTP/1.1 messages, which may arrive in pieces of any size, and writes them. Used by all processes.

Every limit applies while the message is still arriving: a head without an end, a chunk without a size or a trailer
section without an end is refused as soon as it exceeds its limit.

The grammar follows RFC 9112 §2 to §6 strictly: a line ends with CRLF, there is no space before a colon, and a field
that determines the end or the recipient of the message occurs at most once. Only a response may have folded lines.

If proxy and recipient read a chunk's size differently, the recipient takes a part of the body for the next message
(RFC 9112 §7.1). So a size line with extensions, excessive leading zeros or anything else is rewritten in plain
digits. Chunks in canonical form, by far the most frequent, are passed on without being copied. The number of
chunks per second is limited too, because each costs as much work as a thousand bytes.
"""

from __future__ import annotations

import re
from functools import lru_cache
from http import HTTPStatus
from time import monotonic

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
_fold = re.compile(rb"(?<![\t ])[\t ]*+\r\n[\t ]++")  # a run of blanks is looked at once, from its first one
# Fields about one connection (RFC 9110 §7.6.1): never passed on.
HOP_BY_HOP = (
    rb"connection|keep-alive|proxy-connection|proxy-authenticate|proxy-authorization|te"
    rb"|transfer-encoding|upgrade"
)
_decisive_of_response = re.compile(
    rb"\n(?=[CKPTUckptu])((?i:content-length|" + HOP_BY_HOP + rb")):[ \t]*+([^\r]*+)"
).findall
_BODILESS = (204, 304)  # RFC 9112 §6.3

# RFC 9110's phrases where older interpreters' http.HTTPStatus has obsolete phrases.
_PHRASES = {413: "Content Too Large"}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class BadMessage(Exception):
    """The received bytes are not a valid message. `status` is the status of a server's response to them."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class MessageHead:
    """The head of a message.

    `fields` are its header lines as sent, each with the CRLF that ends the line before it: "\\r\\nHost: a". `end` is
    the number of bytes up to the body, `body` the length of the body, CHUNKED or UNTIL_CLOSE. `options` are the options
    of Connection, in lower case. `keep_alive` is true if the sender would keep the connection open.
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
        """Parse a complete head. Raises BadMessage for anything else."""
        raise NotImplementedError

    @classmethod
    def read(cls, data: bytes, scanned: int = 0, max_bytes: int = MAX_HEAD_BYTES) -> Self | None:
        """The head at the start of these bytes; None while it is incomplete but may become valid. Raises BadMessage.

        The first `scanned` bytes were already checked by an earlier call.
        """
        end = data.find(_END, scanned - 3 if scanned > 3 else 0)
        if (end + 4 if end >= 0 else len(data)) > max_bytes:
            raise BadMessage("the head is too large", 431)
        if end >= 0:
            return cls(data[: end + 4])
        if not cls.is_incomplete_but_valid(data, scanned):
            raise cls.problem(data)
        return None

    @classmethod
    def is_incomplete_but_valid(cls, data: bytes, scanned: int = 0) -> bool:
        """Return True if these bytes are the beginning of a head that further bytes may complete.

        Return False if the head is complete, or can no longer become valid. The caller limits its size. The first
        `scanned` bytes were already checked by an earlier call.
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

    def _combine_and_check_canonical(
        self, sent: list[tuple[bytes, bytes]]
    ) -> tuple[dict[bytes, bytes], bool]:
        """The values of these fields by lower-case name; repeated ones are joined by a comma.

        Also returns True if no field was repeated, and none had whitespace after its value; otherwise False. Raises
        BadMessage for a repeated field that may occur only once.
        """
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

    def _set_connection_options(self, value: bytes | None) -> None:
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

    `canonical` is true if httptools (llhttp) and h11 find the same method, target, host and end of the message. So a
    process can decide about the request and leave the bytes to a server with either parser. The parsers, and
    applications behind them, differ in some heads that RFC 9112 allows. A head is canonical only if:

    - Its method is one of llhttp's, except CONNECT.
    - Its target is a path, or the request is `OPTIONS *`. A URL as target names a second host, and uvicorn's two
      protocols give an application different paths for it.
    - No empty line is in front of the head.
    - It has no Proxy-Connection. llhttp takes this field for Connection; h11 ignores it.
    - Each decisive field occurs at most once, in its plain form and without whitespace behind the value.
    - It asks for no other protocol, or has no body. llhttp takes the body for bytes of the other protocol.

    Both parsers treat a name with an underscore like any other name, and so does this class.
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
        decisive, plain = self._combine_and_check_canonical(_decisive_of_request(self.fields))
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
            plain = self._apply_fields_and_check_canonical(decisive) and plain
        self.canonical = (
            plain
            and blank is None
            and self.method in _METHODS
            and (path is not None or (self.target == b"*" and self.method == b"OPTIONS"))
        )

    def __repr__(self) -> str:
        return f"<RequestHead {self.method.decode()} {self.target.decode()}>"

    def _apply_fields_and_check_canonical(self, decisive: dict[bytes, bytes]) -> bool:
        options = decisive.get(b"connection")
        self._set_connection_options(options)
        body = _length_or_chunked(decisive)
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
    """Return the head at the start of `data`; None if it is incomplete or not `canonical` (see RequestHead)."""
    try:
        head = RequestHead.read(data, max_bytes=len(data))
    except BadMessage:
        return None
    return head if head is not None and head.canonical else None


class ResponseHead(MessageHead):
    """The head of a response.

    `length` is the Content-Length, -1 without one; `upgrade` the protocol that the server changes to, b"" for none.
    """

    __slots__ = ("length", "status", "status_line", "upgrade")

    beginning = b"HTTP/1."
    start_line = re.compile(_STATUS_LINE)
    no_start_line = "no HTTP/1.1 status line"

    def __init__(self, raw: bytes) -> None:
        self.end = len(raw)
        _bound_fields(raw.count(b"\n") - 2)
        found = _response_head(raw)
        if found is None:
            raw = _fold.sub(b" ", raw)
            found = _response_head(raw)
            if found is None:
                raise self.problem(raw)
        self.status_line, minor, status = found.groups()
        self.fields = raw[found.end(1) : -4]
        self.http_1_1 = minor == b"1"
        decisive, _ = self._combine_and_check_canonical(_decisive_of_response(self.fields))
        self._set_connection_options(decisive.get(b"connection"))
        self.upgrade = decisive.get(b"upgrade", b"")
        body = _length_or_chunked(decisive)
        self.status = int(status)
        self.body = UNTIL_CLOSE if body is None else body
        self.length = self.body if self.body >= 0 else -1
        if self.status < 200 or self.status in _BODILESS:
            self.expect_no_body()

    def expect_no_body(self) -> None:
        """Expect no body, whatever the fields say: the response is to a HEAD, or its status excludes a body."""
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


def _length_or_chunked(decisive: dict[bytes, bytes]) -> int | None:
    """The Content-Length, or CHUNKED; None if the head has neither (RFC 9112 §6.3). Raises BadMessage."""
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
    return _head(f"HTTP/1.1 {status} {phrase_of(status)}", fields)


def phrase_of(status: int) -> str:
    """The reason phrase of a status, "" for an unknown one."""
    try:
        return _PHRASES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return ""


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


Buffer = bytes | memoryview

# Rate limit for the chunks of one body; a faster sender is disconnected. Usual programs send chunks of kilobytes.
MOST_CHUNKS_A_SECOND = 20_000
# Maximum chunks that a loop with other clients reads at a time.
MOST_CHUNKS_AT_ONCE = 32
_size_line = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:[\t ]*+;" + TEXT + rb")?\r\n").match
_trailer_section = re.compile(FIELD_LINES + rb"\r\n").fullmatch
_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 8 * 1024
# Limit for the extensions of all chunks together; a peer could send an endless series of extensions.
_MAX_EXTENSION_BYTES = 64 * 1024
_HEX_DIGITS = b"0123456789abcdefABCDEF"
_LAST = b"0\r\n"
# Fields not allowed in a trailer section: they affect framing, routing or authentication (RFC 9110 §6.5.1).
_NOT_IN_TRAILERS = frozenset(
    b"transfer-encoding content-length content-encoding content-type content-range trailer host connection keep-alive"
    b" proxy-connection upgrade te expect authorization proxy-authorization proxy-authenticate www-authenticate cookie"
    b" set-cookie cache-control location forwarded x-forwarded-for x-forwarded-proto x-forwarded-host".split()
)


class ChunkedBodyReader:
    """Reads a chunked body: `feed` returns the part to be passed on, as chunks or, with `decode`, as plain data.

    At the end of the body `done` is true, and `trailers` holds the lines of its trailer section. `rest` has the bytes
    after the body; before the end, it has the bytes that the last call of `feed` did not process. `size` is the number
    of bytes of data so far. `most_a_second` is the maximum number of chunks in a second, 0 for any number.
    """

    __slots__ = (
        "_buffer", "_clock", "_counted", "_decode", "_extensions", "_in_trailers", "_left", "_most_a_second",
        "_scanned", "_since", "done", "rest", "size", "trailers",
    )  # fmt: skip

    def __init__(
        self,
        *,
        decode: bool = False,
        most_a_second: int = MOST_CHUNKS_A_SECOND,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._decode = decode
        self._most_a_second = most_a_second
        self._clock = clock
        self._since, self._counted = -1.0, 0  # when the current second began, and the chunks since then
        self._left = 0  # bytes left of the current chunk and its CRLF
        self._buffer = b""  # an incomplete line, or the trailer section
        self._scanned = 0  # bytes at the beginning of the data that an earlier call has checked
        self._in_trailers = False
        self._extensions = 0
        self.done = False
        self.rest = b""
        self.trailers = b""
        self.size = 0

    def feed(self, data: bytes, at: int = 0, most_chunks: int = 0) -> Buffer:
        """Process the data from the offset `at` on, and return the part to be passed on. Raises BadMessage.

        At most `most_chunks` chunks are processed, 0 for any number. Further bytes are left in `rest`; pass them to the
        next call.
        """
        self.rest = b""
        self._scanned = len(self._buffer)
        if self._buffer:
            data, self._buffer, at = self._buffer + data[at:], b"", 0
        if self._in_trailers:
            return self._read_trailers(data, at)
        return self._read_chunks(data, at, most_chunks or len(data))

    def _read_chunks(self, data: bytes, at: int, most: int) -> Buffer:
        pieces: list[Buffer] = []
        decode = self._decode
        kept = at  # from `kept` on the bytes are passed on as they are
        end, count = len(data), 0
        if self._most_a_second:
            most = min(most, self._most_a_second + 1)
        while at < end:
            left = self._left
            if not left:
                if count == most:
                    self.rest = data[at:]
                    break
                line = _size_line(data, at)
                if line is None:
                    self._buffer_size_line(data, at)
                    break
                count += 1
                digits = line[1]
                size = int(digits, 16)
                if not size:
                    self._refuse_excessive_chunk_rate(count)
                    last = self._with_undecoded_bytes(pieces, data, kept, at)
                    return _joined([*last, self._read_trailers(data, line.end())])
                if line.end(1) + 2 != line.end() or digits[:1] == b"0":
                    self._refuse_excessive_extensions(line.end() - line.end(1))
                    if not decode:
                        pieces += (data[kept:at], b"%x\r\n" % size)
                        kept = line.end()
                at, left = line.end(), size + 2
                if left <= end - at:  # the whole chunk is there
                    if data[at + size : at + left] != b"\r\n":
                        raise BadMessage("a chunk that is longer than its size")
                    self.size += size
                    if decode:
                        pieces.append(memoryview(data)[at : at + size])
                    at += left
                    continue
            taken = min(left, end - at)
            if left - taken < 2:
                self._check_crlf_after_chunk(data, at, left, taken)
            self._left = left - taken
            size = min(taken, max(0, left - 2))
            self.size += size
            if decode and size:
                pieces.append(memoryview(data)[at : at + size])
            at += taken
        if count:
            self._refuse_excessive_chunk_rate(count)
        return _joined(self._with_undecoded_bytes(pieces, data, kept, at))

    def _with_undecoded_bytes(self, pieces: list[Buffer], data: bytes, kept: int, at: int) -> list[Buffer]:
        if self._decode or at == kept:
            return pieces
        return [*pieces, memoryview(data)[kept:at] if kept or at < len(data) else data]

    def _check_crlf_after_chunk(self, data: bytes, at: int, left: int, taken: int) -> None:
        """Raise BadMessage if a received byte of the CRLF after the current chunk is wrong.

        The received bytes are `data[at : at + taken]`. The CRLF ends `left` bytes after the offset `at`.
        """
        begin = at + max(0, left - 2)
        if begin < at + taken:
            expected = b"\r\n"[max(0, 2 - left) :]
            if not expected.startswith(data[begin : at + taken]):
                raise BadMessage("a chunk that is longer than its size")

    def _buffer_size_line(self, data: bytes, at: int) -> None:
        """Store a chunk's incomplete size line until more bytes arrive. Raises BadMessage if it cannot become valid."""
        line = data[at:]
        if b"\n" in line or len(line) > _MAX_LINE_BYTES or self._has_control_characters(data, at):
            raise BadMessage("a chunk without a valid size")
        digits = line.lstrip(_HEX_DIGITS)
        if len(line) - len(digits) > 15 or (digits and (digits == line or digits[:1] not in b"\t ;\r")):
            raise BadMessage("a chunk without a valid size")
        self._buffer = line

    def _has_control_characters(self, data: bytes, at: int) -> bool:
        """Whether the bytes from this offset on contain a control character, or a CR or LF without the other."""
        # The previous call may have ended with a CR.
        return unfit(data, max(at, self._scanned - 1)) is not None

    def _refuse_excessive_extensions(self, size: int) -> None:
        self._extensions += size
        if size > _MAX_LINE_BYTES or self._extensions > _MAX_EXTENSION_BYTES:
            raise BadMessage("too many extensions of chunks")

    def _refuse_excessive_chunk_rate(self, count: int) -> None:
        if not self._most_a_second:
            return
        now = self._clock()
        if now - self._since >= 1.0:
            self._since, self._counted = now, 0
        self._counted += count
        if self._counted > self._most_a_second:
            raise BadMessage(f"more than {self._most_a_second} chunks a second")

    def _read_trailers(self, data: bytes, at: int) -> Buffer:
        """Read the trailer section, which starts at `at`; returns the bytes to pass on, b"" until it is complete."""
        if data.startswith(b"\r\n", at):
            end = at
        else:
            end = data.find(b"\r\n\r\n", at) + 2
            if end < 2:
                if len(data) - at > _MAX_TRAILER_BYTES or self._has_control_characters(data, at):
                    raise BadMessage("malformed trailers")
                self._buffer, self._in_trailers = data[at:], True
                return b""
        if (
            end - at > _MAX_TRAILER_BYTES
            or data.count(b"\n", at, end) > MOST_FIELDS
            or not _trailer_section(data, at, end + 2)
        ):
            raise BadMessage("malformed trailers")
        self.trailers = allowed_trailers(data[at:end]) if end > at else b""
        self.rest = data[end + 2 :]
        self.done, self._in_trailers = True, False
        return b"" if self._decode else _LAST + self.trailers + b"\r\n"


def _joined(pieces: list[Buffer]) -> Buffer:
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def allowed_trailers(lines: bytes) -> bytes:
    kept = [
        line
        for line in lines.split(b"\r\n")[:-1]
        if line.partition(b":")[0].lower().replace(b"_", b"-") not in _NOT_IN_TRAILERS
    ]
    return b"\r\n".join([*kept, b""])


class MessageReader:
    """Reads a message; call `feed` until it is complete.

    With `max_body_bytes` None the body is not limited in size or rate; the caller removes its parts with `take_body`.
    """

    # The state of a reader that has read nothing; set on an instance only where it changes. A supervisor makes a
    # thousand readers a second for its probes, and most of them read one piece.
    complete = False
    rest = b""  # the bytes after the message
    _buffer = b""  # not understood yet
    _framed = False  # the final head was read
    _left = 0  # bytes of the body, or UNTIL_CLOSE
    _chunks: ChunkedBodyReader | None = None  # the body, if it comes in chunks
    _body_bytes = 0

    def __init__(self, *, max_head_bytes: int = MAX_HEAD_BYTES, max_body_bytes: int | None = None) -> None:
        self._max_head_bytes = max_head_bytes
        self._max_body_bytes = max_body_bytes
        self._body = bytearray()

    @property
    def started(self) -> bool:
        """Whether a part of the message has been received."""
        return bool(self._buffer) or self._framed

    @property
    def body(self) -> bytes:
        """The part of the body that has arrived and was not taken."""
        return bytes(self._body)

    def take_body(self) -> bytes:
        """Take the part of the body that has arrived; b"" for none."""
        body = self.body
        self._body.clear()
        return body

    def feed(self, data: bytes) -> bool:
        """Process received bytes; returns whether the message is complete. `rest` then holds the bytes after it.

        Raises BadMessage.
        """
        scanned = len(self._buffer)
        if scanned:
            data, self._buffer = self._buffer + data, b""
        while not self._framed:
            head = self._read_head(data, scanned)
            if head is None:
                self._buffer = data
                return False
            data, scanned = data[head.end :], 0
        return (
            self._read_plain_and_check_complete(data)
            if self._chunks is None
            else self._read_chunks(self._chunks, data)
        )

    def _read_head(self, data: bytes, scanned: int) -> MessageHead | None:
        """The head at the beginning of these bytes, None while it is incomplete. Raises BadMessage.

        Calls `_frame` unless it is the head of an interim response (1xx).
        """
        raise NotImplementedError

    def _handle_too_large_body(self) -> None:
        """Handle a body over `max_body_bytes`: RequestReader raises BadMessage, ResponseReader keeps the beginning."""
        raise NotImplementedError

    def _begin_body(self, body: int) -> None:
        """Prepare to read a body of this length, CHUNKED or UNTIL_CLOSE."""
        self._framed = True
        self._left = body
        if body == CHUNKED:
            unlimited = self._max_body_bytes is None
            self._chunks = ChunkedBodyReader(
                decode=True, most_a_second=0 if unlimited else MOST_CHUNKS_A_SECOND
            )

    def _read_plain_and_check_complete(self, data: bytes) -> bool:
        left = self._left
        if left >= 0 and len(data) > left:
            data, self.rest = data[:left], data[left:]
        if data and self._add_and_check_too_large(data):
            return True
        if left >= 0:
            self._left = left - len(data)
            self.complete = not self._left
        return self.complete

    def _add_and_check_too_large(self, piece: bytes) -> bool:
        """Add a piece of the body. Return True if the body is too large, so that reading ends here; otherwise False."""
        limit = self._max_body_bytes
        room = len(piece) if limit is None else limit - self._body_bytes
        self._body += piece[:room]
        self._body_bytes += min(len(piece), room)
        if len(piece) > room:
            self._handle_too_large_body()
            self.complete = True
        return self.complete

    def _read_chunks(self, body: ChunkedBodyReader, data: bytes) -> bool:
        piece = body.feed(data)
        if piece and self._add_and_check_too_large(bytes(piece)):
            return True
        self.rest, self.complete = body.rest, body.done
        return self.complete


class RequestReader(MessageReader):
    """Reads one request: `head`, then `body`. The bytes in `rest` belong to the next request."""

    head: RequestHead | None = None

    def _read_head(self, data: bytes, scanned: int) -> RequestHead | None:
        head = self.head = RequestHead.read(data, scanned, self._max_head_bytes)
        if head is not None:
            if self._max_body_bytes is not None and head.body > self._max_body_bytes:
                self._handle_too_large_body()
            self._begin_body(head.body)
        return head

    def _handle_too_large_body(self) -> None:
        raise BadMessage("the body is too large", 413)


class ResponseReader(MessageReader):
    """Reads the response to one request; interim responses before it are skipped (RFC 9110 §15.2).

    `head_only`: it is the response to a HEAD. `status` is 0 until the head was read. If the body is too large, its
    beginning is kept and the response counts as complete; the connection cannot be reused then.
    """

    head: ResponseHead | None = None
    status = 0
    _interim = 0
    _truncated = False

    def __init__(self, *, head_only: bool = False, max_body_bytes: int | None = None) -> None:
        super().__init__(max_body_bytes=max_body_bytes)
        self._head_only = head_only

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on the connection, once the response is complete."""
        usable = self.complete and not self._truncated and not self.rest
        return usable and self.head is not None and self.head.reusable

    def record_disconnect(self) -> bool:
        """Record that the connection has ended; returns whether the response is complete."""
        self.complete = self.complete or self._left == UNTIL_CLOSE
        return self.complete

    def _read_head(self, data: bytes, scanned: int) -> ResponseHead | None:
        head = ResponseHead.read(data, scanned, self._max_head_bytes)
        if head is None:
            return None
        if head.status == 101:
            raise BadMessage("switches protocols without being asked")
        if head.status < 200:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise BadMessage(f"more than {MOST_INTERIM} interim responses")
            return head
        if self._head_only:
            head.expect_no_body()
        self.head, self.status = head, head.status
        self._begin_body(head.body)
        return head

    def _handle_too_large_body(self) -> None:
        self._truncated = True
