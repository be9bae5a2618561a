"""The servers' output while `run` waits: one thread that follows their logs and prints them."""

from __future__ import annotations

import sys
import threading
from time import time

from poolctl.cli.interrupts import start_unsignalled
from poolctl.cli.log_lines import JsonLines, PrefixedLines
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.run.background_stream import stream_of_its_own
from poolctl.cli.run.stop_signals import StopSignals
from poolctl.control.client import Client
from poolctl.errors import ControlError
from poolctl.logs.follow import follow
from poolctl.logs.log_line import stamp

# How long `run` waits for output that the servers write while they stop.
LAST_WORDS_SECONDS = 2.0


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
        from poolctl.cli.log_lines import log_paths

        try:
            items = self._client.call("show", {}).get("items") or []
        except ControlError:
            return  # the command that waits for the start says why
        paths = log_paths(items, self._pool)
        if self._objects:
            form: JsonLines | PrefixedLines = JsonLines()
        else:  # a file, or a collector of a container's output, gets the lines unchanged
            form = PrefixedLines(list(paths), times=self._times, records=sys.stdout.isatty())
        stdout = stream_of_its_own(
            sys.stdout
        )  # the command flushes sys.stdout while this thread may be blocked
        try:
            for line in follow(paths, lines=None, since=self._since, until=self._over.is_set):
                stdout.write(form.line(line))
                stdout.flush()
        except OSError:
            # The reader of the output is gone, so there is no reason to keep running in the foreground.
            StopSignals.output_lost()
