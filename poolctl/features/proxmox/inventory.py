"""The supervisor's part for [proxmox]: links the routes of a pool to the machines of a Proxmox VE cluster.

While the API does not answer, the last inventory stays in use, and all routes are served.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.features.gateway.repeated_work import RepeatedWork
from poolctl.features.gateway.settings import Endpoint
from poolctl.features.gateway.supervision.gateway import GatewayManager, GatewayPart
from poolctl.features.gateway.target import MachineState
from poolctl.monitor.event_queue import EventBus
from poolctl.routing.route import Route, StreamRoute
from poolctl.routing.route_report import TargetMachineReport
from poolctl.supervisor.feature_parts import PartContext

from ._api import RUNNING, STOPPED, ApiError, Guest, Node, ProxmoxApi
from ._machine_starter import Activities, MachinePowerManager
from .table import ProxmoxTable

# Addresses are cached for this time, unless the machine is started or stopped.
_ADDRESS_CACHE_SECONDS = 300.0
_MAX_CONCURRENT_REQUESTS = 4
_NODE = "node"

logger = logging.getLogger("poolctl.supervisor")


class _CachedAddresses(NamedTuple):
    """The current addresses of a guest with its state, and its previous addresses."""

    status: str
    asked_at: float
    addresses: frozenset[str]
    previous: frozenset[str]


class MachineLink(NamedTuple):
    """The machine that a route's target refers to: a guest, or a node of the cluster if `guest` is None."""

    node: str
    guest: Guest | None = None

    @property
    def identity(self) -> tuple[str, int]:
        """("", VMID) for a guest, which stays the same when the guest moves to another node; (name, 0) for a node."""
        return ("", self.guest.vmid) if self.guest else (self.node, 0)

    @property
    def title(self) -> str:
        """The machine's name for display."""
        return self.guest.title if self.guest else f"node {self.node}"


class Inventory:
    """The machines by name and by address. Ignores a name or address that several machines of a kind share."""

    def __init__(self, nodes: Iterable[Node] = (), guests: Iterable[Guest] = ()) -> None:
        self.nodes = tuple(nodes)
        self.guests = tuple(guests)
        self._nodes = _unambiguous_links(
            [(node.name, node.addresses, MachineLink(node.name)) for node in self.nodes]
        )
        self._guests = _unambiguous_links(
            [(guest.name, guest.addresses, MachineLink(guest.node, guest)) for guest in self.guests]
        )

    def __repr__(self) -> str:
        return f"<Inventory: {len(self.nodes)} nodes, {len(self.guests)} guests>"

    def find(self, host: str, alias: str = "") -> MachineLink | None:
        """The machine named by the host of a target, or else by the alias of its route; None if there is none.

        Nodes are searched before guests. A host is a name or an IP address; names are compared without case. A name
        with a domain, such as "wiki.lan", means the machine of that name, or else the machine "wiki".
        """
        words = [canonical_name(word) for word in (host, alias) if word]
        labels = [label for word in words if (label := label_before_domain(word))]
        for candidates in (words, labels):
            for machines in (self._nodes, self._guests):
                for word in candidates:
                    if (machine := machines.get(word)) is not None:
                        return machine
        return None


def links_by_target(
    routes: Iterable[Route | StreamRoute], inventory: Inventory
) -> dict[tuple[str, str], MachineLink]:
    """The machines behind the URLs of the routes, by the route's alias and the URL.

    The alias may name the machine instead of the URL's host, but only if the route has a single target.
    """
    links = {}
    for route in routes:
        alias = route.alias if len(route.to) == 1 else ""
        for target in route.to:
            if target.url and (link := inventory.find(host_of(target.url), alias)) is not None:
                links[route.alias, target.url] = link
    return links


def has_ip_targets(routes: Iterable[Route | StreamRoute]) -> bool:
    """Return whether the host in any target's URL is an IP address; loopback addresses do not count."""
    return any(
        _is_non_loopback_address(host_of(target.url)) for route in routes for target in route.to if target.url
    )


def host_of(url: str) -> str:
    """The host of a target's URL, or of HOST:PORT; "" without one."""
    try:
        return Endpoint.of_url(url).host
    except ValueError:
        return ""


def canonical_name(word: str) -> str:
    """A name in lower case, or an IP address in its canonical spelling."""
    try:
        return str(ip_address(word.partition("%")[0]))
    except ValueError:
        return word.lower().removesuffix(".")


