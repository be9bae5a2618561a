"""The listeners and adoption pairs of a pool's servers, held in this process and by the keeper.

Workers of a server hand accepted connections to each other through its adoption pair. A draining worker gives
connections, and the first other ready worker takes them; queued connections wait as in a backlog. Each server has its
own pair, because a connection must not reach another server's application, nor a plain connection a TLS server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from poolctl.config import ServerConfig
from poolctl.errors import ServerError
from poolctl.keeper import fd_store, wire
from poolctl.keeper.connection_handover import Connection
from poolctl.listeners import open_listener
from poolctl.listeners.open_listener import Inherited
from poolctl.platform import close_promptly, readable_bytes

from ..listener_opener import Opener
from ..process_link import HasDescriptor, Link, LinkLost
from ..socket_access import change_server_socket_access, server_socket_access

_MAX_IN_A_PAIR = 1024

logger = logging.getLogger("poolctl.supervisor")


@dataclass(frozen=True, slots=True)
class WorkerRoutes:
    """What workers know of the gateway: their route table and the key that identifies its requests, both by server.

    `trusted` has the networks of the proxies in front of the gateway. The publisher closes the files of old tables
    after it has published new ones.
    """

    tables: Mapping[str, HasDescriptor]
    keys: Mapping[str, str]
    trusted: tuple[str, ...] = ()


class Gateway(Protocol):
    """The gateway as seen by a runner."""

    async def announce_workers_exit(self, server: str) -> None:
        """Tell the gateway that the server's workers will exit; return when it sends nothing more, or on a timeout."""


class Sockets:
    """The pool's listening sockets, by the canonical address (`key`) of their server."""

    def __init__(self, keeper: Link, opener: Opener) -> None:
        self._keeper = keeper
        self.inherited: Inherited = {}  # the sockets of `fd:` addresses
        self._opener = opener
        self._open: dict[str, list[socket.socket]] = {}
        self._shared: set[str] = set()
        self._identities: dict[str, tuple[int, int] | None] = {}

    @property
    def stay_open(self) -> bool:
        """Whether the service manager holds the listeners for the next run of the pool."""
        return self._opener.stays_open

    def of(self, server: ServerConfig) -> list[socket.socket]:
        """The server's listeners; empty for a command that has no address or binds its address itself."""
        return open_listener.needed_listeners(server.address, self._open.get(server.key, []))

    def share_with_worker(self, server: ServerConfig) -> list[socket.socket]:
        """Return the server's listeners, to be given to a new worker; [] if the server has none.

        From now on `shared` is True, because the application and its child processes may hold the listeners too.
        """
        key = server.key
        if key in self._open and not self.shared(key):
            self._shared.add(key)
            meta = {"server": server.name, "shared": True}
            self._keeper.send({"op": "note", "name": f"{fd_store.LISTENER}{key}", "meta": meta})
        return self.of(server)

    def shared(self, key: str) -> bool:
        """Return whether an application may hold the listeners of this address, and so make accept(2) on them block."""
        return key in self._shared or key.startswith("fd:")

    def keys(self) -> set[str]:
        return set(self._open)

    def endpoints(self, key: str) -> list[str]:
        """The addresses to which the listeners with this key are bound; empty if there are no listeners."""
        return [open_listener.describe(sock) for sock in self._open.get(key, ())]

    async def open(self, server: ServerConfig, beside: Sequence[str] = ()) -> None:
        """Open the server's listeners that are not open yet. Raises ServerError. For `beside`, see `Runner.open`.

        For a command that binds a TCP address itself, only checks that the address is free. The gateway opens the
        address of a proxied server.
        """
        key, held = server.key, self._open.get(server.key, [])
        if not server.listens or server.is_proxied:
            return
        try:
            if server.binds_itself:
                if server.address.kind == "tcp" and not held:
                    await self._opener.check_bindable(server.address)
                return
            if (manager := self._opener.manager) is not None and manager.holds(key):
                self._shared.add(key)  # processes left by earlier workers may hold it
            others = {other: self._open[other] for other in beside if other in self._open}
            access = server_socket_access(server)
            opened = await self._opener.open_missing(server.address, held, others, self.inherited, access)
        except ServerError as error:
            raise ServerError(error.message, name=server.name, bind=server.bind, hint=error.hint) from error
        if not opened:
            return
        self._open[key] = [*held, *opened]
        if server.command:
            # Blocking, as programs expect (sd_listen_fds(3)): the flag is shared by all processes that have the socket.
            for sock in opened:
                sock.setblocking(True)
        self._identities[key] = open_listener.socket_file_identity(key)
        self._store(key, server.name)

    def _store(self, key: str, name: str) -> None:
        meta = {"server": name, "shared": self.shared(key)}
        self._keeper.send({"op": "put", "name": f"{fd_store.LISTENER}{key}", "meta": meta}, self._open[key])

    def change_access(self, server: ServerConfig) -> None:
        """Give the file of the server's open Unix socket its configured mode and owner. Raises ServerError."""
        change_server_socket_access(server, self._open.get(server.key, ()))

    def close_unneeded(self, server: ServerConfig) -> None:
        """Close the listeners with the server's key that its address does not need, here and in the keeper."""
        held = self._open.get(server.key, [])
        needed = self._opener.close_unneeded(server.address, held)
        if len(needed) < len(held):
            self._open[server.key] = needed
            self._store(server.key, server.name)

    async def close(self, key: str) -> None:
        """Close the listeners of this address here and in the keeper. Further connections are refused."""
        self._opener.closing(key)
        sockets = self._open.pop(key, [])
        self._shared.discard(key)
        if not sockets:
            return
        self._opener.close(key, sockets, self._identities.pop(key, None))
        with contextlib.suppress(LinkLost):
            await self._keeper.call({"op": "drop", "name": f"{fd_store.LISTENER}{key}"})

    async def close_all(self) -> None:
        await asyncio.gather(*(self.close(key) for key in list(self._open)))

    def adopt(self, key: str, meta: wire.Message, fds: list[int]) -> list[socket.socket]:
        """Adopt a server's listeners from the keeper's store; returns the sockets, which own the descriptors."""
        if meta.get("shared", True):
            self._shared.add(key)
        # The socket's options stay unchanged, because processes that accept from it rely on them.
        self._open[key] = [socket.socket(fileno=fd) for fd in fds]
        self._identities[key] = open_listener.socket_file_identity(key)
        return self._open[key]

    async def adopt_bound(self) -> None:
        """Handle listeners that are only bound (see `Opener.adopt_bound`). Called once all are adopted."""
        for key, sockets in list(self._open.items()):
            bound = [sock for sock in sockets if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]
            try:
                self._opener.adopt_bound(key, bound, self._open)
            except OSError as error:
                # Another process listens there by now: the server's next attempt to open the address reports it.
                logger.error("the listener at %s is lost: %s", key, error.strerror)
                await self.close(key)


