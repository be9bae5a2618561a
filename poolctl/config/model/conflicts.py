"""Servers that get in each other's way: one name, one address, overlapping addresses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from poolctl.address import Address, UsedPorts, overlapping
from poolctl.config.model.problems import Finding, printable

if TYPE_CHECKING:
    from poolctl.config.model.server_keys import ServerKeys

Conflict = tuple[int, int, Finding]


class _Taken(NamedTuple):
    """An address that an earlier server has."""

    address: Address
    order: int


def conflicts(servers: Sequence[tuple[str, Address | None]]) -> Iterator[Conflict]:
    """(the later server's index, the earlier one's, the finding) for each server that cannot be beside another.

    A server is its name and its address; "" and None are reported elsewhere.
    """
    names: dict[str, int] = {}
    taken: dict[str, _Taken] = {}
    ports = UsedPorts()
    for index, (name, address) in enumerate(servers):
        first = names.setdefault(name.casefold(), index) if name else index
        if first != index:
            other = servers[first][0]
            by = "" if other == name else f" by {other!r} (selecting ignores case)"
            message = f"the name {printable(name)!r} is taken{by}"
            yield index, first, Finding(("name",), message, "choose another name", name)
        if address is None or address.auto or (first != index and address.kind == "job"):
            continue
        earlier = taken.get(address.key)
        if earlier is not None:
            message = f"the address {address.key} is taken by {servers[earlier.order][0]!r}"
            yield index, earlier.order, Finding(("bind",), message, "choose another address", address.key)
            continue
        found = overlapping(address, taken, ports)
        if found is not None:
            message = f"{_spelt(address)} overlaps {_spelt(found.address)} of {servers[found.order][0]!r}"
            hint = "choose another port, or narrower addresses"
            yield index, found.order, Finding(("bind",), message, hint, address.key)
        taken[address.key] = _Taken(address, index)
        ports.count(address, 1)


def _spelt(address: Address) -> str:
    if address.dual:
        return f":{address.port} (all addresses)"
    return f"{address.key} (IPv4 too)" if address.host == "::" else address.key


def shared_users(servers: Sequence[ServerKeys]) -> Iterator[tuple[ServerKeys, Finding]]:
    """The first of each group of servers that share a user, in a pool that keeps others apart by theirs.

    Where all have the same user, no isolation is expected.
    """
    by_user: dict[str, list[ServerKeys]] = {}
    for server in servers:
        by_user.setdefault((server.user or "").partition(":")[0], []).append(server)
    for user, sharing in by_user.items():
        if user and len(sharing) > 1 and len(by_user) > 1:
            first, *others = sharing
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            message = f"it shares the user {user!r} with {others[0].name}{more}: they are not isolated from each other"
            yield first, Finding(("user",), message, "give each its own user if they must be isolated", user)
