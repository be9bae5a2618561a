"""Resolves an address on this machine: one socket address for each socket to be opened."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from .failure import ListenError, unresolved

if TYPE_CHECKING:
    from poolctl.address import Address


class Target:
    """One socket to open: its family and address, for any port."""

    __slots__ = ("_rest", "family", "host")

    def __init__(self, family: int, host: str, rest: tuple[object, ...]) -> None:
        self.family = family
        self.host = host
        self._rest = rest  # flow and zone of an IPv6 address

    def __repr__(self) -> str:
        return f"<Target {self.host}>"

    def sockaddr(self, port: int) -> tuple[object, ...]:
        """The argument of bind()."""
        return (self.host, port, *self._rest)


def targets(address: Address) -> list[Target]:
    """The sockets of a TCP address, IPv4 first, each once; at least one.

    `:8080` means both IP versions; `localhost` the loopback addresses of the name, and only them.
     Raises ListenError; a host name may block until it is resolved.
    """
    found: dict[str, Target] = {}
    for host in ["0.0.0.0", "::"] if address.dual else [address.host]:
        for family, _, _, _, sockaddr in _answers(address, host):
            text = str(sockaddr[0])
            if address.host != "localhost" or _is_loopback(text):
                found.setdefault(text, Target(family, text, sockaddr[2:]))
    if not found:
        raise ListenError(
            f"{address.host} has no loopback address on this machine",
            bind=address.key,
            hint="write 127.0.0.1 instead, or fix /etc/hosts",
        )
    return sorted(found.values(), key=lambda target: target.family != socket.AF_INET)


def _answers(address: Address, host: str) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    try:
        return [*socket.getaddrinfo(host, 1, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)]
    except socket.gaierror as error:
        raise unresolved(address, str(error.strerror)) from error
    except UnicodeError as error:
        raise unresolved(address, str(error)) from error


def _is_loopback(text: str) -> bool:
    return text == "::1" or text.startswith("127.")
