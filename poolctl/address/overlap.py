"""Whether two addresses conflict, and which of many addresses conflicts with a given one."""

from __future__ import annotations

from poolctl.address.address import Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Mapping
    from typing import Protocol, TypeVar

    class Addressed(Protocol):
        """An object with an address."""

        @property
        def address(self) -> Address:
            """Its bind address."""
            ...

    Item = TypeVar("Item", bound=Addressed)

LOOPBACKS = frozenset({"127.0.0.1", "::1"})

_LOCALHOST = "localhost"
# Wildcard hosts, which may overlap with any address of the port, and the hosts of localhost, as spelt in keys.
_WILDCARDS = ("0.0.0.0", "[::]", _LOCALHOST)
_WILDCARDS_AND_LOOPBACKS = (*_WILDCARDS, "127.0.0.1", "[::1]")
# With fewer addresses, comparing each one is cheaper than counting ports.
_FEW = 64


def overlaps(a: Address, b: Address) -> bool:
    """Whether listeners on the two addresses would conflict.

    Host names other than localhost are not resolved: they overlap only with themselves and with a wildcard.
    """
    if a.kind != b.kind or a.auto or b.auto:
        return False
    if a.key == b.key:
        return True
    if a.kind != "tcp" or a.port != b.port:
        return False
    return _covers(a, b) or _covers(b, a)


def _covers(a: Address, b: Address) -> bool:
    if a.host == "::" or a.dual:
        # [::] without V6ONLY accepts IPv4 as well; `:8080` opens both families.
        return True
    if a.host == "0.0.0.0":
        return not b.is_ipv6 or b.host == "::"
    if a.host == _LOCALHOST:
        return b.host in LOOPBACKS
    if a.is_ipv6 and b.is_ipv6:
        a_bare, _, a_zone = a.host.partition("%")
        b_bare, _, b_zone = b.host.partition("%")
        return a_bare == b_bare and not (a_zone and b_zone)
    return False


class UsedPorts:
    """The number of addresses on each TCP port, counted only once a wildcard needs it."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: array[int] | None = None

    def has(self, port: int, items: Mapping[str, Item]) -> bool:
        """Whether any item uses this port."""
        if self._counts is None:
            from array import array

            self._counts = array("I", bytes(4 * 65536))
            for item in items.values():
                self.count(item.address, 1)
        return self._counts[port] > 0

    def count(self, address: Address, step: int) -> None:
        """Count an added (1) or removed (-1) item with this address."""
        if self._counts is not None and address.port is not None:
            self._counts[address.port] += step

    def reset(self) -> None:
        """Forget the counts after all items were removed; they are rebuilt on demand."""
        self._counts = None


def overlapping(address: Address, items: Mapping[str, Item], ports: UsedPorts) -> Item | None:
    """An item whose address overlaps with this one but has a different key; `items` maps address keys to items.

    The cost does not depend on the number of items.
    """
    if address.kind != "tcp" or address.port is None or address.auto:
        return None
    if address.is_wildcard and len(items) > _FEW and not ports.has(address.port, items):
        return None
    for item in _candidates(address, items):
        other = item.address
        if other.key != address.key and overlaps(address, other):
            return item
    return None


def _candidates(address: Address, items: Mapping[str, Item]) -> Iterator[Item]:
    if address.is_wildcard:
        yield from items.values()
        return
    for host in _WILDCARDS_AND_LOOPBACKS if address.host == _LOCALHOST else _WILDCARDS:
        item = items.get(f"{host}:{address.port}")
        if item is not None:
            yield item
    if "%" in address.host or address.host.startswith("fe80"):
        # With and without a zone, one address has several spellings.
        bare = address.host.partition("%")[0]
        yield from (each for each in items.values() if each.address.host.partition("%")[0] == bare)
