"""Standard error of `run`, which must not block when its reader stops reading."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, TextIO

from poolctl.cli.output import unbuffered_writer
from poolctl.daemon_threads import DaemonThreads
from poolctl.platform import signals_blocked

MAX_TEXTS = 1000


class StandardError:
    """A text stream with a thread of its own for writing, so that a reader that stops reading does not block `run`.

    `write` may be called from any thread, and only queues the text. While MAX_TEXTS are queued, texts are dropped.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        # Bypass the stream: while a write blocks, a flush elsewhere would wait for its lock.
        self._write = unbuffered_writer(stream)
        with signals_blocked():
            self._thread = DaemonThreads(1)
        self._room = threading.Semaphore(MAX_TEXTS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Have the thread write the text; returns the text's length."""
        if self._room.acquire(blocking=False):
            self._thread.submit(self._write_next, text)
        return len(text)

    def flush(self) -> None:
        """Does nothing, because nothing is buffered."""

    async def await_written(self, limit_seconds: float) -> None:
        """Wait until all texts so far are written, but no longer than the limit."""
        written = self._thread.submit(lambda: None)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(written), limit_seconds)

    def _write_next(self, text: str) -> None:
        with contextlib.suppress(
            OSError, ValueError
        ):  # the reader or the stream is gone, or the disk is full
            self._write(text)
        self._room.release()
