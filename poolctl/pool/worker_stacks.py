"""The stacks of a pool's workers: in this process, whose loop may hang, and in others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from poolctl.config import ServerConfig
from poolctl.runners.runner_protocol import Placement
from poolctl.runners.stack_report import PYTHON, Stacks, WorkerStacks, parse, place_of
from poolctl.worker.stack_dump import describe

from . import loop_thread
from .live_servers import Startable, living

_SECONDS = 2.0
_LOOP_SECONDS = 5.0  # the loop asks processes; it may hang because of a server in this process


def stacks_of(servers: Iterable[Startable]) -> list[WorkerStacks]:
    """One for each worker of the servers that run. Blocks for some seconds at most."""
    found: list[WorkerStacks] = []
    asked: list[tuple[Stacks, ServerConfig, Placement]] = []
    for server in servers:
        handle = living(server)
        host, entry = (None, None) if handle is None else (handle.host, handle.entry)
        if host is None or entry is None:
            continue
        stacks = host.core.runner.capabilities.stacks
        for worker in list(entry.observed.workers.values()):
            if worker.placement is None:
                continue
            if stacks is None:
                found.append(_of_this_process(server.config, worker.placement))
            else:
                asked.append((stacks, server.config, worker.placement))
    return found + _of_others(asked) if asked else found


def _of_this_process(config: ServerConfig, placement: Placement) -> WorkerStacks:
    engine = loop_thread.running_engine()
    if engine is None:
        return _unknown(config, placement, "it has ended")
    text = "\n".join(describe(None, engine.thread.ident, engine.loop)).encode(errors="backslashreplace")
    threads, tasks = parse(text, PYTHON, config)
    return replace(
        _unknown(config, placement, ""),
        source=PYTHON,
        place=place_of(threads),
        threads=tuple(threads),
        tasks=tuple(tasks),
    )


def _of_others(asked: list[tuple[Stacks, ServerConfig, Placement]]) -> list[WorkerStacks]:
    async def ask() -> list[WorkerStacks]:
        return await asyncio.gather(*(stacks.stacks(each.id, _SECONDS) for stacks, _, each in asked))

    loop_thread.refuse_own_thread()
    future = loop_thread.submit(ask())
    try:
        found = future.result(_LOOP_SECONDS)
    except TimeoutError:
        future.cancel()
        return [
            _unknown(config, each, "this process's own loop does not answer") for _, config, each in asked
        ]
    return [replace(each, name=config.name) for each, (_, config, _) in zip(found, asked, strict=True)]


def _unknown(config: ServerConfig, placement: Placement, problem: str) -> WorkerStacks:
    return WorkerStacks(name=config.name, worker=placement.id, pid=placement.pid, problem=problem)