def handover_group(server: ServerConfig) -> str:
    """Return a text with the server's use of TLS and its user: workers hand over connections only if it is equal.

    Connections are handed over through a socket pair. A process that has held an end of the pair can read connections
    from it, so workers of another user need another pair.
    """
    group = "tls" if server.tls else "plain"
    return group if server.user is None else f"{group} {server.user}"


class AdoptionPairs:
    """The adoption pairs: socket pairs through which the workers of a server are handed connections.

    A server has one pair, stored by its canonical address (`key`). Its draining workers put connections into the give
    end; its other workers take them from the take end. The keeper holds the pairs as well.
    """

    def __init__(self, keeper: Link) -> None:
        self._keeper = keeper
        self._pairs: dict[str, tuple[str, socket.socket, socket.socket]] = {}

    def open(self, server: ServerConfig) -> None:
        """Create the server's socket pair, or replace it if its `handover_group` has changed. No pair for a command."""
        key = server.key
        if server.command or self.handover_group(key) == handover_group(server):
            return
        before: tuple[Any, ...] | None = self._pairs.pop(key, None)
        give, take = wire.pair()
        # Set once, before another process has the socket: the setting is shared by all holders.
        give.setblocking(False)
        take.setblocking(False)
        self._pairs[key] = (handover_group(server), give, take)
        meta = {"server": server.name, "protocol": handover_group(server)}
        entry = {"op": "put", "name": f"{fd_store.ADOPTION}{key}", "meta": meta}
        self._keeper.send(entry, [give, take])
        for end in before[1:] if before is not None else ():
            end.close()  # the workers that still hold the pair take the connections in it

    def get_or_open(self, server: ServerConfig) -> tuple[socket.socket, ...]:
        """Return the server's socket pair, created if missing, as (give end, take end); () if it runs a command."""
        if server.command:
            return ()
        self.open(server)
        return self._pairs[server.key][1:]

    def handover_group(self, key: str) -> str | None:
        """The `handover_group` for which the server's socket pair was created; None without a pair."""
        return self._pairs[key][0] if key in self._pairs else None

    def give(self, key: str, sock: Connection) -> bool:
        """Queue a copy of the connection for the server's workers. False if their socket pair is full or missing."""
        return key in self._pairs and sock.hand_over(self._pairs[key][1])

    def adopt(self, key: str, meta: wire.Message, fds: list[int]) -> list[socket.socket]:
        """Use the socket pair that an earlier supervisor stored for the server. Return both ends, which own `fds`."""
        give, take = (socket.socket(fileno=fd) for fd in fds)
        self._pairs[key] = (str(meta["protocol"]), give, take)
        return [give, take]

    def take_end(self, key: str) -> socket.socket | None:
        """Return the socket from which the server's workers take handed-over connections, or None."""
        return self._pairs[key][2] if key in self._pairs else None

    def queued_connections(self, key: str) -> int:
        """The approximate number of connections queued in the server's adoption pair."""
        if key not in self._pairs:
            return 0
        take = self._pairs[key][2]
        try:
            first = take.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC | socket.MSG_DONTWAIT)
            total = readable_bytes(take.fileno())
        except OSError:
            return 0
        return max(1, round(total / first)) if first else 0

    def close_queued(self, key: str) -> None:
        """Close every handed-over connection that no worker of the server has taken yet."""
        if key not in self._pairs:
            return
        # At most as many as fit into the pair, because an application could keep filling it.
        for _ in range(_MAX_IN_A_PAIR):
            try:
                received = wire.receive(self._pairs[key][2], max_bytes=wire.MAX_PACKET_BYTES)
            except wire.WireError:
                continue
            except OSError:
                return
            if received is None:
                return
            for fd in received[1]:
                close_promptly(fd)

    async def close(self, key: str) -> None:
        """Close the server's socket pair in this process and in the keeper, and every connection queued in the pair."""
        if key not in self._pairs:
            return
        self.close_queued(key)
        for end in self._pairs.pop(key)[1:]:
            end.close()
        with contextlib.suppress(LinkLost):
            await self._keeper.call({"op": "drop", "name": f"{fd_store.ADOPTION}{key}"})

    def close_pair(self, key: str) -> None:
        """Close the server's empty adoption pair, and drop the keeper's copy. `open` can create another pair."""
        for end in self._pairs.pop(key, ("",))[1:]:
            end.close()
        self._keeper.send({"op": "drop", "name": f"{fd_store.ADOPTION}{key}"})

    async def close_all(self) -> None:
        await asyncio.gather(*(self.close(key) for key in list(self._pairs)))
