"""Bounds the logs of the pool's own processes while they run."""

from __future__ import annotations

import asyncio
import contextlib
import os

from poolctl.keeper.spawn import rotate_if_large
from poolctl.logs.follow import DirectoryWatch

_GATHER_SECONDS = 0.05
_WITHOUT_INOTIFY_SECONDS = 1.0


class OwnLogs:
    """Rotates the `*.log` files in `directory` when they become large. Belongs to the running loop.

    inotify(7) reports every write, and many writes cause one check: a process that prints without end is bounded to its
    output in that time, and one that prints nothing costs nothing.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._loop = asyncio.get_running_loop()
        self._watch: DirectoryWatch | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._check()

    def _check(self) -> None:
        try:
            if self._watch is None:
                self._watch = DirectoryWatch()
            self._watch.changed()
            self._watch.add(self._directory)  # again: it may have been removed and created since
            self._loop.add_reader(self._watch.fd, self._check_soon)
        except OSError:
            self._timer = self._loop.call_later(_WITHOUT_INOTIFY_SECONDS, self._check)
        with contextlib.suppress(OSError):
            for name in os.listdir(self._directory):
                if name.endswith(".log"):
                    rotate_if_large(os.path.join(self._directory, name))

    def _check_soon(self) -> None:
        assert self._watch is not None
        self._loop.remove_reader(self._watch.fd)
        self._timer = self._loop.call_later(_GATHER_SECONDS, self._check)

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._loop.remove_reader(self._watch.fd)
            self._watch.close()
            self._watch = None
