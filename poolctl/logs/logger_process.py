"""`logs [DIRECTORY]`: the logger, a process that moves servers' output from pipes into files, line by line.

Orders arrive as packets on descriptor 3 (see keeper.wire), each a JSON object whose `t` names the order:

- `underway`, with a file in memory and both ends of a pipe: the logger records its move in progress there, so that
  its successor neither loses nor repeats a line (see WriteAheadNote). Sent before any other order.
- `add`, with the read end of a pipe: read it from now on. `id` names the stream; `name` and `pid` identify the server's
  process; `path` is the file. Optional: `format` ("text" or "json"), `max_size` in bytes, `keep`, `max_age` in seconds;
  0 means no limit. For a known `id` with the same pipe and path only the limits and the pid change; otherwise the new
  stream replaces the old one.
- `reopen`: close every file, so that the next line opens it by its path again (after logrotate).
- `sync`: answer `synced`, with the same `token`, once the current content of all pipes has been stored.
- `ping`: answer `pong` with the logger's pid.
- `end`: store the pipes' content, then exit.

The logger sends these reports:

- `eof` with `id`: all writers have closed the pipe, and its output has been stored.
- `dropped` with `id`, `bytes` and `error`: this much output could not be stored. At most once a second.
- `error` with `message`: an order that could not be carried out.

When descriptor 3 is closed, no supervisor or keeper is left to start a new logger. This one then continues until every
pipe has ended, or a new pool takes over the pipes (see PipeHandover). It can be killed at any time: pipes are read
without consuming their content, and each move is recorded, so that no line is lost or repeated. The keeper also holds
the read ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from zlib import crc32

from poolctl.keeper import pool_files, rendezvous, wire
from poolctl.platform import name_process, raise_descriptor_limit, readable_bytes, tee

from .log_file import LogFile
from .log_line import as_json, stamp, with_timestamp_prefix

CONTROL_DESCRIPTOR = 3
_REPORT_EVERY_SECONDS = 1.0
_SYNC_BYTES = 4 * 1024 * 1024
_SHORTEST_AGE_CHECK_SECONDS, _LONGEST_AGE_CHECK_SECONDS = 0.05, 3600.0
# Maximum bytes per read of one pipe, so that a server that floods its output does not starve the others. Longer lines
# are split, which bounds memory.
MOST_BYTES = 64 * 1024
# A pipe of this size always holds a full read (see max_line_bytes).
_LARGE_BYTES = 4 * MOST_BYTES
_NOT_ALLOWED = (errno.ENOSYS, errno.EPERM, errno.EINVAL)
_NOTE_BYTES = 1024


class PeekingPipeReader:
    """Reads pipes without consuming their content, through an internal pipe (tee(2)); not thread-safe.

    In a sandbox without tee(2), the pipes are read normally, and bytes not yet taken are kept in memory.
    """

    def __init__(self) -> None:
        self._out, self._in = os.pipe()
        os.set_blocking(self._out, False)
        self._dev_null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._blind = False
        self._read: dict[int, bytes] = {}

    def peek(self, fd: int) -> bytes:
        """The pipe's content, at most 64 KiB; empty at end of file. Raises BlockingIOError when the pipe is empty."""
        if not self._blind:
            try:
                length = tee(fd, self._in, MOST_BYTES)
                return os.read(self._out, length) if length else b""
            except OSError as error:
                if error.errno not in _NOT_ALLOWED:
                    raise
                self._blind = True
        return self._peek_by_reading(fd)

    def consume(self, fd: int, length: int, to: int = -1) -> None:
        """Remove `length` bytes from the pipe: move what fits into the pipe `to`, if it is given; drop the rest."""
        if self._blind:
            self._read[fd] = self._read[fd][length:]
            return
        if to >= 0 and length > 0:
            with contextlib.suppress(BlockingIOError):
                length -= os.splice(fd, to, length)
        while length > 0:
            length -= os.splice(fd, self._dev_null, length)

    def enlarge(self, fd: int) -> bool:
        """Enlarge the pipe so that it always holds 64 KiB; returns whether that was allowed."""
        return not self._blind and _resize(self._in, _LARGE_BYTES) and _resize(fd, _LARGE_BYTES)

    def restore(self, fd: int) -> None:
        """Shrink the pipe to the default, 64 KiB, if its content fits: the total size of a user's pipes is limited."""
        _resize(fd, MOST_BYTES)

    def forget(self, fd: int) -> None:
        """Drop the bytes in memory that were read from a pipe, because it is closed."""
        self._read.pop(fd, None)

    def close(self) -> None:
        """Close the reader's own descriptors."""
        for fd in (self._out, self._in, self._dev_null):
            os.close(fd)

    def _peek_by_reading(self, fd: int) -> bytes:
        kept = self._read.get(fd, b"")
        try:
            kept += os.read(fd, MOST_BYTES)
        except BlockingIOError:
            if not kept:
                raise
        self._read[fd] = kept
        return kept


