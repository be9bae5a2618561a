"""Records the stacks of workers that do not answer."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from poolctl.json_form import Table, to_json
from poolctl.runners.runner_protocol import Runner

from .server_entry import Entry, Worker
from .workqueue import Recorder

if TYPE_CHECKING:
    from poolctl.runners.stack_report import WorkerStacks

logger = logging.getLogger("poolctl.supervisor")

# The end of a worker is delayed at most this long for its stacks; an answer takes a few milliseconds.
_STACKS_SECONDS = 1.0
_ANSWER_SHARE = 0.9  # the runner's share of that time
# These limits keep an event, and the state given to a successor, below about 50 KB.
_MAX_STACKS, _MAX_FRAMES = 20, 20


class StackRecorder:
    """Reads the stacks of workers from the runner."""

    def __init__(self, runner: Runner, recorder: Recorder) -> None:
        self._runner = runner
        self._recorder = recorder

    async def record_stacks(self, entry: Entry, worker: Worker) -> WorkerStacks | None:
        """The worker's stacks, or None if they are unknown. Takes at most a second, and never raises."""
        if worker.placement is None:
            return None
        try:
            async with asyncio.timeout(_STACKS_SECONDS):
                stacks = await self._runner.stacks(worker.placement.id, _STACKS_SECONDS * _ANSWER_SHARE)
        except TimeoutError:
            return None
        except Exception:
            logger.exception("the stacks of worker %s cannot be taken", worker.id)
            return None
        if stacks is None:
            return None
        entry.observed.stacks = stacks.shortened(_MAX_STACKS, _MAX_FRAMES)
        return entry.observed.stacks

    async def describe_hang(self, entry: Entry, worker: Worker, message: str) -> str:
        """Record the stacks of a worker not ready in time; returns `message`, and the place where it hangs if known."""
        stacks = await self.record_stacks(entry, worker)
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
