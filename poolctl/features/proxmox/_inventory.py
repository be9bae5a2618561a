"""Keeps the inventory of a Proxmox VE cluster, and the links of routes to its machines.

While the API is away, the last inventory stays in force: no route depends on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from poolctl.clock import Clock
from poolctl.features.gateway.process.settings import MachineState
from poolctl.monitor.event_queue import Events
from poolctl.routing.route import Route, StreamRoute
from poolctl.routing.route_report import MachineReport
from poolctl.runners.listener_opener import in_daemon_thread

from ._api import RUNNING, STOPPED, ApiError, Guest, Node, ProxmoxApi
from ._idle_machines import Activities, IdleMachines, unknown_activities
from ._machine_links import Inventory, MachineLink, has_addresses, links_of
from ._machine_starter import MachineStarter
from .table import ProxmoxTable

# Addresses that were asked for since are not asked for again, unless the machine was started or stopped.
_ADDRESSES_SECONDS = 300.0
_AT_ONCE = 4
# Up to 40 µs each; more are linked in a thread.
_MOST_LINKED_AT_ONCE = 200
_NODE = "node"

logger = logging.getLogger("poolctl.supervisor")


class _KnownAddresses(NamedTuple):
    """The addresses of a guest in a state, and its previous addresses."""

    status: str
    asked_at: float
    addresses: frozenset[str]
    former: frozenset[str]


class ProxmoxInventory:
    """`problem` says why it cannot be read now, "" if it can. `starter` starts machines, and has their states.

    `changed` is called when links or states may have changed. With `activities` of targets, idle machines are stopped.
    """

    def __init__(
        self,
        events: Events,
        changed: Callable[[], None],
        clock: Clock | None = None,
        *,
        activities: Activities = unknown_activities,
        state_directory: str = "",
    ) -> None:
        self.problem = ""
        self.inventory = Inventory()
        self.links: dict[tuple[str, str], MachineLink] = {}  # by the alias of the route and the URL
        self.starter = MachineStarter(events, changed)
        self._idle = IdleMachines(self.starter, activities, state_directory)
        self._events = events
        self._clock = clock or Clock()
        self._table: ProxmoxTable | None = None
        self._api: ProxmoxApi | None = None
        self._routes: Sequence[Route | StreamRoute] = ()
        self._known: dict[int, _KnownAddresses] = {}
        self._due = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._linking: asyncio.Task[None] | None = None
        self._newly_read = False

    def follow(self, table: ProxmoxTable | None, environment: Mapping[str, str]) -> None:
        """Read the inventory from now on with the settings of this table; its token is read again."""
        self._table = table
        self._api = None if table is None else ProxmoxApi(table, environment)
        self.starter.use(table, self._api)
        if table is None:
            self.close()
            self.problem = ""
            self._apply(Inventory())
            return
        self._idle.follow(table.idle if table.start else 0.0)
        self._due.set()
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read_often())

    def follow_routes(self, routes: Sequence[Route | StreamRoute]) -> None:
        """Link these routes, which are now in force."""
        if has_addresses(routes) and not has_addresses(self._routes):
            self._due.set()
        self._routes = routes
        self._link(read=False)

    @property
    def states(self) -> Mapping[str, MachineState]:
        """See MachineSource."""
        return self.starter.states

    def ask(self, url: str) -> None:
        """See MachineSource."""
        self.starter.ask(url)

    def close(self) -> None:
        """Stop reading."""
        for task in (self._reading, self._linking):
            if task is not None:
                task.cancel()
        self._reading = self._linking = None
        self._idle.close()
        self.starter.close()

    def machines(self, route: Route | StreamRoute) -> tuple[MachineReport, ...]:
        """The machines behind the route, for people and documents."""
        found = []
        for url in dict.fromkeys(target.url for target in route.to if target.url):
            if (link := self.links.get((route.alias, url))) is None:
                continue
            guest = link.guest
            if guest is None:
                found.append(MachineReport(to=url, kind=_NODE, node=link.node, name=link.node))
            else:
                found.append(
                    MachineReport(
                        to=url,
                        kind=guest.kind,
                        node=guest.node,
                        vmid=guest.vmid,
                        name=guest.name,
                        state=self.starter.status(url),
                    )
                )
        return tuple(found)

    async def _read_often(self) -> None:
        while self._table is not None and self._api is not None:
            self._due.clear()
            await self._read(self._table, self._api)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._table.refresh):
                    await self._due.wait()

    async def _read(self, table: ProxmoxTable, api: ProxmoxApi) -> None:
        try:
            nodes, guests = await api.nodes(), await api.guests()
            if table.nodes:
                nodes = [each for each in nodes if each.name in table.nodes]
                guests = [each for each in guests if each.node in table.nodes]
            guests = await self._with_addresses(api, guests)
        except ApiError as error:
            self._unavailable(str(error))
            return
        except Exception:
            logger.exception("the inventory of %s could not be read", api.host)
            self._unavailable(f"{api.host}: the inventory could not be read; see supervisor.log")
            return
        self._available(api, nodes, guests)

    async def _with_addresses(self, api: ProxmoxApi, guests: Sequence[Guest]) -> list[Guest]:
        """The guests, with addresses if a target is an address. Raises ApiError if there is no answer at all.

        A stopped guest keeps its previous addresses while no other guest has them.
        """
        if not has_addresses(self._routes):
            return [*guests]
        limit = asyncio.Semaphore(_AT_ONCE)
        unanswered: list[ApiError] = []

        async def ask(guest: Guest) -> None:
            known = self._known.get(guest.vmid)
            asked_for = known is not None and known.status == guest.status
            if known and asked_for and self._clock.monotonic() - known.asked_at < _ADDRESSES_SECONDS:
                return
            found: frozenset[str] = frozenset()
            async with limit:
                if unanswered:
                    return
                try:
                    found = await api.addresses(guest)
                except ApiError as error:
                    if not error.status:
                        unanswered.append(error)
                        return
                    # No agent runs in the virtual machine, or the token may not ask.
            former = frozenset() if known is None or found else known.addresses | known.former
            self._known[guest.vmid] = _KnownAddresses(guest.status, self._clock.monotonic(), found, former)

        await asyncio.gather(*(ask(each) for each in guests if each.status in (RUNNING, STOPPED)))
        if unanswered:
            raise unanswered[0]
        there = {each.vmid for each in guests}
        self._known = {vmid: known for vmid, known in self._known.items() if vmid in there}
        taken = frozenset[str]().union(*(known.addresses for known in self._known.values()))
        return [
            each._replace(addresses=known.addresses | (known.former - taken))
            if (known := self._known.get(each.vmid)) is not None
            else each
            for each in guests
        ]

    def _unavailable(self, why: str) -> None:
        if not self.problem:
            logger.warning("[proxmox]: %s", why)
            message = f"{why}; the last inventory stays in use"
            self._events.record("pool", "proxmox unavailable", message=message, severity="warning")
        self.problem = why

    def _available(self, api: ProxmoxApi, nodes: Sequence[Node], guests: Sequence[Guest]) -> None:
        if self.problem:
            self.problem = ""
            self._events.record("pool", "proxmox available", message=f"{api.host} answers again")
        self._apply(Inventory(nodes, guests))

    def _apply(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self._link(read=True)

    def _link(self, *, read: bool) -> None:
        """Find the machines of the routes in the inventory, which has just been `read`, or is an older one."""
        self._newly_read = self._newly_read or read
        if len(self._routes) <= _MOST_LINKED_AT_ONCE:
            self._linked(links_of(self._routes, self.inventory))
        elif self._linking is None:
            self._linking = asyncio.ensure_future(self._link_many())

    async def _link_many(self) -> None:
        """Link in a thread; repeats while routes or inventory change meanwhile."""
        routes: Sequence[Route | StreamRoute] = ()
        inventory = None
        while routes is not self._routes or inventory is not self.inventory:
            routes, inventory = self._routes, self.inventory
            links = await in_daemon_thread(partial(links_of, routes, inventory))
        self._linking = None
        self._linked(links)

    def _linked(self, links: dict[tuple[str, str], MachineLink]) -> None:
        """Use these links from now on."""
        before, self.links = self.links, links
        read, self._newly_read = self._newly_read, False
        for key, link in self.links.items():
            former = before.get(key)
            if former is None or (former.identity, former.node) != (link.identity, link.node):
                self._record("route linked", key, link)
        aliases = {route.alias for route in self._routes}
        for key in before.keys() - self.links.keys():
            if key[0] in aliases:
                self._record("route unlinked", key, before[key])
        guests = {url: link.guest for (_, url), link in reversed(self.links.items()) if link.guest}
        self.starter.follow(guests, read=read)

    def _record(self, event: str, key: tuple[str, str], link: MachineLink) -> None:
        alias, url = key
        self._events.record(
            "pool",
            event,
            message=f"{alias} ({url}): {link.title}",
            route=alias,
            to=url,
            node=link.node,
            vmid=link.guest.vmid if link.guest else 0,
            name=link.guest.name if link.guest else link.node,
        )
