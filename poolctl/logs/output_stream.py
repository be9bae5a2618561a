"""Moves one server's output from the read end of its pipe into a file, line by line, or hands the pipe over."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Sequence

from poolctl.keeper import rendezvous, wire

from .log_file import LogFile
from .log_line import as_json, as_text, stamp
from .pipe import MOST_BYTES, PipeReader, WriteAheadNote, longest_line

# One read a turn, so that a server that floods its output does not starve the others.
READ_BYTES = MOST_BYTES
# A longer line is broken into several: memory is bounded for any output.
MAX_LINE_BYTES = MOST_BYTES


class OutputStream:
    """Moves the output that arrives at `fd` into `file` in whole lines; an incomplete line waits in the pipe.

    `dropped_bytes` counts output that could not be stored, `id` is the supervisor's name for the stream. The caller
    sets `ended` when no writer is left.
    """

    __slots__ = (
        "_enlarged",
        "_format",
        "_longest",
        "_partial",
        "_pipes",
        "_underway",
        "dropped_bytes",
        "ended",
        "fd",
        "file",
        "id",
        "name",
        "order",
        "pid",
    )

    def __init__(
        self,
        id: str,
        fd: int,
        file: LogFile,
        *,
        name: str,
        pid: int,
        format: str,
        pipes: PipeReader,
        underway: WriteAheadNote,
    ) -> None:
        self.id = id
        self.fd = fd
        self.file = file
        self.name = name
        self.pid = pid
        self.dropped_bytes = 0
        self.ended = False
        self.order: dict[str, object] = {}  # that created it, for another logger
        self._format = format
        self._measure()
        self._partial = b""
        self._pipes = pipes
        self._underway = underway

    def __repr__(self) -> str:
        return f"<OutputStream {self.id} to {self.file.path}>"

    def pump(self, now: float) -> int:
        """Move one read's worth; the number of bytes, 0 at the end of the pipe.

        Raises BlockingIOError when the pipe is empty, or holds only an incomplete line.
        """
        data = self._pipes.look(self.fd)
        if not data:
            return 0
        end = data.rfind(b"\n") + 1
        if not end and not self.ended and len(data) < MAX_LINE_BYTES:
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
            # It was stored before, nearly always all of it.
            self._pipes.take(self.fd, min(move.length - move.taken, len(data)))
        elif move.is_of(data):
            block = self._form(_whole(data[: move.length]), move.when)
            rest = block[self.file.resume(block) :]
            if rest:
                self.dropped_bytes += len(rest) - self.file.append(rest)
            self._pipes.take(self.fd, move.length, self._underway.sink)
        self._underway.end()

    def finish(self, now: float) -> None:
        """Store an incomplete last line, if there is one; the pipe has no other reader."""
        self.ended = True
        try:
            for _ in range(2):  # whole lines, and then the rest
                self.pump(now)
        except OSError:
            pass
        self.break_off(now)

    def break_off(self, now: float) -> None:
        """Complete the line of which a part is no longer in the pipe, if there is one."""
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
        self._enlarged = self._longest >= MAX_LINE_BYTES

    def _enlarge(self) -> bool:
        """Have the pipe hold the rest of a long line as well; whether there is more room than before."""
        if self._enlarged or self._partial or not self._pipes.enlarge(self.fd):
            return False
        self._measure()
        return self._enlarged

    def _keep(self, data: bytes, now: float) -> None:
        """Take an incomplete line out of the pipe, which is too small for the rest and cannot be enlarged."""
        self._pipes.take(self.fd, len(data))
        self._partial += data
        if len(self._partial) >= MAX_LINE_BYTES:
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
        """How many of the bytes were not stored."""
        block = self._form(lines, when)
        stored = self.file.append(block)
        missing = block.count(b"\n", stored)
        if not missing:
            return 0
        return sum(len(line) + 1 for line in lines[:-1].split(b"\n")[-missing:])

    def _form(self, lines: bytes, when: str) -> bytes:
        return as_json(lines, when, self.name, self.pid) if self._format == "json" else as_text(lines, when)


def _whole(lines: bytes) -> bytes:
    """The lines with a final line break, which the last one may lack: it is too long, or the last of all."""
    return lines if lines.endswith(b"\n") else lines + b"\n"


class PipeHandover:
    """A listener in the logger's loop. Each connection gets every stream with its pipe, and then `over`.

    The one that answers `taken` owns them all; then `taken` is true and the logger exits.
    """

    def __init__(self, directory: str, epoll: select.epoll) -> None:
        self.taken = False
        self._epoll = epoll
        self._listener, self._path = rendezvous.bind(directory, rendezvous.LOGGER)
        self._listener.listen()
        self._connections: dict[int, socket.socket] = {}
        epoll.register(self._listener.fileno(), select.EPOLLIN)

    def has(self, fd: int) -> bool:
        """Whether the descriptor is the listener or one of its connections."""
        return fd == self._listener.fileno() or fd in self._connections

    def serve(self, fd: int, streams: Sequence[OutputStream]) -> bool:
        """Handle a readable descriptor; whether the streams have been taken."""
        if fd != self._listener.fileno():
            self._read_answer(fd)
            return self.taken
        connection = rendezvous.accept(self._listener, {0, os.geteuid()})
        if connection is None:
            return False
        connection.settimeout(1.0)
        try:
            for stream in streams:
                wire.send(connection, {**stream.order, "pid": stream.pid}, [stream.fd])
            wire.send(connection, {"t": "over"})
        except (OSError, wire.WireError):
            connection.close()
            return False
        self._connections[connection.fileno()] = connection
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return False

    def close(self) -> None:
        """Stop listening."""
        rendezvous.forget(self._path)
        for sock in (self._listener, *self._connections.values()):
            self._epoll.unregister(sock.fileno())
            sock.close()
        self._connections.clear()

    def _read_answer(self, fd: int) -> None:
        received = rendezvous.receive(self._connections[fd])
        self.taken = received is not None and received[0].get("t") == "taken"
        self._epoll.unregister(fd)
        self._connections.pop(fd).close()
