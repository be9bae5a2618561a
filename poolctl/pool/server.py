"""Servers of a pool: configuration, state, ports, start and restart.

A start or restart of several servers attempts all of them in dependency order, then raises one error with all failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import time
import weakref
from collections import Counter
from collections.abc import Callable, Container, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any, NoReturn, Protocol

from poolctl.address import Address, parse
from poolctl.config import AutomaticPort, ServerConfig
from poolctl.core.command_goal import CommandGoal, wait_until
from poolctl.core.server_entry import Availability, Entry
from poolctl.errors import (
    PoolError,
    PoolMonitorError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
    ServerError,
)
from poolctl.listeners.port_ledger import is_free
from poolctl.states import TRANSITIONAL, State, Status
from poolctl.units import timeout_seconds

from . import loop_thread
from .context import Shared, error_about
from .core_host import (
    CoreHost,
    Future,
    Handle,
    ServerRuntimeState,
    dependencies_among,
    ensure_core_host,
    is_leaving,
    order_stop,
    raise_if_any,
    translate_problem,
)
from .loop_thread import LOCK

CONNECT_SECONDS = 1.0

_TIMES = ("uptime", "downtime", "rise", "fall")


@dataclass(frozen=True, slots=True)
class Monitor:
    """The state of one server at one time.

    `status` is WARN while the server changes its state, else the probes' result; without probes it is OK or KO.
    `latency` is the duration of the last probe or, without probes, of connecting; None without an answer. `uptime` and
    `downtime` are total times since the first start, without stopped time; `sli` is the share of uptime, 0 to 1. `rise`
    is the time spent coming up, and `fall` is the time spent going down; `uptime` and `downtime` include both. `rises`
    counts how often the server began to answer, and `falls` counts how often it ceased to answer.
    """

    name: str
    bind: str
    status: Status
    latency: timedelta | None
    uptime: timedelta
    downtime: timedelta
    rise: timedelta
    fall: timedelta
    sli: float
    message: str
    rises: int = 0
    falls: int = 0

    @classmethod
    def from_dict(cls, name: str, bind: str, document: Mapping[str, Any]) -> Monitor:
        """Create the snapshot from a document that a supervisor sent."""
        seconds = {key: timedelta(seconds=document[f"{key}_seconds"]) for key in _TIMES}
        latency = document["latency_seconds"]
        return cls(
            name=name,
            bind=bind,
            status=Status(document["status"]),
            latency=None if latency is None else timedelta(seconds=latency),
            **seconds,
            sli=document["sli"] or 0.0,
            message=document["message"],
            rises=document["rises"],
            falls=document["falls"],
        )

    def __repr__(self) -> str:
        message = f" ({self.message})" if self.message else ""
        return f"<Monitor {self.name} {self.status}, up {self.sli:.1%}{message}>"


def try_connect(endpoints: tuple[str, ...]) -> tuple[timedelta | None, str]:
    """Connect to the first endpoint. Return (time taken, "") or, if connecting fails, (None, reason).

    Returns (None, "") if `endpoints` is empty. Blocks for at most CONNECT_SECONDS. Raises OSError if no socket opens.
    """
    if not endpoints:
        return None, ""
    address = parse(endpoints[0]).connect_address
    target: Any = (address.host, address.port)
    family = socket.AF_INET6 if address.is_ipv6 else socket.AF_INET
    if address.kind == "unix":
        target, family = address.path, socket.AF_UNIX
    with socket.socket(family) as sock:
        sock.settimeout(CONNECT_SECONDS)
        started = time.perf_counter()
        try:
            sock.connect(target)
        except TimeoutError:
            return None, f"no connection within {CONNECT_SECONDS:g} s"
        except OSError as error:
            return None, str(error)
        return timedelta(seconds=time.perf_counter() - started), ""


DEFAULT_PORT_RANGE = "20000-29999"
# How often a start that found its automatic ports in use chooses others.
_MAX_MOVES = 5

_NO_POOL = Shared()
# Ports chosen for `auto`: they may not be bound yet, and other servers should get others.
_chosen_ports: weakref.WeakValueDictionary[int, AutomaticPort] = weakref.WeakValueDictionary()


class StartAndStop:
    """`start`, `stop` and `restart` for one server or all servers of a pool, each also in a blocking form.

    A timeout is in seconds, a timedelta, or a text such as "5s".
    """

    __slots__ = ()

    # Tests whether a server is still in the pool; None for a single server.
    _holds: Holds | None = None

    def _ordered(self, kind: type[PoolError]) -> Sequence[Server]:
        """The servers on which an operation that raises `kind` acts."""
        raise NotImplementedError

    def _operation(self, kind: type[PoolError], timeout: Timeout) -> Coroutine[None, None, None]:
        """The operation that raises `kind`, for the loop thread."""
        servers, limit = self._ordered(kind), timeout_seconds("timeout", timeout)
        if kind is PoolStopError:
            return stop(servers, limit)
        return StartOperation(servers, limit, self._holds, kind).run()

    async def _perform(self, kind: type[PoolError], timeout: Timeout) -> None:
        with blocked_as(kind, lambda: self._ordered(kind), timeout) as limit:
            if not (kind is PoolStopError and loop_thread.has_exited()):
                await loop_thread.run(self._operation(kind, timeout), limit, stands=kind is PoolStopError)

    def _perform_sync(self, kind: type[PoolError], timeout: Timeout) -> None:
        with blocked_as(kind, lambda: self._ordered(kind), timeout) as limit:
            if not (kind is PoolStopError and loop_thread.has_exited()):
                loop_thread.run_sync(self._operation(kind, timeout), limit, stands=kind is PoolStopError)

    async def start(self, *, timeout: Timeout = None) -> None:
        """Start the server, or all enabled servers of a pool, dependencies first; returns when all of them answer.

        A pool starts a server that starts on demand only if another server depends on it.
        Raises PoolStartError with every failure; failures due to the timeout have a TimeoutError as cause.
        """
        await self._perform(PoolStartError, timeout)

    async def stop(self, *, timeout: Timeout = None) -> None:
        """Stop the server, or all servers of a pool, each before its dependencies; returns when all have ended.

        A server that still runs after its `stop_timeout`, or after `timeout` if that is shorter, is killed. Raises
        PoolStopError.
        """
        await self._perform(PoolStopError, timeout)

    async def restart(self, *, timeout: Timeout = None) -> None:
        """Replace the server, or all servers of a pool; returns when a new instance of each answers on its listener.

        A stopped server is started. Raises PoolRestartError; a server whose restart failed keeps its old instance.
        """
        await self._perform(PoolRestartError, timeout)

    def start_sync(self, *, timeout: Timeout = None) -> None:
        """Like `start`, but blocks."""
        self._perform_sync(PoolStartError, timeout)

    def stop_sync(self, *, timeout: Timeout = None) -> None:
        """Like `stop`, but blocks."""
        self._perform_sync(PoolStopError, timeout)

    def restart_sync(self, *, timeout: Timeout = None) -> None:
        """Like `restart`, but blocks."""
        self._perform_sync(PoolRestartError, timeout)


_RESTING_STATES = frozenset({State.STOPPED, State.STOPPING, State.COMPLETED})


class Server(StartAndStop):
    """One server of a pool. Any thread may call any method.

    It runs in this process unless its pool has another runner. It can also be started without a pool. A pool that
    stores it provides the handler and the default TLS, if the server needs them.
    """

    # Slots, because a pool may have 100,000 servers; only started servers have a handle. Name and expose are copies of
    # the configuration's, for filters.
    __slots__ = ("__weakref__", "_config", "_expose", "_handle", "_name", "_shared")

    def __init__(self, config: ServerConfig) -> None:
        """Choose a port for `auto`. Raises ServerError if none is free, PoolParamError if not given a ServerConfig."""
        if not isinstance(config, ServerConfig):
            raise PoolParamError(f"a Server is made from a ServerConfig, and this is {config!r}")
        self._shared = _NO_POOL
        self._handle: Handle | None = None
        self._set_config(with_port(config))

    def __repr__(self) -> str:
        parts = [self.name, self.bind, str(self.state)]
        parts += ["ready"] * (self.ready and self.state is not State.RUNNING) + ["stale"] * self.stale
        return f"<Server {' '.join(parts)}>"

    @property
    def name(self) -> str:
        """The server's name, which is unique within a configuration."""
        return self._name

    @property
    def bind(self) -> str:
        """The canonical bind address, which is the server's key in the pool."""
        return self._config.bind

    @property
    def address(self) -> Address:
        """The address on which the server listens."""
        return self._config.address

    @property
    def expose(self) -> str:
        """The address that clients use."""
        return self._expose

    @property
    def config(self) -> ServerConfig:
        """The configuration for the next start; the running instance may still use an older one (see `stale`)."""
        return self._config

    @property
    def state(self) -> State:
        """The current state; `disabled` for a server that must not be started."""
        state = self._observed.state
        return State.DISABLED if state is State.STOPPED and self._config.disabled else state

    @property
    def _is_resting(self) -> bool:
        """Whether the server starts on demand, and does not run."""
        return self._config.on_demand and self.state in _RESTING_STATES

    @property
    def health(self) -> Status:
        """The result of the server's probes; without probes, ok if it answers, ko if it has failed, else unknown."""
        observed = self._observed
        if observed.probed or observed.health is Status.KO:
            return observed.health
        if observed.ready:
            return Status.OK
        return Status.KO if observed.state is State.FAILED else Status.UNKNOWN

    @property
    def ready(self) -> bool:
        """Return whether the server takes requests and its probes do not fail. A job is ready once it exits with 0."""
        return self._observed.ready

    @property
    def message(self) -> str:
        """The reason why the server failed or ended, or ""."""
        return self._observed.message

    @property
    def pids(self) -> list[int]:
        """The ids of the server's processes, without duplicates; this process's id if the server runs in it."""
        return list(self._observed.pids)

    @property
    def endpoints(self) -> list[str]:
        """Return the addresses on which the server's listener is open; empty if the listener is closed."""
        return list(self._observed.endpoints)

    @property
    def is_running(self) -> bool:
        """Whether the server runs. False until it has answered for the first time."""
        return self.state is State.RUNNING

    @property
    def uptime(self) -> timedelta:
        """How long this instance has been ready; zero if it is not."""
        observed = self._observed
        if observed.state is not State.RUNNING or observed.ready_since is None:
            return timedelta()
        return timedelta(seconds=time.monotonic() - observed.ready_since)

    @property
    def stale(self) -> bool:
        """Whether the server runs with an older configuration than `config`, until its next start or restart."""
        observed = self._observed
        return observed.state is State.RUNNING and observed.config is not self._config

    def monitor(self) -> Monitor:
        """Return the server's current state and latency.

        The latency is the duration of the last probe. Without probes, it is the time that connecting takes now,
        which blocks for at most a second. Raises PoolMonitorError if no socket can be opened.
        """
        handle, state = handle_in_process(self), self.state
        availability = handle.availability_now() if handle is not None else Availability()
        status, latency, problem = self._check_health(handle, state)
        message = problem or self.message
        return Monitor(
            name=self.name,
            bind=self.bind,
            status=status,
            latency=latency,
            uptime=timedelta(seconds=availability.uptime),
            downtime=timedelta(seconds=availability.downtime),
            rise=timedelta(seconds=availability.risetime),
            fall=timedelta(seconds=availability.falltime),
            sli=availability.sli or 0.0,
            message=message or ("" if state is State.RUNNING else str(state)),
            rises=availability.rise,
            falls=availability.fall,
        )

    def _check_health(self, handle: Handle | None, state: State) -> tuple[Status, timedelta | None, str]:
        observed = self._observed
        if state in TRANSITIONAL:
            return Status.WARN, None, ""
        if handle is None or state is not State.RUNNING:
            return (Status.OK if observed.ready or state is State.SLEEPING else Status.KO), None, ""
        if observed.probed:
            seconds = handle.latency_seconds
            latency = None if seconds is None else timedelta(seconds=seconds)
            return observed.health, latency, handle.probe_problem
        try:
            latency, refused = try_connect(observed.endpoints)
        except OSError as error:
            message = f"no connection can be made: {error.strerror}"
            problem = error_about(self.config, message, "raise the limit of open files: ulimit -n")
            raise PoolMonitorError(f"{self.name} cannot be monitored", [problem]) from error
        return (Status.KO if refused else Status.OK), latency, refused

    def _ordered(self, kind: type[PoolError]) -> Sequence[Server]:
        return [self]

    @property
    def _observed(self) -> ServerRuntimeState:
        handle = handle_in_process(self)
        return handle.observed if handle is not None else ServerRuntimeState()

    def _set_config(self, config: ServerConfig) -> None:
        with LOCK:  # a start may be creating the handle
            self._config, self._name, self._expose = config, config.name, config.expose
            if self._handle is not None:
                self._handle.config = config

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Server cannot be pickled; pickle its config")


