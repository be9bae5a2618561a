"""What a gateway and a runner ask of each other: pairs for connections to routed servers, and tables for workers."""

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
    """Route tables for workers, as files in memory (see poolctl.routing.route_table), and where they give back to.

    The tables are by the names of servers, under "" for those that have no route any more. Through the pair with the
    end `give_back` the gateway gets connections whose next request is another server's. The publisher closes the tables
    after it has published others. What a request says of its route counts if it has the key of the server, by its name.
    """

    generation: int
    tables: Mapping[str, HasDescriptor]
    give_back: socket.socket
    context_keys: Mapping[str, str] = field(default_factory=dict)


class Gateway(Protocol):
    """What passes connections to the workers of routed servers, through their adoption pairs."""

    def pair_opened(self, server: str, give: socket.socket) -> None:
        """Connections of the server go into this pair from now on; may be called again with the same one."""
        ...

    async def withdraw(self, server: str, give: socket.socket) -> None:
        """Return once nothing is put into this pair any more, or a time limit has passed."""
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
        """Put a route table in force for these servers; None: there is no gateway any more.

        Their workers get it, also those that are placed or adopted later, and workers that have an older one. The
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
        """Return once every worker decides by the last table; the servers of those that have not said so in time."""
        ...
