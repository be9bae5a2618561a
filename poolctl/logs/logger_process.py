"""The logger: a process that moves servers' output from pipes into files (bootstrap part `logs`).

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

- `eof` with `id`: all writers have closed the pipe, and its output is in the file.
- `dropped` with `id`, `bytes` and `error`: this much output could not be stored. At most once a second.
- `error` with `message`: an order that could not be carried out.

When descriptor 3 is closed, no supervisor or keeper is left to start a new logger; this one continues until every
pipe has ended or a new pool takes over the pipes (see PipeHandover). It can be killed at any time without loss of
output: bytes not stored yet are still in the pipes, whose read ends the keeper holds as well.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import deque
from collections.abc import Sequence

from poolctl.keeper import pool_files, rendezvous, wire

from .log_file import LogFile
from .output_stream import MOST_BYTES, OutputStream, PipeReader, WriteAheadNote

_REPORT_EVERY_SECONDS = 1.0
_SYNC_BYTES = 4 * 1024 * 1024
_AGE_SECONDS, _LONGEST_AGE_SECONDS = 0.05, 3600.0


class Logger:
    """Serves one control socket until it is closed, in one thread, without wake-ups while nothing is printed."""

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
        self._dropping: set[OutputStream] = set()
        self._age_at: float | None = None  # when to check for files old enough to rotate
        self._busy: dict[OutputStream, None] = {}  # streams that may have more output, in turn
        self._pipes = PipeReader()
        self._underway = WriteAheadNote()
        self._open = True
        self._end_ordered = False

    def __repr__(self) -> str:
        return f"<Logger of {len(self._streams)} streams into {len(self._files)} files>"

    def run(self) -> None:
        """Serve until ordered to end, or until the socket and all pipes are closed; then store the rest."""
        while (self._open or self._streams) and not self._end_ordered:
            # Orders first: output written after an order must not be moved before the order is carried out.
            for fd, event in sorted(self._epoll.poll(self._timeout()), key=self._is_pipe):
                if fd == self._control.fileno():
                    self._orders()
                    if not self._open:
                        self._epoll.unregister(fd)
                        self._await_takeover()
                elif self._handover is not None and self._handover.has(fd):
                    self._end_ordered = self._handover.serve(fd, list(self._streams.values()))
                elif fd in self._streams:
                    self._streams[fd].ended = bool(event & select.EPOLLHUP)
                    self._busy[self._streams[fd]] = None
            for stream in list(self._busy):
                if not self._pump(stream):
                    self._busy.pop(stream, None)
            self._rotate_old()
            self._report_dropped()
            self._send_reports()
        taken = self._handover is not None and self._handover.taken
        for stream in list(self._streams.values()):
            if not taken:
                self._drain(stream)
            self._end(stream, taken=taken)
        if self._handover is not None:
            self._handover.close()
        self._epoll.close()
        self._control.close()
        self._pipes.close()
        self._underway.close()

    def _await_takeover(self) -> None:
        """No process is left that could start a new logger: listen for a pool that takes over the servers."""
        if self._directory is not None and self._streams:
            with contextlib.suppress(OSError):
                self._handover = PipeHandover(self._directory, self._epoll)

    def _is_pipe(self, event: tuple[int, int]) -> bool:
        return event[0] != self._control.fileno()

    def _timeout(self) -> float:
        if self._busy:
            return 0.0
        times = [] if self._age_at is None else [self._age_at]
        times += [self._report_at] if self._dropping else []
        return max(0.0, min(times) - time.monotonic()) if times else -1

    def _rotate_old(self) -> None:
        """Rotate files that are too old. A file started after this check cannot be too old before the next check."""
        if self._age_at is None or time.monotonic() < self._age_at:
            return
        found = [file.rotate_when_old() for file in self._files.values()]
        pauses = [max(_AGE_SECONDS, pause) for pause in found if pause is not None]
        # At least once an hour, because the clock may be set.
        self._age_at = time.monotonic() + min([*pauses, _LONGEST_AGE_SECONDS]) if pauses else None

    def _orders(self) -> None:
        """Read every pending order."""
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
                self._underway.take(fds)
                fds = []
            elif kind == "reopen":
                for file in self._files.values():
                    file.reopen()
            elif kind == "end":
                self._end_ordered = True
            elif kind == "sync":
                for stream in list(self._streams.values()):
                    self._drain(stream)
                self._reports.append({"t": "synced", "token": message.get("token")})
            else:
                raise ValueError(f"unknown order {kind!r}")
        except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
            text = f"{kind}: {type(error).__name__}: {error}"
            self._reports.append({"t": "error", "id": message.get("id"), "message": text})
        for fd in fds:
            os.close(fd)

    def _add(self, order: wire.Message, fds: list[int]) -> None:
        """Serve a new stream; takes its descriptor out of `fds`."""
        fd, path = fds[0], str(order["path"])
        max_size, keep = int(order.get("max_size") or 0), int(order.get("keep") or 0)
        max_age = float(order.get("max_age") or 0)
        file = self._files.get(path) or LogFile(path)
        stream = OutputStream(order, fd, file, self._pipes, self._underway)
        # An invalid order has raised its error above, before anything was changed.
        file.limit(max_size_bytes=max_size, keep=keep, max_age_seconds=max_age)
        if max_age:
            self._age_at = time.monotonic()
        known = self._by_id.get(stream.id)
        if known is not None:
            if os.path.sameopenfile(known.fd, fd) and known.file is file:
                known.pid, known.order = stream.pid, order
                return
            self._drain(known)
            self._end(known)
        os.set_blocking(fd, False)
        # Edge-triggered: reports new bytes, not an incomplete line that stays in the pipe.
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)
        fds.remove(fd)
        self._files[path] = file
        file.users += 1
        self._streams[fd] = self._by_id[stream.id] = stream
        stream.recover()

    def _pump(self, stream: OutputStream) -> bool:
        """Move the output of one read; returns whether there may be more."""
        try:
            moved = stream.pump(time.time())
        except BlockingIOError:
            return False
        except OSError:
            moved = 0
        if stream.dropped_bytes:
            self._dropping.add(stream)
        if moved == 0:
            self._end(stream)
            self._reports.append({"t": "eof", "id": stream.id})
        return moved > 0

    def _drain(self, stream: OutputStream) -> None:
        """Move the pipe's current content; bounded, because the server may continue writing."""
        for _ in range(_SYNC_BYTES // MOST_BYTES):
            if not self._pump(stream):
                return

    def _end(self, stream: OutputStream, *, taken: bool = False) -> None:
        if self._streams.pop(stream.fd, None) is None:
            return
        del self._by_id[stream.id]
        self._busy.pop(stream, None)
        if taken:
            stream.break_off(time.time())
        else:
            stream.finish(time.time())
        self._report_loss(stream)
        self._dropping.discard(stream)
        self._epoll.unregister(stream.fd)
        stream.close()
        stream.file.users -= 1
        if not stream.file.users:
            stream.file.close()
            del self._files[stream.file.path]

    def _report_dropped(self) -> None:
        if not self._dropping or time.monotonic() < self._report_at:
            return
        for stream in self._dropping:
            self._report_loss(stream)
        self._dropping.clear()
        self._report_at = time.monotonic() + _REPORT_EVERY_SECONDS

    def _report_loss(self, stream: OutputStream) -> None:
        lost, stream.dropped_bytes = stream.dropped_bytes, 0
        if lost:
            self._reports.append({"t": "dropped", "id": stream.id, "bytes": lost, "error": stream.file.error})

    def _send_reports(self) -> None:
        """Send as much as the socket takes now, and the rest later: a hung supervisor does not delay logging."""
        if not self._open:
            return
        try:
            while self._reports:
                wire.send(self._control, self._reports[0])
                self._reports.popleft()
        except BlockingIOError:
            self._rotate_old()
        except OSError:
            # Orders sent before the end still have to be read; reading also detects the end.
            self._reports.clear()
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._reports else 0)
        self._epoll.modify(self._control.fileno(), wanted)


