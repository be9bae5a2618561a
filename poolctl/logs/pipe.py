"""Peeks into a pipe before consuming: output that a killed reader had not stored is still in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import termios

from poolctl.platform import tee

MOST_BYTES = 64 * 1024
# A pipe of this size always holds as much as we read at once (see longest_line).
_LARGE_BYTES = 4 * MOST_BYTES
_NOT_ALLOWED = (errno.ENOSYS, errno.EPERM, errno.EINVAL)


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
