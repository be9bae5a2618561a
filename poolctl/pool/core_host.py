"""The servers that run: a `Handle` for each, a core for each runner, and the order to stop.

Any thread may read a handle and order a stop; everything else happens on the loop thread.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from poolctl.clock import Clock
from poolctl.config import Dependency, ServerConfig
from poolctl.core.command_goal import CommandGoal, wait_until
from poolctl.core.core import Core, RunnerEventForwarder
from poolctl.core.server_entry import Availability, Entry
from poolctl.core.server_state import ListenerState
from poolctl.core.worker import LEAVING
from poolctl.errors import (
    PoolError,
    PoolMonitorError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
    ServerError,
    hint_without,
)
from poolctl.runners.runner_protocol import Exit, Runner
from poolctl.states import State, Status
from poolctl.worker import tally

from . import loop_thread
from .context import PoolContext, error_about
from .loop_thread import LOCK

Future = concurrent.futures.Future[None]


@dataclass(frozen=True, slots=True)
class ServerRuntimeState:
    """The observed state of a server at one time. Any thread may read it."""

    state: State = State.STOPPED
    ready: bool = False
    probed: bool = False  # the health comes from its probes
    health: Status = Status.UNKNOWN
    message: str = ""
    pids: tuple[int, ...] = ()
    endpoints: tuple[str, ...] = ()
    ready_since: float | None = None  # monotonic
    config: ServerConfig | None = None  # the user's configuration that the server runs with


class Handle:
    """The runtime state of a server, created at its first start. `entry` is its state in the `Core`, None if inactive.

    Only the loop thread changes it; any thread may read it. The thread keeps the handle alive, but the handle refers
    weakly to its server: if the program drops a running server and its pool, the server is stopped.
    """

    def __init__(self, server: object, config: ServerConfig) -> None:
        self._server = weakref.ref(server, self._stop_lost_server)
        self.config = config  # the server's newest one
        self.epoch = loop_thread.epoch
        self.observed = ServerRuntimeState()
        self.refusal: ServerError | None = None  # why the newest start has failed
        self.availability = Availability()
        self.host: CoreHost | None = None
        self.entry: Entry | None = None
        self.orders = 0  # the number of orders in progress
        self.awaiting: set[object] = set()  # the orders that wait for it to be ready
        self.stops: set[Future] = set()  # the orders that stop it
        self.ending: set[concurrent.futures.Future[Any]] = set()  # further futures that `Pool.join` awaits
        self.context: PoolContext | None = None  # the context that ends the server
        # Pairs: a configuration given to the core, and the user's configuration from which it was made.
        self.config_sources: list[tuple[ServerConfig, ServerConfig]] = []
        # Totals for metrics, from forgotten entries and ended workers.
        self.restarts = self.failures = self.wakes = 0
        self.exits = 0  # how often it was ready and a worker then ended by itself
        self.last_exit: Exit | None = None
        self.ended = [0] * tally.COUNTED

    def __repr__(self) -> str:
        return f"<Handle of {self.name} {self.observed.state}>"

    @property
    def name(self) -> str:
        """The name of the server."""
        return self.config.name

    def _stop_lost_server(self, _: object) -> None:
        # Called by the garbage collector, at any moment and in any thread: must not take a lock.
        host, entry = self.host, self.entry
        if host is None or entry is None or not entry.wanted or self.stops or self.epoch != loop_thread.epoch:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the server with it
            host.loop_thread.loop.call_soon_threadsafe(host.stop, self)
            warnings.warn(
                f"{self.name} was running when the last reference to it and to its pool went: it is stopped; "
                "call stop() before that, or use `async with`",
                ResourceWarning,
                stacklevel=2,
            )

    @property
    def is_active_or_ordered(self) -> bool:
        """Whether the server should run, has a worker, hook or open listener, or an order for it is in progress."""
        entry = self.entry
        return bool(self.orders or self.stops) or (entry is not None and not entry.is_fully_stopped)

    def refuse_connections(self) -> None:
        """Make a server in this process refuse connections from now on, even if the loop is blocked."""
        from poolctl.runners.inline_runner import InlineRunner

        host, entry = self.host, self.entry
        bound = entry.listener.bound if entry is not None else None
        if host is not None and bound is not None and isinstance(host.core.runner, InlineRunner):
            host.core.runner.refuse_connections(bound, host.loop_thread.loop)

    @property
    def probe_problem(self) -> str:
        """The problem found by the server's probes, or ""."""
        host, entry = self.host, self.entry
        return host.core.health.first_worker_problem(entry) if host is not None and entry is not None else ""

    @property
    def latency_seconds(self) -> float | None:
        """The latency of the last answer to a probe, or None."""
        host, entry = self.host, self.entry
        return host.core.health.latency_seconds(entry) if host is not None and entry is not None else None

    def availability_now(self) -> Availability:
        """How long the server has been up and down, until now."""
        with LOCK:
            availability = replace(self.availability)
            availability.add_elapsed(time.monotonic())
        return availability

    def record_observed_state(self, observed: ServerRuntimeState) -> None:
        """Record `observed` as the server's current state, and update the times that it was up and down."""
        with LOCK:
            self.observed = observed
            state, health, availability = observed.state.value, observed.health.value, self.availability
            if (state, health) != (availability.state, availability.health):
                availability.note(time.monotonic(), state=state, health=health)

    def note_exit(self, entry: Entry) -> None:
        """Count an unexpected exit of a worker, if the server was ready.

        Exits of jobs and of idle socket-activated programs are expected.
        """
        exit_ = entry.observed.last_exit
        if exit_ is None or exit_ is self.last_exit:
            return
        self.last_exit = exit_
        self.exits += self.observed.ready and not entry.config.job and not (entry.sleepy and exit_.ok)

    def record_start_failure(self, error: ServerError | None) -> None:
        """Record why the newest order to start the server has failed. When a stop begins, None clears the record.

        If the server is inactive, its observed state becomes FAILED for an error, and STOPPED for None.
        """
        self.refusal = error
        if self.entry is None or self.entry.is_fully_stopped:
            failed = None if error is None else ServerRuntimeState(State.FAILED, message=error.message)
            self.record_observed_state(failed or ServerRuntimeState())


