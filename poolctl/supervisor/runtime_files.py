"""The files by which a running pool is found: `info.json`, and a link of the pool's name."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence

from poolctl import __version__
from poolctl.control.directory import SOCKET_NAME, make_private
from poolctl.keeper import rendezvous

logger = logging.getLogger("poolctl.supervisor")


class RuntimeFiles:
    """Writes them into the pool's runtime directory, until they are withdrawn."""

    def __init__(self, directory: str, files: Sequence[str]) -> None:
        self._directory = directory
        self._files = list(files)
        self._started = time.time()
        self._keeper_pid = 0
        self._name = ""
        self.withdrawn = False
        self.complete = True

    def publish(self, name: str, keeper_pid: int) -> None:
        """Make the pool known by this name, and no longer by the one before; if that fails, `complete` is False."""
        if self.withdrawn:
            return
        before = self.complete
        try:
            self._write(name, keeper_pid)
        except OSError as error:
            self.complete = False
            if before:
                logger.warning("cannot write the pool's runtime files: %s", error)

    def _write(self, name: str, keeper_pid: int) -> None:
        if self._name not in ("", name):
            self._unlink_name()
        self._name, self._keeper_pid = name, keeper_pid
        info = {
            "name": name,
            "files": self._files,
            "keeper_pid": keeper_pid,
            "supervisor_pid": os.getpid(),
            "started": self._started,
            "version": __version__,
        }
        path = os.path.join(self._directory, "info.json")
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(info, file)
        # A reader finds the old or the new content whole.
        os.replace(f"{path}.new", path)
        self.complete = True
        self._link_name()

    def rename(self, name: str) -> None:
        """Make the pool known by another name."""
        if self._name and name != self._name:
            self.publish(name, self._keeper_pid)

    def republish(self) -> None:
        """Write the files again, if they have vanished."""
        if self._name:
            self.publish(self._name, self._keeper_pid)

    def withdraw(self) -> None:
        """Remove the files; only once, because later they may be those of another supervisor."""
        if self.withdrawn:
            return
        self.withdrawn = True
        for name in (SOCKET_NAME, "info.json"):
            try:
                os.unlink(os.path.join(self._directory, name))
            except OSError:
                continue
        self._unlink_name()
        rendezvous.sweep(self._directory)

    def _link_name(self) -> None:
        key = os.path.basename(self._directory)
        link = self._link()
        try:
            if os.path.islink(link) and not os.path.exists(os.path.join(link, SOCKET_NAME)):
                os.unlink(link)
            os.symlink(key, link)
        except OSError as error:
            if not os.path.islink(link) or os.readlink(link) != key:
                logger.warning("the name %r is not available: %s", self._name, error)

    def _unlink_name(self) -> None:
        link = self._link()
        if os.path.islink(link) and os.readlink(link) == os.path.basename(self._directory):
            os.unlink(link)

    def _link(self) -> str:
        return os.path.join(os.path.dirname(self._directory), f"@{self._name}")


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
