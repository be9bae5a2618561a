"""Memory that a supervisor has freed, and that the system does not have back yet."""

from __future__ import annotations

import asyncio

from poolctl.platform import release_freed_memory

# What a change of many servers needs for a moment has been freed by then.
_SECONDS = 10.0


class FreedMemory:
    """Goes back to the system a while after the start and after each change."""

    def __init__(self) -> None:
        self._timer = self._begin()

    def release_later(self) -> None:
        """Something changes now: release a while after that, not before."""
        self._timer.cancel()
        self._timer = self._begin()

    def _begin(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(_SECONDS, release_freed_memory)
