"""Whose turn it is to import an application: a machine's processors are shared by a few at a time."""

from __future__ import annotations

import asyncio
import os
from collections import deque

from .protocol import IMPORTS_PER_CPU
from .workers import LocalWorker


class Turns:
    """Workers that exist and wait to be told to begin. The next begins when one has its application, or has ended.

    They are forked ahead: a fork costs one processor, and the imports of the others the rest.
    """

    def __init__(self, at_once: int = IMPORTS_PER_CPU * (os.cpu_count() or 1)) -> None:
        self._free = at_once
        self._waiting: deque[LocalWorker] = deque()

    def queue(self, worker: LocalWorker) -> None:
        """Let the worker begin when it is its turn. A program is no import: it begins at once."""
        if worker.server.command:
            worker.begin()
            return
        self._waiting.append(worker)
        self._next()

    def _next(self) -> None:
        while self._free and self._waiting:
            worker = self._waiting.popleft()
            # One that has ended while it waited takes no turn.
            if not worker.imported.done():
                self._free -= 1
                worker.imported.add_done_callback(self._over)
            worker.begin()

    def _over(self, imported: asyncio.Future[None]) -> None:
        self._free += 1
        self._next()
