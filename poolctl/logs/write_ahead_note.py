"""A write-ahead record of the lines that the logger is moving: its successor neither repeats nor loses a line."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from zlib import crc32

from .pipe import waiting

_BYTES = 1024


class Move:
    """A move of lines from a pipe into a file: how many bytes of the pipe, and the lines' time stamp.

    `taken` is how many of them are certainly no longer in the pipe.
    """

    __slots__ = ("checksum", "id", "length", "taken", "when")

    def __init__(self, id: str, when: str, length: int, checksum: int) -> None:
        self.id = id
        self.when = when
        self.length = length
        self.checksum = checksum
        self.taken = 0

    def is_of(self, data: bytes) -> bool:
        """Whether the pipe still holds the lines of this move: `data` is its content."""
        return len(data) >= self.length and crc32(data[: self.length]) == self.checksum


class WriteAheadNote:
    """The note, in a file in memory that outlives the logger, and a pipe that does, too (see `take`).

    Stored lines go from the server's pipe into `sink`, in one step: bytes in it are no longer in the server's pipe.
    That pipe's content alone does not show it, as the next lines may be the same. Without a file nothing is noted,
    and `sink` is -1.
    """

    def __init__(self, fds: Sequence[int] = ()) -> None:
        self._fd = self._taken = self.sink = -1
        self._left: Move | None = None
        self.take(fds)

    def take(self, fds: Sequence[int]) -> None:
        """Use these descriptors from now on: a file, and the ends of the pipe (none from another version)."""
        self.close()
        self._fd, self._taken, self.sink = [*fds, -1, -1, -1][:3]
        self._left = self._read()

    def found(self, id: str) -> Move | None:
        """The move of this stream that the previous logger began and did not complete."""
        return self._left if self._left is not None and self._left.id == id else None

    def _read(self) -> Move | None:
        if self._fd < 0:
            return None
        text = os.pread(self._fd, _BYTES, 0).partition(b"\n")[0].strip(b"\0")
        try:
            noted = Move(*json.loads(text))
        except (ValueError, TypeError):
            return None
        noted.taken = waiting(self._taken) if self._taken >= 0 else 0
        return noted

    def begin(self, id: str, when: str, data: bytes) -> None:
        """Note that these bytes of a pipe are being moved."""
        if self._fd >= 0:
            self._empty()
            os.pwrite(self._fd, json.dumps((id, when, len(data), crc32(data))).encode() + b"\n", 0)

    def end(self) -> None:
        """Note that they are stored, and removed from the pipe."""
        self._left = None
        if self._fd >= 0:
            os.pwrite(self._fd, b"\n", 0)

    def _empty(self) -> None:
        # Not earlier: with an open note, bytes in this pipe mean that they were taken from the server's.
        while self._taken >= 0 and (length := waiting(self._taken)):
            os.read(self._taken, length)

    def close(self) -> None:
        """Close the file and the pipe."""
        for fd in (self._fd, self._taken, self.sink):
            if fd >= 0:
                os.close(fd)
        self._fd = self._taken = self.sink = -1
