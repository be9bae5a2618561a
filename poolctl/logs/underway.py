"""What the logger is just moving, noted where its successor finds it: nothing is stored twice, nothing left out."""

from __future__ import annotations

import json
import os
from zlib import crc32

_BYTES = 1024


class Move:
    """Some lines on the way from a pipe into a file: how many bytes of the pipe, and the time they are given."""

    __slots__ = ("checksum", "id", "length", "when")

    def __init__(self, id: str, when: str, length: int, checksum: int) -> None:
        self.id = id
        self.when = when
        self.length = length
        self.checksum = checksum

    def is_of(self, data: bytes) -> bool:
        """Whether this is what the pipe holds: if not, it was taken away."""
        return len(data) >= self.length and crc32(data[: self.length]) == self.checksum


class Underway:
    """The note, in a file in memory that outlives the logger. Without one (fd -1) nothing is noted."""

    def __init__(self, fd: int = -1) -> None:
        self._fd = fd

    def take(self, fd: int) -> None:
        """Note it there from now on."""
        self.close()
        self._fd = fd

    def found(self, id: str) -> Move | None:
        """The move of this stream that somebody has begun and not ended."""
        if self._fd < 0:
            return None
        text = os.pread(self._fd, _BYTES, 0).partition(b"\n")[0].strip(b"\0")
        try:
            noted = Move(*json.loads(text))
        except (ValueError, TypeError):
            return None
        return noted if noted.id == id else None

    def begin(self, id: str, when: str, data: bytes) -> None:
        """Note that these bytes of a pipe are being moved."""
        if self._fd >= 0:
            os.pwrite(self._fd, json.dumps((id, when, len(data), crc32(data))).encode() + b"\n", 0)

    def end(self) -> None:
        """Note that they are stored, and taken away."""
        if self._fd >= 0:
            os.pwrite(self._fd, b"\n", 0)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
