"""The servers that sleep, watched by the runner: what wakes them, and who waits in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from poolctl.runners.protocol import Runner

from .audit_context import ordered
from .decide import Phase
from .state import Entry, Worker


class Waking:
    """Shows in the entry that somebody asks for it; `touch` is told."""

    def __init__(self, runner: Runner, touch: Callable[[Entry], None]) -> None:
        self._runner = runner
        self._touch = touch

    def arm(self, entry: Entry) -> None:
        """Watch the entry's listener for the first request."""
        entry.armed = entry.config
        self._runner.arm(entry.config, partial(self._called, entry))

    def disarm(self, entry: Entry) -> None:
        """Watch for no request any more; who is connected is left to the workers that come."""
        if entry.armed is not None:
            self._runner.disarm(entry.armed.key)
            entry.armed = None

    def _called(self, entry: Entry) -> None:
        entry.armed = None
        entry.called = True
        loop = asyncio.get_running_loop()
        loop.call_later(entry.config.start_timeout, self._give_up, entry, entry.newest)
        with ordered("a request"):
            self._touch(entry)

    def _give_up(self, entry: Entry, newest: int) -> None:
        """Close the connections that wait for a wake that has failed; later ones wait for the next attempt."""
        if entry.newest != newest or entry.ready or entry.armed is not None:
            return
        coming = [each for each in entry.workers.values() if each.phase in (Phase.PLACING, Phase.STARTING)]
        for worker in coming[:1]:
            # It has begun: nobody is sent away before it has had its time.
            assert worker.task is not None
            worker.task.add_done_callback(partial(self._came_to_nothing, entry, worker, newest))
            return
        self._runner.dismiss(entry.config.key)

    def _came_to_nothing(self, entry: Entry, worker: Worker, newest: int, ended: asyncio.Task[None]) -> None:
        if worker.ready_at is None:
            self._give_up(entry, newest)
