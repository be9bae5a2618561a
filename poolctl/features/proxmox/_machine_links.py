"""Finds the node, container or virtual machine behind a target of a route. Pure functions of the inventory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple

from poolctl.features.gateway.process.settings import Endpoint
from poolctl.routing.route import Route, StreamRoute

from ._api import Guest, Node

# Hosts and aliases, which are the same each time that routes are linked.
_MOST_CACHED = 50_000


class MachineLink(NamedTuple):
    """The machine behind a target; `guest` is None for a node itself."""

    node: str
    guest: Guest | None = None

    @property
    def identity(self) -> tuple[str, int]:
        """An identity that stays when the machine moves within the cluster. A node has the VMID 0."""
        return ("", self.guest.vmid) if self.guest else (self.node, 0)

    @property
    def title(self) -> str:
        """The machine's name for people."""
        return self.guest.title if self.guest else f"node {self.node}"


class Inventory:
    """The machines by name and by address. A name or address shared by several machines of a kind finds none."""

    def __init__(self, nodes: Iterable[Node] = (), guests: Iterable[Guest] = ()) -> None:
        self.nodes = tuple(nodes)
        self.guests = tuple(guests)
        self._nodes = _unambiguous(
            [(each.name, each.addresses, MachineLink(each.name)) for each in self.nodes]
        )
        self._guests = _unambiguous(
            [(each.name, each.addresses, MachineLink(each.node, each)) for each in self.guests]
        )

    def __repr__(self) -> str:
        return f"<Inventory: {len(self.nodes)} nodes, {len(self.guests)} guests>"

    def find(self, host: str, alias: str = "") -> MachineLink | None:
        """The machine that the host of a target names, or else the alias of its route: a node before a guest.

        A host is a name or an IP address; names are compared without case. One with a domain, "wiki.lan", is the
        machine of that name, or else the one named "wiki".
        """
        words = [canonical(word) for word in (host, alias) if word]
        labels = [label for word in words if (label := first_label(word))]
        for those in (words, labels):
            for machines in (self._nodes, self._guests):
                for word in those:
                    if (found := machines.get(word)) is not None:
                        return found
        return None


def links_of(
    routes: Iterable[Route | StreamRoute], inventory: Inventory
) -> dict[tuple[str, str], MachineLink]:
    """The machines behind the URLs of the routes, by alias and URL.

    An alias names a machine only if the route has no other target.
    """
    found = {}
    for route in routes:
        alias = route.alias if len(route.to) == 1 else ""
        for target in route.to:
            if target.url and (link := inventory.find(host_of(target.url), alias)) is not None:
                found[route.alias, target.url] = link
    return found


def has_addresses(routes: Iterable[Route | StreamRoute]) -> bool:
    """Whether the host of a target is an IP address, so that the machines' addresses have to be known."""
    return any(_is_address(host_of(target.url)) for route in routes for target in route.to if target.url)


@lru_cache(maxsize=_MOST_CACHED)
def host_of(url: str) -> str:
    """The host of a target's URL, or of HOST:PORT; "" without one."""
    try:
        return Endpoint.of_url(url).host
    except ValueError:
        return ""


@lru_cache(maxsize=_MOST_CACHED)
def canonical(word: str) -> str:
    """A name in lower case, or an IP address in its canonical spelling."""
    try:
        return str(ip_address(word.partition("%")[0]))
    except ValueError:
        return word.lower().removesuffix(".")


def first_label(word: str) -> str:
    """The name before the domain of a canonical host name; "" for an address, and for a name without a domain."""
    label, dot, _ = word.partition(".")
    return label if dot and ":" not in word and not word.rpartition(".")[2].isdigit() else ""


def _is_address(word: str) -> bool:
    try:
        return not ip_address(word.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _unambiguous(machines: Sequence[tuple[str, frozenset[str], MachineLink]]) -> dict[str, MachineLink]:
    words = [
        (word, link) for name, addresses, link in machines for word in {canonical(name), *addresses} if word
    ]
    counts = Counter(word for word, _ in words)
    return {word: link for word, link in words if counts[word] == 1}
