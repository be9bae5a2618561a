"""Servers that sleep: the runner watches their listeners, and the first request wakes them."""

from __future__ import annotations

import asyncio
from functools import partial

from poolctl.errors import ServerError
from poolctl.runners.protocol import Runner, WorkerFailed

from .events import caused_by
from .state import Entry, Worker
from .view import Phase
from .workqueue import Workqueue


class Activation:
    """Notes in the entry that a request has come for it."""

    def __init__(self, runner: Runner, queue: Workqueue) -> None:
        self._runner = runner
        self._sleep = runner.capabilities.sleep
        self._queue = queue

    def arm(self, entry: Entry) -> None:
        """Watch the entry's listener for the first request."""
        assert self._sleep is not None, "entries are sleepy only with a runner that can watch listeners"
        entry.armed = entry.config
        self._sleep.arm(entry.config, partial(self._called, entry))
        self.preload(entry)

    def disarm(self, entry: Entry) -> None:
        """Stop watching; the workers that come take the waiting connections."""
        if entry.armed is not None:
            if self._sleep is not None:
                self._sleep.disarm(entry.armed.key)
            entry.armed = None

    def idle_after(self, worker: Worker, seconds: float) -> None:
        """Have the worker report when it has had no traffic for so long."""
        if self._sleep is not None and worker.placement is not None:
            self._sleep.idle_after(worker.placement, seconds)

    def preload(self, entry: Entry) -> None:
        """Import the current application of a sleeping server, so that waking it takes only a fork."""
        if entry.config.preload:
            self._queue.run(self._preload(entry))

    async def _preload(self, entry: Entry) -> None:
        try:
            entry.preload_problem = await self._runner.prepare(entry.config, entry.code_since)
        except (ServerError, WorkerFailed, OSError):
            # Its next start reports the problem; until then it is in the server's log.
            return
        self._queue.note(entry)

    def _called(self, entry: Entry) -> None:
        entry.armed = None
        entry.called = True
        loop = asyncio.get_running_loop()
        loop.call_later(entry.config.start_timeout, self._give_up, entry, entry.newest)
        with caused_by("a request"):
            self._queue.touch(entry, progressed=True)

    def _give_up(self, entry: Entry, newest: int) -> None:
        """Close the connections that wait for a wake that has failed; later ones wait for the next attempt."""
        if entry.newest != newest or entry.ready or entry.armed is not None:
            return
        coming = [each for each in entry.workers.values() if each.phase in (Phase.PLACING, Phase.STARTING)]
        for worker in coming[:1]:
            # It has begun: no connection is closed before that attempt is over.
            assert worker.task is not None
            worker.task.add_done_callback(partial(self._came_to_nothing, entry, worker, newest))
            return
        if self._sleep is not None:
            self._sleep.dismiss(entry.config.key)

    def _came_to_nothing(self, entry: Entry, worker: Worker, newest: int, ended: asyncio.Task[None]) -> None:
        if worker.ready_at is None:
            self._give_up(entry, newest)
