"""The output of `run`: the servers' lines and its own. A slow, stuck or missing reader delays nothing else."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from time import time
from typing import Any, TextIO

from poolctl.cli.log_rendering import JsonLines, PrefixedLines
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.run.signals import StopSignals
from poolctl.cli.supervisor_requests import start_unsignalled
from poolctl.control.client import Client
from poolctl.control.show_answers import ShowResult
from poolctl.errors import ControlError
from poolctl.logs.follow import follow
from poolctl.logs.log_line import stamp

# Maximum wait for a text, so that it precedes the next one; after that it is written later.
PATIENCE_SECONDS = 0.5
# Maximum wait for the last texts.
END_SECONDS = 2.0
MOST_TEXTS = 1000
# Maximum wait for output that the servers write while they stop.
LAST_WORDS_SECONDS = 2.0


@contextlib.contextmanager
def stream_of_its_own(stream: TextIO) -> Iterator[TextIO]:
    """Temporarily replace a stream by a second one with the same descriptor.

    A thread blocked in a write holds the lock of its stream: a flush of the same stream would wait for it.
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        yield stream  # without a descriptor a string takes everything
        return
    stream.flush()
    own = open(descriptor, "w", encoding=stream.encoding, errors=stream.errors, closefd=False)  # noqa: SIM115
    try:
        yield own
    finally:
        # If left open, it would retry the write without a reader at exit, and since Python 3.13 report an error.
        with contextlib.suppress(OSError):
            own.close()


class BackgroundStream:
    """A text stream written by a thread of its own; text that cannot be written is dropped.

    `write` waits until the text is written, unless the reader has stopped reading: then texts are queued up to a
    limit. Leaving the context waits for them a little longer.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._texts: SimpleQueue[tuple[str, threading.Lock]] = SimpleQueue()
        self._stuck = False
        self._thread: threading.Thread | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> BackgroundStream:
        return self

    def __exit__(self, *raised: object) -> None:
        if self._stuck:
            self._hand_over("").acquire(timeout=END_SECONDS)

    def write(self, text: str) -> int:
        """Pass the text to the thread."""
        if self._texts.qsize() < MOST_TEXTS:
            written = self._hand_over(text)
            if not self._stuck:
                self._stuck = not written.acquire(timeout=PATIENCE_SECONDS)
        return len(text)

    def flush(self) -> None:
        """Does nothing, because `write` buffers nothing."""

    def _hand_over(self, text: str) -> threading.Lock:
        """Queue the text; returns a lock that is released when it is written.

        A signal handler may raise at any time in the main thread, so this is the only lock it shares with the thread.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_texts, name="standard error", daemon=True)
            start_unsignalled(self._thread)
        written = threading.Lock()
        written.acquire()
        self._texts.put((text, written))
        return written

    def _write_texts(self) -> None:
        with stream_of_its_own(self._stream) as stream:
            while True:
                text, written = self._texts.get()
                try:
                    stream.write(text)
                    stream.flush()
                except (OSError, ValueError):
                    pass  # the reader or the stream is gone
                if self._texts.empty():
                    self._stuck = False
                written.release()


class LogPrinter:
    """Prints new output of the pool's servers, each line prefixed with the server's name, or as an object."""

    def __init__(self, client: Client, pool: PoolRef, *, times: bool, objects: bool = False) -> None:
        self._objects = objects
        self._client = client
        self._pool = pool
        self._times = times
        self._since = stamp(time())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print, name="logs", daemon=True)

    def start(self) -> None:
        """Start; returns at once."""
        start_unsignalled(self._thread)

    def finish(self) -> None:
        """Print the pending output, then stop; does not wait for a reader that has stopped reading."""
        self._over.set()
        self._thread.join(LAST_WORDS_SECONDS)

    def _print(self) -> None:
        from poolctl.cli.log_rendering import NO_TIMES, STAMPS, log_paths

        try:
            items = self._client.ask(ShowResult, "show").items
        except ControlError:
            return  # the command waiting for the start reports the reason
        paths = log_paths(items, self._pool)
        if self._objects:
            form: JsonLines | PrefixedLines = JsonLines()
        else:  # files and log collectors of containers get the lines unchanged
            times = STAMPS if self._times else NO_TIMES
            terminal = sys.stdout.isatty()
            asked = {each.name for each in items if (each.config.get("http") or {}).get("request_id")}
            ids = asked if terminal and not self._times else None
            form = PrefixedLines(list(paths), times=times, records=terminal, request_ids=ids)
        try:
            # A separate stream, because the command flushes sys.stdout while this thread may be blocked.
            with stream_of_its_own(sys.stdout) as stdout:
                for line in follow(paths, lines=None, since=self._since, until=self._over.is_set):
                    stdout.write(form.line(line))
                    stdout.flush()
        except OSError:
            # The reader of the output is gone, so there is no reason to keep running in the foreground.
            StopSignals.output_lost()
