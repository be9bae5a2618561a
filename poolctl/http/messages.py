"""Reads HTTP/1.1 responses, which may arrive in pieces of any size, and writes the heads of requests.

A supervisor reads the responses to a thousand probes in a second, and h11 would take nine times as long.

Every limit applies while the response is still arriving: a head without an end, a chunk without a size or a trailer
section without an end is refused as soon as it exceeds its limit. The number of chunks per second is limited too,
because each costs as much work as a thousand bytes.

The grammar follows RFC 9112 §2 to §6 strictly: a line ends with CRLF, there is no space before a colon, and a field
that determines the end of the response occurs at most once. Folded lines are joined.
"""

from __future__ import annotations

import re
from time import monotonic

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self


MAX_HEAD_BYTES = 64 * 1024
MOST_FIELDS = 100  # of a head; browsers send about thirty
MOST_INTERIM = 20  # responses before the final one
# The body has no known length: it comes in chunks, or ends with the connection.
CHUNKED, UNTIL_CLOSE = -1, -2

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"  # RFC 9110 §5.6.2
# A field's value: no CR, LF, NUL or other control (RFC 9110 §5.5). No space before the colon (RFC 9112 §5.1).
TEXT = rb"[\t \x21-\x7e\x80-\xff]*+"
# Only repetitions of single characters are possessive. For a group that is repeated possessively, Python 3.11.2 loses
# the captured text, and may stay in the middle of a repetition that failed. Here a repetition has one way to match.
FIELD_LINES = rb"(?:" + TOKEN + rb":" + TEXT + rb"\r\n)*"
# Characters that are neither part of a line nor its end: a control, a bare CR, a bare LF. A CR may be the last byte
# received so far.
unfit = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?![\n]|\Z)").search
TOKEN_CHARACTERS = "!#$%&'*+.^_`|~-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_CONTROLS = bytes(byte for byte in range(32) if byte != ord("\t")) + b"\x7f"
_is_length = re.compile(rb"[0-9]{1,15}").fullmatch
_END = b"\r\n\r\n"
_BEGINNING = b"HTTP/1."

# Many servers omit the space after the status if there is no reason phrase (RFC 9112 §4).
_STATUS_LINE = rb"(HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + TEXT + rb")?)\r\n"
_status_line = re.compile(_STATUS_LINE).match
_response_head = re.compile(_STATUS_LINE + FIELD_LINES + rb"\r\n").fullmatch
# A user agent joins folded lines (RFC 9112 §5.2).
_fold = re.compile(rb"(?<![\t ])[\t ]*+\r\n[\t ]++")  # a run of blanks is looked at once, from its first one
# The fields that determine the end of the response. The first letter rules out most others.
_decisive_fields = re.compile(
    rb"\n(?=[CTct])((?i:content-length|connection|transfer-encoding)):[ \t]*+([^\r]*+)"
).findall
_BODILESS = (204, 304)  # RFC 9112 §6.3


