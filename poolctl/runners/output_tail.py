"""The last line that a program prints, for a message about its failure."""

from __future__ import annotations

import asyncio
import contextlib
import os

_KEPT_BYTES = 4096
_LINE_CHARACTERS = 200
_CHUNK_BYTES = 64 * 1024  # as much as a pipe holds
# After a full pipe, so that a program that prints without end takes little of the event loop's time.
_PAUSE_SECONDS = 0.001


class OutputTail:
    """Reads a program's output, of any size, from a pipe in the running event loop, and retains the last bytes.

    The program inherits the descriptor `writer`.
    """

    def __init__(self) -> None:
        """Open the pipe. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        self._reader, self.writer = os.pipe()
        os.set_blocking(self._reader, False)
        self._tail = b""
        self._pause: asyncio.TimerHandle | None = None
        self._resume_reading()

    def last_line(self) -> str:
        """The last line so far that is not blank, cut to 200 characters; "" without one."""
        with contextlib.suppress(BlockingIOError):
            self._read()
        lines = self._tail.decode(errors="replace").split("\n")
        return next((line.strip()[:_LINE_CHARACTERS] for line in reversed(lines) if line.strip()), "")

    def close(self) -> None:
        """Stop reading, and close both ends of the pipe. May be called again."""
        if self._reader < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._reader)
        os.close(self._reader)
        os.close(self.writer)
        self._reader = self.writer = -1

    def _resume_reading(self) -> None:
        self._pause = None
        self._loop.add_reader(self._reader, self._read)

    def _read(self) -> None:
        data = os.read(self._reader, _CHUNK_BYTES)
        self._tail = (self._tail + data)[-_KEPT_BYTES:]
        if len(data) == _CHUNK_BYTES and self._pause is None:
            self._loop.remove_reader(self._reader)
            self._pause = self._loop.call_later(_PAUSE_SECONDS, self._resume_reading)