def with_port(config: ServerConfig, port_range: str = "", avoid: Container[int | None] = ()) -> ServerConfig:
    """The configuration, with a free port of the range that is not in `avoid` instead of `auto`.

    The port is reserved while the configuration exists, and once its server was started, as long as another port is
    free. `port_range` is "FIRST-LAST" or "" for the default. Raises ServerError if no port is free.
    """
    address = config.address
    return _at_free_port(config, port_range or DEFAULT_PORT_RANGE, avoid) if address.auto else config


def _at_free_port(config: ServerConfig, port_range: str, avoid: Container[int | None]) -> ServerConfig:
    address = config.address
    first, _, last = port_range.partition("-")
    ports = range(int(first), int(last or first) + 1)
    # Each process starts its search at another port, so that programs started together rarely collide.
    start = Random(os.getpid()).randrange(len(ports))
    for allow_released in (False, True):
        with LOCK:
            excluded = {
                port for port, other in _chosen_ports.items() if other.is_reserved or not allow_released
            }
            for port in (*ports[start:], *ports[:start]):
                if port not in excluded and port not in avoid and is_free(address, port):
                    _chosen_ports[port] = automatic_port = AutomaticPort(port_range)
                    return config.at(address.with_port(port), automatic_port)
        gc.collect()  # pools are in reference cycles; collecting them releases their ports
    hint = 'widen it: [pool] port_range = "FIRST-LAST"'
    raise error_about(config, f"no port is free in {port_range}", hint)


