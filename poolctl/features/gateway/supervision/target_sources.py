"""Between the gateway and features that know targets of its routes: machines behind URLs, and registered services."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from poolctl.config import ServerConfig, Tables
from poolctl.routing.registration_report import RegistrationReport
from poolctl.routing.route import AnyRoute, Route, StreamRoute
from poolctl.routing.route_health import RouteHealth
from poolctl.routing.route_report import MachineReport

from ..process.endpoint import MachineState


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

    def follow_routes(self, routes: Sequence[Route | StreamRoute]) -> None:
        """Take note of the routes that are now in force."""
        ...

    def machines(self, route: Route | StreamRoute) -> tuple[MachineReport, ...]:
        """The machines behind the route, for people and documents."""
        ...

    def ask(self, url: str) -> None:
        """A request needs the machine behind this URL: start it if it is stopped."""
        ...


# The routes of these servers and tables with the services; called in a thread.
WithServices = Callable[[Sequence[AnyRoute], Sequence[ServerConfig], Tables], Sequence[AnyRoute]]


class RoutedService(Protocol):
    """A service with the URL of a target, and its state."""

    @property
    def url(self) -> str: ...

    @property
    def alias(self) -> str:
        """The alias of the service's route."""
        ...

    @property
    def is_serving(self) -> bool:
        """Whether the service gets requests."""
        ...

    @property
    def is_probed(self) -> bool:
        """Whether its state is the result of a probe."""
        ...

    @property
    def health(self) -> RouteHealth: ...

    @property
    def problem(self) -> str:
        """Why the service gets no requests."""
        ...


class ServiceSource(Protocol):
    """Gives routes targets while the pool runs; after a change it has the routes computed again."""

    async def present(self) -> WithServices:
        """Return a function that adds the present services to routes."""
        ...

    def __iter__(self) -> Iterator[RoutedService]: ...

    def of(self, alias: str) -> Sequence[RoutedService]:
        """The services of a route."""
        ...

    def reports(self, alias: str) -> tuple[RegistrationReport, ...]:
        """The services of a route, for people and documents."""
        ...
