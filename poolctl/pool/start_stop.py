"""Start, stop and restart of servers: all are attempted in the order of their dependencies, every failure is raised."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from poolctl.config import Dependency, ServerConfig
from poolctl.core.rollout import Rollout
from poolctl.core.state import Entry
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

from . import engine
from .engine import LOCK
from .host import Handle, Host, Startable, dependencies_among, handle_of, host_of, is_leaving, living

Timeout = float | timedelta | str | None
# Whether a server is still where it was when the order was given: a pool does not start what has left it meanwhile.
Stays = Callable[[Startable], bool]

# How long the workers of an abandoned start are waited for, which are killed.
_KILL_SECONDS = 5.0


def seconds(timeout: Timeout) -> float | None:
    """The timeout in seconds. Raises PoolParamError."""
    if timeout is None:
        return None
    try:
        return parse_duration(timeout)
    except ValueError as error:
        raise PoolParamError(f"timeout: {error}") from error


async def start(servers: Sequence[Startable], limit: float | None, stays: Stays | None = None) -> None:
    """Return when all answer, dependencies first. Raises PoolStartError.

    `stays` is given by a pool: it passes over disabled servers, and what has left it. One server alone is started
    without what it depends on.
    """
    await _Arrival(PoolStartError, limit, stays).run(servers)


async def restart(servers: Sequence[Startable], limit: float | None, stays: Stays | None = None) -> None:
    """Return when all have been replaced, or started as `start` does it. Raises PoolRestartError."""
    await _Arrival(PoolRestartError, limit, stays).run(servers)


async def stop(servers: Sequence[Startable], limit: float | None) -> None:
    """Return when all have ended, each before what it depends on. Raises PoolStopError."""
    future = order_stop(servers, limit)
    if future is not None:
        # A caller that gives up waiting leaves no server half stopped.
        await asyncio.shield(asyncio.wrap_future(future))


def order_stop(
    servers: Iterable[Startable], limit: float | None = None
) -> concurrent.futures.Future[None] | None:
    """The future of a stop that has been ordered, from any thread; None when none of them ever ran. Never blocks."""
    with LOCK:
        handles = [handle for server in servers if (handle := living(server)) is not None]
        if not handles:
            return None
        future = engine.submit(_stop(handles, limit))
        for handle in handles:
            handle.stops.add(future)

    def over(future: concurrent.futures.Future[None]) -> None:
        for handle in handles:
            handle.stops.discard(future)

    future.add_done_callback(over)
    return future


async def _stop(handles: Sequence[Handle], limit: float | None) -> None:
    for handle in handles:
        handle.refuse(None)
    errors: list[ServerError] = []
    rollouts: list[tuple[Rollout, list[Handle]]] = []
    for host, active in _by_host(handles).items():
        _relate(host, active)
        entries = [handle.entry for handle in active if handle.entry is not None]
        rollouts.append((Rollout(host.core, PoolStopError, entries), active))
        for entry in entries:
            host.core.stop(entry, limit_seconds=limit)
    await asyncio.gather(*(rollout.wait(None) for rollout, _ in rollouts))
    for rollout, active in rollouts:
        for handle in active:
            problem = rollout.problem(handle.entry) if handle.entry is not None else None
            if problem is not None:
                errors.append(_as_users(handle, problem))
    _raise(errors, PoolStopError, "did not stop", len(handles))


def _by_host(handles: Iterable[Handle]) -> dict[Host, list[Handle]]:
    found: dict[Host, list[Handle]] = {}
    for handle in handles:
        if handle.host is not None and handle.entry is not None:
            found.setdefault(handle.host, []).append(handle)
    return found


def _relate(host: Host, handles: Sequence[Handle]) -> None:
    """Let those that are stopped together go in the order of their dependencies, however they were started."""
    names = {handle: handle.entry.name for handle in handles if handle.entry is not None}
    needed = dependencies_among(handles, names)
    for handle in handles:
        host.relate(handle, needed[handle])


@dataclass(slots=True)
class _Ordered:
    """A server that is to arrive."""

    handle: Handle
    config: ServerConfig  # as its pool furnishes it; its own when it cannot be started
    startable: bool

    @property
    def entry(self) -> Entry:
        assert self.handle.entry is not None
        return self.handle.entry


class _Arrival:
    """One order to start or restart servers, on the engine's loop."""

    def __init__(self, kind: type[PoolError], limit: float | None, stays: Stays | None) -> None:
        self._kind = kind
        self._limit = limit
        self._stays = stays
        self._errors: dict[Startable, ServerError] = {}
        self._rollouts: dict[Host, Rollout] = {}
        self._stops: list[concurrent.futures.Future[None]] = []
        self._handles: list[Handle] = []

    async def run(self, servers: Sequence[Startable]) -> None:
        """Raises the kind of error with every failure."""
        deadline = None if self._limit is None else asyncio.get_running_loop().time() + self._limit
        free = await self._previous_stops(servers)
        ordered: list[_Ordered] = []
        try:
            ordered = self._prepared(free)
            self._begin(ordered)
            await self._wait(ordered, deadline)
            await self._conclude(ordered)
        finally:
            for handle in self._handles:
                handle.orders -= 1
            for each in ordered:
                if each.handle.host is not None:
                    each.handle.host.look(each.handle)
        for future in self._stops:
            await asyncio.shield(asyncio.wrap_future(future))
        stays = self._stays or (lambda server: True)
        errors = [self._errors[server] for server in servers if server in self._errors and stays(server)]
        what = "did not restart" if self._kind is PoolRestartError else "did not start"
        _raise(errors, self._kind, what, len(servers))

    async def _previous_stops(self, servers: Sequence[Startable]) -> Sequence[Startable]:
        """Wait for the stops that were ordered before; the servers for which they were over in time."""

        async def over() -> None:
            while futures := {
                future for each in servers if (known := living(each)) for future in known.stops
            }:
                await asyncio.wait([asyncio.wrap_future(future) for future in futures])

        try:
            await asyncio.wait_for(over(), self._limit)
        except TimeoutError as error:
            stopping = {each for each in servers if (known := living(each)) is not None and known.stops}
            self._errors = {server: self._late(server, error) for server in stopping}
            return [server for server in servers if server not in stopping]
        return servers

    def _late(self, server: Startable, cause: BaseException) -> ServerError:
        problem = ServerError(f"was not ready within {self._limit:g} s", name=server.name, bind=server.bind)
        problem.__cause__ = cause
        return problem

    # Asking the core.

    def _prepared(self, servers: Sequence[Startable]) -> list[_Ordered]:
        """The servers as they are to be asked for, and those that others depend on although they cannot be."""
        found: list[_Ordered] = []
        for server in servers:
            with LOCK:  # a server that leaves the pool from now on is stopped
                if self._stays is not None and not self._stays(server):
                    continue
                handle = handle_of(server)
                handle.orders += 1
                self._handles.append(handle)
            config, startable = server.config, True
            if self._stays is not None and config.disabled:
                startable = False
                if handle.observed.state is State.RUNNING and (future := order_stop([server])) is not None:
                    self._stops.append(future)
                    continue
            elif handle.entry is None and handle.observed.ready and self._kind is PoolStartError:
                continue  # a job that is done
            else:
                try:
                    config = server._shared.prepare(config)
                except ServerError as error:
                    self._refuse(handle, error)
                    startable = False
            found.append(_Ordered(handle, config, startable))
        needed = {dependency.name for server in servers for dependency in server.config.depends_on}
        return [each for each in found if each.startable or each.handle.server.name in needed]

    def _refuse(self, handle: Handle, error: ServerError) -> None:
        if handle.observed.state is State.RUNNING:
            error = _serves_on(error)
        else:
            handle.refuse(error)
        self._errors[handle.server] = error

    def _begin(self, ordered: Sequence[_Ordered]) -> None:
        hosts: dict[Host, list[_Ordered]] = {}
        for each in ordered:
            hosts.setdefault(each.handle.host or host_of(each.handle.server._shared), []).append(each)
        for host, group in hosts.items():
            names = {each.handle: host.reserve(each.handle) for each in group}
            needed = dependencies_among([each.handle for each in group], names)
            replace = self._kind is PoolRestartError
            changed = [
                host.admit(each.handle, self._furnished(each, names, needed), replace=replace)
                for each in group
            ]
            entries = [each.entry for each in group if each.startable]
            self._rollouts[host] = Rollout(host.core, self._kind, entries)
            for each, is_new in zip(group, changed, strict=True):
                if each.startable:
                    self._order(host, each, changed=is_new)

    def _furnished(
        self,
        each: _Ordered,
        names: dict[Handle, str],
        needed: dict[Handle, tuple[Dependency, ...]],
    ) -> ServerConfig:
        """The configuration for the core, which knows other names, and only what is started together."""
        config = each.config
        dependencies = needed[each.handle]
        if self._stays is None:
            dependencies = each.entry.config.depends_on if each.handle.entry is not None else ()
        changes = {"name": names[each.handle], "depends_on": dependencies}
        same = all(getattr(config, key) == value for key, value in changes.items())
        return config if same else config.model_copy(update=changes)

    def _order(self, host: Host, each: _Ordered, *, changed: bool) -> None:
        core, entry = host.core, each.entry
        holder = core.holder(entry)
        if holder is not None:
            problem = ServerError(
                f"its address is in use by {host.in_users_names(holder.name)!r} of this process",
                name=each.handle.server.name,
                bind=each.handle.server.bind,
                hint="stop that one first",
            )
            self._refuse(each.handle, problem)
            return
        each.handle.refusal = None
        core.give_state(entry, each.handle.server._shared.values)
        runs = entry.wanted and bool(entry.workers)
        if self._kind is PoolRestartError and runs and not changed:
            core.restart(entry, retries=entry.sleepy)
        elif changed or not (entry.wanted and entry.ready):
            core.start(entry, ignore_dependencies=self._stays is None, retries=entry.sleepy)
        each.handle.awaiting.add(self)

    # Waiting for it.

    async def _wait(self, ordered: Sequence[_Ordered], deadline: float | None) -> None:
        left = None if deadline is None else max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            await asyncio.gather(*(rollout.wait(left) for rollout in self._rollouts.values()))
        except asyncio.CancelledError:
            for each in ordered:
                self._give_up(each)
            raise
        finally:
            for each in ordered:
                each.handle.awaiting.discard(self)

    def _give_up(self, each: _Ordered, problem: ServerError | None = None) -> bool:
        """Abandon what is not ready yet, unless another order waits for it as well; whether it was abandoned."""
        handle = each.handle
        handle.awaiting.discard(self)
        if (
            handle.host is None
            or handle.awaiting
            or not each.startable
            or each.entry.failed
            or each.entry.settled
        ):
            return False
        handle.host.core.abandon(each.entry, problem)
        return True

    async def _conclude(self, ordered: Sequence[_Ordered]) -> None:
        abandoned: dict[Host, list[Handle]] = {}
        for each in ordered:
            handle, host = each.handle, each.handle.host
            if host is None or not each.startable or handle.server in self._errors:
                continue
            problem = self._problem(each, self._rollouts[host])
            if problem is None:
                self._arrived(host, each)
                continue
            self._errors[handle.server] = problem
            if self._give_up(each, problem):
                abandoned.setdefault(host, []).append(handle)
            if each.entry.failed:
                handle.refusal = problem
        for host, handles in abandoned.items():
            await host.wait_until(handles, lambda entry: entry.at_rest or entry.settled, _KILL_SECONDS)
        for each in ordered:
            if each.handle.server in self._errors and each.handle.observed.state is State.RUNNING:
                self._errors[each.handle.server] = _serves_on(self._errors[each.handle.server])

    def _problem(self, each: _Ordered, rollout: Rollout) -> ServerError | None:
        server, entry = each.handle.server, each.entry
        if entry in rollout.missing:
            return self._late(server, TimeoutError())
        problem = rollout.problem(entry)
        if problem is None:
            return None
        if rollout.is_overtaken(entry):
            return ServerError("was stopped before it was ready", name=server.name, bind=server.bind)
        return _as_users(each.handle, problem)

    def _arrived(self, host: Host, each: _Ordered) -> None:
        handle = each.handle
        if is_leaving(each.entry):
            future = engine.submit(host.wait_until([handle], lambda entry: not is_leaving(entry), None))
            handle.ending.add(future)
            future.add_done_callback(handle.ending.discard)
        context = handle.server._shared.context
        if context is not None and not each.entry.at_rest:
            handle.context = context
            context.attach(handle, lambda: order_stop([handle.server]))


def _as_users(handle: Handle, problem: ServerError) -> ServerError:
    """The problem in the names of the user's servers; a program has no command that shows logs."""
    server, message = handle.server, problem.message
    if handle.host is not None:
        message = handle.host.in_users_names(message)
    hint = problem.hint.replace(f"poolctl logs {problem.name}", "").removeprefix("; ")
    found = ServerError(message, name=server.name, bind=server.bind, hint=hint)
    found.__cause__ = problem.__cause__
    return found


def _serves_on(problem: ServerError) -> ServerError:
    if not problem.message.endswith(_SERVES_ON):
        problem.message += _SERVES_ON
        problem.args = (problem.message,)
    return problem


_SERVES_ON = "; the old instance serves on"


def _raise(errors: list[ServerError], kind: type[PoolError], what: str, count: int) -> None:
    if not errors:
        return
    if count == 1:
        raise kind(f"{errors[0].name} {what}", errors)
    raise kind(f"{len(errors)} of {count} servers {what}", errors)
