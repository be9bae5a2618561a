"""The gateway's state and figures, for list, status and stats."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from poolctl.control.gateway_answers import GatewayStats, GatewayStatus
from poolctl.core.core import Core
from poolctl.json_form import Table
from poolctl.monitor.server_figures import Usage
from poolctl.runners.process_link import LinkLost
from poolctl.supervisor.statistics import Totals, errors, latency_seconds
from poolctl.worker import tally
from poolctl.worker.tally import Counts

from ..process.settings import HTTP, ListenerSettings
from ..table import GatewayConfig
from .gateway_manager import GatewayManager

# Period of rates; samples are taken this often, even if no command asks.
SAMPLE_SECONDS = 10.0
_LEAST_SECONDS, _WINDOW_SECONDS = 1.0, 4.0
_SERVERS_AT_ONCE = 50


class _Sample(NamedTuple):
    at: float
    slots: Counts  # of proxied requests, and of requests that were refused on a route
    refused: tuple[int, int]  # of routes, and without a route
    passed: int
    streamed: int
    stream_errors: int
    connections: int

    @property
    def requests(self) -> int:
        return self.slots[tally.STARTED] + self.passed + self.streamed + self.refused[1]

    @property
    def errors(self) -> int:
        return errors(self.slots) + self.stream_errors


class GatewayStatistics:
    """Asks the process for its figures, at an interval and on request."""

    def __init__(self, manager: GatewayManager, core: Core, totals: Totals) -> None:
        self._manager = manager
        self._core = core
        self._totals = totals
        self._usage: tuple[int, Usage] | None = None  # of the process with this pid
        self._program_pid: int | None = None  # of another program that serves for the process
        self._samples: deque[_Sample] = deque(maxlen=3)
        self._sampling: asyncio.Task[None] | None = None

    def follow(self) -> None:
        """Note whether there is a gateway."""
        if self._manager.tables.get(GatewayConfig) is None:
            self.close()
        elif self._sampling is None:
            self._sampling = asyncio.ensure_future(self._sample_often())

    def close(self) -> None:
        """Stop taking samples."""
        if self._sampling is not None:
            self._sampling.cancel()
            self._sampling = None
        self._samples.clear()

    @property
    def serving_pid(self) -> int | None:
        """The pid of the process that serves clients: the gateway's own process or the program that it runs."""
        process = self._manager.gateway
        return None if process is None else self._program_pid or process.known.get("pid")

    def status(self) -> GatewayStatus:
        """The state of the gateway, without its figures."""
        manager, routes = self._manager, self._manager.routes.routes
        process = manager.gateway
        state = "running" if process is not None else "failed" if manager.problem else "starting"
        return GatewayStatus(
            state=state,
            problem=manager.problem or manager.instability,
            pid=None if process is None else process.known.get("pid"),
            addresses=tuple(map(_url, manager.listeners)),
            routes=len(routes.http) + len(routes.streams),
            uptime_seconds=0.0 if process is None else _uptime(process.known),
            restarts=manager.restarts,
        )

    async def stats(self) -> GatewayStats | None:
        """The gateway's figures; None while its process does not answer."""
        now = await self._sample()
        if now is None:
            return None
        older = [each for each in self._samples if now.at - each.at >= _LEAST_SECONDS]
        recent = [each for each in older if now.at - each.at >= _WINDOW_SECONDS]
        before = recent[-1] if recent else older[0] if older else None
        if not self._samples or now.at - self._samples[-1].at >= SAMPLE_SECONDS / 2:
            self._samples.append(now)
        usage = self._used()
        seconds = now.at - before.at if before is not None else 0.0
        slots = before.slots if before is not None else [0] * tally.COUNTED
        return GatewayStats(
            requests_total=now.requests,
            passed_total=now.passed,
            proxied_total=now.requests - now.passed - sum(now.refused),
            refused_total=sum(now.refused),
            errors_total=now.errors,
            requests_per_second=_rate(now.requests - before.requests, seconds) if before else None,
            errors_per_second=_rate(now.errors - before.errors, seconds) if before else None,
            latency_p50_seconds=latency_seconds(now.slots, slots, 0.5),
            latency_p99_seconds=latency_seconds(now.slots, slots, 0.99),
            connections=now.connections,
            memory_bytes=None if usage is None else usage.memory_bytes,
            cpu_percent=None if usage is None else round(usage.cpu_percent, 2),
        )

    async def _sample_often(self) -> None:
        while True:
            sample = await self._sample()
            if sample is None:
                self._samples.clear()
            else:
                self._samples.append(sample)
                self._used(memory=False)
            await asyncio.sleep(SAMPLE_SECONDS)

    async def _sample(self) -> _Sample | None:
        process = self._manager.gateway
        if process is None:
            return None
        try:
            found = await process.figures()
        except (LinkLost, TimeoutError):
            return None
        self._program_pid = found.get("program_pid")
        sample = _Sample(
            self._core.clock.monotonic(),
            found["slots"],
            tuple(found["refused"]),
            sum((await self.passed()).values()),
            found["streamed"],
            found["stream_errors"],
            found["connections"],
        )
        if self._samples and sample.requests < self._samples[-1].requests:
            self._samples.clear()  # another process counts
        return sample

    async def passed(self) -> dict[int, int]:
        """The requests that workers have served on connections from the gateway, by the marks of their routes."""
        counters, total = self._core.runner.capabilities.counters, dict[int, int]()

        def add(found: Mapping[int, int]) -> None:
            for mark, count in found.items():
                total[mark] = total.get(mark, 0) + count

        for number, server in enumerate(self._manager.routes.routes.servers):
            if number % _SERVERS_AT_ONCE == _SERVERS_AT_ONCE - 1:
                await asyncio.sleep(0)
            entry = self._core.entries.get(server)
            if entry is None:
                continue
            add(self._totals.passed_to_the_ended(entry))
            for worker in entry.observed.workers.values():
                if counters is not None and worker.placement is not None:
                    add(tally.passed(counters.counts(worker.placement) or []))
        return total

    def _used(self, *, memory: bool = True) -> Usage | None:
        """The resources used by the serving process; None if there is no process."""
        pid = self.serving_pid
        if pid is None:
            return None
        if self._usage is None or self._usage[0] != pid:
            self._usage = pid, Usage()
        usage = self._usage[1]
        usage.look(pid, self._core.clock.monotonic(), memory=memory)
        return usage


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3)


def _url(listener: ListenerSettings) -> str:
    if listener.bind.startswith("unix:"):
        return listener.bind
    scheme = listener.protocol if listener.protocol != HTTP else "https" if listener.tls else "http"
    return f"{scheme}://{listener.bind}"


def _uptime(known: Table) -> float:
    """Seconds since the start of the process, which may be older than this supervisor."""
    started = (known.get("start") or 0) / os.sysconf("SC_CLK_TCK")
    return round(max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started), 3)
