"""Where a chunked body ends, found while its bytes go on to a parser (RFC 9112 §7.1).

Lines that two parsers could read in different ways are refused: a process that looked for the end elsewhere than the
parser would take a part of a body for the next message.
"""

from __future__ import annotations

import re

from .message_head import BadMessage

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t !-~]*)?\r\n")
_TRAILER_LINE = re.compile(rb"[^\0\r\n]*\r\n")
_MOST_LINE_BYTES = 4096
_MOST_TRAILER_BYTES = 64 * 1024


class ChunkedEnd:
    """Follows one body; `done` is true once its end has been found."""

    __slots__ = ("_left", "_line", "_trailers", "done")

    def __init__(self) -> None:
        self.done = False
        self._left = 0  # of a chunk and the CRLF behind it, which the parser checks
        self._line = b""  # the beginning of a line
        self._trailers: int | None = None  # the size of the trailer section so far

    def find(self, data: bytes, at: int = 0) -> int:
        """The offset behind the last byte of `data` that belongs to the body. Raises BadMessage."""
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            end = data.find(b"\n", at) + 1
            line = self._line + data[at : end or len(data)]
            if len(line) > _MOST_LINE_BYTES:
                raise BadMessage("a line of a chunked body that is too long")
            if not end:
                self._line = line
                return len(data)
            self._line, at = b"", end
            self._read(line)
            if self.done:
                return at
        return at

    def _read(self, line: bytes) -> None:
        if self._trailers is None:
            found = _SIZE_LINE.fullmatch(line)
            if found is None:
                raise BadMessage("a chunk without a valid size")
            size = int(found[1], 16)
            if size:
                self._left = size + 2
            else:
                self._trailers = 0
        else:
            self._trailers += len(line)
            if self._trailers > _MOST_TRAILER_BYTES or not _TRAILER_LINE.fullmatch(line):
                raise BadMessage("malformed trailers")
            self.done = line == b"\r\n"