class PipeHandover:
    """A listener in the logger's loop. Each client receives all streams with their pipes, and then `over`.

    The client that answers `taken` owns them all; `taken` is then true and the logger exits.
    """

    def __init__(self, directory: str, epoll: select.epoll) -> None:
        self.taken = False
        self._epoll = epoll
        self._listener, self._path = rendezvous.bind(directory, pool_files.LOGGER)
        self._listener.listen()
        self._connections: dict[int, socket.socket] = {}
        epoll.register(self._listener.fileno(), select.EPOLLIN)

    def has(self, fd: int) -> bool:
        """Whether the descriptor is the listener or one of its connections."""
        return fd == self._listener.fileno() or fd in self._connections

    def serve(self, fd: int, streams: Sequence[OutputStream]) -> bool:
        """Handle a readable descriptor; returns whether the streams have been taken."""
        if fd != self._listener.fileno():
            self._read_answer(fd)
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

    def close(self) -> None:
        """Stop listening."""
        pool_files.forget(self._path)
        for sock in (self._listener, *self._connections.values()):
            self._epoll.unregister(sock.fileno())
            sock.close()
        self._connections.clear()

    def _read_answer(self, fd: int) -> None:
        received = rendezvous.receive(self._connections[fd])
        self.taken = received is not None and received[0].get("t") == "taken"
        self._epoll.unregister(fd)
        self._connections.pop(fd).close()
