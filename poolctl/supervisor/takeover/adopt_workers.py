"""Adopting running workers after the death of a supervisor: from the keeper's store and from the workers themselves."""

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


async def inherited(keeper: Link) -> dict[str, list[int]]:
    """The descriptors of the sockets that systemd passed when the pool was started, by number and by name."""
    reply, fds = await keeper.call({"op": "get", "name": store_keys.INHERITED})
    found = {str(number): [fd] for number, fd in enumerate(fds, 3)}
    for name, fd in zip(reply["meta"] or (), fds, strict=True):
        if name:
            found.setdefault(name, []).append(fd)
    return found


async def adopt(
    core: Core,
    runner: LocalRunner,
    store: StateStore,
    placed: Mapping[str, ServerConfig],
    orphaned: Mapping[str, bool] = MappingProxyType({}),
) -> int:
    """Give the core the recorded desired state and the workers that run; how many workers were adopted.

    A server that runs without a record is wanted. `orphaned` servers whose value is true are configured differently
    now, and are replaced.
    """
    recorded = await store.restore(core.entries)
    found = await runner.adopt({name: entry.config for name, entry in core.entries.items()}, placed)
    waiting = [
        worker.answered if worker.control is None else worker.reported
        for worker in found
        if not (worker.exited.done() or (worker.control is None and worker.answered.done()))
    ]
    if waiting:
        # They report their own state: ready although that was not recorded, or about to stop as ordered.
        await asyncio.wait(waiting, timeout=_REPORT_SECONDS)
    unknown = ({each.placement.server for each in found if not each.leaving} | set(orphaned)) - recorded
    for name in unknown:
        core.expect_running(core.entries[name])
    # Before any server looks for an address that one of these may occupy.
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
            logger.info("%s is configured differently now: it is replaced", name)
            core.restart(core.entries[name])
    return len(found)


def _worker(found: LocalWorker) -> Worker:
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


def _listeners(core: Core, runner: LocalRunner) -> None:
    for entry in core.entries.values():
        for config in (entry.config, *(worker.config for worker in entry.workers.values())):
            # A server without a listener of ours counts as open once it has a worker.
            without = (config.job or config.binds_itself) and entry.workers
            if without or runner.endpoints(config.key):
                core.adopt_listener(entry, config)
        core.resume(entry)
