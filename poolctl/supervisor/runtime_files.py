"""The files by which a running pool is found: its control socket, `info.json`, and a link of the pool's name.

A cleaner of /tmp or a logout may remove them while the pool runs; then they are written again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence

from poolctl import __version__
from poolctl.control.pool_paths import SOCKET_NAME, make_private
from poolctl.keeper import pool_files
from poolctl.logs.log_tail import REMOVALS, DirectoryWatch
from poolctl.platform import replace_file

_CHECK_SECONDS = 1.0
# For what inotify(7) does not report: a directory above was renamed.
_SELDOM_SECONDS = 60.0

logger = logging.getLogger("poolctl.supervisor")


class RuntimeFiles:
    """Written into the pool's runtime directory, until they are withdrawn."""

    def __init__(self, directory: str, files: Sequence[str]) -> None:
        self._directory = directory
        self._files = list(files)
        self._started = time.time()
        self._keeper_pid = 0
        self._name = ""
        self._failure = ""
        self._complete = True
        self.withdrawn = False

    def publish(self, name: str, keeper_pid: int) -> None:
        """Make the pool known by this name, and no longer by its previous name; a failure is logged."""
        if self.withdrawn:
            return
        before = self._complete
        try:
            self._write(name, keeper_pid)
        except OSError as error:
            self._complete = False
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
        replace_file(os.path.join(self._directory, "info.json"), json.dumps(info).encode())
        self._complete = True
        self._link_name()

    def rename(self, name: str) -> None:
        """Make the pool known by another name."""
        if self._name and name != self._name:
            self.publish(name, self._keeper_pid)

    async def restored(self) -> AsyncIterator[socket.socket | None]:
        """Watch the files until they are withdrawn; yields each time that they had vanished and are back.

        The value is another control socket to listen on, None if the old socket is still there.
        """
        while True:
            await self._removal()
            # Continue after a removal, because there may be further ones.
            await asyncio.sleep(_CHECK_SECONDS)
            if self.withdrawn:
                return
            if self._are_there():
                if not self._complete:
                    self._republish()
                continue
            try:
                make_private(self._directory)
                listener = self._missing_listener()
                self._republish()
            except OSError as error:
                if str(error) != self._failure:
                    self._failure = str(error)
                    logger.error(
                        "the pool's runtime directory has vanished and cannot be restored: %s", error
                    )
                continue
            yield listener
            self._failure = ""
            if self._complete:
                logger.warning("%s had vanished, at least in part, and was restored", self._directory)

    async def _removal(self) -> None:
        """Return when files may have vanished; at once where that is not reported, or where some are missing."""
        loop, removed = asyncio.get_running_loop(), asyncio.Event()
        with contextlib.suppress(OSError, TimeoutError), DirectoryWatch() as watch:
            watch.add(self._directory, REMOVALS)
            loop.add_reader(watch.fd, removed.set)
            try:
                if self._complete and self._are_there():
                    async with asyncio.timeout(_SELDOM_SECONDS):
                        await removed.wait()
            finally:
                loop.remove_reader(watch.fd)

    def _are_there(self) -> bool:
        return all(os.path.lexists(f"{self._directory}/{name}") for name in (SOCKET_NAME, "info.json"))

    def _republish(self) -> None:
        if self._name:
            self.publish(self._name, self._keeper_pid)

    def _missing_listener(self) -> socket.socket | None:
        from .launch import listen

        lock = os.open(f"{self._directory}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Another process that holds it is starting a pool here: then there is a socket at the next check.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path = f"{self._directory}/{SOCKET_NAME}"
            return None if os.path.lexists(path) else listen(path)
        finally:
            os.close(lock)

    def withdraw(self) -> None:
        """Remove the files; only once, because later files may belong to another supervisor."""
        if self.withdrawn:
            return
        self.withdrawn = True
        for name in (SOCKET_NAME, "info.json"):
            try:
                os.unlink(os.path.join(self._directory, name))
            except OSError:
                continue
        self._unlink_name()
        pool_files.sweep(self._directory)

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
