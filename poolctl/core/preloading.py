"""Applications of `preload` servers, imported where their workers are forked from; what is said where that fails."""

from __future__ import annotations

import asyncio

from poolctl.errors import ServerError
from poolctl.runners.protocol import Runner, WorkerFailed

from .decide import Phase
from .state import Entry, Worker


class Preloading:
    """Asks the runner for it, and shows in the entry why it is of no use."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._under_way: set[asyncio.Task[None]] = set()

    async def prepare(self, entry: Entry, worker: Worker) -> bool:
        """Have the application imported before the worker is placed; False if the worker is not wanted any more.

        Raises ServerError or WorkerFailed, as the runner does.
        """
        worker.preparing = asyncio.ensure_future(self._runner.prepare(worker.config, entry.code_since))
        await asyncio.wait({worker.preparing})
        if worker.preparing.cancelled():
            return False
        entry.preload_problem = worker.preparing.result()
        warning = f"{entry.name}: preload = true has no effect: {entry.preload_problem}"
        if entry.preload_problem and warning not in entry.warnings:
            entry.warnings.append(warning)
        return worker.phase is Phase.PLACING

    def give_up(self, worker: Worker) -> None:
        """The worker is not wanted any more."""
        if worker.preparing is not None:
            worker.preparing.cancel()

    def ahead(self, entry: Entry) -> None:
        """Have the application of a server that sleeps imported, so that it wakes by a fork."""
        if entry.config.preload:
            task = asyncio.ensure_future(self._prepare_ahead(entry))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _prepare_ahead(self, entry: Entry) -> None:
        try:
            entry.preload_problem = await self._runner.prepare(entry.config, entry.code_since)
        except (ServerError, WorkerFailed, OSError):
            # Whoever wakes it will hear of it; until then it is in the server's log.
            return
