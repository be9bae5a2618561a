"""Takes the stacks of hung workers before they are ended, and keeps the last ones of each server."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from poolctl.json_form import Table, to_json
from poolctl.runners.runner_protocol import Runner

from .server_changes import Recorder
from .server_entry import Entry, Worker

if TYPE_CHECKING:
    from poolctl.runners.stack_report import WorkerStacks

# No worker is ended later than this because of its stacks; an answer takes a few milliseconds.
SECONDS = 1.0
_ANSWER_SHARE = 0.9  # of this time, for the runner
# Limits of an event, and of the state given to a successor: about 50 KB at most.
_STACKS, _FRAMES = 20, 20
_MOST_SERVERS = 100

logger = logging.getLogger("poolctl.supervisor")


class StackReports:
    """Reads the stacks of workers from the runner, if it supports that."""

    def __init__(self, runner: Runner, recorder: Recorder) -> None:
        self._runner = runner
        self._recorder = recorder
        self._last: dict[str, WorkerStacks] = {}  # by the server's name

    @property
    def possible(self) -> bool:
        """Whether the runner supports stack reports."""
        return self._runner.capabilities.stacks is not None

    async def take(self, entry: Entry, worker: Worker) -> WorkerStacks | None:
        """The worker's stacks, or None if they are unknown. Takes at most SECONDS, and never raises."""
        stacks = self._runner.capabilities.stacks
        if stacks is None or worker.placement is None:
            return None
        try:
            async with asyncio.timeout(SECONDS):
                found = await stacks.stacks(worker.placement.id, SECONDS * _ANSWER_SHARE)
        except TimeoutError:
            return None
        except Exception:
            logger.exception("the stacks of worker %s cannot be taken", worker.id)
            return None
        found = found.shortened(_STACKS, _FRAMES)
        self._last.pop(entry.name, None)
        self._last[entry.name] = found
        if len(self._last) > _MOST_SERVERS:
            del self._last[next(iter(self._last))]
        return found

    async def start_timed_out(self, entry: Entry, worker: Worker, message: str) -> str:
        """Record the stacks of a worker that is not ready in time; returns the message with the place of the hang."""
        stacks = await self.take(entry, worker)
        if stacks is None:
            return message
        if stacks.place:
            message += f", in {stacks.place}"
        process: Table = {} if stacks.pid is None else {"pid": stacks.pid}
        self._recorder.record(
            "lifecycle",
            "start timed out",
            server=entry.name,
            bind=entry.config.key,
            message=f"worker {worker.id} {message}",
            worker=worker.id,
            **process,
            severity="info",
            stacks=[to_json(stacks)],
        )
        return message

    def last(self, entry: Entry) -> WorkerStacks | None:
        """The last stacks that were taken of a worker of this server, or None."""
        return self._last.get(entry.name)
