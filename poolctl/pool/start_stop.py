"""Start, stop and restart of servers: all are attempted in the order of their dependencies, every failure is raised."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

from poolctl.config import Dependency, ServerConfig
from poolctl.core.core import Goal
from poolctl.core.server_entry import Entry
from poolctl.errors import (
    PoolError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
    ServerError,
)
from poolctl.states import State
from poolctl.units import parse_duration

from . import loop_thread
from .live_servers import Handle, Host, Startable, dependencies_among, handle_of, host_of, is_leaving, living
from .loop_thread import LOCK

Timeout = float | timedelta | str | None
# How long the workers of an abandoned start are waited for, which are killed.
_KILL_SECONDS = 5.0


class Membership(Protocol):
    """The pool whose servers are started. Disabled servers, and servers that have left it, are skipped."""

    def _holds(self, server: Startable) -> bool: ...


def seconds(timeout: Timeout) -> float | None:
    """The timeout in seconds. Raises PoolParamError."""
    if timeout is None:
        return None
    try:
        return parse_duration(timeout)
    except ValueError as error:
        raise PoolParamError(f"timeout: {error}") from error


async def start(
    servers: Sequence[Startable],
    limit: float | None,
    pool: Membership | None = None,
    kind: type[PoolError] = PoolStartError,
    live: Container[Startable] = (),
    beside: Sequence[Handle] = (),
) -> None:
    """Start the servers, dependencies first; return when all answer. Raises `kind` with every failure.

    With PoolRestartError as `kind`, returns when all have been replaced. A single server without a `pool` is started
    without its dependencies. The workers of `live` servers apply their configuration instead of being replaced. The
    servers in `beside` may be dependencies, and continue unchanged.
    """
    await _StartOrder(kind, limit, pool, live, beside).run(servers)


async def stop(servers: Sequence[Startable], limit: float | None) -> None:
    """Stop the servers, each before its dependencies; return when all have ended. Raises PoolStopError."""
    future = order_stop([handle for server in servers if (handle := living(server)) is not None], limit)
    if future is not None:
        # A caller that gives up waiting leaves no server half stopped.
        await asyncio.shield(asyncio.wrap_future(future))


def order_stop(
    handles: Sequence[Handle], limit: float | None = None
) -> concurrent.futures.Future[None] | None:
    """Order a stop from any thread without blocking. Returns its future; None without handles."""
    if not handles:
        return None
    with LOCK:
        # At once on the engine's thread, so that a start that is ordered afterwards finds the servers stopping.
        begun = _begin_stop(handles, limit) if loop_thread.is_own_thread() else None
        future = loop_thread.submit(_stop(handles, limit, begun))
        for handle in handles:
            handle.stops.add(future)

    def over(future: concurrent.futures.Future[None]) -> None:
        for handle in handles:
            handle.stops.discard(future)

    future.add_done_callback(over)
    return future


def _begin_stop(handles: Sequence[Handle], limit: float | None) -> list[tuple[Goal, Handle]]:
    """Have the core stop the servers. Returns goals that show when they have ended."""
    hosts: dict[Host, dict[Handle, str]] = {}
    for handle in handles:
        handle.refuse(None)
        if handle.host is not None and handle.entry is not None:
            hosts.setdefault(handle.host, {})[handle] = handle.entry.name
    goals: list[tuple[Goal, Handle]] = []
    for host, names in hosts.items():
        # Servers that are stopped together end in the order of their dependencies, however they were started.
        for handle, needed in dependencies_among(list(names), names).items():
            host.relate(handle, needed)
        entries = [handle.entry for handle in names if handle.entry is not None]
        goal = Goal(host.core, PoolStopError, entries)
        goals += [(goal, handle) for handle in names]
        for entry in entries:
            host.core.stop(entry, limit_seconds=limit)
    return goals


async def _stop(
    handles: Sequence[Handle], limit: float | None, begun: list[tuple[Goal, Handle]] | None
) -> None:
    goals = _begin_stop(handles, limit) if begun is None else begun
    await asyncio.gather(*(goal.wait(None) for goal in {goal for goal, _ in goals}))
    errors = []
    for goal, handle in goals:
        entry = handle.entry
        # A start follows the end of a stop: a server that is wanted has been stopped before.
        if entry is None or (goal.is_overtaken(entry) and not goal.has_failed(entry)):
            continue
        if (problem := goal.problem(entry)) is not None:
            errors.append(_as_users(handle, problem))
    _raise(errors, PoolStopError, "did not stop", len(handles))


@dataclass(slots=True)
class _Ordered:
    """A server whose start or restart has been ordered."""

    server: Startable
    handle: Handle
    config: ServerConfig  # as its pool furnishes it; its own when it cannot be started
    startable: bool
    live: bool = False  # its workers take the configuration over

    @property
    def entry(self) -> Entry:
        assert self.handle.entry is not None
        return self.handle.entry


class _StartOrder:
    """One order to start or restart servers, on the engine's loop."""

    def __init__(
        self,
        kind: type[PoolError],
        limit: float | None,
        pool: Membership | None,
        live: Container[Startable],
        beside: Sequence[Handle],
    ) -> None:
        self._kind = kind
        self._limit = limit
        self._pool = pool
        self._live = live
        self._beside = beside
        self._needed: set[str] = set()  # the names of servers that others of them depend on
        self._errors: dict[Startable, ServerError] = {}
        self._stops: list[concurrent.futures.Future[None]] = []
        self._handles: list[Handle] = []

    async def run(self, servers: Sequence[Startable]) -> None:
        """Start the servers. Raises an error of the requested kind with every failure."""
        self._needed = {dependency.name for server in servers for dependency in server.config.depends_on}
        try:
            ordered = self._prepared(servers)
            goals = self._begin(ordered)
            await self._wait(ordered, goals)
            await self._conclude(ordered, goals)
        finally:
            for handle in self._handles:
                handle.orders -= 1
            for handle in self._handles:
                if handle.host is not None:
                    handle.host.look(handle)
        for future in self._stops:
            await asyncio.shield(asyncio.wrap_future(future))
        errors = [
            self._errors[server] for server in servers if server in self._errors and self._holds(server)
        ]
        what = "did not restart" if self._kind is PoolRestartError else "did not start"
        _raise(errors, self._kind, what, len(servers))

    def _holds(self, server: Startable) -> bool:
        return self._pool is None or self._pool._holds(server)

    def _late(self, server: Startable) -> ServerError:
        problem = ServerError(f"was not ready within {self._limit:g} s", name=server.name, bind=server.bind)
        problem.__cause__ = TimeoutError()
        return problem

    # Asking the core.

    def _prepared(self, servers: Sequence[Startable]) -> list[_Ordered]:
        """The requested servers, and the dependencies that other servers need but that were not requested."""
        found: list[_Ordered] = []
        for server in servers:
            with LOCK:  # a server that leaves the pool from now on is stopped
                if not self._holds(server):
                    continue
                handle = handle_of(server)
                handle.orders += 1
                self._handles.append(handle)
            config, startable = server.config, True
            if self._pool is not None and config.disabled:
                startable = False
                if handle.observed.state is State.RUNNING and (future := order_stop([handle])) is not None:
                    self._stops.append(future)
                    continue
            elif handle.entry is None and handle.observed.ready and self._kind is PoolStartError:
                continue  # a job that is done
            else:
                try:
                    config = server._shared.prepare(config)
                except ServerError as error:
                    self._refuse(server, handle, error)
                    startable = False
            live = server in self._live
            # The next run of a job has the new configuration; the current run is not waited for.
            startable = startable and not (live and config.every is not None)
            found.append(_Ordered(server, handle, config, startable, live))
        return [each for each in found if each.startable or each.live or each.server.name in self._needed]

    def _refuse(self, server: Startable, handle: Handle, error: ServerError) -> None:
        if handle.observed.state is State.RUNNING:
            error = _serves_on(error)
        else:
            handle.refuse(error)
        self._errors[server] = error

    def _begin(self, ordered: Sequence[_Ordered]) -> dict[Host, Goal]:
        hosts: dict[Host, list[_Ordered]] = {}
        goals: dict[Host, Goal] = {}
        for each in ordered:
            hosts.setdefault(each.handle.host or host_of(each.server._shared), []).append(each)
        for host, group in hosts.items():
            around = [*self._handles, *self._beside]
            names = {each: each.entry.name for each in around if each.host is host and each.entry is not None}
            names |= {each.handle: host.reserve(each.handle) for each in group}
            needed = dependencies_among(list(names), names)
            replace = self._kind is PoolRestartError
            changed = [
                host.admit(each.handle, self._furnished(each, names, needed), replace=replace, live=each.live)
                for each in group
            ]
            entries = [each.entry for each in group if each.startable]
            goals[host] = Goal(host.core, self._kind, entries)
            for each, is_new in zip(group, changed, strict=True):
                if each.startable:
                    self._order(host, each, changed=is_new)
        return goals

    def _furnished(
        self,
        each: _Ordered,
        names: dict[Handle, str],
        needed: dict[Handle, tuple[Dependency, ...]],
    ) -> ServerConfig:
        """The configuration for the core, with the core's names and only the dependencies that start together."""
        dependencies = needed[each.handle]
        if self._pool is None:
            dependencies = each.entry.config.depends_on if each.handle.entry is not None else ()
        return each.config.but(name=names[each.handle], depends_on=dependencies)

    def _order(self, host: Host, each: _Ordered, *, changed: bool) -> None:
        core, entry = host.core, each.entry
        holder = core.holder(entry)
        if holder is not None:
            problem = ServerError(
                f"its address is in use by {host.in_users_names(holder.name)!r} of this process",
                name=each.server.name,
                bind=each.server.bind,
                hint="stop that one first",
            )
            self._refuse(each.server, each.handle, problem)
            return
        each.handle.refusal = None
        each.handle.awaiting.add(self)
        core.give_state(entry, each.server._shared.values)
        runs = entry.wanted and bool(entry.observed.workers)
        if each.live:
            return
        if self._kind is PoolRestartError and runs and not changed:
            core.restart(entry, retries=entry.sleepy)
        elif changed or not (entry.wanted and entry.ready):
            core.start(entry, ignore_dependencies=self._pool is None, retries=entry.sleepy, after_stop=True)

    # Waiting for it.

    async def _wait(self, ordered: Sequence[_Ordered], goals: dict[Host, Goal]) -> None:
        try:
            await asyncio.gather(*(goal.wait(self._limit) for goal in goals.values()))
        except asyncio.CancelledError:
            for each in ordered:
                self._give_up(each)
            raise
        finally:
            for each in ordered:
                each.handle.awaiting.discard(self)

    def _give_up(self, each: _Ordered, problem: ServerError | None = None) -> bool:
        """Abandon the start unless another order waits for it as well; returns whether it was abandoned."""
        handle = each.handle
        handle.awaiting.discard(self)
        if handle.host is None or handle.awaiting or not each.startable or each.live:
            return False
        waits = each.entry.desired.queued_start is not None
        if not waits and (each.entry.failed or each.entry.settled):
            return False
        handle.host.core.abandon(each.entry, problem)
        return not waits  # the stop that it waits for continues

    async def _conclude(self, ordered: Sequence[_Ordered], goals: dict[Host, Goal]) -> None:
        abandoned: dict[Host, list[Handle]] = {}
        for each in ordered:
            handle, host = each.handle, each.handle.host
            if host is None or not each.startable or each.server in self._errors:
                continue
            problem = self._problem(each, goals[host])
            if problem is None:
                self._arrived(host, each)
                continue
            self._errors[each.server] = problem
            if self._give_up(each, problem):
                abandoned.setdefault(host, []).append(handle)
            if each.entry.failed:
                handle.refusal = problem
        for host, handles in abandoned.items():
            await host.wait_until(handles, lambda entry: entry.at_rest or entry.settled, _KILL_SECONDS)
        for each in ordered:
            if each.server in self._errors and each.handle.observed.state is State.RUNNING:
                self._errors[each.server] = _serves_on(self._errors[each.server])

    def _problem(self, each: _Ordered, goal: Goal) -> ServerError | None:
        server, entry = each.server, each.entry
        if entry in goal.missing:
            return self._late(server)
        problem = goal.problem(entry)
        if problem is None:
            return None
        if goal.is_overtaken(entry):
            return ServerError("was stopped before it was ready", name=server.name, bind=server.bind)
        return _as_users(each.handle, problem)

    def _arrived(self, host: Host, each: _Ordered) -> None:
        handle = each.handle
        if is_leaving(each.entry):
            future = loop_thread.submit(host.wait_until([handle], lambda entry: not is_leaving(entry), None))
            handle.ending.add(future)
            future.add_done_callback(handle.ending.discard)
        context = each.server._shared.context
        if context is not None and not each.entry.at_rest:
            handle.context = context
            context.attach(handle, lambda: order_stop([handle]))


def _as_users(handle: Handle, problem: ServerError) -> ServerError:
    """The problem in the words of a program's author: the pool's own server names, and no hint to run a command."""
    message = problem.message
    if handle.host is not None:
        message = handle.host.in_users_names(message)
    hint = problem.hint.partition("; ")[2] if problem.hint.startswith("poolctl ") else problem.hint
    found = ServerError(message, name=handle.name, bind=handle.bind, hint=hint)
    found.__cause__ = problem.__cause__
    return found


def _serves_on(problem: ServerError) -> ServerError:
    suffix = "; the old instance serves on"
    if not problem.message.endswith(suffix):
        problem.message += suffix
        problem.args = (problem.message,)
    return problem


def _raise(errors: list[ServerError], kind: type[PoolError], what: str, count: int) -> None:
    if errors:
        who = errors[0].name if count == 1 else f"{len(errors)} of {count} servers"
        raise kind(f"{who} {what}", errors)
