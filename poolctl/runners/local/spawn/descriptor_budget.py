"""Delays new workers until there are descriptors for them."""

from __future__ import annotations

import asyncio
import os
import resource

from poolctl.config import RAISE_OPEN_FILES
from poolctl.errors import ServerError

# While one is being made: its own sockets, pipe, page, and the files that it is given.
_OF_ONE = 16
_PATIENCE_SECONDS = 10.0


class DescriptorBudget:
    """Lets as many workers be made at once as there are free descriptors in this process, and so in the keeper.

    In a restart of many servers the others wait until the first ones' old workers have exited.
    """

    def __init__(self) -> None:
        self._free = 0  # at least
        self._ended = asyncio.Event()

    async def enter(self) -> None:
        """Return when there is room. Raises ServerError if no worker exits in time to make room."""
        while not self._take():
            self._ended.clear()
            try:
                async with asyncio.timeout(_PATIENCE_SECONDS):
                    await self._ended.wait()
            except TimeoutError:
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                raise ServerError(
                    f"all {limit} open files of the pool are in use", hint=RAISE_OPEN_FILES
                ) from None

    def ended(self) -> None:
        """A worker has exited: its descriptors are free."""
        self._free = 0
        self._ended.set()

    def _take(self) -> bool:
        if self._free < _OF_ONE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self._free = limit - len(os.listdir("/proc/self/fd"))
        if self._free < _OF_ONE:
            return False
        self._free -= _OF_ONE
        return True
