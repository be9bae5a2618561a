"""Stops workers of this machine, and kills those that do not exit in time."""

from __future__ import annotations

import asyncio
import signal

from ...link import Link
from ...protocol import Exit
from . import worker_commands
from .adoption_pairs import AdoptionPairs
from .local_worker import LocalWorker

_KILL_SECONDS = 5.0


class Stopping:
    """Tells workers to leave, drain and stop (see Runner); None is a worker that has exited."""

    def __init__(self, keeper: Link, adoptions: AdoptionPairs) -> None:
        self._keeper = keeper
        self._adoptions = adoptions
        self._killing: set[asyncio.Task[None]] = set()

    async def leave(self, worker: LocalWorker | None, *, replaced: bool = True) -> None:
        """See Runner. A command may go on accepting."""
        if worker is None or worker.left.done():
            return
        if worker.control is None:
            await self._signal(worker, signal.SIGTERM)
            worker.leave()
        else:
            worker_commands.part(
                worker, "drain", self._adoptions.protocol(worker.server.key) if replaced else None
            )
        await asyncio.wait({worker.left}, timeout=worker.server.drain_timeout)

    async def drain(self, worker: LocalWorker | None, *, replaced: bool = True) -> None:
        """See Runner."""
        if worker is not None:
            until = asyncio.get_running_loop().time() + worker.server.drain_timeout
            await self.leave(worker, replaced=replaced)
            await asyncio.wait({worker.exited}, timeout=until - asyncio.get_running_loop().time())

    async def stop(
        self, worker: LocalWorker | None, timeout_seconds: float, *, replaced: bool = False
    ) -> Exit:
        """See Runner."""
        if worker is None:
            return Exit(message="has ended before")
        worker_commands.part(
            worker, "stop", self._adoptions.protocol(worker.server.key) if replaced else None
        )
        if worker.control is None or not worker.answered.done():
            # One that is still importing its application does not read commands.
            await self._signal(worker, signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(worker.exited)
        except TimeoutError:
            await self._kill(worker)
            async with asyncio.timeout(_KILL_SECONDS):
                return await asyncio.shield(worker.exited)

    def kill_soon(self, worker: LocalWorker) -> None:
        """Kill the worker and the processes of its session, without waiting for its exit."""
        task = asyncio.ensure_future(self._kill(worker))
        self._killing.add(task)
        task.add_done_callback(self._killing.discard)

    async def _kill(self, worker: LocalWorker) -> None:
        await self._signal(worker, signal.SIGKILL, group=True)

    async def _signal(self, worker: LocalWorker, number: int, *, group: bool = False) -> None:
        pid, start = worker.placement.pid, worker.start
        await worker_commands.signal(self._keeper, pid, start, worker.exited, number, group=group)
