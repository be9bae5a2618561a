"""The running servers of this process: their entries in the core of their runner, and their observed state."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from poolctl.clock import Clock
from poolctl.config import Dependency, ServerConfig
from poolctl.core.core import Core, until
from poolctl.core.decide import LEAVING, Listener, Trace
from poolctl.core.server_entry import Availability, Entry
from poolctl.errors import ServerError
from poolctl.monitor.server_metrics import Usage
from poolctl.runners.runner_protocol import Placement, Runner
from poolctl.states import State, Status
from poolctl.worker import tally

from . import loop_thread
from .loop_thread import LOCK
from .pool_context import PoolContext, Shared

Future = concurrent.futures.Future[None]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The observed state of a server at one moment. Any thread may read it."""

    state: State = State.STOPPED
    ready: bool = False
    probed: bool = False  # the health comes from its probes
    health: Status = Status.UNKNOWN
    message: str = ""
    pids: tuple[int, ...] = ()
    endpoints: tuple[str, ...] = ()
    ready_since: float | None = None  # monotonic
    config: ServerConfig | None = None  # the server's own, under which it runs


class Startable(Protocol):
    """The part of a server that its handle uses."""

    _shared: Shared
    _handle: Handle | None

    @property
    def name(self) -> str: ...
    @property
    def bind(self) -> str: ...
    @property
    def config(self) -> ServerConfig: ...


class Handle:
    """The running part of one server; created at its first start, with an entry in a core while not at rest.

    Written on the engine's loop only, read from any thread. The engine holds it, and it holds no reference to the
    server: if the program drops a running server and its pool, the server is stopped.
    """

    def __init__(self, server: Startable) -> None:
        self._server = weakref.ref(server, self._server_is_lost)
        self._config = server.config
        self.epoch = loop_thread.epoch
        self.observed = Snapshot()
        self.refusal: ServerError | None = None  # why the newest order to start it has failed
        self.availability = Availability()
        self.host: Host | None = None
        self.entry: Entry | None = None
        self.orders = 0  # under way
        self.awaiting: set[object] = set()  # the orders that wait for it to be ready
        self.stops: set[Future] = set()  # the orders that stop it
        self.ending: set[Future] = set()  # what `Pool.join` awaits besides
        self.context: PoolContext | None = None  # which ends it
        self.furnished: list[
            tuple[ServerConfig, ServerConfig]
        ] = []  # the configuration of the core, and the server's own
        # For its metrics: from its forgotten entries, and from its workers that have ended.
        self.restarts = self.failures = self.wakes = 0
        self.ended = [0] * tally.COUNTED
        self.usages: dict[int, Usage] = {}  # by pid
        self._clock = server._shared.clock

    def __repr__(self) -> str:
        return f"<Handle of {self.name} {self.observed.state}>"

    @property
    def config(self) -> ServerConfig:
        """The configuration of the server; the last known configuration if the server is lost."""
        server = self._server()
        if server is not None:
            self._config = server.config
        return self._config

    @property
    def name(self) -> str:
        """The name of the server."""
        return self.config.name

    @property
    def bind(self) -> str:
        """The address of the server."""
        return self.config.bind

    def _server_is_lost(self, _: object) -> None:
        # Called by the garbage collector, at any moment and in any thread: it takes no lock.
        host, entry = self.host, self.entry
        if host is None or entry is None or not entry.wanted or self.stops or self.epoch != loop_thread.epoch:
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the server with it
            host.engine.loop.call_soon_threadsafe(host.stop, self)
            warnings.warn(
                f"{self._config.name} was running when the last reference to it and to its pool went: it is stopped; "
                "call stop() before that, or use `async with`",
                ResourceWarning,
                stacklevel=2,
            )

    @property
    def busy(self) -> bool:
        """Whether the server has something to stop."""
        entry = self.entry
        return bool(self.orders or self.stops) or (entry is not None and not entry.at_rest)

    @property
    def uptime_seconds(self) -> float:
        """How long this instance has been ready; 0 without a ready instance."""
        since = self.observed.ready_since
        return 0.0 if since is None else self._clock.monotonic() - since

    @property
    def complaint(self) -> str:
        """The problem found by the server's probes, or ""."""
        host, entry = self.host, self.entry
        return host.core.health.complaint(entry) if host is not None and entry is not None else ""

    @property
    def latency_seconds(self) -> float | None:
        """The latency of the last answer to a probe, or None."""
        host, entry = self.host, self.entry
        return host.core.health.latency_seconds(entry) if host is not None and entry is not None else None

    def availability_now(self) -> Availability:
        """The times that the server has been up and down until now."""
        with LOCK:
            found = replace(self.availability)
            found.settle(self._clock.monotonic())
        return found

    def observe(self, observed: Snapshot) -> None:
        """Record the server's current state."""
        with LOCK:
            self.observed = observed
            state, health, known = observed.state.value, observed.health.value, self.availability
            if (state, health) != (known.state, known.health):
                known.note(self._clock.monotonic(), state=state, health=health)

    def refuse(self, error: ServerError | None) -> None:
        """Record that a start has failed, unless the server runs; None means that it is only stopped."""
        self.refusal = error
        if self.entry is None or self.entry.at_rest:
            self.observe(Snapshot(State.FAILED, message=error.message) if error is not None else Snapshot())