class BadMessage(Exception):
    """The received bytes are not a valid message. `status` is the status of a server's response to them."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ResponseHead:
    """The head of a response.

    `fields` are its header lines as sent, each with the CRLF that ends the line before it: "\\r\\nHost: a". `end` is
    the number of bytes up to the body, `body` the length of the body, CHUNKED or UNTIL_CLOSE.
    """

    __slots__ = ("_http_1_1", "_keep_alive", "body", "end", "fields", "status", "status_line")

    def __init__(self, raw: bytes) -> None:
        """Parse a complete head. Raises BadMessage for anything else."""
        self.end = len(raw)
        if raw.count(b"\n") - 2 > MOST_FIELDS:
            raise BadMessage(f"more than {MOST_FIELDS} fields")
        found = _response_head(raw)
        if found is None:
            raw = _fold.sub(b" ", raw)
            found = _response_head(raw)
            if found is None:
                raise _problem(raw)
        self.status_line, minor, status = found.groups()
        self.fields = raw[found.end(1) : -4]
        self._http_1_1 = minor == b"1"
        decisive = _combine(_decisive_fields(self.fields))
        options = [option.strip(b" \t") for option in decisive.get(b"connection", b"").lower().split(b",")]
        # close takes precedence (RFC 9110 §7.6.1, RFC 9112 §9.3).
        self._keep_alive = (self._http_1_1 or b"keep-alive" in options) and b"close" not in options
        self.status = int(status)
        self.body = _length_of_body(decisive)
        if self.status < 200 or self.status in _BODILESS:
            self.expect_no_body()

    def __repr__(self) -> str:
        return f"<ResponseHead {self.status}>"

    @classmethod
    def read(cls, data: bytes, scanned: int = 0) -> Self | None:
        """The head at the start of these bytes; None while it is incomplete but may become valid. Raises BadMessage.

        The first `scanned` bytes were already checked by an earlier call.
        """
        end = data.find(_END, scanned - 3 if scanned > 3 else 0)
        if (end + 4 if end >= 0 else len(data)) > MAX_HEAD_BYTES:
            raise BadMessage("the head is too large")
        if end >= 0:
            return cls(data[: end + 4])
        if (
            not _BEGINNING.startswith(data[: len(_BEGINNING)])
            or unfit(data, max(0, scanned - 1))
            or (b"\r\n" in data and not _status_line(data))
        ):
            raise _problem(data)
        return None

    def expect_no_body(self) -> None:
        """Expect no body, whatever the fields say: the response is to a HEAD, or its status excludes a body."""
        self.body = 0

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on the connection after this response."""
        # Chunks in HTTP/1.0 are an error, after which the connection cannot be used (RFC 9112 §6.1).
        return self._keep_alive and (self.body >= 0 or (self.body == CHUNKED and self._http_1_1))

    def get(self, name: bytes) -> bytes:
        """The value of the field with this lower-case name, b"" if missing; several are joined (RFC 9110 §5.2)."""
        lines = (line.partition(b":") for line in self.fields.split(b"\r\n"))
        return b", ".join([value.strip(b"\t ") for each, _, value in lines if each.lower() == name])


def _problem(data: bytes) -> BadMessage:
    """The reason why these bytes are not the beginning of a valid head."""
    if _BEGINNING.startswith(data[: len(_BEGINNING)]):
        if unfit(data.partition(_END)[0]):
            return BadMessage("a control character, or a line that does not end with CRLF")
        if _status_line(data):
            return BadMessage("malformed header field")
    return BadMessage("no HTTP/1.1 status line")


