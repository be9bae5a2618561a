"""By what a running pool is found: the file that says who serves it, and its name."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Sequence

from poolctl import __version__
from poolctl.control.directory import SOCKET_NAME
from poolctl.keeper import rendezvous

logger = logging.getLogger("poolctl.supervisor")


class Presence:
    """What is in the pool's runtime directory for others to see, until it is withdrawn."""

    def __init__(self, directory: str, files: Sequence[str]) -> None:
        self._directory = directory
        self._files = list(files)
        self._started = time.time()
        self._keeper_pid = 0
        self._name = ""
        self.withdrawn = False
        self.complete = True

    def show(self, name: str, keeper_pid: int) -> None:
        """Be found by this name, and not by the one before; what cannot be written now leaves it incomplete."""
        if self.withdrawn:
            return
        before = self.complete
        try:
            self._show(name, keeper_pid)
        except OSError as error:
            self.complete = False
            if before:
                logger.warning("what runs here cannot be written down: %s", error)

    def _show(self, name: str, keeper_pid: int) -> None:
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
        # Whoever reads meanwhile finds the whole of the one or of the other.
        os.replace(f"{path}.new", path)
        self.complete = True
        self._link_name()

    def rename(self, name: str) -> None:
        """Be found by another name, if it is one."""
        if self._name and name != self._name:
            self.show(name, self._keeper_pid)

    def renew(self) -> None:
        """Be found again, if what says so has vanished."""
        if self._name:
            self.show(self._name, self._keeper_pid)

    def withdraw(self) -> None:
        """Be found no more. Once: soon the files may be those of another supervisor."""
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
