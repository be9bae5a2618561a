"""Moves one server's output from the read end of its pipe into a file, line by line.

The pipe is read without consuming its content, and each move is recorded, so that no line is lost or repeated when
the logger is killed.
"""

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

from poolctl.keeper import wire
from poolctl.platform import tee

from .log_file import LogFile
from .log_line import as_json, as_text, stamp

# Bytes per read and turn, so that a server that floods its output does not starve the others. Longer lines are
# split, so memory is bounded for any output.
MOST_BYTES = 64 * 1024
# A pipe of this size always holds a full read (see longest_line).
_LARGE_BYTES = 4 * MOST_BYTES
_NOT_ALLOWED = (errno.ENOSYS, errno.EPERM, errno.EINVAL)
_BYTES = 1024


class PipeReader:
    """Reads pipes without consuming their content, through a pipe of its own; not thread-safe.

    Where that is not allowed (a sandbox without tee(2)), the pipes are consumed, and bytes not taken yet are kept here.
    """

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._blind = False
        self._read: dict[int, bytes] = {}

    def look(self, fd: int) -> bytes:
        """The pipe's content, at most 64 KiB; empty at its end. Raises BlockingIOError when the pipe is empty."""
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
        """Remove `length` bytes, which the pipe holds, in one step; into the pipe `to` as far as it has room."""
        if self._blind:
            self._read[fd] = self._read[fd][length:]
            return
        if to >= 0 and length > 0:
            with contextlib.suppress(BlockingIOError):
                length -= os.splice(fd, to, length)
        while length > 0:
            length -= os.splice(fd, self._nowhere, length)

    def enlarge(self, fd: int) -> bool:
        """Let the pipe always hold 64 KiB, and read as much at once; False where that is not allowed."""
        return not self._blind and _resize(self._in, _LARGE_BYTES) and _resize(fd, _LARGE_BYTES)

    def restore(self, fd: int) -> None:
        """Restore the pipe's usual size unless it holds more: a user's pipes share a limit."""
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
    """The number of bytes in the pipe."""
    (found,) = struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))
    return int(found)


def _resize(fd: int, size_bytes: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size_bytes) >= size_bytes
    except OSError:  # above the user's limit, or below its content
        return False


def longest_line(fd: int) -> int:
    """The longest line that always fits into the pipe; the writer of a longer one may block. 0 if not a pipe.

    A write that does not fit into the rest of a page starts a new page (pipe(7)): half of the pages may be empty,
    and the first nearly empty.
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) // 4
    except OSError:
        return 0


class Move:
    """A move of lines from a pipe into a file: the number of bytes, and the lines' timestamp.

    `taken` counts the bytes that are certainly no longer in the pipe.
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
    """The record of the move in progress, in a file in memory and a pipe that both outlive the logger (see `take`).

    Stored lines are spliced from the server's pipe into `sink` in one step: bytes in it are no longer in the
    server's pipe. The content of the server's pipe alone does not show this, because the next lines may be
    identical. Without a file nothing is recorded, and `sink` is -1.
    """

    def __init__(self, fds: Sequence[int] = ()) -> None:
        self._fd = self._taken = self.sink = -1
        self._left: Move | None = None
        self.take(fds)

    def take(self, fds: Sequence[int]) -> None:
        """Use these descriptors from now on: a file, and the two ends of the pipe (missing from another version)."""
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
        """Record that these bytes of a pipe are being moved."""
        if self._fd >= 0:
            self._empty()
            os.pwrite(self._fd, json.dumps((id, when, len(data), crc32(data))).encode() + b"\n", 0)

    def end(self) -> None:
        """Record that they are stored and removed from the pipe."""
        self._left = None
        if self._fd >= 0:
            os.pwrite(self._fd, b"\n", 0)

    def _empty(self) -> None:
        # Not earlier: while a move is recorded, bytes in this pipe prove that they were taken from the server's pipe.
        while self._taken >= 0 and (length := waiting(self._taken)):
            os.read(self._taken, length)

    def close(self) -> None:
        """Close the file and the pipe."""
        for fd in (self._fd, self._taken, self.sink):
            if fd >= 0:
                os.close(fd)
        self._fd = self._taken = self.sink = -1


