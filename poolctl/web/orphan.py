"""A dashboard that has lost keeper and supervisor: it keeps serving until a new pool takes its listener over."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

from poolctl.keeper import rendezvous, wire

_LOOK_SECONDS = 5.0
# A pool that is started again finds its workers within that time, and then this.
_LOOKS = 6


class Orphan:
    """Can be found under the pool's directory. `taken` is awaited."""

    def __init__(self, directory: str, bind: str, sockets: Sequence[socket.socket]) -> None:
        self._directory = directory
        self._bind = bind
        self._sockets = sockets
        self._listener, self._path = rendezvous.bind(directory, rendezvous.DASHBOARD)
        self._listener.listen()
        self._over = asyncio.Event()

    async def taken(self) -> None:
        """Return when a new pool has the listener, or when nothing of the pool has been left for half a minute."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener.fileno(), self._asked)
        alone = 0
        try:
            while not self._over.is_set() and alone < _LOOKS:
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._over.wait()
                except TimeoutError:
                    served = rendezvous.find(self._directory, rendezvous.WORKER)
                    alone = 0 if served else alone + 1
        finally:
            loop.remove_reader(self._listener.fileno())
            self._listener.close()
            rendezvous.forget(self._path)

    def _asked(self) -> None:
        connection = rendezvous.accept(self._listener, {0, os.geteuid()})
        if connection is None:
            return
        with connection:
            connection.settimeout(1.0)
            try:
                wire.send(
                    connection,
                    {"t": "dashboard", "bind": self._bind},
                    [sock.fileno() for sock in self._sockets],
                )
            except (OSError, wire.WireError):
                return
            answer = rendezvous.receive(connection)
        if answer is not None and answer[0].get("t") == "taken":
            self._over.set()