class KeyedServers(Protocol):
    """A mapping of addresses to servers that is re-keyed when automatic ports change."""

    _ports: Counter[int | None]

    def load(self, bind: str) -> Server | None:
        """Return the server with this address."""

    def _rekey(self, moved: Mapping[str, Server]) -> None:
        """Key the servers in `moved`, by their previous addresses, by their new ones. The caller must hold LOCK."""


# Every pool and view, by its id.
pools: weakref.WeakValueDictionary[int, KeyedServers] = weakref.WeakValueDictionary()


def move_from_taken_ports(servers: Iterable[Server]) -> list[Server]:
    """Choose another automatic port for each stopped server with a port in use; return these servers."""
    moved: dict[str, Server] = {}
    with LOCK:
        for server in servers:
            config, handle = server.config, handle_in_process(server)
            choice, address = config.automatic_port, config.address
            stopped = handle is None or handle.entry is None or handle.entry.is_fully_stopped
            if choice is None or not stopped or is_free(address, address.port or 0, lingering=True):
                continue
            avoid = {
                port for pool in pools.values() if pool.load(config.bind) is server for port in pool._ports
            }
            with contextlib.suppress(ServerError):  # none is free; start reports the user of the current one
                server._set_config(_at_free_port(config, choice.port_range, avoid))
                moved[config.bind] = server
        for pool in [*pools.values()] if moved else ():
            pool._rekey(moved)
    return [*moved.values()]


