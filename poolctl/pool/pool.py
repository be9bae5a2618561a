"""Pool: servers by their bind address."""

from __future__ import annotations

import asyncio
import builtins
import os
import platform
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from types import TracebackType

from poolctl.config import Configuration, ServerConfig
from poolctl.core.decide import Desired
from poolctl.core.server_entry import Availability, DesiredState, Entry, ObservedState
from poolctl.errors import (
    PoolAddError,
    PoolError,
    PoolMonitorError,
    PoolParamError,
    PoolStartError,
    ServerError,
)
from poolctl.json_form import Table
from poolctl.monitor.exposition import Family, render
from poolctl.monitor.server_metrics import PARTS, ObservedServer, ServerSnapshot, of_pool, snapshot
from poolctl.routing.route_health import (
    RouteHealth,
    health_info,
    health_info_simple,
    health_info_without_detail,
    server_health,
)
from poolctl.runners.runner_protocol import Placement, Runner
from poolctl.runners.stack_report import PYTHON, Stacks, WorkerStacks, parse, place_of
from poolctl.selection.field_filter import Field, checked, matching, values
from poolctl.states import State
from poolctl.worker.tally import describe

from . import loop_thread
from .hot_reload import HotReload
from .live_servers import Handle, living
from .loop_thread import LOCK
from .pool_context import Handler, PoolContext, Shared
from .pool_members import Members
from .server import Server, StartAndStop
from .server_lists import Servers, configuration_of
from .server_monitor import Monitor
from .start_stop import Timeout

_STACK_SECONDS = 2.0
_LOOP_SECONDS = 5.0  # the loop asks processes; it may hang because of a server in this process


