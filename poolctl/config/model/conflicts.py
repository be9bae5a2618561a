"""Servers that get in each other's way: one name, one address, overlapping addresses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from poolctl.address import Address, overlaps
from poolctl.config.model.problems import Finding, printable

if TYPE_CHECKING:
    from poolctl.config.model.server import ServerKeys

Conflict = tuple[int, int, Finding]


def conflicts(servers: Sequence[tuple[str, Address | None]]) -> Iterator[Conflict]:
    """(the later server's index, the earlier one's, the finding) for each server that cannot be beside another.

    A server is its name and its address; "" and None are told elsewhere.
    """
    names: dict[str, int] = {}
    keys: dict[str, int] = {}
    ports = Ports()
    for index, (name, address) in enumerate(servers):
        first = names.setdefault(name.casefold(), index) if name else index
        if first != index:
            other = servers[first][0]
            told = "" if other == name else f" by {other!r} (selecting ignores case)"
            message = f"the name {printable(name)!r} is taken{told}"
            yield index, first, Finding(("name",), message, "choose another name", name)
        if address is None or address.auto or (first != index and address.kind == "job"):
            continue
        first = keys.setdefault(address.key, index)
        if first != index:
            message = f"the address {address.key} is taken by {servers[first][0]!r}"
            yield index, first, Finding(("bind",), message, "choose another address", address.key)
            continue
        if address.kind == "tcp":
            found = ports.overlapping(address, index)
            if found is not None:
                other = f"{_spelt(servers[found][1] or address)} of {servers[found][0]!r}"
                message = f"{_spelt(address)} overlaps {other}"
                hint = "choose another port, or narrower addresses"
                yield index, found, Finding(("bind",), message, hint, address.key)


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


class Ports:
    """The addresses by port; telling whether one overlaps costs the same whether there are ten or ten thousand."""

    def __init__(self) -> None:
        self._first: dict[int | None, list[tuple[Address, int]]] = {}
        self._wide: dict[int | None, list[tuple[Address, int]]] = {}

    def overlapping(self, address: Address, index: int) -> int | None:
        """The index of an earlier address that overlaps; None when there is none, and it is remembered."""
        port = address.port
        everyone = self._first.get(port)
        if everyone is None:
            self._first[port] = [(address, index)]
            if _is_wide(address):
                self._wide[port] = [(address, index)]
            return None
        wide = _is_wide(address)
        # Two narrow addresses overlap only by name and zone, which few have.
        against = everyone if wide else self._wide.get(port, ())
        for other, found in against:
            if overlaps(address, other):
                return found
        everyone.append((address, index))
        if wide:
            self._wide.setdefault(port, []).append((address, index))
        return None


def _is_wide(address: Address) -> bool:
    return address.is_wildcard or address.host == "localhost" or address.host.startswith("fe80:")