def handle_in_process(server: Server) -> Handle | None:
    """The server's handle in this process; None before the first start, and in a forked child, which runs no server."""
    handle = server._handle
    return handle if handle is not None and handle.epoch == loop_thread.epoch else None


Timeout = float | timedelta | str | None
# Tests whether a server is still in the pool: orders skip removed and disabled servers.
Holds = Callable[["Server"], bool]
# Maximum wait for the end of workers that are killed because their start was abandoned.
_KILL_SECONDS = 5.0


@contextlib.contextmanager
def blocked_as(
    kind: type[PoolError],
    concerned: Callable[[], Iterable[Server | Handle | ServerConfig]],
    timeout: Timeout = None,
) -> Iterator[loop_thread.Limit]:
    """Yield the time limit of an operation; raise `kind` if the loop of in-process servers is blocked when it expires.

    Without a `timeout`, the limit is the longest timeout of a server's configuration, and the loop may be busy for that
    time again during a start. If the loop is blocked, servers in this process that should stop, or are starting, refuse
    connections, and end when the loop answers again.
    """
    stopping = kind is PoolStopError
    key = "stop_timeout" if stopping else "start_timeout"
    if (requested := timeout_seconds("timeout", timeout)) is None:
        configs = (_with_handle(server)[0] for server in concerned())
        longest = max((float(getattr(config, key)) for config in configs), default=0.0)
        busy = 0.0 if stopping else longest
        limit = loop_thread.Limit(longest, max(busy, loop_thread.ANSWER_SECONDS))
    else:
        limit = loop_thread.Limit(requested)
    try:
        yield limit
    except loop_thread.LoopBlocked as blocked:
        errors: list[ServerError] = []
        servers = [*map(_with_handle, concerned())]
        for config, handle in servers:
            if not (handle is not None and handle.is_active_or_ordered if stopping else not config.disabled):
                continue
            if handle is not None and kind is not PoolMonitorError:
                # What `join` waits for may be workers that a running server has replaced.
                stops = bool(handle.stops) or not handle.ending
                if stops if stopping else handle.observed.state is State.STARTING:
                    handle.refuse_connections()
            late = f"{_LATE.get(kind, 'was not ready within')} {limit.seconds:g} s: {blocked}"
            hint = "await asyncio.to_thread(…) for what blocks, or run it as a process"
            errors.append(error_about(config, late, hint))
            errors[-1].__cause__ = blocked
        raise_if_any(errors, kind, len(servers))
        if not stopping:
            raise kind(str(blocked)) from blocked


