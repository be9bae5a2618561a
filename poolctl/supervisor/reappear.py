"""A runtime directory that vanishes under a running pool, by a cleaner of /tmp or at a logout, is made again."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import Awaitable, Callable

from poolctl.control.directory import SOCKET_NAME, make_private

from .presence import Presence

_LOOK_SECONDS = 1.0

logger = logging.getLogger("poolctl.supervisor")


class Reappear:
    """Looks whether the pool can be found, until its presence is withdrawn.

    `listen` gets another control socket, when there is none at its path any more; `again` leaves there what else
    belongs there.
    """

    def __init__(
        self,
        directory: str,
        presence: Presence,
        listen: Callable[[socket.socket], Awaitable[None]],
        again: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._presence = presence
        self._listen = listen
        self._again = again
        self._failure = ""

    async def look(self) -> None:
        """Look once a second."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._presence.withdrawn:
                return
            if not self._is_found():
                await self._appear()
            elif not self._presence.complete:
                self._presence.renew()

    def _is_found(self) -> bool:
        return all(os.path.lexists(f"{self._directory}/{name}") for name in (SOCKET_NAME, "info.json"))

    async def _appear(self) -> None:
        try:
            make_private(self._directory)
            listener = self._listener()
            if listener is not None:
                await self._listen(listener)
            self._presence.renew()
            self._again()
        except OSError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                logger.error("the pool cannot be found any more, its directory cannot be made: %s", error)
            return
        self._failure = ""
        if self._presence.complete:
            logger.warning("%s had vanished, at least in parts: it is there again", self._directory)

    def _listener(self) -> socket.socket | None:
        from .launch import listen

        lock = os.open(f"{self._directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Who holds it is about to start a pool here: then there is a socket when we look again.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = f"{self._directory}/{SOCKET_NAME}"
            return None if os.path.lexists(path) else listen(path)
        finally:
            os.close(lock)
