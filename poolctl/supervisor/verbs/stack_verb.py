"""The verb stacks: the current stacks of workers' threads and tasks."""

from __future__ import annotations

import asyncio

from poolctl.control.answers import Result
from poolctl.control.show_answers import StacksResult
from poolctl.core.server_entry import Worker
from poolctl.runners.stack_report import Stacks, WorkerStacks

from .verb import Call, Verb, VerbContext, selected

_SECONDS = 2.0
_AT_ONCE = 50


async def _stacks_of(call: Call, context: VerbContext) -> Result:
    """The stacks of each worker of the selected servers; the workers go on."""
    core = context.core
    chosen = selected(core, call.selector)
    warnings = [f"{entry.name}: has no worker" for entry in chosen if not entry.observed.workers]
    stacks = core.runner.capabilities.stacks
    if stacks is None:
        return StacksResult(warnings=("the workers of this pool cannot be asked for their stacks",))
    turn = asyncio.Semaphore(_AT_ONCE)
    workers = [worker for entry in chosen for worker in entry.observed.workers.values()]
    found = await asyncio.gather(*(_ask(stacks, worker, turn) for worker in workers))
    return StacksResult(
        items=tuple(each for each in found if each is not None),
        warnings=tuple(warnings) if call.selector.targets else (),
    )


async def _ask(stacks: Stacks, worker: Worker, turn: asyncio.Semaphore) -> WorkerStacks | None:
    if worker.placement is None:
        return None
    async with turn:
        return await stacks.stacks(worker.placement.id, _SECONDS)


def verbs(context: VerbContext) -> dict[str, Verb]:
    """The verb of this file."""
    return {"stacks": lambda call: _stacks_of(call, context)}
