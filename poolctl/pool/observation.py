"""What a pool's servers do now: their health, their metrics and the stacks of their workers."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

from poolctl.config import ServerConfig
from poolctl.core.server_entry import Availability, Entry, ObservedState
from poolctl.core.server_state import Desired, DesiredState
from poolctl.errors import PoolMonitorError
from poolctl.monitor import metrics
from poolctl.routing import route_health
from poolctl.runners.process_usage import ProcessUsages
from poolctl.runners.runner_protocol import Placement, Runner
from poolctl.runners.stack_report import PYTHON, WorkerStacks, find_main_thread_hang
from poolctl.states import State

from . import loop_thread
from .core_host import Handle
from .server import Server, blocked_as, entries_of, handle_in_process

_STACK_SECONDS = 2.0
_LOOP_SECONDS = 5.0  # the loop queries processes, and may be blocked by an application in this process


def healths_of(servers: Iterable[Server]) -> dict[str, route_health.RouteHealth]:
    """The health of each server, by a unique name; sends no probe."""
    return {name: _health_of(server) for name, server in _numbered(servers)}


def metrics_text(servers: Callable[[], Collection[Server]]) -> str:
    """The metrics of these servers in Prometheus' text format; blocks. Raises PoolMonitorError as `Pool.metrics`."""
    with blocked_as(PoolMonitorError, servers, _LOOP_SECONDS) as limit:
        for usages, pids in loop_thread.call(lambda: _pids_by_usages(servers()), limit).items():
            usages.measure_now(pids)  # not on the loop thread, because many processes take long
        observed = loop_thread.call(lambda: list(_observed(servers())), limit)
    families = metrics.pool_families("", platform.python_version(), observed)
    parts = (family for part in metrics.PARTS for family in part(observed))
    return metrics.render([*families, *parts])


def _health_of(server: Server) -> route_health.RouteHealth:
    state, handle = server.state, handle_in_process(server)
    if handle is None or state in (State.STOPPED, State.DISABLED):
        return route_health.RouteHealth(detail=server.message)
    return route_health.server_health(
        state.value,
        server.health.value,
        ready=server.ready,
        uptime_seconds=server.uptime.total_seconds(),
        latency_seconds=handle.latency_seconds,
        why=handle.probe_problem or server.message,
    )


def _numbered(servers: Iterable[Server]) -> Iterator[tuple[str, Server]]:
    """Pairs of a unique name and a server: if several have the same name, later ones are numbered, as in `web~2`."""
    names: dict[str, int] = {}
    for server in servers:
        number = names[server.name] = names.get(server.name, 0) + 1
        yield server.name if number == 1 else f"{server.name}~{number}", server


def _pids_by_usages(servers: Iterable[Server]) -> dict[ProcessUsages, list[int | None]]:
    """The pids of the servers' workers, by the object that measures their memory and processor time."""
    pids: dict[ProcessUsages, list[int | None]] = {}
    for _, host, entry in entries_of(servers):
        if not host.core.runner.in_this_process:
            pids.setdefault(host.core.runner.usages, []).extend(metrics.worker_pids([entry]))
    return pids


def _observed(servers: Iterable[Server]) -> Iterable[metrics.ObservedServer]:
    for name, server in _numbered(servers):
        handle = handle_in_process(server)
        yield metrics.ObservedServer(
            name=name,
            state=server.state.value,
            snapshot=_snapshot(server, handle),
            availability=Availability() if handle is None else handle.availability_now(),
            latency_seconds=None if handle is None else handle.latency_seconds,
            wakes=0 if handle is None else handle.wakes,
        )


def _snapshot(server: Server, handle: Handle | None) -> metrics.ServerSnapshot:
    if handle is None:
        return metrics.ServerSnapshot(Entry(server.config), [], [], counts=False)
    if handle.host is not None and handle.entry is not None:
        return metrics.measure_server(handle.entry, [*handle.ended], handle.host.core.runner)
    # The server does not run: the totals of its earlier runs.
    desired = DesiredState(Desired.COMPLETED if handle.observed.ready else Desired.IDLE)
    observed = ObservedState(restarts=handle.restarts, failures=handle.failures)
    entry = Entry(server.config, desired, observed)
    return metrics.ServerSnapshot(entry, handle.ended, [], counts=any(handle.ended))


def stacks_of(servers: Iterable[Server]) -> list[WorkerStacks]:
    """The current stacks of the servers' workers; blocks for at most a few seconds."""
    stacks: list[WorkerStacks] = []
    remote: list[tuple[Runner, ServerConfig, Placement]] = []
    for server, host, entry in entries_of(servers):
        runner = host.core.runner
        for worker in list(entry.observed.workers.values()):
            if worker.placement is None:
                continue
            if runner.in_this_process:
                stacks.append(_stacks_of_this_process(host.loop_thread, server.config, worker.placement))
            else:
                remote.append((runner, server.config, worker.placement))
    return stacks + _stacks_of_others(remote) if remote else stacks


def _stacks_of_this_process(
    thread: loop_thread.LoopThread, config: ServerConfig, placement: Placement
) -> WorkerStacks:
    threads, tasks = thread.stacks((config.app_dir, config.base_dir))
    return replace(
        _unknown_stacks(config, placement, ""),
        source=PYTHON,
        place=find_main_thread_hang(threads),
        threads=tuple(threads),
        tasks=tuple(tasks),
    )


def _stacks_of_others(remote: list[tuple[Runner, ServerConfig, Placement]]) -> list[WorkerStacks]:
    async def ask() -> list[WorkerStacks | None]:
        requests = (runner.stacks(placement.id, _STACK_SECONDS) for runner, _, placement in remote)
        return await asyncio.gather(*requests)

    loop_thread.refuse_own_thread()
    future = loop_thread.submit(ask())
    try:
        answers = future.result(_LOOP_SECONDS)
    except TimeoutError:
        future.cancel()
        problem = "this process's own loop does not answer"
        return [_unknown_stacks(config, placement, problem) for _, config, placement in remote]
    pairs = zip(answers, remote, strict=True)
    return [replace(stacks, name=config.name) for stacks, (_, config, _) in pairs if stacks is not None]


def _unknown_stacks(config: ServerConfig, placement: Placement, problem: str) -> WorkerStacks:
    return WorkerStacks(name=config.name, worker=placement.id, pid=placement.pid, problem=problem)
