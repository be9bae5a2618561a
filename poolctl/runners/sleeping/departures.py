"""Connections on their way from a doorbell to a server's next worker, for as long as there is no room in its pair."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from poolctl.keeper.handover import Connection
from poolctl.platform import close_promptly

from .bell import Visitor

_ROOM_SECONDS = 0.003


class Departures:
    """Visitors who wait to be given away, by the key of their server. `give`, `keep`, `forget` as in Doorbell."""

    def __init__(
        self,
        give: Callable[[str, Connection], bool],
        keep: Callable[[str, Connection], str],
        forget: Callable[[str], None],
    ) -> None:
        self._give = give
        self._keep = keep
        self._forget = forget
        self._waiting: dict[str, list[Visitor]] = {}

    @property
    def keys(self) -> list[str]:
        """The servers for which somebody waits."""
        return list(self._waiting)

    def add(self, key: str, visitors: Iterable[Visitor]) -> None:
        """Give them to the server's next worker, now or as soon as there is room."""
        waiting = self._waiting.setdefault(key, [])
        waiting += visitors
        self._send(key)

    def recall(self, key: str) -> list[Visitor]:
        """Those who have not come away, who stay the caller's."""
        return self._waiting.pop(key, [])

    def let_go(self, visitor: Visitor) -> None:
        """Close a connection, which is kept by nobody any more."""
        visitor.cancel()
        close_promptly(visitor.sock.detach())
        self._keep_no_more(visitor)

    def _send(self, key: str) -> None:
        waiting = self._waiting.get(key, [])
        while waiting:
            visitor = waiting[-1]
            # Given and kept at once, it would be served twice if this process ended here.
            self._keep_no_more(visitor)
            if not self._give(key, visitor.sock):
                visitor.name = self._keep(key, visitor.sock)
                asyncio.get_running_loop().call_later(_ROOM_SECONDS, self._send, key)
                return
            self.let_go(waiting.pop())
        self._waiting.pop(key, None)

    def _keep_no_more(self, visitor: Visitor) -> None:
        if visitor.name:
            self._forget(visitor.name)
            visitor.name = ""