def _resize(fd: int, size_bytes: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size_bytes) >= size_bytes
    except OSError:  # larger than the user's limit, or smaller than the content
        return False


def max_line_bytes(fd: int) -> int:
    """Return the size in bytes up to which a line always fits into the pipe `fd`; 0 if `fd` is not a pipe.

    The writer of a longer line may block.
    """
    # Half of the pipe's space may be unused, because a write that does not fit into the rest of a page starts a new one
    # (pipe(7)). The first page may be nearly empty, too.
    try:
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) // 4
    except OSError:
        return 0


class PipeToLogRecord:
    """The record of a move of lines from a server's pipe into its log file.

    `id` is the stream, `when` the timestamp of the lines, `length` their number of bytes, `checksum` their CRC. `taken`
    is the number of bytes that are known to have left the pipe.
    """

    __slots__ = ("checksum", "id", "length", "taken", "when")

    def __init__(self, id: str, when: str, length: int, checksum: int) -> None:
        self.id = id
        self.when = when
        self.length = length
        self.checksum = checksum
        self.taken = 0

    def matches(self, data: bytes) -> bool:
        """Return whether `data`, the content of the server's pipe, still begins with the recorded lines."""
        return len(data) >= self.length and crc32(data[: self.length]) == self.checksum


class WriteAheadNote:
    """A note of the lines that a logger is moving from a server's pipe into a log file, kept for the next logger.

    The note is in a memory file; without the file, nothing is noted. Once the lines are in the log file, one splice(2)
    moves them from the server's pipe into a second pipe. If the logger is killed, the next logger counts the bytes in
    the second pipe: so many have left the server's pipe. `sink` is the write end of the second pipe, or -1 if there is
    no second pipe.
    """

    def __init__(self, fds: Sequence[int] = ()) -> None:
        self._fd = self._taken = self.sink = -1
        self._left: PipeToLogRecord | None = None
        self.use(fds)

    def use(self, fds: Sequence[int]) -> None:
        """Close the current descriptors and use `fds`: a memory file for this note, and a pipe for stored lines.

        The pipe's read end comes first. A supervisor of another version may pass only the memory file, or nothing.
        """
        self.close()
        self._fd, self._taken, self.sink = [*fds, -1, -1, -1][:3]
        self._left = self._read()

    def unfinished_move(self, id: str) -> PipeToLogRecord | None:
        """Return the record if a killed logger was moving lines of stream `id` into the log file; otherwise None."""
        return self._left if self._left is not None and self._left.id == id else None

    def _read(self) -> PipeToLogRecord | None:
        if self._fd < 0:
            return None
        text = os.pread(self._fd, _NOTE_BYTES, 0).partition(b"\n")[0].strip(b"\0")
        try:
            noted = PipeToLogRecord(*json.loads(text))
        except (ValueError, TypeError):
            return None
        noted.taken = readable_bytes(self._taken) if self._taken >= 0 else 0
        return noted

    def begin(self, id: str, when: str, data: bytes) -> None:
        """Record that the lines `data` of stream `id` are now moved into the log file, with the timestamp `when`."""
        if self._fd >= 0:
            self._empty_sink_pipe()
            os.pwrite(self._fd, json.dumps((id, when, len(data), crc32(data))).encode() + b"\n", 0)

    def end(self) -> None:
        """Clear this note, after the lines recorded in it have been removed from the server's pipe."""
        self._left = None
        if self._fd >= 0:
            os.pwrite(self._fd, b"\n", 0)

    def _empty_sink_pipe(self) -> None:
        # Only now: while a move is recorded, the bytes in this pipe prove that they have left the server's pipe.
        while self._taken >= 0 and (length := readable_bytes(self._taken)):
            os.read(self._taken, length)

    def close(self) -> None:
        """Close the file and the pipe."""
        for fd in (self._fd, self._taken, self.sink):
            if fd >= 0:
                os.close(fd)
        self._fd = self._taken = self.sink = -1


