"""The link to the keeper that remembers everything the keeper has, so that another keeper can be given it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from poolctl.keeper import stored, wire

from ..link import Link, Reply

# What these fork would come to the parent of a keeper that is gone, and not to the new one.
_NOT_KEPT = stored.OF_THE_VERSION


class KeeperLink(Link):
    """A Link whose `put`, `note`, `drop` and `get` are taken down, with duplicates of the descriptors.

    Whoever speaks to the keeper need not know of it. `entries` are the names with their values and descriptors.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[wire.Message, list[int]], None],
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.entries: dict[str, tuple[Any, list[int]]] = {}
        super().__init__(sock, on_message, on_end)

    def send(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        """See Link."""
        self._take_down(message, fds)
        super().send(message, fds)

    async def call(
        self, message: wire.Message, fds: Sequence[int] = (), *, patience_seconds: float | None = None
    ) -> Reply:
        """See Link."""
        reply, received = await super().call(message, fds, patience_seconds=patience_seconds)
        if message["op"] == "get" and (received or reply.get("meta") is not None):
            self._hold(message["name"], reply["meta"], received)
        return reply, received

    async def complete(self) -> None:
        """Hold also what nobody has asked for: from now on the keeper can be replaced."""
        after = ""
        while True:
            reply, _ = await self.call({"op": "list", "after": after})
            for name, _ in reply["entries"]:
                after = name
                if name not in self.entries and not name.startswith(_NOT_KEPT):
                    _, fds = await self.call({"op": "get", "name": name})
                    _close(fds)
            if not reply["entries"]:
                return

    def _take_down(self, message: wire.Message, fds: Sequence[int]) -> None:
        operation, name = message["op"], message.get("name", "")
        if operation == "put":
            self._hold(name, message.get("meta"), fds)
        elif operation == "note" and name in self.entries:
            self.entries[name] = (message.get("meta"), self.entries[name][1])
        elif operation == "drop":
            _close(self.entries.pop(name, (None, []))[1])

    def _hold(self, name: str, meta: Any, fds: Sequence[int]) -> None:
        if name.startswith(_NOT_KEPT):
            return
        held = [os.dup(fd) for fd in fds]
        _close(self.entries.get(name, (None, []))[1])
        self.entries[name] = (meta, held)


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
