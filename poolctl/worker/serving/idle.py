"""How long a worker has had nothing to do, told without a clock that ticks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .accounts import Accounts


class Idleness:
    """Tells when no request, WebSocket or stream has been under way, and no connection has come, for so many seconds.

    `tell(True)` once when that is so, `tell(False)` once when it ends; and so on until `end`.
    """

    def __init__(self, accounts: Accounts, seconds: float, tell: Callable[[bool], None]) -> None:
        self._accounts = accounts
        self._seconds = seconds
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self.idle = False
        accounts.on_activity = self._active
        self._timer = self._loop.call_later(seconds, self._look)

    def end(self) -> None:
        """Tell nothing more."""
        self._accounts.on_activity = None
        self._timer.cancel()

    def _active(self) -> None:
        self._since = self._loop.time()
        if self.idle:
            self.idle = False
            self._timer = self._loop.call_at(self._since + self._seconds, self._look)
            self._tell(False)

    def _look(self) -> None:
        due = self._since + self._seconds
        if self._accounts.tasks:
            # The end of what is under way is activity too.
            due = self._loop.time() + self._seconds
        elif self._loop.time() >= due:
            self.idle = True
            self._tell(True)
            return
        self._timer = self._loop.call_at(due, self._look)
