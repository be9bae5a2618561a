"""The supervisor's own life: link to the keeper, configuration, engine, control socket, end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence

from poolctl import __version__, bootstrap
from poolctl.control.directory import SOCKET_NAME, state_dir
from poolctl.keeper import wire
from poolctl.runners.kept import KeeperLink
from poolctl.runners.link import LinkLost

from .pool import ManagedPool
from .rescue import rescue

KEEPER_FD = 3
_END_SECONDS = 5.0

logger = logging.getLogger("poolctl.supervisor")


class Supervisor:
    """One pool. `run` returns its exit status."""

    def __init__(self, directory: str, files: Sequence[str]) -> None:
        self.directory = directory
        self.files = list(files)
        self.started = time.time()
        self._begun = self._told_to_end = self._removed = self._whole = False

    async def run(self) -> int:
        """Serve the pool until it is stopped, or until its files turn out to be invalid."""
        self._over = asyncio.Event()
        self._hello: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()
        self._early_exits: list[wire.Message] = []
        keeper = KeeperLink(socket.socket(fileno=KEEPER_FD), self._from_keeper, self._keeper_lost)
        self._keeper = keeper
        hello = await self._hello
        self._pool = ManagedPool(
            self.directory, self.files, self._state_dir(), keeper, hello, self._remove_files, self._over.set
        )
        _, fds = await keeper.call({"op": "get", "name": "control"})
        listener = socket.socket(fileno=fds[0])
        await self._pool.begin(listener)
        self._write_info(hello["pid"])
        for report in self._early_exits:
            self._pool.exit_reported(report)
        self._begun = True
        if self._told_to_end:
            self._pool.terminate()
        await self._adopted(keeper)
        await self._over.wait()
        self._remove_files()
        await self._pool.end()
        # Waited for: a keeper that has not heard it starts the next supervisor.
        with contextlib.suppress(LinkLost, TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await keeper.call({"op": "end"})
        return 0

    async def _adopted(self, keeper: KeeperLink) -> None:
        """From now on another keeper can be made of what is known here."""
        with contextlib.suppress(LinkLost):
            await keeper.complete()
            self._whole = True
            keeper.send({"op": "adopted"})

    def _from_keeper(self, message: wire.Message, fds: list[int]) -> None:
        event = message.get("event")
        if event == "hello":
            self._hello.set_result(message)
        elif event == "exit":
            if hasattr(self, "_pool"):
                self._pool.exit_reported(message)
            else:
                self._early_exits.append(message)
        elif event == "ping":
            self._keeper.send({"op": "pong"})
        elif event == "terminate":
            self._told_to_end = True
            self._keeper.send({"op": "terminating"})
            if self._begun:
                self._pool.terminate()

    def _keeper_lost(self) -> None:
        if self._removed or self._over.is_set():
            self._over.set()
            return
        # Nothing else happens in this process from here on: what it does not do, its successor will.
        if self._whole:
            logger.error("the keeper is gone; another one is started")
            self._pool.remember()
            command = bootstrap.command(sys.executable, "supervisor", self.directory, *self.files)
            rescue(self.directory, command, self._keeper.entries, terminate=self._told_to_end)
        else:
            logger.error("the keeper is gone, and not everything is known here that it held")
        logging.shutdown()
        os._exit(0 if self._whole else 1)

    def _state_dir(self) -> str:
        return state_dir(os.environ, os.path.basename(self.directory), create=True)

    def _write_info(self, keeper_pid: int) -> None:
        info = {
            "name": self._pool.name,
            "files": self.files,
            "keeper_pid": keeper_pid,
            "supervisor_pid": os.getpid(),
            "started": self.started,
            "version": __version__,
        }
        path = os.path.join(self.directory, "info.json")
        with open(f"{path}.new", "w", encoding="utf-8") as file:
            json.dump(info, file)
        # Whoever reads meanwhile finds the whole of the one or of the other.
        os.replace(f"{path}.new", path)
        self._link_name()

    def _link_name(self) -> None:
        root, key = os.path.split(self.directory)
        link = os.path.join(root, f"@{self._pool.name}")
        try:
            if os.path.islink(link) and not os.path.exists(os.path.join(link, SOCKET_NAME)):
                os.unlink(link)
            os.symlink(key, link)
        except OSError as error:
            if not os.path.islink(link) or os.readlink(link) != key:
                logger.warning("the name %r is not available: %s", self._pool.name, error)

    def _remove_files(self) -> None:
        # Once: soon they may be those of another supervisor.
        if self._removed:
            return
        self._removed = True
        root, key = os.path.split(self.directory)
        link = os.path.join(root, f"@{self._pool.name}")
        for path in (os.path.join(self.directory, SOCKET_NAME), os.path.join(self.directory, "info.json")):
            try:
                os.unlink(path)
            except OSError:
                continue
        if os.path.islink(link) and os.readlink(link) == key:
            os.unlink(link)
