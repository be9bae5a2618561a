"""Targets that are started on demand, and have no listener of the pool where connections could wait.

They are proxied servers, programs that open their address themselves, and machines. Their connections wait in the
forwarder, which asks the supervisor to wake the target.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping

from poolctl.core.core import Core
from poolctl.json_form import to_json

from ..forwarder.waiting import AwaitedTarget
from ..settings import Endpoint
from ..target import MachineState, ServerFacts, TargetState
from .forwarding import Order, WaitingListeners
from .outside_targets import MachineSource
from .targets import Targets

_DOWN = (MachineState.STOPPED, MachineState.STARTING)


class AwaitedTargets:
    """The targets of the current routes for which connections wait, and their states for the forwarder.

    Set `machines` to the feature that knows the machines behind URLs.
    """

    def __init__(self, listeners: WaitingListeners, core: Core, targets: Targets) -> None:
        self.machines: MachineSource | None = None
        self._core = core
        self._targets = targets
        self._listeners = listeners
        # By machine: the number of the last wake, and the machine's `answers` at that time.
        self._wakes: dict[str, tuple[int, int]] = {}
        self._answered: dict[str, int] = {}  # by target: see AwaitedTarget
        # Targets of an earlier supervisor with an unknown state: connections may be waiting for them.
        self.unknown: set[str] = set()
        # The times until which services of started machines may not accept connections yet.
        self._starting_until: dict[str, float] = {}

    def open_listeners(self, facts: Mapping[str, ServerFacts]) -> Mapping[str, str]:
        """Open a listener for each target, and close all others; returns their addresses in HAProxy's syntax.

        `facts` are about the routed servers, by name.
        """
        machines = self.machines.states.keys() if self.machines is not None else self.unknown
        woken = self.unknown & machines & self._wakes.keys()
        self.unknown -= machines | self._core.entries.keys()
        for key in woken:
            self.start(key)
        keys = [*self._keys(facts)]
        self._listeners.close_others(keys)
        return {key: self._listeners.of(key).address for key in keys}

    def orders(self, facts: Mapping[str, ServerFacts], uids: list[int]) -> Iterator[tuple[str, Order]]:
        """The forwarder's orders, by target. Processes of the users `uids` may connect."""
        for key in self._keys(facts):
            server = facts.get(key)
            target = self._awaited_machine(key) if server is None else self._awaited_server(key, server)
            yield key, Order(to_json(target), self._listeners.of(key).sock, uids)

    def wake(self, key: str, number: int) -> None:
        """Start the target if it is stopped: a connection waits. `number` is that of the forwarder's wake."""
        if key in self._core.entries:
            self._answered[key] = number
        elif self.machines is not None:
            machine = self.machines.states.get(key)
            self._wakes[key] = number, 0 if machine is None else machine.answers
        self.start(key)

    def start(self, key: str) -> None:
        """Start the target if it is stopped."""
        if (entry := self._core.entries.get(key)) is not None:
            self._core.wake(entry)
        elif self.machines is not None:
            self.machines.start_machine(key)

    def _keys(self, facts: Mapping[str, ServerFacts]) -> Iterator[str]:
        states = self.machines.states if self.machines is not None else {}
        for key in self._targets.keys:
            if key in states or key in self.unknown or (key in facts and facts[key].is_awaited):
                yield key

    def _awaited_server(self, key: str, facts: ServerFacts) -> AwaitedTarget:
        # A program may open its address before it is ready. Do not connect until then, unless an earlier process still
        # serves there.
        address = next(iter(facts.processes or ()), "")
        if facts.binds_itself and (facts.target.state is TargetState.READY or facts.is_leaving):
            address = facts.bind
        return AwaitedTarget(
            key=key,
            address=_address(Endpoint.of_server(address, facts.tls)) if address else (),
            seconds=self._core.entries[key].config.start_timeout,
            down=not address,
            answered=self._answered.get(key, 0),
            problem=self._targets.target(key).reason,
        )

    def _awaited_machine(self, key: str) -> AwaitedTarget:
        now = asyncio.get_running_loop().time()
        states = self.machines.states if self.machines is not None else {}
        machine = states.get(key, MachineState())
        if machine.state in _DOWN:
            self._starting_until[key] = now + machine.start_seconds
        number, answers = self._wakes.get(key, (0, 0))
        if machine.answers != answers:
            self._answered[key] = number
        return AwaitedTarget(
            key=key,
            address=_address(Endpoint.of_url(key)),
            seconds=machine.start_seconds,
            down=machine.state in _DOWN,
            coming=now < self._starting_until.get(key, -math.inf),
            answered=self._answered.get(key, 0),
            problem=machine.why if machine.state == MachineState.FAILED else "",
        )


def _address(endpoint: Endpoint) -> tuple[str, ...]:
    """The address of an AwaitedTarget."""
    return (endpoint.path,) if endpoint.path else (endpoint.host.strip("[]"), str(endpoint.port))
