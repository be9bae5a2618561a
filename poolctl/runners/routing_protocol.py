"""The interface between a gateway and a runner: pairs through which connections pass, and route tables for workers."""

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
    """The route tables for workers, as files in memory (see `route_table`), and the pair that returns connections.

    The tables are indexed by the names of servers; the entry "" is for servers that no longer have a route. A
    connection whose next request is for another server returns to the gateway through the pair with the end
    `give_back`. The publisher closes the tables after it has published others. A request's statement about its route is
    trusted if it has the server's key; the keys are indexed by server name.
    """

    generation: int
    tables: Mapping[str, HasDescriptor]
    give_back: socket.socket
    context_keys: Mapping[str, str] = field(default_factory=dict)


class Gateway(Protocol):
    """Passes connections to the workers of routed servers, through their adoption pairs."""

    def pair_opened(self, server: str, give: socket.socket) -> None:
        """Put the server's connections into this pair from now on. May be called again with the same pair."""
        ...

    async def withdraw(self, server: str, give: socket.socket) -> None:
        """Return once no further connections are put into this pair, or a time limit has passed."""
        ...

    async def leaving(self, server: str) -> None:
        """Return once the gateway knows that workers of the server leave, or a time limit has passed.

        Returns at once if other workers take over the waiting connections.
        """
        ...


class Routing(Protocol):
    """Manages the servers to which a gateway passes connections."""

    def publish(
        self, servers: Collection[ServerConfig], routes: PublishedRoutes | None, gateway: Gateway
    ) -> None:
        """Put a route table in force for these servers; None if the gateway has ended.

        Workers that are placed or adopted later get it too, and workers with an older table are updated. The gateway
        gets the pairs that these servers have, and each that is opened later. Does not block.
        """
        ...

    def set_aside(self, servers: Collection[str]) -> None:
        """Have the workers of exactly these servers, by name, give connections back before their next request.

        The gateway passes no connections to them. Does not block; `confirmed` waits for the workers.
        """
        ...

    def take_back(self, servers: Collection[str]) -> None:
        """Return the connections that wait in the pairs of these servers, by name, to the gateway. Does not block."""
        ...

    async def confirmed(self, limit_seconds: float) -> list[str]:
        """Wait until all workers use the last table. Returns the servers whose workers have not confirmed in time."""
        ...