def _combine(sent: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The values of these fields by lower-case name; options of Connection are joined by a comma.

    Raises BadMessage for another field that is repeated.
    """
    decisive: dict[bytes, bytes] = {}
    for name, value in sent:
        name, value = name.lower(), value.rstrip(b" \t")
        if name in decisive:
            if name != b"connection":
                raise BadMessage(f"more than one {name.decode()}")
            value = decisive[name] + b", " + value
        decisive[name] = value
    return decisive


def _length_of_body(decisive: dict[bytes, bytes]) -> int:
    """The Content-Length, CHUNKED, or UNTIL_CLOSE (RFC 9112 §6.3). Raises BadMessage."""
    length, coding = decisive.get(b"content-length"), decisive.get(b"transfer-encoding")
    if coding is not None:
        if coding.lower() != b"chunked":
            raise BadMessage("transfer-encoding is not chunked")  # RFC 9112 §6.1
        if length is not None:
            raise BadMessage("both content-length and transfer-encoding")  # RFC 9112 §6.1
        return CHUNKED
    if length is None:
        return UNTIL_CLOSE
    # Nor as a list, even of equal numbers: RFC 9110 §8.6 leaves that to the recipient.
    if not _is_length(length):
        raise BadMessage("content-length is not a number")
    return int(length)


def request_head(method: str, target: str, fields: Iterable[tuple[str, str]]) -> bytes:
    """The head of a request. Raises ValueError for invalid characters; the error does not repeat them."""
    if not method or method.strip(TOKEN_CHARACTERS):
        raise ValueError("the method of a request is not a word")
    if not target or not target.isascii() or not target.isprintable() or " " in target:
        raise ValueError("the target of a request has a character that must be percent-encoded")
    lines = [f"{method} {target} HTTP/1.1".encode()]
    for name, value in fields:
        if not name or name.strip(TOKEN_CHARACTERS):
            raise ValueError(f"{name!r} is not the name of a header")
        line = f"{name}: {value}".encode(errors="surrogateescape")
        if line.translate(None, _CONTROLS) != line:
            raise ValueError(f"the header {name!r} has a control character in its value")
        lines.append(line)
    return b"\r\n".join([*lines, b"", b""])


# Rate limit for the chunks of one body; a faster sender is disconnected. Usual programs send chunks of kilobytes.
MOST_CHUNKS_A_SECOND = 20_000
_size_line = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:[\t ]*+;" + TEXT + rb")?\r\n").match
_trailer_section = re.compile(FIELD_LINES + rb"\r\n").fullmatch
_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 8 * 1024
# Limit for the extensions of all chunks together; a peer could send an endless series of extensions.
_MAX_EXTENSION_BYTES = 64 * 1024
_HEX_DIGITS = b"0123456789abcdefABCDEF"


class ChunkedBodyReader:
    """Reads a chunked body: `feed` returns the data in it.

    At the end of the body `done` is true, and `rest` has the bytes after it. Trailers are checked and left out.
    """

    __slots__ = (
        "_buffer", "_clock", "_counted", "_extensions", "_in_trailers", "_left", "_scanned", "_since", "done", "rest",
    )  # fmt: skip

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._since, self._counted = -1.0, 0  # when the current second began, and the chunks since then
        self._left = 0  # bytes left of the current chunk and its CRLF
        self._buffer = b""  # an incomplete line, or the trailer section
        self._scanned = 0  # bytes at the beginning of the data that an earlier call has checked
        self._in_trailers = False
        self._extensions = 0
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Process the next bytes, and return the data in them. Raises BadMessage."""
        self._scanned = len(self._buffer)
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        if self._in_trailers:
            self._read_trailers(data, 0)
            return b""
        return self._read_chunks(data)

    def _read_chunks(self, data: bytes) -> bytes:
        pieces: list[bytes] = []
        at, end, count = 0, len(data), 0
        while at < end:
            if not self._left:
                line = _size_line(data, at)
                if line is None:
                    self._buffer_size_line(data, at)
                    break
                count += 1
                if count > MOST_CHUNKS_A_SECOND:
                    break  # refused below
                size = int(line[1], 16)
                if not size:
                    self._read_trailers(data, line.end())
                    break
                if (extensions := line.end() - line.end(1) - 2) > 0:
                    self._refuse_excessive_extensions(extensions)
                at, self._left = line.end(), size + 2
            taken = min(self._left, end - at)
            if self._left - taken < 2:
                self._check_crlf_after_chunk(data, at, self._left, taken)
            if self._left > 2:
                pieces.append(data[at : at + min(taken, self._left - 2)])
            at += taken
            self._left -= taken
        if count:
            self._refuse_excessive_chunk_rate(count)
        return b"".join(pieces)

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
        now = self._clock()
        if now - self._since >= 1.0:
            self._since, self._counted = now, 0
        self._counted += count
        if self._counted > MOST_CHUNKS_A_SECOND:
            raise BadMessage(f"more than {MOST_CHUNKS_A_SECOND} chunks a second")

    def _read_trailers(self, data: bytes, at: int) -> None:
        """Read the trailer section, which starts at `at`; wait for more if it is incomplete."""
        if data.startswith(b"\r\n", at):
            end = at
        else:
            end = data.find(b"\r\n\r\n", at) + 2
            if end < 2:
                if len(data) - at > _MAX_TRAILER_BYTES or self._has_control_characters(data, at):
                    raise BadMessage("malformed trailers")
                self._buffer, self._in_trailers = data[at:], True
                return
        if (
            end - at > _MAX_TRAILER_BYTES
            or data.count(b"\n", at, end) > MOST_FIELDS
            or not _trailer_section(data, at, end + 2)
        ):
            raise BadMessage("malformed trailers")
        self.rest = data[end + 2 :]
        self.done, self._in_trailers = True, False


class ResponseReader:
    """Reads the response to one request; call `feed` until it is complete.

    Interim responses before it are skipped (RFC 9110 §15.2). `head_only`: it is the response to a HEAD. `status` is 0
    until the head was read.

    With `max_body_bytes` None the caller removes the parts of the body with `take_body`. A larger body than that is cut
    off: the response counts as complete, and the connection cannot be reused.
    """

    # The state of a reader that has read nothing; set on an instance only where it changes. A supervisor makes a
    # thousand readers a second for its probes, and most of them read one piece.
    head: ResponseHead | None = None
    status = 0
    complete = False
    _rest = b""  # the bytes after the response
    _buffer = b""  # not understood yet
    _interim = 0
    _left = 0  # bytes of the body, or UNTIL_CLOSE
    _chunks: ChunkedBodyReader | None = None  # the body, if it comes in chunks
    _body_bytes = 0
    _truncated = False

    def __init__(self, *, head_only: bool = False, max_body_bytes: int | None = None) -> None:
        self._head_only = head_only
        self._max_body_bytes = max_body_bytes
        self._body = bytearray()

    @property
    def body(self) -> bytes:
        """The part of the body that has arrived and was not taken."""
        return bytes(self._body)

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent on the connection, once the response is complete."""
        usable = self.complete and not self._truncated and not self._rest
        return usable and self.head is not None and self.head.reusable

    def take_body(self) -> bytes:
        """Take the part of the body that has arrived; b"" for none."""
        body = self.body
        self._body.clear()
        return body

    def feed(self, data: bytes) -> bool:
        """Process received bytes; returns whether the response is complete. Raises BadMessage."""
        scanned = len(self._buffer)
        if scanned:
            data, self._buffer = self._buffer + data, b""
        while self.head is None:
            head = ResponseHead.read(data, scanned)
            if head is None:
                self._buffer = data
                return False
            self._add_head(head)
            data, scanned = data[head.end :], 0
        if self._chunks is None:
            return self._read_plain_and_check_complete(data)
        return self._read_chunks(self._chunks, data)

    def record_disconnect(self) -> bool:
        """Record that the connection has ended; returns whether the response is complete."""
        self.complete = self.complete or self._left == UNTIL_CLOSE
        return self.complete

    def _add_head(self, head: ResponseHead) -> None:
        if head.status == 101:
            raise BadMessage("switches protocols without being asked")
        if head.status < 200:
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise BadMessage(f"more than {MOST_INTERIM} interim responses")
            return
        if self._head_only:
            head.expect_no_body()
        self.head, self.status, self._left = head, head.status, head.body
        if head.body == CHUNKED:
            self._chunks = ChunkedBodyReader()

    def _read_plain_and_check_complete(self, data: bytes) -> bool:
        left = self._left
        if left >= 0 and len(data) > left:
            data, self._rest = data[:left], data[left:]
        if data and self._add_and_check_too_large(data):
            return True
        if left >= 0:
            self._left = left - len(data)
            self.complete = not self._left
        return self.complete

    def _read_chunks(self, body: ChunkedBodyReader, data: bytes) -> bool:
        piece = body.feed(data)
        if piece and self._add_and_check_too_large(piece):
            return True
        self._rest, self.complete = body.rest, body.done
        return self.complete

    def _add_and_check_too_large(self, piece: bytes) -> bool:
        """Add a piece of the body. Return True if the body is too large, so that reading ends here; otherwise False."""
        limit = self._max_body_bytes
        room = len(piece) if limit is None else limit - self._body_bytes
        self._body += piece[:room]
        self._body_bytes += min(len(piece), room)
        if len(piece) > room:
            self._truncated = self.complete = True
        return self.complete
