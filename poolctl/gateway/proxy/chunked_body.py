"""Chunked bodies on their way through: the framing is checked, and passed on in canonical form.

A recipient that reads a chunk's size in another way than the proxy would take a part of a body for the next message.
So a line with extensions, with leading zeros beyond measure, or with anything else is not passed on as it came: its
size is written in plain digits. Whole chunks in canonical form, nearly all, go on without being copied.
"""

from __future__ import annotations

import re

from ...http.message_head import FIELD_LINES, TEXT, TOKEN, UNFIT, BadMessage

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15}+)(?:[\t ]*+;" + TEXT + rb")?+\r\n")
_FIELD_LINES = re.compile(rb"(?:" + FIELD_LINES + rb")*+")
_UNFIT = re.compile(UNFIT)
_FIELD_NAME = re.compile(TOKEN)
_MAX_LINE_BYTES = 4096
_MAX_TRAILER_BYTES = 16 * 1024
# Extensions of all chunks together; a peer could send nothing but extensions without end.
_MAX_EXTENSION_BYTES = 64 * 1024
_LAST = b"0\r\n"
# Fields that may not stand in a trailer section: they decide about framing, routing, authentication (RFC 9110 §6.5.1).
_NOT_IN_TRAILERS = frozenset(
    b"transfer-encoding content-length content-encoding content-type content-range trailer host connection keep-alive"
    b" proxy-connection upgrade te expect authorization proxy-authorization proxy-authenticate www-authenticate cookie"
    b" set-cookie cache-control location forwarded x-forwarded-for x-forwarded-proto x-forwarded-host".split()
)


class ChunkedBody:
    """`feed` returns the part of the body that can be passed on: as chunks, or with `decode` the data without them.

    At its end `done` is true, `rest` holds the bytes behind it and `trailers` the lines of its trailer section.
    `size` is the number of bytes of data so far.
    """

    __slots__ = (
        "_buffer",
        "_decode",
        "_extensions",
        "_in_trailers",
        "_left",
        "done",
        "rest",
        "size",
        "trailers",
    )

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

    def feed(self, data: bytes) -> bytes:
        """What can be passed on with these bytes. Raises BadMessage for anything but chunks."""
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        if self._in_trailers:
            return self._read_trailers(data, 0)
        if not self._decode and self._left > len(data):  # the middle of a large chunk
            return self._middle(data)
        pieces: list[bytes] = []
        at = kept = 0  # from `kept` on the bytes are passed on as they are
        end = len(data)
        while at < end:
            if self._left:
                taken = min(self._left, end - at)
                self._check_end(data, at, taken)
                if self._decode:
                    pieces.append(data[at : at + max(0, min(taken, self._left - 2))])
                self.size += max(0, min(taken, self._left - 2))
                self._left -= taken
                at += taken
                continue
            line = _SIZE.match(data, at)
            if line is None:
                self._keep_line(data, at)
                break
            size = int(line[1], 16)
            if not size:
                break
            self._left = size + 2
            if not self._decode and (line.end(1) + 2 != line.end() or line[1][:1] == b"0"):
                self._count_extension(line.end() - line.end(1))
                pieces += (data[kept:at], b"%x\r\n" % size)
                kept = line.end()
            at = line.end()
        if not self._decode and at > kept:
            pieces.append(data[kept:at] if kept or at < end else data)
        if at < end and not self._buffer:  # the last chunk
            pieces.append(self._read_trailers(data, line.end() if line is not None else at))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _middle(self, data: bytes) -> bytes:
        left = self._left
        if left - len(data) < 2:
            self._check_end(data, 0, len(data))
        self.size += max(0, min(len(data), left - 2))
        self._left = left - len(data)
        return data

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

    def _read_trailers(self, data: bytes, at: int) -> bytes:
        """The last chunk's line has ended before `at`: nothing is passed on until the trailer section is complete."""
        if data.startswith(b"\r\n", at):
            end = at
        else:
            end = data.find(b"\r\n\r\n", at) + 2
            if end < 2:
                if len(data) - at > _MAX_TRAILER_BYTES or _UNFIT.search(data, at):
                    raise BadMessage("malformed trailers")
                self._buffer, self._in_trailers = data[at:], True
                return b""
        lines = _FIELD_LINES.match(data, at, end)
        if lines is None or lines.end() != end or end - at > _MAX_TRAILER_BYTES:
            raise BadMessage("malformed trailers")
        self.trailers = _allowed(data[at:end]) if end > at else b""
        self.rest = data[end + 2 :]
        self.done, self._in_trailers = True, False
        return b"" if self._decode else _LAST + self.trailers + b"\r\n"


def _allowed(lines: bytes) -> bytes:
    kept = [
        line
        for line in lines.split(b"\r\n")[:-1]
        if line.partition(b":")[0].lower().replace(b"_", b"-") not in _NOT_IN_TRAILERS
    ]
    return b"\r\n".join([*kept, b""])
