"""Notices when a server is idle, so that it can be put to sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .connection_state import PoolServerState


class IdleTimer:
    """Reports when a server becomes idle: for a given time no request, WebSocket, stream or new connection.

    `on_change(True)` is called once when it gets idle, and `on_change(False)` once when that ends, until `end`.
    """

    def __init__(
        self, server_state: PoolServerState, seconds: float, on_change: Callable[[bool], None]
    ) -> None:
        self._server_state = server_state
        self._seconds = seconds
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self.idle = False
        server_state.on_activity = self._active
        server_state.watch_tasks()
        self._timer = self._loop.call_later(seconds, self._check)

    def end(self) -> None:
        """Stop reporting."""
        self._server_state.on_activity = None
        self._timer.cancel()

    def _active(self) -> None:
        self._since = self._loop.time()
        if self.idle:
            self.idle = False
            self._timer = self._loop.call_at(self._since + self._seconds, self._check)
            self._on_change(False)

    def _check(self) -> None:
        due = self._since + self._seconds
        if self._server_state.tasks:
            # The end of a request is activity too.
            due = self._loop.time() + self._seconds
        elif self._loop.time() >= due:
            self.idle = True
            self._on_change(True)
            return
        self._timer = self._loop.call_at(due, self._check)
