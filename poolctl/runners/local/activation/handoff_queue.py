"""Queues connections for a server's next worker while its pair is full."""

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
        """The keys of the servers that have queued connections."""
        return list(self._waiting)

    def add(self, key: str, connections: Iterable[HeldConnection]) -> None:
        """Send them to the server's next worker, now or as soon as there is room."""
        waiting = self._waiting.setdefault(key, [])
        waiting += connections
        self._send(key)

    def recall(self, key: str) -> list[HeldConnection]:
        """Remove and return the connections that have not been sent; the caller owns them."""
        return self._waiting.pop(key, [])

    def close(self, held: HeldConnection) -> None:
        """Close a connection, and drop it from the keeper's store."""
        held.cancel()
        close_promptly(held.sock.detach())
        self._forget(held)

    def _send(self, key: str) -> None:
        waiting = self._waiting.get(key, [])
        while waiting:
            held = waiting[-1]
            # If it were sent while it is still in the store, it would be served twice if this process exited here.
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
