"""Restores the runtime directory of a running pool that vanishes, by a cleaner of /tmp or at a logout."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import Awaitable, Callable

from poolctl.control.directory import SOCKET_NAME, make_private

from .runtime_files import RuntimeFiles

_CHECK_SECONDS = 1.0

logger = logging.getLogger("poolctl.supervisor")


class RuntimeWatch:
    """Checks that the pool can be found, until its runtime files are withdrawn.

    `listen` gets another control socket when there is none at its path any more; `again` writes what else belongs into
    the directory.
    """

    def __init__(
        self,
        directory: str,
        runtime_files: RuntimeFiles,
        listen: Callable[[socket.socket], Awaitable[None]],
        again: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._runtime_files = runtime_files
        self._listen = listen
        self._again = again
        self._failure = ""

    async def watch(self) -> None:
        """Check once a second."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            if self._runtime_files.withdrawn:
                return
            if not self._is_found():
                await self._restore()
            elif not self._runtime_files.complete:
                self._runtime_files.republish()

    def _is_found(self) -> bool:
        return all(os.path.lexists(f"{self._directory}/{name}") for name in (SOCKET_NAME, "info.json"))

    async def _restore(self) -> None:
        try:
            make_private(self._directory)
            listener = self._listener()
            if listener is not None:
                await self._listen(listener)
            self._runtime_files.republish()
            self._again()
        except OSError as error:
            if str(error) != self._failure:
                self._failure = str(error)
                logger.error("the pool's runtime directory has vanished and cannot be restored: %s", error)
            return
        self._failure = ""
        if self._runtime_files.complete:
            logger.warning("%s had vanished, at least in part, and was restored", self._directory)

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
