"""The route table in force: computed from the configuration off the loop, and given to gateway and workers."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from poolctl.config import RegisteredBackend, ServerConfig, Tables, routes_of, with_registrations
from poolctl.routing.route import ExcludedRoute, Route, StreamRoute
from poolctl.routing.route_table import write_table
from poolctl.runners.listener_opener import in_daemon_thread
from poolctl.runners.process_link import Descriptor

# A reload changes many servers, one after the other.
_GATHER_SECONDS = 0.01

logger = logging.getLogger("poolctl.supervisor")


class RouteSet(NamedTuple):
    """All routes of a pool, and the names of the servers that they lead to."""

    http: tuple[Route, ...] = ()
    streams: tuple[StreamRoute, ...] = ()
    excluded: tuple[ExcludedRoute, ...] = ()
    servers: frozenset[str] = frozenset()

    @property
    def served(self) -> list[Route | StreamRoute]:
        """All but the excluded ones."""
        return [*self.http, *self.streams]


class ComputedRoutes:
    """Computes routes and table in a thread, one computation at a time; `changed` is called with each new table.

    `registered` gives the services that have registered as backends; after a change of these, call `again`.
    Generations rise over supervisors and keepers too: workers and gateways that outlive both know older ones.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.routes = RouteSet()
        self.generation = 0
        self.table: Descriptor | None = None
        self.problem = ""
        self.registered: Callable[[], Sequence[RegisteredBackend]] = tuple
        self._changed = changed
        self._source: Callable[[], tuple[Sequence[ServerConfig], Tables]] | None = None
        self._wanted: Callable[[], tuple[Sequence[ServerConfig], Tables]] | None = None
        self._work: asyncio.Task[None] | None = None
        # How often they were to be computed, and which of these times they are from.
        self._asked = self._answered = 0
        self._computed = asyncio.Event()  # of the computation under way: the next one has another

    def compute(self, source: Callable[[], tuple[Sequence[ServerConfig], Tables]]) -> None:
        """Compute them soon from what `source` returns then."""
        self._source = self._wanted = source
        self._asked += 1
        if self._work is None or self._work.done():
            self._work = asyncio.ensure_future(self._compute())

    def again(self) -> None:
        """Compute them soon from the same source as before."""
        if self._source is not None:
            self.compute(self._source)

    def has(self, alias: str) -> bool:
        """Whether a route of this alias is served."""
        return any(each.alias == alias for each in self.routes.http)

    async def settled(self) -> None:
        """Return once the routes are those of what is the newest configuration now; later ones do not delay it."""
        asked = self._asked
        while self._answered < asked:
            await self._computed.wait()

    def close(self) -> None:
        """Compute nothing more, and close the table."""
        if self._work is not None:
            self._work.cancel()
        if self.table is not None:
            self.table.close()
            self.table = None

    async def _compute(self) -> None:
        while self._wanted is not None:
            await asyncio.sleep(_GATHER_SECONDS)
            source, self._wanted = self._wanted, None
            asked = self._asked
            await self._compute_once(source)
            self._answered = asked
            computed, self._computed = self._computed, asyncio.Event()
            computed.set()

    async def _compute_once(self, source: Callable[[], tuple[Sequence[ServerConfig], Tables]]) -> None:
        generation = max(self.generation + 1, time.time_ns() // 1_000_000)
        before = self.routes if self.table is not None else None
        try:
            work = functools.partial(_computed, *source(), self.registered(), generation, before)
            routes, fd = await in_daemon_thread(work, undo=_discard)
        except Exception as error:
            logger.exception("the route table could not be made")
            self.problem = f"its route table cannot be made: {error}"
            return
        self.problem = ""
        if fd is not None:
            outdated, self.table = self.table, Descriptor(fd)
            self.routes, self.generation = routes, generation
            self._changed()
            if outdated is not None:
                outdated.close()


def _computed(
    servers: Sequence[ServerConfig],
    tables: Tables,
    registered: Sequence[RegisteredBackend],
    generation: int,
    before: RouteSet | None,
) -> tuple[RouteSet, int | None]:
    """The routes with the descriptor of their table; None for it when they are those from before."""
    http, streams, excluded = [], [], []
    for route in with_registrations(routes_of(servers, tables), servers, tables, registered):
        if isinstance(route, Route):
            http.append(route)
        elif isinstance(route, StreamRoute):
            streams.append(route)
        else:
            excluded.append(route)
    targets = [*(each.to for each in http), *(each.to for each in streams)]
    names = frozenset(target.server for to in targets for target in to if target.server)
    found = RouteSet(tuple(http), tuple(streams), tuple(excluded), names)
    return found, None if found == before else write_table(http, generation)


def _discard(found: tuple[RouteSet, int | None]) -> None:
    if found[1] is not None:
        os.close(found[1])