class _Silent:
    """Drops the events of a core: a program has no journal."""

    def record(self, kind: str, event: str, **detail: object) -> None:
        """See Recorder."""


class Host:
    """A runner's core on one engine, and the handles of its servers. Used on the engine's loop."""

    def __init__(self, runner: Runner, clock: Clock, on: loop_thread.Engine) -> None:
        self.core = Core((), runner, clock, _Silent(), trace=Trace.configured(os.environ))
        self.engine = on
        self._handles: dict[str, Handle] = {}  # by their names in the core
        self.core.listeners.add(self._changed)
        runner.events = self
        if runner.capabilities.counters is not None:
            runner.capabilities.counters.add_up = self._add_up

    def _add_up(self, worker: str, server: str, counts: tally.Counts) -> None:
        if handle := self._handles.get(server):
            tally.add(handle.ended, counts)

    def expired(self, placement: Placement) -> None:
        """See RunnerEvents."""
        if entry := self.core.entries.get(placement.server):
            self.core.renew(entry, placement.generation)

    def idle(self, placement: Placement, idle: bool) -> None:
        """See RunnerEvents."""
        if entry := self.core.entries.get(placement.server):
            self.core.idle(entry, placement.id, idle)

    def output_lost(self, name: str, count: int, path: str, reason: str) -> None:
        """Do nothing: a Python pool records no events."""

    def figures_refused(self, server: str, worker: str, reason: str) -> None:
        """Do nothing: a Python pool records no events."""

    def reserve(self, handle: Handle) -> str:
        """Choose the server's name in the core: its own, unless another server of that name runs there."""
        if handle.entry is not None:
            return handle.entry.name
        if not self._handles:
            self.engine.hold()
            self.engine.on_exit[self] = self._stop_all
        name = wanted = handle.name
        number = 1
        while name in self._handles:
            number += 1
            name = f"{wanted}~{number}"
        self._handles[name] = handle
        handle.host = self
        return name

    def in_users_names(self, text: str) -> str:
        """The text with the core's server names replaced by the user's names."""
        for name, handle in self._handles.items():
            if name != handle.name:
                text = text.replace(name, handle.name)
        return text

    def admit(self, handle: Handle, config: ServerConfig, *, replace: bool, live: bool = False) -> bool:
        """Create the server's entry with this configuration, or update its entry.

        Returns whether the entry has changed. A running server gets the configuration if its own has changed since, or
        for a restart: a handler may give a new application each time. With `live` its workers continue under it.
        """
        source = handle.config
        if handle.entry is None:
            handle.entry = self.core.add(config, restarts=handle.restarts, failures=handle.failures)
            handle.furnished = [(config, source)]
            return True
        in_use = [handle.entry.config, *(worker.config for worker in handle.entry.observed.workers.values())]
        handle.furnished = [pair for pair in handle.furnished if any(pair[0] is each for each in in_use)]
        runs = handle.entry.wanted and bool(handle.entry.observed.workers)
        same = handle.entry.config == config or (runs and not replace)
        if same and self._source(handle, handle.entry.config) is source:
            self.relate(handle, config.depends_on)
            return False
        handle.furnished.append((config, source))
        self.core.change(handle.entry, config, live=live)
        return True

    async def wait_until(
        self, handles: Iterable[Handle], test: Callable[[Entry], bool], timeout_seconds: float | None
    ) -> None:
        """Wait until the test is true for each handle's entry, or the timeout has passed."""
        entries = [handle.entry for handle in handles if handle.entry is not None]
        await until(self.core, entries, test, timeout_seconds, lambda entry: None)

    def stop(self, handle: Handle) -> None:
        """Stop the server if it is running."""
        if handle.host is self and handle.entry is not None:
            self.core.stop(handle.entry)

    async def _stop_all(self) -> None:
        """Stop all servers, because the process is about to end."""
        handles = list(self._handles.values())
        for handle in handles:
            if handle.entry is not None:
                self.core.stop(handle.entry)
        await self.wait_until(handles, lambda entry: entry.at_rest, None)

    def _changed(self, entry: Entry) -> None:
        handle = self._handles.get(entry.name)
        if handle is not None and handle.entry is entry:
            self.look(handle)

    def relate(self, handle: Handle, dependencies: tuple[Dependency, ...]) -> None:
        """Make the server depend on these servers, given by their names in the core."""
        assert handle.entry is not None
        before = self._source(handle, handle.entry.config)
        self.core.relate(handle.entry, dependencies)
        if before is not None and self._source(handle, handle.entry.config) is None:
            handle.furnished.append((handle.entry.config, before))

    def look(self, handle: Handle) -> None:
        """Record the server's current state.

        Drops its entry if the server is at rest and neither an order nor another server needs it.
        """
        ahead = [handle]
        while ahead:
            handle = ahead.pop()
            entry = handle.entry
            if entry is None:
                continue
            slept = handle.observed.state is State.SLEEPING
            handle.observe(self._observed(handle, entry))
            if (
                slept
                and handle.observed.state is not State.SLEEPING
                and entry.observed.called
                and entry.wanted
            ):
                handle.wakes += 1
            if handle.orders or not entry.at_rest or self.core.servers.dependents(entry):
                continue
            # Its dependencies may have been kept running for it.
            dependencies = [self._handles.get(each.name) for each in self.core.servers.dependencies(entry)]
            ahead += [each for each in dependencies if each is not None]
            self.core.forget(entry)
            del self._handles[entry.name]
            handle.restarts, handle.failures = entry.observed.restarts, entry.observed.failures
            handle.entry = handle.host = None
            if handle.context is not None:
                handle.context.detach(handle)
                handle.context = None
        if not self._handles and self.engine.on_exit.pop(self, None) is not None:
            self.engine.release()

    def _observed(self, handle: Handle, entry: Entry) -> Snapshot:
        if entry.rests and not entry.observed.workers and handle.refusal is not None:
            return Snapshot(State.FAILED, message=handle.refusal.message)
        state, is_ready = State(entry.state), entry.ready
        ready = entry.observed.ready
        probed = any(worker.config.health.probed for worker in ready)
        listening = entry.listener.bound if entry.listener.state is Listener.OPEN else None
        return Snapshot(
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
        """The user's configuration from which the core's configuration was made, or None."""
        return next((source for made, source in handle.furnished if made is config), None)


def dependencies_among(
    handles: Sequence[Handle], names: dict[Handle, str]
) -> dict[Handle, tuple[Dependency, ...]]:
    """The dependencies of each server among these, by their names in the core, without circular dependencies."""
    by_name = {handle.name: handle for handle in handles}
    edges: dict[Handle, list[Handle]] = {}
    found: dict[Handle, tuple[Dependency, ...]] = {}
    for handle in handles:
        mine = []
        for dependency in handle.config.depends_on:
            other = by_name.get(dependency.name)
            if other is not None and not _reaches(other, handle, edges):
                edges.setdefault(handle, []).append(other)
                renamed = names[other] != dependency.name
                mine.append(dependency.but(name=names[other]) if renamed else dependency)
        found[handle] = tuple(mine)
    return found


def _reaches(start: Handle, goal: Handle, edges: dict[Handle, list[Handle]]) -> bool:
    seen: set[Handle] = set()
    ahead = [start]
    while ahead:
        handle = ahead.pop()
        if handle is goal:
            return True
        if handle not in seen:
            seen.add(handle)
            ahead += edges.get(handle, ())
    return False


def is_leaving(entry: Entry) -> bool:
    """Whether replaced workers are still finishing their requests."""
    return any(worker.phase in LEAVING for worker in entry.observed.workers.values())


def _message(entry: Entry, state: State) -> str:
    if state is State.FAILED and entry.observed.failure is not None:
        return entry.observed.failure.message
    ended = state is State.BACKOFF or (entry.completed and not entry.config.job)
    return entry.observed.last_exit.message if ended and entry.observed.last_exit is not None else ""


def handle_of(server: Startable) -> Handle:
    """The server's handle, created if it does not exist."""
    with LOCK:
        handle = living(server)
        if handle is None:
            handle = server._handle = Handle(server)
        return handle


def living(server: Startable) -> Handle | None:
    """The server's handle, or None.

    There is none before the first start, and in a forked child, where nothing of the server is left.
    """
    handle = server._handle
    return handle if handle is not None and handle.epoch == loop_thread.epoch else None


# The host of each runner on the current engine. None of these may hold a runner, or it would never go: its host holds
# it, and is held by its servers while they run.
_hosts: weakref.WeakValueDictionary[int, Host] = weakref.WeakValueDictionary()
_tied: weakref.WeakKeyDictionary[Runner, loop_thread.Engine] = weakref.WeakKeyDictionary()
_own_runner: Runner | None = None


def host_of(shared: Shared) -> Host:
    """The host of a pool's runner on the current engine; pools without a runner share the host of this process."""
    global _own_runner
    current = loop_thread.engine()
    runner = shared.runner
    if runner is None:
        if _own_runner is None:
            from poolctl.runners.inline_runner import InlineRunner

            _own_runner = InlineRunner()
        runner = _own_runner
    elif _tied.get(runner) is not current:
        # It may be tied to the loop, on which its user may call it as well.
        _tied[runner] = current
        current.hold()
        weakref.finalize(runner, current.release).atexit = False
    host = _hosts.get(id(runner))
    if host is None or host.engine is not current or host.core.runner is not runner:
        host = _hosts[id(runner)] = Host(runner, shared.clock, current)
    return host


def _forget_in_child() -> None:
    global _own_runner
    _own_runner = None
    _hosts.clear()
    _tied.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
