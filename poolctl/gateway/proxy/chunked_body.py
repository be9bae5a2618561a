"""Chunked bodies on their way through: the framing is checked, and passed on in canonical form.

A recipient that reads a chunk's size in another way than the proxy would take a part of a body for the next message.
So a line with extensions, with leading zeros beyond measure, or with anything else is not passed on as it came: its
size is written in plain digits. Whole chunks in canonical form, nearly all, go on without being copied.
"""

from __future__ import annotations

import re

from ...http.message_head import FIELD_LINES, TEXT, UNFIT, BadMessage

Buffer = bytes | memoryview

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:[\t ]*+;" + TEXT + rb")?\r\n")
# With the empty line: possessive groups before Python 3.11.5 take half a line for one where the text ends.
_TRAILER_SECTION = re.compile(FIELD_LINES + rb"\r\n")
_UNFIT = re.compile(UNFIT)
_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 8 * 1024
# Extensions of all chunks together; a peer could send nothing but extensions without end.
_MAX_EXTENSION_BYTES = 64 * 1024
_LAST, _END = b"0\r\n", b"0\r\n\r\n"
# Fields that may not stand in a trailer section: they decide about framing, routing, authentication (RFC 9110 §6.5.1).
_NOT_IN_TRAILERS = frozenset(
    b"transfer-encoding content-length content-encoding content-type content-range trailer host connection keep-alive"
    b" proxy-connection upgrade te expect authorization proxy-authorization proxy-authenticate www-authenticate cookie"
    b" set-cookie cache-control location forwarded x-forwarded-for x-forwarded-proto x-forwarded-host".split()
)


class ChunkedBody:
    """`feed` returns the part of the body that can be passed on: as chunks, or with `decode` the data without them.

    At its end `done` is true, `rest` holds the bytes behind it and `trailers` the lines of its trailer section.
    `size` is the number of bytes of data so far. `unchanged`: the last result is all the bytes that were given.
    """

    __slots__ = (
        "_buffer", "_decode", "_extensions", "_in_trailers", "_left", "done", "rest", "size", "trailers", "unchanged",
    )  # fmt: skip

    def __init__(self, *, decode: bool = False) -> None:
        self._decode = decode
        self._left = 0  # of the chunk that has begun and its CRLF
        self._buffer = b""  # a line that is not complete, or the trailer section
        self._in_trailers = False
        self._extensions = 0
        self.done = False
        self.rest = b""
        self.trailers = b""
        self.size = 0
        self.unchanged = False

    def feed(self, data: bytes, at: int = 0) -> Buffer:
        """What can be passed on with these bytes, from this offset on. Raises BadMessage for anything but chunks."""
        self.unchanged = False
        if self._buffer:
            data, self._buffer, at = self._buffer + data[at:], b"", 0
        elif not self._decode and not self._in_trailers:
            self.unchanged = True  # as long as nothing else is found
        if self._in_trailers:
            return self._read_trailers(data, at)
        return self._read_chunks(data, at)

    def _read_chunks(self, data: bytes, at: int) -> Buffer:
        pieces: list[Buffer] = []
        decode = self._decode
        begin = kept = at  # from `kept` on the bytes are passed on as they are
        end = len(data)
        while at < end:
            left = self._left
            if left:
                taken = left if left <= end - at else end - at
                if left - taken < 2:
                    self._check_end(data, at, taken)
                self._left = left - taken
                size = taken if taken <= left - 2 else max(0, left - 2)
                self.size += size
                if decode and size:
                    pieces.append(memoryview(data)[at : at + size])
                at += taken
                continue
            line = _SIZE.match(data, at)
            if line is None:
                self._keep_line(data, at)
                break
            digits = line[1]
            size = int(digits, 16)
            if not size:
                if decode or not data.startswith(_END, at):
                    last = self._end_of_pieces(pieces, data, kept, at)
                    return _joined([*last, self._read_trailers(data, line.end())])
                at += len(_END)
                self.done, self.rest = True, data[at:]
                break
            self._left = size + 2
            if line.end(1) + 2 != line.end() or digits[:1] == b"0":
                self._count_extension(line.end() - line.end(1))
                if not decode:
                    pieces += (data[kept:at], b"%x\r\n" % size)
                    kept = line.end()
            at = line.end()
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

    def _check_end(self, data: bytes, at: int, taken: int) -> None:
        """The last two of the `_left` bytes are CRLF."""
        left = self._left
        begin = at + max(0, left - 2)
        if begin < at + taken:
            expected = b"\r\n"[max(0, 2 - left) :]
            if not expected.startswith(data[begin : at + taken]):
                raise BadMessage("a chunk that is longer than its size")

    def _keep_line(self, data: bytes, at: int) -> None:
        """Wait for the rest of a chunk's first line."""
        line = data[at:]
        if b"\n" in line or len(line) > _MAX_LINE_BYTES or _UNFIT.search(line):
            raise BadMessage("a chunk without a valid size")
        digits = line.lstrip(b"0123456789abcdefABCDEF")
        if len(line) - len(digits) > 15 or (digits and (digits == line or digits[:1] not in b"\t ;\r")):
            raise BadMessage("a chunk without a valid size")
        self._buffer = line

    def _count_extension(self, size: int) -> None:
        self._extensions += size
        if self._extensions > _MAX_EXTENSION_BYTES:
            raise BadMessage("too many extensions of chunks")

    def _read_trailers(self, data: bytes, at: int) -> Buffer:
        """The last chunk's line has ended before `at`: nothing is passed on until the trailer section is complete."""
        self.unchanged = False
        if data.startswith(b"\r\n", at):
            end = at
        else:
            end = data.find(b"\r\n\r\n", at) + 2
            if end < 2:
                if len(data) - at > _MAX_TRAILER_BYTES or _UNFIT.search(data, at):
                    raise BadMessage("malformed trailers")
                self._buffer, self._in_trailers = data[at:], True
                return b""
        if not _TRAILER_SECTION.fullmatch(data, at, end + 2) or end - at > _MAX_TRAILER_BYTES:
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


def as_chunk(data: Buffer) -> bytes:
    """The data as a chunk of its own."""
    return b"".join((b"%x\r\n" % len(data), data, b"\r\n"))