class _NullRecorder:
    """Discards the events that a core records, because a pool in a Python program has no journal."""

    def record(self, kind: str, event: str, **detail: object) -> None:
        """Do nothing: a pool in a Python program has no journal for the event."""


class CoreHost(RunnerEventForwarder):
    """A `Core`, which supervises servers, and a `Handle` for each of them. Used on the loop thread only."""

    def __init__(self, runner: Runner, on: loop_thread.LoopThread) -> None:
        self.core = Core((), runner, Clock(), _NullRecorder())
        self.loop_thread = on
        self._handles: dict[str, Handle] = {}  # by their names in the core
        self.core.observers.add(self._changed)
        runner.events = self

    def add_up_counts(self, server: str, worker: str, counts: tally.Counts) -> None:
        if handle := self._handles.get(server):
            tally.add(handle.ended, counts)

    def register(self, handle: Handle) -> str:
        """Register the server in the core; returns its name there: its own, or one like `web~2` if that is taken."""
        if handle.entry is not None:
            return handle.entry.name
        if not self._handles:
            self.loop_thread.hold()
            self.loop_thread.on_exit[self] = self._stop_all
        name = base_name = handle.name
        number = 1
        while name in self._handles:
            number += 1
            name = f"{base_name}~{number}"
        self._handles[name] = handle
        handle.host = self
        return name

    def with_configured_server_names(self, text: str) -> str:
        """The text with the core's server names replaced by the user's names."""
        for name, handle in self._handles.items():
            if name != handle.name:
                text = text.replace(name, handle.name)
        return text

    def add_or_update(self, handle: Handle, config: ServerConfig, *, replace: bool, live: bool) -> bool:
        """Create the server's entry in the core, or update it to `config`. Return False if neither is necessary.

        An update is necessary if the user has changed the server's configuration. If only the application from the
        pool's handler differs, a running server is updated only with `replace`. With `live`, the workers continue and
        apply the new configuration.
        """
        source = handle.config
        if handle.entry is None:
            handle.entry = self.core.add(config, restarts=handle.restarts, failures=handle.failures)
            handle.config_sources = [(config, source)]
            return True
        configs = [handle.entry.config, *(worker.config for worker in handle.entry.observed.workers.values())]
        in_use = {id(config) for config in configs}
        handle.config_sources = [pair for pair in handle.config_sources if id(pair[0]) in in_use]
        runs = handle.entry.wanted and bool(handle.entry.observed.workers)
        same = handle.entry.config == config or (runs and not replace)
        if same and self._source(handle, handle.entry.config) is source:
            self.set_dependencies(handle, config.depends_on)
            return False
        handle.config_sources.append((config, source))
        self.core.change(handle.entry, config, live=live)
        return True

    def stop(self, handle: Handle) -> None:
        """Order the core to stop the server; returns at once. Ignores a server that this core does not manage."""
        if handle.host is self and handle.entry is not None:
            self.core.stop(handle.entry)

    async def _stop_all(self) -> None:
        entries = [handle.entry for handle in self._handles.values() if handle.entry is not None]
        for entry in entries:
            self.core.stop(entry)
        await wait_until(self.core, entries, lambda entry: entry.is_fully_stopped, None)

    def _changed(self, entry: Entry) -> None:
        handle = self._handles.get(entry.name)
        if handle is not None and handle.entry is entry:
            self.update_handle(handle)

    def set_dependencies(self, handle: Handle, dependencies: tuple[Dependency, ...]) -> None:
        """Make the server depend on `dependencies`, with the names that `register` returned for the servers."""
        assert handle.entry is not None
        before = self._source(handle, handle.entry.config)
        self.core.set_dependencies(handle.entry, dependencies)
        if before is not None and self._source(handle, handle.entry.config) is None:
            handle.config_sources.append((handle.entry.config, before))

    def update_handle(self, handle: Handle) -> None:
        """Copy the server's state from its core entry to its handle, and remove the entry if it is no longer needed.

        An entry is needed while the server is active, has an order in progress, or has dependents. After a removal the
        server's dependencies are updated, too, because their entries may no longer be needed.
        """
        pending = [handle]
        while pending:
            handle = pending.pop()
            entry = handle.entry
            if entry is None:
                continue
            handle.note_exit(entry)
            was_asleep = handle.observed.state is State.SLEEPING
            handle.record_observed_state(self._observed(handle, entry))
            is_asleep = handle.observed.state is State.SLEEPING
            if was_asleep and not is_asleep and entry.observed.has_pending_request and entry.wanted:
                handle.wakes += 1
            if handle.orders or not entry.is_fully_stopped or self.core.servers.dependents(entry):
                continue
            # Its dependencies may have been kept running for it.
            dependencies = [
                self._handles.get(dependency.name) for dependency in self.core.servers.dependencies(entry)
            ]
            pending += [dependency for dependency in dependencies if dependency is not None]
            self.core.forget(entry)
            del self._handles[entry.name]
            handle.restarts, handle.failures = entry.observed.restarts, entry.observed.failures
            handle.entry = handle.host = None
            if handle.context is not None:
                handle.context.detach(handle)
                handle.context = None
        if not self._handles and self.loop_thread.on_exit.pop(self, None) is not None:
            self.loop_thread.release()

    def _observed(self, handle: Handle, entry: Entry) -> ServerRuntimeState:
        if entry.wants_no_worker and not entry.observed.workers and handle.refusal is not None:
            return ServerRuntimeState(State.FAILED, message=handle.refusal.message)
        state, is_ready = entry.state, entry.ready
        ready = entry.observed.ready
        probed = any(worker.config.health.probed for worker in ready)
        listening = entry.listener.bound if entry.listener.state is ListenerState.OPEN else None
        return ServerRuntimeState(
            state=state,
            ready=is_ready,
            probed=probed,
            health=entry.health if probed else Status.OK if is_ready else Status.UNKNOWN,
            message=_message(entry, state),
            pids=tuple(dict.fromkeys(entry.pids)),
            endpoints=self.core.endpoints(listening) if listening is not None else (),
            ready_since=min(
                (worker.ready_at for worker in ready if worker.ready_at is not None), default=None
            ),
            config=self._source(handle, entry.config),
        )

    def _source(self, handle: Handle, config: ServerConfig) -> ServerConfig | None:
        """The user's configuration from which the core's `config` was derived; None if it is unknown."""
        return next((source for derived, source in handle.config_sources if derived is config), None)


