"""Whether an address would get in the way of one that is in the pool, without looking at all of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from poolctl.address import LOOPBACKS, Address, overlaps

if TYPE_CHECKING:
    from .server import Server

_WILDCARDS = ("0.0.0.0", "::")
_NAMED = "localhost"

# Below that many members it is cheaper to look at each than to count ports.
_FEW = 64


class Ports:
    """How many members listen on each TCP port. Counted from the first wildcard address on: before, nobody asks."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: array[int] | None = None

    def used(self, port: int, members: Mapping[str, Server]) -> bool:
        """Whether any member listens on that port."""
        if self._counts is None:
            self._counts = array("I", bytes(4 * 65536))
            for server in members.values():
                self.count(server.config.address, 1)
        return self._counts[port] > 0

    def count(self, address: Address, step: int) -> None:
        """A member with that address comes (1) or goes (-1)."""
        if self._counts is not None and address.port is not None:
            self._counts[address.port] += step

    def forget(self) -> None:
        """Everything has changed."""
        self._counts = None


def in_the_way(address: Address, members: Mapping[str, Server], ports: Ports) -> Server | None:
    """The first member whose address overlaps with `address` without being the same."""
    if address.kind != "tcp" or address.port is None:
        return None
    if address.is_wildcard and len(members) > _FEW and not ports.used(address.port, members):
        return None
    for server in _candidates(address, members):
        other = server.config.address
        if other.key != address.key and overlaps(address, other):
            return server
    return None


def _candidates(address: Address, members: Mapping[str, Server]) -> Iterator[Server]:
    if address.is_wildcard:
        yield from members.values()
        return
    hosts = [*_WILDCARDS, _NAMED]
    if address.host == _NAMED:
        hosts += LOOPBACKS
    for host in hosts:
        server = members.get(Address("tcp", host=host, port=address.port).key)
        if server is not None:
            yield server
    if "%" in address.host or address.host.startswith("fe80"):
        # With and without a zone one address has several spellings.
        bare = address.host.partition("%")[0]
        yield from (each for each in members.values() if each.config.address.host.partition("%")[0] == bare)
