"""Workers that are seen off: told to leave, drained, and stopped within their server's `stop_timeout`."""

from __future__ import annotations

import signal
from collections.abc import Callable

from poolctl.errors import PoolStopError
from poolctl.runners.protocol import Runner
from poolctl.units import format_duration

from .decide import Phase
from .exits import Deaths
from .state import Entry, Worker


class Retiring:
    """Shows in the entry what came of it; `touch` is told."""

    def __init__(self, runner: Runner, deaths: Deaths, touch: Callable[[Entry], None]) -> None:
        self._runner = runner
        self._deaths = deaths
        self._touch = touch

    async def drain(self, entry: Entry, worker: Worker, *, replaced: bool = False) -> None:
        """Let the worker finish what it has, then end it; `replaced`: another takes over its connections."""
        assert worker.placement is not None
        replaced = replaced or _is_replaced(entry, worker)
        await self._runner.leave(worker.placement, replaced=replaced)
        worker.left = True
        self._touch(entry)
        await self._runner.drain(worker.placement, replaced=replaced)
        if worker.id in entry.workers:
            await self.stop(entry, worker, replaced=replaced)

    async def stop(
        self, entry: Entry, worker: Worker, limit_seconds: float | None = None, *, replaced: bool = False
    ) -> None:
        """End the worker, killed after the limit; without one after its server's `stop_timeout`."""
        assert worker.placement is not None
        limit = worker.config.stop_timeout if limit_seconds is None else limit_seconds
        try:
            exit_ = await self._runner.stop(worker.placement, limit, replaced=replaced)
        except TimeoutError:
            self._deaths.note(
                entry, "could not be ended, not even by SIGKILL", "see what it waits for", PoolStopError
            )
            self._touch(entry)
            return
        if exit_.signal == signal.SIGKILL:
            entry.warnings.append(f"{entry.name}: had to be killed after {format_duration(limit)}")


def _is_replaced(entry: Entry, worker: Worker) -> bool:
    """Whether another worker takes over the connections that this one has."""
    return any(
        each.phase is Phase.READY
        and each.config.key == worker.config.key
        and bool(each.config.tls) is bool(worker.config.tls)
        for each in entry.workers.values()
    )