_LATE = {PoolStopError: "still runs after", PoolMonitorError: "gave no metrics within"}


def _with_handle(server: Server | Handle | ServerConfig) -> tuple[ServerConfig, Handle | None]:
    if isinstance(server, ServerConfig):
        return server, None
    return server.config, server if isinstance(server, Handle) else handle_in_process(server)


async def stop(servers: Sequence[Server], limit: float | None) -> None:
    """Stop the servers, dependents first; waits. `limit` (seconds) caps each `stop_timeout`. Raises PoolStopError."""
    if handles := [*filter(None, map(handle_in_process, servers))]:
        # Shielded, so that no server is left half stopped if the caller gives up waiting.
        await asyncio.shield(asyncio.wrap_future(order_stop(handles, limit)))


@dataclass(slots=True)
class _PendingServer:
    server: Server
    handle: Handle
    config: ServerConfig  # completed by its pool; the server's own if it cannot be started
    startable: bool
    live: bool  # whether its workers apply the configuration without a restart

    @property
    def entry(self) -> Entry:
        assert self.handle.entry is not None
        return self.handle.entry


def entries_of(servers: Iterable[Server]) -> Iterator[tuple[Server, CoreHost, Entry]]:
    """The servers that run or are being started, each with its core's host and its entry there."""
    for server in servers:
        handle = handle_in_process(server)
        if handle is not None and handle.host is not None and handle.entry is not None:
            yield server, handle.host, handle.entry