class Pool(Members, StartAndStop):
    """Servers keyed by canonical bind address, in the order in which they came. Thread-safe.

    They live in this process unless a `runner` is given. Every function that takes an address takes any spelling.
    A server that was ready and ends by itself is restarted as its restart policy says; a start or a restart that fails
    is raised, and not tried again.
    """

    _started = False  # and not stopped since

    def __init__(
        self,
        servers: Iterable[Server | ServerConfig] = (),
        *,
        handler: Handler | None = None,
        context: PoolContext | None = None,
        runner: Runner | None = None,
    ) -> None:
        """Raises PoolAddError when addresses overlap; a later server replaces an earlier one of the same address.

        Raises PoolParamError for an argument that is not a list of servers, a handler, a context or a runner.
        """
        if isinstance(servers, (Server, ServerConfig)) or not isinstance(servers, Iterable):
            raise PoolParamError(f"a pool takes a list of servers, and this is {servers!r}", hint="Pool([…])")
        if context is not None and not isinstance(context, PoolContext):
            raise PoolParamError(f"{context!r} is no PoolContext", hint="PoolContext(values={…})")
        if runner is not None and not callable(getattr(runner, "open", None)):
            raise PoolParamError(
                f"{runner!r} is no runner", hint="leave it out: the servers run in this process"
            )
        super().__init__(Shared(context, runner))
        self.handler(handler)
        errors: list[ServerError] = []
        for server in servers:
            try:
                if isinstance(server, Server):
                    self.store(server)
                else:
                    self.store_new(server)
            except PoolAddError as error:
                errors += error.exceptions
        if errors:
            raise self._not_added(errors)

    def __repr__(self) -> str:
        servers = self._snapshot().values()
        running = sum(server.is_running for server in servers)
        kind = "view of " if self._is_view else ""
        return f"<Pool {kind}{len(servers)} server{'s' * (len(servers) != 1)}, {running} running>"

    # Looking.

    def filter(self, field: Field, pattern: str = "", regex: str = "") -> Pool:
        """A view of the matching servers: they are the same ones, and removing one there does nothing here.

        One that leaves this pool stays in the view, whose `start` and `restart` pass over it.

        `pattern` equals the field ignoring case, or `regex` is found in it; both empty match nothing. For BIND the
        pattern may be any spelling of an address, for EXPOSE it may leave out the scheme. Raises PoolParamError.
        `regex` runs in the caller's thread without a time limit, and other threads' changes of the pool wait for it.
        """
        view = Pool.__new__(Pool)
        Members.__init__(view, self._shared, seen_of=self._whole)
        view._own.update(self._own)
        view._servers = self._look(lambda servers: matching(servers, field, pattern, regex))
        return view

    def list(self, source: Field, target: Field, pattern: str = "", regex: str = "") -> builtins.list[str]:
        """The `target` field of each server whose `source` field matches as in `filter`, without a time limit."""
        target = checked(target)
        return self._look(lambda servers: [*values(matching(servers, source, pattern, regex), target)])

    # Whole pools.

    def clone(self) -> Pool:
        """An independent pool of new, stopped servers of the same configuration, handler and runner.

        Its context has the same values and a `stop` of its own.
        """
        shared = self._shared
        context = PoolContext(shared.context.values) if shared.context is not None else None
        twin = Pool(handler=shared.handler, context=context, runner=shared.runner)
        twin._shared.tls = shared.tls
        twin._shared.clock = shared.clock
        for server in self.values():
            twin.store(Server(server.config))
        return twin

    def merge(self, other: Pool) -> None:
        """Take over the other pool's servers: new addresses are added, existing ones get its configuration.

        A running server continues unchanged, `stale`, until its next start or restart. Raises PoolAddError for servers
        that overlap, after the others were added.
        """
        if not isinstance(other, Pool):
            raise PoolParamError(f"a pool is merged with another pool, and this is {other!r}")
        errors: list[ServerError] = []
        with LOCK:
            for bind, server in other.items():
                mine = self._servers.get(bind)
                if mine is not None:
                    if server.config != mine.config:
                        mine._put(server.config)
                    continue
                try:
                    self.store(server)
                except PoolAddError as error:
                    errors += error.exceptions
        if errors:
            raise self._not_added(errors)

    def handler(self, fn: Handler | None) -> None:
        """Have ``fn() -> {key: app}`` serve the servers without an app of their own, from their next start on.

        None removes the handler.
        """
        if fn is not None and not callable(fn):
            raise PoolParamError(
                f"a handler is a function that returns a mapping of apps, and this is {fn!r}"
            )
        self._shared.handler = fn

    # Hot reload.

    async def apply(self, configs: Servers) -> None:
        """Change the pool to these servers: new servers are started, changed servers restarted, others left untouched.

        `configs` are ServerConfigs, mappings or a PoolConfig; servers are known by their names. A running server is
        replaced as by `restart`, or applies the change live where `poolctl reload` would do so; a stopped server stays
        stopped, and removed servers stop. A server with a new name is another server: the stop of the former one closes
        connections on which no request has arrived yet, even if both have the same address. New servers start if the
        pool was started and not stopped since, or if one of its servers runs. Returns when all of that is done. Raises
        PoolRestartError with every failure, after all servers were attempted: a server whose configuration is invalid,
        or whose replacement fails, continues as before. Raises PoolParamError for an argument that is not a list, and
        for a view.
        """
        reload = await asyncio.to_thread(self._hot_reload, self._to_apply(configs))
        await loop_thread.run(reload.run())

    def apply_sync(self, configs: Servers) -> None:
        """Like `apply`, but blocks until it is done."""
        loop_thread.refuse_own_thread()
        loop_thread.run_sync(self._hot_reload(self._to_apply(configs)).run())

    def _to_apply(self, configs: Servers) -> Configuration:
        if self._is_view:
            raise PoolParamError("a view has no servers of its own to replace", hint="apply() on its pool")
        return configuration_of(configs, self._shared.tls)

    def _hot_reload(self, configuration: Configuration) -> HotReload:
        handles = [living(server) for server in self.values()]
        runs = self._started or any(handle is not None and handle.busy for handle in handles)
        return HotReload(self, configuration, runs=runs)

    def _not_added(self, errors: builtins.list[ServerError]) -> PoolAddError:
        error = PoolAddError(f"{len(errors)} server{'s' * (len(errors) != 1)} cannot be added", errors)
        error.pool = self
        return error

    # Running.

    async def __aenter__(self) -> Pool:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _start(self, timeout: Timeout, kind: type[PoolError] = PoolStartError) -> Coroutine[None, None, None]:
        self._started = True
        return super()._start(timeout, kind)

    def _stop(self, timeout: Timeout) -> Coroutine[None, None, None]:
        self._started = False
        return super()._stop(timeout)

    def _chosen(self) -> tuple[Sequence[Server], Pool]:
        return [*self._snapshot().values()], self

    @property
    def is_running(self) -> bool:
        """Whether at least one server runs."""
        return any(server.is_running for server in self.values())

    @property
    def uptime(self) -> timedelta:
        """The longest uptime of its servers."""
        return max((server.uptime for server in self.values()), default=timedelta())

    def monitor_names(self) -> builtins.list[str]:
        """The names of the servers in the order of the snapshots from `monitor`."""
        return [server.name for server in self.values()]

    def stacks(self) -> builtins.list[WorkerStacks]:
        """The stacks of the threads and tasks of each running server's workers, even of hung workers; these continue.

        Workers in this process share its threads. Workers in other processes are asked, which takes at most a few
        seconds.
        """
        return _stacks_of(self.values())

    def metrics(self) -> str:
        """The metrics of the pool's servers now, in Prometheus' text format, under the names of `poolctl metrics`.

        Requests are counted in workers that are processes of their own. Without a supervisor there are no metrics of
        its processes, and of no gateway. May be called by an application that the pool serves; elsewhere it blocks
        until the loop that serves the pool has answered.
        """
        return _metrics_of(list(self.values()))

    def monitor(self) -> builtins.list[Monitor]:
        """A snapshot of each server; one connection to each that runs. Raises PoolMonitorError with every failure."""
        found: builtins.list[Monitor] = []
        errors: builtins.list[ServerError] = []
        for server in self.values():
            try:
                found.append(server.monitor())
            except PoolMonitorError as error:
                errors += error.exceptions
        if errors:
            raise PoolMonitorError(f"{len(errors)} servers cannot be monitored", errors)
        return found

    def health_info(self) -> dict[str, Table]:
        """Return the status, uptime, latency and detail of each server, by its name; sends no probe.

        A status is unknown, healthy, napping, starting, unhealthy or error.
        """
        return health_info(self._healths())

    def health_info_without_detail(self) -> dict[str, Table]:
        """Return the status, uptime and latency of each server, by its name, without errors."""
        return health_info_without_detail(self._healths())

    def health_info_simple(self) -> dict[str, str]:
        """Return the status of each server, by its name."""
        return health_info_simple(self._healths())

    def _healths(self) -> dict[str, RouteHealth]:
        return {server.name: _health_of(server) for server in self.values()}


