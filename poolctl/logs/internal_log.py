"""The logs of poolctl's own processes, with limits on size and rate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys

from poolctl.clock import Clock, RateLimit
from poolctl.keeper.spawn import copytruncate_if_large

from .log_tail import DirectoryWatch

_MAX_MESSAGE_LENGTH = 4096
_BURST_BYTES, _BYTES_PER_SECOND = 256 * 1024, 4096
_REPEATED_EVERY_SECONDS = 10.0
_STDERR = 2
_GATHER_SECONDS = 0.05
_POLL_SECONDS = 1.0


class InternalLog(logging.Handler):
    """Writes records to standard error. If this is redirected to the file `path`, rotates the file to `path.1`.

    A message that repeats the previous one is counted instead of written ("repeated 12,345 times"). Messages above
    the rate limit are dropped and counted. The interpreter's own tracebacks go to the same file.
    """

    def __init__(self, path: str = "", clock: Clock | None = None) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._path = path
        self._clock = clock or Clock()
        self._allowance = RateLimit(_BURST_BYTES, _BYTES_PER_SECOND)
        self._last: object = None
        self._repeated = self._dropped = 0
        self._counted_at = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._emit(record)
        except Exception:
            self.handleError(record)

    def _emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        content = (record.levelno, message, type(error), str(error))
        now = self._clock.monotonic()
        if content == self._last:
            self._repeated += 1
            if now - self._counted_at >= _REPEATED_EVERY_SECONDS:
                self._report_repeated(now)
            return
        self._report_repeated(now)
        self._last = content
        cut = len(message) - _MAX_MESSAGE_LENGTH
        if cut > 0:
            message = f"{message[:_MAX_MESSAGE_LENGTH]}… ({cut} characters more)"
        record = logging.makeLogRecord({**record.__dict__, "msg": message, "args": None})
        self._write_if_allowed(f"{self.format(record)}\n".encode(errors="backslashreplace"), now)

    def close(self) -> None:
        """Write the counts of repeated and dropped messages that are not in the log yet; then close the handler."""
        with contextlib.suppress(Exception):
            self._report_repeated(self._clock.monotonic())
            self._report_dropped()
        super().close()

    def _report_repeated(self, now: float) -> None:
        repeated, self._repeated, self._counted_at = self._repeated, 0, now
        if repeated:
            text = f"the last message was repeated {repeated:,} time{'s' * (repeated > 1)}"
            self._write_if_allowed(self._line(text), now)

    def _write_if_allowed(self, line: bytes, now: float) -> None:
        if not self._allowance.take(len(line), now):
            self._dropped += 1
            return
        self._report_dropped()
        self._write(line)

    def _report_dropped(self) -> None:
        if self._dropped:
            self._write(self._line(f"{self._dropped:,} messages were left out: too many at once"))
            self._dropped = 0

    def _line(self, text: str) -> bytes:
        assert self.formatter is not None
        record = logging.LogRecord("poolctl", logging.WARNING, "", 0, text, None, None)
        return f"{self.formatter.format(record)}\n".encode(errors="backslashreplace")

    def _write(self, line: bytes) -> None:
        sys.stderr.flush()
        if self._path:
            with contextlib.suppress(OSError):
                copytruncate_if_large(self._path)
        with contextlib.suppress(OSError):  # a full disk
            os.write(_STDERR, line)


class InternalLogRotator:
    """Rotates the `*.log` files in `directory` when they become large. Must be created on the running loop.

    Sizes are checked 50 ms after inotify(7) has reported a write, so that a burst of writes causes a single check. In
    this time a log can grow beyond the limit. Without inotify, sizes are checked once a second.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._watch: DirectoryWatch | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._start_watch_and_rotate()

    def _start_watch_and_rotate(self) -> None:
        try:
            if self._watch is None:
                self._watch = DirectoryWatch()
            self._watch.changed()
            self._watch.add_if_new(self._directory)  # again: it may have been removed and created since
            self._loop.add_reader(self._watch.fd, self._check_soon)
        except OSError:
            self._timer = self._loop.call_later(_POLL_SECONDS, self._start_watch_and_rotate)
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory):
                if name.endswith(".log"):
                    copytruncate_if_large(os.path.join(self._directory, name))

    def _check_soon(self) -> None:
        assert self._watch is not None
        self._loop.remove_reader(self._watch.fd)
        self._timer = self._loop.call_later(_GATHER_SECONDS, self._start_watch_and_rotate)

    def close(self) -> None:
        """Stop checking and rotating the log files."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._loop.remove_reader(self._watch.fd)
            self._watch.close()
            self._watch = None
