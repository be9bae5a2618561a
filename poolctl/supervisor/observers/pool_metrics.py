"""The metrics of a pool: its servers, its own processes and its features."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence

from poolctl.control.answers import About
from poolctl.core.core import Core
from poolctl.monitor.exposition import Family, render
from poolctl.monitor.server_metrics import PARTS, ObservedServer, family_of, of_pool
from poolctl.platform import cpu_seconds, memory_bytes
from poolctl.selection.selector import Selector

from ..feature_parts import FeatureParts
from ..statistics import Statistics
from ..verbs.verb import selected


class PoolMetrics:
    """The metrics of one core; `identity` names its daemon."""

    def __init__(self, core: Core, statistics: Statistics, identity: About, parts: FeatureParts) -> None:
        self._parts = parts
        self._core = core
        self._statistics = statistics
        self._identity = identity

    async def text(self, openmetrics: bool = False, selector: Selector | None = None) -> str:
        """The pool, its servers and its features as they are now, or the selected servers."""
        entries = list(self._core.entries.values()) if selector is None else selected(self._core, selector)
        totals = self._statistics.totals
        servers = [
            ObservedServer(
                name=seen.entry.name,
                state=seen.entry.state,
                snapshot=seen,
                availability=totals.availability(seen.entry),
                latency_seconds=self._core.health.latency_seconds(seen.entry),
                wakes=totals.wakes(seen.entry),
            )
            for seen in await self._statistics.look(entries)
        ]
        families: list[Family] = []
        for part in (self._pool, *PARTS):
            families += part(servers)
            await asyncio.sleep(0)
        if selector is None or selector.selects_all:
            families += await self._parts.metrics()
        # For a thousand servers this makes four megabytes of text: in a thread, so that the loop goes on.
        return await asyncio.to_thread(render, families, openmetrics=openmetrics)

    def _pool(self, servers: Sequence[ObservedServer]) -> Iterable[Family]:
        memory = family_of(
            "poolctl_process_memory_bytes", "gauge", "Memory (PSS) of the pool's own processes."
        )
        spent = family_of(
            "poolctl_process_cpu_seconds", "counter", "Processor time of the pool's own processes."
        )
        pids = {"supervisor": os.getpid(), "keeper": self._identity.keeper_pid, **self._parts.pids}
        for process, pid in pids.items():
            memory.add(memory_bytes(pid), process=process)
            spent.add(cpu_seconds(pid), process=process)
        return *of_pool(self._identity.name, self._identity.python, servers), memory, spent