def _health_of(server: Server) -> RouteHealth:
    """The health of a server; unknown if the server should not run."""
    state, handle = server.state, living(server)
    if handle is None or state in (State.STOPPED, State.DISABLED):
        return RouteHealth(detail=server.message)
    return server_health(
        state.value,
        server.health.value,
        ready=server.ready,
        uptime_seconds=server.uptime.total_seconds(),
        latency_seconds=handle.latency_seconds,
        why=handle.complaint or server.message,
    )


def _metrics_of(servers: Sequence[Server]) -> str:
    """The metrics of the servers in Prometheus' text format."""
    observed = loop_thread.call(lambda: list(_observed(servers)))
    families: list[Family] = [*of_pool("", platform.python_version(), observed)]
    for part in PARTS:
        families += part(observed)
    return render(families)


def _observed(servers: Iterable[Server]) -> Iterable[ObservedServer]:
    names: dict[str, int] = {}
    for server in servers:
        # A pool may have two servers of one name, and a sample must not appear twice.
        number = names[server.name] = names.get(server.name, 0) + 1
        handle = living(server)
        yield ObservedServer(
            name=server.name if number == 1 else f"{server.name}~{number}",
            state=server.state.value,
            snapshot=_at_rest(server, handle) if handle is None or handle.entry is None else _live(handle),
            availability=Availability() if handle is None else handle.availability_now(),
            latency_seconds=None if handle is None else handle.latency_seconds,
            wakes=0 if handle is None else handle.wakes,
        )


def _live(handle: Handle) -> ServerSnapshot:
    assert handle.host is not None
    assert handle.entry is not None
    counters, now = handle.host.core.runner.capabilities.counters, handle.host.core.clock.monotonic()
    found = snapshot(handle.entry, [*handle.ended], counters, handle.usages, now, own_pid=os.getpid())
    pids = {worker.placement.pid for worker, _, _ in found.workers if worker.placement is not None}
    handle.usages = {pid: usage for pid, usage in handle.usages.items() if pid in pids}
    return found


def _at_rest(server: Server, handle: Handle | None) -> ServerSnapshot:
    """The figures of a server that is at rest and therefore unknown to the core."""
    if handle is None:
        return ServerSnapshot(Entry(server.config), [], [], counts=False)
    desired = DesiredState(Desired.COMPLETED if handle.observed.ready else Desired.IDLE)
    observed = ObservedState(restarts=handle.restarts, failures=handle.failures)
    entry = Entry(server.config, desired, observed)
    return ServerSnapshot(entry, handle.ended, [], counts=any(handle.ended))


def _stacks_of(servers: Iterable[Server]) -> list[WorkerStacks]:
    """The stacks of each worker of the running servers. Blocks for a few seconds at most."""
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
                found.append(_stacks_of_this_process(host.engine, server.config, worker.placement))
            else:
                asked.append((stacks, server.config, worker.placement))
    return found + _stacks_of_others(asked) if asked else found


def _stacks_of_this_process(
    engine: loop_thread.Engine, config: ServerConfig, placement: Placement
) -> WorkerStacks:
    text = "\n".join(describe(None, engine.thread.ident, engine.loop)).encode(errors="backslashreplace")
    threads, tasks = parse(text, PYTHON, config)
    return replace(
        _unknown_stacks(config, placement, ""),
        source=PYTHON,
        place=place_of(threads),
        threads=tuple(threads),
        tasks=tuple(tasks),
    )


def _stacks_of_others(asked: list[tuple[Stacks, ServerConfig, Placement]]) -> list[WorkerStacks]:
    async def ask() -> list[WorkerStacks]:
        return await asyncio.gather(*(stacks.stacks(each.id, _STACK_SECONDS) for stacks, _, each in asked))

    loop_thread.refuse_own_thread()
    future = loop_thread.submit(ask())
    try:
        found = future.result(_LOOP_SECONDS)
    except TimeoutError:
        future.cancel()
        return [
            _unknown_stacks(config, each, "this process's own loop does not answer")
            for _, config, each in asked
        ]
    return [replace(each, name=config.name) for each, (_, config, _) in zip(found, asked, strict=True)]


def _unknown_stacks(config: ServerConfig, placement: Placement, problem: str) -> WorkerStacks:
    return WorkerStacks(name=config.name, worker=placement.id, pid=placement.pid, problem=problem)
