"""The output of `run`: the servers' lines and its own; a reader that is slow, stuck or gone holds up nothing else."""

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
from poolctl.control.answers import ShowResult
from poolctl.control.client import Client
from poolctl.errors import ControlError
from poolctl.logs.follow import follow
from poolctl.logs.log_line import stamp

# How long a text is waited for, so that it stands before what is printed next; it is written later otherwise.
PATIENCE_SECONDS = 0.5
# How long the last of them are waited for.
END_SECONDS = 2.0
MOST_TEXTS = 1000
# How long `run` waits for output that the servers write while they stop.
LAST_WORDS_SECONDS = 2.0


@contextlib.contextmanager
def stream_of_its_own(stream: TextIO) -> Iterator[TextIO]:
    """Another stream into the same descriptor, for a while.

    A thread that is blocked in a write holds the lock of its stream: a flush of the same stream would wait for it.
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        yield stream  # no descriptor: a string takes everything
        return
    stream.flush()
    own = open(descriptor, "w", encoding=stream.encoding, errors=stream.errors, closefd=False)  # noqa: SIM115
    try:
        yield own
    finally:
        # Left open, it would try once more to write what has no reader, and since Python 3.13 complain about that.
        with contextlib.suppress(OSError):
            own.close()


class BackgroundStream:
    """A text stream that a thread of its own writes; what cannot be written is dropped.

    `write` waits until the text is written, but not for a reader that has stopped reading: then texts are queued, up
    to a limit. Leaving the context waits for them a little longer.
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
        """Have the text written."""
        if self._texts.qsize() < MOST_TEXTS:
            written = self._hand_over(text)
            if not self._stuck:
                self._stuck = not written.acquire(timeout=PATIENCE_SECONDS)
        return len(text)

    def flush(self) -> None:
        """Nothing: `write` hands over everything."""

    def _hand_over(self, text: str) -> threading.Lock:
        """The lock that is released when the text is written.

        A signal's exception may come at any moment in the main thread, so it shares with the thread no lock but this.
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
                    pass  # no reader, or no stream any more
                if self._texts.empty():
                    self._stuck = False
                written.release()


class LogPrinter:
    """Prints what the pool's servers write from now on, each line with its server's name before it, or as an object."""

    def __init__(self, client: Client, pool: PoolRef, *, times: bool, objects: bool = False) -> None:
        self._objects = objects
        self._client = client
        self._pool = pool
        self._times = times
        self._since = stamp(time())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print, name="logs", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
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
            return  # the command that waits for the start says why
        paths = log_paths(items, self._pool)
        if self._objects:
            form: JsonLines | PrefixedLines = JsonLines()
        else:  # a file, or a collector of a container's output, gets the lines unchanged
            times = STAMPS if self._times else NO_TIMES
            terminal = sys.stdout.isatty()
            asked = {each.name for each in items if (each.config.get("http") or {}).get("request_id")}
            ids = asked if terminal and not self._times else None
            form = PrefixedLines(list(paths), times=times, records=terminal, request_ids=ids)
        try:
            # The command flushes sys.stdout while this thread may be blocked.
            with stream_of_its_own(sys.stdout) as stdout:
                for line in follow(paths, lines=None, since=self._since, until=self._over.is_set):
                    stdout.write(form.line(line))
                    stdout.flush()
        except OSError:
            # The reader of the output is gone, so there is no reason to keep running in the foreground.
            StopSignals.output_lost()
