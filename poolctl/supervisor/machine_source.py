"""The machines behind the URLs of routes: between the gateway and a feature that knows and starts them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from poolctl.gateway.endpoint import MachineState
from poolctl.routing.route import Route, StreamRoute
from poolctl.routing.route_report import MachineReport


class Activity(NamedTuple):
    """Requests that a target has had from the gateway, and how many are in progress, or wait, now."""

    requests: int = 0
    in_progress: int = 0


class MachineSource(Protocol):
    """Knows the machines behind URLs, and starts them."""

    @property
    def states(self) -> Mapping[str, MachineState]:
        """The states of the machines that requests may start, by the URLs that lead to them."""
        ...

    @property
    def not_served(self) -> str:
        """Why the machines are not known now, after the name of the table; "" if they are."""
        ...

    def follow_routes(self, routes: Sequence[Route | StreamRoute]) -> None:
        """These routes are in force."""
        ...

    def machines(self, route: Route | StreamRoute) -> tuple[MachineReport, ...]:
        """The machines behind the route, for people and documents."""
        ...

    def ask(self, url: str) -> None:
        """A request needs the machine behind this URL: start it if it is stopped."""
        ...

    def close(self) -> None:
        """End, because the gateway ends."""
        ...


class MachineGateway(Protocol):
    """A gateway with routes to machines."""

    def report_machines(self) -> None:
        """Send the process the states of machines behind URLs."""
        ...

    async def activities(self) -> Mapping[str, Activity] | None:
        """The requests of each host; None while the process does not answer."""
        ...


# Has a gateway ask the source that this makes; it is made when the pool has a gateway.
ConnectMachines = Callable[[Callable[[MachineGateway], MachineSource]], None]