class OutputStream:
    """Moves output from `fd` into `file` in whole lines; an incomplete line stays in the pipe.

    `dropped_bytes` counts output that could not be stored; the supervisor identifies the stream by `id`. The caller
    sets `ended` when no writer is left.
    """

    def __init__(
        self, order: wire.Message, fd: int, file: LogFile, pipes: PipeReader, underway: WriteAheadNote
    ) -> None:
        self.id, self.pid = str(order["id"]), int(order["pid"])
        self.fd = fd
        self.file = file
        self.order = order
        self.dropped_bytes = 0
        self.ended = False
        self._name, self._format = str(order["name"]), order.get("format")
        self._measure()
        self._partial = b""
        self._pipes = pipes
        self._underway = underway

    def __repr__(self) -> str:
        return f"<OutputStream {self.id} to {self.file.path}>"

    def pump(self, now: float) -> int:
        """Move the content of one read; returns the number of bytes, 0 at the end of the pipe.

        Raises BlockingIOError when the pipe is empty or holds only an incomplete line.
        """
        data = self._pipes.look(self.fd)
        if not data:
            return 0
        end = data.rfind(b"\n") + 1
        if not end and not self.ended and len(data) < MOST_BYTES:
            if len(data) < self._longest or self._enlarge():
                raise BlockingIOError
            self._keep(data, now)
        else:
            self._move(data[: end or len(data)], now)
        return end or len(data)

    def recover(self) -> None:
        """Complete a killed logger's move in progress."""
        move = self._underway.found(self.id)
        if move is None:
            return
        try:
            data = self._pipes.look(self.fd)
        except BlockingIOError:
            data = b""
        if move.taken:
            # Already stored, nearly always completely.
            self._pipes.take(self.fd, min(move.length - move.taken, len(data)))
        elif move.is_of(data):
            block = self._form(_whole(data[: move.length]), move.when)
            rest = block[self.file.resume(block) :]
            if rest:
                self.dropped_bytes += len(rest) - self.file.append(rest)
            self._pipes.take(self.fd, move.length, self._underway.sink)
        self._underway.end()

    def finish(self, now: float) -> None:
        """Store an incomplete last line, if any; the pipe has no other reader."""
        self.ended = True
        try:
            for _ in range(2):  # complete lines first, then the rest
                self.pump(now)
        except OSError:
            pass
        self.break_off(now)

    def break_off(self, now: float) -> None:
        """Complete a line that was partly removed from the pipe."""
        if self._partial:
            self._store(self._partial + b"\n", stamp(now))
            self._partial = b""

    def _move(self, lines: bytes, now: float) -> None:
        when = stamp(now)
        self._underway.begin(self.id, when, lines)
        self._store(_whole(self._partial + lines), when)
        self._partial = b""
        self._pipes.take(self.fd, len(lines), self._underway.sink)
        self._underway.end()
        if self._enlarged:
            self._pipes.restore(self.fd)
            self._measure()

    def _measure(self) -> None:
        self._longest = longest_line(self.fd)
        self._enlarged = self._longest >= MOST_BYTES

    def _enlarge(self) -> bool:
        """Enlarge the pipe for the rest of a long line; returns whether there is more room than before."""
        if self._enlarged or self._partial or not self._pipes.enlarge(self.fd):
            return False
        self._measure()
        return self._enlarged

    def _keep(self, data: bytes, now: float) -> None:
        """Take an incomplete line out of the pipe, which is too small for the rest and cannot be enlarged."""
        self._pipes.take(self.fd, len(data))
        self._partial += data
        if len(self._partial) >= MOST_BYTES:
            self.break_off(now)

    def close(self) -> None:
        """Close the pipe's end; the file stays open."""
        self._pipes.forget(self.fd)
        os.close(self.fd)

    def _store(self, lines: bytes, when: str) -> None:
        if self.file.lost_bytes and not self._append(self._gap(), when):
            self.file.lost_bytes = 0
        lost = len(lines) if self.file.lost_bytes else self._append(lines, when)
        self.file.lost_bytes += lost
        self.dropped_bytes += lost

    def _gap(self) -> bytes:
        reason = f" ({self.file.error})" if self.file.error else ""
        return f"[poolctl: {self.file.lost_bytes} bytes of output were lost here{reason}]\n".encode()

    def _append(self, lines: bytes, when: str) -> int:
        """Append the lines to the file; returns how many of their bytes were not stored."""
        block = self._form(lines, when)
        stored = self.file.append(block)
        missing = block.count(b"\n", stored)
        if not missing:
            return 0
        return sum(len(line) + 1 for line in lines[:-1].split(b"\n")[-missing:])

    def _form(self, lines: bytes, when: str) -> bytes:
        return as_json(lines, when, self._name, self.pid) if self._format == "json" else as_text(lines, when)


def _whole(lines: bytes) -> bytes:
    """The lines with a final line break added if it is missing: the last line was too long or incomplete."""
    return lines if lines.endswith(b"\n") else lines + b"\n"
