"""Limits how many applications are imported at the same time: they share the machine's processors."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Protocol

from ...protocol import IMPORTS_PER_CPU


class Importer(Protocol):
    """A process that waits to import; `imported` is done when it has its application, or has exited."""

    imported: asyncio.Future[None]

    def begin(self) -> None:
        """Start the import."""


class ImportLimit:
    """A queue of waiting processes. The next begins when one has its application, or has exited.

    They are forked ahead: forking uses one processor, while the imports use the rest.
    """

    def __init__(self, at_once: int = IMPORTS_PER_CPU * (os.cpu_count() or 1)) -> None:
        self._free = at_once
        self._waiting: deque[Importer] = deque()

    def queue(self, importer: Importer) -> None:
        """Call its `begin` when it is its turn."""
        self._waiting.append(importer)
        self._next()

    def _next(self) -> None:
        while self._free and self._waiting:
            importer = self._waiting.popleft()
            # One that has exited while it waited is skipped.
            if not importer.imported.done():
                self._free -= 1
                importer.imported.add_done_callback(self._over)
            importer.begin()

    def _over(self, imported: asyncio.Future[None]) -> None:
        self._free += 1
        self._next()
