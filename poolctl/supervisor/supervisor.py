"""The supervisor's process: its link to the keeper, the pool that it manages, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from poolctl import bootstrap
from poolctl.control.pool_paths import make_private, state_dir
from poolctl.keeper import fd_store, wire
from poolctl.platform import release_freed_memory
from poolctl.runners.process_link import KeeperLink, LinkLost, Receiver

from .active_configuration import ConfigurationReader
from .managed_pool import ManagedPool
from .runtime_files import RuntimeFiles
from .takeover.keeper_replacement import KeeperEndWatch, replace_keeper

if TYPE_CHECKING:
    from types import FrameType

    from poolctl.child_process import ChildProcess

KEEPER_FD = 3
# Longer than it takes to detect that the keeper does not answer, and to kill it.
_END_SECONDS = 15.0
# By this time memory that a start of many servers needs briefly has been freed.
_AFTER_START_SECONDS = 10.0

logger = logging.getLogger("poolctl.supervisor")


class Supervisor(Receiver):
    """Runs one pool. A calm supervisor only adopts the running workers and serves commands.

    `reader` is the process that reads the files for it, if it was started.
    """

    def __init__(
        self, directory: str, files: Sequence[str], *, calm: bool = False, reader: ChildProcess | None = None
    ) -> None:
        self._calm = calm
        self._reader = reader
        self.directory = directory
        self.files = list(files)
        self._runtime_files = RuntimeFiles(directory, files)
        self._begun = self._terminating = self._replacing = False

    async def run(self) -> int:
        """Manage the pool until it is stopped, or until its files turn out to be invalid; the exit status."""
        self._hello: asyncio.Future[wire.Message] = asyncio.get_running_loop().create_future()
        self._early_exits: list[wire.Message] = []
        keeper = KeeperLink(socket.socket(fileno=KEEPER_FD), self)
        self._keeper = keeper
        hello = await self._hello
        KeeperEndWatch(int(hello["pid"]), self._replace_keeper)
        with contextlib.suppress(OSError):
            make_private(self.directory)
        reader = ConfigurationReader(self.directory, self._reader)
        self._pool = ManagedPool(
            self.directory,
            self.files,
            state_dir(os.environ, os.path.basename(self.directory), create=True),
            keeper,
            hello,
            self._runtime_files,
            reader,
            calm=self._calm,
        )
        _, fds = await keeper.call({"op": "get", "name": fd_store.CONTROL})
        listener = socket.socket(fileno=fds[0])
        await self._pool.begin(listener)
        self._runtime_files.publish(self._pool.name, int(hello["pid"]))
        for report in self._early_exits:
            self._pool.exit_reported(report)
        self._begun = True
        if self._terminating:
            self._terminate()
        # From now on the keeper can be replaced from the state in this process.
        with contextlib.suppress(LinkLost):
            await keeper.complete()
            keeper.send({"op": "adopted"})
        asyncio.get_running_loop().call_later(_AFTER_START_SECONDS, release_freed_memory)
        await self._pool.over.wait()
        if self._pool.replacement is not None:
            await self._replace(*self._pool.replacement)
        self._runtime_files.withdraw()
        await self._pool.end()
        reader.close()
        # Awaited: a keeper that has not received it starts the next supervisor.
        with contextlib.suppress(LinkLost, TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await keeper.call({"op": "end"})
        return 0

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """See Receiver: a message of the keeper."""
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
            self._terminating = True
            if self._begun:
                self._terminate()
            else:
                self._keeper.send({"op": "terminating"})
                if hasattr(self, "_pool"):
                    self._pool.stop_reading()

    def _terminate(self) -> None:
        # The keeper ends the pool by itself if that takes longer than it may.
        self._keeper.send({"op": "terminating", "seconds": self._pool.stop_seconds})
        self._pool.terminate()

    async def _replace(self, keeper: list[str], supervisor: list[str]) -> NoReturn:
        """Let the keeper execute another version of itself, which starts a supervisor of its own."""
        logger.info("another version takes over: %s", supervisor)
        self._pool.save()
        # It would fork this build's gateways, and an earlier version would not know it.
        self._keeper.send({"op": "drop", "name": fd_store.GATEWAY_ZYGOTE})
        for name, (meta, _) in [*self._keeper.entries.items()]:
            if isinstance(meta, dict) and "mark" in meta:
                # Another build may have the same version: the successor replaces the process in any case.
                self._keeper.send({"op": "note", "name": name, "meta": {**meta, "mark": ""}})
        order = {
            "op": "renew",
            "argv": [*keeper, self.directory],
            "supervisor": [*supervisor, self.directory, *self.files],
        }
        with contextlib.suppress(LinkLost):
            await self._keeper.call(order)
        # The successor does everything from here on.
        logging.shutdown()
        os._exit(0)

    def lost(self) -> None:
        """See Receiver: the keeper has ended."""
        if self._runtime_files.withdrawn:
            self._pool.over.set()
            return
        # This process does no more work from here on; the successor does the rest.
        if self._keeper.whole:
            logger.error("the keeper is gone; another one is started")
            self._pool.events.record("pool", "keeper lost", message="another one is started")
            self._pool.save()
        self._replace_keeper()

    def _replace_keeper(self, hung_at: FrameType | None = None) -> None:
        """Give everything to another keeper and exit; `hung_at` is where this process hangs."""
        if self._replacing or self._runtime_files.withdrawn:
            return
        self._replacing = True
        if self._keeper.whole:
            command = bootstrap.command(sys.executable, "supervisor", self.directory, *self.files)
            replace_keeper(self.directory, command, self._keeper.held(), terminate=self._terminating)
        # Logging itself may be the cause of the hang.
        if hung_at is not None:
            stack = "".join(traceback.format_stack(hung_at))
            logger.error("the keeper ended while this process hung here:\n%s", stack)
        if not self._keeper.whole:
            logger.error("the keeper is gone, and not everything is known here that it held")
        logging.shutdown()
        os._exit(0 if self._keeper.whole else 1)
