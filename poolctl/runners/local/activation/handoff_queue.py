"""Connections on their way to a server's next worker, for as long as there is no room in its pair."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from poolctl.platform import close_promptly

from .sleeping_listener import Handoff, HeldConnection

_ROOM_SECONDS = 0.003


class HandoffQueue:
    """Connections that wait for room in their server's pair, by the server's key."""

    def __init__(self, handoff: Handoff) -> None:
        self._handoff = handoff
        self._waiting: dict[str, list[HeldConnection]] = {}

    @property
    def keys(self) -> list[str]:
        """The servers for which connections wait."""
        return list(self._waiting)

    def add(self, key: str, connections: Iterable[HeldConnection]) -> None:
        """Give them to the server's next worker, now or as soon as there is room."""
        waiting = self._waiting.setdefault(key, [])
        waiting += connections
        self._send(key)

    def recall(self, key: str) -> list[HeldConnection]:
        """Those that have not been sent; they are the caller's now."""
        return self._waiting.pop(key, [])

    def close(self, held: HeldConnection) -> None:
        """Close a connection and keep it no longer."""
        held.cancel()
        close_promptly(held.sock.detach())
        self._forget(held)

    def _send(self, key: str) -> None:
        waiting = self._waiting.get(key, [])
        while waiting:
            held = waiting[-1]
            # Sent while it is still kept, it would be served twice if this process ended here.
            self._forget(held)
            if not self._handoff.give(key, held.sock):
                held.name = self._handoff.keep(key, held.sock)
                asyncio.get_running_loop().call_later(_ROOM_SECONDS, self._send, key)
                return
            self.close(waiting.pop())
        self._waiting.pop(key, None)

    def _forget(self, held: HeldConnection) -> None:
        if held.name:
            self._handoff.forget(held.name)
            held.name = ""
