"""Chooses the ports of `:auto` addresses and stores them, so that a server keeps its address."""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING

from poolctl.errors import ServerError
from poolctl.platform import replace_file

from .open_listener import BindTarget, targets

if TYPE_CHECKING:
    from poolctl.address import Address

_TAKEN = (errno.EADDRINUSE, errno.EACCES)


class PortLedger:
    """The port of each server, stored in a JSON file; the range is `first` to `last`, inclusive.

    A port once chosen stays its server's, even while another program uses it: the address is the pool's key,
    and clients use it. A missing or damaged file is an empty ledger. Not thread-safe; writing blocks
    briefly.
    """

    def __init__(self, path: str, first: int, last: int) -> None:
        self._path = path
        self._first = first
        self._last = last
        self._ports = _read(path)

    def __repr__(self) -> str:
        return f"<PortLedger {self._first}-{self._last}, {len(self._ports)} chosen>"

    def port(
        self, name: str, address: Address, *, avoid: Container[int] = (), vacated: Iterable[int] = ()
    ) -> int:
        """The port of server `name`: its stored one, else the first that is free on `address`.

        `avoid` are the ports that the configuration gives to other servers, `vacated` those of servers to be removed:
        still in use, and reused if no other is left. Raises ServerError if there is none, OSError if the choice
        cannot be stored.
        """
        known = self._ports.get(name)
        if known is not None and self._first <= known <= self._last and known not in avoid:
            return known
        taken = {port for owner, port in self._ports.items() if owner != name}
        for port in range(self._first, self._last + 1):
            if port not in taken and port not in avoid and is_free(address, port):
                return self._chosen(name, port)
        for port in vacated:
            if self._first <= port <= self._last and port not in avoid:
                return self._chosen(name, port)
        raise ServerError(
            f"no port is free in port_range {self._first}-{self._last}",
            name=name,
            hint='widen it: [pool] port_range = "FIRST-LAST"',
        )

    def known(self, name: str) -> int | None:
        """The stored port of server `name`, None if it has none yet. Chooses and writes nothing."""
        return self._ports.get(name)

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget the ports of servers that are not among `names`: they were removed from the file."""
        wanted = set(names)
        kept = {name: port for name, port in self._ports.items() if name in wanted}
        if kept != self._ports:
            self._ports = kept
            self._write()

    def _chosen(self, name: str, port: int) -> int:
        self._ports[name] = port
        self._write()
        return port

    def _write(self) -> None:
        replace_file(self._path, json.dumps(self._ports).encode())


def free_port(host: str) -> int:
    """A port of this numeric host that no program uses at the moment."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def is_free(address: Address, port: int) -> bool:
    """Whether nothing at all uses `port` on any address of `address`."""
    return all(_is_unused(target, port) for target in targets(address))


def _is_unused(target: BindTarget, port: int) -> bool:
    # Without SO_REUSEADDR, so that connections that still linger on the port count as well.
    try:
        with socket.socket(target.family, socket.SOCK_STREAM) as sock:
            if target.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(target.sockaddr(port))
    except OSError as error:
        return error.errno not in _TAKEN
    return True


def _read(path: str) -> dict[str, int]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: port for name, port in content.items() if isinstance(port, int) and 0 < port < 65536}
