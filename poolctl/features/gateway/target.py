"""The availability of a route's targets, and what the supervisor and other features report about them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, NamedTuple

from poolctl.core.core import Core
from poolctl.core.schedules import asleep_until
from poolctl.core.server_entry import Entry
from poolctl.core.worker import LEAVING
from poolctl.routing import route_health as health
from poolctl.routing.route_health import RouteHealth
from poolctl.routing.route_report import BreakerState
from poolctl.states import State
from poolctl.time_windows import until_text

from .settings import H2


class TargetState(IntEnum):
    """The state of a target. The targets with the lowest state get the requests; from DRAINING on, a target gets none.

    A connection to a STARTING target waits until it is ready; one to a SLEEPING target wakes it. A DRAINING target
    serves only clients with its cookie. STOPPED, by a command, does not count as a failure.
    """

    READY, STARTING, SLEEPING, DRAINING, STOPPED, DOWN, FAILED = range(7)


_HEALTH = {
    TargetState.READY: health.HEALTHY,
    TargetState.STARTING: health.STARTING,
    TargetState.SLEEPING: health.NAPPING,
    TargetState.DRAINING: health.UNKNOWN,
    TargetState.STOPPED: health.UNKNOWN,
    TargetState.DOWN: health.UNHEALTHY,
    TargetState.FAILED: health.ERROR,
}


class Target(NamedTuple):
    """A target of a route: its state, and the reason why it gets few or no requests.

    `answers` is whether requests or probes have succeeded, None before the first. While its breaker is half-open, it
    gets at most `probes` concurrent requests. `serves`: it gets requests now (see `TargetsNow.of`).
    """

    state: TargetState = TargetState.READY
    reason: str = ""
    answers: bool | None = True
    breaker: BreakerState = BreakerState.CLOSED
    probes: int = 0
    serves: bool = False

    @property
    def can_serve(self) -> bool:
        """Whether it would get requests if there were no other target."""
        return self.state < TargetState.DRAINING

    @property
    def is_unproven(self) -> bool:
        """Whether only its first good answer will show that it serves."""
        return self.state is TargetState.READY and not (self.reason or self.answers)

    @property
    def health(self) -> RouteHealth:
        """The health of a route that has only this target."""
        if self.is_unproven:
            status = health.UNKNOWN if self.answers is None else health.UNHEALTHY
            why = "it has not answered yet" if self.answers is None else "all its requests have failed so far"
            return RouteHealth(status=status, detail=why)
        status = _HEALTH[self.state]
        if self.can_serve and self.breaker is not BreakerState.CLOSED:
            status = health.UNHEALTHY
        return RouteHealth(status=status, detail=self.reason)


def serving_state(targets: Iterable[Target]) -> TargetState:
    """The state of the serving targets; READY if none serves."""
    return max((target.state for target in targets if target.serves), default=TargetState.READY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """A routed server as a target, and its address. `ready_at` is when its newest worker became ready, monotonic.

    `processes` are the addresses of a proxied server's ready processes, None for other servers. `numbered` has the
    newest address of each process number, "" while no such process is ready. `binds_itself`: the program opens its
    address itself; `is_leaving`: an earlier process may still serve there. `h2`: HTTP/2 instead of HTTP/1.1.
    """

    target: Target
    bind: str = ""
    tls: bool = False
    ready_at: float = 0.0
    processes: tuple[str, ...] | None = None
    numbered: tuple[str, ...] = ()
    binds_itself: bool = False
    is_leaving: bool = False
    h2: bool = False

    @property
    def is_awaited(self) -> bool:
        """Whether connections wait in the forwarder while it starts, because the pool has no listener for it."""
        return self.binds_itself or self.processes is not None


def facts_of(core: Core, entry: Entry) -> ServerFacts:
    """The server's current address and its state."""
    config, endpoints = entry.config, core.endpoints(entry.config)
    processes, numbered = _processes(entry) if config.is_proxied else (None, ())
    return ServerFacts(
        target=_target_of(core, entry, waits=bool(endpoints) or config.is_proxied or config.binds_itself),
        bind=endpoints[0] if endpoints else config.key,
        tls=bool(config.tls),
        ready_at=max((worker.ready_at or 0.0 for worker in entry.observed.ready), default=0.0),
        processes=processes,
        numbered=numbered,
        binds_itself=config.binds_itself,
        h2=config.backend_protocol == H2,
        is_leaving=any(worker.phase in LEAVING for worker in entry.observed.workers.values()),
    )


def _target_of(core: Core, entry: Entry, *, waits: bool) -> Target:
    """The server as a target; `waits`: connections are accepted before it is ready."""
    if entry.ready and not entry.out_of_rotation:
        return Target()
    if (until := asleep_until(entry)) is not None:
        why = f"kept asleep {until_text(until or None, core.clock.time())}".rstrip()
        return Target(TargetState.STOPPED, why)
    # Even while its last worker is still draining, a connection to a sleeping server wakes it.
    if entry.listener.armed is not None or entry.state is State.SLEEPING:
        return Target(TargetState.SLEEPING)
    retries_soon = entry.state is State.BACKOFF and not entry.refuses
    recovers = entry.state is State.RUNNING and entry.is_recovering
    if waits and (entry.state is State.STARTING or retries_soon or recovers):
        return Target(TargetState.STARTING)
    # The address of a starting server may not be open yet: a connection would be refused.
    state = State.STOPPED if entry.state is State.STARTING else entry.state
    why = f"the server is {'not ready' if state is State.RUNNING else state.value}"
    if state in (State.STOPPED, State.DISABLED, State.DRAINING):
        return Target(TargetState.STOPPED, why)
    return Target(TargetState.FAILED if state is State.FAILED else TargetState.DOWN, why)


def _processes(entry: Entry) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The addresses of a proxied server's ready processes: all, and for each index the newest, or ""."""
    ready = [
        (worker, worker.placement.address)
        for worker in entry.observed.ready
        if worker.placement is not None and not worker.unhealthy and worker.exit is None
    ]
    newest = {worker.index: address for worker, address in sorted(ready, key=lambda pair: pair[0].generation)}
    return (
        tuple(address for _, address in ready),
        tuple(newest.get(index, "") for index in range(entry.size)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineState:
    """The state of the container or virtual machine behind a URL; `state` is "" if there is no such machine.

    `why` is the reason why it could not be started. Requests wait at most `start_seconds` for a start. `answers` counts
    the answers to requests to start it.
    """

    RUNNING: ClassVar[str] = "running"
    STOPPED: ClassVar[str] = "stopped"
    STARTING: ClassVar[str] = "starting"
    FAILED: ClassVar[str] = "failed"
    UNKNOWN: ClassVar[str] = "unknown"

    state: str = ""
    why: str = ""
    start_seconds: float = 60.0
    answers: int = 0