def dependencies_among(
    handles: Sequence[Handle], names: dict[Handle, str]
) -> dict[Handle, tuple[Dependency, ...]]:
    """Return, for each server in `handles`, its dependencies that are in `handles`, too.

    `names` maps each server to its name in the core, and the returned dependencies have these names. A dependency that
    would close a cycle is left out.
    """
    by_name = {handle.name: handle for handle in handles}
    edges: dict[Handle, list[Handle]] = {}
    dependencies: dict[Handle, tuple[Dependency, ...]] = {}
    for handle in handles:
        needed = []
        for dependency in handle.config.depends_on:
            other = by_name.get(dependency.name)
            if other is not None and not _reaches(other, handle, edges):
                edges.setdefault(handle, []).append(other)
                renamed = names[other] != dependency.name
                needed.append(dependency.model_copy(update={"name": names[other]}) if renamed else dependency)
        dependencies[handle] = tuple(needed)
    return dependencies


def _reaches(start: Handle, goal: Handle, edges: dict[Handle, list[Handle]]) -> bool:
    seen: set[Handle] = set()
    pending = [start]
    while pending:
        handle = pending.pop()
        if handle is goal:
            return True
        if handle not in seen:
            seen.add(handle)
            pending += edges.get(handle, ())
    return False


def is_leaving(entry: Entry) -> bool:
    """Whether a worker of the server is draining or stopping."""
    return any(worker.phase in LEAVING for worker in entry.observed.workers.values())


