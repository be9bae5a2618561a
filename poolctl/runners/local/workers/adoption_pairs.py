"""Adoption pairs: sockets through which the workers of a server hand accepted connections to each other.

A draining worker gives, the first other one that is ready takes; queued connections wait as in a backlog. One pair a
server, because a connection must not reach another server's application, nor a plain one a TLS server.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from poolctl.config import ServerConfig
from poolctl.keeper import fd_store, handover, wire
from poolctl.platform import close_promptly

from ...link import Link, LinkLost

PLAIN, TLS = "plain", "tls"
_MOST_IN_A_PAIR = 1024


def protocol(server: ServerConfig) -> str:
    """The protocol of the server's connections and the user of its workers: only equal ones share a pair.

    A process that has held an end of a pair can read its connections, so workers of another user get a new pair.
    """
    spoken = TLS if server.tls else PLAIN
    return spoken if server.user is None else f"{spoken} {server.user}"


class AdoptionPairs:
    """The pairs by the canonical address of their server, here and at the keeper."""

    def __init__(self, keeper: Link) -> None:
        self._keeper = keeper
        self._pairs: dict[str, tuple[str, socket.socket, socket.socket]] = {}

    def open(self, server: ServerConfig) -> None:
        """Make the server's pair, if it has none of its protocol. A program, which cannot use one, has none."""
        if server.command or self.protocol(server.key) == protocol(server):
            return
        self._forget(server.key)
        give, take = wire.pair()
        # Once, and before another process has it: all that share a socket share this too.
        give.setblocking(False)
        take.setblocking(False)
        self._pairs[server.key] = (protocol(server), give, take)
        meta = {"server": server.name, "protocol": protocol(server)}
        entry = {"op": "put", "name": f"{fd_store.ADOPTION}{server.key}", "meta": meta}
        self._keeper.send(entry, [give, take])

    def of(self, server: ServerConfig) -> tuple[socket.socket, ...]:
        """The ends (give, take) for a worker of the server; nothing for a program."""
        if server.command:
            return ()
        self.open(server)
        return self._pairs[server.key][1:]

    def protocol(self, key: str) -> str | None:
        """The protocol of that address's pair; None if it has none."""
        return self._pairs[key][0] if key in self._pairs else None

    def give(self, key: str, sock: socket.socket) -> bool:
        """Whether the connection is queued for a worker now; it stays the caller's to close. False: no room."""
        if key not in self._pairs:
            return False
        try:
            limits = sock.limits() if isinstance(sock, handover.Connection) else None
            handover.give(self._pairs[key][1], sock.fileno(), limits)
        except BlockingIOError:
            return False
        return True

    def adopt(self, key: str, fds: list[int], meta: wire.Message) -> list[socket.socket]:
        """Take ownership of the pair that the keeper held."""
        give, take = (socket.socket(fileno=fd) for fd in fds)
        self._pairs[key] = (str(meta["protocol"]), give, take)
        return [give, take]

    def left(self, key: str) -> socket.socket | None:
        """The end from which connections are taken; None if the address has no pair."""
        return self._pairs[key][2] if key in self._pairs else None

    def empty(self, key: str) -> None:
        """Close every connection that is queued in the pair."""
        if key in self._pairs:
            _empty(self._pairs[key][2])

    async def close(self, key: str) -> None:
        """Close the pair here and at the keeper, and every connection that is queued in it."""
        if key not in self._pairs:
            return
        self.empty(key)
        self._forget(key)
        with contextlib.suppress(LinkLost):
            await self._keeper.call({"op": "drop", "name": f"{fd_store.ADOPTION}{key}"})

    def drop(self, key: str) -> None:
        """Give up the pair of an address, which is empty, until it is needed again."""
        self._forget(key)
        self._keeper.send({"op": "drop", "name": f"{fd_store.ADOPTION}{key}"})

    async def close_all(self) -> None:
        """Close every pair."""
        await asyncio.gather(*(self.close(key) for key in list(self._pairs)))

    def _forget(self, key: str) -> None:
        for end in self._pairs.pop(key, ("",))[1:]:
            end.close()


def _empty(take: socket.socket) -> None:
    # Bounded to the pair's capacity: an application may go on filling it.
    for _ in range(_MOST_IN_A_PAIR):
        try:
            received = wire.receive(take)
        except wire.WireError:
            continue
        except OSError:
            return
        if received is None:
            return
        for fd in received[1]:
            close_promptly(fd)
