"""The listeners of a pool's servers, held here and by the keeper, and closed at both."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.keeper import fd_store, wire
from poolctl.listeners.open import Inherited, close_listener, describe, refuse
from poolctl.listeners.unix import identity_of

from ...link import Link, LinkLost
from ...opener import Opener


class Sockets:
    """Listening sockets by the canonical address of their server."""

    def __init__(self, keeper: Link) -> None:
        self._keeper = keeper
        self.inherited: Inherited = {}  # the sockets of `fd:` addresses
        self._opener = Opener()
        self._open: dict[str, list[socket.socket]] = {}
        self._shared: set[str] = set()
        self._identities: dict[str, tuple[int, int] | None] = {}

    def of(self, server: ServerConfig) -> list[socket.socket]:
        """The server's listeners; none for a job, or for a command that binds by itself."""
        return self._open.get(server.key, [])

    def lend(self, server: ServerConfig) -> list[socket.socket]:
        """Likewise, for a worker: from now on its application, and any process it starts, may hold them too."""
        key = server.key
        if key in self._open and not self.shared(key):
            self._shared.add(key)
            meta = {"server": server.name, "shared": True}
            self._keeper.send({"op": "note", "name": f"{fd_store.LISTENER}{key}", "meta": meta})
        return self.of(server)

    def shared(self, key: str) -> bool:
        """Whether an application may hold the listeners of this address: then any call on them may block."""
        return key in self._shared or key.startswith("fd:")

    def keys(self) -> set[str]:
        """The addresses that have a listener."""
        return set(self._open)

    def endpoints(self, key: str) -> list[str]:
        """The addresses that are bound."""
        return [describe(sock) for sock in self._open.get(key, ())]

    async def open(self, server: ServerConfig) -> None:
        """Open the server's listeners, if it has any and they are not open. Raises ServerError."""
        key = server.key
        if server.job or key in self._open:
            return
        try:
            if server.binds_itself:
                if server.address.kind == "tcp":
                    await self._opener.check_free(server.address)
                return
            self._open[key] = await self._opener.listen(server.address, self.inherited)
        except ServerError as error:
            raise ServerError(error.message, name=server.name, bind=server.bind, hint=error.hint) from error
        if server.command:
            # As in sd_listen_fds(3): a program that wants a non-blocking socket sets that itself, for all users.
            for sock in self._open[key]:
                sock.setblocking(True)
        self._identities[key] = identity_of(key)
        self._keeper.send(
            {
                "op": "put",
                "name": f"{fd_store.LISTENER}{key}",
                "meta": {"server": server.name, "shared": self.shared(key)},
            },
            self._open[key],
        )

    async def close(self, key: str) -> None:
        """Close them here and at the keeper; connections are refused from now on."""
        sockets = self._open.pop(key, [])
        self._shared.discard(key)
        if not sockets:
            return
        if not key.startswith("fd:"):
            # A worker that is about to exit may hold one; systemd's own sockets are returned unchanged.
            refuse(sockets)
        close_listener(sockets, self._identities.pop(key, None))
        with contextlib.suppress(LinkLost):
            await self._keeper.call({"op": "drop", "name": f"{fd_store.LISTENER}{key}"})

    async def close_all(self) -> None:
        """Close every listener."""
        await asyncio.gather(*(self.close(key) for key in list(self._open)))

    def adopt(self, key: str, fds: list[int], meta: wire.Message) -> list[socket.socket]:
        """Take ownership of the listeners that the keeper held."""
        if meta.get("shared", True):
            self._shared.add(key)
        # No option is changed: processes that accept from it rely on its state.
        self._open[key] = [socket.socket(fileno=fd) for fd in fds]
        self._identities[key] = identity_of(key)
        return self._open[key]
