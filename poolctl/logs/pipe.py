"""The logger's pipes: read without consuming, and with a record of each move, so that no line is lost or repeated."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import struct
import termios
from collections.abc import Sequence
from zlib import crc32

from poolctl.platform import tee

MOST_BYTES = 64 * 1024
# A pipe of this size always holds as much as we read at once (see longest_line).
_LARGE_BYTES = 4 * MOST_BYTES
_NOT_ALLOWED = (errno.ENOSYS, errno.EPERM, errno.EINVAL)
_BYTES = 1024


class PipeReader:
    """Peeks into pipes through one of its own; not thread-safe.

    Where that is not allowed (a sandbox without tee(2)) they are read, and bytes not taken yet are kept here.
    """

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._blind = False
        self._read: dict[int, bytes] = {}

    def look(self, fd: int) -> bytes:
        """The pipe's content, at most 64 KiB; empty at its end. Raises BlockingIOError when there is none."""
        if not self._blind:
            try:
                length = tee(fd, self._in, MOST_BYTES)
                return os.read(self._out, length) if length else b""
            except OSError as error:
                if error.errno not in _NOT_ALLOWED:
                    raise
                self._blind = True
        return self._look_by_reading(fd)

    def take(self, fd: int, length: int, to: int = -1) -> None:
        """Remove `length` bytes, which it holds, in one step; into the pipe `to` as far as that has room."""
        if self._blind:
            self._read[fd] = self._read[fd][length:]
            return
        if to >= 0 and length > 0:
            with contextlib.suppress(BlockingIOError):
                length -= os.splice(fd, to, length)
        while length > 0:
            length -= os.splice(fd, self._nowhere, length)

    def enlarge(self, fd: int) -> bool:
        """Have the pipe always hold 64 KiB, and read as much; False where that is not allowed."""
        return not self._blind and _resize(self._in, _LARGE_BYTES) and _resize(fd, _LARGE_BYTES)

    def restore(self, fd: int) -> None:
        """Give the pipe its usual size again, unless it holds more now: a user has a limit for all pipes."""
        _resize(fd, MOST_BYTES)

    def forget(self, fd: int) -> None:
        """Drop the bytes kept of a closed pipe."""
        self._read.pop(fd, None)

    def close(self) -> None:
        """Close the reader's own descriptors."""
        for fd in (self._out, self._in, self._nowhere):
            os.close(fd)

    def _look_by_reading(self, fd: int) -> bytes:
        kept = self._read.get(fd, b"")
        try:
            kept += os.read(fd, MOST_BYTES)
        except BlockingIOError:
            if not kept:
                raise
        self._read[fd] = kept
        return kept


def waiting(fd: int) -> int:
    """How many bytes the pipe holds."""
    (found,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))
    return int(found)


def _resize(fd: int, size_bytes: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size_bytes) >= size_bytes
    except OSError:  # more than the user may have, or less than it holds
        return False


def longest_line(fd: int) -> int:
    """The length of a line that the pipe always holds; the writer of a longer one may be blocked. 0: not a pipe.

    A write that does not fit into the rest of a page starts a new page (pipe(7)): half of the pages may be
    empty, and the first one nearly so.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) // 4
    except OSError:
        return 0


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