class OutputStream:
    """Moves output from the pipe `fd` into `file` in whole lines; an incomplete line stays in the pipe.

    `dropped_bytes` counts output that could not be stored; `id` identifies the stream to the supervisor. The caller
    sets `ended` when no writer is left.
    """

    def __init__(
        self, order: wire.Message, fd: int, file: LogFile, pipes: PeekingPipeReader, underway: WriteAheadNote
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
        """Move as much as one read returns; returns the number of bytes, 0 at end of file.

        Raises BlockingIOError when the pipe is empty or holds only an incomplete line.
        """
        data = self._pipes.peek(self.fd)
        if not data:
            return 0
        end = data.rfind(b"\n") + 1
        if not end and not self.ended and len(data) < MOST_BYTES:
            if len(data) < self._longest or self._enlarge():
                raise BlockingIOError
            self._buffer_partial_line(data, now)
        else:
            self._move(data[: end or len(data)], now)
        return end or len(data)

    def recover(self) -> None:
        """If a previous logger was killed while it moved lines of this stream into the file, complete that move."""
        move = self._underway.unfinished_move(self.id)
        if move is None:
            return
        try:
            data = self._pipes.peek(self.fd)
        except BlockingIOError:
            data = b""
        if move.taken:
            # The file already has the lines, nearly always completely.
            self._pipes.consume(self.fd, min(move.length - move.taken, len(data)))
        elif move.matches(data):
            block = self._format_lines(_with_line_break(data[: move.length]), move.when)
            rest = block[self.file.cut_file_to_stored_lines(block) :]
            if rest:
                self.dropped_bytes += len(rest) - self.file.append_and_count_written(rest)
            self._pipes.consume(self.fd, move.length, self._underway.sink)
        self._underway.end()

    def store_rest(self, now: float) -> None:
        """Store the remaining output, including an incomplete last line. No other process must be reading the pipe."""
        self.ended = True
        try:
            for _ in range(2):  # complete lines first, then the rest
                self.pump(now)
        except OSError:
            pass
        self.complete_cut_line(now)

    def complete_cut_line(self, now: float) -> None:
        """Store, with a line break, the part of an overlong line that was already taken out of the pipe, if any."""
        if self._partial:
            self._store(self._partial + b"\n", stamp(now))
            self._partial = b""

    def _move(self, lines: bytes, now: float) -> None:
        when = stamp(now)
        self._underway.begin(self.id, when, lines)
        self._store(_with_line_break(self._partial + lines), when)
        self._partial = b""
        self._pipes.consume(self.fd, len(lines), self._underway.sink)
        self._underway.end()
        if self._enlarged:
            self._pipes.restore(self.fd)
            self._measure()

    def _measure(self) -> None:
        self._longest = max_line_bytes(self.fd)
        self._enlarged = self._longest >= MOST_BYTES

    def _enlarge(self) -> bool:
        """Enlarge the pipe so that the rest of a long line fits; returns whether there is more space than before."""
        if self._enlarged or self._partial or not self._pipes.enlarge(self.fd):
            return False
        self._measure()
        return self._enlarged

    def _buffer_partial_line(self, data: bytes, now: float) -> None:
        """Move an incomplete line into memory, because the pipe has no room for the rest and cannot be enlarged."""
        self._pipes.consume(self.fd, len(data))
        self._partial += data
        if len(self._partial) >= MOST_BYTES:
            self.complete_cut_line(now)

    def close_pipe(self) -> None:
        """Close the read end of the pipe; the file stays open."""
        self._pipes.forget(self.fd)
        os.close(self.fd)

    def _store(self, lines: bytes, when: str) -> None:
        if self.file.lost_bytes and not self._append_and_count_lost_bytes(self._lost_output_line(), when):
            self.file.lost_bytes = 0
        lost = len(lines) if self.file.lost_bytes else self._append_and_count_lost_bytes(lines, when)
        self.file.lost_bytes += lost
        self.dropped_bytes += lost

    def _lost_output_line(self) -> bytes:
        reason = f" ({self.file.error})" if self.file.error else ""
        return f"[poolctl: {self.file.lost_bytes} bytes of output were lost here{reason}]\n".encode()

    def _append_and_count_lost_bytes(self, lines: bytes, when: str) -> int:
        """Append the lines to the file; returns how many of their bytes were not stored."""
        block = self._format_lines(lines, when)
        stored = self.file.append_and_count_written(block)
        missing = block.count(b"\n", stored)
        if not missing:
            return 0
        return sum(len(line) + 1 for line in lines[:-1].split(b"\n")[-missing:])

    def _format_lines(self, lines: bytes, when: str) -> bytes:
        return (
            as_json(lines, when, self._name, self.pid)
            if self._format == "json"
            else with_timestamp_prefix(lines, when)
        )


def _with_line_break(lines: bytes) -> bytes:
    """The lines with a final line break, which is missing after an overlong or incomplete last line."""
    return lines if lines.endswith(b"\n") else lines + b"\n"


class OutputLogger:
    """Executes the orders from a control socket, and stores output. One thread, which sleeps until an event occurs."""

    def __init__(self, control: socket.socket, directory: str | None = None) -> None:
        self._directory = directory
        self._handover: PipeHandover | None = None
        self._control = control
        self._control.setblocking(False)
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._streams: dict[int, OutputStream] = {}
        self._by_id: dict[str, OutputStream] = {}
        self._files: dict[str, LogFile] = {}
        self._reports: deque[wire.Message] = deque()
        self._report_at = 0.0
        self._streams_with_loss: set[OutputStream] = set()
        self._age_at: float | None = None  # when to check for files old enough to rotate
        self._readable_streams: dict[OutputStream, None] = {}  # streams that may have more output, in turn
        self._pipes = PeekingPipeReader()
        self._underway = WriteAheadNote()
        self._open = True
        self._end_ordered = False

    def __repr__(self) -> str:
        return f"<Logger of {len(self._streams)} streams into {len(self._files)} files>"

    def run(self) -> None:
        """Run until the order `end`, or until the socket and all pipes are closed; then store the remaining output."""
        while (self._open or self._streams) and not self._end_ordered:
            # Orders first: output written after an order must not be moved before the order is carried out.
            for fd, event in sorted(
                self._epoll.poll(self._timeout()), key=lambda event: event[0] != self._control.fileno()
            ):
                if fd == self._control.fileno():
                    self._receive_orders()
                    if not self._open:
                        self._epoll.unregister(fd)
                        self._listen_for_takeover()
                elif self._handover is not None and self._handover.has(fd):
                    self._end_ordered = self._handover.serve(fd, list(self._streams.values()))
                elif fd in self._streams:
                    self._streams[fd].ended = bool(event & select.EPOLLHUP)
                    self._readable_streams[self._streams[fd]] = None
            for stream in list(self._readable_streams):
                if not self._pump_and_may_have_more(stream):
                    self._readable_streams.pop(stream, None)
            self._rotate_old()
            self._report_dropped_if_due()
            self._send_reports()
        taken = self._handover is not None and self._handover.taken
        for stream in list(self._streams.values()):
            if not taken:
                self._pump_backlog(stream)
            self._end(stream, taken=taken)
        if self._handover is not None:
            self._handover.stop_listening()
        self._epoll.close()
        self._control.close()
        self._pipes.close()
        self._underway.close()

    def _listen_for_takeover(self) -> None:
        """Listen for a new pool to take over the servers' pipes, after supervisor and keeper have exited."""
        if self._directory is not None and self._streams:
            with contextlib.suppress(OSError):
                self._handover = PipeHandover(self._directory, self._epoll)

    def _timeout(self) -> float:
        if self._readable_streams:
            return 0.0
        times = [] if self._age_at is None else [self._age_at]
        times += [self._report_at] if self._streams_with_loss else []
        return max(0.0, min(times) - time.monotonic()) if times else -1

    def _rotate_old(self) -> None:
        """Rotate files that are too old, and schedule the next check before any file can become too old."""
        if self._age_at is None or time.monotonic() < self._age_at:
            return
        found = [file.rotate_when_old() for file in self._files.values()]
        pauses = [max(_SHORTEST_AGE_CHECK_SECONDS, pause) for pause in found if pause is not None]
        # At least once an hour, because the clock may be set.
        self._age_at = time.monotonic() + min([*pauses, _LONGEST_AGE_CHECK_SECONDS]) if pauses else None

    def _receive_orders(self) -> None:
        while self._open:
            try:
                order = wire.receive(self._control)
            except BlockingIOError:
                return
            except wire.WireError as error:
                self._reports.append({"t": "error", "message": str(error)})
                continue
            except OSError:
                order = None
            if order is None:
                self._open = False
                return
            message, fds = order
            self._carry_out(message, fds)

    def _carry_out(self, message: wire.Message, fds: list[int]) -> None:
        kind = message.get("t")
        try:
            if kind == "add":
                self._add(message, fds)
            elif kind == "ping":
                self._reports.append({"t": "pong", "pid": os.getpid()})
            elif kind == "underway":
                self._underway.use(fds)
                fds = []
            elif kind == "reopen":
                for file in self._files.values():
                    file.close_for_reopen()
            elif kind == "end":
                self._end_ordered = True
            elif kind == "sync":
                for stream in list(self._streams.values()):
                    self._pump_backlog(stream)
                self._reports.append({"t": "synced", "token": message.get("token")})
            else:
                raise ValueError(f"unknown order {kind!r}")
        except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
            text = f"{kind}: {type(error).__name__}: {error}"
            self._reports.append({"t": "error", "id": message.get("id"), "message": text})
        for fd in fds:
            os.close(fd)

    def _add(self, order: wire.Message, fds: list[int]) -> None:
        """Carry out an order `add`: update the stream that has the same `id`, pipe and file, or add a new one.

        The pipe is `fds[0]`. Adding a stream removes the pipe from `fds`. The caller closes what is left in `fds`.
        """
        fd, path = fds[0], str(order["path"])
        max_size, keep = int(order.get("max_size") or 0), int(order.get("keep") or 0)
        max_age = float(order.get("max_age") or 0)
        file = self._files.get(path) or LogFile(path)
        stream = OutputStream(order, fd, file, self._pipes, self._underway)
        # Nothing has changed so far: an invalid order has raised an error above.
        file.limit(max_size_bytes=max_size, keep=keep, max_age_seconds=max_age)
        if max_age:
            self._age_at = time.monotonic()
        known = self._by_id.get(stream.id)
        if known is not None:
            if os.path.sameopenfile(known.fd, fd) and known.file is file:
                known.pid, known.order = stream.pid, order
                return
            self._pump_backlog(known)
            self._end(known)
        os.set_blocking(fd, False)
        # Edge-triggered: only new bytes are reported, not an incomplete line that stays in the pipe.
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        fds.remove(fd)
        self._files[path] = file
        file.users += 1
        self._streams[fd] = self._by_id[stream.id] = stream
        stream.recover()

    def _pump_and_may_have_more(self, stream: OutputStream) -> bool:
        """Move as much output as one read returns; returns whether there may be more."""
        try:
            moved = stream.pump(time.time())
        except BlockingIOError:
            return False
        except OSError:
            moved = 0
        if stream.dropped_bytes:
            self._streams_with_loss.add(stream)
        if moved == 0:
            self._end(stream)
            self._reports.append({"t": "eof", "id": stream.id})
        return moved > 0

    def _pump_backlog(self, stream: OutputStream) -> None:
        """Move lines until the pipe has no more, but at most _SYNC_BYTES, because the server may continue writing."""
        for _ in range(_SYNC_BYTES // MOST_BYTES):
            if not self._pump_and_may_have_more(stream):
                return

    def _end(self, stream: OutputStream, *, taken: bool = False) -> None:
        if self._streams.pop(stream.fd, None) is None:
            return
        del self._by_id[stream.id]
        self._readable_streams.pop(stream, None)
        if taken:
            stream.complete_cut_line(time.time())
        else:
            stream.store_rest(time.time())
        self._queue_loss_report(stream)
        self._streams_with_loss.discard(stream)
        self._epoll.unregister(stream.fd)
        stream.close_pipe()
        stream.file.users -= 1
        if not stream.file.users:
            stream.file.close()
            del self._files[stream.file.path]

    def _report_dropped_if_due(self) -> None:
        if not self._streams_with_loss or time.monotonic() < self._report_at:
            return
        for stream in self._streams_with_loss:
            self._queue_loss_report(stream)
        self._streams_with_loss.clear()
        self._report_at = time.monotonic() + _REPORT_EVERY_SECONDS

    def _queue_loss_report(self, stream: OutputStream) -> None:
        lost, stream.dropped_bytes = stream.dropped_bytes, 0
        if lost:
            self._reports.append({"t": "dropped", "id": stream.id, "bytes": lost, "error": stream.file.error})

    def _send_reports(self) -> None:
        """Send queued reports, but never wait for a hung supervisor: reports that the socket refuses stay queued."""
        if not self._open:
            return
        try:
            while self._reports:
                wire.send(self._control, self._reports[0])
                self._reports.popleft()
        except BlockingIOError:
            pass
        except OSError:
            # The socket is closed, but orders sent before that still have to be read; reading also detects its end.
            self._reports.clear()
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._reports else 0)
        self._epoll.modify(self._control.fileno(), wanted)


class PipeHandover:
    """The listener through which a logger without supervisor and keeper hands over its streams to a new pool.

    Each client gets all streams with their pipes, then the message `over`. A client that answers with the message
    `taken` owns the streams from then on. Then the attribute `taken` becomes true, and the logger exits.
    """

    def __init__(self, directory: str, epoll: select.epoll) -> None:
        self.taken = False
        self._epoll = epoll
        self._listener, self._path = rendezvous.bind_new_socket(directory, pool_files.LOGGER)
        self._listener.listen()
        self._connections: dict[int, socket.socket] = {}
        epoll.register(self._listener.fileno(), select.EPOLLIN)

    def has(self, fd: int) -> bool:
        """Whether the descriptor is the listener or one of its connections."""
        return fd == self._listener.fileno() or fd in self._connections

    def serve(self, fd: int, streams: Sequence[OutputStream]) -> bool:
        """Accept a client and send `streams` if `fd` is the listener; read a client's answer if `fd` is its connection.

        Returns True if the answer says that the client has taken over the streams; otherwise False.
        """
        if fd != self._listener.fileno():
            self._finish_handover(fd)
            return self.taken
        connection = rendezvous.accept(self._listener, {0, os.geteuid()})
        if connection is None:
            return False
        connection.settimeout(1.0)
        try:
            for stream in streams:
                wire.send(connection, stream.order, [stream.fd])
            wire.send(connection, {"t": "over"})
        except (OSError, wire.WireError):
            connection.close()
            return False
        self._connections[connection.fileno()] = connection
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return False

    def stop_listening(self) -> None:
        """Stop listening."""
        pool_files.unlink_quietly(self._path)
        for sock in (self._listener, *self._connections.values()):
            self._epoll.unregister(sock.fileno())
            sock.close()
        self._connections.clear()

    def _finish_handover(self, fd: int) -> None:
        received = rendezvous.receive_or_none(self._connections[fd])
        self.taken = received is not None and received[0].get("t") == "taken"
        self._epoll.unregister(fd)
        self._connections.pop(fd).close()


def main() -> None:
    """Run the logger, with its control socket at descriptor 3, until it is ordered to end or has nothing to read.

    Signals that terminate a process group or a session are ignored, because the servers write their last output later.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    name_process("poolctl-logger")
    raise_descriptor_limit()
    directory = sys.argv[1] if len(sys.argv) > 1 else None
    OutputLogger(socket.socket(fileno=CONTROL_DESCRIPTOR), directory).run()
