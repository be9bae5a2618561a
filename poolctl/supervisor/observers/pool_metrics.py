"""The metrics and the health of the pool, for commands and for the address of [metrics]."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from poolctl.config import MetricsTable
from poolctl.control.answers import SupervisorIdentity
from poolctl.control.server_answers import HealthReportItem, HealthResult, MetricsResult
from poolctl.core.core import Core
from poolctl.core.schedules import failed_run_message
from poolctl.core.server_entry import Entry
from poolctl.exit_codes import NOT_AS_DESIRED
from poolctl.json_form import Table, from_json
from poolctl.monitor.metrics import PARTS, Family, ObservedServer, pool_families, render
from poolctl.platform import memory_bytes, process_cpu_ns
from poolctl.routing.route_health import DEPTHS, FULL, SIMPLE, RouteHealth, health_at_depth, server_health
from poolctl.selection.selector import Selector, SelectorError

from ..feature_parts import FeatureParts
from ..statistics import Statistics
from ..verbs.verb import Call, complaint_of, selected
from ..web_addresses import SiteSettings, WebAddress, WebServer

ROUTE, SERVER = "route", "server"

# The health of each route, by its name.
RouteHealths = Callable[[], Awaitable[Mapping[str, RouteHealth]]]


class PoolMetrics:
    """Collects the metrics of one pool.

    `identity` returns the current identity of its supervisor, `processes` the pids of the pool's own processes by name.
    """

    def __init__(
        self,
        core: Core,
        statistics: Statistics,
        identity: Callable[[], SupervisorIdentity],
        processes: Callable[[], Mapping[str, int]],
        parts: FeatureParts,
    ) -> None:
        self._processes = processes
        self._parts = parts
        self._core = core
        self._statistics = statistics
        self._identity = identity

    async def verb(self, call: Call) -> MetricsResult:
        """The verb `metrics`: the metrics of the pool and of the selected servers."""
        return MetricsResult(text=await self.text(call.selector))

    async def text(self, selector: Selector | None = None) -> str:
        """The metrics of the pool, its servers and its features as text.

        With a `selector`, only the metrics of the pool and of the selected servers.
        """
        entries = list(self._core.entries.values()) if selector is None else selected(self._core, selector)
        totals = self._statistics.totals
        servers = [
            ObservedServer(
                name=snapshot.entry.name,
                state=snapshot.entry.state,
                snapshot=snapshot,
                availability=totals.availability(snapshot.entry),
                latency_seconds=self._core.health.latency_seconds(snapshot.entry),
                wakes=totals.wakes(snapshot.entry),
            )
            for snapshot in await self._statistics.measure(entries)
        ]
        about = self._identity()
        families: list[Family] = [*pool_families(about.name, about.python, servers)]
        families += await asyncio.to_thread(_own_processes, self._processes())
        for part in PARTS:
            families += part(servers)
            await asyncio.sleep(0)
        if selector is None or selector.selects_all:
            for feature in self._parts:
                families += await feature.metrics()
        # In a thread, because a thousand servers have four megabytes of metrics.
        return await asyncio.to_thread(render, families)


def _own_processes(pids: Mapping[str, int]) -> Iterable[Family]:
    """The metrics of the pool's own processes, each without its children; `pids` by their names. Blocks."""
    memory = Family("poolctl_process_memory_bytes", "gauge", "Memory (PSS) of the pool's own processes.")
    spent = Family("poolctl_process_cpu_seconds", "counter", "Processor time of the pool's own processes.")
    for process, pid in pids.items():
        used_ns = process_cpu_ns(pid)
        memory.add(memory_bytes(pid), process=process)
        spent.add(None if used_ns is None else used_ns / 1e9, process=process)
    return memory, spent


class HealthSnapshot(NamedTuple):
    """The health of all routes, by alias, and of all servers, by name.

    `serves` is False if a route does not serve, or a server that should run is neither ready nor asleep.
    """

    routes: dict[str, RouteHealth]
    servers: dict[str, RouteHealth]
    serves: bool

    @property
    def kind_and_health_by_name(self) -> dict[str, tuple[str, RouteHealth]]:
        """The kind (ROUTE or SERVER) and health, by name; a server named like a route has the suffix " (server)"."""
        by_name = {alias: (ROUTE, health) for alias, health in self.routes.items()}
        for name, health in self.servers.items():
            by_name[f"{name} (server)" if name in by_name else name] = SERVER, health
        return by_name

    def in_depth(self, depth: str) -> Table:
        """The health of each route and server, by name, in this `depth`: FULL, SUMMARY or SIMPLE."""
        return health_at_depth(
            {name: health for name, (_, health) in self.kind_and_health_by_name.items()}, depth
        )


class HealthReporter:
    """Answers the verb `health`, and health requests over HTTP."""

    def __init__(self, core: Core, route_healths: RouteHealths) -> None:
        self._core = core
        self._route_healths = route_healths

    async def health(self, *, routes_only: bool = False) -> HealthSnapshot:
        """The health of each route and, unless `routes_only`, of each server."""
        routes = await self._route_healths()
        entries = [] if routes_only else [*self._core.entries.values()]
        servers = {entry.name: _health_if_should_run(self._core, entry) for entry in entries}
        is_faulty = any(route.is_faulty for route in routes.values())
        serves = not (is_faulty or any(entry.is_missing for entry in entries))
        return HealthSnapshot(dict(routes), servers, serves)

    async def answer_health_verb(self, call: Call) -> HealthResult:
        """The verb `health`, with the requested detail; exit code 3 if a route or server that should serve does not."""
        depth = call.options.get("depth") or FULL
        if depth not in DEPTHS:
            raise SelectorError(f"{depth!r} is not a depth", hint=f"one of: {', '.join(DEPTHS)}")
        health = await self.health(routes_only=bool(call.options.get("routes")))
        kinds = {name: kind for name, (kind, _) in health.kind_and_health_by_name.items()}
        rows = (
            {"name": name, "kind": kinds[name], **({"status": report} if depth == SIMPLE else report)}
            for name, report in health.in_depth(depth).items()
        )
        return HealthResult(
            items=tuple(from_json(HealthReportItem, row) for row in rows),
            exit_code=0 if health.serves else NOT_AS_DESIRED,
        )


def health_reported_for_route(core: Core, entry: Entry) -> RouteHealth:
    """The health of a server, as reported for a route that leads to it."""
    if entry.rests_until_named:
        return RouteHealth(detail=f"starts on demand: poolctl start {entry.name}", at_rest=True)
    return server_health(
        entry.state,
        entry.health.value,
        ready=entry.ready,
        uptime_seconds=round(entry.uptime_seconds(core.clock.monotonic()), 3),
        latency_seconds=core.health.latency_seconds(entry),
        why=complaint_of(core, entry),
    )


def _health_if_should_run(core: Core, entry: Entry) -> RouteHealth:
    """The health of the server itself; unknown for a server that should not run."""
    if not entry.should_run:
        return RouteHealth(detail=entry.state)
    health = health_reported_for_route(core, entry)
    return replace(health, detail=failed) if (failed := failed_run_message(entry)) else health


def metrics_address(web: WebServer) -> WebAddress[MetricsTable]:
    """The address in the table [metrics]."""
    return WebAddress(web, "metrics", lambda table: SiteSettings({"path": table.path}))