class StartOperation:
    """An order to start or restart `servers`, dependencies first. `run` performs it, on the loop thread.

    `kind` is the class of the error that `run` raises. If `kind` is PoolRestartError, running servers are restarted;
    otherwise only those with a changed configuration are restarted. `limit` is the timeout in seconds. `holds` tells
    whether a server is still in the pool; `holds` is None for a single server, which starts without its dependencies.
    The workers of servers in `live` are not replaced, and apply the new configuration. `beside` are other active
    servers, on which `servers` may depend; they are restarted only if they refer to a server that gets another port.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        limit: float | None,
        holds: Holds | None = None,
        kind: type[PoolError] = PoolStartError,
        live: Container[Server] = (),
        beside: Sequence[Server] = (),
    ) -> None:
        self._ordered = servers
        self._servers = [*servers, *beside]
        self._limit = limit
        self._deadline = None if limit is None else time.monotonic() + limit
        self._holds = holds
        self._kind = kind
        self._live = live
        self._errors: dict[Server, ServerError] = {}
        self._stops: list[Future] = []
        self._handles: list[Handle] = []

    async def run(self) -> None:
        """Start or restart the servers; returns when all of them answer.

        A failure does not stop the other servers. All failures are raised as one error of the class given as `kind`.
        """
        move_from_taken_ports(self._ordered)
        # A server is stale if it refers to a server with a new port.
        servers = [*self._ordered, *(other for other in self._servers[len(self._ordered) :] if other.stale)]
        for moves_left in reversed(range(_MAX_MOVES)):
            await self._attempt(servers)
            if not moves_left or (self._deadline is not None and time.monotonic() >= self._deadline):
                break
            if not (moved := move_from_taken_ports(self._errors)):
                break
            servers = self._changed_by(moved)
            for server in servers:
                self._errors.pop(server, None)
        for future in self._stops:
            await asyncio.shield(asyncio.wrap_future(future))
        failed = [server for server in self._servers if server in self._errors and self._is_held(server)]
        errors = [self._errors[server] for server in failed]
        raise_if_any(errors, self._kind, len(self._servers))

    def _changed_by(self, moved: Iterable[Server]) -> list[Server]:
        """The servers to start again: moved ones, their referrers, and servers that only lacked a dependency."""
        changed, size = {*moved}, 0
        changed |= {server for server in self._servers if server.stale and server not in self._errors}
        while size < len(changed):
            size, names = len(changed), {server.name for server in changed}
            failed = {failed_server.name for failed_server in self._errors} - names
            for failed_server in self._errors:
                needed = {dependency.name for dependency in failed_server.config.depends_on}
                if needed & names and not needed & failed:
                    changed.add(failed_server)
        return [server for server in self._servers if server in changed]

    async def _attempt(self, servers: Sequence[Server]) -> None:
        self._handles = []
        try:
            ordered = self._prepare(servers)
            goals = self._begin(ordered)
            await self._wait(ordered, goals)
            await self._record_outcomes(ordered, goals)
        finally:
            for handle in self._handles:
                handle.orders -= 1
            for handle in self._handles:
                if handle.host is not None:
                    handle.host.update_handle(handle)

    def _is_held(self, server: Server) -> bool:
        return self._holds is None or self._holds(server)

    # Orders to the core.

    def _prepare(self, servers: Sequence[Server]) -> list[_PendingServer]:
        prepared: list[_PendingServer] = []
        for server in servers:
            with LOCK:  # a server that leaves the pool from now on is stopped
                if not self._is_held(server):
                    continue
                handle = server._handle = handle_in_process(server) or Handle(server, server.config)
                handle.orders += 1
                self._handles.append(handle)
            config, startable = server.config, True
            if self._holds is not None and config.disabled:
                startable = False
                if handle.observed.state is State.RUNNING:
                    self._stops.append(order_stop([handle]))
                    continue
            elif handle.entry is None and handle.observed.ready and self._kind is PoolStartError:
                continue  # the job has already ended
            else:
                try:
                    config = server._shared.startable_config(config)
                except ServerError as error:
                    self._record_refusal(server, handle, error)
                    startable = False
            live = server in self._live
            # The next run of a job has the new configuration; the current run is not waited for.
            startable = startable and not (live and config.every is not None)
            prepared.append(_PendingServer(server, handle, config, startable, live))
        needed = {dependency.name for server in self._servers for dependency in server.config.depends_on}
        return [item for item in prepared if item.startable or item.live or item.server.name in needed]

    def _record_refusal(self, server: Server, handle: Handle, error: ServerError) -> None:
        if handle.observed.state is State.RUNNING:
            error = _append_old_instance_note(error)
        else:
            handle.record_start_failure(error)
        self._errors[server] = error

    def _begin(self, ordered: Sequence[_PendingServer]) -> dict[CoreHost, CommandGoal]:
        hosts: dict[CoreHost, list[_PendingServer]] = {}
        goals: dict[CoreHost, CommandGoal] = {}
        for pending in ordered:
            host = pending.handle.host or ensure_core_host(pending.server._shared.runner)
            hosts.setdefault(host, []).append(pending)
        for host, group in hosts.items():
            held = filter(self._is_held, self._servers)
            names: dict[Handle, str] = {}
            for handle in filter(None, map(handle_in_process, held)):
                if handle.host is host and handle.entry is not None:
                    names[handle] = handle.entry.name
            names |= {pending.handle: host.register(pending.handle) for pending in group}
            needed = dependencies_among(list(names), names)
            replace = self._kind is PoolRestartError
            changed = []
            for pending in group:
                # An order for a single server changes no dependencies.
                entry, dependencies = pending.handle.entry, needed[pending.handle]
                if self._holds is None:
                    dependencies = entry.config.depends_on if entry is not None else ()
                update = {"name": names[pending.handle], "depends_on": dependencies}
                config = pending.config.model_copy(update=update)
                changed.append(host.add_or_update(pending.handle, config, replace=replace, live=pending.live))
            entries = [pending.entry for pending in group if pending.startable]
            goals[host] = CommandGoal(host.core, self._kind, entries)
            for pending, is_new in zip(group, changed, strict=True):
                if pending.startable:
                    self._order(host, pending, changed=is_new)
        return goals

    def _order(self, host: CoreHost, pending: _PendingServer, *, changed: bool) -> None:
        core, entry = host.core, pending.entry
        holder = core.lasting_address_holder(entry)
        if holder is not None:
            name = host.with_configured_server_names(holder.name)
            message = f"its address is in use by {name!r} of this process"
            problem = error_about(pending.server.config, message, "stop that one first")
            self._record_refusal(pending.server, pending.handle, problem)
            return
        pending.handle.refusal = None
        pending.handle.awaiting.add(self)
        core.set_app_state(entry, pending.server._shared.values)
        runs = entry.wanted and bool(entry.observed.workers)
        if pending.live:
            return
        if self._kind is PoolRestartError and runs and not changed:
            core.restart(entry, retries=entry.sleepy)
        elif changed or not (entry.wanted and entry.ready):
            core.start(entry, ignore_dependencies=self._holds is None, retries=entry.sleepy, after_stop=True)

    # Waiting for the outcome.

    async def _wait(self, ordered: Sequence[_PendingServer], goals: dict[CoreHost, CommandGoal]) -> None:
        remaining = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            await asyncio.gather(*(goal.wait_until_settled(remaining) for goal in goals.values()))
        except asyncio.CancelledError:
            for pending in ordered:
                self._abandon_start(pending)
            raise
        finally:
            for pending in ordered:
                pending.handle.awaiting.discard(self)

    def _abandon_start(self, pending: _PendingServer, problem: ServerError | None = None) -> bool:
        """Abandon the server's start, unless another StartOperation waits for the server, or it has failed or is ready.

        Return True if the caller has to wait until killed workers have ended. Return False if nothing was abandoned, or
        if the start had no workers yet because it waited for a stop in progress.
        """
        handle = pending.handle
        handle.awaiting.discard(self)
        if handle.host is None or handle.awaiting or not pending.startable or pending.live:
            return False
        waits = pending.entry.desired.queued_start is not None
        if not waits and (pending.entry.failed or pending.entry.settled):
            return False
        handle.host.core.abandon_start(pending.entry, problem)
        return not waits

    async def _record_outcomes(
        self, ordered: Sequence[_PendingServer], goals: dict[CoreHost, CommandGoal]
    ) -> None:
        abandoned: dict[CoreHost, list[Entry]] = {}
        for pending in ordered:
            handle, host = pending.handle, pending.handle.host
            if host is None or not pending.startable or pending.server in self._errors:
                continue
            problem = self._problem(pending, goals[host])
            if problem is None:
                self._track_started_server(host, pending)
                continue
            self._errors[pending.server] = problem
            if self._abandon_start(pending, problem):
                abandoned.setdefault(host, []).append(pending.entry)
            if pending.entry.failed:
                handle.refusal = problem
        for host, entries in abandoned.items():
            await wait_until(
                host.core, entries, lambda entry: entry.is_fully_stopped or entry.settled, _KILL_SECONDS
            )
        for pending in ordered:
            if pending.server in self._errors and pending.handle.observed.state is State.RUNNING:
                self._errors[pending.server] = _append_old_instance_note(self._errors[pending.server])

    def _problem(self, pending: _PendingServer, goal: CommandGoal) -> ServerError | None:
        server, entry = pending.server, pending.entry
        if entry in goal.missing:
            late = error_about(server.config, f"was not ready within {self._limit:g} s")
            late.__cause__ = TimeoutError()
            return late
        problem = goal.problem(entry)
        if problem is None:
            return None
        if goal.is_overtaken(entry):
            return error_about(server.config, "was stopped before it was ready")
        return translate_problem(pending.handle, problem)

    def _track_started_server(self, host: CoreHost, pending: _PendingServer) -> None:
        handle, entry = pending.handle, pending.entry
        if (choice := pending.config.automatic_port) is not None:
            choice.is_reserved = False
        if is_leaving(entry):
            waiting = wait_until(host.core, [entry], lambda entry: not is_leaving(entry), None)
            future = loop_thread.submit(waiting)
            handle.ending.add(future)
            future.add_done_callback(handle.ending.discard)
        context = pending.server._shared.context
        if context is not None and not entry.is_fully_stopped:
            handle.context = context
            context.attach(handle, lambda: order_stop([handle]))


def _append_old_instance_note(problem: ServerError) -> ServerError:
    suffix = "; the old instance serves on"
    if not problem.message.endswith(suffix):
        problem.message += suffix
        problem.args = (problem.message,)
    return problem
