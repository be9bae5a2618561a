"""`logs [DIRECTORY]`: the logger, a process that moves servers' output from pipes into files, line by line.

Orders arrive as packets on descriptor 3 (see keeper.wire), each a JSON object whose `t` names the order:

- `add`, with the read end of a pipe: read it from now on. `id` names the stream; `name` and `pid` identify the server's
  process; `path` is the file. Optional: `format` ("text", "json" or "raw": as written), `max_size` in bytes, `keep`,
  `max_age` in seconds; 0 means no limit; `ready_line`, a regular expression to look for in the lines. For a known `id`
  with the same pipe and path only the limits and the pid change; otherwise the new stream replaces the old one.
- `performed`: answer, with the same `id`, once the current content of all pipes has been stored.
- `end`: store the pipes' content, then exit.

The logger sends `up` when it has begun, answers pings, and sends these reports:

- `ready` with `id`, `error` and `fix`: a line has matched `ready_line` or, with an `error`, no line is looked for.
- `eof` with `id` and `tail`: all writers have closed the pipe, and its output has been stored. `tail` is the end of the
  output, at most 8 KiB in whole lines.
- `dropped` with `id`, `bytes` and `error`: this much output could not be stored. At most once a second.
- `error` with `message`: an order that could not be carried out.

When descriptor 3 is closed, no supervisor or keeper is left to start a new logger. This one then continues until every
pipe has ended. The keeper also holds the read ends, so that a killed logger's successor continues with the pipes. Only
what the killed logger was storing, and the beginnings of incomplete lines, may be lost.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolctl.keeper import wire
from poolctl.keeper.supervisor_link import SupervisorLink
from poolctl.platform import close_all, name_process, raise_descriptor_limit

from .log_file import LogFile
from .log_line import as_json, stamp, with_timestamp_prefix

if TYPE_CHECKING:
    from poolctl.selection.regular_expressions import Expression

_REPORT_EVERY_SECONDS = 1.0
_MAX_BACKLOG_BYTES = 4 * 1024 * 1024
_MIN_AGE_CHECK_SECONDS, _MAX_AGE_CHECK_SECONDS = 0.05, 3600.0
# Maximum bytes per read of one pipe, so that a server that floods its output does not starve the others. Longer lines
# are split, which bounds memory.
MAX_BYTES = 64 * 1024
# How much of each stream's last output is kept, for messages about the exit of its process.
_TAIL_BYTES = 8 * 1024
# How much of each line is searched for `ready_line`.
_SEARCHED_BYTES = 4 * 1024


class OutputStream:
    """Moves output from the pipe `fd` into `file` in whole lines; an incomplete line is kept in memory.

    `dropped_bytes` counts output that could not be stored. `report` sends the supervisor a message at once; `id`
    identifies the stream to it.
    """

    def __init__(
        self,
        order: wire.Message,
        fd: int,
        file: LogFile,
        report: Callable[[wire.Message], None],
    ) -> None:
        self.id, self.pid = str(order["id"]), int(order["pid"])
        self.fd = fd
        self.file = file
        self.dropped_bytes = 0
        self._incomplete_line = b""
        self._tail = b""
        self._name, self._format = str(order["name"]), order.get("format")
        self._ready_line: str | None = order.get("ready_line")
        self._expression: Expression | None = None
        self.ready_report: wire.Message | None = None
        self._report = report

    def __repr__(self) -> str:
        return f"<OutputStream {self.id} to {self.file.path}>"

    def pump(self, now: float) -> int:
        """Move as much as one read returns; returns the number of bytes, 0 at end of file.

        Raises BlockingIOError when the pipe is empty.
        """
        # Longer lines are split, so that there is always room.
        taken = os.read(self.fd, MAX_BYTES - len(self._incomplete_line))
        content = self._incomplete_line + taken
        end = content.rfind(b"\n") + 1
        if not end and len(content) == MAX_BYTES:
            _, end = codecs.utf_8_decode(content, "replace")  # do not split a character
        self._incomplete_line = content[end:]
        if end:
            self._store_lines(content[:end], now)
        return len(taken)

    def store_incomplete_line(self, now: float) -> None:
        """Store the incomplete last line, if any, with a line break."""
        line, self._incomplete_line = self._incomplete_line, b""
        if line:
            self._store_lines(line, now)

    def _store_lines(self, lines: bytes, now: float) -> None:
        # The line break is missing after an overlong or incomplete last line.
        self._store(lines if lines.endswith(b"\n") else lines + b"\n", stamp(now))
        self._look_for_ready_line(lines)

    def _look_for_ready_line(self, lines: bytes) -> None:
        """Report the first line that matches `ready_line`, or why none can be looked for, and look for no other."""
        if self._ready_line is None:
            return
        # Imported late: few servers have a `ready_line`.
        from poolctl.selection.regular_expressions import BadExpression, Expression

        from .line_filter import without_control

        # A set, because a flood of short lines mostly repeats itself.
        beginnings = {line.removesuffix(b"\r")[:_SEARCHED_BYTES] for line in lines.split(b"\n")}
        error = fix = ""
        try:
            self._expression = self._expression or Expression(self._ready_line)
            if not self._expression.is_in_any(
                without_control(line.decode(errors="replace")) for line in beginnings
            ):
                return
        except BadExpression as bad:
            error, fix = str(bad), bad.fix
        self._ready_line = None
        self.ready_report = {"t": "ready", "id": self.id, "error": error, "fix": fix}
        self._report(self.ready_report)

    @property
    def tail(self) -> str:
        """The end of the stream's output since this logger began: at most 8 KiB, in whole lines if possible."""
        tail = self._tail
        if len(tail) == _TAIL_BYTES:
            tail = tail.partition(b"\n")[2] or tail
        return tail.decode(errors="backslashreplace")

    def _store(self, lines: bytes, when: str) -> None:
        self._tail = (self._tail + lines[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        # After a loss, a line about it must be stored first; until then all output counts as lost.
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
        if self._format == "raw":
            return lines
        return (
            as_json(lines, when, self._name, self.pid)
            if self._format == "json"
            else with_timestamp_prefix(lines, when)
        )


class OutputLogger:
    """Executes the supervisor's orders, and stores output. One thread, which sleeps until an event occurs."""

    def __init__(self, link: SupervisorLink, directory: str | None = None) -> None:
        self._directory = directory
        self._link = link
        self._control = link.sock
        self._epoll = select.epoll()
        self._epoll.register(self._control.fileno(), select.EPOLLIN)
        self._streams: dict[int, OutputStream] = {}
        self._by_id: dict[str, OutputStream] = {}
        self._files: dict[str, LogFile] = {}
        self._reports: deque[wire.Message] = deque()
        self._loss_report_at = 0.0
        self._streams_with_loss: set[OutputStream] = set()
        self._age_check_at: float | None = None  # when to check for files old enough to rotate
        self._end_ordered = False

    def __repr__(self) -> str:
        return f"<Logger of {len(self._streams)} streams into {len(self._files)} files>"

    def run(self) -> None:
        """Run until the order `end`, or until the socket and all pipes are closed; then store the remaining output."""
        while (not self._link.is_lost or self._streams) and not self._end_ordered:
            # Orders first: output written after an order must not be moved before the order is carried out.
            for fd, _ in sorted(
                self._epoll.poll(self._timeout()), key=lambda event: event[0] != self._control.fileno()
            ):
                if fd == self._control.fileno():
                    self._receive_orders()
                    if self._link.is_lost:
                        self._epoll.unregister(fd)
                elif fd in self._streams:
                    self._pump(self._streams[fd])
            self._rotate_old()
            self._report_dropped_if_due()
            self._send_reports()
        for stream in list(self._streams.values()):
            self._pump_backlog(stream)
            self._end(stream)
        self._epoll.close()
        self._link.close()

    def _timeout(self) -> float:
        times = [] if self._age_check_at is None else [self._age_check_at]
        times += [self._loss_report_at] if self._streams_with_loss else []
        return max(0.0, min(times) - time.monotonic()) if times else -1

    def _rotate_old(self) -> None:
        """Rotate files that are too old, and schedule the next check before any file can become too old."""
        if self._age_check_at is None or time.monotonic() < self._age_check_at:
            return
        times = [file.rotate_when_old() for file in self._files.values()]
        pauses = [max(_MIN_AGE_CHECK_SECONDS, pause) for pause in times if pause is not None]
        # At least once an hour, because the clock may be set.
        self._age_check_at = time.monotonic() + min([*pauses, _MAX_AGE_CHECK_SECONDS]) if pauses else None

    def _receive_orders(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while (order := self._link.receive()) is not None:
                self._carry_out(*order)
            self._end_ordered = not self._link.is_lost

    def _carry_out(self, message: wire.Message, fds: list[int]) -> None:
        kind = message.get("t")
        try:
            if kind == "add":
                self._add(message, fds)
            elif kind == "performed":
                for stream in list(self._streams.values()):
                    self._pump_backlog(stream)
                self._reports.append({"t": "performed", "id": message["id"]})
            else:
                raise ValueError(f"unknown order {kind!r}")
        except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
            text = f"{kind}: {type(error).__name__}: {error}"
            self._reports.append({"t": "error", "id": message.get("id"), "message": text})
        close_all(fds)

    def _add(self, order: wire.Message, fds: list[int]) -> None:
        """Carry out an order `add`: update the stream that has the same `id`, pipe and file, or add a new one.

        The pipe is `fds[0]`. Adding a stream removes the pipe from `fds`. The caller closes what is left in `fds`.
        """
        fd, path = fds[0], str(order["path"])
        max_size, keep = int(order.get("max_size") or 0), int(order.get("keep") or 0)
        max_age = float(order.get("max_age") or 0)
        owner = order.get("owner")  # of directories that are made for the file
        file = self._files.get(path) or LogFile(
            path, owner=(int(owner[0]), int(owner[1])) if owner else None, pool_directory=self._directory
        )
        stream = OutputStream(order, fd, file, self._report_now)
        # Nothing has changed so far: an invalid order has raised an error above.
        file.limit(max_size_bytes=max_size, keep=keep, max_age_seconds=max_age)
        if max_age:
            self._age_check_at = time.monotonic()
        earlier = self._by_id.get(stream.id)
        if earlier is not None:
            if os.path.sameopenfile(earlier.fd, fd) and earlier.file is file:
                earlier.pid = stream.pid
                if "ready_line" in order and earlier.ready_report is not None:
                    self._report_now(earlier.ready_report)  # a supervisor that has died may not have noted it
                return
            self._pump_backlog(earlier)
            self._end(earlier)
        os.set_blocking(fd, False)
        self._epoll.register(fd, select.EPOLLIN)
        fds.remove(fd)
        self._files[path] = file
        file.users += 1
        self._streams[fd] = self._by_id[stream.id] = stream

    def _pump(self, stream: OutputStream) -> bool:
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
            self._reports.append({"t": "eof", "id": stream.id, "tail": stream.tail})
        return moved > 0

    def _pump_backlog(self, stream: OutputStream) -> None:
        """Move output until the pipe is empty, but at most _MAX_BACKLOG_BYTES: the server may continue writing."""
        for _ in range(_MAX_BACKLOG_BYTES // MAX_BYTES):
            if not self._pump(stream):
                return

    def _end(self, stream: OutputStream) -> None:
        if self._streams.pop(stream.fd, None) is None:
            return
        del self._by_id[stream.id]
        stream.store_incomplete_line(time.time())
        self._queue_loss_report(stream)
        self._streams_with_loss.discard(stream)
        self._epoll.unregister(stream.fd)
        os.close(stream.fd)
        stream.file.users -= 1
        if not stream.file.users:
            stream.file.close()
            del self._files[stream.file.path]

    def _report_dropped_if_due(self) -> None:
        if not self._streams_with_loss or time.monotonic() < self._loss_report_at:
            return
        for stream in self._streams_with_loss:
            self._queue_loss_report(stream)
        self._streams_with_loss.clear()
        self._loss_report_at = time.monotonic() + _REPORT_EVERY_SECONDS

    def _queue_loss_report(self, stream: OutputStream) -> None:
        lost, stream.dropped_bytes = stream.dropped_bytes, 0
        if lost:
            self._reports.append({"t": "dropped", "id": stream.id, "bytes": lost, "error": stream.file.error})

    def _report_now(self, report: wire.Message) -> None:
        self._reports.append(report)
        self._send_reports()

    def _send_reports(self) -> None:
        """Send queued reports, but never wait for a hung supervisor: reports that the socket refuses stay queued."""
        if self._link.is_lost:
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
        events = select.EPOLLIN | (select.EPOLLOUT if self._reports else 0)
        self._epoll.modify(self._control.fileno(), events)


def main() -> None:
    """Run the logger until it is ordered to end, or has no supervisor and nothing to read.

    Signals that terminate a process group or a session are ignored, because the servers write their last output later.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    name_process("poolctl-logger")
    raise_descriptor_limit()
    directory = sys.argv[1] if len(sys.argv) > 1 else None
    link = SupervisorLink.inherited()
    link.try_send({"t": "up"})
    OutputLogger(link, directory).run()
