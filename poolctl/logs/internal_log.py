"""The logs of poolctl's own processes, with limits on size and rate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys

from poolctl.clock import Clock, RateLimit
from poolctl.keeper.spawn import copytruncate_if_large

_MAX_MESSAGE_LENGTH = 4096
_BURST_BYTES, _BYTES_PER_SECOND = 256 * 1024, 4096
_STDERR = 2
_ROTATION_SECONDS = 60.0


class InternalLog(logging.Handler):
    """Writes records to standard error. If this is redirected to the file `path`, rotates the file to `path.1`.

    Messages above the rate limit are dropped and counted. The interpreter's own tracebacks go to the same file.
    """

    def __init__(self, path: str = "", clock: Clock | None = None) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._path = path
        self._clock = clock or Clock()
        self._allowance = RateLimit(_BURST_BYTES, _BYTES_PER_SECOND)
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._emit(record)
        except Exception:
            self.handleError(record)

    def _emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        cut = len(message) - _MAX_MESSAGE_LENGTH
        if cut > 0:
            message = f"{message[:_MAX_MESSAGE_LENGTH]}… ({cut} characters more)"
        record = logging.makeLogRecord({**record.__dict__, "msg": message, "args": None})
        line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        if not self._allowance.take(len(line), self._clock.monotonic()):
            self._dropped += 1
            return
        self._report_dropped()
        self._write(line)

    def close(self) -> None:
        """Write the count of dropped messages that is not in the log yet; then close the handler."""
        with contextlib.suppress(Exception):
            self._report_dropped()
        super().close()

    def _report_dropped(self) -> None:
        if self._dropped:
            text = f"{self._dropped:,} messages were left out: too many at once"
            record = logging.LogRecord("poolctl", logging.WARNING, "", 0, text, None, None)
            self._write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
            self._dropped = 0

    def _write(self, line: bytes) -> None:
        sys.stderr.flush()
        if self._path:
            with contextlib.suppress(OSError):
                copytruncate_if_large(self._path)
        with contextlib.suppress(OSError):  # a full disk
            os.write(_STDERR, line)


class InternalLogRotator:
    """Rotates the `*.log` files in `directory` now and once a minute, if they are large. Needs a running loop."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._rotate()

    def _rotate(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_ROTATION_SECONDS, self._rotate)
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory):
                if name.endswith(".log"):
                    copytruncate_if_large(os.path.join(self._directory, name))

    def close(self) -> None:
        """Stop rotating the log files."""
        self._timer.cancel()
