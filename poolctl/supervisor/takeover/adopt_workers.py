"""After the death of a supervisor: what it knew, from the keeper's store and the workers themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from types import MappingProxyType

from poolctl.config import ServerConfig
from poolctl.core.core import Core
from poolctl.core.state import Worker
from poolctl.core.view import Phase
from poolctl.keeper import store_keys
from poolctl.runners.link import Link
from poolctl.runners.local.runner import LocalRunner
from poolctl.runners.local.workers.local_worker import LocalWorker
from poolctl.states import Status

from .state_store import StateStore

logger = logging.getLogger("poolctl.supervisor")

_REPORT_SECONDS = 0.2


async def adopt(
    core: Core,
    runner: LocalRunner,
    memory: StateStore,
    placed: Mapping[str, ServerConfig],
    orphaned: Mapping[str, bool] = MappingProxyType({}),
) -> int:
    """Give the core what was wanted and what is there; how many workers were taken over.

    Of a server that runs perhaps nothing is recorded: then it is wanted. The `orphaned` ones for which the value is
    true have another configuration by now, and are replaced.
    """
    recalled = await memory.recall(core.entries)
    found = await runner.adopt({name: entry.config for name, entry in core.entries.items()}, placed)
    waiting = [
        worker.answered if worker.control is None else worker.reported
        for worker in found
        if not (worker.exited.done() or (worker.control is None and worker.answered.done()))
    ]
    if waiting:
        # How they are they say themselves: ready though nobody has noted it, or about to leave as they were told.
        await asyncio.wait(waiting, timeout=_REPORT_SECONDS)
    unknown = ({each.placement.server for each in found if not each.leaving} | set(orphaned)) - recalled
    for name in unknown:
        core.expect_running(core.entries[name])
    # Before anybody looks for an address that one of them may keep.
    ours = {entry.config.key for entry in core.entries.values()} | {each.server.key for each in found}
    for key in runner.sockets.keys() - ours:
        await runner.close(key)
    for each in found:
        worker = _worker(each)
        entry = core.entries[each.placement.server]
        core.adopt_worker(entry, worker, recorded=entry.name not in unknown)
    _listeners(core, runner)
    for name, outdated in orphaned.items():
        if outdated and core.entries[name].wanted:
            logger.info("%s has another configuration by now: it is replaced", name)
            core.restart(core.entries[name])
    return len(found)


def _worker(found: LocalWorker) -> Worker:
    """How the worker is, as it says itself."""
    placement = found.placement
    phase = Phase.READY if found.ready_at is not None else Phase.STARTING
    if found.resting == "new" and found.server.health.gated:
        phase = Phase.STARTING
    if found.leaving:
        phase = Phase.DRAINING
    return Worker(
        placement.id,
        placement.generation,
        placement.index,
        found.server,
        phase,
        placement,
        found.ready_at,
        idle=found.idle,
        resting=bool(found.resting),
        # The supervisor before told it to rest because its probes failed.
        health=Status.KO if found.resting == "told" else Status.UNKNOWN,
    )


def _listeners(core: Core, runner: LocalRunner) -> None:
    for entry in core.entries.values():
        for config in (entry.config, *(worker.config for worker in entry.workers.values())):
            # What has no listener of ours is as good as open once it has a worker.
            without = (config.job or config.binds_itself) and entry.workers
            if without or runner.endpoints(config.key):
                core.adopt_listener(entry, config)
        core.resume(entry)


async def inherited(keeper: Link) -> dict[str, list[int]]:
    """Their descriptors by number and by name."""
    reply, fds = await keeper.call({"op": "get", "name": store_keys.INHERITED})
    found = {str(number): [fd] for number, fd in enumerate(fds, 3)}
    for name, fd in zip(reply["meta"] or (), fds, strict=True):
        if name:
            found.setdefault(name, []).append(fd)
    return found
