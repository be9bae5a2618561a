"""Whose turn it is to import an application: a machine's processors are shared by a few at a time."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import Protocol

from ...protocol import IMPORTS_PER_CPU


class Importer(Protocol):
    """A process that exists and waits; `imported` is done when it has its application, or has ended."""

    imported: asyncio.Future[None]

    def begin(self) -> None:
        """Tell it to begin."""


class ImportLimit:
    """Processes that exist and wait to be told to begin. The next begins when one has its application, or has ended.

    They are forked ahead: a fork costs one processor, and the imports of the others the rest.
    """

    def __init__(self, at_once: int = IMPORTS_PER_CPU * (os.cpu_count() or 1)) -> None:
        self._free = at_once
        self._waiting: deque[Importer] = deque()

    def queue(self, importer: Importer) -> None:
        """Let it begin when it is its turn."""
        self._waiting.append(importer)
        self._next()

    def _next(self) -> None:
        while self._free and self._waiting:
            importer = self._waiting.popleft()
            # One that has ended while it waited takes no turn.
            if not importer.imported.done():
                self._free -= 1
                importer.imported.add_done_callback(self._over)
            importer.begin()

    def _over(self, imported: asyncio.Future[None]) -> None:
        self._free += 1
        self._next()