def label_before_domain(word: str) -> str:
    """The name before the domain of a canonical host name; "" for an address, and for a name without a domain."""
    label, dot, _ = word.partition(".")
    return label if dot and ":" not in word and not word.rpartition(".")[2].isdigit() else ""


def _is_non_loopback_address(word: str) -> bool:
    try:
        return not ip_address(word.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _unambiguous_links(machines: Sequence[tuple[str, frozenset[str], MachineLink]]) -> dict[str, MachineLink]:
    words = [
        (word, link)
        for name, addresses, link in machines
        for word in {canonical_name(name), *addresses}
        if word
    ]
    counts = Counter(word for word, _ in words)
    return {word: link for word, link in words if counts[word] == 1}


class ProxmoxInventory:
    """The cluster's machines, read regularly, and their `links` to routes. `problem` is why reading fails, or "".

    `starter` starts and stops machines. `changed` is called when links or states may have changed. `activities` returns
    the activity of targets. If it returns None, no machine is stopped for being idle.
    """

    def __init__(
        self,
        events: EventBus,
        changed: Callable[[], None],
        activities: Activities,
        state_directory: str,
        clock: Clock | None = None,
    ) -> None:
        self.problem = ""
        self.inventory = Inventory()
        self.links: dict[tuple[str, str], MachineLink] = {}  # by the alias of the route and the URL
        self.starter = MachinePowerManager(events, changed, activities, state_directory)
        self._events = events
        self._clock = clock or Clock()
        self._table: ProxmoxTable | None = None
        self._api: ProxmoxApi | None = None
        self._routes: Sequence[Route | StreamRoute] = ()
        self._address_cache: dict[int, _CachedAddresses] = {}
        self._due = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def apply_table(self, table: ProxmoxTable | None, environment: Mapping[str, str]) -> None:
        """Apply `table`, and read the inventory regularly. If `table` is None, stop reading and empty the inventory."""
        self._table = table
        self._api = None if table is None else ProxmoxApi(table, environment)
        self.starter.configure(table, self._api)
        if table is None:
            self.close()
            self.problem = ""
            self.inventory = Inventory()
            self._link_routes_to_machines(read=True)
            return
        self._due.set()
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read_periodically())

    def set_routes(self, routes: Sequence[Route | StreamRoute]) -> None:
        """Link these routes to machines, in place of the previous routes."""
        if has_ip_targets(routes) and not has_ip_targets(self._routes):
            self._due.set()
        self._routes = routes
        self._link_routes_to_machines(read=False)

    @property
    def states(self) -> Mapping[str, MachineState]:
        """The states of the machines that requests may start, by URL."""
        return self.starter.states_by_url

    def start_machine(self, url: str) -> None:
        """Begin to start the machine behind this URL if it is stopped."""
        self.starter.start_if_needed(url)

    def close(self) -> None:
        """Stop reading the inventory. No further machine is started or stopped."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self.starter.close()

    def machines(self, route: Route | StreamRoute) -> tuple[TargetMachineReport, ...]:
        """The machines behind the route, for text and JSON output."""
        reports = []
        for url in dict.fromkeys(target.url for target in route.to if target.url):
            if (link := self.links.get((route.alias, url))) is None:
                continue
            if (guest := link.guest) is None:
                report = TargetMachineReport(to=url, kind=_NODE, node=link.node, name=link.node)
            else:
                state = self.starter.status(url)
                report = TargetMachineReport(
                    to=url, kind=guest.kind, node=guest.node, vmid=guest.vmid, name=guest.name, state=state
                )
            reports.append(report)
        return tuple(reports)

    async def _read_periodically(self) -> None:
        reading = RepeatedWork("the inventory")
        while self._table is not None and self._api is not None:
            self._due.clear()
            with reading.attempt():
                await self._read(self._table, self._api)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._table.refresh):
                    await self._due.wait()

    async def _read(self, table: ProxmoxTable, api: ProxmoxApi) -> None:
        try:
            nodes, guests = await api.nodes(), await api.guests()
            if table.nodes:
                nodes = [node for node in nodes if node.name in table.nodes]
                guests = [guest for guest in guests if guest.node in table.nodes]
            guests = await self._with_addresses(api, guests)
        except ApiError as error:
            self._record_unavailable(str(error))
            return
        except Exception:
            logger.exception("the inventory of %s could not be read", api.host)
            self._record_unavailable(f"{api.host}: the inventory could not be read; see supervisor.log")
            return
        if self.problem:
            self.problem = ""
            self._events.record("pool", "proxmox available", message=f"{api.host} answers again")
        self.inventory = Inventory(nodes, guests)
        self._link_routes_to_machines(read=True)

    async def _with_addresses(self, api: ProxmoxApi, guests: Sequence[Guest]) -> list[Guest]:
        """Return the guests with their IP addresses added. Raises ApiError if the API does not answer.

        If `has_ip_targets` is False for the routes, add none. A guest without addresses now, such as a stopped one,
        gets its previous addresses, except for addresses that another guest has now.
        """
        if not has_ip_targets(self._routes):
            return [*guests]
        limit = asyncio.Semaphore(_MAX_CONCURRENT_REQUESTS)
        failures: list[ApiError] = []

        async def ask(guest: Guest) -> None:
            entry = self._address_cache.get(guest.vmid)
            asked_for = entry is not None and entry.status == guest.status
            if entry and asked_for and self._clock.monotonic() - entry.asked_at < _ADDRESS_CACHE_SECONDS:
                return
            addresses: frozenset[str] = frozenset()
            async with limit:
                if failures:
                    return
                try:
                    addresses = await api.addresses(guest)
                except ApiError as error:
                    if not error.status:
                        failures.append(error)
                        return
                    # The virtual machine has no agent, or the token lacks the permission.
            previous = frozenset() if entry is None or addresses else entry.addresses | entry.previous
            now = self._clock.monotonic()
            self._address_cache[guest.vmid] = _CachedAddresses(guest.status, now, addresses, previous)

        await asyncio.gather(*(ask(guest) for guest in guests if guest.status in (RUNNING, STOPPED)))
        if failures:
            raise failures[0]
        vmids = {guest.vmid for guest in guests}
        self._address_cache = {vmid: entry for vmid, entry in self._address_cache.items() if vmid in vmids}
        taken = frozenset[str]().union(*(entry.addresses for entry in self._address_cache.values()))
        return [
            guest._replace(addresses=entry.addresses | (entry.previous - taken))
            if (entry := self._address_cache.get(guest.vmid)) is not None
            else guest
            for guest in guests
        ]

    def _record_unavailable(self, why: str) -> None:
        if not self.problem:
            logger.warning("[proxmox]: %s", why)
            message = f"{why}; the last inventory stays in use"
            self._events.record("pool", "proxmox unavailable", message=message, severity="warning")
        self.problem = why

    def _link_routes_to_machines(self, *, read: bool) -> None:
        """Link the routes to machines, and record an event for each new, changed or removed link.

        With `read`, the inventory has just been read. Without it, `starter` keeps the machine states that it has.
        """
        before, self.links = self.links, links_by_target(self._routes, self.inventory)
        for key, link in self.links.items():
            previous = before.get(key)
            if previous is None or (previous.identity, previous.node) != (link.identity, link.node):
                self._record("route linked", key, link)
        aliases = {route.alias for route in self._routes}
        for key in before.keys() - self.links.keys():
            if key[0] in aliases:
                self._record("route unlinked", key, before[key])
        guests = {url: link.guest for (_, url), link in reversed(self.links.items()) if link.guest}
        self.starter.set_guests(guests, freshly_read=read)

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


class Machines(GatewayPart):
    """Links the gateway's routes to machines, as soon as the pool has a gateway."""

    def __init__(self, context: PartContext) -> None:
        super().__init__(context)
        self._table: ProxmoxTable | None = None
        self._inventory: ProxmoxInventory | None = None

    def apply_tables(self, tables: Tables) -> None:
        """Apply [proxmox] from these configuration tables, and read the machines again."""
        self._table = tables.get(ProxmoxTable)
        if self._inventory is not None:
            self._read(self._inventory)

    def connect(self, gateway: GatewayManager) -> None:
        self._inventory = ProxmoxInventory(
            self.context.events,
            gateway.update,
            gateway.fetch_activity_by_host,
            self.context.environment.state_directory,
        )
        self._read(self._inventory)
        gateway.use_machine_source(self._inventory)

    @property
    def not_served(self) -> Iterable[str]:
        problem = "" if self._inventory is None else self._inventory.problem
        return [f"[proxmox]: {problem}"] if problem else []

    async def stop_serving(self) -> None:
        if self._inventory is not None:
            self._inventory.close()

    def _read(self, inventory: ProxmoxInventory) -> None:
        inventory.apply_table(self._table, self.context.environment.configuration.environment)
