"""One call for many wishes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_SECONDS = 0.05


class Debounced:
    """Calls a function some time after the first of many wishes for it, once for all of them."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Within 50 ms."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_SECONDS, self.now)

    def now(self) -> None:
        """At once."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._function()
