"""Targets that are started on demand, and have no listener of the pool where connections could wait.

They are proxied servers, programs that open their address themselves, and machines. Their connections wait in the
forwarder, which asks the supervisor to wake the target.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

from poolctl.core.core import Core
from poolctl.json_form import to_json
from poolctl.monitor.event_queue import EventBus
from poolctl.supervisor.active_configuration import SupervisorContext

from ..forwarder.waiting import AwaitedTarget
from ..settings import Endpoint
from ..target import MachineState, ServerFacts, TargetState
from .forwarding import Forwarding, Order, WaitingListeners
from .outside_targets import MachineSource
from .targets import Targets

_DOWN = (MachineState.STOPPED, MachineState.STARTING)


class AwaitedTargets:
    """The targets of the current routes for which connections wait in the forwarder, with their listeners.

    Set `machines` to the feature that knows the machines behind URLs. `changed` is called when connections begin to
    wait for a target.
    """

    def __init__(
        self,
        environment: SupervisorContext,
        events: EventBus,
        core: Core,
        targets: Targets,
        changed: Callable[[], None],
    ) -> None:
        self.machines: MachineSource | None = None
        self.listeners = WaitingListeners(environment)
        self._forwarding = Forwarding(environment, events)
        self._forwarding.on_wake = self._on_wake
        self._core = core
        self._targets = targets
        self._changed = changed
        # By machine: the number of the last wake, and the machine's `answers` at that time.
        self._wakes: dict[str, tuple[int, int]] = {}
        self._answered: dict[str, int] = {}  # by target: see AwaitedTarget
        # The times until which services of started machines may not accept connections yet.
        self._starting_until: dict[str, float] = {}

    async def adopt(self) -> None:
        """Take over the listeners and the forwarder of an earlier supervisor. Raises LinkLost."""
        await self.listeners.adopt()
        self._targets.unknown = {*self.listeners.keys}  # connections may be waiting for them
        await self._forwarding.adopt()

    def follow(self, facts: Mapping[str, ServerFacts], uids: Sequence[int]) -> Mapping[str, str]:
        """Await the targets of the current routes, and no others; returns where, in HAProxy's syntax, by target.

        `facts` are about the routed servers, by name. Processes of the users `uids` may connect.
        """
        unknown, targets = self._targets.unknown, self._targets
        states = targets.machines = self._states
        known = states.keys() if self.machines is not None else unknown
        targets.unknown = unknown - known - self._core.entries.keys()
        for key in unknown & known & self._wakes.keys():
            self.start(key)
        keys = [
            key
            for key in targets.keys
            if key in states or key in targets.unknown or (key in facts and facts[key].is_awaited)
        ]
        self.listeners.close_others(keys)
        orders, addresses = dict[str, Order](), dict[str, str]()
        for key in keys:
            server, listener = facts.get(key), self.listeners.of(key)
            target = self._awaited_machine(key) if server is None else self._awaited_server(key, server)
            orders[key], addresses[key] = Order(to_json(target), listener.sock, uids), listener.address
        self._forwarding.apply(orders)
        return addresses

    def forget(self) -> None:
        """Stop waiting for targets."""
        self._forwarding.apply({})

    async def aclose(self) -> None:
        """End the forwarder, and close all listeners."""
        await self._forwarding.aclose()
        self.listeners.close()

    @property
    def _states(self) -> Mapping[str, MachineState]:
        return {} if self.machines is None else self.machines.states

    def _on_wake(self, key: str, number: int) -> None:
        """Start the target if it is stopped: a connection waits. `number` is that of the forwarder's wake."""
        if key in self._core.entries:
            self._answered[key] = number
        elif self.machines is not None:
            self._wakes[key] = number, self._states.get(key, MachineState()).answers
        self.start(key)
        self._changed()

    def start(self, key: str) -> None:
        """Start the target if it is stopped."""
        if (entry := self._core.entries.get(key)) is not None:
            self._core.wake(entry)
        elif self.machines is not None:
            self.machines.start_machine(key)

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
        machine = self._states.get(key, MachineState())
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
