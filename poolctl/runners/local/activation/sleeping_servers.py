"""The sleeping servers of a local runner, and the connections that are held for them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Mapping

from poolctl.config import ServerConfig
from poolctl.keeper import fd_store, wire
from poolctl.keeper.connection_handover import Connection, from_message
from poolctl.platform import close_promptly

from ...process_link import HasDescriptor, Link
from ..local_worker import LocalWorker
from ..passed_pairs import PassedPairs
from ..server_sockets import AdoptionPairs, Sockets
from .accept_helper import AcceptHelper
from .activator import Activator, SleepingListener


class SleepingServers:
    """The sleeping servers of a runner, watched by one activator.

    Held connections are also stored in the keeper until a worker gets them.
    """

    def __init__(
        self, keeper: Link, sockets: Sockets, adoptions: AdoptionPairs, passed: PassedPairs, directory: str
    ) -> None:
        self._keeper = keeper
        self._passed = passed
        self._sockets = sockets
        self._adoptions = adoptions
        self._servers: dict[str, ServerConfig] = {}
        self._numbers = itertools.count(os.getpid() << 32)  # different from a successor's
        self._accept_helper = AcceptHelper(keeper, directory, self._return)
        self._activator = Activator(self, self._accept_helper)

    def arm(self, server: ServerConfig, on_request: Callable[[], None]) -> None:
        """Watch the server's listeners, and the connections that its workers left, for the first request."""
        self._servers[server.key] = server
        # A program takes connections from the listener only.
        accepts = not server.command
        if accepts and self._passed.uses(server.key):
            self._adoptions.open(server)
        left = self._adoptions.left(server.key) if accepts else None
        sleeping = SleepingListener(
            server.key,
            self._sockets.of(server),
            on_request,
            accepts=accepts,
            shared=self._sockets.shared(server.key),
            tls=bool(server.tls),
            left=left,
            quiet_seconds=server.http.keep_alive,
            head_seconds=server.http.head_timeout,
        )
        self._activator.arm(sleeping)

    def tidy(self, key: str, workers: Iterable[LocalWorker]) -> None:
        """Drop the sleeping server's pair once the pair is empty and the server's workers have exited.

        With a route it keeps the pair: a connection that a gateway puts into it wakes the server.
        """
        if not self._activator.armed(key) or self._passed.uses(key):
            return
        if all(worker.exited.done() for worker in workers):
            # Once the pair is empty no further connections come through it.
            self._activator.clear(key)

    def keep_pair(self, key: str) -> None:
        """Watch the adoption pair of a sleeping server that has been given a route."""
        if (left := self._adoptions.left(key)) is not None:
            self._activator.watch_pair(key, left)

    def disarm(self, key: str) -> None:
        """Stop watching. The server's next workers take all connections."""
        self._activator.disarm(key)

    def dismiss(self, key: str) -> None:
        """Close all connections that wait for a worker of the server."""
        self._activator.dismiss(key)
        self._adoptions.empty(key)

    def close(self, key: str) -> None:
        """Forget the server and close the connections that are held for it."""
        self._activator.forget(key)
        self._servers.pop(key, None)

    def close_all(self) -> None:
        """Forget all servers."""
        self._activator.close()
        self._accept_helper.close()

    def adopt(
        self, servers: Mapping[str, ServerConfig], number: str, meta: wire.Message, fds: list[int]
    ) -> list[HasDescriptor]:
        """Adopt a connection that the previous supervisor held: it goes to the pair, like all that wait."""
        server = servers.get(meta["key"])
        try:
            sock = from_message(meta, fds)
        except wire.WireError:  # its client has gone
            self.forget(f"{fd_store.HELD_CONNECTION}{number}")
            return []
        try:
            self.forget(f"{fd_store.HELD_CONNECTION}{number}")
            if server is not None:
                self._servers[server.key] = server
                self.give(server.key, sock)
        finally:
            close_promptly(sock.detach())
        return []

    def adopt_acceptor(
        self, servers: Mapping[str, ServerConfig], meta: wire.Message, fd: int
    ) -> list[HasDescriptor]:
        """Adopt the previous supervisor's accept helper; `servers` are the servers it may have accepted for."""
        self._servers.update(servers)
        return self._accept_helper.adopt(meta, fd)

    def _return(self, key: str, sock: Connection) -> None:
        try:
            if key in self._servers and not self._activator.hold(key, sock):
                self.give(key, sock)
        finally:
            close_promptly(sock.detach())

    def give(self, key: str, sock: Connection) -> bool:
        """See Handoff."""
        self._adoptions.open(self._servers[key])
        return self._adoptions.give(key, sock)

    def keep(self, key: str, sock: Connection) -> str:
        """See Handoff."""
        name = f"{fd_store.HELD_CONNECTION}{next(self._numbers)}"
        try:
            part, fds = sock.message()
        except OSError:
            return ""  # out of descriptors: held, but it does not survive this process
        try:
            self._keeper.send({"op": "put", "name": name, "meta": {"key": key, **part}}, [sock, *fds[1:]])
        except OSError:
            return ""
        finally:
            for fd in fds[1:]:
                os.close(fd)
        return name

    def forget(self, name: str) -> None:
        """See Handoff."""
        self._keeper.send({"op": "drop", "name": name})

    def emptied(self, key: str) -> None:
        """See Handoff."""
        if self._passed.uses(key):
            self.keep_pair(key)
        else:
            self._adoptions.drop(key)
