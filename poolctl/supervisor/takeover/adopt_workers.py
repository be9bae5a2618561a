"""Adopting running workers after the death of a supervisor, as far as the runner can find them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from poolctl.config import ServerConfig
from poolctl.core.core import Core
from poolctl.core.decide import Phase
from poolctl.core.server_entry import Worker
from poolctl.runners.runner_protocol import Adopted, AdoptedWorker
from poolctl.states import Status

from .state_store import StateStore

logger = logging.getLogger("poolctl.supervisor")

_LATE_PAUSES_SECONDS = (0.5, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)


async def adopt(
    core: Core,
    store: StateStore,
    placed: Mapping[str, ServerConfig],
    searched: Mapping[str, ServerConfig] | None,
) -> int:
    """Give the core the recorded desired state and the running workers; returns the number of adopted workers.

    A server that runs without a record is wanted. Workers of the servers `searched` that have lost keeper and
    supervisor are searched for; workers whose configuration has changed are replaced.
    """
    takeover = core.runner.capabilities.takeover
    taken_in = await takeover.take_in(searched) if takeover is not None and searched is not None else {}
    recorded = await store.restore(core.entries)
    servers = {name: entry.config for name, entry in core.entries.items()}
    adopted = Adopted() if takeover is None else await takeover.adopt(servers, placed)
    running = {each.placement.server for each in adopted.workers if not each.leaving}
    unknown = (running | set(taken_in)) - recorded
    for name in unknown:
        core.expect_running(core.entries[name])
    for each in adopted.workers:
        entry = core.entries[each.placement.server]
        core.adopt_worker(entry, _worker(each), recorded=entry.name not in unknown)
    for name, (hook, placement) in adopted.hooks.items():
        core.adopt_hook(core.entries[name], hook, placement)
    _listeners(core, adopted.endpoints)
    for name, outdated in taken_in.items():
        if outdated and core.entries[name].wanted and not core.entries[name].on_schedule:
            logger.info("%s is configured differently now: it is replaced", name)
            core.restart(core.entries[name])
    return len(adopted.workers)


async def take_in_late(core: Core) -> bool:
    """Look again for workers that could not be found at once: they were importing their application, or were busy.

    Returns True when the keeper holds some that a successor of this supervisor should adopt. One whose server serves
    again without it is stopped.
    """
    takeover = core.runner.capabilities.takeover
    if takeover is None:
        return False
    for pause in _LATE_PAUSES_SECONDS:
        await asyncio.sleep(pause)
        waiting = {
            name: entry.config
            for name, entry in core.entries.items()
            if not entry.observed.workers and not core.endpoints(entry.config)
        }
        names = await takeover.take_in(waiting, late=True)
        for name in names:
            # It may have failed because they had its address.
            core.expect_running(core.entries[name])
        if names:
            logger.info("found late: %s", ", ".join(sorted(names)))
            return True
    return False


def _worker(found: AdoptedWorker) -> Worker:
    """The worker in the state that it reports."""
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
        # The previous supervisor took it out of rotation because its probes failed.
        health=Status.KO if found.resting == "told" else Status.UNKNOWN,
    )


def _listeners(core: Core, endpoints: Mapping[str, tuple[str, ...]]) -> None:
    for entry in core.entries.values():
        for config in (entry.config, *(worker.config for worker in entry.observed.workers.values())):
            # A server without a listener of ours counts as open once it has a worker.
            without = (not config.listens or config.binds_itself) and entry.observed.workers
            if without or endpoints.get(config.key):
                core.adopt_listener(entry, config, endpoints.get(config.key, ()))
        core.resume(entry)
