"""The link to the keeper, with a record of the keeper's entries, so that a new keeper can be given all of them."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from poolctl.keeper import fd_store, wire

from .process_link import Duplicate, HasDescriptor, Link, Receiver, close_duplicates, owners_of


class KeeperLink(Link):
    """A Link that records the entries put into the keeper, so that a new keeper can be given all of them.

    A descriptor given as its owner (a socket) is recorded as that object, without being duplicated, and is omitted once
    it is closed. A plain number is duplicated. `entries` maps names to values and descriptors.
    """

    def __init__(self, sock: socket.socket, receiver: Receiver | None = None) -> None:
        self.entries: dict[str, tuple[object, list[HasDescriptor]]] = {}
        self.whole = False  # `entries` is complete
        self._dropped: set[str] | None = None  # while `complete` is running
        super().__init__(sock, receiver)

    def send(self, message: wire.Message, fds: Sequence[int | HasDescriptor] = ()) -> None:
        """See Link."""
        self._record(message, fds)
        super().send(message, fds)

    def share(self, name: str, meta: object, owners: Sequence[HasDescriptor]) -> None:
        """Record a keeper entry whose descriptors belong to these objects."""
        self._forget(name)
        self.entries[name] = (meta, list(owners))

    async def complete(self) -> None:
        """Fetch the entries that an earlier supervisor put into the keeper, so that the keeper can be replaced."""
        after = ""
        self._dropped = set()
        while True:
            reply, _ = await self.call({"op": "list", "after": after})
            for name, _ in reply["entries"]:
                after = name
                if name not in self.entries and not name.startswith(fd_store.OF_THE_VERSION):
                    await self._fetch(name)
            if not reply["entries"]:
                self._dropped = None
                self.whole = True
                return

    def reconnect(self, sock: socket.socket, receiver: Receiver) -> None:
        """Replace a dead keeper with the keeper at `sock`, and give it the recorded entries."""
        self._receiver = Receiver()
        self._end()
        super().__init__(sock, receiver)
        for name, (meta, owners) in self.entries.items():
            present = [owner for owner in owners if owner.fileno() >= 0]
            super().send({"op": "put", "name": name, "meta": meta}, present)

    def held(self) -> dict[str, tuple[object, list[int]]]:
        """The recorded entries with their open descriptors."""
        return {
            name: (meta, [fd for owner in owners if (fd := owner.fileno()) >= 0])
            for name, (meta, owners) in self.entries.items()
        }

    def close(self) -> None:
        """Close the link and drop the records."""
        super().close()
        for name in list(self.entries):
            self._forget(name)

    async def _fetch(self, name: str) -> None:
        reply, fds = await self.call({"op": "get", "name": name})
        if name in self.entries or name in (self._dropped or ()) or not (fds or reply["meta"] is not None):
            for fd in fds:
                os.close(fd)
        else:
            self.entries[name] = (reply["meta"], [Duplicate(fd) for fd in fds])

    def _record(self, message: wire.Message, fds: Sequence[int | HasDescriptor]) -> None:
        operation, name = message["op"], message.get("name", "")
        if operation == "put" and not name.startswith(fd_store.OF_THE_VERSION):
            self.share(name, message.get("meta"), owners_of(fds))
        elif operation == "note" and name in self.entries:
            self.entries[name] = (message.get("meta"), self.entries[name][1])
        elif operation == "drop":
            if self._dropped is not None:
                self._dropped.add(name)
            self._forget(name)

    def _forget(self, name: str) -> None:
        close_duplicates(self.entries.pop(name, (None, []))[1])
