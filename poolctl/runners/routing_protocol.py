"""The interface between a gateway and a runner: pairs for connections to routed servers, and tables for workers."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .process_link import HasDescriptor

if TYPE_CHECKING:
    from poolctl.config import ServerConfig


@dataclass(frozen=True, slots=True)
class PublishedRoutes:
    """Route tables for workers, as files in memory (see `route_table`), and the pair that takes connections back.

    The tables are indexed by the names of servers, under "" for servers that no longer have a route. Through the pair
    with the end `give_back` the gateway gets connections whose next request is another server's. The publisher closes
    the tables after it has published others. A request's statement about its route is trusted if it has the server's
    key; the keys are indexed by server name.
    """

    generation: int
    tables: Mapping[str, HasDescriptor]
    give_back: socket.socket
    context_keys: Mapping[str, str] = field(default_factory=dict)


class Gateway(Protocol):
    """Passes connections to the workers of routed servers, through their adoption pairs."""

    def pair_opened(self, server: str, give: socket.socket) -> None:
        """Connections of the server go into this pair from now on; may be called again with the same one."""
        ...

    async def withdraw(self, server: str, give: socket.socket) -> None:
        """Return once no further connections are put into this pair, or a time limit has passed."""
        ...

    async def leaving(self, server: str) -> None:
        """Return once the gateway knows that workers of the server leave, or a time limit has passed.

        At once where other workers take over what waits for these, at their listener or in their pair.
        """
        ...


class Routing(Protocol):
    """Servers to which a gateway passes connections."""

    def publish(
        self, servers: Collection[ServerConfig], routes: PublishedRoutes | None, gateway: Gateway
    ) -> None:
        """Put a route table in force for these servers; None: the gateway has ended.

        Their workers get it, also workers that are placed or adopted later, and workers with an older table. The
        gateway gets the pairs that these servers have, and each that is opened later. Does not block.
        """
        ...

    def set_aside(self, servers: Collection[str]) -> None:
        """Have the workers of these servers, by name, and of no others give connections back before their next request.

        The gateway passes none to them. Does not block; `confirmed` waits for the workers.
        """
        ...

    def take_back(self, servers: Collection[str]) -> None:
        """Give the gateway what waits in the pairs of these servers, by name. Does not block."""
        ...

    async def confirmed(self, limit_seconds: float) -> list[str]:
        """Return once every worker decides by the last table; returns the servers of workers without confirmation."""
        ...
