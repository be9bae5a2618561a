"""Chunked bodies: the only grammar and decoder in all processes, however the bytes are split (RFC 9112 §7.1).

A recipient that reads a chunk's size in another way than the proxy would take a part of a body for the next message. So
a line with extensions, excessive leading zeros or anything else is not passed on unchanged: its size is written in
plain digits. Whole chunks in canonical form, by far the most frequent, are passed on without being copied.

The work that a sender can cause is bounded in chunks, not only in bytes: each costs as much as a thousand bytes.
"""

from __future__ import annotations

import re
from time import monotonic

from .message_head import FIELD_LINES, MOST_FIELDS, TEXT, BadMessage, unfit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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
_LAST, _END = b"0\r\n", b"0\r\n\r\n"
# Fields not allowed in a trailer section: they affect framing, routing or authentication (RFC 9110 §6.5.1).
_NOT_IN_TRAILERS = frozenset(
    b"transfer-encoding content-length content-encoding content-type content-range trailer host connection keep-alive"
    b" proxy-connection upgrade te expect authorization proxy-authorization proxy-authenticate www-authenticate cookie"
    b" set-cookie cache-control location forwarded x-forwarded-for x-forwarded-proto x-forwarded-host".split()
)


class ChunkedBody:
    """Reads a chunked body: `feed` returns the part to be passed on, as chunks or, with `decode`, as plain data.

    At its end `done` is true and `trailers` holds the lines of its trailer section. `rest` are the bytes after it, or
    the bytes left by the last call. `size` is the number of bytes of data so far. `unchanged`: the last result equals
    the given bytes. With `most_a_second` 0 the rate of chunks is not limited.
    """

    __slots__ = (
        "_buffer", "_clock", "_counted", "_decode", "_extensions", "_in_trailers", "_left", "_most_a_second",
        "_scanned", "_since", "done", "rest", "size", "trailers", "unchanged",
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
        self.unchanged = False

    def feed(self, data: bytes, at: int = 0, most: int = 0) -> Buffer:
        """Read the bytes from this offset on, and return the part that can be passed on. Raises BadMessage.

        At most `most` chunks are read, 0 for any number; the bytes after them are in `rest`.
        """
        self.unchanged, self.rest = False, b""
        self._scanned = len(self._buffer)
        if self._buffer:
            data, self._buffer, at = self._buffer + data[at:], b"", 0
        elif not self._decode and not self._in_trailers:
            self.unchanged = True  # until shown otherwise
        if self._in_trailers:
            return self._read_trailers(data, at)
        return self._read_chunks(data, at, most or len(data))

    def _read_chunks(self, data: bytes, at: int, most: int) -> Buffer:
        pieces: list[Buffer] = []
        decode = self._decode
        begin = kept = at  # from `kept` on the bytes are passed on as they are
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
                    self._keep_line(data, at)
                    break
                count += 1
                digits = line[1]
                size = int(digits, 16)
                if not size:
                    self._limit_rate(count)
                    if decode or not data.startswith(_END, at):
                        last = self._end_of_pieces(pieces, data, kept, at)
                        return _joined([*last, self._read_trailers(data, line.end())])
                    count, at = 0, at + len(_END)
                    self.done, self.rest = True, data[at:]
                    break
                if line.end(1) + 2 != line.end() or digits[:1] == b"0":
                    self._count_extension(line.end() - line.end(1))
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
                self._check_end(data, at, left, taken)
            self._left = left - taken
            size = min(taken, max(0, left - 2))
            self.size += size
            if decode and size:
                pieces.append(memoryview(data)[at : at + size])
            at += taken
        if count:
            self._limit_rate(count)
        if decode:
            return _joined(pieces)
        self.unchanged = self.unchanged and kept == begin and at == end
        if self.unchanged and not begin:
            return data
        return _joined(self._end_of_pieces(pieces, data, kept, at))

    def _end_of_pieces(self, pieces: list[Buffer], data: bytes, kept: int, at: int) -> list[Buffer]:
        if self._decode or at == kept:
            return pieces
        return [*pieces, memoryview(data)[kept:at] if kept or at < len(data) else data]

    def _check_end(self, data: bytes, at: int, left: int, taken: int) -> None:
        """Raise BadMessage unless the chunk ends with CRLF, as far as the `taken` of its `left` bytes show it."""
        begin = at + max(0, left - 2)
        if begin < at + taken:
            expected = b"\r\n"[max(0, 2 - left) :]
            if not expected.startswith(data[begin : at + taken]):
                raise BadMessage("a chunk that is longer than its size")

    def _keep_line(self, data: bytes, at: int) -> None:
        """Keep the beginning of a chunk's first line. Raises BadMessage if it cannot become valid."""
        line = data[at:]
        if b"\n" in line or len(line) > _MAX_LINE_BYTES or self._is_unfit(data, at):
            raise BadMessage("a chunk without a valid size")
        digits = line.lstrip(_HEX_DIGITS)
        if len(line) - len(digits) > 15 or (digits and (digits == line or digits[:1] not in b"\t ;\r")):
            raise BadMessage("a chunk without a valid size")
        self._buffer = line

    def _is_unfit(self, data: bytes, at: int) -> bool:
        """Whether the bytes from this offset on cannot be text. The previous call may have ended with a CR."""
        return unfit(data, max(at, self._scanned - 1)) is not None

    def _count_extension(self, size: int) -> None:
        self._extensions += size
        if size > _MAX_LINE_BYTES or self._extensions > _MAX_EXTENSION_BYTES:
            raise BadMessage("too many extensions of chunks")

    def _limit_rate(self, count: int) -> None:
        """Count further chunks against the rate limit."""
        if not self._most_a_second:
            return
        now = self._clock()
        if now - self._since >= 1.0:
            self._since, self._counted = now, 0
        self._counted += count
        if self._counted > self._most_a_second:
            raise BadMessage(f"more than {self._most_a_second} chunks a second")

    def _read_trailers(self, data: bytes, at: int) -> Buffer:
        """Read the trailer section, which starts at `at`; it is passed on only when complete."""
        self.unchanged = False
        if data.startswith(b"\r\n", at):
            end = at
        else:
            end = data.find(b"\r\n\r\n", at) + 2
            if end < 2:
                if len(data) - at > _MAX_TRAILER_BYTES or self._is_unfit(data, at):
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
