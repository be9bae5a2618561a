"""A pipe whose content is looked at before it is taken: what a killed reader had not stored is still in it."""

from __future__ import annotations

import errno
import fcntl
import os

from poolctl.platform import tee

_MOST_BYTES = 64 * 1024
_NOT_ALLOWED = (errno.ENOSYS, errno.EPERM, errno.EINVAL)


class PipeReader:
    """Looks into other processes' pipes by way of one of its own; for one thread.

    Where that is not allowed (a sandbox without tee(2)) they are read, and what is not taken yet is kept here.
    """

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._blind = False
        self._read: dict[int, bytes] = {}

    def look(self, fd: int) -> bytes:
        """What the pipe holds, at most 64 KiB; nothing at its end. Raises BlockingIOError when it is empty."""
        if not self._blind:
            try:
                length = tee(fd, self._in, _MOST_BYTES)
                return os.read(self._out, length) if length else b""
            except OSError as error:
                if error.errno not in _NOT_ALLOWED:
                    raise
                self._blind = True
        return self._look_by_reading(fd)

    def take(self, fd: int, length: int) -> None:
        """Take away so many bytes, which are there."""
        if self._blind:
            self._read[fd] = self._read[fd][length:]
            return
        while length > 0:
            length -= os.splice(fd, self._nowhere, length)

    def forget(self, fd: int) -> None:
        """Keep nothing of a pipe that is closed."""
        self._read.pop(fd, None)

    def close(self) -> None:
        """Close the reader's own descriptors."""
        for fd in (self._out, self._in, self._nowhere):
            os.close(fd)

    def _look_by_reading(self, fd: int) -> bytes:
        kept = self._read.get(fd, b"")
        try:
            kept += os.read(fd, _MOST_BYTES)
        except BlockingIOError:
            if not kept:
                raise
        self._read[fd] = kept
        return kept


def longest_line(fd: int) -> int:
    """How many bytes of a line the pipe holds in any case: a writer of a longer one may be waiting; 0: no pipe.

    A page holds one write that does not fit into what is left of the page before (pipe(7)): half of the pages may be
    empty, and the first one nearly so.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) // 4
    except OSError:
        return 0
