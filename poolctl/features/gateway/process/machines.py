"""Containers and virtual machines behind URLs. The supervisor starts them on demand, while requests wait."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from .backends.backends import Backends
from .backends.route_backends import (
    DOWN_RETRY_SECONDS,
    READY,
    SLEEPING,
    STARTING,
    Backend,
    BackendVerdict,
    NoBackend,
)
from .proxy.backend_connection import BackendConnection
from .proxy.connection_pool import ProxyConnections
from .settings import Endpoint, MachineState

_RANKS = {MachineState.STOPPED: SLEEPING, MachineState.STARTING: STARTING}
# Pauses between attempts to connect to a service that its machine has just started.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 1.0
# How long the supervisor may take to find out whether a machine has been stopped, and how long its answer holds.
_ANSWER_SECONDS = 5.0
_HOLDS_SECONDS = 1.0


class BackendConnector(Protocol):
    """The part of the gateway's Edge that connects to backends."""

    wake: Callable[[str], None]
    backends: Backends
    pool: ProxyConnections

    def now(self) -> float: ...

    async def connect(self, endpoint: Endpoint) -> BackendConnection: ...


class _Machine:
    """The last reported state of a container or virtual machine. The next report sets the event `changed`."""

    def __init__(self, state: MachineState) -> None:
        self.state = state
        self.changed = asyncio.Event()
        self.started_until = 0.0  # before this time, its service may not accept connections yet
        self.answered_at = -math.inf  # when the supervisor last answered a wake

    @property
    def is_up(self) -> bool:
        """True if the last report says that the machine runs, or that the machine's state is unknown."""
        return self.state.state in (MachineState.RUNNING, MachineState.UNKNOWN)


class WakeableMachines:
    """The containers and virtual machines behind backends, by URL; `connect` starts a stopped one and waits for it."""

    def __init__(self, edge: BackendConnector) -> None:
        self._edge = edge
        self._machines: dict[str, _Machine] = {}

    def __contains__(self, url: str) -> bool:
        return url in self._machines

    def update(self, state: MachineState) -> None:
        """Store the state of a machine, which the supervisor reports by itself and in answer to `Edge.wake`."""
        machine = self._machines.get(state.host)
        if machine is None:
            machine = self._machines[state.host] = _Machine(state)
            self._apply_state_to_backend(state)
            return
        before, machine.state = machine.state, state
        now = self._edge.now()
        if state.answers != before.answers:
            machine.answered_at = now
        if state.state != before.state:
            if not machine.is_up:
                machine.started_until = 0.0
            elif before.state in _RANKS:
                machine.started_until = now + state.start_seconds
            self._apply_state_to_backend(state)
        changed, machine.changed = machine.changed, asyncio.Event()
        changed.set()

    def clear(self) -> None:
        """Remove all machines; requests that wait for one then try to connect."""
        for url in [*self._machines]:
            self.remove(url)

    def remove(self, url: str) -> None:
        """Remove the machine of this URL, because the URL no longer belongs to a known machine."""
        if (machine := self._machines.get(url)) is not None:
            self.update(replace(machine.state, state=MachineState.UNKNOWN))
            del self._machines[url]

    def _apply_state_to_backend(self, state: MachineState) -> None:
        blocked = None
        if state.state == MachineState.FAILED:
            seconds = state.retry_seconds or DOWN_RETRY_SECONDS
            blocked = BackendVerdict(False, state.why, seconds, until=self._edge.now() + seconds)
        if state.state not in (MachineState.RUNNING, MachineState.UNKNOWN):
            # Idle connections to it are dead: a request on one of them would wait for a long time.
            self._edge.pool.close_idle_to(Endpoint.of_url(state.host))
        self._edge.backends.set_rank(state.host, _RANKS.get(state.state, READY), blocked)

    async def connect(self, backend: Backend, connect_seconds: float) -> BackendConnection:
        """A new connection to the backend, after its machine has been started if necessary.

        Each attempt may take `connect_seconds`. Raises OSError when the machine runs but does not accept the
        connection, and NoBackend when it cannot be started in time.
        """
        edge, machine = self._edge, self._machines[backend.key]
        ends = edge.now() + machine.state.start_seconds
        pause, waited = _FIRST_PAUSE_SECONDS, False
        while True:
            # It is another object after `clear`, when a new supervisor has reported it.
            machine = self._machines.get(backend.key, machine)
            state = machine.state
            if state.state == MachineState.FAILED:
                raise NoBackend(state.why, state.retry_seconds)
            if not machine.is_up:
                edge.wake(backend.key)
                await self._wait_for_change_or_raise(machine, ends)
                waited = True
                continue
            try:
                async with asyncio.timeout(connect_seconds or None):
                    connection = await edge.connect(backend.endpoint)
            except OSError:
                if waited or edge.now() < machine.started_until:
                    # Its service needs some time, too.
                    if edge.now() + pause >= ends:
                        raise NoBackend(
                            "its machine accepts no connections yet", DOWN_RETRY_SECONDS
                        ) from None
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                elif not await self._ask_whether_up(backend.key, machine):
                    waited = True
                else:
                    raise
            else:
                machine.started_until = 0.0
                return connection

    async def _wait_for_change_or_raise(self, machine: _Machine, ends: float) -> None:
        try:
            async with asyncio.timeout_at(ends):
                await machine.changed.wait()
        except TimeoutError:
            raise NoBackend("its machine is still starting", DOWN_RETRY_SECONDS) from None

    async def _ask_whether_up(self, url: str, machine: _Machine) -> bool:
        """Ask the supervisor for the machine's state. Returns False if it is stopped, or has only just been started."""
        edge, answers = self._edge, machine.state.answers
        if edge.now() >= machine.answered_at + _HOLDS_SECONDS:
            edge.wake(url)
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    while machine.is_up and machine.state.answers == answers:
                        await machine.changed.wait()
            except TimeoutError:
                pass
        return machine.is_up and edge.now() >= machine.started_until