def _message(entry: Entry, state: State) -> str:
    if state is State.FAILED and entry.observed.failure is not None:
        return entry.observed.failure.message
    ended = state is State.BACKOFF or (entry.completed and not entry.config.job)
    return entry.observed.last_exit.message if ended and entry.observed.last_exit is not None else ""


# The core host of each runner on the current loop thread, kept alive by its running servers. A host keeps its runner
# alive; nothing else here may do that, or the runner would never be freed.
_hosts: weakref.WeakValueDictionary[int, CoreHost] = weakref.WeakValueDictionary()
_threads_of_runners: weakref.WeakKeyDictionary[Runner, loop_thread.LoopThread] = weakref.WeakKeyDictionary()


def ensure_core_host(runner: Runner | None) -> CoreHost:
    """Return the CoreHost for a pool's runner, created if necessary; all pools without a runner share one."""
    current = loop_thread.get_or_start()
    if runner is None:
        from poolctl.runners.inline_runner import InlineRunner

        runner = current.own_runner = current.own_runner or InlineRunner()
    elif _threads_of_runners.get(runner) is not current:
        # The thread lives as long as the runner, which may be bound to its loop: the user may call the runner, too.
        _threads_of_runners[runner] = current
        current.runners.add(runner)
        current.hold()
        weakref.finalize(runner, current.release).atexit = False
    host = _hosts.get(id(runner))
    if host is None or host.loop_thread is not current or host.core.runner is not runner:
        host = _hosts[id(runner)] = CoreHost(runner, current)
    return host


def order_stop(handles: Sequence[Handle], limit: float | None = None) -> Future:
    """Order the servers to stop, from any thread; returns at once, with a future that is done when all have ended.

    `limit` (seconds) caps each `stop_timeout`. The future may raise PoolStopError.
    """
    with LOCK:
        # On the loop thread, begin at once, so that a later start finds the servers stopping.
        begun = _begin_stop(handles, limit) if loop_thread.is_own_thread() else None
        future = loop_thread.submit(_stop(handles, limit, begun))
        for handle in handles:
            handle.stops.add(future)

    def remove_stop(future: Future) -> None:
        for handle in handles:
            handle.stops.discard(future)

    future.add_done_callback(remove_stop)
    return future


def _begin_stop(handles: Sequence[Handle], limit: float | None) -> list[tuple[CommandGoal, Handle]]:
    hosts: dict[CoreHost, dict[Handle, str]] = {}
    for handle in handles:
        handle.record_start_failure(None)
        if handle.host is not None and handle.entry is not None:
            hosts.setdefault(handle.host, {})[handle] = handle.entry.name
    goals: list[tuple[CommandGoal, Handle]] = []
    for host, names in hosts.items():
        # Servers stopped together end in the order of their dependencies, even if started without them.
        for handle, needed in dependencies_among(list(names), names).items():
            host.set_dependencies(handle, needed)
        entries = [handle.entry for handle in names if handle.entry is not None]
        goal = CommandGoal(host.core, PoolStopError, entries)
        goals += [(goal, handle) for handle in names]
        for entry in entries:
            host.core.stop(entry, limit_seconds=limit)
    return goals


async def _stop(
    handles: Sequence[Handle], limit: float | None, already_begun: list[tuple[CommandGoal, Handle]] | None
) -> None:
    goals = _begin_stop(handles, limit) if already_begun is None else already_begun
    await asyncio.gather(*(goal.wait_until_settled(None) for goal in {goal for goal, _ in goals}))
    errors = []
    for goal, handle in goals:
        entry = handle.entry
        # A start waits for the stop to end, so a server that is wanted again was stopped.
        if entry is None or (goal.is_overtaken(entry) and not goal.has_failed(entry)):
            continue
        if (problem := goal.problem(entry)) is not None:
            errors.append(translate_problem(handle, problem))
    raise_if_any(errors, PoolStopError, len(handles))


def translate_problem(handle: Handle, problem: ServerError) -> ServerError:
    """The problem in terms of the Python API: with the pool's own server names, and without hints to run a command."""
    message = problem.message
    if handle.host is not None:
        message = handle.host.with_configured_server_names(message)
    error = error_about(handle.config, message, hint_without("poolctl ", problem.hint))
    error.__cause__ = problem.__cause__
    return error


_FAILED = {
    PoolStartError: "did not start",
    PoolStopError: "did not stop",
    PoolRestartError: "did not restart",
    PoolMonitorError: "cannot be monitored",
}


def raise_if_any(errors: list[ServerError], kind: type[PoolError], count: int) -> None:
    """Raise `kind` with these errors of an operation on `count` servers, if there are any."""
    if errors:
        subject = errors[0].name if count == 1 else f"{len(errors)} of {count} servers"
        raise kind(f"{subject} {_FAILED[kind]}", errors)
